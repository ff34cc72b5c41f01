"""The steps of the loader's commands: fetch, convert, remove, and load, which fetches and converts.

Each may run again at any time, and continues from what it finds on the volume.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pydantic import ValidationError

from sd_api.load import LoadRequest, RemoveRequest
from sd_api.names import PREVIEW_FILE
from sd_api.reasons import Reason
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
from sd_loader.convert.conversion import refuse_impossible
from sd_loader.errors import LoaderError
from sd_loader.failures import is_permanent
from sd_loader.handover import Converted, Fetched
from sd_loader.progress import Report
from sd_loader.request import conversion_of
from sd_loader.settings import Settings
from sd_loader.store import removal
from sd_loader.store.adopt import adopt
from sd_loader.store.folder import Folder
from sd_loader.store.ownership import give_up, take_ownership
from sd_loader.store.publish import link, publish, tidy
from sd_loader.store.receipt import RECEIPT_FILE, find_published, folder_digest
from sd_loader.store.staging import Staging, claim, resume
from sd_loader.store.volume import Volume

log = logging.getLogger(__name__)

_ADDED = (PREVIEW_FILE, RECEIPT_FILE)
"""Files that are added to the converted ones. A failed attempt may have left them."""


def fetch_stage(
    request: LoadRequest,
    store: Path,
    settings: Settings,
    report: Report,
    *,
    allow_local: bool = False,
) -> LoadResult:
    """Download the source, unless this load is already on the volume."""
    # Imported here: a removal does without HTTP and formats, and starts faster.
    from sd_loader.acquire import acquire
    from sd_loader.net.client import HttpClient

    refuse_impossible(conversion_of(request))
    with _leaving_nothing(request, store) as volume:
        published = find_published(volume, request.owner.uid, request.load_hash)
        if published is None:
            volume.probe(request.owner.uid)
        record = take_ownership(volume, request.owner, request.model_id, request.load_hash)
        if published is not None:
            return _fetched(published.source)
        with (
            claim(volume, request.owner.uid, settings.pod, request.load_hash) as claimed,
            _freeing(claimed, keep_out=True) as staging,
        ):
            adopted = adopt(volume, record, request.load_hash, staging, report)
            if adopted is not None:
                _publish(volume, request, staging, adopted, settings, report)
                return _fetched(adopted.source)
            found = _recorded(staging)
            if found is None:
                with staging.source() as into, staging.out() as out:
                    found = acquire(
                        request,
                        HttpClient(settings, has_token=request.credentials),
                        into.path,
                        report,
                        out=out.path,
                        allow_local=allow_local,
                    )
                staging.confirm()
                staging.set_fetched(found.model_dump_json(by_alias=True))
            return _fetched(found.source)


def convert_stage(
    request: LoadRequest, store: Path, settings: Settings, report: Report
) -> LoadResult:
    """Convert and publish what this Pod fetched, unless this load is already published."""
    # Imported here, as in fetch_stage.
    from sd_loader.convert import run

    with _leaving_nothing(request, store) as volume:
        receipt = find_published(volume, request.owner.uid, request.load_hash)
        if receipt is not None:
            link(volume, request.owner, request.model_id, request.load_hash)
            with _published_anyway():
                _tidy(volume, request, settings)
            return receipt.result()
        with (
            resume(volume, request.owner.uid, settings.pod, request.load_hash) as resumed,
            _freeing(resumed, keep_out=_is_converted(resumed)) as staging,
        ):
            fetched = _recorded(staging)
            if fetched is None:
                raise LoaderError(
                    Reason.LOADER_CRASHED, "the download is not finished; run fetch again"
                )
            is_converted = fetched.converted is not None
            with (
                staging.source() as source_dir,
                staging.out() if is_converted else staging.fresh_out() as out,
            ):
                converted = fetched.converted or run.convert(
                    fetched, source_dir.path, conversion_of(request), out.path, report
                )
                for name in _ADDED:
                    out.unlink(name)
                _check_inventory(out.files(), converted)
                converted, preview = _rendered(request, out, converted, report)
            receipt = _receipt(request, fetched, converted, preview)
            return _publish(volume, request, staging, receipt, settings, report)


def load(request: LoadRequest, store: Path, settings: Settings, report: Report) -> LoadResult:
    """Fetch and convert in one process for a person, whose own files may be read."""
    fetch_stage(request, store, settings, report, allow_local=True)
    return convert_stage(request, store, settings, report)


def remove_stage(request: RemoveRequest, store: Path) -> LoadResult:
    """Remove a deleted model's files, or keep them for the next model of its name."""
    with Volume.open(store) as volume:
        if request.retain:
            removal.release(volume, request.owner)
        else:
            removal.remove_model(volume, request.owner, request.model_id)
    return LoadResult(outcome="removed")


@contextmanager
def _leaving_nothing(request: LoadRequest, store: Path) -> Iterator[Volume]:
    """Open the volume. A load that fails permanently leaves no folders of its own."""
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
    """On failure free the space that no later attempt can use.

    keep_out: whether the next attempt can use the converted files, as it can if they were converted
    during the download. A permanent failure frees everything. That includes a full volume: a
    finished download would spare the next attempt some time, but two loads that only fit one after
    the other would block each other for ever.
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
    return published.result()


@contextmanager
def _published_anyway() -> Iterator[None]:
    """Log a failure and leave its work to the next load."""
    try:
        yield
    except (OSError, LoaderError) as error:
        log.warning("the next load will try again to remove old files: %s", error)


def _tidy(volume: Volume, request: LoadRequest, settings: Settings) -> None:
    retain = timedelta(seconds=settings.retain_previous_seconds)
    tidy(volume, request.owner, request.load_hash, retain, datetime.now(UTC))


def _recorded(staging: Staging) -> Fetched | None:
    """The record of the finished download. None if files are missing.

    A record of another version of the loader is ignored.
    """
    try:
        found = Fetched.model_validate_json(staging.fetched() or "", extra="forbid")
    except ValidationError:
        return None
    if found.converted is not None:
        expected = {path: file.size for path, file in found.converted.files.items()}
        with staging.out() as out:
            present = {path: out.file_size(path) for path in out.files() if path not in _ADDED}
        if present != expected:
            return None
    return found


def _is_converted(staging: Staging) -> bool:
    recorded = _recorded(staging)
    return recorded is not None and recorded.converted is not None


def _fetched(source: Source) -> LoadResult:
    return LoadResult(outcome="fetched", source=source)


def _rendered(
    request: LoadRequest, out: Folder, converted: Converted, report: Report
) -> tuple[Converted, dict[str, PublishedFile]]:
    """Render an image with the folder if the request says so. Add it to the folder as a file."""
    if not request.verify.render:
        return converted, {}
    # Imported here: it imports torch, which needs gigabytes of memory.
    from sd_loader.render import render

    rendered = render(out.path, converted, conversion_of(request), report)
    if rendered.warning is not None:
        converted = replace(converted, warnings=(*converted.warnings, rendered.warning))
    if rendered.preview is None:
        return converted, {}
    out.write(PREVIEW_FILE, rendered.preview)
    digest = hashlib.sha256(rendered.preview).hexdigest()
    return converted, {PREVIEW_FILE: PublishedFile(sha256=digest, size=len(rendered.preview))}


def _receipt(
    request: LoadRequest,
    fetched: Fetched,
    converted: Converted,
    preview: Mapping[str, PublishedFile],
) -> Receipt:
    # Without the preview, so that the same weights have the same digest, rendered or not.
    files = converted.files
    return Receipt(
        uid=request.owner.uid,
        load_hash=request.load_hash,
        source=fetched.source,
        artifact=Artifact(
            digest=folder_digest({path: file.sha256 for path, file in files.items()}),
            size_bytes=sum(file.size for file in files.values()),
            files=len(files),
            base_model=converted.base_model,
            pipeline_class=converted.pipeline_class,
            precision=converted.precision,
            prediction_type=converted.prediction_type,
        ),
        message="; ".join((*fetched.warnings, *converted.warnings))[:MESSAGE_MAX_LENGTH],
        files={
            **{
                path: PublishedFile(sha256=one.sha256, size=one.size) for path, one in files.items()
            },
            **preview,
        },
    )


def _check_inventory(found: list[str], converted: Converted) -> None:
    """Refuse to publish files that the conversion does not list, or that are missing."""
    unexpected = set(found) ^ set(converted.files)
    if unexpected:
        raise RuntimeError(f"the conversion did not account for {sorted(unexpected)}")
