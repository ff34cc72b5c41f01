"""The command line: `sd-gateway run` and `sd-gateway new-key`."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from collections.abc import Sequence

from sd_operator.base import logs
from sd_operator.base.errors import SettingsError
from sd_operator.gateway import keys
from sd_operator.gateway.settings import Settings

log = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="sd-gateway", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser(
        "run",
        help="serve the vendor's API and the gallery",
        description="Serves the vendor's API and the gallery. Settings are environment variables"
        " SD_GATEWAY_*; KUBECONFIG names the cluster, else it is the one it runs in.",
    )
    new_key = commands.add_parser(
        "new-key",
        help="make a key for a namespace",
        description="Prints a new key, which is kept nowhere, and the line that the file of"
        " SD_GATEWAY_KEYS_FILE needs for it.",
    )
    new_key.add_argument("namespace", metavar="NAMESPACE", help="whose models the key is for")
    new_key.add_argument("--id", help="what logs call the key (default: NAMESPACE-<random>)")
    options = parser.parse_args(arguments)
    try:
        return _new_key(options) if options.command == "new-key" else _run()
    except SettingsError as error:
        print(f"sd-gateway: {error}", file=sys.stderr)
        return 2


def _new_key(options: argparse.Namespace) -> int:
    try:
        key, line = keys.new(options.namespace, options.id)
    except ValueError as error:
        print(f"sd-gateway: {error}", file=sys.stderr)
        return 2
    print(f"key:  {key}\nline: {line}")
    return 0


def _run() -> int:
    settings = Settings.from_env()
    logs.set_up(settings.log_level, settings.log_format)
    # Heavy, and not needed to make a key.
    from sd_operator.clients.kube import Api
    from sd_operator.gateway.app import create_app
    from sd_operator.gateway.metrics import Metrics
    from sd_operator.gateway.server import server

    metrics = Metrics()
    port, stop = metrics.serve(settings.bind_address, settings.metrics_port)
    log.info("metrics on port %d", port)
    api = Api(settings.kubeconfig, metrics.count_request, manager="sd-gateway")
    served = server(create_app(settings, api, metrics), settings)
    # uvicorn raises the signal again when it has ended well: then there is nothing left to end.
    signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        served.run()
    except KeyboardInterrupt:
        return 130
    finally:
        stop()
    return 0 if served.started else 1


if __name__ == "__main__":
    sys.exit(main())
