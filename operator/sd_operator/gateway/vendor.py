"""The vendor's words: what its requests may say, and what they mean as a spec. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from sd_api.names import MODEL_ID_PATTERN
from sd_api.spec import ModelType
from sd_api.status import ConditionType, Phase
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


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


YesNo = Annotated[Literal["yes", "no"], BeforeValidator(_lower)]
Url = Annotated[str, StringConstraints(min_length=1, max_length=2048)]
Source = Annotated[Url, Field(description="Hugging Face repo id, or a link to the model's file.")]
ModelId = Annotated[
    str,
    StringConstraints(max_length=63, pattern=MODEL_ID_PATTERN),
    Field(description="The name under which the model is published."),
]
Revision = Annotated[
    Literal["fp16", "fp32", "bf16"], Field(description="Precision of the published weights.")
]
Webhook = Annotated[Url | None, Field(description="Called when the load begins, and at its end.")]


class Call(BaseModel):
    """What every request may have. Clients send null and "" for what they leave out."""

    model_config = ConfigDict(
        extra="ignore", coerce_numbers_to_str=True, str_strip_whitespace=True, frozen=True
    )

    key: str | None = Field(
        default=None, description="The API key; it may be sent as `Authorization: Bearer` instead."
    )

    @model_validator(mode="before")
    @classmethod
    def _without_blanks(cls, data: object) -> object:
        if not isinstance(data, dict):
            return data
        return {name: value for name, value in data.items() if value is not None and value != ""}


class LoadModel(Call):
    """load_model."""

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
        default=None, description="yes: anything but safetensors is refused."
    )
    revision: Revision = DEFAULT_REVISION
    upcast_attention: YesNo | None = Field(
        default=None, description="yes: attention is computed in fp32."
    )
    webhook: Webhook = None

    def spec(self) -> dict[str, Any]:
        """The spec it asks for; None where a field is to be absent."""
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
    """load_model_v2: type and format apart."""

    url: Source
    model_id: ModelId
    model_category: Literal["lora", "stable_diffusion", "stable_diffusion_xl", "controlnet"]
    model_format: Literal["ckpt", "safetensors", "pt", "diffusers"]
    revision: Revision = DEFAULT_REVISION
    webhook: Webhook = None

    def spec(self) -> dict[str, Any]:
        """The spec it asks for. That it is XL, the file says itself, and better."""
        whole = ModelType.HUGGINGFACE if self.model_format == "diffusers" else ModelType.CUSTOM_CKPT
        return {
            "url": self.url,
            "modelType": _CATEGORIES.get(self.model_category, whole).value,
            "fromSafetensors": True if self.model_format == "safetensors" else None,
            "revision": self.revision,
            "webhook": self.webhook,
        }


class LoadVae(Call):
    """load_vae."""

    vae_id: ModelId
    vae_url: Source
    vae_type: Literal["diffusers", "safetensors", "pt"]
    webhook: Webhook = None

    def spec(self) -> dict[str, Any]:
        """The spec it asks for; it cannot speak of precision."""
        return {
            "url": self.vae_url,
            "modelType": ModelType.VAE.value,
            "fromSafetensors": True if self.vae_type == "safetensors" else None,
            "webhook": self.webhook,
        }


class OneModel(Call):
    """verify_model, delete_model."""

    model_id: ModelId


class SyncModels(Call):
    """sync_models."""

    sync_key: str | None = Field(
        default=None, description="The vendor's second key. Accepted, and not looked at."
    )


def complaint(error: ValidationError) -> str:
    """What is wrong with a request, field by field, without what was sent."""
    told = []
    for fault in error.errors(include_url=False, include_input=False, include_context=False):
        field = ".".join(str(part) for part in fault["loc"][:1]) or "the body"
        if fault["type"] == "missing":
            told.append(f"{field} is required")
        elif field in {"model_id", "vae_id"} and fault["type"].startswith("string_"):
            told.append(
                f"{field} must be 1 to 63 letters, digits, dots, dashes and underscores,"
                " with a letter or digit at both ends"
            )
        else:
            told.append(f"{field}: {fault['msg']}")
    return "; ".join(told)


def loaded(bodies: Sequence[Json]) -> list[dict[str, str]]:
    """The list of get_all_models: those that are Ready."""
    found = []
    for body in bodies:
        if is_ready(body):
            at = times.parse((body["status"].get("artifact") or {}).get("lastUpdateTime"))
            text = at.astimezone(UTC).strftime(TIME_FORMAT) if at else ""
            found.append({"load_data": text, "model_id": effective_id(body)})
    return sorted(found, key=lambda one: one["model_id"])


def not_ready(body: Json) -> str:
    """Why a model that is known is not on the server."""
    status = body.get("status") or {}
    ready = condition(body, ConditionType.READY)
    stalled = condition(body, ConditionType.STALLED)
    why = stalled.get("message") or ready.get("message") or "the load has not begun"
    percent = (status.get("progress") or {}).get("percent")
    phase = status.get("phase") or Phase.PENDING
    return f"Model is not on server: {phase}{f' {percent} %' if percent else ''}: {why}"


def queue_seconds(bodies: Sequence[Json], now: datetime) -> int:
    """How long the oldest model waits that is queued."""
    waits = [0]
    for body in bodies:
        if (body.get("status") or {}).get("phase") == Phase.QUEUED:
            since = times.parse(condition(body, ConditionType.READY).get("lastTransitionTime"))
            since = since or times.parse(body["metadata"].get("creationTimestamp"))
            waits.append(int((now - since).total_seconds()) if since else 0)
    return max(waits)
