"""A StableDiffusionModel: metadata, spec and status, read once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

from pydantic import ValidationError

from sd_api import names
from sd_api.choices import UNKNOWN_TYPE, DeletionPolicy
from sd_api.load import Owner
from sd_api.loadhash import load_hash
from sd_api.spec import Spec
from sd_api.status import Status, StatusArtifact
from sd_api.wording import problem_words
from sd_operator.base import times


@dataclass(frozen=True)
class Model:
    """One StableDiffusionModel resource, parsed."""

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
    """None if the spec cannot be read."""
    problem: str | None
    """Why the spec cannot be read; None if it can."""
    status: Status
    """An empty status if the resource's status cannot be read."""
    raw_status: Mapping[str, Any]
    """The status as the API server has it, to find out what must be patched."""
    model_id: str
    """spec.modelId, or its default."""
    claim_name: str | None
    """The PVC of the spec, or of the published version; None means the operator's default."""
    retain: bool
    """Whether the files stay when the resource is deleted."""

    @classmethod
    def from_body(cls, body: Mapping[str, Any]) -> Model:
        """Read the API server's JSON; nothing but missing metadata can make this fail."""
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
            created=times.parse(metadata.get("creationTimestamp")) or times.EPOCH,
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
        """The owner of the files, in the form of the loader's requests."""
        return Owner(uid=self.uid, namespace=self.namespace, name=self.name)

    @cached_property
    def wanted(self) -> str:
        """The loadHash that the spec asks for; empty if the spec cannot be read."""
        if self.spec is None:
            return ""
        return load_hash(self.spec, self.name, self.annotations.get(names.ANNOTATION_RELOAD))

    def claim_or(self, default: str) -> str:
        """Return the name of the model's PVC; default: the operator's setting."""
        return self.claim_name or default

    def type_with(self, artifact: StatusArtifact | None) -> str | None:
        """Return spec.modelType or, if it is absent, the type of the published version.

        The type is `unknown` until a version is published, None if the spec was never readable.
        """
        if self.spec is None:
            return self.status.model_type
        if self.spec.model_type is not None:
            return self.spec.model_type.value
        return (artifact.model_type if artifact else None) or UNKNOWN_TYPE

    @property
    def url(self) -> str:
        """The source; empty if the spec cannot be read."""
        return (self.spec.effective_url(self.name) if self.spec else None) or ""

    @property
    def is_by_gateway(self) -> bool:
        """Whether a caller of the gateway chose one of the sources."""
        requested_by = self.annotations.get(names.ANNOTATION_REQUESTED_BY)
        return requested_by == names.REQUESTED_BY_GATEWAY

    @property
    def has_finalizer(self) -> bool:
        """Whether the operator's finalizer is set; without it there are no files on the volume."""
        return names.FINALIZER in self.finalizers


def load_job_uid(body: Mapping[str, Any]) -> str:
    """Return the uid of the load Job that a model's status records; empty if it has none."""
    job = (body.get("status") or {}).get("job")
    return str(job.get("uid") or "") if isinstance(job, Mapping) else ""


def _read_spec(raw: Mapping[str, Any], name: str) -> tuple[Spec | None, str | None]:
    if len(name) > names.NAME_MAX_LENGTH:
        return None, f"metadata.name is longer than {names.NAME_MAX_LENGTH} characters"
    try:
        spec = Spec.model_validate(raw)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in ("spec", *first["loc"]))
        return None, f"{field}: {problem_words(first)}"
    if not spec.effective_url(name):
        return None, "spec.url is required"
    return spec, None


def _read_status(raw: Mapping[str, Any]) -> Status:
    """Read the status; one that cannot be read counts as empty and is replaced."""
    try:
        return Status.model_validate(raw)
    except ValidationError:
        return Status()


def _claim_name(status: Status, spec: Spec | None) -> str | None:
    """Return the name of the PVC with the files; None means the operator's default."""
    if spec is not None and spec.storage is not None:
        return spec.storage.claim_name
    return status.artifact.claim_name if status.artifact else None
