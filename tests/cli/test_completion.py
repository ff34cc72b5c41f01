"""The shell completes `kubectl sdm`, and a command whose packages are missing names the extra."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from sd_operator.cli import completion
from tests.support.paths import ROOT

COMMANDS = ["doctor", "list", "logs", "reload", "status"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([""], COMMANDS),
        (["l"], ["list", "logs"]),
        (["-n", "art", "st"], ["status"]),
        (["--na"], ["--namespace"]),
        (["list", "--all"], ["--all-namespaces"]),
        (["doctor", ""], []),
    ],
)
def test_commands_and_options_are_completed(words: list[str], expected: list[str]) -> None:
    """The last word may be empty or half typed."""
    assert completion.candidates(words) == expected


KUBECTL = """#!/bin/sh
[ "$3 $4" = "-n art" ] || exit 1
echo stablediffusionmodel.sd-operator.dev/sketch
echo stablediffusionmodel.sd-operator.dev/style
"""


def test_names_of_models_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The names come from the namespace that the earlier words name."""
    (tmp_path / "kubectl").write_text(KUBECTL)
    (tmp_path / "kubectl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert completion.candidates(["status", "-n", "art", "sk"]) == ["sketch"]
    assert completion.candidates(["logs", "-f", "-n", "art", ""]) == ["sketch", "style"]
    assert completion.candidates(["status", ""]) == []


def test_output_is_what_kubectl_expects(capsys: pytest.CaptureFixture[str]) -> None:
    """The last line tells the shell not to offer files."""
    assert completion.main(["relo"]) == 0
    assert capsys.readouterr().out == "reload\n:4\n"


def package_of(command: str) -> str:
    """Return the package that has the command."""
    return "sd_loader" if command == "loader" else "sd_operator"


@pytest.mark.parametrize(
    ("command", "package", "extra"),
    [
        ("plugin", "typer", "cli"),
        ("completion", "rich", "cli"),
        ("loader", "httpx2", "loader"),
    ],
)
def test_command_without_its_packages_names_the_extra(
    command: str, package: str, extra: str, tmp_path: Path
) -> None:
    """Without its packages, the command names the extra to install instead of a traceback."""
    link = ["--url", "https://example.com/model", "--model-id", "m", "--store", str(tmp_path)]
    arguments = ["x", "load", *link]
    code = (
        f"import sys; sys.modules['{package}'] = None; sys.argv = {arguments};"
        f" from {package_of(command)}.start import {command}; sys.exit({command}())"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1
    assert ended.stderr.count("\n") == 1
    assert f"the package {package} is not installed" in ended.stderr
    assert f"pip install -c constraints.txt '.[{extra}]'" in ended.stderr


@pytest.mark.parametrize(
    "module", ["sd_operator", "sd_operator.gateway", "sd_operator.cli", "sd_loader"]
)
def test_every_command_prints_its_version(module: str) -> None:
    """The version is that of the installed distribution."""
    ended = subprocess.run(
        [sys.executable, "-m", module, "--version"], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.split()[-1] == version("sd-operator")
