"""Defaults and limits that more than one of operator, gateway and loader use.

A default that only one of them needs stands in its settings. The chart repeats some of the values
here; the chart's tests compare them.
"""

from __future__ import annotations

CLAIM_NAME = "models"
"""The PersistentVolumeClaim of models that name none."""
GPU_RESOURCE = "nvidia.com/gpu"
"""The resource that a load requests to render an image."""
HUB_ENDPOINT = "https://huggingface.co"
"""Base URL of the Hugging Face Hub."""
CIVITAI_ENDPOINT = "https://civitai.com"
"""Base URL of Civitai."""

MAX_BYTES = 100 * 10**9
"""Size limit of one source, in bytes."""
ACTIVE_DEADLINE_SECONDS = 6 * 3600
"""How long a load may run, unless spec.job says otherwise. Clean-ups and sweeps have this limit,
too."""
RETAIN_PREVIOUS_SECONDS = 24 * 3600
"""How long the previous version of a model stays on the volume."""
RETAIN_PREVIOUS_MAX_SECONDS = 100 * 365 * 24 * 3600
"""Maximum time to keep a previous version: a hundred years. Later dates may overflow."""
RENDER_STEPS = 8
"""Denoising steps of a rendered image, unless spec.verify.steps says otherwise."""
RENDER_PROMPT = "a photograph of a red fox in a forest"
"""Prompt of a rendered image, unless spec.verify.prompt says otherwise."""
RENDER_SEED = 0

METRICS_PORT = 8080
"""Port of the metrics, of operator and gateway."""
PROBES_PORT = 8081
"""Port of the kubelet's probes, of operator and gateway."""
GATEWAY_PORT = 8000
"""Port of the gateway's API and pages; it also has /healthz and /readyz."""
