"""The load form: its fields, the resource that they make, and complaints at the fields. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sd_api import names
from sd_api.controlnets import CONTROLNET_REPOS
from sd_api.spec import (
    BaseModelName,
    DeletionPolicy,
    ModelType,
    PredictionType,
    Revision,
    Spec,
    VaeSource,
    Weights,
)
from sd_operator.gateway.errors import plain
from sd_operator.gateway.gallery.views import BASES, TYPES

Choices = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Field:
    """One control. path: where its value goes in the resource; kind: text, number, or choice.

    An empty value leaves the resource's field out.
    """

    path: str
    label: str
    help: str
    kind: str = "text"
    choices: Choices = ()
    common: bool = False
    required: bool = False
    example: str = ""

    @property
    def id(self) -> str:
        """Of the control in the page."""
        return self.path.replace(".", "-")

    def value(self, text: str) -> object:
        """What the resource gets: a number or truth where it is one, else what was written."""
        if self.choices == _YES_NO:
            return text == "true"
        if self.kind == "number" and text.removeprefix("-").isdecimal() and text.isascii():
            return int(text)
        return text


@dataclass(frozen=True)
class Complaints:
    """What is wrong: by the path of a field of the form, and what concerns none of them."""

    at: Mapping[str, list[str]] = field(default_factory=dict)
    others: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.at or self.others)


def _help(name: str, model: type[Spec] | type[VaeSource] = Spec) -> str:
    return (model.model_fields[name].description or "").replace("`", "")


def _words(values: Iterable[str], absent: str) -> Choices:
    return (("", absent), *((value, value) for value in values))


_YES_NO: Choices = (("", "No matter"), ("true", "Yes"), ("false", "No"))

FIELDS = (
    Field(
        "metadata.name",
        "Name",
        "The resource's name: lower-case letters, digits, dashes and dots. A ControlNet of the"
        f" vendor's needs no source but its name: {', '.join(sorted(CONTROLNET_REPOS))}.",
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
        (("", "As the source suggests"), *((kind.value, TYPES[kind]) for kind in ModelType)),
        common=True,
    ),
    Field(
        "spec.revision",
        "Precision",
        _help("revision"),
        "choice",
        _words(Revision, "As the source has it"),
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
        (("", "As detected"), *((base.value, BASES[base]) for base in BaseModelName)),
    ),
    Field(
        "spec.predictionType",
        "Prediction type",
        _help("prediction_type"),
        "choice",
        _words(PredictionType, "As detected"),
    ),
    Field("spec.upcastAttention", "Upcast attention", _help("upcast_attention"), "choice", _YES_NO),
    Field("spec.weights", "Weights", _help("weights"), "choice", _words(Weights, "As by default")),
    Field("spec.vae.url", "Other VAE", _help("url", VaeSource)),
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
    Field("spec.storage.claimName", "Volume claim", _help("storage")),
)
_PATHS = [one.path for one in FIELDS]


def values(given: Mapping[str, object]) -> dict[str, str]:
    """The texts of the form's own fields, without space around them."""
    texts = {path: given.get(path) for path in _PATHS}
    return {path: text.strip() for path, text in texts.items() if isinstance(text, str)}


def manifest(texts: Mapping[str, str], namespace: str) -> dict[str, Any]:
    """The resource that the form asks for."""
    body: dict[str, Any] = {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "metadata": {"name": texts.get("metadata.name", ""), "namespace": namespace},
        "spec": {},
    }
    for one in FIELDS:
        text = texts.get(one.path, "")
        if not text:
            continue
        *parents, last = one.path.split(".")
        part = body
        for name in parents:
            part = part.setdefault(name, {})
        part[last] = one.value(text)
    return body


def complaints(causes: Iterable[tuple[str, str]], otherwise: str) -> Complaints:
    """The API server's causes, each at its field; otherwise is what it said where it gave none."""
    at: defaultdict[str, list[str]] = defaultdict(list)
    others: list[str] = []
    for where, message in causes:
        # The rules are not checked while a field is wrong: that is no fault of its own.
        if "some validation rules were not checked" in message:
            continue
        text = plain(where, message)
        found = _field(where) or _field(text.partition(" ")[0].rstrip(":"))
        told = at[found] if found else others
        text = text.removeprefix(f"{found}: ")
        if text not in told:
            told.append(text)
    if not at and not others:
        others.append(otherwise)
    return Complaints(dict(at), tuple(others))


def _field(path: str) -> str | None:
    """The form's field for a path of the resource, or for what lies within or around it."""
    for known in _PATHS:
        if path == known or path.startswith(f"{known}."):
            return known
    inner = [known for known in _PATHS if path.startswith("spec.") and known.startswith(f"{path}.")]
    return inner[0] if inner else None
