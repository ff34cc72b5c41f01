"""Each command prints a script with which a shell completes it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest

from sd_api.completion import SHELLS
from sd_loader import arguments
from sd_operator import __main__ as operator
from sd_operator.gateway import __main__ as gateway

COMMANDS: dict[str, Callable[[list[str]], object]] = {
    "sd-loader": lambda words: arguments.parser().parse_args(words),
    "sd-operator": operator.main,
    "sd-gateway": gateway.main,
}
OPTIONS = {
    "sd-loader": ("--model-type", "custom_ckpt", "sweep"),
    "sd-operator": ("standalone", "--store"),
    "sd-gateway": ("new-key", "--id"),
}


def script(command: str, shell: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Return the script that a command prints for a shell."""
    with pytest.raises(SystemExit) as ended:
        COMMANDS[command](["--print-completion", shell])
    assert ended.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("shell", SHELLS)
def test_script_has_commands_options_and_choices(
    command: str, shell: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The script is made from the parser, so it always has the parser's options."""
    text = script(command, shell, capsys)
    for word in (command, *OPTIONS[command]):
        assert word.removeprefix("--") in text


def test_bash_completes_with_the_script(capsys: pytest.CaptureFixture[str]) -> None:
    """Bash offers commands, options, and the choices of an option."""
    lines = {
        "sd-loader ve": "verify",
        "sd-loader load --model-ty": "--model-type",
        "sd-loader load --model-type cus": "custom_ckpt",
    }
    code = script("sd-loader", "bash", capsys)
    code += "function _filedir() { :; }\nfunction_name=$(complete -p sd-loader)\n"
    code += "function_name=${function_name#*-F }; function_name=${function_name%% *}\n"
    for line in lines:
        code += f"COMP_WORDS=({line}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); COMPREPLY=()\n"
        code += 'COMP_LINE="${COMP_WORDS[*]}"; COMP_POINT=${#COMP_LINE}; COMP_TYPE=9\n'
        code += '$function_name; echo "${COMPREPLY[@]}"\n'
    shown = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True)
    assert [line.strip() for line in shown.stdout.splitlines()] == list(lines.values())


def test_completion_without_its_package_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The error names the extra to install."""
    monkeypatch.setitem(sys.modules, "shtab", None)
    with pytest.raises(SystemExit) as ended:
        gateway.main(["--print-completion", "bash"])
    assert ended.value.code == 1
    assert "pip install -c constraints.txt '.[shell]'" in capsys.readouterr().err


def test_unknown_shell_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """The message lists the shells."""
    with pytest.raises(SystemExit) as ended:
        gateway.main(["--print-completion", "dos"])
    assert ended.value.code == 2
    assert "bash" in capsys.readouterr().err
