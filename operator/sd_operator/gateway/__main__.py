"""Runs the gateway, or makes a key for it: `sd-gateway run` and `sd-gateway new-key`."""

from __future__ import annotations

import argparse
import contextlib
import logging
import signal
import sys
from collections.abc import Sequence
from importlib.metadata import version

from sd_api.completion import add_completion
from sd_operator.base import logs
from sd_operator.base.errors import SettingsError
from sd_operator.base.probes import Probes
from sd_operator.gateway import keys
from sd_operator.gateway.settings import GatewaySettings

log = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="sd-gateway", description="Run the gateway, or make an API key for it."
    )
    parser.add_argument("--version", action="version", version=version("sd-operator"))
    add_completion(parser)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser(
        "run",
        help="serve the vendor's API and the gallery",
        description="Serve the vendor's API and the gallery. The environment variables"
        " SD_GATEWAY_* hold the settings. KUBECONFIG names the cluster; by default it is the"
        " cluster in which the gateway runs.",
    )
    new_key = commands.add_parser(
        "new-key",
        help="make a key for a namespace",
        description="Print a new API key and its line for the file SD_GATEWAY_KEYS_FILE. The key"
        " is not stored anywhere: keep it safe.",
    )
    new_key.add_argument(
        "namespace", metavar="NAMESPACE", help="namespace whose models the key gives access to"
    )
    new_key.add_argument("--id", help="name of the key in logs (default: NAMESPACE-<random>)")
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
    settings = GatewaySettings.from_env()
    logs.set_up(settings.log_level, settings.log_format)
    # These imports are slow, and `new-key` does not need them.
    from sd_operator.clients.kube import Api
    from sd_operator.gateway.app import create_app
    from sd_operator.gateway.metrics import GatewayMetrics
    from sd_operator.gateway.server import server

    metrics = GatewayMetrics()
    # The probes run in threads, so they have their own view of the key file.
    key_file = keys.Keys(settings.keys_file)
    probes = Probes(can_serve=lambda: key_file.readable)
    api = Api(settings.kubeconfig, metrics.count_request, manager="sd-gateway")
    http_server = server(create_app(settings, api, metrics), settings, probes)
    # uvicorn raises SIGTERM again after a clean shutdown. Without a handler, this second SIGTERM
    # would end the process, and the exit code would look like a failure.
    signal.signal(signal.SIGTERM, lambda *_: None)
    with contextlib.ExitStack() as stack:
        for what, serve, port in (
            ("metrics", metrics.serve, settings.metrics_port),
            ("probes", probes.serve, settings.probes_port),
        ):
            actual, stop = serve(settings.bind_address, port)
            stack.callback(stop)
            log.info("%s on port %d", what, actual)
        try:
            http_server.run()
        except KeyboardInterrupt:
            return 130
    return 0 if http_server.started else 1


if __name__ == "__main__":
    sys.exit(main())
