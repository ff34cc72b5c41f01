"""`sd-operator standalone`: an API server, controllers, a node and the operator on one machine."""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import secrets
import sys
import tempfile
from pathlib import Path

from aiohttp import web

from sd_api import defaults
from sd_api.crd import custom_resource_definition
from sd_operator.standalone import pki, processes
from sd_operator.standalone.client import Client
from sd_operator.standalone.controllers import BACKOFF_SECONDS, Controllers
from sd_operator.standalone.errors import Json
from sd_operator.standalone.kubelet import Kubelet
from sd_operator.standalone.podrun import Machine
from sd_operator.standalone.processes import Options
from sd_operator.standalone.server import ApiServer
from sd_operator.standalone.signals import until_signal


class StandaloneError(Exception):
    """Standalone cannot start. The message says what to do."""


async def run(options: Options, state: Path) -> None:
    """Run until a signal comes or a part fails; at the end remove the kubeconfig."""
    _check_kubeconfig(options.kubeconfig)
    if options.with_gateway and not importlib.util.find_spec("uvicorn"):
        raise StandaloneError(
            "--gateway needs the packages of the extra `gateway`: in a clone of the repository, "
            "run pip install -c constraints.txt '.[gateway]'"
        )
    options.store.mkdir(parents=True, exist_ok=True)
    token = secrets.token_urlsafe(32)
    ca, certificate = pki.make_certificates()
    main_claim = ("default", defaults.CLAIM_NAME)
    machine = Machine(options.store.resolve(), state, state / "logs", main_claim, options.loader)
    api = ApiServer(token, machine.logs)
    for item in _initial_objects():
        api.load(item)
    runner = web.AppRunner(
        api.application(), access_log=None, shutdown_timeout=1, handler_cancellation=True
    )
    await runner.setup()
    context = certificate.server_context(state)
    await web.TCPSite(runner, "127.0.0.1", options.port, ssl_context=context).start()
    server = f"https://127.0.0.1:{runner.addresses[0][1]}"
    options.kubeconfig.parent.mkdir(parents=True, exist_ok=True)
    pki.write_private(options.kubeconfig, pki.kubeconfig(server, ca, token))
    try:
        async with await Client.connect(str(options.kubeconfig)) as client:
            kubelet = Kubelet(client, machine)
            await kubelet.register()
            parts = [kubelet.run(), Controllers(client, BACKOFF_SECONDS).run()]
            parts += [processes.operate(options)] if options.with_operator else []
            _greet(options, server)
            if options.with_gateway:
                parts.append(processes.serve_gateway(options, state))
            await until_signal(parts)
    finally:
        options.kubeconfig.unlink(missing_ok=True)
        await runner.cleanup()


def _check_kubeconfig(path: Path) -> None:
    """Raise StandaloneError if the file exists and was not written by standalone.

    The file is overwritten now and removed at the end.
    """
    if path.exists() and not pki.is_ours(path.read_bytes()):
        raise StandaloneError(
            f"{path} is not a kubeconfig of standalone and would be overwritten;"
            " name another file with --kubeconfig"
        )


def _initial_objects() -> list[Json]:
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": defaults.CLAIM_NAME, "namespace": "default"},
        "spec": {
            "accessModes": ["ReadWriteMany"],
            "resources": {"requests": {"storage": "1Ti"}},
        },
    }
    namespaces = [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
        for name in ("default", "kube-system")
    ]
    return [*namespaces, claim, custom_resource_definition()]


def _greet(options: Options, server: str) -> None:
    processes.say(
        f"The API server is ready at {server}.\n"
        f"Models are published in {options.store.resolve()}.\n"
        "In another terminal:\n"
        f"  export KUBECONFIG={options.kubeconfig.resolve()}\n"
        "  kubectl apply -f model.yaml\n"
        "  kubectl get sdm -w\n"
        "The published files stay when this process ends. The API's objects are in memory and are"
        " lost.\n"
        "Press Ctrl-C to stop."
    )


def main(args: argparse.Namespace) -> int:
    """Run `sd-operator standalone`."""
    options = Options(
        store=args.store,
        kubeconfig=args.kubeconfig or args.store / ".standalone" / "kubeconfig",
        port=args.port,
        allowed_hosts=args.allowed_hosts,
        hub_endpoint=args.hf_endpoint,
        with_operator=not args.no_operator,
        with_gateway=args.gateway,
        gateway_port=args.gateway_port,
    )
    with tempfile.TemporaryDirectory(prefix="sd-operator-") as state:
        try:
            asyncio.run(run(options, Path(state)))
        except (StandaloneError, OSError) as error:
            print(f"sd-operator standalone: {error}", file=sys.stderr)  # noqa: T201 - this is a command
            return 1
    return 0
