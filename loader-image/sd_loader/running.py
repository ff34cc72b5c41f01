"""Runs one command, and reports its result or failure."""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
from contextlib import suppress
from types import FrameType

from sd_api.extras import KILLED
from sd_api.reasons import ExitCode, Reason
from sd_api.redaction import hide
from sd_api.wire import MESSAGE_MAX_LENGTH, LoadResult, Message
from sd_api.wording import message_at_shell, remedy_at_shell
from sd_loader import arguments
from sd_loader.commands import COMMANDS, OutputError, print_error, print_remedy
from sd_loader.errors import LoaderError
from sd_loader.failures import explain, trace
from sd_loader.net.credentials import read_token_file, tokens_of
from sd_loader.settings import Settings
from sd_loader.snippet import snippet

_UMASK = 0o022


def run(args: argparse.Namespace) -> int:
    """Run one command. Return its exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    os.umask(_UMASK)
    code = _run(args)
    _flush_output()
    return code


def _run(args: argparse.Namespace) -> int:
    settings = Settings.for_results()
    try:
        settings = Settings.from_env()
        _report_when_stopped(args, settings)
        result = COMMANDS[args.command](args, settings)
    except OutputError as error:
        return _without_output(error)
    except Exception as error:  # the edge: any failure becomes result and exit code
        if isinstance(error, ModuleNotFoundError) and args.command not in arguments.OF_JOBS:
            raise  # `start` says what to install
        return _fail(error, args, settings, _secrets(args, settings))
    if isinstance(result, ExitCode):
        return result
    _write_result(result, settings)
    return ExitCode.DONE


def _without_output(error: OutputError) -> int:
    """Return the exit code after stdout has failed. If a reader closed the pipe, print no error."""
    cause = error.__cause__
    if isinstance(cause, BrokenPipeError):
        return KILLED + signal.SIGPIPE
    why = cause.strerror if isinstance(cause, OSError) else cause
    print_error(f"error: cannot write the command's output: {why}")
    return ExitCode.TRY_AGAIN


def _write_result(result: Message, settings: Settings) -> None:
    """Write the result to the Pod's termination message, which the operator reads."""
    if settings.termination_log is None:
        return
    try:
        settings.termination_log.write_text(result.encode(), encoding="utf-8")
    except OSError as error:
        print_error(f"warning: cannot write the termination message: {error.strerror}")


def _secrets(args: argparse.Namespace, settings: Settings) -> frozenset[str]:
    """Return the secrets of this command. A server that received one may quote it in an error."""
    given = vars(args)
    if "request" in given:
        with suppress(ValueError, RecursionError):
            given = {"request": json.loads(args.request)}
    tokens = [*tokens_of(settings)]
    if given.get("token_file"):
        with suppress(LoaderError):
            tokens.append(read_token_file(args.token_file))
    return settings.secrets(given, *tokens)


def _fail(
    error: BaseException,
    args: argparse.Namespace,
    settings: Settings,
    secrets: frozenset[str] = frozenset(),
) -> int:
    explained = explain(error)
    reason = explained.reason
    if reason is Reason.LOADER_CRASHED and explained is not error:
        print_error(hide(trace(error), secrets))
    message = snippet(hide(explained.message, secrets), MESSAGE_MAX_LENGTH - 1)
    _write_result(LoadResult(outcome="failed", reason=reason, message=message), settings)
    of_job = args.command in arguments.OF_JOBS
    print_error(f"error: {reason.value}: {message if of_job else message_at_shell(message)}")
    print_remedy(reason.remedy if of_job else explained.remedy or remedy_at_shell(reason))
    return reason.exit_code


def _flush_output() -> None:
    """Flush the output, or discard it if its reader is gone.

    Python flushes at exit, too, and would replace the exit code if that failed.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _report_when_stopped(args: argparse.Namespace, settings: Settings) -> None:
    """On SIGTERM and SIGINT, write the result (in a Job) or print a line, and exit.

    The next attempt uses the staged files.
    """

    def stop(signum: int, _: FrameType | None) -> None:
        name = signal.Signals(signum).name
        of_job = args.command in arguments.OF_JOBS
        code = Reason.LOADER_CRASHED.exit_code if of_job else KILLED + signum
        try:
            if of_job:
                message = f"stopped by {name}; the next attempt continues from here"
                _fail(LoaderError(Reason.LOADER_CRASHED, message), args, settings)
            else:
                print_error(_stopped_by_hand(args.command, name))
        finally:
            # sys.exit would wait for the threads that download.
            os._exit(code)

    for stopping in (signal.SIGTERM, signal.SIGINT):
        signal.signal(stopping, stop)


def _stopped_by_hand(command: str, signal_name: str) -> str:
    if command == "load":
        return f"stopped by {signal_name}: run the same command again to continue from here"
    return f"stopped by {signal_name}"
