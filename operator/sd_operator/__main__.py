"""The command line: `sd-operator run` and `sd-operator standalone`."""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from collections.abc import Sequence
from importlib.metadata import version

from sd_api.completion import add_completion
from sd_operator import standalone
from sd_operator.base import logs
from sd_operator.base.errors import OperatorError, SettingsError
from sd_operator.base.settings import Settings

log = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code."""
    parser = argparse.ArgumentParser(prog="sd-operator", description=__doc__)
    parser.add_argument("--version", action="version", version=version("sd-operator"))
    add_completion(parser)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser(
        "run",
        help="serve the models of a cluster",
        description="Serves the models of a cluster. Settings are environment variables"
        " SD_OPERATOR_*; KUBECONFIG names the cluster, else it is the one it runs in.",
    )
    standalone.add_arguments(
        commands.add_parser("standalone", help="a cluster of its own, on this machine")
    )
    options = parser.parse_args(arguments)
    if options.command == "standalone":
        return standalone.run(options)
    return _run()


def _run() -> int:
    try:
        settings = Settings.from_env()
    except SettingsError as error:
        print(f"sd-operator: {error}", file=sys.stderr)
        return 2
    logs.set_up(settings.log_level, settings.log_format)
    from sd_operator.runtime.run import operate

    async def run() -> None:
        await operate(settings, asyncio.Event())

    try:
        asyncio.run(run())
    except KeyboardInterrupt:
        return 130
    except OperatorError as error:
        log.error("the operator has ended: %s", error, exc_info=log.isEnabledFor(logging.DEBUG))
        return 1
    except Exception:
        log.exception("the operator has ended")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
