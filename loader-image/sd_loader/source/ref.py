"""What a source is asked for: where it is, what is expected there, and what its bytes must be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sd_api.reasons import Reason
from sd_api.redaction import redact_url
from sd_api.spec import ModelType, Revision
from sd_loader.errors import LoaderError
from sd_loader.formats.sniff import HEAD_BYTES, Container, identify


@dataclass(frozen=True)
class SourceRef:
    """A source as the spec or a setting names it."""

    url: str
    """A repo id, a link, a trained model's id, or a path on this machine."""

    field: str
    """What messages call the source: the field of the spec that names it, such as `spec.url`."""

    model_type: ModelType
    """What is expected there. It decides what a url without a scheme means."""

    git_revision: str | None = None
    """The branch, tag or commit of a Hub repo. None is its main branch."""

    precision: Revision | None = None
    """The precision to prefer where a repo has several. None takes the usual files."""

    replaced: frozenset[str] = frozenset()
    """Components of a pipeline that come from elsewhere and are not downloaded."""

    needs_token: bool = False
    """Whether the token is meant for this source: if it is for another host, the load fails.

    Any other source on another host is asked without the token.
    """


@dataclass(frozen=True)
class Checks:
    """What the bytes of a source must be."""

    sha256: str | None = None
    """Digest of the single file; None if the spec gives none."""

    safetensors_only: bool = False
    """Refuse pickles (spec.fromSafetensors)."""


def inspector(ref: SourceRef, checks: Checks) -> Callable[[bytes, int], None]:
    """A function that refuses, by its first bytes, a file that cannot be loaded.

    So that the rest of it is not downloaded in vain. It takes these bytes and the file's size.
    """
    shown = redact_url(ref.url)

    def inspect(head: bytes, size: int) -> None:
        try:
            container = identify(head[:HEAD_BYTES], size)
        except LoaderError as error:
            raise LoaderError(error.reason, f"{shown}: {error.message}") from error
        # A trained model's zip may be of a folder; its directory, at its end, tells.
        may_be_folder = container is Container.ZIP and ref.model_type is ModelType.API_TRAINED
        is_pickle = container is not Container.SAFETENSORS and not may_be_folder
        if checks.safetensors_only and is_pickle:
            raise LoaderError(
                Reason.UNSAFE_MODEL, f"{shown} is a pickle, and spec.fromSafetensors is true"
            )

    return inspect
