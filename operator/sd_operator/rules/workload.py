"""What a Job needs: whether it renders an image, its GPUs, its CPU and memory. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from sd_api.choices import PIPELINES
from sd_api.spec import JobOverrides, Spec
from sd_operator.base.settings import LoaderSettings

Amounts = dict[str, Any]
Resources = dict[str, Amounts]

# Without torch, the loader holds at most 150 MB, whatever the size of the model: it streams. The
# rest of a request is room for the page cache. The limits leave room for hostile files, for which
# the loader needs at most 300 MB, and for the headers and metadata of large files.
FETCH: Resources = {
    "requests": {"cpu": "250m", "memory": "256Mi"},
    "limits": {"memory": "1Gi"},
}
CONVERT: Resources = {
    "requests": {"cpu": "500m", "memory": "256Mi"},
    "limits": {"memory": "2Gi"},
}
# torch and the whole pipeline are in memory: about 4 GiB for SD 1.5 in half precision, and up to
# 16 GiB for SDXL on a CPU, where it runs in single precision.
RENDER: Resources = {
    "requests": {"cpu": "1", "memory": "4Gi"},
    "limits": {"memory": "16Gi"},
}
# For clean-ups, sweeps and checks, which read only names, sizes and receipts.
REMOVE: Resources = {
    "requests": {"cpu": "100m", "memory": "128Mi"},
    "limits": {"memory": "512Mi"},
}


def renders(spec: Spec, overrides: JobOverrides, loader: LoaderSettings) -> bool:
    """Whether the load renders an image.

    spec.verify.render decides. If it is absent, the load of a whole model renders if the Job gets a
    GPU: from spec.job.resources or else from the administrator's settings. An adapter or VAE cannot
    draw an image alone, so by default its load does not render. A model of unknown type is planned
    as a whole model, and the loader renders only if the model is one.
    """
    if spec.verify.render is not None:
        return spec.verify.render
    if spec.effective_model_type() not in PIPELINES:
        return False
    own = _own_gpus(overrides, loader)
    return loader.gpu_count > 0 if own is None else not _is_zero(own)


def convert_resources(
    overrides: JobOverrides, loader: LoaderSettings, *, renders: bool
) -> Resources:
    """Return the resources of the convert container.

    The administrator's GPUs are requested only to render. GPUs that spec.job.resources names are
    requested in any case.
    """
    own = overrides.resources.model_dump(exclude_none=True) if overrides.resources else {}
    resources = {kind: dict(own.get(kind, {})) for kind in ("requests", "limits")}
    # A default beside an override of the same resource could contradict it.
    overridden = resources["requests"].keys() | resources["limits"].keys()
    gpus = _own_gpus(overrides, loader)
    if gpus is None and renders and loader.gpu_count > 0:
        gpus = loader.gpu_count
    if gpus is not None:
        # Kubernetes accepts a request for a GPU only beside an equal limit.
        resources["limits"].setdefault(loader.gpu_resource, gpus)
    for kind, amounts in (RENDER if renders else CONVERT).items():
        resources[kind] |= {key: amount for key, amount in amounts.items() if key not in overridden}
    return resources


def runtime_class(
    overrides: JobOverrides, loader: LoaderSettings, resources: Mapping[str, Amounts]
) -> str | None:
    """Return the RuntimeClass of a load's Pod.

    If GPUs are configured, the administrator's RuntimeClass is only for Pods with a GPU: a node
    without a GPU may lack the class, and a Pod could not start there.
    """
    default = loader.placement.runtime_class_name
    if loader.gpu_count > 0 and _is_zero(resources["limits"].get(loader.gpu_resource, 0)):
        default = None
    return overrides.runtime_class_name or default


def _own_gpus(overrides: JobOverrides, loader: LoaderSettings) -> int | str | None:
    """Return the amount of GPUs that spec.job.resources names; None if it names none."""
    own = overrides.resources
    if own is None:
        return None
    amounts = (own.requests or {}) | (own.limits or {})
    return amounts.get(loader.gpu_resource)


def _is_zero(amount: int | str) -> bool:
    """Whether a quantity is 0, in any spelling: 0, "0", "0.0", "0k"."""
    number = re.match(r"[0-9.]+", str(amount))
    return number is None or float(number[0]) == 0
