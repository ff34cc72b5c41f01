"""Write the parts of docs/ that come from the code: `make docs`.

Each part stands between two comments of a page; the rest of the page is written by hand. Meanings
are docstrings: that of an enum's member or a dataclass's field stands below it.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterable
from enum import StrEnum
from pathlib import Path

from sd_api.reasons import EventReason, ReadyReason, Reason, Retry, WebhookReason
from sd_api.status import ConditionType

DOCS = Path(__file__).resolve().parent.parent / "docs"
TRIED_AGAIN = {
    Retry.NEVER: "no",
    Retry.ON_CHANGE: "when the spec or the reload annotation changes",
    Retry.RESYNC: "by itself, at growing intervals",
}


def attribute_docs(cls: type) -> dict[str, str]:
    """The docstrings below the attributes of a class, as one line each."""
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    assert isinstance(body, ast.ClassDef)
    docs = {}
    for statement, following in zip(body.body, body.body[1:], strict=False):
        match statement, following:
            case (
                ast.Assign(targets=[ast.Name(name)]) | ast.AnnAssign(target=ast.Name(name)),
                ast.Expr(ast.Constant(str(text))),
            ):
                docs[name] = " ".join(text.split())
    return docs


def table(titles: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table; a placeholder like <name> is no HTML tag."""
    titles = tuple(titles)
    lines = [titles, ["---"] * len(titles), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines).replace("<", r"\<")


def meanings(title: str, enum: type[StrEnum]) -> str:
    """The members of an enum with their meaning."""
    docs = attribute_docs(enum)
    return table((title, "Meaning"), ((member.value, docs[member.name]) for member in enum))


def retries() -> str:
    """The retry rules."""
    return meanings("Retry", Retry)


def reasons() -> str:
    """The reasons of failures, with all that is known about them."""
    docs = attribute_docs(Reason)
    rows = ((it.value, docs[it.name], it.retry.value, it.remedy) for it in Reason)
    return table(("Reason", "Meaning", "Retry", "Remedy"), rows)


def remedies() -> str:
    """The reasons of failures, for somebody who has one."""
    rows = ((it.value, it.remedy, TRIED_AGAIN[it.retry]) for it in Reason)
    return table(("Reason", "What to do", "Tried again"), rows)


PARTS: dict[str, dict[str, Callable[[], str]]] = {
    "api.md": {
        "conditions": lambda: meanings("Condition", ConditionType),
        "ready": lambda: meanings("Reason", ReadyReason),
        "webhook": lambda: meanings("Reason", WebhookReason),
        "retries": retries,
        "reasons": reasons,
        "events": lambda: meanings("Event", EventReason),
    },
    "troubleshooting.md": {"remedies": remedies},
}


def rendered(page: str) -> str:
    """A page as it should be now."""
    text = (DOCS / page).read_text()
    for name, part in PARTS[page].items():
        begin, end = f"<!-- {name}: made by `make docs` -->\n", f"<!-- end of {name} -->\n"
        before, found_begin, rest = text.partition(begin)
        _, found_end, after = rest.partition(end)
        if not (found_begin and found_end):
            raise ValueError(f"docs/{page} needs the lines {begin.strip()} and {end.strip()}")
        text = f"{before}{begin}{part()}{end}{after}"
    return text


def main() -> None:
    """Write all pages."""
    for page in PARTS:
        (DOCS / page).write_text(rendered(page))


if __name__ == "__main__":
    main()
