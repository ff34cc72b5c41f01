"""Write the tables in docs/models.md: from the rows (ROWS) of the tests, and from the taxonomy.

python -m tools.make_models_doc
"""

from __future__ import annotations

import importlib
import re
from itertools import groupby
from pathlib import Path

from sd_api.choices import PIPELINES, ModelType
from sd_api.taxonomy import FAMILIES, LOADED
from tests.support.models.catalog import Row

ROOT = Path(__file__).resolve().parent.parent
TESTS = ROOT / "tests"
DOC = ROOT / "docs" / "models.md"
BEGIN, END = "<!-- made by tools/make_models_doc.py -->\n", "<!-- end -->\n"
FAMILIES_BEGIN = "<!-- families: made by tools/make_models_doc.py -->\n"


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


def families_table() -> str:
    """Return a table with a line per family: names, variants, and the types of other models."""
    lines = [
        "| baseModel | family | variant | other types |",
        "|---|---|---|---|",
    ]
    for name, family in FAMILIES.items():
        variants = "; ".join(f"`{value}`: {what}" for value, what in family.variants.items())
        types = [kind for kind in ModelType if kind not in PIPELINES and name in LOADED[kind]]
        lines.append(f"| `{name}` | {family.title} | {variants} | {', '.join(types)} |")
    return "\n".join(lines) + "\n"


def _suffixed(container: str) -> str:
    """Write a container as a file suffix (`ckpt` as `.ckpt`); leave other words unchanged."""
    return re.sub(r"^(safetensors|ckpt|pt|bin)\b", r".\1", container)


def rendered(text: str) -> str:
    """Return the document with its tables up to date."""
    for begin, content in ((BEGIN, table()), (FAMILIES_BEGIN, families_table())):
        before, _, rest = text.partition(begin)
        _, _, after = rest.partition(END)
        text = f"{before}{begin}\n{content}\n{END}{after}"
    return text


if __name__ == "__main__":
    DOC.write_text(rendered(DOC.read_text()))
