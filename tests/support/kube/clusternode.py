"""Standalone's controllers and node for an API server that has none: `python clusternode.py`.

Such a server reads `kubectl logs` from the port that the Node names, so the containers' logs are
served there.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from aiohttp import web

from sd_operator.standalone import logs, pki
from sd_operator.standalone.client import Client
from sd_operator.standalone.controllers import CONTROLLERS, Controllers
from sd_operator.standalone.errors import ApiError, Json
from sd_operator.standalone.executor import LOADER
from sd_operator.standalone.kubelet import Kubelet
from sd_operator.standalone.podrun import Machine
from sd_operator.standalone.signals import until_signal


async def serve_logs(kubelet: Kubelet, machine: Machine) -> web.AppRunner:
    """Serve /containerLogs on loopback, as a kubelet does."""

    async def answer(request: web.Request) -> web.StreamResponse:
        namespace, name, container = (request.match_info[key] for key in ("ns", "pod", "container"))

        def find() -> Json | None:
            pods = ((pod["metadata"], pod) for pod in kubelet.pods.objects.values())
            wanted = (namespace, name)
            return next((p for m, p in pods if (m["namespace"], m["name"]) == wanted), None)

        try:
            return await logs.serve(request, machine.logs, find, container)
        except ApiError as error:
            return web.Response(status=error.code, text=error.message)

    app = web.Application()
    app.router.add_get("/containerLogs/{ns}/{pod}/{container}", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    context = pki.make_certificates()[1].server_context(machine.state)
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    return runner


async def run(
    kubeconfig: str, store: Path, state: Path, controllers: list[str], loader: Sequence[str]
) -> None:
    """Run until a signal comes; leaves no process behind."""
    machine = Machine(store, state, state / "logs", loader=loader)
    async with await Client.connect(kubeconfig) as client:
        kubelet = Kubelet(client, machine)
        runner = await serve_logs(kubelet, machine)
        await kubelet.register(runner.addresses[0][1])
        work = [kubelet.run(), Controllers(client).run(controllers)]
        print("ready", flush=True)  # noqa: T201 - this is a command; tests wait for it
        await until_signal(work)
        await runner.cleanup()


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kubeconfig", required=True)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--controllers", nargs="*", default=list(CONTROLLERS), choices=CONTROLLERS)
    parser.add_argument("--loader", nargs="*", default=LOADER)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as state, suppress(KeyboardInterrupt):
        asyncio.run(run(args.kubeconfig, args.store, Path(state), args.controllers, args.loader))


if __name__ == "__main__":
    main()
