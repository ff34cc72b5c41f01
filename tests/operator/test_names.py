"""Every public name in the operator has one meaning."""

from __future__ import annotations

import ast
from collections import defaultdict

from tests.support.paths import ROOT

CORE = ("runtime", "reconciler", "rules", "resources", "clients", "base")
SURFACES = ("gateway", "cli")
"""Functions here may share a name: they are called as in `session.read`, with their module."""


def twice(wings: tuple[str, ...], *kinds: type[ast.stmt]) -> dict[str, list[str]]:
    """Return the public names that more than one module of these folders defines."""
    found = defaultdict(list)
    for wing in wings:
        for path in (ROOT / "operator/sd_operator" / wing).rglob("*.py"):
            for node in ast.parse(path.read_text()).body:
                if isinstance(node, kinds):
                    found[node.name].append(f"{wing}/{path.name}")
    return {name: at for name, at in found.items() if len(at) > 1 and not name.startswith("_")}


def test_no_two_modules_define_one_class() -> None:
    """No public class of one module shares its name with a class of another module."""
    assert twice(CORE + SURFACES, ast.ClassDef) == {}


def test_no_two_modules_of_the_core_define_one_function() -> None:
    """No public function or class of one module shares its name with one of another module."""
    assert twice(CORE, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef) == {}
