"""The controls of the load form, in groups, with words for people who do not know the resource."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sd_api.choices import (
    BaseModelName,
    DeletionPolicy,
    ModelType,
    PredictionType,
    Revision,
    Weights,
)
from sd_api.controlnets import CONTROLNET_REPOS
from sd_api.taxonomy import title_of
from sd_operator.gateway.gallery.views import TYPES

Choices = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Field:
    """One control of the form. If it is empty, the resource does not get the field."""

    path: str
    """The field of the resource that gets the control's value."""
    label: str
    help: str
    kind: str = "text"
    """text, number, choice, or flag for a choice of yes and no."""
    choices: Choices = ()
    """The values of a choice or a flag, each with its label."""
    example: str = ""

    @property
    def id(self) -> str:
        """The control's HTML id."""
        return self.path.replace(".", "-")

    def value(self, text: str) -> object:
        """Return the resource's value for a text: a boolean, an integer, or the text itself.

        If the text of a number field is not an integer, it stays text: the API server rejects it.
        """
        if self.kind == "flag":
            return text == "true"
        if self.kind == "number" and text.removeprefix("-").isdecimal() and text.isascii():
            return int(text)
        return text


@dataclass(frozen=True)
class Group:
    """Controls of the load form that are shown and hidden together, below one title."""

    id: str
    title: str
    fields: tuple[Field, ...]


def _words(values: Iterable[str], absent: str) -> Choices:
    return (("", absent), *((value, value) for value in values))


def _flag(path: str, label: str, help_text: str, absent: str) -> Field:
    choices = (("", absent), ("true", "Yes"), ("false", "No"))
    return Field(path, label, help_text, "flag", choices)


MAIN = (
    Field(
        "spec.url",
        "Source",
        "A model's page at Civitai or Hugging Face, a repo such as stabilityai/sdxl-turbo, or a"
        " link to a model file.",
        example="https://civitai.com/models/43331",
    ),
    Field(
        "metadata.name",
        "Name",
        "Lower-case letters, digits, dashes and dots. Empty: a name is made from the title."
        f" ControlNets with these names need no source: {', '.join(sorted(CONTROLNET_REPOS))}.",
        example="majicmix-realistic",
    ),
)
"""The controls that are always visible."""

TYPE = Group(
    "type",
    "Type and precision",
    (
        Field(
            "spec.modelType",
            "Type",
            "The file or repo shows what it is. Choose a type to refuse any other, or for a"
            " trained model of the vendor.",
            "choice",
            (("", "Find it in the source"), *((kind.value, TYPES[kind]) for kind in ModelType)),
        ),
        Field(
            "spec.revision",
            "Precision",
            "fp16 and bf16 take half the space and memory of fp32.",
            "choice",
            _words(Revision, "Same as the source"),
        ),
    ),
)
ACCESS = Group(
    "access",
    "Access",
    (
        Field(
            "spec.credentialsSecretRef.name",
            "Secret with the token",
            "For gated and private models: a Secret of this namespace with the keys token and"
            " host. The token is sent to that host only; for the Hub, host may be missing.",
            example="civitai-token",
        ),
        Field(
            "spec.gitRevision",
            "Git revision",
            "Branch, tag or commit of a repo. Empty: main.",
            example="main",
        ),
        Field(
            "spec.sha256",
            "SHA-256",
            "The load fails if the downloaded file has another digest.",
        ),
    ),
)
FAMILY = Group(
    "family",
    "If the file does not show what it is",
    (
        Field(
            "spec.baseModel",
            "Base model",
            "The family, such as SDXL. Choose it if a load could not find the family.",
            "choice",
            (("", "Detect"), *((base.value, title_of(base)) for base in BaseModelName)),
        ),
        Field(
            "spec.predictionType",
            "Prediction type",
            "Choose v_prediction if the model's author says that it is a v-prediction model, and"
            " its images are grey or burnt.",
            "choice",
            _words(PredictionType, "Detect"),
        ),
        _flag(
            "spec.upcastAttention",
            "Upcast attention",
            "Compute attention in fp32, which SD 2.1 for 768 pixels needs. With Yes, a model of"
            " SD 2 is loaded as SD 2.1 for 768 pixels.",
            "Detect",
        ),
        Field(
            "spec.weights",
            "Weights",
            "Some checkpoints have two sets: ema is the smoothed one.",
            "choice",
            _words(Weights, "Default"),
        ),
        Field(
            "spec.originalConfig",
            "Original config",
            "Link to the YAML file that belongs to an unusual checkpoint.",
        ),
    ),
)
COMPONENTS = Group(
    "components",
    "Components from other sources",
    (
        Field("spec.vae.url", "Replacement VAE", "A repo or link. Empty: the model's own VAE."),
        Field(
            "spec.components.from",
            "Components from",
            "A diffusers repo that gives what the file lacks, such as text encoders. Empty: the"
            " administrator's default for the family.",
        ),
    ),
)
CHECKS = Group(
    "checks",
    "Checks",
    (
        _flag(
            "spec.verify.render",
            "Render an image",
            "Draw a picture with the model before it is published. The picture becomes its preview."
            " A model that cannot draw is not published.",
            "If the load has a GPU",
        ),
        _flag(
            "spec.fromSafetensors",
            "Safetensors only",
            "Refuse files of other formats, which are converted without running their code.",
            "No rule",
        ),
    ),
)
PUBLISHING = Group(
    "publishing",
    "Publishing",
    (
        Field(
            "spec.modelId",
            "Model id",
            "The folder on the volume, and the id in the API. Empty: the name.",
        ),
        Field(
            "spec.storage.claimName",
            "PersistentVolumeClaim",
            "Another volume, labelled sd-operator.dev/models: 'true'. Empty: the administrator's.",
        ),
        Field(
            "spec.deletionPolicy",
            "On deletion",
            "What happens to the published files when the model is deleted.",
            "choice",
            (
                ("", "Delete the files"),
                (DeletionPolicy.RETAIN.value, "Retain the files"),
            ),
        ),
        Field(
            "spec.priority",
            "Priority",
            "Models with a higher number load first.",
            "number",
            example="0",
        ),
        Field(
            "spec.webhook",
            "Webhook",
            "A URL that is called when the load ends.",
            example="https://hooks.example.com/models",
        ),
    ),
)
GROUPS = (TYPE, ACCESS, FAMILY, COMPONENTS, CHECKS, PUBLISHING)

FIELDS = (*MAIN, *(field for group in GROUPS for field in group.fields))
"""All controls, in the order of the load form."""
