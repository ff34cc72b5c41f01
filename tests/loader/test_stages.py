"""Fetch, convert, load and remove, step by step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sd_api.reasons import Reason
from sd_api.wire import LoadResult, Progress, Source, Stage
from sd_loader.convert import run
from sd_loader.errors import LoaderError
from sd_loader.handover import Converted
from sd_loader.settings import Settings
from sd_loader.stages import load
from tests.support.store.madeup import Parts, converted, fetched, loaded, removed, request
from tests.support.store.volumes import (
    FILES,
    HASH,
    MODEL_ID,
    NAMESAKE,
    NEW_HASH,
    STRANGER,
    refused,
    tree,
)


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> Parts:
    """The stages work with made-up parts."""
    return Parts.installed(monkeypatch)


@pytest.mark.usefixtures("parts")
def test_a_load_answers_with_what_it_published(tmp_path: Path) -> None:
    """Fetch tells the source, convert the artifact."""
    assert fetched(tmp_path) == LoadResult(
        outcome="fetched", source=Source(size_bytes=15, format="ckpt")
    )
    result = converted(tmp_path)
    assert result.outcome == "loaded"
    assert result.message == "one; two"
    assert result.artifact is not None
    assert result.artifact.files == len(FILES)
    assert result.artifact.size_bytes == sum(map(len, FILES.values()))
    assert result.artifact.base_model == "sd1"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".store", MODEL_ID]


def test_a_rerun_answers_from_the_receipt(parts: Parts, tmp_path: Path) -> None:
    """A Job whose answer was missed is run again without a download, in another Pod."""
    first = loaded(tmp_path)
    before = tree(tmp_path)
    parts.fetch_error = parts.convert_error = AssertionError("worked again")
    assert fetched(tmp_path, pod="pod-2").source == first.source
    assert converted(tmp_path, pod="pod-2") == first
    assert tree(tmp_path) == before


def test_a_finished_download_is_converted_by_the_next_pod(parts: Parts, tmp_path: Path) -> None:
    """A crash in convert costs no download."""
    fetched(tmp_path)
    parts.convert_error = RuntimeError("crash")
    with pytest.raises(RuntimeError):
        converted(tmp_path)
    assert not (tmp_path / ".staging/uid-1/pod/out").exists()
    parts.convert_error = None
    loaded(tmp_path, pod="pod-2")
    assert parts.downloads == 1


def test_an_unreadable_record_of_the_download_is_made_again(parts: Parts, tmp_path: Path) -> None:
    """Another version of the loader may have written it."""
    fetched(tmp_path)
    (tmp_path / ".staging/uid-1/pod/source.json").write_text('{"later": 1}')
    with refused(Reason.LOADER_CRASHED, "run fetch again"):
        converted(tmp_path)
    assert loaded(tmp_path).outcome == "loaded"
    assert parts.downloads == 1


@pytest.mark.parametrize(
    ("error", "kept"),
    [
        pytest.param(LoaderError(Reason.SOURCE_UNREACHABLE, "gone"), True, id="transient"),
        pytest.param(RuntimeError("crash"), True, id="crash"),
        pytest.param(LoaderError(Reason.DIGEST_MISMATCH, "other"), False, id="permanent"),
        pytest.param(OSError(28, "No space left on device"), False, id="disk full"),
    ],
)
def test_a_failed_download_is_kept_where_another_attempt_can_use_it(
    parts: Parts, tmp_path: Path, error: Exception, kept: bool
) -> None:
    """A load that failed for good leaves nothing on the volume."""
    parts.fetch_error = error
    with pytest.raises(type(error)):
        fetched(tmp_path)
    assert (tmp_path / ".staging/uid-1/pod/source/file").exists() == kept
    if not kept:
        assert tree(tmp_path) == {}


def test_a_failed_conversion_leaves_nothing(parts: Parts, tmp_path: Path) -> None:
    """Neither link nor version nor staging."""
    fetched(tmp_path)
    parts.convert_error = LoaderError(Reason.CONVERSION_FAILED, "no")
    with refused(Reason.CONVERSION_FAILED, "no"):
        converted(tmp_path)
    assert tree(tmp_path) == {}


def test_two_loads_that_do_not_fit_at_once_do_not_block_each_other(
    parts: Parts, tmpfs: Callable[[str], Path]
) -> None:
    """The one that finds the volume full gives its download back, so that the other can end."""
    root = tmpfs("size=15m")
    parts.content = bytes(6 << 20)
    parts.files = {"weights": bytes(4 << 20)}
    other = request(STRANGER).model_copy(update={"model_id": "other"})
    fetched(root)
    fetched(root, other)
    with pytest.raises(OSError, match="No space left"):
        converted(root)
    assert converted(root, other).outcome == "loaded"
    assert loaded(root).outcome == "loaded"


def test_a_late_pod_of_the_former_spec_leaves_its_version_served(
    parts: Parts, tmp_path: Path
) -> None:
    """While the new version is made, the old one is served, whatever old Pods still do."""
    loaded(tmp_path)
    fetched(tmp_path, request(load_hash=NEW_HASH), pod="new-pod")
    with refused(Reason.LOADER_CRASHED, "a newer load of m has begun"):
        converted(tmp_path)
    assert FILES.items() <= tree(tmp_path / MODEL_ID).items()
    converted(tmp_path, request(load_hash=NEW_HASH), pod="new-pod")
    assert parts.downloads == 2


@pytest.mark.usefixtures("parts")
def test_a_late_pod_of_a_retained_model_leaves_it_served(tmp_path: Path) -> None:
    """What was kept on purpose stays."""
    loaded(tmp_path)
    removed(tmp_path, retain=True)
    with refused(Reason.LOADER_CRASHED, "was removed"):
        converted(tmp_path)
    assert FILES.items() <= tree(tmp_path / MODEL_ID).items()


def test_a_failed_reload_leaves_the_published_version(parts: Parts, tmp_path: Path) -> None:
    """What is served stays served."""
    loaded(tmp_path)
    before = tree(tmp_path / MODEL_ID)
    parts.fetch_error = LoaderError(Reason.SOURCE_NOT_FOUND, "404")
    with refused(Reason.SOURCE_NOT_FOUND, "404"):
        fetched(tmp_path, request(load_hash=NEW_HASH))
    assert tree(tmp_path / MODEL_ID) == before


def test_going_back_to_the_previous_spec_downloads_nothing(parts: Parts, tmp_path: Path) -> None:
    """A version that is still kept is published again."""
    loaded(tmp_path)
    loaded(tmp_path, request(load_hash=NEW_HASH))
    loaded(tmp_path, request(load_hash=HASH))
    assert parts.downloads == 2
    assert (tmp_path / MODEL_ID).readlink() == Path(f".store/uid-1/{HASH}")


def test_a_conflict_is_found_before_the_download(parts: Parts, tmp_path: Path) -> None:
    """Another's model id costs no traffic and changes nothing."""
    loaded(tmp_path)
    before = tree(tmp_path)
    with refused(Reason.MODEL_ID_CONFLICT, "belongs to ns/m"):
        fetched(tmp_path, request(STRANGER))
    assert parts.downloads == 1
    assert tree(tmp_path) == before


def test_retain_and_recreate_downloads_nothing(parts: Parts, tmp_path: Path) -> None:
    """The namesake adopts what was kept, and answers like the first load."""
    first = loaded(tmp_path)
    removed(tmp_path, retain=True)
    assert loaded(tmp_path, request(NAMESAKE)) == first
    assert parts.downloads == 1
    assert [path.name for path in (tmp_path / ".store").iterdir()] == [NAMESAKE.uid]


def test_files_that_the_conversion_did_not_mention_are_not_published(
    parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every published file has a digest in the receipt."""

    def careless(*args: object) -> Converted:
        result = parts.convert(*args)  # type: ignore[arg-type]
        (args[3] / "forgotten").write_text("")  # type: ignore[operator]
        return result

    monkeypatch.setattr(run, "convert", careless)
    fetched(tmp_path)
    with pytest.raises(RuntimeError, match="forgotten"):
        converted(tmp_path)
    assert not (tmp_path / MODEL_ID).exists()


@pytest.mark.usefixtures("parts")
def test_a_failing_tidy_up_does_not_fail_a_published_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Old files that cannot be removed yet (a busy NFS file) are left to the next load."""

    def busy(*_: object) -> None:
        raise OSError(16, "Device or resource busy")

    monkeypatch.setattr("sd_loader.stages.tidy", busy)
    assert loaded(tmp_path).outcome == "loaded"
    assert "Device or resource busy" in caplog.text


@pytest.mark.usefixtures("parts")
def test_load_does_both_and_reports_the_stages(tmp_path: Path) -> None:
    """One process fetches, converts and publishes."""
    seen: list[Progress] = []
    assert load(request(), tmp_path, Settings(), seen.append).outcome == "loaded"
    assert [progress.stage for progress in seen] == [Stage.PUBLISHING]
