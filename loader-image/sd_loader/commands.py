"""The commands: what each does with its arguments. `arguments` declares them."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

from pydantic import ValidationError

from sd_api.check import CheckRequest, CheckResult
from sd_api.load import LoadRequest, RemoveRequest, Request
from sd_api.reasons import ExitCode
from sd_api.spec import Spec
from sd_api.wire import LoadResult, Message
from sd_loader import manual, stages
from sd_loader.failures import invalid_options, invalid_request
from sd_loader.progress import CLEAR_LINE, for_people, json_lines
from sd_loader.settings import Settings
from sd_loader.source.locate import LocalFile, Located, locate
from sd_loader.source.ref import SourceRef
from sd_loader.storage_errors import storage_error

AnyRequest = TypeVar("AnyRequest", bound=Request)
Command = Callable[[argparse.Namespace, Settings], Message | ExitCode]
"""Runs a command. Returns the result of a load, a removal or a check; otherwise the exit code."""


class OutputError(Exception):
    """The command's output cannot be written; the cause is the system's error."""


def _fetch(args: argparse.Namespace, settings: Settings) -> LoadResult:
    request = _parse(LoadRequest, args.request)
    return stages.fetch_stage(request, args.store, settings, json_lines())


def _convert(args: argparse.Namespace, settings: Settings) -> LoadResult:
    request = _parse(LoadRequest, args.request)
    return stages.convert_stage(request, args.store, settings, json_lines())


def _remove(args: argparse.Namespace, _: Settings) -> LoadResult:
    return stages.remove_stage(_parse(RemoveRequest, args.request), args.store)


def _check(args: argparse.Namespace, _: Settings) -> CheckResult:
    # Imported here, because the other commands do not need it and start faster without it.
    from sd_loader.check import check

    return check(_parse(CheckRequest, args.request), args.store, print)


def _load(args: argparse.Namespace, settings: Settings) -> LoadResult:
    from sd_loader.summary import summary  # imported here, as in _check

    try:
        verify = {"weights": args.verify_weights, "render": args.verify_render}
        fields = {name: value for name, value in vars(args).items() if name in Spec.model_fields}
        lora = {"format": args.lora_format, "expandLycoris": args.lora_expand_lycoris}
        components = {name: {"url": url} for name, url in args.component}
        if args.components_from is not None:
            components["from"] = args.components_from
        given = {"verify": verify, "lora": lora, "components": components}
        spec = Spec.model_validate({**fields, **given})
    except ValidationError as error:
        raise invalid_options(error) from None
    request = manual.request_of(spec, args.model_id, credentials=_has_secret(args, settings))
    ref = SourceRef(request.url, "spec.url", request.model_type, request.git_revision)
    settings = replace(settings, own_tokens=manual.own_tokens(ref, settings, args.token_file))
    _make(args.store)
    # Two loads on one machine must not share a staging folder.
    settings = replace(settings, pod=f"{settings.pod}-{os.getpid()}")
    result = stages.load(request, args.store, settings, for_people())
    artifact, warnings = result.artifact, result.message
    if artifact is not None:
        print_error(summary(args.model_id, artifact, warnings, args.store))
    _print(str(args.store / args.model_id))
    return result


def _has_secret(args: argparse.Namespace, settings: Settings) -> bool:
    """Return True if a Secret with a token is mounted and --token-file does not replace it."""
    return args.token_file is None and (settings.credentials_dir / "token").exists()


def _make(store: Path) -> None:
    try:
        store.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(error, str(store)) from error


def _inspect(args: argparse.Namespace, settings: Settings) -> ExitCode:
    # Imported here, as in _check.
    from sd_loader.inspect import Inspection, PublishedModel, inspect, inspect_published

    found: Inspection | PublishedModel
    if os.path.isdir(args.model):  # noqa: PTH112 - Path.is_dir raises an error for a long link.
        found = inspect_published(Path(args.model))
    else:
        ref = SourceRef(args.model, "MODEL", None, needs_token=True)
        place = locate(ref, settings, allow_local=True)
        if not isinstance(place, LocalFile):
            return _inspect_link(ref, place, args, settings)
        found = inspect(Path(args.model))
    _print(found.to_json() if args.json else found.to_text())
    return ExitCode.DONE


def _inspect_link(
    ref: SourceRef, place: Located, args: argparse.Namespace, settings: Settings
) -> ExitCode:
    from sd_loader.inspect_link import inspect_link  # imported here, as in _check
    from sd_loader.net.client import HttpClient

    settings = replace(settings, own_tokens=manual.own_tokens(ref, settings, args.token_file))
    client = HttpClient(settings, has_token=_has_secret(args, settings))
    with TemporaryDirectory() as folder:
        found, refusal = inspect_link(ref, place, client, Path(folder))
    _print(found.to_json() if args.json else found.to_text())
    if refusal is not None:
        raise refusal
    return ExitCode.DONE


def _list(args: argparse.Namespace, _: Settings) -> ExitCode:
    from sd_loader import listing  # imported here, as in _check

    models = listing.published(args.store)
    _print(listing.to_json(models) if args.json else listing.to_text(models))
    return ExitCode.DONE


def _verify(args: argparse.Namespace, _: Settings) -> ExitCode:
    from sd_loader import listing  # imported here, as in _check

    checked = listing.verify(args.store, args.model_id)
    _print(checked.to_text())
    if not checked.problems:
        return ExitCode.DONE
    print_remedy(checked.remedy())
    return ExitCode.PERMANENT


def _sweep(args: argparse.Namespace, settings: Settings) -> ExitCode:
    from sd_loader.sweep import sweep  # imported here, as in _check

    swept = sweep(
        args.store,
        delete=args.delete,
        digests=args.digests,
        older_than=timedelta(hours=args.older_than),
        retain=timedelta(seconds=settings.retain_previous_seconds),
    )
    text = swept.to_json() if args.json else swept.to_text()
    if text:
        _print(text)
    return swept.exit_code


def _parse(kind: type[AnyRequest], text: str) -> AnyRequest:
    try:
        return kind.from_argument(text)
    except ValidationError as error:
        # The cause is dropped because it quotes the request.
        raise invalid_request(error) from None


def _print(text: str) -> None:
    try:
        print(text, flush=True)
    except OSError as error:
        raise OutputError from error


def print_remedy(text: str) -> None:
    """Print to stderr what a person can do."""
    print_error(f"  what to do: {text}")


def print_error(line: str) -> None:
    """Print to stderr, in place of the progress bar. A closed stream is not an error."""
    start = CLEAR_LINE if sys.stderr.isatty() else ""
    with suppress(OSError):
        print(f"{start}{line}", file=sys.stderr, flush=True)


COMMANDS: Mapping[str, Command] = {
    "load": _load,
    "inspect": _inspect,
    "list": _list,
    "verify": _verify,
    "sweep": _sweep,
    "fetch": _fetch,
    "convert": _convert,
    "remove": _remove,
    "check": _check,
}
