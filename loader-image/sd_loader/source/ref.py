"""A reference to a source, and the checks of its bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sd_api.choices import BaseModelName, ModelType, Revision
from sd_api.reasons import Reason
from sd_api.redaction import redact_url
from sd_loader.diffusers_repo.index import Pipeline, refuse_replaced
from sd_loader.diffusers_repo.listed import AnyPipeline, title
from sd_loader.errors import LoaderError, prefixing
from sd_loader.formats.sniff import HEAD_BYTES, Container, identify


@dataclass(frozen=True)
class SourceRef:
    """A source, as the spec or a setting refers to it."""

    url: str
    """A repo id, a link, a trained model's id, or a path on this machine."""

    field: str
    """How messages refer to the source: by the field of the spec, such as `spec.url`."""

    model_type: ModelType | None
    """The expected type, which decides what a url without a scheme means. None if the source shows
    its type."""

    git_revision: str | None = None
    """The branch, tag or commit of a Hub repo. None for its main branch."""

    precision: Revision | None = None
    """The precision to prefer if a repo has several. None for the files without a variant."""

    replaced: frozenset[str] = frozenset()
    """Components of a pipeline that are not downloaded, because other sources give them."""

    component: str | None = None
    """The component of a pipeline that the source must give. None: the whole source."""

    only_for_files: tuple[str, ...] = ()
    """The set fields of the spec that apply to single files only."""

    base_model: BaseModelName | None = None
    """The required family of the pipeline. None if any family is accepted."""

    only_for_sd: tuple[str, ...] = ()
    """The set fields of the spec that apply to pipelines of Stable Diffusion only."""

    needs_token: bool = False
    """Whether the load fails if the token is for another host than the source's.

    If false, the source is requested without such a token.
    """


@dataclass(frozen=True)
class Checks:
    """Requirements for the bytes of a source."""

    sha256: str | None = None
    """SHA-256 of the single file. None if it is not known."""

    is_stated: bool = False
    """Whether the SHA-256 comes from the source, and not from the spec."""

    may_skip: bool = False
    """Whether the SHA-256 is not compared if more than 1 GB would be downloaded only for this."""

    safetensors_only: bool = False
    """Refuse pickles (spec.fromSafetensors)."""


def refuse_unsuitable(pipeline: AnyPipeline, ref: SourceRef) -> None:
    """Refuse fields of the spec that do not fit the pipeline, before it is downloaded."""
    if ref.only_for_files:
        raise LoaderError(
            Reason.INVALID_SPEC,
            f"{', '.join(ref.only_for_files)} is for single files, which lack components, but the"
            f" repo is {title(pipeline.class_name)}; remove it from the spec",
        )
    if isinstance(pipeline, Pipeline):
        refuse_replaced(ref.replaced)
        return
    if ref.base_model not in (None, pipeline.base_model):
        raise LoaderError(
            Reason.INVALID_SPEC,
            f"spec.baseModel is {ref.base_model.value}, but the repo is {pipeline.title}",
        )
    pipeline.without(ref.replaced)
    if ref.only_for_sd:
        raise LoaderError(
            Reason.INVALID_SPEC,
            f"{', '.join(ref.only_for_sd)}: for pipelines of Stable Diffusion 1, 2 and XL only, but"
            f" the repo is {pipeline.title}; remove it from the spec",
        )


def inspector(ref: SourceRef, checks: Checks) -> Callable[[bytes, int], None]:
    """Return a function that refuses a file that cannot be loaded, before all of it is downloaded.

    The function takes the file's first bytes and its size.
    """
    shown = redact_url(ref.url)

    def inspect(head: bytes, size: int) -> None:
        with prefixing(shown):
            container = identify(head[:HEAD_BYTES], size)
        # A trained model's zip may contain a folder. Only the end of the file shows that.
        may_be_folder = container is Container.ZIP and ref.model_type is ModelType.API_TRAINED
        is_pickle = container is not Container.SAFETENSORS and not may_be_folder
        if checks.safetensors_only and is_pickle:
            raise LoaderError(
                Reason.UNSAFE_MODEL, f"{shown} is a pickle, and spec.fromSafetensors is true"
            )

    return inspect
