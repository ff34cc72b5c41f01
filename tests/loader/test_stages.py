"""The stages fetch, convert, load and remove, with a fake download and conversion."""

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
    """Fake parts that replace the real download and conversion."""
    return Parts.installed(monkeypatch)


@pytest.mark.usefixtures("parts")
def test_load_reports_what_it_published(tmp_path: Path) -> None:
    """Fetch reports the source, and convert reports the artifact."""
    assert fetched(tmp_path) == LoadResult(
        outcome="fetched", source=Source(size_bytes=15, format="ckpt")
    )
    result = converted(tmp_path)
    assert result.outcome == "loaded"
    assert result.message == "one; two"
    assert result.artifact is not None
    assert result.artifact.files == len(FILES)
    assert result.artifact.size_bytes == sum(map(len, FILES.values()))
    assert result.artifact.base_model == "sd-1"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".index", ".store", MODEL_ID]


def test_rerun_returns_the_result_from_the_receipt(parts: Parts, tmp_path: Path) -> None:
    """A Job whose result was lost runs again in another Pod without a download."""
    first = loaded(tmp_path)
    before = tree(tmp_path)
    parts.fetch_error = parts.convert_error = AssertionError("worked again")
    assert fetched(tmp_path, pod="pod-2").source == first.source
    assert converted(tmp_path, pod="pod-2") == first
    assert tree(tmp_path) == before


def test_next_pod_converts_a_finished_download(parts: Parts, tmp_path: Path) -> None:
    """A crash in convert does not repeat the download."""
    fetched(tmp_path)
    parts.convert_error = RuntimeError("crash")
    with pytest.raises(RuntimeError):
        converted(tmp_path)
    assert not (tmp_path / ".staging/uid-1/pod/out").exists()
    parts.convert_error = None
    loaded(tmp_path, pod="pod-2")
    assert parts.downloads == 1


def test_unreadable_download_record_is_written_again(parts: Parts, tmp_path: Path) -> None:
    """Another version of the loader may have written the record."""
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
def test_partial_download_is_kept_only_after_a_retryable_failure(
    parts: Parts, tmp_path: Path, error: Exception, kept: bool
) -> None:
    """A load that fails permanently leaves nothing on the volume."""
    parts.fetch_error = error
    with pytest.raises(type(error)):
        fetched(tmp_path)
    assert (tmp_path / ".staging/uid-1/pod/source/file").exists() == kept
    if not kept:
        assert tree(tmp_path) == {}


def test_failed_conversion_leaves_nothing(parts: Parts, tmp_path: Path) -> None:
    """The volume holds no link, version or staging folder."""
    fetched(tmp_path)
    parts.convert_error = LoaderError(Reason.CONVERSION_FAILED, "no")
    with refused(Reason.CONVERSION_FAILED, "no"):
        converted(tmp_path)
    assert tree(tmp_path) == {}


def test_two_loads_that_do_not_fit_together_do_not_block_each_other(
    parts: Parts, tmpfs: Callable[[str], Path]
) -> None:
    """The load that finds the volume full removes its download, so that the other can finish."""
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


def test_late_pod_of_the_previous_spec_does_not_publish(parts: Parts, tmp_path: Path) -> None:
    """The previous version stays published until the new one is ready."""
    loaded(tmp_path)
    fetched(tmp_path, request(load_hash=NEW_HASH), pod="new-pod")
    with refused(Reason.LOADER_CRASHED, "a newer load of m has begun"):
        converted(tmp_path)
    assert FILES.items() <= tree(tmp_path / MODEL_ID).items()
    converted(tmp_path, request(load_hash=NEW_HASH), pod="new-pod")
    assert parts.downloads == 2


@pytest.mark.usefixtures("parts")
def test_late_pod_of_a_retained_model_does_not_change_it(tmp_path: Path) -> None:
    """The retained files stay published."""
    loaded(tmp_path)
    removed(tmp_path, retain=True)
    with refused(Reason.LOADER_CRASHED, "was removed"):
        converted(tmp_path)
    assert FILES.items() <= tree(tmp_path / MODEL_ID).items()


def test_failed_reload_keeps_the_published_version(parts: Parts, tmp_path: Path) -> None:
    """The published version does not change."""
    loaded(tmp_path)
    before = tree(tmp_path / MODEL_ID)
    parts.fetch_error = LoaderError(Reason.SOURCE_NOT_FOUND, "404")
    with refused(Reason.SOURCE_NOT_FOUND, "404"):
        fetched(tmp_path, request(load_hash=NEW_HASH))
    assert tree(tmp_path / MODEL_ID) == before


def test_returning_to_the_previous_spec_downloads_nothing(parts: Parts, tmp_path: Path) -> None:
    """The loader publishes the previous version again if it is still on the volume."""
    loaded(tmp_path)
    loaded(tmp_path, request(load_hash=NEW_HASH))
    loaded(tmp_path, request(load_hash=HASH))
    assert parts.downloads == 2
    assert (tmp_path / MODEL_ID).readlink() == Path(f".store/uid-1/{HASH}")


def test_conflict_is_found_before_the_download(parts: Parts, tmp_path: Path) -> None:
    """A model id that another model owns causes no download and no change."""
    loaded(tmp_path)
    before = tree(tmp_path)
    with refused(Reason.MODEL_ID_CONFLICT, "belongs to ns/m"):
        fetched(tmp_path, request(STRANGER))
    assert parts.downloads == 1
    assert tree(tmp_path) == before


def test_retained_model_is_adopted_without_a_download(parts: Parts, tmp_path: Path) -> None:
    """A new model of the same name adopts the files and reports the first result."""
    first = loaded(tmp_path)
    removed(tmp_path, retain=True)
    assert loaded(tmp_path, request(NAMESAKE)) == first
    assert parts.downloads == 1
    assert [path.name for path in (tmp_path / ".store").iterdir()] == [NAMESAKE.uid]


def test_unlisted_output_file_fails_the_load(
    parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every published file must have a digest in the receipt."""

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
def test_failed_cleanup_does_not_fail_a_published_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The next load removes old files that are still busy."""

    def busy(*_: object) -> None:
        raise OSError(16, "Device or resource busy")

    monkeypatch.setattr("sd_loader.stages.tidy", busy)
    assert loaded(tmp_path).outcome == "loaded"
    assert "Device or resource busy" in caplog.text


@pytest.mark.usefixtures("parts")
def test_load_fetches_and_converts_in_one_process(tmp_path: Path) -> None:
    """The fake download and conversion report no progress, so only Publishing is reported."""
    seen: list[Progress] = []
    assert load(request(), tmp_path, Settings(), seen.append).outcome == "loaded"
    assert [progress.stage for progress in seen] == [Stage.PUBLISHING]
