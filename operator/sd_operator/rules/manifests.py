"""Builds the manifests of loader and clean-up Jobs as plain dicts. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sd_api import logins, names
from sd_api.default_credentials import DefaultSecret, file_of
from sd_api.load import LoadRequest, RemoveRequest
from sd_api.loader_env import (
    CREDENTIALS_DIR,
    DEFAULT_CREDENTIALS_DIR,
    HUB_LIBRARY_ENV,
    LOGINS_DIR,
    STORE_MOUNT,
    TORCH_ENV,
    USER_ENV,
    LoaderEnv,
)
from sd_api.reasons import ExitCode
from sd_api.spec import JobOverrides
from sd_operator.base.settings import LoaderSettings, Settings
from sd_operator.resources.claim import ClaimView
from sd_operator.resources.model import Model
from sd_operator.rules import workload
from sd_operator.rules.credentials import default_secrets, own_secret
from sd_operator.rules.decision import JobPlan

BACKOFF_LIMIT = 3
USER_ID = 65532
TERMINATION_LOG = "/dev/termination-log"
CA_DIR = "/etc/sd-loader/ca"
GRACE_SECONDS = 15
KUEUE_LABEL = "kueue.x-k8s.io/queue-name"

Manifest = dict[str, Any]

_CREDENTIALS = ("token", "host")
"""The keys of a Secret with the token of a source."""

_POD_SECURITY = {
    "runAsNonRoot": True,
    "runAsUser": USER_ID,
    "runAsGroup": USER_ID,
    "fsGroup": USER_ID,
    "fsGroupChangePolicy": "OnRootMismatch",
    "seccompProfile": {"type": "RuntimeDefault"},
}
_CONTAINER_SECURITY = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}


def plan_load(model: Model, settings: Settings, claim: ClaimView, attempt: int) -> JobPlan:
    """Return the plan of the Job that loads a model; its spec must be readable."""
    spec = model.spec
    if spec is None:
        raise ValueError(f"the spec of {model.namespace}/{model.name} cannot be read")
    overrides = _overrides(model, settings.loader)
    credentials = own_secret(spec, settings.loader.default_credentials)
    request = LoadRequest.from_spec(
        spec, model.owner, model.wanted, credentials=credentials is not None
    )
    renders = workload.renders(spec, overrides or JobOverrides(), settings.loader)
    return JobPlan(
        namespace=model.namespace,
        name=names.job_name(model.name, model.uid, model.wanted, attempt),
        model_name=model.name,
        model_uid=model.uid,
        claim_name=claim.name,
        claim_uid=claim.uid,
        attempt=attempt,
        request=_resolved(request, renders=renders),
        generation=model.generation,
        overrides=overrides,
        credentials_secret=credentials,
        default_secrets=default_secrets(request, settings, by_gateway=model.is_by_gateway),
    )


def plan_remove(model: Model, settings: Settings, claim_name: str, attempt: int) -> JobPlan:
    """Return the plan of the Job that removes or releases a deleted model's files."""
    return JobPlan(
        namespace=model.namespace,
        name=names.job_name(model.name, model.uid, names.ROLE_REMOVE, attempt),
        model_name=model.name,
        model_uid=model.uid,
        claim_name=claim_name,
        attempt=attempt,
        request=RemoveRequest(owner=model.owner, model_id=model.model_id, retain=model.retain),
        overrides=_overrides(model, settings.loader),
    )


def _overrides(model: Model, loader: LoaderSettings) -> JobOverrides | None:
    """Return spec.job without what the administrator does not allow.

    Otherwise a forbidden PriorityClass could make a clean-up fail.
    """
    overrides = model.spec.job if model.spec and loader.allow_overrides else None
    if overrides is None or overrides.priority_class_name is None:
        return overrides
    if loader.allows_priority_class(overrides.priority_class_name):
        return overrides
    return overrides.model_copy(update={"priority_class_name": None})


def _resolved(request: LoadRequest, *, renders: bool) -> LoadRequest:
    """Return the request with verify.render filled in, unless only the loader can decide it."""
    if renders and request.verify.render is None and request.model_type is None:
        return request.model_copy(update={"render_if_pipeline": True})
    verify = request.verify.model_copy(update={"render": renders})
    return request.model_copy(update={"verify": verify})


def build(plan: JobPlan, settings: Settings) -> Manifest:
    """Return the manifest of a planned Job."""
    if isinstance(plan.request, LoadRequest):
        return _build_load(plan, plan.request, settings)
    return _build_remove(plan, settings)


def _build_load(plan: JobPlan, request: LoadRequest, settings: Settings) -> Manifest:
    loader, overrides = settings.loader, plan.overrides or JobOverrides()
    renders = bool(request.verify.render) or request.render_if_pipeline
    resources = workload.convert_resources(overrides, loader, renders=renders)
    image = loader.image if renders else loader.slim_image
    fetch = _container(names.CONTAINER_FETCH, image, workload.FETCH, plan, settings)
    secrets = _secret_volumes(plan, loader)
    fetch["volumeMounts"] += [
        {"name": volume["name"], "mountPath": path, "readOnly": True} for path, volume in secrets
    ]
    convert = _container(names.CONTAINER_CONVERT, image, resources, plan, settings)
    pod = _pod([convert], plan, settings)
    pod["initContainers"] = [fetch]
    pod["volumes"] += [volume for _, volume in secrets]
    pod |= placement_of(overrides, loader)
    runtime_class = workload.runtime_class(overrides, loader, resources)
    if runtime_class is not None:
        pod["runtimeClassName"] = runtime_class
    deadline = overrides.active_deadline_seconds or loader.active_deadline_seconds
    job = _job(names.ROLE_LOAD, pod, plan, deadline, loader.load_ttl_seconds)
    if loader.kueue_queue is not None:
        # The label is not on the Pods: Kueue would queue them as well.
        job["metadata"]["labels"] = job["metadata"]["labels"] | {KUEUE_LABEL: loader.kueue_queue}
        job["spec"]["suspend"] = True
    job["metadata"]["annotations"][names.ANNOTATION_LOAD_HASH] = request.load_hash
    job["metadata"]["annotations"][names.ANNOTATION_CLAIM_UID] = plan.claim_uid
    job["metadata"]["annotations"][names.ANNOTATION_GENERATION] = str(plan.generation)
    job["metadata"]["ownerReferences"] = [
        {
            "apiVersion": names.API_VERSION,
            "kind": names.KIND,
            "name": plan.model_name,
            "uid": plan.model_uid,
            "controller": True,
            "blockOwnerDeletion": True,
        }
    ]
    return job


def _secret_volumes(plan: JobPlan, loader: LoaderSettings) -> list[tuple[str, Manifest]]:
    """Return the volumes with Secrets, each with its mount path in the container that fetches."""
    secrets = (
        (CREDENTIALS_DIR, "credentials", plan.credentials_secret, _CREDENTIALS),
        (LOGINS_DIR, "logins", loader.logins_secret, logins.KEYS),
    )
    volumes = [(path, _secret_volume(name, of, keys)) for path, name, of, keys in secrets if of]
    if plan.default_secrets:
        volumes.append((DEFAULT_CREDENTIALS_DIR, _default_secrets_volume(plan.default_secrets)))
    return volumes


def _secret_volume(name: str, secret: str, keys: Sequence[str]) -> Manifest:
    """Return a volume with these keys of a Secret, and nothing else of it.

    Secret and keys are optional, so that the loader starts without them and reports SecretNotFound.
    """
    items = [{"key": key, "path": key} for key in keys]
    source = {"secretName": secret, "optional": True, "defaultMode": 0o440, "items": items}
    return {"name": name, "secret": source}


def _default_secrets_volume(secrets: Mapping[str, DefaultSecret]) -> Manifest:
    """Return a volume with the tokens of the Secrets, which are optional, as are their keys."""
    sources = [
        {
            "secret": {
                "name": secret.name,
                "optional": True,
                "items": [{"key": key, "path": file_of(host, key)} for key in _CREDENTIALS],
            }
        }
        for host, secret in sorted(secrets.items())
    ]
    return {"name": "defaults", "projected": {"defaultMode": 0o440, "sources": sources}}


def _build_remove(plan: JobPlan, settings: Settings) -> Manifest:
    # No ownerReference: foreground deletion of the model would delete the Job before it ran.
    loader = settings.loader
    remove = _container(names.CONTAINER_REMOVE, loader.slim_image, workload.REMOVE, plan, settings)
    pod = _pod([remove], plan, settings) | placement_of(plan.overrides or JobOverrides(), loader)
    deadline = loader.active_deadline_seconds
    return _job(names.ROLE_REMOVE, pod, plan, deadline, loader.remove_ttl_seconds)


def placement_of(overrides: JobOverrides, loader: LoaderSettings) -> Manifest:
    """Return a Pod's node selector, tolerations and PriorityClass: from spec.job or the default."""
    included = {"node_selector", "tolerations", "priority_class_name"}
    placement: Manifest = {}
    for source in (loader.placement, overrides):
        placement |= source.model_dump(by_alias=True, exclude_none=True, include=included)
    return placement


def _job(role: str, pod: Manifest, plan: JobPlan, deadline: int, ttl: int) -> Manifest:
    labels = {
        names.LABEL_NAME: names.LOADER_NAME,
        names.LABEL_MANAGED_BY: names.FIELD_MANAGER,
        names.LABEL_MODEL_UID: plan.model_uid,
        names.LABEL_ROLE: role,
    }
    annotations = {names.ANNOTATION_MODEL: f"{plan.namespace}/{plan.model_name}"}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": plan.name,
            "namespace": plan.namespace,
            "labels": labels,
            "annotations": annotations | {names.ANNOTATION_ATTEMPT: str(plan.attempt)},
        },
        "spec": {
            "backoffLimit": BACKOFF_LIMIT,
            "activeDeadlineSeconds": deadline,
            "ttlSecondsAfterFinished": ttl,
            "podFailurePolicy": {
                "rules": [
                    {
                        "action": "Ignore",
                        "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
                    },
                    # Without a container name, the rule also applies to init containers.
                    {
                        "action": "FailJob",
                        "onExitCodes": {"operator": "In", "values": [int(ExitCode.PERMANENT)]},
                    },
                ]
            },
            "template": {
                "metadata": {"labels": labels, "annotations": annotations},
                "spec": pod,
            },
        },
    }


def _pod(containers: list[Manifest], plan: JobPlan, settings: Settings) -> Manifest:
    loader = settings.loader
    pod = restricted_pod(containers, plan.claim_name, loader)
    pod["terminationGracePeriodSeconds"] = GRACE_SECONDS
    if loader.ca_configmap:
        pod["volumes"].append({"name": "ca", "configMap": {"name": loader.ca_configmap}})
    return pod


def restricted_pod(containers: list[Manifest], claim_name: str, loader: LoaderSettings) -> Manifest:
    """Return the Pod spec that loads, clean-ups, sweeps and checks have in common."""
    security = loader.security_context
    pod: Manifest = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": dict(_POD_SECURITY if security is None else security.get("pod", {})),
        "containers": containers,
        "volumes": [
            {"name": "models", "persistentVolumeClaim": {"claimName": claim_name}},
            {"name": "tmp", "emptyDir": {"sizeLimit": loader.tmp_size}},
        ],
    }
    if loader.image_pull_secrets:
        pod["imagePullSecrets"] = [{"name": name} for name in loader.image_pull_secrets]
    return pod


def _container(
    name: str, image: str, resources: Manifest, plan: JobPlan, settings: Settings
) -> Manifest:
    # Kubernetes expands $(NAME) in arguments; a url may contain one.
    request = plan.request.to_argument().replace("$", "\\u0024")
    arguments = [name, "--request", request, "--store", STORE_MOUNT]
    container = command(name, image, arguments, settings.loader) | {
        "env": _env(name, plan, settings),
        "resources": resources,
        "terminationMessagePath": TERMINATION_LOG,
        "terminationMessagePolicy": "File",
    }
    if settings.loader.ca_configmap:
        ca = {"name": "ca", "mountPath": CA_DIR, "readOnly": True}
        container["volumeMounts"].append(ca)
    return container


def command(name: str, image: str, arguments: list[str], loader: LoaderSettings) -> Manifest:
    """Return a container that runs sd-loader with the volume mounted."""
    security = loader.security_context
    return {
        "name": name,
        "image": image,
        "command": ["sd-loader"],
        "args": arguments,
        "securityContext": dict(
            _CONTAINER_SECURITY if security is None else security.get("container", {})
        ),
        "volumeMounts": [
            {"name": "models", "mountPath": STORE_MOUNT},
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - the Pod's own emptyDir
        ],
    }


def _env(container: str, plan: JobPlan, settings: Settings) -> list[Manifest]:
    loader = settings.loader
    variables = LoaderEnv(
        termination_log=TERMINATION_LOG,
        allowed_hosts=settings.allowed_hosts,
        max_bytes=loader.max_bytes,
        retain_previous_seconds=loader.retain_previous_seconds,
        hub_endpoint=settings.hub_endpoint,
        https_proxy=settings.https_proxy,
        no_proxy=settings.no_proxy,
        ca_file=f"{CA_DIR}/ca.crt" if loader.ca_configmap else None,
    )
    plain = variables.to_env() | HUB_LIBRARY_ENV | USER_ENV
    if container == names.CONTAINER_FETCH:
        fetching = LoaderEnv(
            credentials_dir=CREDENTIALS_DIR,
            default_credentials=plan.default_secrets,
            default_credentials_dir=DEFAULT_CREDENTIALS_DIR if plan.default_secrets else None,
            logins_dir=LOGINS_DIR if loader.logins_secret else None,
            civitai_endpoint=settings.civitai_endpoint,
            verify_digest=settings.verify_digest,
            pictures=settings.pictures,
            default_parts=loader.default_parts,
            trained_url_template=settings.trained_url_template,
        )
        plain |= fetching.to_env()
    if container == names.CONTAINER_CONVERT:
        plain |= TORCH_ENV
    pod_name = {"fieldRef": {"fieldPath": "metadata.name"}}
    return [*listed(plain), {"name": LoaderEnv.name_of("pod"), "valueFrom": pod_name}]


def listed(variables: Mapping[str, str]) -> list[Manifest]:
    """Return environment variables in the form of a container's field `env`."""
    return [{"name": name, "value": value} for name, value in variables.items()]
