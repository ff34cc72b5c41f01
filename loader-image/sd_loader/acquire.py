"""The order of a fetch: locate the source, stream or download it, then fetch missing components.

`source` knows where bytes come from. `convert` knows what a file needs. Only this module and
`supplies`, which fetches what a source lacks, use both.
"""

from __future__ import annotations

from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from sd_api.choices import ModelType
from sd_api.load import LoadRequest
from sd_api.reasons import Reason
from sd_api.redaction import hide
from sd_api.sites.civitai_card import card_of_civitai
from sd_api.sites.clean import without
from sd_api.sources import Link
from sd_api.spec import TWO_VAES
from sd_api.wire import Sha256Missing
from sd_loader.convert.detect.kinds import found_type
from sd_loader.convert.plan.companions import Companions
from sd_loader.convert.plan.file import plan_download
from sd_loader.convert.plan.open_files import OpenFiles
from sd_loader.errors import LoaderError, SourceChangedError
from sd_loader.handover import AtHand, Fetched, nothing_at_hand
from sd_loader.net.client import HttpClient
from sd_loader.progress import Report
from sd_loader.request import conversion_of
from sd_loader.source import fetch
from sd_loader.source.civitai import explaining, look_up
from sd_loader.source.locate import locate, naming_both_readings
from sd_loader.source.ref import Checks, SourceRef
from sd_loader.source.single import FILE_NAME
from sd_loader.supplies import FROM, Supplies

if TYPE_CHECKING:
    from sd_loader.source.link import OpenLink
    from sd_loader.streaming import IncomingFile

_ATTEMPTS = 3
"""How often streaming is tried if the file changes while it is read."""


def acquire(
    request: LoadRequest,
    client: HttpClient,
    into: Path,
    report: Report,
    *,
    out: Path | None = None,
    at_hand: AtHand = nothing_at_hand,
    allow_local: bool = False,
) -> Fetched:
    """Download everything that a load needs into a folder. Resume an earlier download there.

    out: folder for the result if the source can be converted while it is downloaded. at_hand: finds
    files that need not be downloaded. allow_local: a url without a scheme may be a path on this
    machine. Only the command line sets it, so that a request of the operator cannot read files of
    the node.
    """
    if request.vae is not None and request.components.vae is not None:
        raise LoaderError(Reason.INVALID_SPEC, TWO_VAES)
    conversion = conversion_of(request)
    ref = SourceRef(
        url=request.url,
        field="spec.url",
        model_type=request.model_type,
        git_revision=request.git_revision,
        precision=request.revision,
        replaced=frozenset(request.replacements()),
        only_for_files=() if request.components.from_ is None else (FROM,),
        base_model=request.base_model,
        only_for_sd=_only_for_sd(request),
        needs_token=True,
    )
    checks = Checks(request.sha256, safetensors_only=conversion.safetensors_only)
    place = locate(ref, client.settings, allow_local=allow_local)
    found = look_up(place, ref, checks, client, into)
    supplies = Supplies(request, conversion, client, into, report, at_hand)
    # These may be refused, so they come before the large download.
    if request.original_config is not None:
        supplies.fetch_original_config(request.original_config, allow_local=allow_local)
    supplies.check_skeleton()
    found = replace(found, place=supplies.check_repo(found.place, ref))
    for name, source in request.replacements().items():
        supplies.fetch_replacement(name, source, allow_local=allow_local)
    with naming_both_readings(ref, place, allow_local=allow_local), explaining(found):
        if isinstance(found.place, Link) and out is not None and _may_stream(ref):
            # Imported here, as in all functions that call a server: a local file needs no HTTP,
            # which takes 0.1 s to import.
            from sd_loader.source.link import open_link

            with open_link(replace(ref, url=found.place.url), found.checks, client) as link:
                fetched = _stream(link, supplies, out) or link.download(into, report)
        else:
            fetched = fetch(
                found.place, ref, found.checks, client, into, report, at_hand, supplies.peek
            )
    fetched = found.noted(fetched)
    if fetched.model_type is not None:
        supplies.settle(fetched.model_type)
    elif fetched.kind == "file" and fetched.converted is None:
        supplies.complete(into / fetched.path)
    card = fetched.card.over(supplies.card)
    if found.facts is not None:
        card = card_of_civitai(found.facts, client.settings.civitai_endpoint).over(card)
        supplies.fetch_picture(found.facts)
    # A file that changed meanwhile was read again, which may have added the same warnings again.
    warnings = dict.fromkeys((*fetched.warnings, *supplies.warnings))
    # A server may quote a token that it received, and the returned record is stored on the volume.
    secrets = client.secrets(request.model_dump())
    file = fetched.source.file
    return fetched.model_copy(
        update={
            "card": without(card, secrets),
            "picture": supplies.picture,
            "model_type": supplies.shown_type,
            "original_config": supplies.original_config,
            "source": fetched.source.model_copy(
                update={
                    "components_from": supplies.components_from,
                    "file": None if file is None or hide(file, secrets) != file else file,
                }
            ),
            "extras": tuple(supplies.extras),
            "skeleton": supplies.skeleton_path,
            "files": {**supplies.files, **fetched.files},
            "warnings": tuple(hide(warning, secrets) for warning in warnings),
        }
    )


def _only_for_sd(request: LoadRequest) -> tuple[str, ...]:
    """Return the set fields of the spec that apply to pipelines of Stable Diffusion only."""
    fields = {
        "spec.predictionType": request.prediction_type,
        "spec.upcastAttention": request.upcast_attention,
    }
    return tuple(name for name, value in fields.items() if value is not None)


def _may_stream(ref: SourceRef) -> bool:
    """Whether a link's file may be converted while it is downloaded."""
    # A trained model may be a zip, which is unpacked as a whole.
    return ref.model_type is not ModelType.API_TRAINED


def _stream(link: OpenLink, supplies: Supplies, out: Path) -> Fetched | None:
    """Convert the link's file while it is downloaded. None if it must be downloaded first."""
    from sd_loader.streaming import forget  # imported here, as in acquire

    if link.is_begun(supplies.into):
        return None  # An earlier attempt began a plain download, which is resumed.
    fetched = None
    for _ in range(_ATTEMPTS):
        with suppress(SourceChangedError):
            fetched = _stream_version(link, supplies, out)
            break
    if fetched is None:
        forget(supplies.into, out)
    return fetched


def _stream_version(link: OpenLink, supplies: Supplies, out: Path) -> Fetched | None:
    """Convert the version that the server has now. None if the file must be downloaded first."""
    from sd_loader.streaming import open_incoming  # imported here, as in acquire

    remote = link.open_ranges()
    if remote is None:
        return None
    with open_incoming(remote, supplies.into, link.checks) as incoming:
        if incoming is None:
            return None
        supplies.settle(found_type(incoming.file.tensors))
        if supplies.fetch_needed(incoming.file).whole_file:
            return None
        return _convert(incoming, supplies, out)


def _convert(incoming: IncomingFile, supplies: Supplies, out: Path) -> Fetched:
    conversion = supplies.conversion
    with ExitStack() as stack:
        opened = OpenFiles(stack, safetensors_only=conversion.safetensors_only)
        companions = Companions(supplies.into, supplies.original_config, supplies.extras)
        plan = plan_download(incoming.file, conversion, companions, opened)
        converted, source = incoming.convert(
            plan, opened.files.values(), conversion.verify, out, supplies.report
        )
    warnings: tuple[str, ...] = ()
    if incoming.checks.is_stated and source.sha256_missing == Sha256Missing.RANGES_ONLY:
        warnings = ("sha256 not compared: ranges only",)
    return Fetched(
        kind="file",
        path=FILE_NAME,
        source=source,
        model_type=supplies.shown_type,
        converted=converted,
        warnings=warnings,
    )
