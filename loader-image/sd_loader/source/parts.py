"""Parts of a pipeline that come from elsewhere than its source: spec.vae, and configured defaults.

The credentials' token goes to the host it is for and to no other: a part that lies elsewhere is
asked for without it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from sd_api.load import LoadRequest
from sd_api.reasons import Reason
from sd_api.spec import BaseModelName, ModelType, VaeSource
from sd_loader.errors import LoaderError
from sd_loader.handover import ExtraComponent, Fetched
from sd_loader.net.credentials import read_credentials, token_for
from sd_loader.progress import Report
from sd_loader.settings import Settings
from sd_loader.source import fetch
from sd_loader.source.locate import Link, locate
from sd_loader.tensors import TensorFile

_VAE = "vae"
_DEFAULTS = "defaults"
_PIPELINES = (ModelType.API_TRAINED, ModelType.CUSTOM_CKPT, ModelType.HUGGINGFACE)


def fetch_vae(
    vae: VaeSource,
    request: LoadRequest,
    settings: Settings,
    into: Path,
    report: Report,
    *,
    allow_local: bool = False,
) -> ExtraComponent:
    """Download the VAE that replaces the source's own, or finish its download."""
    with _named("spec.vae", "spec.vae.url"):
        found = locate(vae.url, ModelType.VAE, settings, allow_local=allow_local)
        link = found.url if isinstance(found, Link) else None
        asked = _about(request, ModelType.VAE, vae.url, _may_have_token(link, request, settings))
        folder = into / _VAE
        folder.mkdir(exist_ok=True)
        return _part((_VAE,), _VAE, fetch(asked, settings, folder, report, allow_local=allow_local))


def fetch_defaults(
    file: TensorFile,
    here: Sequence[ExtraComponent],
    request: LoadRequest,
    settings: Settings,
    into: Path,
    report: Report,
) -> tuple[ExtraComponent, str] | None:
    """Download what a checkpoint lacks from the administrator's repo for its base model.

    here: the parts that are there. Returns the part, and what a person should know of it; None
    where nothing lacks, or there is no such repo: then the conversion says what is missing.
    """
    if not settings.default_parts or request.model_type not in _PIPELINES:
        return None
    present = {component for part in here for component in part.components}
    base, missing = _missing(file, request)
    lacking = [component for component in missing if component not in present]
    repo_id = settings.default_parts.get(base.value) if base else None
    if base is None or repo_id is None or not lacking:
        return None
    part = _fetch_defaults(base, repo_id, lacking, request, settings, into, report)
    said = f"the checkpoint has no {' and no '.join(lacking)}: taken from {repo_id[:100]}"
    return part, said


def _missing(file: TensorFile, request: LoadRequest) -> tuple[BaseModelName | None, Sequence[str]]:
    """The base model, and the components that the file does not hold."""
    from sd_loader.convert.detect.detect import detect
    from sd_loader.convert.plan.checkpoint import missing_parts

    try:
        base = detect(file.tensors, request.base_model)
        return base, missing_parts(file.tensors, request.base_model)
    except LoaderError:
        return None, ()  # the conversion says why, or takes another way


def _fetch_defaults(
    base: BaseModelName,
    repo_id: str,
    components: Sequence[str],
    request: LoadRequest,
    settings: Settings,
    into: Path,
    report: Report,
) -> ExtraComponent:
    from sd_loader.source.hub import fetch_components

    with _named(f"the default parts of {base.value}", "the loader's setting"):
        asked = _about(
            request, ModelType.HUGGINGFACE, repo_id, _may_have_token(None, request, settings)
        )
        folder = into / _DEFAULTS
        folder.mkdir(exist_ok=True)
        fetched = fetch_components(components, asked, settings, folder, report)
        return _part(components, _DEFAULTS, fetched)


def _about(request: LoadRequest, model_type: ModelType, url: str, credentials: bool) -> LoadRequest:
    """The request of a part: nothing that is said of the source itself holds for it."""
    return LoadRequest(
        owner=request.owner,
        model_id=request.model_id,
        model_type=model_type,
        url=url,
        load_hash=request.load_hash,
        revision=request.revision,
        from_safetensors=request.from_safetensors,
        credentials=credentials,
    )


def _part(components: Sequence[str], folder: str, fetched: Fetched) -> ExtraComponent:
    return ExtraComponent(
        components=tuple(components), kind=fetched.kind, path=f"{folder}/{fetched.path}"
    )


def _may_have_token(link: str | None, request: LoadRequest, settings: Settings) -> bool:
    """Whether the token is for the link's host, or for the Hub's where there is no link."""
    if not request.credentials:
        return False
    from sd_loader.source.hub_api import hub_token

    try:
        if link is None:
            hub_token(request, settings)
        else:
            token_for(link, read_credentials(settings.credentials_dir), settings)
    except LoaderError as error:
        if error.reason is Reason.CREDENTIALS_HOST_MISMATCH:
            return False
        raise
    return True


@contextlib.contextmanager
def _named(what: str, field: str) -> Iterator[None]:
    """Say of which source an error speaks: the model has more than one."""
    try:
        yield
    except LoaderError as error:
        message = error.message.removeprefix("spec.url: ").replace("spec.url", field)
        raise LoaderError(error.reason, f"{what}: {message}") from error
