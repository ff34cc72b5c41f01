"""`kubectl_complete-sdm`: completes `kubectl sdm` in the shell, as kubectl asks its plugins to.

kubectl runs this program with the words after `kubectl sdm`, of which the last is to be completed.
The program prints one candidate per line, and then `:4`, which tells the shell not to offer files.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import typer

from sd_operator.cli.__main__ import KIND, app, kubectl_options
from sd_operator.cli.kubectl import Kubectl, KubectlError

_WITHOUT_FILES = ":4"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the candidates for the last word."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    for candidate in candidates(words or [""]):
        print(candidate)
    print(_WITHOUT_FILES)
    return 0


def candidates(words: Sequence[str]) -> list[str]:
    """Return the candidates for the last word, which may be empty or half typed."""
    *before, last = words
    group = typer.main.get_group(app)
    command = next((group.commands[word] for word in before if word in group.commands), None)
    if last.startswith("-"):
        parameters = [*group.params, *(command.params if command else [])]
        found = [name for parameter in parameters for name in parameter.opts if name[:2] == "--"]
    elif command is None:
        found = list(group.commands)
    else:
        takes_a_model = any(parameter.name == "name" for parameter in command.params)
        found = _models(before) if takes_a_model else []
    return sorted(word for word in found if word.startswith(last))


def _models(words: Sequence[str]) -> list[str]:
    """Return the names of the models in the namespace of these words; empty if kubectl fails."""
    try:
        output = Kubectl().run("get", KIND, *kubectl_options(words)[0], "--output=name")
    except KubectlError:
        return []
    return [line.rpartition("/")[2] for line in output.split()]
