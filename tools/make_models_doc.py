"""Write the table in docs/models.md from the rows (ROWS) of the tests.

python -m tools.make_models_doc
"""

from __future__ import annotations

import importlib
import re
from itertools import groupby
from pathlib import Path

from sd_api.choices import ModelType
from tests.support.models.catalog import Row

ROOT = Path(__file__).resolve().parent.parent
TESTS = ROOT / "tests"
DOC = ROOT / "docs" / "models.md"
BEGIN, END = "<!-- made by tools/make_models_doc.py -->\n", "<!-- end -->\n"


def rows() -> list[Row]:
    """Return the rows of all test modules that have ROWS, sorted by model type."""
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in sorted(TESTS.rglob("test_*.py"))
        if re.search(r"^ROWS\b", path.read_text(), re.MULTILINE)
    ]
    found = [row for name in modules for row in importlib.import_module(name).ROWS]
    order = list(ModelType)
    return sorted(found, key=lambda row: (order.index(ModelType(row.model_type)), _family(row)))


def _family(row: Row) -> tuple[str, str, str]:
    return row.architecture, row.peer, row.opens_with


def table() -> str:
    """Return a table with a line per model type and architecture, and the containers of each."""
    lines = [
        "| modelType | model | comes as | compared with diffusers' | opened by |",
        "|---|---|---|---|---|",
    ]
    for (model_type, family), group in groupby(
        rows(), key=lambda row: (row.model_type, _family(row))
    ):
        architecture, peer, opens_with = family
        containers = "; ".join(dict.fromkeys(_suffixed(row.container) for row in group))
        lines.append(
            f"| {model_type} | {architecture} | {containers} | `{peer}` | `{opens_with}` |"
        )
    return "\n".join(lines) + "\n"


def _suffixed(container: str) -> str:
    """Write a container as a file suffix (`ckpt` as `.ckpt`); leave other words unchanged."""
    return re.sub(r"^(safetensors|ckpt|pt|bin)\b", r".\1", container)


def rendered(text: str) -> str:
    """Return the document with its table up to date."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


if __name__ == "__main__":
    DOC.write_text(rendered(DOC.read_text()))
