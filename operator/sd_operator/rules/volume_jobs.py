"""Builds the Jobs that work on a whole PVC, not on one model: sweeps and checks. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from sd_api import defaults, names
from sd_api.check import CheckRequest
from sd_api.loader_env import STORE_MOUNT, USER_ENV, LoaderEnv
from sd_api.spec import JobOverrides
from sd_operator.base.settings import LoaderSettings
from sd_operator.rules import workload
from sd_operator.rules.manifests import (
    TERMINATION_LOG,
    Manifest,
    command,
    listed,
    placement_of,
    restricted_pod,
)

TTL_SECONDS = 600
CHECK_DEADLINE_SECONDS = 600
"""How long a check may take, together with the wait for a node and for the volume."""


def build_sweep(namespace: str, name: str, claim_name: str, loader: LoaderSettings) -> Manifest:
    """Return a Job that deletes the files on a PVC that no model uses, like the chart's CronJob."""
    arguments = ["sweep", "--store", STORE_MOUNT, "--delete"]
    variables = LoaderEnv(retain_previous_seconds=loader.retain_previous_seconds)
    sweep = command("sweep", loader.slim_image, arguments, loader) | {
        "env": listed(variables.to_env() | USER_ENV),
        "resources": workload.REMOVE,
    }
    metadata = _metadata(namespace, name, names.SWEEP_NAME)
    return _job(metadata, sweep, claim_name, defaults.ACTIVE_DEADLINE_SECONDS, loader)


def build_check(
    namespace: str, name: str, claim_name: str, request: CheckRequest, loader: LoaderSettings
) -> Manifest:
    """Return a Job that compares published versions on a PVC with their receipts.

    It cannot write to the PVC, and it is neither queued nor counted as a load.
    """
    arguments = ["check", "--request", request.to_argument(), "--store", STORE_MOUNT]
    check = command(names.CONTAINER_CHECK, loader.slim_image, arguments, loader) | {
        "env": listed(LoaderEnv(termination_log=TERMINATION_LOG).to_env() | USER_ENV),
        "resources": workload.REMOVE,
        "terminationMessagePath": TERMINATION_LOG,
        "terminationMessagePolicy": "File",
    }
    for mount in check["volumeMounts"]:
        if mount["mountPath"] == STORE_MOUNT:
            # Read-only on this mount, not on the Pod's volume: for the latter, some drivers attach
            # the PVC in another mode, and refuse to do so while another Pod writes.
            mount["readOnly"] = True
    metadata = _metadata(namespace, name, names.CHECK_NAME)
    return _job(metadata, check, claim_name, CHECK_DEADLINE_SECONDS, loader)


def _metadata(namespace: str, name: str, label: str) -> Manifest:
    return {"name": name, "namespace": namespace, "labels": {names.LABEL_NAME: label}}


def _job(
    metadata: Mapping[str, object],
    container: Manifest,
    claim_name: str,
    deadline: int,
    loader: LoaderSettings,
) -> Manifest:
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata,
        "spec": {
            # A retry would have the same result.
            "backoffLimit": 0,
            "activeDeadlineSeconds": deadline,
            "ttlSecondsAfterFinished": TTL_SECONDS,
            "template": {
                "metadata": {"labels": metadata["labels"]},
                "spec": restricted_pod([container], claim_name, loader)
                | placement_of(JobOverrides(), loader),
            },
        },
    }
