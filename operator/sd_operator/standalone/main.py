"""`sd-operator standalone`: an API server, controllers, a node and the operator on one machine."""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import os
import sys
from contextlib import AbstractContextManager
from pathlib import Path

from aiohttp import web

from sd_api import defaults, names
from sd_api.crd import custom_resource_definition
from sd_operator.standalone import claims, identity, logs, pki, processes, published, tokens
from sd_operator.standalone.client import Client
from sd_operator.standalone.controllers import BACKOFF_SECONDS, Controllers
from sd_operator.standalone.errors import ApiError, Json, StandaloneError
from sd_operator.standalone.kubelet import Kubelet
from sd_operator.standalone.podrun import Machine
from sd_operator.standalone.processes import Options
from sd_operator.standalone.requests import key_of
from sd_operator.standalone.resources import CLAIMS, PODS
from sd_operator.standalone.server import ApiServer
from sd_operator.standalone.signals import until_signal
from sd_operator.standalone.state import State, default_folder
from sd_operator.standalone.storage import Storage


async def run(options: Options, state: State) -> None:
    """Run until a signal comes or one of the parts ends; raise the error of a part that fails."""
    _check_kubeconfig(options.kubeconfig)
    if options.with_gateway and not importlib.util.find_spec("uvicorn"):
        raise StandaloneError(
            "--gateway needs the packages of the extra `gateway`: in a clone of the repository, "
            "run pip install -c constraints.txt '.[gateway]'"
        )
    try:
        options.store.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StandaloneError(
            f"cannot create the folder {options.store} for the models: {error.strerror}."
            " Name another with --store"
        ) from error
    token = identity.token(state.database)
    ca, certificate = identity.certificates(state.database)
    main_claim = ("default", defaults.CLAIM_NAME)
    machine = Machine(options.store.resolve(), state.pods, state.logs, main_claim, options.loader)
    api = ApiServer(token, machine.logs, Storage(state.database))
    for item in (*_initial_objects(), *map(tokens.secret_of, options.tokens)):
        api.provide(item)
    pods = api.registry.storage.list(PODS.id)
    logs.remove_others(machine.logs, {pod["metadata"]["uid"] for pod in pods})
    runner = web.AppRunner(
        api.application(), access_log=None, shutdown_timeout=1, handler_cancellation=True
    )
    await runner.setup()
    context = certificate.server_context(state.folder)
    listener = identity.listen(state.database, "--port", options.port)
    await web.SockSite(runner, listener, ssl_context=context).start()
    server = f"https://127.0.0.1:{runner.addresses[0][1]}"
    options.kubeconfig.parent.mkdir(parents=True, exist_ok=True)
    pki.write_private(options.kubeconfig, pki.kubeconfig(server, ca, token))
    try:
        async with await Client.connect(str(options.kubeconfig)) as client:
            kubelet = Kubelet(client, machine)
            await kubelet.register()
            parts = [kubelet.run(), Controllers(client, BACKOFF_SECONDS).run()]
            parts += [processes.operate(options)] if options.with_operator else []
            _greet(options, state, server)
            await _list_unowned(machine, api)
            if options.with_gateway:
                parts.append(processes.serve_gateway(options, state))
            await until_signal(parts)
    finally:
        if state.is_ephemeral:
            options.kubeconfig.unlink(missing_ok=True)
        await runner.cleanup()


def _check_kubeconfig(path: Path) -> None:
    """Raise StandaloneError if standalone would overwrite a file that it has not written."""
    if path.exists() and not pki.is_ours(path.read_bytes()):
        raise StandaloneError(
            f"{path} is not a kubeconfig of standalone and would be overwritten;"
            " name another file with --kubeconfig"
        )


def _initial_objects() -> list[Json]:
    claim = claims.for_models("default", defaults.CLAIM_NAME)
    namespaces = [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
        for name in ("default", "kube-system")
    ]
    return [*namespaces, claim, custom_resource_definition()]


def _greet(options: Options, state: State, server: str) -> None:
    kept = (
        "The objects of the API are in memory and end with this process."
        if state.is_ephemeral
        else f"The objects of the API stay in {state.folder} when this process ends."
    )
    processes.say(
        f"The API server is ready at {server}.\n"
        f"Models are published in {options.store.resolve()}.\n"
        "In another terminal:\n"
        f"  export KUBECONFIG={options.kubeconfig.resolve()}\n"
        "  kubectl apply -f model.yaml\n"
        "  kubectl get sdm -w\n"
        f"{kept}\n"
        "Press Ctrl-C to stop."
    )


async def _list_unowned(machine: Machine, api: ApiServer) -> None:
    """Print the published models whose resource does not exist."""

    def scan() -> list[published.Published]:
        folders = machine.claim_folders()
        return [model for claim, folder in folders for model in published.on_claim(claim, folder)]

    models = await asyncio.to_thread(scan)
    owners = {key_of(owner) for owner in api.registry.storage.list((names.PLURAL, names.GROUP))}
    known = {key_of(claim) for claim in api.registry.storage.list(CLAIMS.id)}
    if text := published.message(models, owners, known):
        processes.say(text)


def main(args: argparse.Namespace) -> int:
    """Run `sd-operator standalone`; return the exit code."""
    try:
        with _open_state(args) as state:
            asyncio.run(run(_options(args, state), state))
    except (StandaloneError, ApiError, OSError) as error:
        print(f"sd-operator standalone: {error}", file=sys.stderr)  # noqa: T201 - this is a command
        return 1
    return 0


def _open_state(args: argparse.Namespace) -> AbstractContextManager[State]:
    if args.ephemeral:
        return State.ephemeral()
    return State.open(args.state or default_folder(args.store, os.environ), args.store)


def _options(args: argparse.Namespace, state: State) -> Options:
    return Options(
        store=args.store,
        kubeconfig=args.kubeconfig or state.kubeconfig,
        port=args.port,
        allowed_hosts=args.allowed_hosts,
        hub_endpoint=args.hf_endpoint,
        tokens=tokens.own_tokens(os.environ, args.hf_endpoint),
        with_operator=not args.no_operator,
        with_gateway=args.gateway,
        gateway_port=args.gateway_port,
    )
