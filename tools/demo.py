"""`make demo`: two models loaded end to end on this machine, without a cluster and without torch.

What runs is the product: a real kubectl against the standalone server, the operator in its own
process, the loader as the Jobs' processes, and a webhook. Only the models are made up: the
structure is that of Stable Diffusion 1.5, the weights are few and random. The exit code is 0 only
if every step was seen to happen.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from devkit.fakehub import FakeHub
from devkit.tiny import write_checkpoint
from devkit.webhook_receiver import WebhookReceiver
from sd_api.status import ConditionType
from tools.kubectl import kubectl_path

ROOT = Path(__file__).resolve().parent.parent
BYTES_PER_SECOND = 4_000_000
DEADLINE_SECONDS = 90

MODELS = """\
apiVersion: sd-operator.dev/v1alpha1
kind: StableDiffusionModel
metadata:
  name: demo-checkpoint
spec:
  url: {hub}/download/demo-checkpoint.safetensors
  modelType: custom_ckpt
  webhook: {webhook}
---
apiVersion: sd-operator.dev/v1alpha1
kind: StableDiffusionModel
metadata:
  name: demo-repo
spec:
  url: demo/tiny-stable-diffusion
  revision: fp32
  webhook: {webhook}
"""


def main() -> int:
    """Run the demo; returns the exit code."""
    parser = argparse.ArgumentParser(description="Loads two models end to end on this machine.")
    parser.add_argument(
        "--keep", action="store_true", help="go on in the browser afterwards, until Ctrl-C"
    )
    keep = parser.parse_args().keep
    for signum in (signal.SIGINT, signal.SIGTERM):  # whoever ends it, its servers end with it
        signal.signal(signum, signal.default_int_handler)
    with contextlib.ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sd-demo-")))
        try:
            demo(work, stack, *(["--gateway"] if keep else []))
            if keep:
                show_gateway(work / "standalone.log")
        except DemoError as error:
            print(f"\nThe demo failed: {error}", file=sys.stderr)
            for log in sorted(work.glob("*.log")):
                print(f"\n--- {log.name}\n{log.read_text()[-4000:]}", file=sys.stderr)
            return 1
    say("Everything above really happened. Nothing was left running.")
    return 0


class DemoError(Exception):
    """A step that did not happen."""


def demo(work: Path, stack: contextlib.ExitStack, *options: str) -> None:
    """Make models, serve them, load them, look at the result."""
    say("1. Making a small SD 1.5 checkpoint, and a Hub repo of it")
    hub = stack.enter_context(FakeHub())
    make_sources(work, hub)

    say("2. Starting the standalone server, with the operator in its own process")
    key = "whsec_" + secrets.token_urlsafe(32).translate(str.maketrans("-_", "+/"))[:40]
    receiver = stack.enter_context(WebhookReceiver(key))
    kubeconfig = stack.enter_context(standalone(work, hub, receiver, key, *options))
    kubectl = Kubectl(kubeconfig)

    say("3. kubectl apply -f models.yaml")
    manifest = work / "models.yaml"
    manifest.write_text(MODELS.format(hub=hub.url, webhook=receiver.url))
    print(textwrap.indent(manifest.read_text(), "    "))
    kubectl.show("apply", "-f", str(manifest))

    say("4. kubectl get sdm -w")
    models = kubectl.watch_until_ready(["demo-checkpoint", "demo-repo"])

    say("5. The result")
    kubectl.show("get", "sdm", "-o", "wide")
    for model in models:
        show_model(work / "store", model)
    kubectl.show("get", "events", "--field-selector", "involvedObject.kind=StableDiffusionModel")

    say("6. The webhook's calls, their signatures verified")
    show_webhooks(receiver)

    say("7. kubectl delete sdm demo-repo: its files go, and nobody else's")
    kubectl.show("delete", "sdm", "demo-repo", "--timeout=60s")
    expect(not (work / "store" / "demo-repo").exists(), "the deleted model's folder is still there")
    expect((work / "store" / "demo-checkpoint").exists(), "the other model's folder is gone")

    say("How to go on by hand")
    print(f"""\
    .venv-demo/bin/sd-operator standalone --store ./models --kubeconfig ./kubeconfig
    export KUBECONFIG=./kubeconfig
    {relative(kubectl_path())} apply -f examples/sd15.yaml
    {relative(kubectl_path())} get sdm -w
""")


def make_sources(work: Path, hub: FakeHub) -> None:
    """A checkpoint behind a link, and a diffusers repo made of it by the loader itself."""
    checkpoint = work / "demo-checkpoint.safetensors"
    write_checkpoint(checkpoint)
    hub.serve_file("/download/demo-checkpoint.safetensors", checkpoint, rate=BYTES_PER_SECOND)
    run("sd-loader", "load", "--url", checkpoint, "--model-id", "repo", "--store", work / "made")
    repo = work / "repo"
    shutil.copytree(work / "made" / "repo", repo, ignore=shutil.ignore_patterns(".*"))
    hub.add_repo("demo/tiny-stable-diffusion", repo, rate=BYTES_PER_SECOND)
    print(f"    {hub.url}/download/demo-checkpoint.safetensors  {size_of(checkpoint)}")
    print(f"    {hub.url}/demo/tiny-stable-diffusion")


@contextlib.contextmanager
def standalone(
    work: Path, hub: FakeHub, receiver: WebhookReceiver, key: str, *options: str
) -> Iterator[Path]:
    """The server, until the demo ends; yields the kubeconfig."""
    kubeconfig = work / "kubeconfig"
    key_file = work / "webhook-key"
    key_file.write_text(key)
    command = [
        *script("sd-operator"),
        "standalone",
        *("--store", str(work / "store")),
        *("--kubeconfig", str(kubeconfig)),
        *("--allowed-hosts", f"{hub.host},{receiver.host}"),
        *options,
    ]
    env = {**os.environ, "HF_ENDPOINT": hub.url, "SD_OPERATOR_WEBHOOK_KEY_FILE": str(key_file)}
    with (work / "standalone.log").open("w") as log:
        process = subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not kubeconfig.exists():
            expect(process.poll() is None, "the standalone server ended")
            expect(time.monotonic() < deadline, "the standalone server did not start")
            time.sleep(0.1)
        yield kubeconfig
    finally:
        process.terminate()
        process.wait(30)


def show_gateway(log: Path) -> None:
    """Say where the gateway is, and wait until the person has seen enough."""
    text = log.read_text()
    told = re.search(r"The gateway is at (\S+) .*\nAPI key: (\S+)", text)
    expect(told is not None, "standalone did not tell of its gateway")
    url, key = told.groups()
    say("The gateway goes on: the models in a browser, and the vendor's API")
    print(f"""\
    {url}   log in with the key {key}
    {url}/docs
    curl -sS {url}/api/v1/enterprise/get_all_models -d '{{"key":"{key}"}}'
""")
    say("Ctrl-C ends it.")
    with contextlib.suppress(KeyboardInterrupt):
        signal.pause()


class Kubectl:
    """A real kubectl on the standalone server."""

    def __init__(self, kubeconfig: Path) -> None:
        self._command = [str(kubectl_path()), f"--kubeconfig={kubeconfig}"]

    def show(self, *arguments: str) -> None:
        """Run a command and show what it prints."""
        print(f"    $ kubectl {' '.join(arguments)}")
        print(textwrap.indent(run(*self._command, *arguments), "    "))

    def model(self, name: str) -> dict[str, Any]:
        """One model as the server has it."""
        model: dict[str, Any] = json.loads(run(*self._command, "get", "sdm", name, "-o", "json"))
        return model

    def watch_until_ready(self, names: list[str]) -> list[dict[str, Any]]:
        """Let `kubectl get sdm -w` print until every model is Ready."""
        watch = subprocess.Popen([*self._command, "get", "sdm", "-w"])
        try:
            deadline = time.monotonic() + DEADLINE_SECONDS
            while True:
                models = [self.model(name) for name in names]
                if all(is_ready(model) for model in models):
                    return models
                expect(time.monotonic() < deadline, "the models are not Ready")
                time.sleep(0.5)
        finally:
            watch.terminate()
            watch.wait(10)


def is_ready(model: dict[str, Any]) -> bool:
    """Whether the condition Ready is True; a condition Stalled is an error."""
    status = {
        condition["type"]: condition for condition in model.get("status", {}).get("conditions", [])
    }
    stalled = status.get(ConditionType.STALLED)
    if stalled is not None:
        raise DemoError(f"{model['metadata']['name']}: {stalled['reason']}: {stalled['message']}")
    return bool(status.get(ConditionType.READY, {}).get("status") == "True")


def show_model(store: Path, model: dict[str, Any]) -> None:
    """Show a published folder, and check its digest against the status."""
    artifact = model["status"]["artifact"]
    folder = store / artifact["path"]
    files = sorted(
        path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")
    )
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(folder).as_posix()}\n"
        for path in files
    ]
    digest = hashlib.sha256("".join(sorted(lines, key=lambda line: line[66:])).encode()).hexdigest()
    expect(digest == artifact["digest"], f"{folder}: the digest is not the status's")
    print(f"    {artifact['path']} -> {folder.readlink()}")
    for path in files:
        print(f"      {path.relative_to(folder)!s:<58}{size_of(path):>10}")
    print(
        f"      {artifact['pipelineClass']}, {artifact['baseModel']}, {artifact['precision']},"
        f" {artifact['size']}, digest {digest[:16]}… as in the status\n"
    )


def show_webhooks(receiver: WebhookReceiver) -> None:
    """Show the calls; both models' model.loaded must be among them."""
    wanted = {("model.loaded", "demo-checkpoint"), ("model.loaded", "demo-repo")}
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not wanted <= {(call.body["event"], call.body["model_id"]) for call in receiver.calls}:
        expect(time.monotonic() < deadline, "the webhook was not called for every model")
        time.sleep(0.2)
    for call in receiver.calls:
        expect(call.verified, f"the signature of {call.id} is wrong")
        print(f"    {call.body['event']:<20} {call.body['model_id']:<18} {call.id}")


def run(*command: str | Path) -> str:
    """Run a command to its end; returns what it printed."""
    name, *arguments = (str(part) for part in command)
    done = subprocess.run(
        [*script(name), *arguments], capture_output=True, text=True, timeout=DEADLINE_SECONDS
    )
    expect(done.returncode == 0, f"{name} {' '.join(arguments)}\n{done.stdout}{done.stderr}")
    return done.stdout


def script(name: str) -> list[str]:
    """A command of this very environment, or of the system."""
    local = Path(sys.executable).parent / name
    return [str(local)] if local.exists() else [name]


def expect(truth: bool, otherwise: str) -> None:
    """Fail the demo unless this is true."""
    if not truth:
        raise DemoError(otherwise)


def say(text: str) -> None:
    """A heading."""
    print(f"\n\033[1m{text}\033[0m" if sys.stdout.isatty() else f"\n{text}", flush=True)


def size_of(path: Path) -> str:
    """A file's size for people."""
    size = path.stat().st_size
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"


def relative(path: Path) -> Path:
    """A path as seen from here, where it lies below."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


if __name__ == "__main__":
    sys.exit(main())
