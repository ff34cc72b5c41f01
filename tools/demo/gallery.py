"""The gallery demo: models of every type, of which one still loads and one fails, until Ctrl-C."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from devkit.fakecivitai import FakeCivitai
from devkit.fakehub import FakeHub
from sd_api import names
from sd_api.status import ConditionType
from sd_operator.gateway import keys
from tools.demo import sources
from tools.demo.processes import (
    Kubectl,
    condition,
    expect,
    is_ready,
    relative,
    running,
    say,
    standalone,
)
from tools.kubectl import kubectl_path

PORT = 8642
LOADED_SECONDS = 300


def open_gallery(work: Path, stack: contextlib.ExitStack) -> None:
    """Serve models of every type, load them, and print what to open; return at Ctrl-C."""
    say("1. Make tiny models of every type, and stand-ins for the Hub and Civitai")
    hub = stack.enter_context(FakeHub())
    civitai = stack.enter_context(FakeCivitai())
    sources.fill(work, hub, civitai)
    hosts = (hub.host, civitai.host, civitai.cdn_host)

    say("2. Start the API server, the operator and the gateway")
    env = {
        "HF_ENDPOINT": hub.url,
        "SD_OPERATOR_CIVITAI_ENDPOINT": civitai.url,
        "SD_OPERATOR_TRAINED_URL_TEMPLATE": sources.trained_template(hub.url),
    }
    kubeconfig = stack.enter_context(standalone(work, hosts, env))
    env = {
        "KUBECONFIG": str(kubeconfig),
        "HF_ENDPOINT": hub.url,
        "SD_GATEWAY_ALLOWED_HOSTS": ",".join(hosts),
        "SD_GATEWAY_CIVITAI_ENDPOINT": civitai.url,
    }
    url, key = stack.enter_context(gateway(work, env))

    say("3. Load the models with kubectl")
    kubectl = Kubectl(kubeconfig)
    manifest = work / "models.json"
    manifest.write_text(json.dumps(resources(), indent=2))
    kubectl.show("apply", "-f", str(manifest))

    print_ways(url, key, kubeconfig)
    check(kubectl)
    say("All models are as they should be. Press Ctrl-C to stop.")
    with contextlib.suppress(KeyboardInterrupt):
        signal.pause()


@contextlib.contextmanager
def gateway(work: Path, env: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Run the gateway until the context ends; yield its address and the API key."""
    key, line = kept_key(Path(sys.prefix) / "demo-key")
    keys_file = work / "keys"
    keys_file.write_text(f"{line}\n")
    port = free_port(PORT)
    if port != PORT:
        print(f"    Port {PORT} is in use, so the gateway takes port {port}.")
    url = f"http://127.0.0.1:{port}"
    own = {
        "SD_GATEWAY_BIND_ADDRESS": "127.0.0.1",
        "SD_GATEWAY_KEYS_FILE": str(keys_file),
        "SD_GATEWAY_METRICS_PORT": "0",
        "SD_GATEWAY_PORT": str(port),
        "SD_GATEWAY_PROBES_PORT": "0",
        "SD_GATEWAY_PUBLIC_URL": url,
        "SD_GATEWAY_STORE": str(work / "store"),
    }
    command = ("sd-gateway", "run")
    is_ready = partial(answers, f"{url}/healthz")
    with running(command, work / "gateway.log", {**env, **own}, until=is_ready):
        yield url, key


def print_ways(url: str, key: str, kubeconfig: Path) -> None:
    """Print what the user can do now."""
    say("Open the gallery and log in with the key")
    print(f"""\
    {url}/gallery/
    {key}

    Its models are loading; the page follows them. {sources.SLOW_MODEL} takes ten minutes, and
    {sources.FAILED_MODEL} fails, so that you see how a load and a failure look.""")
    say("Load a model yourself: paste one of these links")
    print(f"""\
    {url}/gallery/load

    {sources.civitai_link(sources.TO_PASTE):<50}  a LoRA
    {sources.REPO_TO_PASTE:<50}  a repo
    {sources.GATED_REPO:<50}  a repo that needs a token

    Stand-ins on this machine answer for civitai.com and huggingface.co: only the demo's own models
    are there.""")
    say("Or use the API and kubectl")
    print(f"""\
    {url}/docs
    curl -sS {url}/api/v1/enterprise/get_all_models -d '{{"key":"{key}"}}'
    KUBECONFIG={kubeconfig} {relative(kubectl_path())} get sdm -w
""")


def resources() -> dict[str, Any]:
    """Return the manifest of all models."""
    items = [
        {
            "apiVersion": names.API_VERSION,
            "kind": names.KIND,
            "metadata": {"name": name},
            "spec": spec,
        }
        for name, spec in sources.specs().items()
    ]
    return {"apiVersion": "v1", "kind": "List", "items": items}


def check(kubectl: Kubectl) -> None:
    """Wait until every model of the demo has the expected state."""
    deadline = time.monotonic() + LOADED_SECONDS
    while waiting := unsettled(kubectl.models()):
        expect(
            time.monotonic() < deadline,
            f"after {LOADED_SECONDS} s these models are not as they should be: "
            + ", ".join(waiting),
        )
        time.sleep(1)


def unsettled(models: Mapping[str, dict[str, Any]]) -> list[str]:
    """Return the demo's models that are not in their expected state yet.

    A model that the user has deleted in the gallery is not among them.
    """
    return [
        name for name in sources.specs() if name in models and not is_settled(name, models[name])
    ]


def is_settled(name: str, model: dict[str, Any]) -> bool:
    """Return whether the model is in its expected state; raise DemoError if it cannot get there."""
    if name == sources.FAILED_MODEL:
        return bool(condition(model, ConditionType.STALLED))
    has_loaded = is_ready(model)
    if name == sources.SLOW_MODEL:
        return bool(condition(model, ConditionType.RECONCILING))
    return has_loaded


def kept_key(path: Path) -> tuple[str, str]:
    """Return an API key and its line for the key file: those of the last run, or new ones.

    The key is random: any web page that the user visits could send a key that everybody knows.
    """
    if path.exists() and len(words := path.read_text().split()) == 2:
        return words[0], words[1]
    key, line = keys.new("default", "demo")
    try:
        path.touch(mode=0o600)
        path.write_text(f"{key} {line}\n")
    except OSError as error:
        print(f"    Each run has a new key, because {path} cannot be written: {error.strerror}")
    return key, line


def free_port(wanted: int) -> int:
    """Return a free port of loopback: the wanted one, or any other if it is in use."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", wanted))
        except OSError:
            return free_port(0)
        port: int = listener.getsockname()[1]
        return port


def answers(url: str) -> bool:
    """Return whether a server answers at the url with status 200."""
    try:
        with urlopen(url, timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False
