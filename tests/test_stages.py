"""Fetch, convert, load and remove, step by step, killed at any step."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from volumes import FILES, HASH, MODEL_ID, NAMESAKE, NEW_HASH, OWNER, STRANGER, refused, tree

from sd_api.load import LoadRequest, LoadResult, Owner, Progress, RemoveRequest, Source, Stage
from sd_api.reasons import Reason
from sd_loader import convert, source
from sd_loader.convert.result import Converted, FileDigest
from sd_loader.errors import LoaderError
from sd_loader.settings import Settings
from sd_loader.source import Fetched
from sd_loader.stages import convert_stage, fetch_stage, load, remove_stage

Action = Callable[[Path, str], None]


class Parts:
    """A source and a conversion of made-up files, which can be told to fail."""

    def __init__(self) -> None:
        self.downloads = 0
        self.fetch_error: Exception | None = None
        self.convert_error: Exception | None = None

    def fetch(
        self, _request: LoadRequest, _settings: Settings, into: Path, _report: object, **_: object
    ) -> Fetched:
        """Download one file, in two parts."""
        file = into / "file"
        if not file.exists():
            self.downloads += 1
            file.write_bytes(b"part")
        if self.fetch_error is not None:
            raise self.fetch_error
        file.write_bytes(b"partial no more")
        return Fetched(kind="file", path="file", source=Source(size_bytes=15, format="ckpt"))

    def convert(
        self, fetched: Fetched, source_dir: Path, _request: LoadRequest, out: Path, _report: object
    ) -> Converted:
        """Write the made-up files."""
        assert (source_dir / fetched.path).read_bytes() == b"partial no more"
        digests = {}
        for path, content in FILES.items():
            file = out / path
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(content)
            digests[path] = FileDigest(hashlib.sha256(content).hexdigest(), len(content))
            if self.convert_error is not None:
                raise self.convert_error
        return Converted(files=digests, base_model="sd1", warnings=("one", "two"))


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> Iterator[Parts]:
    """The stages work with made-up parts."""
    made_up = Parts()
    monkeypatch.setattr(source, "fetch", made_up.fetch)
    monkeypatch.setattr(convert, "convert", made_up.convert, raising=False)
    return made_up


def request(owner: Owner = OWNER, load_hash: str = HASH) -> LoadRequest:
    """A load of the made-up source."""
    return LoadRequest(
        owner=owner,
        model_id=MODEL_ID,
        model_type="custom_ckpt",
        url="https://example.com/m.ckpt",
        load_hash=load_hash,
    )


def fetched(root: Path, asked: LoadRequest | None = None, pod: str = "pod") -> LoadResult:
    """The fetch container's run."""
    return fetch_stage(asked or request(), root, Settings(pod=pod), lambda _: None)


def converted(root: Path, asked: LoadRequest | None = None, pod: str = "pod") -> LoadResult:
    """The convert container's run."""
    return convert_stage(asked or request(), root, Settings(pod=pod), lambda _: None)


def loaded(root: Path, asked: LoadRequest | None = None, pod: str = "pod") -> LoadResult:
    """A Pod's run."""
    fetched(root, asked, pod)
    return converted(root, asked, pod)


def removed(root: Path, owner: Owner = OWNER, *, retain: bool = False) -> LoadResult:
    """The clean-up Job's run."""
    return remove_stage(RemoveRequest(owner=owner, model_id=MODEL_ID, retain=retain), root)


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

    monkeypatch.setattr(convert, "convert", careless)
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


# --- killed at any step

KILLABLE = ("mkdir", "open", "rename", "symlink", "link", "unlink", "rmdir", "fsync", "fchmod")


def run_until_killed(action: Action, root: Path, calls: int) -> bool:
    """Run in a child that dies by SIGKILL before its n-th system call; whether it did."""
    child = os.fork()
    if child == 0:
        left = calls

        def counted(original: Callable[..., object]) -> Callable[..., object]:
            def call(*args: object, **kwargs: object) -> object:
                nonlocal left
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                left -= 1
                return original(*args, **kwargs)

            return call

        try:
            for name in KILLABLE:
                setattr(os, name, counted(getattr(os, name)))
            action(root, "pod-1")
        except BaseException:  # noqa: BLE001 - the child must never return into pytest
            os._exit(1)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        return True
    assert os.waitstatus_to_exitcode(status) == 0
    return False


def end_state(root: Path) -> dict[str, str | bytes]:
    """Everything on the volume but the time of day."""
    return {
        path: re.sub(rb"\d{4}-\d\d-\d\dT[\d:.]+Z", b"TIME", content)
        if isinstance(content, bytes)
        else content
        for path, content in tree(root).items()
    }


def first(root: Path, pod: str) -> None:
    """A load onto an empty volume."""
    loaded(root, request(), pod)


def reload(root: Path, pod: str) -> None:
    """A load of the changed spec."""
    loaded(root, request(load_hash=NEW_HASH), pod)


def adoption(root: Path, pod: str) -> None:
    """The same load for a namesake."""
    loaded(root, request(NAMESAKE), pod)


def takeover(root: Path, pod: str) -> None:
    """Another load for a namesake."""
    loaded(root, request(NAMESAKE, NEW_HASH), pod)


def removal(root: Path, _: str) -> None:
    """The clean-up."""
    removed(root)


def release(root: Path, _: str) -> None:
    """The clean-up that keeps what is published."""
    removed(root, retain=True)


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize(
    ("before", "act", "serves"),
    [
        ([], first, False),
        ([first], reload, True),
        ([first, release], adoption, True),
        ([first], takeover, True),
        ([first, reload], removal, False),
        ([first], release, True),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_run_killed_at_any_step_is_made_good_by_the_next(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    before: list[Action],
    act: Action,
    serves: bool,
) -> None:
    """After SIGKILL and another Pod's run the volume is as after an undisturbed run.

    In between no version is there in part, and what was served before is served.
    """
    # A killed process loses nothing that a disk would have to keep; waiting for it is slow.
    monkeypatch.setattr(os, "fsync", lambda _: None)
    prepared = tmp_path / "prepared"
    prepared.mkdir()
    for action in before:
        action(prepared, "pod-0")
    undisturbed = tmp_path / "undisturbed"
    shutil.copytree(prepared, undisturbed, symlinks=True)
    act(undisturbed, "pod-1")
    expected = end_state(undisturbed)

    steps, killed = 0, True
    while killed:
        root = tmp_path / str(steps)
        shutil.copytree(prepared, root, symlinks=True)
        killed = run_until_killed(act, root, steps)
        for version in root.glob(".store/[!.]*/????????????????"):
            assert FILES.items() <= tree(version).items(), steps
        if serves:
            assert FILES.items() <= tree(root / MODEL_ID).items(), steps
        act(root, "pod-2")
        assert end_state(root) == expected, steps
        shutil.rmtree(root)
        steps += 1
    assert steps > 5
