"""docs/settings.md lists every variable of operator, gateway and loader, with its default."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sd_loader import settings as loader
from sd_operator.base import settings as operator
from sd_operator.gateway import settings as gateway
from tests.support.environment import Recorder
from tests.support.paths import ROOT

PAGE = (ROOT / "docs" / "settings.md").read_text()
OF_KUBERNETES = {"KUBERNETES_SERVICE_HOST"}
"""Kubernetes sets these in every Pod."""


@dataclass(frozen=True)
class Program:
    """A program, the function that reads its settings, and its required variables."""

    title: str
    prefix: str
    from_env: Callable[[Mapping[str, str]], Any]
    required: Mapping[str, str]

    def __str__(self) -> str:
        return self.title

    @property
    def section(self) -> str:
        """Return the program's section of the page."""
        return PAGE.partition(f"\n## {self.title}\n")[2].partition("\n## ")[0]


LOADER = Program("Loader", "SD_LOADER_", loader.Settings.from_env, {})
PROGRAMS = [
    Program("Operator", operator.PREFIX, operator.Settings.from_env, {}),
    Program(
        "Gateway",
        gateway.PREFIX,
        gateway.GatewaySettings.from_env,
        {"SD_GATEWAY_KEYS_FILE": "keys"},
    ),
]


@pytest.fixture
def kubeconfig(tmp_path: Path) -> dict[str, str]:
    """Return an environment whose KUBECONFIG names an existing file."""
    path = tmp_path / "kubeconfig"
    path.touch()
    return {"KUBECONFIG": str(path)}


@pytest.mark.parametrize("program", [*PROGRAMS, LOADER], ids=str)
def test_the_page_has_every_variable_that_is_read(
    program: Program, kubeconfig: dict[str, str]
) -> None:
    """The program's section lists exactly the variables that the program reads."""
    env = Recorder({**kubeconfig, **program.required})
    program.from_env(env)
    documented = set(re.findall(r"`([A-Z_]{6,}|[a-z]+_proxy)`", program.section))
    assert documented == env.asked - OF_KUBERNETES


@pytest.mark.parametrize("program", PROGRAMS, ids=str)
def test_the_page_has_the_defaults(program: Program, kubeconfig: dict[str, str]) -> None:
    """Defaults are compared if the variable is named like its field and is a word or a number."""
    settings = program.from_env({**kubeconfig, **program.required})
    rows = re.findall(
        rf"^\| `{program.prefix}([A-Z_]+)` \| (\S+) \|", program.section, re.MULTILINE
    )
    defaults = dict(vars(settings))
    if isinstance(settings, operator.Settings):
        defaults |= vars(settings.loader)
    checked = 0
    for name, shown in rows:
        value = defaults.get(name.lower())
        if isinstance(value, str | int | float) and not isinstance(value, bool):
            assert type(value)(shown) == value, name
            checked += 1
    assert checked >= 8


def test_the_page_has_the_defaults_of_the_loader() -> None:
    """These defaults apply to loads by hand; in Jobs, the operator passes its own values."""
    rows = dict(re.findall(r"^\| `([A-Z_]+)`.*? \| (\S*) ?\|", LOADER.section, re.MULTILINE))
    settings = loader.Settings()
    assert rows["SD_LOADER_MAX_BYTES"] == str(settings.max_bytes)
    assert rows["SD_LOADER_RETAIN_PREVIOUS_SECONDS"] == str(settings.retain_previous_seconds)
    assert rows["SD_LOADER_CREDENTIALS_DIR"] == str(settings.credentials_dir)
    assert rows["HF_ENDPOINT"] == settings.hub_endpoint
    assert rows["SD_LOADER_POD"] == ""
