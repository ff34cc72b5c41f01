"""The short demo: it loads two models, shows and checks every step, and ends."""

from __future__ import annotations

import contextlib
import secrets
import textwrap
import time
from pathlib import Path
from typing import Any

from devkit.fakehub import FakeHub
from devkit.tiny import write_checkpoint
from devkit.webhook_receiver import WebhookReceiver
from sd_loader.digests import blake3_of, folder_digest
from tools.demo.processes import (
    DEADLINE_SECONDS,
    Kubectl,
    expect,
    is_ready,
    relative,
    say,
    standalone,
)
from tools.demo.sources import make_repo
from tools.kubectl import kubectl_path

BYTES_PER_SECOND = 4_000_000

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


def walk(work: Path, stack: contextlib.ExitStack) -> None:
    """Make two models, serve them, load them and show the result."""
    say("1. Make a small SD 1.5 checkpoint and a Hub repo with the same model")
    hub = stack.enter_context(FakeHub())
    make_sources(work, hub)

    say("2. Start the standalone server with the operator in its own process")
    key = "whsec_" + secrets.token_urlsafe(32).translate(str.maketrans("-_", "+/"))[:40]
    key_file = work / "webhook-key"
    key_file.write_text(key)
    receiver = stack.enter_context(WebhookReceiver(key))
    env = {"HF_ENDPOINT": hub.url, "SD_OPERATOR_WEBHOOK_KEY_FILE": str(key_file)}
    kubeconfig = stack.enter_context(standalone(work, (hub.host, receiver.host), env))
    kubectl = Kubectl(kubeconfig)

    say("3. Apply the models with kubectl")
    manifest = work / "models.yaml"
    manifest.write_text(MODELS.format(hub=hub.url, webhook=receiver.url))
    print(textwrap.indent(manifest.read_text(), "    "))
    kubectl.show("apply", "-f", str(manifest))

    say("4. Watch until both models are Ready: kubectl get sdm -w")
    models = watch_until_ready(kubectl)

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
    hub.add_repo("demo/tiny-stable-diffusion", make_repo(work, checkpoint), rate=BYTES_PER_SECOND)
    print(f"    {hub.url}/download/demo-checkpoint.safetensors  {size_of(checkpoint)}")
    print(f"    {hub.url}/demo/tiny-stable-diffusion")


def watch_until_ready(kubectl: Kubectl) -> list[dict[str, Any]]:
    """Let kubectl print the models until every model is Ready; return the models."""
    with kubectl.watching():
        deadline = time.monotonic() + DEADLINE_SECONDS
        while True:
            models = list(kubectl.models().values())
            if all(is_ready(model) for model in models):
                return models
            expect(
                time.monotonic() < deadline, f"the models were not Ready in {DEADLINE_SECONDS} s"
            )
            time.sleep(0.5)


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
    """Wait for `model.loaded` of both models; print all calls and check their signatures."""
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


def size_of(path: Path) -> str:
    """Return a file's size as readable text."""
    size = path.stat().st_size
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"
