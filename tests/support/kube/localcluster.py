"""Runs the Pods of a test's cluster on this machine, with the loader program that is given.

    python localcluster.py serve --kubeconfig K --store S --loader PROGRAM ...
    python localcluster.py join --kubeconfig K --store S --loader PROGRAM ...

`serve` is `sd-operator standalone --no-operator`, which writes the kubeconfig. `join` adds the
controllers and node of standalone to an API server that has none; such a server reads
`kubectl logs` from the port that the Node names, so `join` serves the containers' logs there.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from aiohttp import web

from sd_operator.standalone import logs, pki
from sd_operator.standalone.client import Client
from sd_operator.standalone.controllers import CONTROLLERS, Controllers
from sd_operator.standalone.errors import ApiError, Json
from sd_operator.standalone.kubelet import Kubelet
from sd_operator.standalone.main import run as serve
from sd_operator.standalone.podrun import Machine
from sd_operator.standalone.processes import Options
from sd_operator.standalone.signals import until_signal
from sd_operator.standalone.state import State


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


async def join(
    kubeconfig: Path, store: Path, state: Path, controllers: list[str], loader: Sequence[str]
) -> None:
    """Run controllers and a node until a signal arrives; leave no process behind."""
    machine = Machine(store, state, state / "logs", loader=loader)
    async with await Client.connect(str(kubeconfig)) as client:
        kubelet = Kubelet(client, machine)
        runner = await serve_logs(kubelet, machine)
        await kubelet.register(runner.addresses[0][1])
        work = [kubelet.run(), Controllers(client).run(controllers)]
        print("ready", flush=True)  # noqa: T201 - this is a command; tests wait for it
        await until_signal(work)
        await runner.cleanup()


def main() -> None:
    """Read the command line and run `serve` or `join`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=["serve", "join"])
    parser.add_argument("--kubeconfig", type=Path, required=True)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--controllers", nargs="*", default=list(CONTROLLERS), choices=CONTROLLERS)
    parser.add_argument("--state", type=Path, help="for serve: keep the objects in this folder")
    parser.add_argument("--loader", nargs=argparse.REMAINDER, required=True, help="comes last")
    args = parser.parse_args()
    kept = State.open(args.state, args.store) if args.state else State.ephemeral()
    with kept as state, suppress(KeyboardInterrupt):
        if args.command == "serve":
            options = Options(args.store, args.kubeconfig, with_operator=False, loader=args.loader)
            asyncio.run(serve(options, state))
        else:
            asyncio.run(
                join(args.kubeconfig, args.store, state.folder, args.controllers, args.loader)
            )


if __name__ == "__main__":
    main()
