"""Unpacks a trained model that was downloaded as a zip of a diffusers folder.

The zip's directory, all names and all sizes are checked before anything is written. Only the files
that would be downloaded from a Hub repo are unpacked. A file that is larger than its stated size is
refused.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from sd_api.reasons import Reason
from sd_loader.bulk import PIECE_BYTES, write_at
from sd_loader.diffusers_repo.component_files import RepoFile, check_size, holds
from sd_loader.diffusers_repo.index import INDEX_NAME
from sd_loader.diffusers_repo.listed import read_pipeline
from sd_loader.diffusers_repo.listed_files import choose_pipeline_files
from sd_loader.digests import Blake3
from sd_loader.errors import LoaderError, prefixing
from sd_loader.formats.fileio import read_at
from sd_loader.formats.sniff import ZIP_MAGIC
from sd_loader.formats.zipdir import DEFLATED, Member, Record, locate_members, read_directory
from sd_loader.handover import Arrived, Fetched
from sd_loader.net.partial import ensure_space
from sd_loader.snippet import snippet
from sd_loader.source.ref import Checks, SourceRef, refuse_unsuitable

FOLDER_NAME = "repo"
_TORCH_PICKLE = "data.pkl"
_MAC_FOLDER = "__MACOSX/"
_MAX_FILES = 1000
_MAX_RATIO = 200
"""Largest ratio of unpacked to packed bytes. JSON reaches 20, and runs of one byte reach 1000."""
_SMALL = 1 << 20
"""Files that unpack to at most this size may have any ratio."""
_CHUNK = 1 << 20


def unpack_pipeline(
    fetched: Fetched, ref: SourceRef, checks: Checks, max_bytes: int, into: Path
) -> Fetched:
    """Unpack a download that is a zip of a diffusers folder.

    Return a checkpoint, or a download that is not a zip, unchanged. Refuse any other zip.
    """
    path = into / fetched.path
    if fetched.kind != "file" or not _is_zip(path):
        return fetched
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        archive = _Archive.read(fd)
        if archive is None:
            return fetched
        folder = into / FOLDER_NAME
        with _whole_or_not_at_all(folder):
            files = archive.unpack(archive.chosen(ref, checks, max_bytes), folder)
    finally:
        os.close(fd)
    path.unlink()
    return fetched.model_copy(
        update={
            "kind": "repo",
            "path": FOLDER_NAME,
            "files": files,
            "source": fetched.source.model_copy(update={"format": "diffusers"}),
        }
    )


@dataclass(frozen=True)
class _Archive:
    """An archive's files and the positions of their bytes, by path in the pipeline's folder."""

    fd: int
    members: Mapping[str, Member]
    records: Mapping[str, Record]

    @classmethod
    def read(cls, fd: int) -> _Archive | None:
        """Read and check the directory. None if the zip is a checkpoint of torch."""
        directory = read_directory(fd, os.fstat(fd).st_size, folders=True)
        members = [
            member for member in directory.members if not member.name.startswith(_MAC_FOLDER)
        ]
        names = [member.name for member in members if not member.name.endswith("/")]
        root = _root(names)
        if root is None:
            if any(name.rpartition("/")[2] == _TORCH_PICKLE for name in names):
                return None
            raise LoaderError(
                Reason.UNSUPPORTED_FORMAT,
                "the zip archive is neither a checkpoint nor a diffusers folder with a"
                f" {INDEX_NAME}; {holds(names)}",
            )
        if len(names) > _MAX_FILES:
            _refuse(f"it has {len(names)} files; at most {_MAX_FILES} are read")
        for member in directory.members:
            _check(member)
        records = locate_members(fd, directory, packed=True)
        files = {member.name: member for member in members if not member.name.endswith("/")}
        return cls(
            fd,
            {name.removeprefix(root): member for name, member in files.items()},
            {name.removeprefix(root): records[name] for name in files},
        )

    def chosen(self, ref: SourceRef, checks: Checks, max_bytes: int) -> list[RepoFile]:
        """Choose the files to unpack, as from a Hub repo. Refuse files that would be too large."""
        files = {name: RepoFile(name, member.size) for name, member in self.members.items()}
        index = files[INDEX_NAME]
        check_size(index)
        with prefixing("the zip archive"):
            pipeline = read_pipeline(b"".join(self._content(INDEX_NAME)))
            refuse_unsuitable(pipeline, ref)
            chosen = choose_pipeline_files(
                files,
                pipeline,
                ref.precision,
                safetensors_only=checks.safetensors_only,
            )
        for file in chosen:
            check_size(file)
        total = sum(file.size for file in chosen)
        if total > max_bytes:
            raise LoaderError(
                Reason.TOO_LARGE,
                f"the zip archive unpacks to {total} bytes; the limit is {max_bytes}",
            )
        return chosen

    def unpack(self, files: list[RepoFile], folder: Path) -> dict[str, Arrived]:
        """Write the files into a new folder. Return them by path."""
        folder.mkdir()
        ensure_space(folder, sum(file.size for file in files))
        found = {}
        for file in files:
            path = folder / file.path
            path.parent.mkdir(parents=True, exist_ok=True)
            position, digest = 0, Blake3()
            with path.open("xb", buffering=0) as out:
                for piece in self._content(file.path):
                    write_at(out.fileno(), piece, position)
                    digest.update(piece)
                    position += len(piece)
            found[f"{FOLDER_NAME}/{file.path}"] = Arrived(
                digest.hexdigest(), position, path.stat().st_mtime_ns
            )
        return found

    def _content(self, name: str) -> Iterator[bytes]:
        """Yield a file's bytes. Raise LoaderError if its size or checksum is not as stated."""
        member, record = self.members[name], self.records[name]
        checksum, size = 0, 0
        for piece in _unpacked(self.fd, member, record):
            size += len(piece)
            if size > member.size:
                _refuse(f"{snippet(name)} unpacks to more than the stated {member.size} bytes")
            checksum = zlib.crc32(piece, checksum)
            yield piece
        if (size, checksum) != (member.size, member.crc):
            raise LoaderError(
                Reason.DAMAGED_FILE,
                f"the zip archive is damaged: {snippet(name)} does not have the stated size and"
                " checksum",
            )


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(ZIP_MAGIC)) == ZIP_MAGIC


def _root(names: list[str]) -> str | None:
    """Return the folder of the pipeline in the archive. None if there is no pipeline.

    The result is empty, or one folder with a slash at its end that contains all files.
    """
    if INDEX_NAME in names:
        return ""
    root = names[0].partition("/")[0] + "/" if names else ""
    whole = root + INDEX_NAME in names and all(name.startswith(root) for name in names)
    return root if whole else None


def _check(member: Member) -> None:
    """Refuse a member that is not a regular file or folder, or that could be a zip bomb."""
    kind = stat.S_IFMT(member.mode)
    expected = stat.S_IFDIR if member.name.endswith("/") else stat.S_IFREG
    if kind not in (0, expected) or (expected == stat.S_IFDIR and member.size):
        _refuse(f"{snippet(member.name)} in it is a link, a device or another special file")
    if member.size > _SMALL and member.size > _MAX_RATIO * member.stored_size:
        _refuse(
            f"{snippet(member.name)} in it would unpack from {member.stored_size} to"
            f" {member.size} bytes, as in a zip bomb"
        )


def _unpacked(fd: int, member: Member, record: Record) -> Iterator[bytes]:
    """Yield the member's unpacked bytes in pieces of limited size."""
    if member.method != DEFLATED:
        yield from _pieces(fd, record)
        return
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    whole = False
    with contextlib.suppress(zlib.error):
        for packed in _pieces(fd, record):
            piece = inflate.decompress(packed, _CHUNK)
            while piece:
                yield piece
                piece = inflate.decompress(inflate.unconsumed_tail, _CHUNK)
        whole = inflate.eof and not inflate.unused_data
    if not whole:
        raise LoaderError(
            Reason.DAMAGED_FILE,
            f"the zip archive is damaged: {snippet(member.name)} cannot be unpacked",
        )


def _pieces(fd: int, record: Record) -> Iterator[bytes]:
    for start in range(0, record.size, PIECE_BYTES):
        yield read_at(fd, record.offset + start, min(PIECE_BYTES, record.size - start))


@contextlib.contextmanager
def _whole_or_not_at_all(folder: Path) -> Iterator[None]:
    """Remove the folder before the body of the `with` statement, and again if the body fails."""
    shutil.rmtree(folder, ignore_errors=True)
    try:
        yield
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _refuse(problem: str) -> NoReturn:
    raise LoaderError(Reason.UNSAFE_MODEL, f"the zip archive is refused: {problem}")
