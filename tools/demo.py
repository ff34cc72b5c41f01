"""`make demo`: two models loaded end to end on this machine, without a cluster and without torch.

The demo runs the product itself: a real kubectl talks to the standalone server, the operator runs
in its own process, each Job runs the loader as a process, and the operator calls a webhook. Only
the models are made up: they have the structure of Stable Diffusion 1.5 with few, random weights.
The exit code is 0 only if every step succeeds.
"""

from __future__ import annotations

import argparse
import contextlib
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
from sd_loader.digests import blake3_of, folder_digest
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
    """Run the demo and return its exit code."""
    parser = argparse.ArgumentParser(description="Load two models end to end on this machine.")
    parser.add_argument(
        "--keep", action="store_true", help="keep the servers and the gateway running until Ctrl-C"
    )
    keep = parser.parse_args().keep
    for signum in (signal.SIGINT, signal.SIGTERM):  # SIGTERM must stop the servers too
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
    say("The demo succeeded: every step was checked. Its processes and files are gone.")
    return 0


class DemoError(Exception):
    """A step of the demo failed."""


def demo(work: Path, stack: contextlib.ExitStack, *options: str) -> None:
    """Make two models, serve them, load them and show the result."""
    say("1. Make a small SD 1.5 checkpoint and a Hub repo with the same model")
    hub = stack.enter_context(FakeHub())
    make_sources(work, hub)

    say("2. Start the standalone server with the operator in its own process")
    key = "whsec_" + secrets.token_urlsafe(32).translate(str.maketrans("-_", "+/"))[:40]
    receiver = stack.enter_context(WebhookReceiver(key))
    kubeconfig = stack.enter_context(standalone(work, hub, receiver, key, *options))
    kubectl = Kubectl(kubeconfig)

    say("3. Apply the models with kubectl")
    manifest = work / "models.yaml"
    manifest.write_text(MODELS.format(hub=hub.url, webhook=receiver.url))
    print(textwrap.indent(manifest.read_text(), "    "))
    kubectl.show("apply", "-f", str(manifest))

    say("4. Watch until both models are Ready: kubectl get sdm -w")
    models = kubectl.watch_until_ready(["demo-checkpoint", "demo-repo"])

    say("5. Show the loaded models, their files and their Events")
    kubectl.show("get", "sdm", "-o", "wide")
    for model in models:
        show_model(work / "store", model)
    kubectl.show("get", "events", "--field-selector", "involvedObject.kind=StableDiffusionModel")

    say("6. Show the webhook calls and verify their signatures")
    show_webhooks(receiver)

    say("7. Delete one model: its files are removed, the other model's files stay")
    kubectl.show("delete", "sdm", "demo-repo", "--timeout=60s")
    expect(not (work / "store" / "demo-repo").exists(), "the deleted model's folder is still there")
    expect((work / "store" / "demo-checkpoint").exists(), "the other model's folder is gone")

    say("Try it yourself")
    print(f"""\
    .venv-demo/bin/sd-operator standalone --store ./models --kubeconfig ./kubeconfig
    export KUBECONFIG=./kubeconfig
    {relative(kubectl_path())} apply -f examples/sd15.yaml
    {relative(kubectl_path())} get sdm -w
""")


def make_sources(work: Path, hub: FakeHub) -> None:
    """Serve a checkpoint at a link, and the diffusers repo that the loader makes from it."""
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
    """Run the standalone server until the demo ends; yield its kubeconfig."""
    kubeconfig = work / "kubeconfig"
    key_file = work / "webhook-key"
    key_file.write_text(key)
    command = [
        *script("sd-operator"),
        "standalone",
        *("--store", str(work / "store")),
        "--ephemeral",
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
            expect(
                process.poll() is None, "the standalone server exited before it wrote a kubeconfig"
            )
            expect(
                time.monotonic() < deadline,
                f"the standalone server wrote no kubeconfig in {DEADLINE_SECONDS} s",
            )
            time.sleep(0.1)
        yield kubeconfig
    finally:
        process.terminate()
        process.wait(30)


def show_gateway(log: Path) -> None:
    """Print the gateway's address and API key, and wait for Ctrl-C."""
    text = log.read_text()
    match = re.search(r"The gateway is at (\S+) .*\nAPI key: (\S+)", text)
    expect(match is not None, "the standalone server did not log the gateway's address and key")
    url, key = match.groups()
    say("The gateway is still running: open the gallery in a browser or call the API")
    print(f"""\
    {url}   (log in with the API key {key})
    {url}/docs
    curl -sS {url}/api/v1/enterprise/get_all_models -d '{{"key":"{key}"}}'
""")
    say("Press Ctrl-C to stop.")
    with contextlib.suppress(KeyboardInterrupt):
        signal.pause()


class Kubectl:
    """Runs a real kubectl against the standalone server."""

    def __init__(self, kubeconfig: Path) -> None:
        self._command = [str(kubectl_path()), f"--kubeconfig={kubeconfig}"]

    def show(self, *arguments: str) -> None:
        """Run a kubectl command; print the command and its output."""
        print(f"    $ kubectl {' '.join(arguments)}")
        print(textwrap.indent(run(*self._command, *arguments), "    "))

    def model(self, name: str) -> dict[str, Any]:
        """Return a model from the server."""
        model: dict[str, Any] = json.loads(run(*self._command, "get", "sdm", name, "-o", "json"))
        return model

    def watch_until_ready(self, names: list[str]) -> list[dict[str, Any]]:
        """Let `kubectl get sdm -w` print until every model is Ready; return the models."""
        watch = subprocess.Popen([*self._command, "get", "sdm", "-w"])
        try:
            deadline = time.monotonic() + DEADLINE_SECONDS
            while True:
                models = [self.model(name) for name in names]
                if all(is_ready(model) for model in models):
                    return models
                expect(
                    time.monotonic() < deadline,
                    f"the models were not Ready in {DEADLINE_SECONDS} s",
                )
                time.sleep(0.5)
        finally:
            watch.terminate()
            watch.wait(10)


def is_ready(model: dict[str, Any]) -> bool:
    """Return whether the model is Ready; raise DemoError if it is Stalled."""
    status = {
        condition["type"]: condition for condition in model.get("status", {}).get("conditions", [])
    }
    stalled = status.get(ConditionType.STALLED)
    if stalled is not None:
        raise DemoError(f"{model['metadata']['name']}: {stalled['reason']}: {stalled['message']}")
    return bool(status.get(ConditionType.READY, {}).get("status") == "True")


def show_model(store: Path, model: dict[str, Any]) -> None:
    """Print the files of a published folder and check its digest against the status."""
    artifact = model["status"]["artifact"]
    folder = store / artifact["path"]
    files = sorted(
        path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")
    )
    digest = folder_digest(
        {path.relative_to(folder).as_posix(): blake3_of(path.read_bytes()) for path in files}
    )
    expect(
        digest == artifact["digest"],
        f"the digest of {folder} differs from the digest in the status",
    )
    print(f"    {artifact['path']} -> {folder.readlink()}")
    for path in files:
        print(f"      {path.relative_to(folder)!s:<58}{size_of(path):>10}")
    print(
        f"      {artifact['pipelineClass']}, {artifact['baseModel']}, {artifact['precision']},"
        f" {artifact['size']}, digest {digest[:23]}… (matches the status)\n"
    )


def show_webhooks(receiver: WebhookReceiver) -> None:
    """Print the webhook calls; both models must have sent `model.loaded`."""
    wanted = {("model.loaded", "demo-checkpoint"), ("model.loaded", "demo-repo")}
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not wanted <= {(call.body["event"], call.body["model_id"]) for call in receiver.calls}:
        expect(
            time.monotonic() < deadline, "the webhook did not receive model.loaded for every model"
        )
        time.sleep(0.2)
    for call in receiver.calls:
        expect(call.verified, f"the signature of webhook call {call.id} is wrong")
        print(f"    {call.body['event']:<20} {call.body['model_id']:<18} {call.id}")


def run(*command: str | Path) -> str:
    """Run a command to its end and return its output; raise DemoError if it fails."""
    name, *arguments = (str(part) for part in command)
    done = subprocess.run(
        [*script(name), *arguments], capture_output=True, text=True, timeout=DEADLINE_SECONDS
    )
    expect(done.returncode == 0, f"{name} {' '.join(arguments)}\n{done.stdout}{done.stderr}")
    return done.stdout


def script(name: str) -> list[str]:
    """Return a program from this Python environment if it has it, else from PATH."""
    local = Path(sys.executable).parent / name
    return [str(local)] if local.exists() else [name]


def expect(truth: bool, otherwise: str) -> None:
    """Raise DemoError with the message `otherwise` if `truth` is false."""
    if not truth:
        raise DemoError(otherwise)


def say(text: str) -> None:
    """Print a heading."""
    print(f"\n\033[1m{text}\033[0m" if sys.stdout.isatty() else f"\n{text}", flush=True)


def size_of(path: Path) -> str:
    """Return a file's size as readable text."""
    size = path.stat().st_size
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"


def relative(path: Path) -> Path:
    """Return a path relative to the working directory if it lies below it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


if __name__ == "__main__":
    sys.exit(main())
