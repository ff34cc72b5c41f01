"""Every public name in the operator has one meaning."""

from __future__ import annotations

import ast
from collections import defaultdict

from tests.support.paths import ROOT

WINGS = ("runtime", "reconciler", "rules", "resources", "clients", "base")


def test_no_two_modules_define_one_name() -> None:
    """No public function or class of one module shares its name with one of another module."""
    found = defaultdict(list)
    for wing in WINGS:
        for path in (ROOT / "operator/sd_operator" / wing).rglob("*.py"):
            for node in ast.parse(path.read_text()).body:
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                    found[node.name].append(f"{wing}/{path.name}")
    twice = {
        name: paths for name, paths in found.items() if len(paths) > 1 and not name.startswith("_")
    }
    assert twice == {}
