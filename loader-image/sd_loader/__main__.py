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

from sd_api.check import CheckRequest, CheckResult
from sd_api.humanize import size
from sd_api.load import LoadRequest, RemoveRequest, Request
from sd_api.reasons import ExitCode, Reason
from sd_api.redaction import hide, secrets_of
from sd_api.spec import BaseModelName, ModelType, PredictionType, Revision, Spec, Weights
from sd_api.wire import MESSAGE_MAX_LENGTH, LoadResult, Message
from sd_loader import manual, stages
from sd_loader.errors import LoaderError
from sd_loader.failures import explain, invalid_request, trace
from sd_loader.net.credentials import read_credentials
from sd_loader.progress import CLEAR_LINE, for_people, json_lines
from sd_loader.settings import Settings
from sd_loader.snippet import snippet

_UMASK = 0o022
_OLDER_THAN_HOURS = 24.0
"""Longer than a loader Job may run (6 h), so that an older file cannot belong to a running Pod even
on a file system without locks."""

AnyRequest = TypeVar("AnyRequest", bound=Request)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Return its exit code."""
    args = _parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    os.umask(_UMASK)
    code = _run(args)
    _flush_output()
    return code


def _run(args: argparse.Namespace) -> int:
    settings = Settings.for_results()
    try:
        settings = Settings.from_env()
        _report_when_stopped(settings)
        result = args.run(args, settings)
    except Exception as error:  # noqa: BLE001 - the edge: any failure becomes result and exit code
        return _fail(error, settings, _secrets(args, settings))
    if isinstance(result, Message):
        _write_result(result, settings)
    return result if isinstance(result, ExitCode) else ExitCode.DONE


def _fetch(args: argparse.Namespace, settings: Settings) -> LoadResult:
    request = _parse(LoadRequest, args.request)
    return stages.fetch_stage(request, args.store, settings, json_lines())


def _convert(args: argparse.Namespace, settings: Settings) -> LoadResult:
    request = _parse(LoadRequest, args.request)
    return stages.convert_stage(request, args.store, settings, json_lines())


def _remove(args: argparse.Namespace, _: Settings) -> LoadResult:
    return stages.remove_stage(_parse(RemoveRequest, args.request), args.store)


def _check(args: argparse.Namespace, _: Settings) -> CheckResult:
    # Imported here: only this command needs it.
    from sd_loader.check import check

    return check(_parse(CheckRequest, args.request), args.store, print)


def _load(args: argparse.Namespace, settings: Settings) -> LoadResult:
    try:
        verify = {"weights": args.verify_weights, "render": args.verify_render}
        fields = {name: value for name, value in vars(args).items() if name in Spec.model_fields}
        spec = Spec.model_validate({**fields, "verify": verify})
    except ValidationError as error:
        raise invalid_request(error) from None
    credentials = (settings.credentials_dir / "token").exists()
    request = manual.request_of(spec, args.model_id, credentials=credentials)
    args.store.mkdir(parents=True, exist_ok=True)
    # Two loads on one machine must not share a staging folder.
    settings = replace(settings, pod=f"{settings.pod}-{os.getpid()}")
    result = stages.load(request, args.store, settings, for_people())
    if result.message:
        _print_error(f"warning: {result.message}")
    if result.artifact is not None:
        shared = result.artifact.shared_bytes
        saved = f", {size(shared)} of it shared with other models" if shared else ""
        _print_error(
            f"loaded {result.artifact.files} files, {size(result.artifact.size_bytes)}{saved}"
        )
    print(args.store / args.model_id)
    return result


def _inspect(args: argparse.Namespace, _: Settings) -> None:
    # Imported here: some commands do not need the conversion modules and start faster without them.
    from sd_loader.inspect import inspect

    inspection = inspect(args.file)
    print(inspection.to_json() if args.json else inspection.to_text())


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
        # The cause is dropped because it quotes the request.
        raise invalid_request(error) from None


def _write_result(result: Message, settings: Settings) -> None:
    """Write the result to the Pod's termination message, which the operator reads."""
    if settings.termination_log is None:
        return
    try:
        settings.termination_log.write_text(result.encode(), encoding="utf-8")
    except OSError as error:
        _print_error(f"warning: cannot write the termination message: {error.strerror}")


def _secrets(args: argparse.Namespace, settings: Settings) -> frozenset[str]:
    """Return the secrets of this command. A server that received one may quote it in an error."""
    arguments, token = vars(args), None
    if "request" in arguments:
        with suppress(ValueError, RecursionError):
            arguments = {"request": json.loads(args.request)}
    with suppress(LoaderError):
        token = read_credentials(settings.credentials_dir).token
    urls = (settings.proxy, settings.hub_endpoint, settings.trained_url_template)
    return secrets_of((arguments, urls), token, *settings.logins.secrets())


def _fail(error: BaseException, settings: Settings, secrets: frozenset[str] = frozenset()) -> int:
    explained = explain(error)
    reason = explained.reason
    if reason is Reason.LOADER_CRASHED and explained is not error:
        _print_error(hide(trace(error), secrets))
    message = snippet(hide(explained.message, secrets), MESSAGE_MAX_LENGTH - 1)
    _write_result(LoadResult(outcome="failed", reason=reason, message=message), settings)
    _print_error(f"error: {reason.value}: {message}")
    _print_error(f"  what to do: {reason.remedy}")
    return reason.exit_code


def _print_error(line: str) -> None:
    start = CLEAR_LINE if sys.stderr.isatty() else ""
    with suppress(OSError):
        print(f"{start}{line}", file=sys.stderr, flush=True)


def _flush_output() -> None:
    """Flush the output, or discard it if its reader is gone.

    Python flushes at exit, too, and would replace the exit code if that failed.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _report_when_stopped(settings: Settings) -> None:
    """On SIGTERM and SIGINT, write the result and exit. The next attempt uses the staged files."""

    def stop(signum: int, _: FrameType | None) -> None:
        message = f"stopped by {signal.Signals(signum).name}; the next attempt continues from here"
        try:
            _fail(LoaderError(Reason.LOADER_CRASHED, message), settings)
        finally:
            # sys.exit would wait for the threads that download.
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
        ("fetch", _fetch, "download a model's source to the volume"),
        ("convert", _convert, "convert the downloaded model and publish it"),
        ("remove", _remove, "remove the files of a deleted model"),
        ("check", _check, "find published models whose files are missing"),
    ):
        command = commands.add_parser(name, help=summary, description=summary)
        command.add_argument(
            "--request", required=True, metavar="JSON", help="the operator's request"
        )
        command.add_argument(
            "--store", required=True, type=Path, metavar="DIR", help="root folder of the volume"
        )
        command.set_defaults(run=run)
    _add_load(commands.add_parser("load", help="download, convert and publish a model by hand"))
    inspect = commands.add_parser(
        "inspect", help="show what a model file is, or why it cannot be loaded"
    )
    inspect.add_argument("file", type=Path, metavar="FILE", help="model file")
    inspect.add_argument("--json", action="store_true", help="print one JSON object")
    inspect.set_defaults(run=_inspect)
    _add_sweep(commands.add_parser("sweep", help="list or remove orphaned files on a volume"))
    return parser


def _add_load(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--url",
        help="Hugging Face repo (ORG/NAME[@REVISION]), http(s) link, or local file; optional for"
        " the ControlNets that load by model id",
    )
    add("--model-id", required=True, help="name of the model's folder in the store")
    add("--store", required=True, type=Path, metavar="DIR", help="folder to publish models in")
    add(
        "--model-type",
        choices=[kind.value for kind in ModelType],
        help="default: derived from the url",
    )
    add(
        "--revision",
        choices=[word.value for word in Revision],
        help="precision of the published weights; default: the source's",
    )
    add("--git-revision", help="branch, tag or commit of a Hub repo")
    add("--sha256", help="expected SHA-256 of a single file")
    add(
        "--weights",
        choices=[word.value for word in Weights],
        default=Weights.STANDARD.value,
        help="which weights to publish if a checkpoint has both sets; default: standard",
    )
    add(
        "--base-model",
        choices=[name.value for name in BaseModelName],
        help="architecture of the model; default: detected",
    )
    add(
        "--prediction-type",
        choices=[word.value for word in PredictionType],
        help="what the UNet predicts; default: detected",
    )
    add(
        "--original-config",
        help="the checkpoint's original YAML config: http(s) link, or local file",
    )
    add(
        "--vae",
        type=lambda url: {"url": url},
        metavar="URL",
        help="VAE that replaces the model's own: repo, link, or local file",
    )
    add(
        "--from-safetensors",
        action="store_true",
        default=None,
        help="fail if the source is not in safetensors format",
    )
    add(
        "--upcast-attention",
        action="store_true",
        default=None,
        help="set the UNet's upcast_attention; default: detected",
    )
    add("--verify-weights", action="store_true", help="scan every weight for NaN and Inf")
    add("--verify-render", action="store_true", help="render a test image; needs torch")
    parser.set_defaults(run=_load)


def _add_sweep(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Lists orphaned files on a volume, published files that were altered, and files that the"
        " loader did not create. Loads may run at the same time."
    )
    parser.epilog = (
        "Exit codes: 0 on success, even if there are orphans; 1 if an orphan could not be removed;"
        " 3 if a published file was altered, which a person must look into."
    )
    add = parser.add_argument
    add("--store", required=True, type=Path, metavar="DIR", help="root folder of the volume")
    add("--delete", action="store_true", help="remove the orphans; all other files stay")
    add("--digests", action="store_true", help="also compare the content of all published files")
    add(
        "--older-than",
        type=_hours,
        default=_OLDER_THAN_HOURS,
        metavar="HOURS",
        help="keep files that changed in the last HOURS, as a running Pod may use them"
        " (default: 24)",
    )
    add("--json", action="store_true", help="print one JSON object per line")
    parser.set_defaults(run=_sweep)


def _hours(text: str) -> float:
    hours = float(text)
    if not 0 <= hours <= 24 * 365:
        raise ValueError(text)
    return hours


if __name__ == "__main__":
    sys.exit(main())
