"""Stands in for the loader in tests of Jobs and of the operator; spec.url says what it does.

The url is a list of steps: `fetch.exit=3 convert.say=done convert.sleep=60`. A container ignores
the steps of the other container. It writes `say` as its termination message, or else a JSON object
that describes its environment.

A link such as `https://models.example.com/m?seconds=0.2` is "loaded" in that time: the folder, the
link to it and the result are created as the loader creates them, and `remove` deletes them. Each
load that does work adds a letter to `loads/<model>-<loadHash>`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

MARKS = "loads"
"""The folder of a volume that has a file for each model and loadHash, with a letter per load."""
ARTIFACT = {
    "digest": "blake3:" + "ab" * 32,
    "sizeBytes": 2_100_000_000,
    "files": 1,
    "baseModel": "sd-1",
    "pipelineClass": "StableDiffusionPipeline",
    "precision": "fp16",
}


def answer(text: str) -> None:
    """Write the termination message."""
    Path(os.environ["SD_LOADER_TERMINATION_LOG"]).write_text(text)


def stand_in(command: str, request: dict[str, Any], store: Path) -> None:
    """Fetch, convert or remove, with the effects that the operator can see."""
    home = store / ".store" / request["owner"]["uid"]
    link = store / request["modelId"]
    if command == "remove":
        if link.is_symlink() and link.resolve().is_relative_to(home.resolve()):
            link.unlink()
        shutil.rmtree(home, ignore_errors=True)
        answer('{"outcome": "removed"}')
    elif command == "fetch":
        answer('{"outcome": "fetched"}')
    else:
        folder = home / request["loadHash"]
        if not folder.exists():
            load(request, folder, link.parent)
        publish(folder, link)
        source = {"sizeBytes": 2_000_000_000, "format": "safetensors"}
        answer(json.dumps({"outcome": "loaded", "artifact": ARTIFACT, "source": source}))


def load(request: dict[str, Any], folder: Path, store: Path) -> None:
    """Wait as long as the url says, then record the load and create its folder."""
    seconds = parse_qs(urlsplit(request["url"]).query).get("seconds", ["0"])[0]
    time.sleep(float(seconds))
    marks = store / MARKS
    marks.mkdir(exist_ok=True)
    with (marks / f"{request['owner']['name']}-{request['loadHash']}").open("a") as mark:
        mark.write("x")
    folder.mkdir(parents=True)
    (folder / "model_index.json").write_text(request["url"])


def publish(folder: Path, link: Path) -> None:
    """Point the model's link at a folder."""
    made = folder.with_suffix(".link")
    made.unlink(missing_ok=True)
    made.symlink_to(folder.relative_to(link.parent))
    made.replace(link)


def follow(command: str, url: str, store: Path) -> int:
    """Do the steps of this container and return its exit code."""
    steps = [step.partition("=") for step in url.split()]
    mine = {
        name.partition(".")[2]: value for name, _, value in steps if name.startswith(f"{command}.")
    }
    secret = Path(os.environ.get("SD_LOADER_CREDENTIALS_DIR", "/nonexistent")) / "token"
    found = {
        "command": command,
        "store": str(store),
        "home": os.environ.get("HOME"),
        "home_exists": Path(os.environ.get("HOME", "/nonexistent")).is_dir(),
        "pod": os.environ.get("SD_LOADER_POD"),
        "variables": sorted(os.environ),
        "token": secret.read_text() if secret.exists() else None,
        "mode": oct(secret.stat().st_mode & 0o777) if secret.exists() else None,
    }
    say = partial(print, flush=True)  # tests of logs read this output
    say(f"{command} begins")
    if "touch" in mine:
        (store / mine["touch"]).touch()
    if "child" in mine:
        script = f"import time; time.sleep({mine['child']})"
        child = subprocess.Popen([sys.executable, "-c", script])
        (store / "child.pid").write_text(str(child.pid))
    time.sleep(float(mine.get("sleep", 0)))
    say(f"{command} ends")
    answer(mine.get("say") or json.dumps(found))
    return int(mine.get("exit", 0))


def main() -> int:
    """Read the command line as the loader does, and run the command."""
    command, _, text, _, store = sys.argv[1:]
    request = json.loads(text)
    if command != "remove" and not request["url"].startswith("https://"):
        return follow(command, request["url"], Path(store))
    stand_in(command, request, Path(store))
    return 0


if __name__ == "__main__":
    sys.exit(main())
