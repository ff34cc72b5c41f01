"""The loader's stages: fetch, convert, remove, and load (fetch and convert in one process).

Each stage can be run again at any time. It continues from what it finds on the volume.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pydantic import ValidationError

from sd_api.card import Card
from sd_api.choices import ModelType, contradiction
from sd_api.load import LoadRequest, RemoveRequest
from sd_api.names import ADDED_FILES, CARD_FILE, PICTURE_FILE, PREVIEW_FILE
from sd_api.reasons import Reason
from sd_api.taxonomy import published_format
from sd_api.wire import (
    MESSAGE_MAX_LENGTH,
    Artifact,
    LoadResult,
    Progress,
    PublishedFile,
    Receipt,
    Source,
    Stage,
)
from sd_loader.convert.conversion import (
    Conversion,
    refuse_impossible,
    refuse_render_without_torch,
)
from sd_loader.digests import blake3_of, folder_digest
from sd_loader.errors import LoaderError
from sd_loader.failures import is_permanent
from sd_loader.handover import Converted, Fetched
from sd_loader.picture import MAX_BYTES as PICTURE_MAX_BYTES
from sd_loader.picture import PictureError
from sd_loader.picture import published as published_picture
from sd_loader.progress import Report
from sd_loader.request import conversion_of
from sd_loader.settings import Settings
from sd_loader.store import index, removal
from sd_loader.store.adopt import adopt
from sd_loader.store.folder import Folder
from sd_loader.store.ownership import give_up, take_ownership
from sd_loader.store.publish import link, publish, tidy
from sd_loader.store.receipt import find_published
from sd_loader.store.staging import Staging, begin, resume
from sd_loader.store.volume import Volume

log = logging.getLogger(__name__)


def fetch_stage(
    request: LoadRequest,
    store: Path,
    settings: Settings,
    report: Report,
    *,
    allow_local: bool = False,
) -> LoadResult:
    """Download the source, unless the volume has a published or a retained version of this load.

    A retained version is published. A link's file may be converted while it is downloaded.
    """
    # Imported here: a removal does not need HTTP and file formats and starts faster without them.
    from sd_loader.acquire import acquire
    from sd_loader.net.client import HttpClient
    from sd_loader.store.at_hand import FilesAtHand

    if request.model_type is None:
        # The options that the found type rules out are refused once it is known.
        refuse_render_without_torch(conversion_of(request))
    else:
        refuse_impossible(conversion_of(request))
    with _leaving_nothing(request, store) as volume:
        published = find_published(volume, request.owner.uid, request.load_hash)
        if published is None:
            volume.probe(request.owner.uid)
        record = take_ownership(volume, request.owner, request.model_id, request.load_hash)
        if published is not None:
            _refuse_other_type(request, published)
            return _fetched(published.source)
        with (
            begin(volume, request.owner.uid, settings.pod, request.load_hash) as begun,
            _freeing(begun, keep_out=True) as staging,
        ):
            adopted = adopt(volume, record, request.load_hash, staging, report)
            if adopted is not None:
                _refuse_other_type(request, adopted)
                _publish(volume, request, staging, adopted, settings, report)
                return _fetched(adopted.source)
            fetched = _recorded(request, staging)
            if fetched is None:
                with staging.source() as into, staging.out() as out:
                    fetched = acquire(
                        request,
                        HttpClient(settings, has_token=request.credentials),
                        into.path,
                        report,
                        out=out.path,
                        at_hand=FilesAtHand(volume).link,
                        allow_local=allow_local,
                    )
                staging.confirm()
                staging.set_fetched(fetched.model_dump_json(by_alias=True))
            return _fetched(fetched.source)


def convert_stage(
    request: LoadRequest, store: Path, settings: Settings, report: Report
) -> LoadResult:
    """Convert and publish the source that this Pod fetched, unless it is already published."""
    # Imported here for the same reason as in fetch_stage.
    from sd_loader.convert import run

    with _leaving_nothing(request, store) as volume:
        receipt = find_published(volume, request.owner.uid, request.load_hash)
        if receipt is not None:
            link(volume, request.owner, request.model_id, request.load_hash)
            with _published_anyway():
                _tidy(volume, request, settings)
            index.refresh(volume, request.owner.uid, request.owner.namespace)
            return receipt.result()
        with (
            resume(volume, request.owner.uid, settings.pod, request.load_hash) as resumed,
            _freeing(resumed, keep_out=_is_converted(request, resumed)) as staging,
        ):
            fetched = _recorded(request, staging)
            if fetched is None:
                raise LoaderError(
                    Reason.LOADER_CRASHED, "the download is not finished; run fetch again"
                )
            conversion = conversion_of(request, fetched.model_type)
            is_converted = fetched.converted is not None
            with (
                staging.source() as source_dir,
                staging.out() if is_converted else staging.fresh_out() as out,
            ):
                converted = fetched.converted or run.convert(
                    fetched, source_dir.path, conversion, out.path, report
                )
                for name in ADDED_FILES:  # A failed attempt may have left them behind.
                    out.unlink(name)
                _check_inventory(out.files(), converted)
                converted, preview = _rendered(conversion, out, converted, report)
                converted, picture = _pictured(fetched, source_dir, out, converted)
                card = Card(word=converted.word).over(fetched.card)
                added = {**preview, **picture, **_written(card, out)}
            receipt = _receipt(request, conversion.model_type, fetched, converted, card, added)
            return _publish(volume, request, staging, receipt, settings, report)


def load(request: LoadRequest, store: Path, settings: Settings, report: Report) -> LoadResult:
    """Fetch and convert for a person at the command line, who may load local files."""
    fetch_stage(request, store, settings, report, allow_local=True)
    return convert_stage(request, store, settings, report)


def remove_stage(request: RemoveRequest, store: Path) -> LoadResult:
    """Remove a deleted model's files, or keep them for a later model of the same name."""
    with Volume.open(store) as volume:
        if request.retain:
            removal.release(volume, request.owner)
        else:
            removal.remove_model(volume, request.owner, request.model_id)
        index.refresh(volume, request.owner.uid, request.owner.namespace)
    return LoadResult(outcome="removed")


@contextmanager
def _leaving_nothing(request: LoadRequest, store: Path) -> Iterator[Volume]:
    """Open the volume. If the load fails permanently, remove the folders that the load created."""
    with Volume.open(store) as volume:
        try:
            yield volume
        except Exception as error:
            if is_permanent(error):
                with suppress(OSError, LoaderError):
                    give_up(volume, request.owner.uid, request.load_hash)
            raise


@contextmanager
def _freeing(staging: Staging, *, keep_out: bool) -> Iterator[Staging]:
    """On failure, free the space that the next attempt cannot use.

    After a permanent failure, remove the whole staging folder. A full volume is a permanent
    failure: two loads that each keep their download could otherwise block each other for ever.
    After any other failure, remove only the converted files, because the next attempt writes them
    again. keep_out: keep the converted files after such a failure, because they were written during
    the download.
    """
    try:
        yield staging
    except Exception as error:
        staging.confirm()
        with suppress(OSError):
            if is_permanent(error):
                staging.discard()
            elif not keep_out:
                staging.drop_out()
        raise


def _publish(
    volume: Volume,
    request: LoadRequest,
    staging: Staging,
    receipt: Receipt,
    settings: Settings,
    report: Report,
) -> LoadResult:
    report(Progress(stage=Stage.PUBLISHING))
    staging.confirm()
    published = publish(volume, request.owner, request.model_id, staging, receipt)
    with _published_anyway():
        staging.discard()
        _tidy(volume, request, settings)
    index.refresh(volume, request.owner.uid, request.owner.namespace)
    return published.result()


@contextmanager
def _published_anyway() -> Iterator[None]:
    """Log a failed clean-up instead of failing the load. The next load cleans up."""
    try:
        yield
    except (OSError, LoaderError) as error:
        log.warning("the next load will try again to remove old files: %s", error)


def _tidy(volume: Volume, request: LoadRequest, settings: Settings) -> None:
    retain = timedelta(seconds=settings.retain_previous_seconds)
    tidy(volume, request.owner, request.load_hash, retain, datetime.now(UTC))


def _refuse_other_type(request: LoadRequest, published: Receipt) -> None:
    """Refuse a published version whose type is not the requested one."""
    words = contradiction(request.model_type, published.artifact.model_type)
    if words is not None:
        raise LoaderError(Reason.INVALID_SPEC, words)


def _recorded(request: LoadRequest, staging: Staging) -> Fetched | None:
    """Return the record of the finished download. None if there is no usable record.

    A record is not usable if another version of the loader wrote it in another form, if the source
    has another type than the request, or if the converted files are not complete.
    """
    try:
        fetched = Fetched.model_validate_json(staging.fetched() or "", extra="forbid")
    except ValidationError:
        return None
    # The conversion checks the type of a file that is not converted yet.
    is_file = fetched.kind == "file" and fetched.converted is None
    if not is_file and contradiction(request.model_type, fetched.model_type) is not None:
        return None
    if fetched.converted is not None:
        expected = {path: file.size for path, file in fetched.converted.files.items()}
        with staging.out() as out:
            present = {path: out.file_size(path) for path in out.files() if path not in ADDED_FILES}
        if present != expected:
            return None
    return fetched


def _is_converted(request: LoadRequest, staging: Staging) -> bool:
    recorded = _recorded(request, staging)
    return recorded is not None and recorded.converted is not None


def _fetched(source: Source) -> LoadResult:
    return LoadResult(outcome="fetched", source=source)


def _rendered(
    conversion: Conversion, out: Folder, converted: Converted, report: Report
) -> tuple[Converted, dict[str, PublishedFile]]:
    """Render an image if the request asks for one, and add it to the folder as the preview."""
    if not conversion.verify.render:
        return converted, {}
    # Imported here: it imports torch, which needs much memory.
    from sd_loader.render import render

    rendered = render(out.path, converted, conversion, report)
    if rendered.warning is not None:
        converted = replace(converted, warnings=(*converted.warnings, rendered.warning))
    if rendered.preview is None:
        return converted, {}
    # A model that draws an image has the shapes that its architecture needs.
    converted = replace(converted, checked=None)
    return converted, _added(out, PREVIEW_FILE, rendered.preview)


def _pictured(
    fetched: Fetched, source_dir: Folder, out: Folder, converted: Converted
) -> tuple[Converted, dict[str, PublishedFile]]:
    """Add the picture from the source to the folder. A failure is a warning."""
    if fetched.picture is None:
        return converted, {}
    try:
        content = published_picture(source_dir.read(fetched.picture, PICTURE_MAX_BYTES))
    except (PictureError, OSError, ValueError) as error:
        warning = f"the source's picture is not kept: {error}"
        return replace(converted, warnings=(*converted.warnings, warning)), {}
    return converted, _added(out, PICTURE_FILE, content)


def _added(out: Folder, name: str, content: bytes) -> dict[str, PublishedFile]:
    """Write a file that is not part of the converted model. Return its entry for the receipt."""
    out.write(name, content)
    return {name: PublishedFile(blake3=blake3_of(content), size=len(content))}


def _written(card: Card, out: Folder) -> dict[str, PublishedFile]:
    """Write the card into the folder, unless it is empty. Return its entry for the receipt."""
    if card.or_none() is None:
        return {}
    return _added(out, CARD_FILE, f"{card.encode(indent=2)}\n".encode())


def _receipt(
    request: LoadRequest,
    model_type: ModelType,
    fetched: Fetched,
    converted: Converted,
    card: Card,
    added: Mapping[str, PublishedFile],
) -> Receipt:
    # The added files do not count in the digest: the same weights have the same digest.
    files = converted.files
    sha256 = {arrived.blake3: arrived.sha256 for arrived in fetched.files.values()}
    return Receipt(
        uid=request.owner.uid,
        load_hash=request.load_hash,
        source=fetched.source,
        artifact=Artifact(
            digest=folder_digest({path: file.blake3 for path, file in files.items()}),
            size_bytes=sum(file.size for file in files.values()),
            files=len(files),
            model_type=model_type.value,
            base_model=converted.base_model,
            variant=converted.variant,
            format=published_format(model_type, request.lora.format).value,
            pipeline_class=converted.pipeline_class,
            precision=converted.precision,
            prediction_type=converted.prediction_type,
            lora_rank=converted.lora_rank,
            checked=converted.checked,
            card=card.short(),
        ),
        message="; ".join((*fetched.warnings, *converted.warnings, *_unchecked(converted)))[
            :MESSAGE_MAX_LENGTH
        ],
        files={
            **{
                path: PublishedFile(
                    blake3=file.blake3, sha256=sha256.get(file.blake3), size=file.size
                )
                for path, file in files.items()
            },
            **added,
        },
    )


def _unchecked(converted: Converted) -> tuple[str, ...]:
    """Return the warning about a folder that was not compared with its architecture."""
    if converted.checked is None:
        return ()
    return (f"checked: {converted.checked} (shapes were not compared with the architecture)",)


def _check_inventory(present: list[str], converted: Converted) -> None:
    """Fail if the files in the folder are not exactly the files that the conversion reported."""
    unexpected = set(present) ^ set(converted.files)
    if unexpected:
        raise RuntimeError(f"the conversion did not account for {sorted(unexpected)}")
