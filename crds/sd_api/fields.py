"""How the contract's models are built: strict, frozen, camelCase on the wire, bounded strings."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints
from pydantic.alias_generators import to_camel


class Contract(BaseModel):
    """Base of the contract's objects. It is closed: an unknown field is an error.

    With `defer_build`, pydantic builds a class's validator when the class is first used. A load
    uses few classes, and building all validators would take as long as importing pydantic.
    """

    model_config = ConfigDict(
        alias_generator=to_camel,
        extra="forbid",
        frozen=True,
        populate_by_name=True,
        defer_build=True,
    )


class Extensible(Contract):
    """Base of objects that a newer version may have written: unknown fields are ignored."""

    model_config = ConfigDict(extra="ignore")


TEXT_MAX_LENGTH = 1024
"""Maximum length of a text in the status. Longer texts must be cut first."""

URL_MAX_LENGTH = 2048
Url = Annotated[str, StringConstraints(min_length=1, max_length=URL_MAX_LENGTH)]
Text = Annotated[str, StringConstraints(max_length=TEXT_MAX_LENGTH)]
ShortText = Annotated[str, StringConstraints(max_length=253)]
DNS_NAME_PATTERN = r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$"
DnsName = Annotated[str, StringConstraints(min_length=1, max_length=253, pattern=DNS_NAME_PATTERN)]
HEX_64_PATTERN = r"^[0-9a-f]{64}$"
Sha256 = Annotated[str, StringConstraints(max_length=64, pattern=HEX_64_PATTERN)]
Blake3 = Annotated[str, StringConstraints(max_length=64, pattern=HEX_64_PATTERN)]
FolderDigest = Annotated[str, StringConstraints(max_length=71, pattern=r"^blake3:[0-9a-f]{64}$")]
LoadHash = Annotated[str, StringConstraints(max_length=16, pattern=r"^[0-9a-f]{16}$")]
Uid = Annotated[str, StringConstraints(max_length=64, pattern=r"^[A-Za-z0-9-]{1,64}$")]
Timestamp = Annotated[
    str, StringConstraints(max_length=32), Field(json_schema_extra={"format": "date-time"})
]
COUNT_MAX = 2**63 - 1
"""The largest integer in Kubernetes objects, whose integers are signed 64-bit."""


def _is_int64(value: int) -> int:
    if value > COUNT_MAX:
        raise ValueError(f"must be at most {COUNT_MAX}")
    return value


# The CRD does not mention the upper bound: the API server has no larger integers.
Count = Annotated[int, Field(ge=0), AfterValidator(_is_int64)]
