"""Hub repos with code, false file lists or high costs are refused and never published."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from devkit.fakehub import FakeHub
from sd_api.reasons import Reason
from tests.support.formats.legacyfiles import Legacy
from tests.support.formats.torchfiles import archive
from tests.support.hostile.archives import FILES, INDEX
from tests.support.hostile.opcodes import EVIL
from tests.support.hostile.pickles import CODE
from tests.support.hostile.samples import DAMAGED, UNKNOWN, UNSAFE
from tests.support.loader.loaderbatch import Line, run_lines

MEMORY = 300 << 20
DEEP = b"[" * 900 + b"]" * 900 + b","


@dataclass(frozen=True)
class Repo:
    """A good repo with changes, and how the loader must refuse it."""

    says: str
    """A pattern that the message must match."""
    reason: Reason
    changed: Mapping[str, bytes | None] = field(default_factory=dict)
    """The changed contents by file name; None removes the file."""
    listed: tuple[str, ...] = ()
    """Further names in the Hub's file list."""

    def lay(self, folder: Path) -> Path:
        """Write the repo's files."""
        for name, content in {**FILES, **self.changed}.items():
            if content is not None:
                path = folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
        return folder


def index(**changed: object) -> dict[str, bytes | None]:
    """Return a model_index.json with these fields changed, and hostile code for it to name."""
    return {
        "model_index.json": json.dumps({**INDEX, **changed}).encode(),
        "payload.py": CODE.encode(),
        "unet/payload.py": CODE.encode(),
    }


def pickled(content: bytes) -> dict[str, bytes | None]:
    """Return this pickle as the file of the text encoder's weights."""
    return {
        "text_encoder/model.safetensors": None,
        "text_encoder/pytorch_model.bin": content,
    }


def config(**fields: object) -> dict[str, bytes | None]:
    """Return the text encoder's config with these fields."""
    return {"text_encoder/config.json": json.dumps(fields).encode()}


OWN, CUSTOM = "code of the repo's own", "custom pipeline"
REPOS = {
    "a component of its own": Repo(OWN, UNSAFE, index(unet=["payload", "UNet"])),
    "a component more": Repo(OWN, UNSAFE, index(extra=["payload", "Extra"])),
    "a dropped component of its own": Repo(OWN, UNSAFE, index(safety_checker=["payload", "X"])),
    "a component of os": Repo(OWN, UNSAFE, index(unet=["os", "system"])),
    "a component by a path": Repo(OWN, UNSAFE, index(unet=["../payload", "UNet"])),
    "a pipeline of its own": Repo(CUSTOM, UNSAFE, index(_class_name=["payload", "Mine"])),
    "a pipeline in a dictionary": Repo(CUSTOM, UNSAFE, index(_class_name={"payload": "Mine"})),
    "auto_map in its index": Repo("auto_map", UNSAFE, index(auto_map={"x": "payload.X"})),
    "auto_map in a config": Repo("auto_map", UNSAFE, config(auto_map={"x": "payload.X"})),
    "another class of diffusers": Repo(
        "not supported", UNKNOWN, index(unet=["diffusers", "DiffusionPipeline"])
    ),
    "a class with dots": Repo(
        "not supported", UNKNOWN, index(unet=["diffusers", "utils.os.system"])
    ),
    "a config that takes a terabyte": Repo(
        "vocab_size is 2147483648", Reason.CONVERSION_FAILED, config(vocab_size=1 << 31)
    ),
    "a nested config that takes a terabyte": Repo(
        "hidden_size is 2147483648",
        Reason.CONVERSION_FAILED,
        config(text_config={"hidden_size": 1 << 31}),
    ),
    "a quantized model": Repo("quantized", UNKNOWN, config(quantization_config={"x": 1})),
    "a bare pickle": Repo("a bare Python pickle", UNSAFE, pickled(EVIL)),
    "a pickle in a zip": Repo("posix.system", UNSAFE, pickled(archive(EVIL))),
    "a pickle of before 1.6": Repo("posix.system", UNSAFE, pickled(bytes(Legacy(content=EVIL)))),
    **{
        f"a file named {name!r}": Repo("unsafe name", UNSAFE, listed=(name,))
        for name in ("../x", "unet/../../x", "/etc/x", "a//b", "./a", "a\\b", "a\0b", "a/", "..")
    },
    "an index that is no JSON": Repo("not valid JSON", DAMAGED, {"model_index.json": b"{"}),
    "an index that is a list": Repo("not a JSON object", DAMAGED, {"model_index.json": b"[]"}),
    "an index nested deep": Repo(
        "nested more", DAMAGED, {"model_index.json": b'{"x":' + b"[" * 99 + b"]" * 99 + b"}"}
    ),
    "an index of 3.9 MB of lists": Repo(
        "nested more", DAMAGED, {"model_index.json": b'{"x":[' + DEEP * 2160 + b"0]}"}
    ),
    "an index of 5 MB": Repo("bytes", Reason.TOO_LARGE, {"model_index.json": b" " * (5 << 20)}),
    "a config of 5 MB": Repo("bytes", Reason.TOO_LARGE, {"vae/config.json": b" " * (5 << 20)}),
    "no index": Repo("neither a diffusers pipeline nor", UNKNOWN, {"model_index.json": None}),
    "one shard of two": Repo(
        "weights", UNKNOWN,
        {
            "unet/diffusion_pytorch_model.safetensors": None,
            "unet/diffusion_pytorch_model-00001-of-00002.safetensors": b"x",
        },
    ),
    "shards of two counts": Repo(
        "weights", UNKNOWN,
        {
            "unet/diffusion_pytorch_model.safetensors": None,
            "unet/diffusion_pytorch_model-00001-of-00002.safetensors": b"x",
            "unet/diffusion_pytorch_model-00002-of-00003.safetensors": b"x",
        },
    ),
}  # fmt: skip


@pytest.fixture
def hub():
    """A Hub on loopback."""
    with FakeHub() as server:
        yield server


@pytest.mark.parametrize(
    "repos",
    [
        pytest.param(dict(list(REPOS.items())[::8]), id="some"),
        pytest.param(REPOS, id="all", marks=pytest.mark.slow),
    ],
)
def test_a_hostile_repo_is_refused(tmp_path, hub, tally, repos):
    """The repo is refused for the right reason. No code runs, and no file stays on the volume.

    If the list of files has a hostile name, no file is downloaded.
    """
    lines = []
    for number, repo in enumerate(repos.values()):
        hub.add_repo(f"org/{number}", repo.lay(tmp_path / f"repo{number}"), extra_names=repo.listed)
        folder = tmp_path / f"work{number}"
        folder.mkdir()
        arguments = ["load", "--url", f"org/{number}", "--model-id", "m", "--store", "store"]
        lines.append(Line(folder, arguments))
    env = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "HF_ENDPOINT": hub.url,
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "SD_LOADER_ALLOWED_HOSTS": hub.host,
    }
    wrong = []
    runs = zip(repos.items(), lines, run_lines(lines, env), strict=True)
    for number, ((name, repo), line, ran) in enumerate(runs):
        said = re.search(rf"^error: {repo.reason.value}: (.*)$", ran.output, re.MULTILINE)
        if (
            said is None
            or not re.search(repo.says, said[1])
            or ran.code != repo.reason.exit_code
            or ran.memory > MEMORY
            or any((line.folder / "store").iterdir())
            or (line.folder / "canary").exists()
            or (repo.listed and any(path.startswith(f"org/{number}/") for path in hub.served))
        ):
            wrong.append(f"{name}: {ran.code}, {ran.memory >> 20} MB: {ran.output[-300:]}")
    assert not wrong, "\n".join(wrong)
    tally("hostile repos refused", len(repos))
