"""Requests of the operator to the loader: JSON arguments of its command line."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import ConfigDict, Field, StringConstraints

from sd_api.fields import Contract, LoadHash, Uid, Url
from sd_api.spec import LoadFields, ModelId, Spec


class Owner(Contract):
    """The resource that a model belongs to."""

    uid: Uid
    namespace: Annotated[str, StringConstraints(max_length=63, pattern=r"^[a-z0-9-]+$")]
    name: Annotated[str, StringConstraints(max_length=63, pattern=r"^[a-z0-9.-]+$")]


class Request(Contract):
    """Base of the requests.

    A request is closed: a loader refuses a field that it does not know, because ignoring the field
    would do something else than was asked.
    """

    def to_argument(self) -> str:
        """The request as JSON, with only the fields that are set."""
        return self.model_dump_json(by_alias=True, exclude_defaults=True)

    @classmethod
    def from_argument(cls, text: str) -> Self:
        """Read a request; raise ValidationError for a field that is unknown, at any level."""
        return cls.model_validate_json(text, strict=True, extra="forbid")


class LoadRequest(LoadFields, Request):
    """One load: `sd-loader fetch --request JSON` and `sd-loader convert --request JSON`."""

    model_config = ConfigDict(extra="forbid")

    owner: Owner
    model_id: ModelId
    load_hash: LoadHash
    url: Url
    render_if_pipeline: bool = Field(
        default=False, description="Render an image if the source turns out to be a whole model."
    )
    credentials: bool = Field(
        default=False, description="Whether a token is expected in the credentials folder."
    )

    @classmethod
    def from_spec(
        cls, spec: Spec, owner: Owner, load_hash: str, *, credentials: bool = False
    ) -> LoadRequest:
        """Make the request for a spec, with the effective url and model id."""
        fields = {name: getattr(spec, name) for name in LoadFields.model_fields}
        fields["url"] = spec.effective_url(owner.name)
        return cls(
            **fields,
            owner=owner,
            model_id=spec.effective_model_id(owner.name),
            load_hash=load_hash,
            credentials=credentials,
        )


class RemoveRequest(Request):
    """The clean-up of one deleted model: `sd-loader remove --request JSON`."""

    owner: Owner
    model_id: ModelId
    retain: bool = Field(
        default=False,
        description="Keep the published files and mark them released, so that a model of the same"
        " namespace and name can take them over.",
    )
