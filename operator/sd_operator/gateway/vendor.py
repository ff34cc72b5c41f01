"""The request and response fields of the vendor's REST API, and their translation. Pure.

The vendor is the hosted service that this gateway replaces (docs/gateway.md). Its fields are
translated to and from StableDiffusionModel resources.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from sd_api.choices import ModelType
from sd_api.names import MODEL_ID_PATTERN
from sd_api.status import ConditionType, Phase
from sd_api.taxonomy import canonical
from sd_api.wording import MODEL_ID_WORDS, message_in_api
from sd_operator.base import times
from sd_operator.clients.kube import Json
from sd_operator.gateway.models import condition, effective_id, is_ready

SCHEDULERS = (
    "DDPMScheduler",
    "DDIMScheduler",
    "PNDMScheduler",
    "LMSDiscreteScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "DPMSolverSinglestepScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "UniPCMultistepScheduler",
    "DDIMInverseScheduler",
    "DEISMultistepScheduler",
    "IPNDMScheduler",
    "KarrasVeScheduler",
    "ScoreSdeVeScheduler",
)
DEFAULT_REVISION: Literal["fp32"] = "fp32"
TIME_FORMAT = "%m/%d/%Y %H:%M:%S"
_WARNED_MAX = 10
_NAME_MAX_LENGTH = 40


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


YesNo = Annotated[Literal["yes", "no"], BeforeValidator(_lower)]
Url = Annotated[str, StringConstraints(min_length=1, max_length=2048)]
Source = Annotated[Url, Field(description="Hugging Face repo id, or a link to the model file.")]
ModelId = Annotated[
    str,
    StringConstraints(max_length=63, pattern=MODEL_ID_PATTERN),
    Field(description="Id under which the model is published."),
]
Revision = Annotated[
    Literal["fp16", "fp32", "bf16"], Field(description="Precision of the published weights.")
]
Webhook = Annotated[
    Url | None, Field(description="URL that is called when the load starts and when it ends.")
]


class Call(BaseModel):
    """The fields of every request.

    Null and "" count as absent: the vendor's clients send them for fields that they do not set.
    """

    NAMES: ClassVar[Mapping[str, str]] = {
        "spec.url": "url",
        "spec.modelId": "model_id",
        "spec.modelType": "model_type",
        "spec.fromSafetensors": "from_safetensors",
        "spec.revision": "revision",
        "spec.upcastAttention": "upcast_attention",
        "spec.webhook": "webhook",
    }
    """The request's names for fields of the resource, used in messages. Requests without these
    fields use the names of load_model."""

    model_config = ConfigDict(
        extra="ignore", coerce_numbers_to_str=True, str_strip_whitespace=True, frozen=True
    )

    key: str | None = Field(
        default=None, description="API key; it may be sent as `Authorization: Bearer` instead."
    )

    @model_validator(mode="before")
    @classmethod
    def _without_blanks(cls, data: object) -> object:
        if not isinstance(data, dict):
            return data
        return {name: value for name, value in data.items() if value is not None and value != ""}


class LoadModel(Call):
    """The request of load_model."""

    url: Source
    model_id: ModelId
    model_type: Literal[
        "huggingface",
        "api_trained",
        "custom_ckpt",
        "lora",
        "embeddings",
        "controlnet",
        "vae",
    ]
    from_safetensors: YesNo | None = Field(
        default=None, description="yes: load the model only if it is in safetensors format."
    )
    revision: Revision = DEFAULT_REVISION
    upcast_attention: YesNo | None = Field(default=None, description="yes: attention uses fp32.")
    webhook: Webhook = None

    def spec(self) -> dict[str, Any]:
        """Return the requested spec. A field that must be absent from it is None."""
        return {
            "url": self.url,
            "modelType": self.model_type,
            "fromSafetensors": True if self.from_safetensors == "yes" else None,
            "revision": self.revision,
            "upcastAttention": True if self.upcast_attention == "yes" else None,
            "webhook": self.webhook,
        }


_CATEGORIES = {"lora": ModelType.LORA, "controlnet": ModelType.CONTROLNET}


class LoadModelV2(Call):
    """The request of load_model_v2, which has category and format as separate fields."""

    url: Source
    model_id: ModelId
    model_category: Literal["lora", "stable_diffusion", "stable_diffusion_xl", "controlnet"]
    model_format: Literal["ckpt", "safetensors", "pt", "diffusers"]
    revision: Revision = DEFAULT_REVISION
    webhook: Webhook = None

    NAMES = {
        "spec.url": "url",
        "spec.modelId": "model_id",
        "spec.modelType": "model_category",
        "spec.baseModel": "model_category",
        "spec.fromSafetensors": "model_format",
        "spec.revision": "revision",
        "spec.webhook": "webhook",
    }

    def spec(self) -> dict[str, Any]:
        """Return the requested spec.

        For a whole model, the category also decides baseModel: stable_diffusion_xl means SDXL,
        stable_diffusion means the family that the file shows.
        """
        whole = ModelType.HUGGINGFACE if self.model_format == "diffusers" else ModelType.CUSTOM_CKPT
        adapter = _CATEGORIES.get(self.model_category)
        base_model = {} if adapter else {"baseModel": canonical(self.model_category)}
        return {
            "url": self.url,
            "modelType": (adapter or whole).value,
            **base_model,
            "fromSafetensors": True if self.model_format == "safetensors" else None,
            "revision": self.revision,
            "webhook": self.webhook,
        }


class LoadVae(Call):
    """The request of load_vae."""

    vae_id: ModelId
    vae_url: Source
    vae_type: Literal["diffusers", "safetensors", "pt"]
    webhook: Webhook = None

    NAMES = {
        "spec.url": "vae_url",
        "spec.modelId": "vae_id",
        "spec.fromSafetensors": "vae_type",
        "spec.webhook": "webhook",
    }

    def spec(self) -> dict[str, Any]:
        """Return the requested spec. It sets no precision: the request has no field for it."""
        return {
            "url": self.vae_url,
            "modelType": ModelType.VAE.value,
            "fromSafetensors": True if self.vae_type == "safetensors" else None,
            "webhook": self.webhook,
        }


class OneModel(Call):
    """The request of verify_model, status and delete_model."""

    model_id: ModelId


class SyncModels(Call):
    """The request of sync_models."""

    sync_key: str | None = Field(
        default=None, description="The vendor's second key; it is accepted and ignored."
    )


def in_callers_words(kind: type[Call], message: str) -> str:
    """Return a message with the names of the request's fields in place of the resource's fields."""
    return message_in_api(message, kind.NAMES)


def complaint(error: ValidationError) -> str:
    """Return what is wrong with each field of a request, without the values that were sent."""
    messages = []
    for fault in error.errors(include_url=False, include_input=False, include_context=False):
        field = ".".join(str(part) for part in fault["loc"][:1]) or "the body"
        if fault["type"] == "missing":
            messages.append(f"{field} is required")
        elif field in {"model_id", "vae_id"} and fault["type"].startswith("string_"):
            messages.append(f"{field} {MODEL_ID_WORDS}")
        else:
            messages.append(f"{field}: {fault['msg']}")
    return "; ".join(messages)


def warnings(kind: type[Call], fields: Json) -> dict[str, list[str]]:
    """Return the response's `warnings`, which name the request's unknown fields; {} if none."""
    unknown = sorted(set(fields) - set(kind.model_fields))
    if not unknown:
        return {}
    named = ", ".join(_printable(name) for name in unknown[:_WARNED_MAX])
    more = f" and {len(unknown) - _WARNED_MAX} more" if len(unknown) > _WARNED_MAX else ""
    return {"warnings": [f"unknown fields are ignored: {named}{more}"]}


def _printable(name: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in name[:_NAME_MAX_LENGTH])


def loaded(bodies: Sequence[Json]) -> list[dict[str, str]]:
    """Return the entries of get_all_models: the Ready models, sorted by id."""
    entries = []
    for body in bodies:
        if is_ready(body):
            moment = times.parse((body["status"].get("artifact") or {}).get("lastUpdateTime"))
            text = moment.astimezone(UTC).strftime(TIME_FORMAT) if moment else ""
            entries.append({"load_data": text, "model_id": effective_id(body)})
    return sorted(entries, key=lambda entry: entry["model_id"])


def progress(body: Json) -> dict[str, object]:
    """Return a load's phase, percent and seconds left; the numbers are None if not known."""
    status = body.get("status") or {}
    phase = status.get("phase") or Phase.PENDING
    loading = phase not in (Phase.FAILED, Phase.DELETING)
    running = (status.get("progress") if loading else None) or {}
    return {
        "phase": str(phase),
        "percent": running.get("percent"),
        "eta": running.get("etaSeconds"),
    }


def not_ready(body: Json) -> str:
    """Return the message for a model that exists and is not Ready: its phase and the cause."""
    ready = condition(body, ConditionType.READY)
    stalled = condition(body, ConditionType.STALLED)
    why = stalled.get("message") or ready.get("message") or "the load has not started"
    now = progress(body)
    percent = f" {now['percent']} %" if now["percent"] else ""
    return f"Model is not on server: {now['phase']}{percent}: {why}"


def queue_seconds(bodies: Sequence[Json], now: datetime) -> int:
    """Return for how many seconds the oldest queued model has waited; 0 if none is queued."""
    waits = [0]
    for body in bodies:
        if (body.get("status") or {}).get("phase") == Phase.QUEUED:
            since = times.parse(condition(body, ConditionType.READY).get("lastTransitionTime"))
            since = since or times.parse(body["metadata"].get("creationTimestamp"))
            waits.append(int((now - since).total_seconds()) if since else 0)
    return max(waits)
