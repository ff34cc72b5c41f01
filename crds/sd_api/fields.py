"""How the contract's models are built: strict, frozen, camelCase on the wire, bounded strings."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from pydantic.alias_generators import to_camel


class Contract(BaseModel):
    """Base of messages between our own parts: an unknown field is an error."""

    model_config = ConfigDict(
        alias_generator=to_camel, extra="forbid", frozen=True, populate_by_name=True
    )


class ResourcePart(Contract):
    """Base of what is read from the API server, which may already know newer fields."""

    model_config = ConfigDict(extra="ignore")


TEXT_MAX_LENGTH = 1024
"""Longer texts for the status must be cut first."""

Url = Annotated[str, StringConstraints(min_length=1, max_length=2048)]
Text = Annotated[str, StringConstraints(max_length=TEXT_MAX_LENGTH)]
ShortText = Annotated[str, StringConstraints(max_length=253)]
DnsName = Annotated[
    str,
    StringConstraints(min_length=1, max_length=253, pattern=r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$"),
]
Sha256 = Annotated[str, StringConstraints(max_length=64, pattern=r"^[0-9a-f]{64}$")]
LoadHash = Annotated[str, StringConstraints(max_length=16, pattern=r"^[0-9a-f]{16}$")]
Uid = Annotated[str, StringConstraints(max_length=64, pattern=r"^[A-Za-z0-9-]{1,64}$")]
Timestamp = Annotated[
    str, StringConstraints(max_length=32), Field(json_schema_extra={"format": "date-time"})
]
Count = Annotated[int, Field(ge=0)]
