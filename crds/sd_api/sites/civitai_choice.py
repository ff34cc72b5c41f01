"""Chooses which file of a version on Civitai is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sd_api.reasons import Reason
from sd_api.sites.civitai_answers import VersionAnswer
from sd_api.sites.civitai_facts import CivitaiFile
from sd_api.sources import FileChoice

_WEIGHTS = frozenset({"model", "pruned model", "diffusion model", "unet"})
"""Roles of files that are the model itself. A file with another role, such as VAE, is the model
only if it is the primary file of its version."""
_OTHER_ROLES = frozenset({"training data", "archive", "config", "workflow"})
"""Roles of files that are not weights."""
_UNREADABLE = frozenset({"gguf", "diffuser", "coreml", "onnx"})
"""Formats that the loader does not read, as `_folded` writes them."""
_SPELLINGS = {"ckpt": "pickletensor", "pt": "pickletensor", "bin": "pickletensor"}
"""How resource identifiers spell formats, and how the API spells them."""
_SHOWN_FILES = 5


class NoFileError(Exception):
    """A version has no file that can be loaded; the message names the version and its files."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class Chosen:
    """The file to load."""

    file: CivitaiFile

    others: int
    """How many more files of the version could be loaded."""


def choose(
    version: VersionAnswer, choice: FileChoice, sha256: str | None, pinned: int | None = None
) -> Chosen:
    """Choose a file. Raise NoFileError if none fits.

    sha256: the digest of the wanted file. None if it is not known. pinned: the id of the file that
    an earlier attempt chose.
    """
    wanted = _wanted(version, choice)
    readable = [file for file in wanted if _folded(file.format) not in _UNREADABLE]
    if not readable:
        raise NoFileError(
            Reason.UNSUPPORTED_FORMAT,
            f"{version.facts.label} has no file that the loader reads, only {_listed(wanted)}",
        )
    same = [file for file in readable if sha256 is not None and file.sha256 == sha256]
    best = max(
        same or readable,
        key=lambda file: (file.id == pinned, _is_safetensors(file), file.is_primary),
    )
    return Chosen(best, len(readable) - 1)


def describe(file: CivitaiFile) -> str:
    """Return a file's name and its type, format, size and precision, for messages."""
    words = [_plain(word, 16) for word in (file.format, file.size, file.fp) if word is not None]
    if file.type.lower() != "model":
        words.insert(0, _plain(file.type, 16))
    name = _plain(file.name, 60)
    return f"{name} ({', '.join(words)})" if words else name


def _plain(text: str, limit: int) -> str:
    """Return a creator's text without characters that make a link or markup."""
    kept = "".join(char if char.isalnum() or char in " ._()+-" else "_" for char in text)
    return kept if len(kept) <= limit else kept[:limit] + "…"


def _wanted(version: VersionAnswer, choice: FileChoice) -> list[CivitaiFile]:
    """Return the files that the url may mean. Raise NoFileError if there is none."""
    if choice != FileChoice():
        fitting = [file for file in version.files if _fits(file, choice)]
        if not fitting:
            raise NoFileError(
                Reason.INVALID_SPEC,
                f"{version.facts.label} has no file with {_criteria(choice)}; it has"
                f" {_listed(version.files) or 'no file that can be downloaded'}",
            )
        return fitting
    models = [
        file
        for file in version.files
        if file.type.lower() in _WEIGHTS
        or (file.is_primary and file.type.lower() not in _OTHER_ROLES)
    ]
    if not models:
        raise NoFileError(
            Reason.UNSUPPORTED_FORMAT,
            f"{version.facts.label} has no model file, only {_listed(version.files)}",
        )
    return models


def _fits(file: CivitaiFile, choice: FileChoice) -> bool:
    if choice.file_id is not None and file.id != choice.file_id:
        return False
    pairs = (
        (choice.type, file.type),
        (choice.format, file.format),
        (choice.size, file.size),
        (choice.fp, file.fp),
    )
    return all(asked is None or _folded(asked) == _folded(value) for asked, value in pairs)


def _folded(word: str | None) -> str:
    """Return a word in the API's spelling: lower case, only letters and digits, no plural."""
    letters = "".join(char for char in (word or "").lower() if char.isalnum())
    return _SPELLINGS.get(letters, letters.removesuffix("s"))


def _is_safetensors(file: CivitaiFile) -> bool:
    if file.format is None:
        return file.name.lower().endswith(".safetensors")
    return _folded(file.format) == "safetensor"


def _criteria(choice: FileChoice) -> str:
    asked = {
        "fileId": choice.file_id,
        "type": choice.type,
        "format": choice.format,
        "size": choice.size,
        "fp": choice.fp,
    }
    given = (
        f"{name}={_plain(str(value), 30)}" for name, value in asked.items() if value is not None
    )
    return " and ".join(given)


def _listed(files: Sequence[CivitaiFile]) -> str:
    shown = ", ".join(describe(file) for file in files[:_SHOWN_FILES])
    more = len(files) - _SHOWN_FILES
    return f"{shown} and {more} more" if more > 0 else shown
