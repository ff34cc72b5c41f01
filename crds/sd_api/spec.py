"""The spec of a StableDiffusionModel: what a user asks for.

Field names are those of the vendor, the hosted service that the gateway replaces.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal, NamedTuple

from pydantic import Field, StringConstraints

from sd_api import defaults
from sd_api.choices import (
    BaseModelName,
    ComponentName,
    DeletionPolicy,
    LoraFormat,
    ModelType,
    PredictionType,
    Revision,
    Weights,
)
from sd_api.controlnets import CONTROLNET_REPOS
from sd_api.fields import DnsName, Extensible, Sha256, ShortText, Url
from sd_api.names import MODEL_ID_PATTERN
from sd_api.url_forms import WHOLE_REPO

_DEADLINE = defaults.ACTIVE_DEADLINE_SECONDS

GIT_REVISION_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._/-]*$"
QUANTITY_PATTERN = r"^[0-9]+(\.[0-9]+)?([eE][0-9]+|[numkMGTPE]i?|)$"
DATA_KEY_PATTERN = r"^[-._a-zA-Z0-9]+$"

ModelId = Annotated[str, StringConstraints(max_length=63, pattern=MODEL_ID_PATTERN)]
Quantity = Annotated[str, StringConstraints(max_length=32, pattern=QUANTITY_PATTERN)]


class SecretRef(Extensible):
    """Names a Secret in the model's own namespace."""

    name: DnsName


class SecretKeyRef(Extensible):
    """Names one key of a Secret in the model's own namespace."""

    name: DnsName
    key: Annotated[str, StringConstraints(max_length=253, pattern=DATA_KEY_PATTERN)]


class VaeSource(Extensible):
    """The source of a VAE that replaces the model's own."""

    url: Url = Field(
        description="Hugging Face repo id, page at Civitai or http(s) link of the VAE."
    )


class ComponentSource(Extensible):
    """The source of a component that replaces the pipeline's own."""

    url: Url = Field(
        description="Hugging Face repo that has the component, or http(s) link to its file."
    )


class Components(Extensible):
    """The sources of the components that the model's own source does not give.

    The names are those of the folders in a diffusers pipeline.
    """

    from_: Url | None = Field(
        default=None,
        alias="from",
        description="Diffusers repo (ORG/NAME[@REVISION]) that gives every component which the file"
        " of spec.url lacks. Default: the operator's repo for the model's family.",
    )
    transformer: ComponentSource | None = Field(
        default=None, description="Replaces the transformer of a repo."
    )
    transformer_2: ComponentSource | None = Field(
        default=None,
        alias="transformer_2",
        description="Replaces the second transformer, which Wan 2.2 has.",
    )
    vae: ComponentSource | None = Field(
        default=None, description="Replaces the VAE; the same as spec.vae."
    )
    text_encoder: ComponentSource | None = Field(
        default=None, alias="text_encoder", description="Replaces the text encoder; a repo."
    )
    text_encoder_2: ComponentSource | None = Field(
        default=None,
        alias="text_encoder_2",
        description="Replaces the second text encoder; a repo.",
    )
    text_encoder_3: ComponentSource | None = Field(
        default=None, alias="text_encoder_3", description="Replaces the third text encoder; a repo."
    )
    text_encoder_4: ComponentSource | None = Field(
        default=None,
        alias="text_encoder_4",
        description="Replaces the fourth text encoder; a repo.",
    )

    def replacements(self) -> dict[str, str]:
        """The urls of the components that replace the pipeline's own, by component."""
        found = {}
        for name in ComponentName:
            source: ComponentSource | None = getattr(self, name)
            if source is not None:
                found[name.value] = source.url
        return found


TWO_VAES = "spec.components.vae: spec.vae gives a VAE as well; remove one of them"
"""The message for a spec that replaces the VAE twice."""


class Replacement(NamedTuple):
    """The source of a component, as the spec states it."""

    field: str
    """The field that has the url, for messages."""

    url: str


class Verify(Extensible):
    """How thoroughly the converted model is checked before it is published."""

    weights: bool = Field(
        default=False, description="Scan every weight for NaN and Inf; costs a pass over the files."
    )
    render: bool | None = Field(
        default=None,
        description="Render an image. Default: true for a checkpoint or repo if its Job gets a GPU."
        " Other models are tried only with true.",
    )
    prompt: Annotated[str, StringConstraints(max_length=1000)] | None = Field(
        default=None, description="Prompt of the rendered image."
    )
    steps: Annotated[int, Field(ge=1, le=150)] | None = Field(
        default=None,
        description=f"Denoising steps of the rendered image. Default {defaults.RENDER_STEPS}.",
    )


class LoraOptions(Extensible):
    """How a LoRA is published."""

    format: LoraFormat = Field(
        default=LoraFormat.DIFFUSERS,
        description="peft adds the folder's files that PEFT reads, adapter_config.json and"
        " adapter_model.safetensors.",
    )

    expand_lycoris: bool = Field(
        default=False,
        description="Expand LoHa and LoKr exactly to a LoRA of higher rank, in fp32 unless revision"
        " says otherwise.",
    )


class Storage(Extensible):
    """Which volume the model is published on."""

    claim_name: DnsName = Field(
        description="PersistentVolumeClaim in the model's namespace. Default: the operator's."
        " Another one needs the label sd-operator.dev/models: 'true'."
    )


class Toleration(Extensible):
    """A core/v1 Toleration."""

    key: ShortText | None = None
    operator: Literal["Exists", "Equal"] | None = None
    value: ShortText | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    toleration_seconds: int | None = None


ResourceList = Annotated[
    dict[Annotated[str, StringConstraints(max_length=253)], Quantity | int], Field(max_length=16)
]


class Resources(Extensible):
    """A core/v1 ResourceRequirements, without claims."""

    requests: ResourceList | None = None
    limits: ResourceList | None = None


class JobOverrides(Extensible):
    """Settings of this model's loader Job that replace the operator's defaults."""

    resources: Resources | None = Field(
        default=None, description="Requests and limits of the convert container."
    )
    node_selector: Annotated[dict[str, ShortText], Field(max_length=16)] | None = Field(
        default=None, description="Labels that the Pod's node must have."
    )
    tolerations: Annotated[list[Toleration], Field(max_length=16)] | None = Field(
        default=None, description="Taints the Pod tolerates."
    )
    runtime_class_name: DnsName | None = Field(
        default=None, description="RuntimeClass of the Pod, for example nvidia."
    )
    priority_class_name: DnsName | None = Field(
        default=None, description="PriorityClass of the Pod."
    )
    active_deadline_seconds: Annotated[int, Field(ge=60, le=604_800)] | None = Field(
        default=None,
        description=f"The Job is stopped after this time. Default {_DEADLINE}"
        f" ({_DEADLINE // 3600} h).",
    )


class LoadFields(Extensible):
    """The fields that decide what is loaded and how.

    The spec and the load request share these fields. load_hash is a digest of them, so a change of
    any of them loads the model again. A field with its default value is left out of the hash, so
    that a new field does not load existing models again.
    """

    url: Url | None = Field(
        default=None,
        description="Hugging Face repo (ORG/NAME[@REVISION], its page, or hf://ORG/NAME), a model's"
        " page at Civitai, an http(s) link to a model file, or with modelType api_trained a trained"
        " model's id or link."
        " May be left out for modelType controlnet if the model id is one of the vendor's eleven.",
    )
    model_type: ModelType | None = Field(
        default=None,
        description="Absent: the file or repo decides, and status.modelType shows what it is."
        " Given: the source must be of this type. A trained model needs api_trained.",
    )
    from_safetensors: bool | None = Field(
        default=None,
        description="true refuses anything but safetensors; false or absent: content decides.",
    )
    revision: Revision | None = Field(
        default=None,
        description="Precision of the published weights. Absent: as the source has it.",
    )
    upcast_attention: bool | None = Field(
        default=None,
        description="The UNet's upcast_attention. Absent: as detected. With true, SD 2 is taken for"
        " 2.1 768-v.",
    )
    git_revision: (
        Annotated[
            str, StringConstraints(min_length=1, max_length=253, pattern=GIT_REVISION_PATTERN)
        ]
        | None
    ) = Field(default=None, description="Branch, tag or commit of a Hub repo. Default: main.")
    sha256: Sha256 | None = Field(
        default=None, description="Expected digest of a single-file download, lower-case hex."
    )
    weights: Weights = Field(
        default=Weights.STANDARD,
        description="Which weights to publish if a checkpoint has both sets.",
    )
    base_model: BaseModelName | None = Field(
        default=None, description="The architecture, where the file does not say it."
    )
    prediction_type: PredictionType | None = Field(
        default=None, description="What the UNet predicts. Absent: as detected."
    )
    original_config: Url | None = Field(
        default=None, description="Link of the checkpoint's original YAML config."
    )
    vae: VaeSource | None = Field(default=None, description="A VAE that replaces the model's own.")
    components: Components = Field(
        default_factory=Components,
        description="Where components come from that the model's own source does not give.",
    )
    lora: LoraOptions = Field(default_factory=LoraOptions, description="How a LoRA is published.")
    verify: Verify = Field(
        default_factory=Verify, description="How thoroughly the model is tried before publishing."
    )

    def replacements(self) -> dict[str, Replacement]:
        """The components that replace those of the model's source, by name."""
        own = self.components.replacements()
        found = {name: Replacement(f"spec.components.{name}.url", url) for name, url in own.items()}
        if self.vae is not None:
            found["vae"] = Replacement("spec.vae.url", self.vae.url)
        return found


class Spec(LoadFields):
    """Desired state of one model."""

    # The fields below are not load-affecting: they say how the operator treats the model.

    model_id: ModelId | None = Field(
        default=None,
        description="The name it is published under. Default: metadata.name. Immutable.",
    )
    webhook: Url | None = Field(default=None, description="URL called on load events.")
    webhook_secret_ref: SecretKeyRef | None = Field(
        default=None, description="Key that signs the webhook's calls (Standard Webhooks)."
    )
    credentials_secret_ref: SecretRef | None = Field(
        default=None,
        description="Secret with the keys `token` and `host`; the token is sent to that host only,"
        " over https. For Hub sources the host defaults to the Hub's.",
    )
    deletion_policy: DeletionPolicy = Field(
        default=DeletionPolicy.DELETE,
        description="What happens to the published files when this resource is deleted.",
    )
    suspend: bool = Field(
        default=False,
        description="true stops a running load; published and downloaded files stay.",
    )
    priority: Annotated[int, Field(ge=-1_000_000, le=1_000_000)] = Field(
        default=0, description="Order in the queue, higher first."
    )
    storage: Storage | None = Field(
        default=None, description="Which volume the model is published on."
    )
    job: JobOverrides | None = Field(
        default=None, description="Overrides of the loader Job; the administrator may forbid them."
    )

    def effective_model_type(self) -> ModelType:
        """The model type of the spec. If it has none: huggingface for a repo, else custom_ckpt.

        The load hash contains this type, so it must not depend on what the source turns out to be.
        """
        if self.model_type is not None:
            return self.model_type
        if self.url is not None and re.search(WHOLE_REPO, self.url):
            return ModelType.HUGGINGFACE
        return ModelType.CUSTOM_CKPT

    def effective_model_id(self, metadata_name: str) -> str:
        """The id under which the model is published."""
        return self.model_id or metadata_name

    def effective_url(self, metadata_name: str) -> str | None:
        """The url of the spec, or the one that the model id implies. None if there is neither."""
        if self.url is None and self.model_type is ModelType.CONTROLNET:
            return CONTROLNET_REPOS.get(self.effective_model_id(metadata_name))
        return self.url
