"""A StableDiffusionModel as the rules see it: metadata, spec and status, read once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

from pydantic import ValidationError

from sd_api import names
from sd_api.load import Owner
from sd_api.loadhash import load_hash
from sd_api.spec import DeletionPolicy, ModelType, Spec
from sd_api.status import Status
from sd_operator.base import times

_EPOCH = datetime.fromtimestamp(0, UTC)


@dataclass(frozen=True)
class Model:
    """One resource. spec is None where it cannot be read; problem then says why.

    raw_status: the status as the API server has it, also where it cannot be read.
    """

    namespace: str
    name: str
    uid: str
    generation: int
    resource_version: str
    finalizers: tuple[str, ...]
    annotations: Mapping[str, str]
    created: datetime
    deleted_at: datetime | None
    spec: Spec | None
    problem: str | None
    status: Status
    raw_status: Mapping[str, Any]
    model_id: str
    claim_name: str | None
    retain: bool

    @classmethod
    def from_body(cls, body: Mapping[str, Any]) -> Model:
        """Read what the API server has; nothing in it can make this fail but missing metadata."""
        metadata = body["metadata"]
        name = str(metadata["name"])
        raw_spec = body.get("spec") or {}
        spec, problem = _read_spec(raw_spec, name)
        raw_status = body.get("status") or {}
        status = _read_status(raw_status)
        return cls(
            namespace=str(metadata["namespace"]),
            name=name,
            uid=str(metadata["uid"]),
            generation=int(metadata.get("generation") or 0),
            resource_version=str(metadata.get("resourceVersion") or ""),
            finalizers=tuple(metadata.get("finalizers") or ()),
            annotations=metadata.get("annotations") or {},
            created=times.parse(metadata.get("creationTimestamp")) or _EPOCH,
            deleted_at=times.parse(metadata.get("deletionTimestamp")),
            spec=spec,
            problem=problem,
            status=status,
            raw_status=raw_status,
            model_id=spec.effective_model_id(name) if spec else status.model_id or name,
            claim_name=_claim_name(status, spec),
            retain=raw_spec.get("deletionPolicy") == DeletionPolicy.RETAIN,
        )

    @property
    def owner(self) -> Owner:
        """Whose files they are, as the loader is told."""
        return Owner(uid=self.uid, namespace=self.namespace, name=self.name)

    @cached_property
    def wanted(self) -> str:
        """The loadHash that the spec asks for; empty where there is no readable spec."""
        if self.spec is None:
            return ""
        return load_hash(self.spec, self.name, self.annotations.get(names.ANNOTATION_RELOAD))

    def claim_or(self, default: str) -> str:
        """The name of its PersistentVolumeClaim; default: the operator's own setting."""
        return self.claim_name or default

    @property
    def model_type(self) -> ModelType | None:
        """The model type, inferred where the spec leaves it out."""
        return self.spec.effective_model_type() if self.spec else self.status.model_type

    @property
    def url(self) -> str:
        """The source; only for models with a readable spec."""
        return (self.spec.effective_url(self.name) if self.spec else None) or ""

    @property
    def has_finalizer(self) -> bool:
        """Whether deletion waits for us; then there may be files on the volume."""
        return names.FINALIZER in self.finalizers


def _read_spec(raw: Mapping[str, Any], name: str) -> tuple[Spec | None, str | None]:
    if len(name) > names.NAME_MAX_LENGTH:
        return None, f"metadata.name is longer than {names.NAME_MAX_LENGTH} characters"
    try:
        spec = Spec.model_validate(raw)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in ("spec", *first["loc"]))
        return None, f"{field}: {first['msg']}"
    if not spec.effective_url(name):
        return None, "spec.url is required"
    return spec, None


def _read_status(raw: Mapping[str, Any]) -> Status:
    """An unreadable status counts as none: it is written anew from what is observed."""
    try:
        return Status.model_validate(raw)
    except ValidationError:
        return Status()


def _claim_name(status: Status, spec: Spec | None) -> str | None:
    """The claim that holds, or will hold, the files; None means the operator's default."""
    if spec is not None and spec.storage is not None:
        return spec.storage.claim_name
    return status.artifact.claim_name if status.artifact else None
