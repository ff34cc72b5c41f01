"""The loader's command line."""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import TypeVar

from pydantic import ValidationError

from sd_api.humanize import size
from sd_api.load import LoadRequest, RemoveRequest, Request
from sd_api.reasons import ExitCode, Reason
from sd_api.redaction import hide, secrets_of
from sd_api.spec import BaseModelName, ModelType, PredictionType, Revision, Spec, Weights
from sd_api.wire import MESSAGE_MAX_LENGTH, LoadResult
from sd_loader import manual, stages
from sd_loader.errors import LoaderError
from sd_loader.failures import explain, invalid_request, trace
from sd_loader.net.credentials import read_credentials
from sd_loader.progress import CLEAR_LINE, for_people, json_lines
from sd_loader.settings import Settings
from sd_loader.snippet import snippet

_UMASK = 0o022
_OLDER_THAN_HOURS = 24.0
"""Longer than a loader Job may run (6 h), so that older files belong to no running Pod, even on a
file system without locks."""

AnyRequest = TypeVar("AnyRequest", bound=Request)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command, and return the exit code."""
    args = _parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    os.umask(_UMASK)
    code = _run(args)
    _let_go_of_output()
    return code


def _run(args: argparse.Namespace) -> int:
    settings = Settings.for_answers()
    try:
        settings = Settings.from_env()
        _answer_when_stopped(settings)
        result = args.run(args, settings)
    except Exception as error:  # noqa: BLE001 - the edge: any failure becomes result and exit code
        return _fail(error, settings, _secrets(args, settings))
    if isinstance(result, LoadResult):
        _answer(result, settings)
    return result if isinstance(result, ExitCode) else ExitCode.DONE


def _fetch(args: argparse.Namespace, settings: Settings) -> LoadResult:
    request = _parse(LoadRequest, args.request)
    return stages.fetch_stage(request, args.store, settings, json_lines())


def _convert(args: argparse.Namespace, settings: Settings) -> LoadResult:
    request = _parse(LoadRequest, args.request)
    return stages.convert_stage(request, args.store, settings, json_lines())


def _remove(args: argparse.Namespace, _: Settings) -> LoadResult:
    return stages.remove_stage(_parse(RemoveRequest, args.request), args.store)


def _load(args: argparse.Namespace, settings: Settings) -> LoadResult:
    try:
        verify = {"weights": args.verify_weights, "render": args.verify_render}
        given = {name: value for name, value in vars(args).items() if name in Spec.model_fields}
        spec = Spec.model_validate({**given, "verify": verify})
    except ValidationError as error:
        raise invalid_request(error) from None
    credentials = (settings.credentials_dir / "token").exists()
    request = manual.request_of(spec, args.model_id, credentials=credentials)
    args.store.mkdir(parents=True, exist_ok=True)
    # Two loads by hand on one machine count as two Pods.
    settings = replace(settings, pod=f"{settings.pod}-{os.getpid()}")
    result = stages.load(request, args.store, settings, for_people())
    if result.message:
        _tell(f"warning: {result.message}")
    if result.artifact is not None:
        shared = result.artifact.shared_bytes
        saved = f", {size(shared)} of it shared with other models" if shared else ""
        _tell(f"loaded {result.artifact.files} files, {size(result.artifact.size_bytes)}{saved}")
    print(args.store / args.model_id)
    return result


def _inspect(args: argparse.Namespace, _: Settings) -> None:
    # Imported here: the other commands do without conversions, and start faster.
    from sd_loader.inspect import inspect

    found = inspect(args.file)
    print(found.to_json() if args.json else found.to_text())


def _sweep(args: argparse.Namespace, settings: Settings) -> ExitCode:
    # Imported here: only this command needs it.
    from sd_loader.sweep import sweep

    swept = sweep(
        args.store,
        delete=args.delete,
        digests=args.digests,
        older_than=timedelta(hours=args.older_than),
        retain=timedelta(seconds=settings.retain_previous_seconds),
    )
    text = swept.to_json() if args.json else swept.to_text()
    if text:
        print(text)
    return swept.exit_code


def _parse(kind: type[AnyRequest], text: str) -> AnyRequest:
    try:
        return kind.from_argument(text)
    except ValidationError as error:
        # Without its cause, which quotes the request.
        raise invalid_request(error) from None


def _answer(result: LoadResult, settings: Settings) -> None:
    """Write the result to the file that the operator reads."""
    if settings.termination_log is None:
        return
    try:
        settings.termination_log.write_text(result.encode(), encoding="utf-8")
    except OSError as error:
        _tell(f"warning: cannot write the termination message: {error.strerror}")


def _secrets(args: argparse.Namespace, settings: Settings) -> frozenset[str]:
    """Secrets that may have been sent to a server, which may quote them."""
    given, token = vars(args), None
    if "request" in given:
        with suppress(ValueError, RecursionError):
            given = {"request": json.loads(args.request)}
    with suppress(LoaderError):
        token = read_credentials(settings.credentials_dir).token
    return secrets_of(given, token)


def _fail(error: BaseException, settings: Settings, secrets: frozenset[str] = frozenset()) -> int:
    known = explain(error)
    if known.reason is Reason.LOADER_CRASHED and known is not error:
        _tell(hide(trace(error), secrets))
    message = snippet(hide(known.message, secrets), MESSAGE_MAX_LENGTH - 1)
    _answer(LoadResult(outcome="failed", reason=known.reason, message=message), settings)
    _tell(f"error: {known.reason.value}: {message}")
    _tell(f"  what to do: {known.reason.remedy}")
    return known.reason.exit_code


def _tell(line: str) -> None:
    start = CLEAR_LINE if sys.stderr.isatty() else ""
    with suppress(OSError):
        print(f"{start}{line}", file=sys.stderr, flush=True)


def _let_go_of_output() -> None:
    """Discard output to a closed pipe. Otherwise Python would change the exit code."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _answer_when_stopped(settings: Settings) -> None:
    """Exit at once on SIGTERM and SIGINT. The next attempt continues from what is on the volume."""

    def stop(signum: int, _: FrameType | None) -> None:
        message = f"stopped by {signal.Signals(signum).name}; the next attempt goes on here"
        try:
            _fail(LoaderError(Reason.LOADER_CRASHED, message), settings)
        finally:
            # Does not wait for threads that download.
            os._exit(Reason.LOADER_CRASHED.exit_code)

    for stopping in (signal.SIGTERM, signal.SIGINT):
        signal.signal(stopping, stop)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sd-loader",
        description="Downloads, converts, verifies and publishes Stable Diffusion models.",
    )
    parser.add_argument("--version", action="version", version=version("sd-operator"))
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, run, summary in (
        ("fetch", _fetch, "download a request's source onto the volume"),
        ("convert", _convert, "convert what was fetched, and publish it"),
        ("remove", _remove, "remove a deleted model's files"),
    ):
        command = commands.add_parser(name, help=summary, description=summary)
        command.add_argument("--request", required=True, metavar="JSON", help="the request")
        command.add_argument("--store", required=True, type=Path, metavar="DIR", help="the volume")
        command.set_defaults(run=run)
    _add_load(commands.add_parser("load", help="fetch and convert by hand"))
    inspect = commands.add_parser("inspect", help="say what a file is, or why it is refused")
    inspect.add_argument("file", type=Path, metavar="FILE")
    inspect.add_argument("--json", action="store_true", help="as JSON")
    inspect.set_defaults(run=_inspect)
    _add_sweep(commands.add_parser("sweep", help="list, or remove, what is nobody's any more"))
    return parser


def _add_load(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--url",
        help="Hugging Face repo (ORG/NAME), http(s) link, or local file; may be left out for the"
        " ControlNets that load by model id",
    )
    add("--model-id", required=True, help="the folder's name in the store")
    add("--store", required=True, type=Path, metavar="DIR", help="where models are published")
    add("--model-type", choices=[kind.value for kind in ModelType], help="default: from the url")
    add("--revision", choices=[word.value for word in Revision], help="precision to publish")
    add("--git-revision", help="branch, tag or commit of a Hub repo")
    add("--sha256", help="expected digest of a single file")
    add("--weights", choices=[word.value for word in Weights], default=Weights.STANDARD.value)
    add("--base-model", choices=[name.value for name in BaseModelName], help="default: detected")
    add(
        "--prediction-type",
        choices=[word.value for word in PredictionType],
        help="what the UNet predicts; default: detected",
    )
    add("--original-config", help="link or file of the checkpoint's original YAML config")
    add(
        "--vae",
        type=lambda url: {"url": url},
        metavar="URL",
        help="a VAE that replaces the model's own: repo, link, or local file",
    )
    add("--from-safetensors", action="store_true", default=None, help="refuse anything else")
    add("--upcast-attention", action="store_true", default=None)
    add("--verify-weights", action="store_true", help="scan every weight for NaN and Inf")
    add("--verify-render", action="store_true", help="render an image; needs torch")
    parser.set_defaults(run=_load)


def _add_sweep(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Lists what is on a volume and nobody's any more, published files that were altered, and"
        " what no load has made. Loads may run meanwhile."
    )
    parser.epilog = (
        "Ends with 0, also where there are orphans; with 1 where one could not be removed; with 3"
        " where published files were altered, which only a person can judge."
    )
    add = parser.add_argument
    add("--store", required=True, type=Path, metavar="DIR", help="the volume")
    add("--delete", action="store_true", help="remove the orphans; nothing else is ever removed")
    add("--digests", action="store_true", help="compare every byte of what is published, too")
    add(
        "--older-than",
        type=_hours,
        default=_OLDER_THAN_HOURS,
        metavar="HOURS",
        help="what changed since may be a living Pod's, and is let be (default: 24)",
    )
    add("--json", action="store_true", help="as JSON, an object a line")
    parser.set_defaults(run=_sweep)


def _hours(text: str) -> float:
    hours = float(text)
    if not 0 <= hours <= 24 * 365:
        raise ValueError(text)
    return hours


if __name__ == "__main__":
    sys.exit(main())
