"""A zip of a diffusers folder is checked completely before the loader unpacks it."""

from __future__ import annotations

import io
import json
import os
import shutil
import stat
import tracemalloc
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from devkit.fakefiles import FileServer
from sd_api.reasons import Reason
from sd_api.wire import Source
from sd_loader.errors import LoaderError
from sd_loader.handover import Fetched
from sd_loader.settings import Settings
from sd_loader.source.archive import unpack_pipeline
from sd_loader.source.ref import Checks, SourceRef
from tests.support.formats.zipfiles import Part, deflated, zip_bytes
from tests.support.loader.arrivals import arrived_in
from tests.support.loader.fetches import fetch
from tests.support.models.conversions import load_request
from tests.support.models.modelindex import INDEX

ENCODED = json.dumps(INDEX).encode()
WEIGHTS = os.urandom(3 << 20)
UNET = "unet/diffusion_pytorch_model.safetensors"
NEEDED = {
    "model_index.json": ENCODED,
    "scheduler/scheduler_config.json": b"{}",
    "text_encoder/config.json": b"{}",
    "text_encoder/model.safetensors": b"t" * 3000,
    "tokenizer/added_tokens.json": b"{}",
    "tokenizer/merges.txt": b"#version: 0.2\n",
    "tokenizer/vocab.json": b"{}",
    "unet/config.json": b"{}",
    UNET: WEIGHTS,
    "vae/config.json": b"{}",
    "vae/diffusion_pytorch_model.safetensors": b"",
}
UNNEEDED = {
    "handler.py": b"import os",
    "unet/model.py": b"import os",
    "README.md": b"words",
    "unet/diffusion_pytorch_model.bin": b"pickle",
}


def parts(**changed: bytes | Part | None) -> list[Part]:
    """The members of a valid archive. Arguments replace a member, or leave it out if None."""
    members: dict[str, bytes | Part | None] = {**NEEDED, **UNNEEDED, **changed}
    return [
        value if isinstance(value, Part) else deflated(name, value)
        for name, value in members.items()
        if value is not None
    ]


def unpack(folder: Path, content: bytes, limits: Settings | None = None, **fields) -> Fetched:
    """Unpack a download of these bytes."""
    (folder / "download").write_bytes(content)
    source = Source(sha256="0" * 64, size_bytes=len(content), format="ckpt")
    fetched = Fetched(kind="file", path="download", source=source)
    request = load_request(model_type="api_trained", **fields)
    ref = SourceRef(request.url, "spec.url", request.model_type, precision=request.revision)
    checks = Checks(safetensors_only=bool(request.from_safetensors))
    return unpack_pipeline(fetched, ref, checks, (limits or Settings()).max_bytes, folder)


def unpacked(folder: Path) -> dict[str, bytes]:
    """Return all files of the unpacked repo. The folder must hold nothing else."""
    assert [path.name for path in folder.iterdir()] == ["repo"]
    return {
        path.relative_to(folder / "repo").as_posix(): path.read_bytes()
        for path in sorted((folder / "repo").rglob("*"))
        if path.is_file()
    }


def under(root: str, members: list[Part]) -> list[Part]:
    """Move the members into a folder."""
    return [replace(part, name=root + part.name) for part in members]


@pytest.mark.parametrize(
    "members",
    [
        pytest.param(parts(), id="deflated"),
        pytest.param(
            [Part(name, content) for name, content in {**NEEDED, **UNNEEDED}.items()], id="stored"
        ),
        pytest.param(under("my-model/", parts()), id="in one folder"),
        pytest.param(
            [Part("m/"), Part("m/unet/", mode=stat.S_IFDIR | 0o755), *under("m/", parts())],
            id="with folders",
        ),
        pytest.param(
            [*under("m/", parts()), Part("__MACOSX/m/._unet", b"x"), Part("__MACOSX/")],
            id="made on a Mac",
        ),
        pytest.param(
            [replace(part, mode=stat.S_IFREG | 0o777) for part in parts()], id="with modes"
        ),
    ],
)
@pytest.mark.parametrize("zip64", [False, True], ids=["zip", "zip64"])
def test_only_needed_members_are_unpacked(tmp_path, members, zip64):
    """Code and a second set of weights are left out, and the zip is deleted."""
    content = zip_bytes(members, zip64=zip64)
    fetched = unpack(tmp_path, content)
    assert unpacked(tmp_path) == NEEDED
    assert (fetched.kind, fetched.path) == ("repo", "repo")
    assert fetched.files == {
        name: replace(file, sha256=None)
        for name, file in arrived_in(tmp_path / "repo", tmp_path).items()
    }
    assert fetched.source == Source(sha256="0" * 64, size_bytes=len(content), format="diffusers")


class Stream:
    """A stream that cannot seek, like a connection."""

    def __init__(self) -> None:
        self.content = bytearray()

    def write(self, data: bytes) -> int:
        """Append the bytes."""
        self.content += data
        return len(data)

    def flush(self) -> None:
        """Do nothing."""


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED])
def test_streamed_archive_is_unpacked(tmp_path, method):
    """In such archives, sizes and checksums follow the data."""
    stream = Stream()
    with zipfile.ZipFile(stream, "w", method) as archive:  # type: ignore[call-overload]
        for name, content in NEEDED.items():
            archive.writestr(name, content)
    unpack(tmp_path, bytes(stream.content))
    assert unpacked(tmp_path) == NEEDED


def test_archive_made_by_shutil_is_unpacked(tmp_path):
    """Such an archive has an entry for each folder."""
    for name, content in NEEDED.items():
        path = tmp_path / "origin" / "model" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    made = shutil.make_archive(str(tmp_path / "made"), "zip", tmp_path / "origin")
    (tmp_path / "into").mkdir()
    unpack(tmp_path / "into", Path(made).read_bytes())
    assert unpacked(tmp_path / "into") == NEEDED


def test_checkpoint_is_not_unpacked(tmp_path):
    """A .ckpt file that torch writes is a zip, too."""
    buffer = io.BytesIO()
    torch.save({"a": torch.ones(3)}, buffer)
    fetched = unpack(tmp_path, buffer.getvalue())
    assert (fetched.kind, fetched.path, fetched.source.format) == ("file", "download", "ckpt")
    assert (tmp_path / "download").read_bytes() == buffer.getvalue()


def test_files_of_an_earlier_attempt_are_removed(tmp_path):
    """The earlier attempt was killed while it unpacked."""
    (tmp_path / "repo" / "unet").mkdir(parents=True)
    (tmp_path / "repo" / "unet" / "stale").write_text("x")
    unpack(tmp_path, zip_bytes(parts()))
    assert unpacked(tmp_path) == NEEDED


def test_fetch_without_a_record_runs_again(tmp_path):
    """A Pod that dies after unpacking leaves the folder and the note, but not the zip.

    The next fetch downloads the zip again and gives the same result.
    """
    with FileServer() as server:
        url = server.serve_file("/trained", zip_bytes(parts()))
        allowed = Settings(allowed_hosts=frozenset({server.host}))
        request = load_request(model_type="api_trained", url=url)
        first, second = (
            fetch(request, allowed, tmp_path, lambda _progress: None) for _ in range(2)
        )
    assert first == second.model_copy(
        update={
            "files": {
                name: replace(file, mtime_ns=first.files[name].mtime_ns)
                for name, file in second.files.items()
            }
        }
    )
    (tmp_path / "download.note").unlink()
    assert unpacked(tmp_path) == NEEDED


BOMB = bytes(64 << 20)
PACKED = deflated(UNET, WEIGHTS)
LINK = stat.S_IFLNK | 0o777
UNSAFE, DAMAGED, UNKNOWN = Reason.UNSAFE_MODEL, Reason.DAMAGED_FILE, Reason.UNSUPPORTED_FORMAT


@pytest.mark.parametrize(
    ("members", "reason", "words"),
    [
        *(
            pytest.param([*parts(), Part(name, b"x")], DAMAGED, "not a plain path", id=name)
            for name in (
                "../x", "..", "./x", "/etc/x", "C:\\x", "unet/..", "unet/../../x", "unet\\x",
                "a//b", "x\0y", "x\ny",
            )
        ),
        pytest.param([*parts(), Part("UNET/config.json")], DAMAGED, "one name", id="case"),
        pytest.param([*parts(), Part("unet/config.json")], DAMAGED, "one name", id="twice"),
        *(
            pytest.param(
                [*parts(), Part("unet/link", b"/etc/passwd", mode=mode)], UNSAFE, "a link", id=what
            )
            for what, mode in (
                ("a symbolic link", LINK),
                ("a device", stat.S_IFCHR | 0o666),
                ("a pipe", stat.S_IFIFO | 0o666),
                ("a socket", stat.S_IFSOCK | 0o666),
                ("a file that is a folder", stat.S_IFDIR | 0o755),
            )
        ),
        pytest.param(
            [*parts(), Part("unet/x/", b"x")], UNSAFE, "special file", id="a folder with content"
        ),
        pytest.param([*parts(), Part("x/", mode=LINK)], UNSAFE, "a link", id="folder that links"),
        pytest.param(
            parts(**{UNET: deflated(UNET, BOMB)}), UNSAFE, "zip bomb", id="zip bomb"
        ),
        pytest.param(
            parts(**{UNET: deflated(UNET, BOMB, size=1 << 20)}), UNSAFE, "more than the stated",
            id="more than is stated",
        ),
        pytest.param(
            parts(**{UNET: deflated(UNET, WEIGHTS, size=len(WEIGHTS) + 1)}), DAMAGED,
            "does not have the stated size", id="less than is stated",
        ),
        pytest.param(
            parts(**{UNET: deflated(UNET, WEIGHTS, crc=7)}), DAMAGED, "checksum", id="checksum"
        ),
        pytest.param(
            parts(**{UNET: Part(UNET, b"\xff" * 99, method=8, size=99)}), DAMAGED,
            "cannot be unpacked", id="invalid deflate data",
        ),
        pytest.param(
            parts(**{UNET: replace(deflated(UNET, WEIGHTS), data=zlib.compress(WEIGHTS)[2:-4])}),
            None, "", id="another packer's deflate",
        ),
        pytest.param(
            parts(
                **{UNET: replace(deflated(UNET, b"ab"), data=deflated(UNET, b"ab").data + b"xx")}
            ), DAMAGED, "cannot be unpacked", id="bytes after the packed ones",
        ),
        pytest.param(
            parts(**{UNET: replace(PACKED, data=PACKED.data[:-99])}), DAMAGED,
            "cannot be unpacked", id="cut off",
        ),
        pytest.param(
            parts(**{UNET: Part(UNET, b"x", flags=1)}), UNKNOWN, "encrypted", id="encrypted"
        ),
        pytest.param(
            parts(**{UNET: Part(UNET, b"x", method=12, size=1)}), UNKNOWN, "only deflate",
            id="bzip2",
        ),
        pytest.param(
            parts(**{UNET: deflated(UNET, WEIGHTS, header_at=0)}), DAMAGED, "overlap", id="overlap"
        ),
        pytest.param(
            parts(**{UNET: deflated(UNET, WEIGHTS, gap=b"hidden")}), DAMAGED, "hidden", id="hidden"
        ),
        pytest.param(
            parts(**{UNET: deflated(UNET, WEIGHTS, local_name="unet/x")}), DAMAGED, "another name",
            id="two names",
        ),
        pytest.param(
            [*parts(), *(Part(f"f/{n}") for n in range(1000))], UNSAFE, "1015 files",
            id="too many files",
        ),
        pytest.param(
            [*under("m/", parts()), Part("n/x", b"x")], UNKNOWN, "neither a checkpoint",
            id="two folders",
        ),
        pytest.param([Part("model.safetensors", b"x")], UNKNOWN, "model.saf", id="no folder"),
        pytest.param(parts(**{"unet/config.json": None}), UNKNOWN, "lacks unet", id="incomplete"),
        pytest.param(
            parts(
                **{"model_index.json": ENCODED.replace(b'"diffusers", "UNet2D', b'"evil", "UNet2D')}
            ), UNSAFE, "code of the repo", id="remote code",
        ),
        pytest.param(
            parts(**{"model_index.json": ENCODED.replace(b"StableDiffusionPipeline", b"Evil")}),
            UNKNOWN, "Evil", id="unknown pipeline",
        ),
        pytest.param(
            parts(**{"unet/config.json": os.urandom(9 << 20)}), Reason.TOO_LARGE, "config.json",
            id="a config of 9 MB",
        ),
    ],
)  # fmt: skip
def test_suspicious_archive_is_refused(tmp_path, members, reason, words):
    """Each archive has one flaw, and nothing is unpacked. If `reason` is None, it has no flaw."""
    if reason is None:
        unpack(tmp_path, zip_bytes(members))
        assert unpacked(tmp_path) == NEEDED
        return
    with pytest.raises(LoaderError, match=words) as caught:
        unpack(tmp_path, zip_bytes(members))
    assert caught.value.reason is reason
    assert [path.name for path in tmp_path.iterdir()] == ["download"]


def test_zip_bomb_uses_little_memory(tmp_path):
    """Unpacking stops at the stated size."""
    content = zip_bytes(parts(**{UNET: deflated(UNET, BOMB, size=1 << 20)}))
    tracemalloc.start()
    try:
        with pytest.raises(LoaderError):
            unpack(tmp_path, content)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


def test_size_limit_applies_to_the_unpacked_size(tmp_path):
    """A small zip may unpack to a large folder."""
    content = zip_bytes(parts(**{UNET: deflated(UNET, b"ab" * 500_000)}))
    with pytest.raises(LoaderError, match="limit is 100000") as caught:
        unpack(tmp_path, content, Settings(max_bytes=100_000))
    assert caught.value.reason is Reason.TOO_LARGE
    assert [path.name for path in tmp_path.iterdir()] == ["download"]


def test_archive_larger_than_the_free_space_is_refused_early(tmp_path, monkeypatch):
    """The loader checks the free space before it writes anything."""
    free = os.statvfs_result((1, 1, 9999, 1000, 1000, 0, 0, 0, 0, 255))
    monkeypatch.setattr("sd_loader.net.partial.os.statvfs", lambda _folder: free)
    with pytest.raises(LoaderError) as caught:
        unpack(tmp_path, zip_bytes(parts()))
    assert caught.value.reason is Reason.INSUFFICIENT_STORAGE
    assert [path.name for path in tmp_path.iterdir()] == ["download"]


def test_from_safetensors_refuses_a_folder_of_pickles(tmp_path):
    """The rule is the same as for a repo."""
    with pytest.raises(LoaderError, match="fromSafetensors") as caught:
        unpack(tmp_path, zip_bytes(parts(**{UNET: None})), from_safetensors=True)
    assert caught.value.reason is UNSAFE


SEED = zip_bytes(parts(**{UNET: deflated(UNET, b"u" * 500)}))


@given(st.data())
def test_damaged_archive_is_refused_or_unpacked_correctly(tmp_path_factory, data):
    """Changed bytes cause a LoaderError and no output, or the original files."""
    damaged = bytearray(SEED)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(damaged) - 1))
        damaged[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
    folder = tmp_path_factory.mktemp("damaged")
    try:
        fetched = unpack(folder, bytes(damaged))
    except LoaderError:
        assert [path.name for path in folder.iterdir()] == ["download"]
    else:
        if fetched.kind == "repo":
            expected = {**NEEDED, UNET: b"u" * 500}
            found = unpacked(folder)
            # A changed name may turn an optional file into an unknown one, which is left out.
            assert all(expected.get(name) == content for name, content in found.items())
