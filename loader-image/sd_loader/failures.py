"""Maps any exception to a LoaderError with a reason."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError

from sd_api.reasons import ExitCode, Reason
from sd_api.redaction import redact_text
from sd_api.wording import option, problem_words
from sd_loader.errors import LoaderError
from sd_loader.storage_errors import VOLUME_ONLY, storage_error


def explain(error: BaseException) -> LoaderError:
    """Map an error to a LoaderError. An unexpected error becomes LoaderCrashed.

    The message of an unexpected error may contain secrets, so only its type, its place in the code
    and the text of its errno are reported.
    """
    match error:
        case LoaderError():
            return error
        case OSError(errno=code) if code in VOLUME_ONLY:
            return storage_error(error)
        case MemoryError():
            return LoaderError(Reason.OUT_OF_MEMORY, "the loader ran out of memory")
        case _:
            kind = f"{type(error).__name__}{_system_error(error)}"
            return LoaderError(Reason.LOADER_CRASHED, f"{kind}{_place(error)}")


def invalid_request(error: ValidationError) -> LoaderError:
    """Return the error for an invalid request. Its message names the fields, not their values."""
    problems = _problems(error, lambda path: path or "request")
    return LoaderError(Reason.INVALID_SPEC, f"the request is not valid: {problems}")


def invalid_options(error: ValidationError) -> LoaderError:
    """Return the error for options whose values are not valid. Its message names the options."""
    return LoaderError(Reason.INVALID_SPEC, _problems(error, option))


def _problems(error: ValidationError, name: Callable[[str], str]) -> str:
    """Join the problems, without values. name: returns how messages name the path of a field."""
    return "; ".join(
        f"{name('.'.join(map(str, problem['loc'])))}: {problem_words(problem)}"
        for problem in error.errors(include_url=False, include_input=False)
    )


def is_permanent(error: BaseException) -> bool:
    """Whether another Pod with the same request would fail for the same reason."""
    return explain(error).reason.exit_code is ExitCode.PERMANENT


def _system_error(error: BaseException) -> str:
    if isinstance(error, OSError) and error.errno is not None:
        return f": {os.strerror(error.errno)}"
    return ""


def _place(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return f" in {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""


def trace(error: BaseException) -> str:
    """Return the error's traceback, with recognizable secrets, such as those in urls, redacted."""
    return redact_text("".join(traceback.format_exception(error)))
