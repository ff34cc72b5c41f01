"""Runs the operator and the gateway as separate processes, and restarts them when they end."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sd_api import defaults
from sd_operator.standalone import identity, pki, tokens
from sd_operator.standalone.executor import LOADER, die_with_parent
from sd_operator.standalone.podrun import MAX_GRACE_SECONDS
from sd_operator.standalone.state import State

GATEWAY_NAMESPACE = "default"
RESTART_SECONDS = (0.5, 1.0, 2.0, 5.0, 10.0)
"""Delays before a process is started again; the last one repeats."""


@dataclass(frozen=True)
class Options:
    """The options of the command line."""

    store: Path
    kubeconfig: Path
    port: int = 0
    allowed_hosts: str = ""
    hub_endpoint: str = ""
    tokens: tuple[tokens.Token, ...] = ()
    with_operator: bool = True
    with_gateway: bool = False
    gateway_port: int = 0
    loader: Sequence[str] = LOADER


async def operate(options: Options) -> None:
    """Run the operator, and start it again when it ends."""
    settings = {
        "SD_OPERATOR_BIND_ADDRESS": "127.0.0.1",
        "SD_OPERATOR_CLAIM_NAME": defaults.CLAIM_NAME,
        "SD_OPERATOR_ALLOWED_HOSTS": options.allowed_hosts,
        "SD_OPERATOR_HF_ENDPOINT": options.hub_endpoint,
        "SD_OPERATOR_DEFAULT_CREDENTIALS": tokens.setting_of(options.tokens),
        "SD_OPERATOR_METRICS_PORT": "0",
        "SD_OPERATOR_PROBES_PORT": "0",
        "SD_OPERATOR_POLL_SECONDS": "1",
        # The node has no GPU resource to request: the loader runs as a process of the user.
        "SD_OPERATOR_GPU_COUNT": "0",
    }
    await _keep_running("operator", ("sd_operator", "run"), settings, options)


async def serve_gateway(options: Options, state: State) -> None:
    """Run the gateway with one API key, and start it again when it ends."""
    # The gateway's dependencies are an extra, which standalone does not need.
    from sd_operator.gateway import keys

    made = state.database.remember("gateway-key", lambda: " ".join(keys.new(GATEWAY_NAMESPACE)))
    key, line = made.split()
    keys_file = state.folder / "gateway-keys"
    pki.write_private(keys_file, f"{line}\n".encode())
    # This only finds a port and remembers it: the gateway opens the port each time it starts.
    with identity.listen(state.database, "--gateway-port", options.gateway_port) as listener:
        port = listener.getsockname()[1]
    settings = gateway_settings(options, port, keys_file, os.environ)
    url = settings["SD_GATEWAY_PUBLIC_URL"]
    say(f"The gateway is at {url} and its API documentation at {url}/docs.\nAPI key: {key}")
    await _keep_running("gateway", ("sd_operator.gateway", "run"), settings, options)


def gateway_settings(
    options: Options, port: int, keys_file: Path, env: Mapping[str, str]
) -> dict[str, str]:
    """Return the settings of the gateway.

    env: environment variables, which may name a mirror of Civitai.
    """
    civitai = "SD_GATEWAY_CIVITAI_ENDPOINT"
    return {
        "SD_GATEWAY_BIND_ADDRESS": "127.0.0.1",
        "SD_GATEWAY_PORT": str(port),
        "SD_GATEWAY_METRICS_PORT": "0",
        "SD_GATEWAY_PROBES_PORT": "0",
        "SD_GATEWAY_PUBLIC_URL": f"http://127.0.0.1:{port}",
        "SD_GATEWAY_KEYS_FILE": str(keys_file),
        "SD_GATEWAY_CLAIM_NAME": defaults.CLAIM_NAME,
        "SD_GATEWAY_STORE": str(options.store.resolve()),
        "SD_GATEWAY_ALLOWED_HOSTS": options.allowed_hosts,
        "SD_GATEWAY_HF_ENDPOINT": options.hub_endpoint,
        # By default, the load form asks the same Civitai endpoint as the loads.
        civitai: env.get(civitai) or env.get(tokens.CIVITAI_ENDPOINT_VARIABLE, ""),
    }


async def _keep_running(
    name: str, command: Sequence[str], settings: Mapping[str, str], options: Options
) -> None:
    left_out = {"KUBECONFIG", *tokens.VARIABLES}
    env = {key: value for key, value in os.environ.items() if key not in left_out}
    env |= {"KUBECONFIG": str(options.kubeconfig)}
    env |= {key: value for key, value in settings.items() if value}
    attempt = 0
    while True:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", *command),
            env=env,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
        try:
            code = await process.wait()
        finally:
            if process.returncode is None:
                process.terminate()
                try:
                    await asyncio.wait_for(process.wait(), MAX_GRACE_SECONDS)
                except TimeoutError:
                    process.kill()
        pause = RESTART_SECONDS[min(attempt, len(RESTART_SECONDS) - 1)]
        say(f"The {name} ended with exit code {code}; it starts again in {pause} s.")
        await asyncio.sleep(pause)
        attempt += 1


def say(text: str) -> None:
    """Print a message for the user who started standalone."""
    print(text, flush=True)  # noqa: T201 - this is a command
