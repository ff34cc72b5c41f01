"""The load form: its fields, the resource it describes, and the errors of each field. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sd_api import names
from sd_api.choices import (
    BaseModelName,
    DeletionPolicy,
    ModelType,
    PredictionType,
    Revision,
    Weights,
)
from sd_api.controlnets import CONTROLNET_REPOS
from sd_api.spec import Components, Spec, VaeSource
from sd_api.taxonomy import title_of
from sd_api.wording import reword
from sd_operator.gateway.errors import in_words
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
    """text, number or choice."""
    choices: Choices = ()
    """The values of a choice, each with its label."""
    common: bool = False
    """Whether the control is always visible; the others are under "More options"."""
    required: bool = False
    example: str = ""

    @property
    def id(self) -> str:
        """The control's HTML id."""
        return self.path.replace(".", "-")

    def value(self, text: str) -> object:
        """Return the resource's value for a text: a boolean, an integer, or the text itself.

        Text in a number field that is not a number stays text, so that the API server rejects it.
        """
        if self.choices == _YES_NO:
            return text == "true"
        if self.kind == "number" and text.removeprefix("-").isdecimal() and text.isascii():
            return int(text)
        return text


@dataclass(frozen=True)
class Complaints:
    """The errors of a submitted form."""

    at: Mapping[str, list[str]] = field(default_factory=dict)
    """The errors of each field, by the field's path."""
    others: tuple[str, ...] = ()
    """The errors that belong to no field of the form."""

    def __bool__(self) -> bool:
        return bool(self.at or self.others)


def _help(name: str, model: type[Components] | type[Spec] | type[VaeSource] = Spec) -> str:
    return (model.model_fields[name].description or "").replace("`", "")


def _words(values: Iterable[str], absent: str) -> Choices:
    return (("", absent), *((value, value) for value in values))


_YES_NO: Choices = (("", "Not set"), ("true", "Yes"), ("false", "No"))

FIELDS = (
    Field(
        "metadata.name",
        "Name",
        "Name of the resource: lower-case letters, digits, dashes and dots. A ControlNet with one"
        f" of these names needs no source: {', '.join(sorted(CONTROLNET_REPOS))}.",
        common=True,
        required=True,
        example="majicmix-realistic",
    ),
    Field(
        "spec.url",
        "Source",
        _help("url"),
        common=True,
        example="https://civitai.com/api/download/models/94640",
    ),
    Field(
        "spec.modelType",
        "Type",
        _help("model_type"),
        "choice",
        (("", "Find it in the source"), *((kind.value, TYPES[kind]) for kind in ModelType)),
        common=True,
    ),
    Field(
        "spec.revision",
        "Precision",
        _help("revision"),
        "choice",
        _words(Revision, "Same as the source"),
        common=True,
    ),
    Field(
        "spec.credentialsSecretRef.name",
        "Secret with the token",
        _help("credentials_secret_ref"),
        common=True,
        example="civitai-token",
    ),
    Field("spec.modelId", "Model id", _help("model_id")),
    Field("spec.gitRevision", "Git revision", _help("git_revision"), example="main"),
    Field("spec.sha256", "SHA-256", _help("sha256")),
    Field(
        "spec.baseModel",
        "Base model",
        _help("base_model"),
        "choice",
        (("", "Detect"), *((base.value, title_of(base)) for base in BaseModelName)),
    ),
    Field(
        "spec.predictionType",
        "Prediction type",
        _help("prediction_type"),
        "choice",
        _words(PredictionType, "Detect"),
    ),
    Field("spec.upcastAttention", "Upcast attention", _help("upcast_attention"), "choice", _YES_NO),
    Field("spec.weights", "Weights", _help("weights"), "choice", _words(Weights, "Default")),
    Field("spec.vae.url", "Replacement VAE", _help("url", VaeSource)),
    Field("spec.components.from", "Components from", _help("from_", Components)),
    Field("spec.originalConfig", "Original config", _help("original_config")),
    Field("spec.fromSafetensors", "Safetensors only", _help("from_safetensors"), "choice", _YES_NO),
    Field("spec.webhook", "Webhook", _help("webhook"), example="https://hooks.example.com/models"),
    Field(
        "spec.deletionPolicy",
        "On deletion",
        _help("deletion_policy"),
        "choice",
        (
            ("", "Delete the files"),
            (DeletionPolicy.RETAIN.value, "Retain the files"),
        ),
    ),
    Field("spec.priority", "Priority", _help("priority"), "number", example="0"),
    Field("spec.storage.claimName", "PersistentVolumeClaim", _help("storage")),
)
_LABELS = {control.path: control.label for control in FIELDS}


def values(submitted: Mapping[str, object]) -> dict[str, str]:
    """Return the text of each form field, stripped; ignore everything else that was submitted."""
    texts = {path: submitted.get(path) for path in _LABELS}
    return {path: text.strip() for path, text in texts.items() if isinstance(text, str)}


def manifest(texts: Mapping[str, str], namespace: str) -> dict[str, Any]:
    """Return the resource that the form describes."""
    body: dict[str, Any] = {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "metadata": {"name": texts.get("metadata.name", ""), "namespace": namespace},
        "spec": {},
    }
    for control in FIELDS:
        text = texts.get(control.path, "")
        if not text:
            continue
        *parents, last = control.path.split(".")
        target = body
        for name in parents:
            target = target.setdefault(name, {})
        target[last] = control.value(text)
    return body


def complaints(causes: Iterable[tuple[str, str]], default: str) -> Complaints:
    """Sort the API server's causes by form field; `default` is the error if there are none."""
    at: defaultdict[str, list[str]] = defaultdict(list)
    others: list[str] = []
    for where, message in in_words(causes):
        path = _field(where) or _field(message.partition(" ")[0].rstrip(":"))
        messages = at[path] if path else others
        text = in_labels(message)
        if text not in messages:
            messages.append(text)
    if not at and not others:
        others.append(default)
    return Complaints(dict(at), tuple(others))


def beside(
    errors: Complaints, texts: Mapping[str, str], *, submitted: bool
) -> Mapping[str, list[str]]:
    """Return the errors to show beside the fields, by the field's path.

    Before the form is submitted, an empty field shows no error: it may be filled in later.
    """
    return {path: messages for path, messages in errors.at.items() if submitted or texts.get(path)}


def in_labels(message: str) -> str:
    """Return a message with the labels of the form in place of the resource's fields."""
    return reword(message, label, yes="Yes")


def label(path: str) -> str | None:
    """Return the label of the form field for a path of the resource."""
    return _LABELS.get(_field(path) or "")


def _field(path: str) -> str | None:
    """Return the form field for a path of the resource, or for a path inside or around it."""
    for field_path in _LABELS:
        if path == field_path or path.startswith(f"{field_path}."):
            return field_path
    inner = [
        field_path
        for field_path in _LABELS
        if path.startswith("spec.") and field_path.startswith(f"{path}.")
    ]
    return inner[0] if inner else None
