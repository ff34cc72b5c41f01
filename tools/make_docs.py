"""Write the parts of docs/ that come from the code: `make docs`.

Each generated part lies between two comments of a page; people write the rest of the page. A
meaning is the attribute docstring below the enum member or the setting. The environment variable of
a setting is the one that `from_env` reads for it.
"""

from __future__ import annotations

import ast
import inspect
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from enum import StrEnum
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

from sd_api.loader_env import LoaderEnv
from sd_api.logins import Logins
from sd_api.reasons import EventReason, ReadyReason, Reason, Retry, WebhookReason
from sd_api.spec import JobOverrides
from sd_api.status import ConditionType
from sd_loader import settings as loader
from sd_operator.base import settings as operator
from sd_operator.gateway import settings as gateway

DOCS = Path(__file__).resolve().parent.parent / "docs"
TRIED_AGAIN = {
    Retry.NEVER: "no",
    Retry.ON_CHANGE: "when the spec or the reload annotation changes",
    Retry.RESYNC: "by itself, at growing intervals",
}


def attribute_docs(cls: type) -> dict[str, str]:
    """Return the attribute docstrings of a class by name, each as one line."""
    docs = {}
    for statement, following in pairwise(source_of(cls).body):
        match statement, following:
            case (
                ast.Assign(targets=[ast.Name(name)]) | ast.AnnAssign(target=ast.Name(name)),
                ast.Expr(ast.Constant(str(text))),
            ):
                docs[name] = " ".join(text.split())
    return docs


def source_of(item: type | Callable[..., object]) -> ast.ClassDef | ast.FunctionDef:
    """Return the syntax tree of a class or function."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(item))).body[0]
    assert isinstance(tree, ast.ClassDef | ast.FunctionDef)
    return tree


def variables_of(cls: type, prefix: str) -> dict[tuple[type, str], list[str]]:
    """Return the variables that `from_env` reads, by the class and name of the field."""
    module = sys.modules[cls.__module__]
    found: dict[tuple[type, str], list[str]] = {}
    for call in ast.walk(source_of(cls.from_env)):
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
            continue
        made = cls if call.func.id == "cls" else getattr(module, call.func.id, None)
        if is_dataclass(made):
            for keyword in call.keywords:
                if names := [*dict.fromkeys(variables_in(keyword.value, module, prefix))]:
                    found[made, str(keyword.arg)] = names
    return found


def variables_in(tree: ast.AST, module: ModuleType, prefix: str) -> Iterator[str]:
    """Yield the variables that the code reads with `read` or `env`, also in functions it calls."""
    for call in ast.walk(tree):
        match call:
            case ast.Call(ast.Attribute(ast.Name("read")), [ast.Constant(str(name)), *_]):
                yield prefix + name
            case ast.Call(ast.Attribute(ast.Name("env")), [ast.Constant(str(name)), *_]):
                yield name
            case ast.Call(ast.Name(name)) if inspect.isfunction(getattr(module, name, None)):
                yield from variables_in(source_of(getattr(module, name)), module, prefix)


def table(titles: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a Markdown table; escape `<`, so that placeholders like <name> are not HTML tags."""
    titles = tuple(titles)
    lines = [titles, ["---"] * len(titles), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines).replace("<", r"\<")


def meanings(title: str, enum: type[StrEnum]) -> str:
    """Return a table of an enum's members and their meanings."""
    docs = attribute_docs(enum)
    return table((title, "Meaning"), ((member.value, docs[member.name]) for member in enum))


def reasons() -> str:
    """Return a table of the failure reasons with meaning, retry and remedy."""
    docs = attribute_docs(Reason)
    rows = ((it.value, docs[it.name], it.retry.value, it.remedy) for it in Reason)
    return table(("Reason", "Meaning", "Retry", "Remedy"), rows)


def remedies() -> str:
    """Return a table of what users do about each failure reason."""
    rows = ((it.value, it.remedy, TRIED_AGAIN[it.retry]) for it in Reason)
    return table(("Reason", "What to do", "Tried again"), rows)


def settings(cls: type, prefix: str) -> str:
    """Return a table of a program's variables with their defaults and meanings."""
    rows = setting_rows(cls, variables_of(cls, prefix))
    return table(("Variable", "Default", "Meaning"), rows)


def setting_rows(
    cls: type, variables: Mapping[tuple[type, str], list[str]]
) -> Iterator[tuple[str, str, str]]:
    """Yield a row for each field that a variable sets, including the fields of nested classes."""
    docs = attribute_docs(cls)
    for field in fields(cls):
        # One variable sets all logins: it names their folder.
        if is_dataclass(field.default_factory) and field.default_factory is not Logins:
            yield from setting_rows(field.default_factory, variables)
        elif names := variables.get((cls, field.name)):
            shown = ", ".join(f"`{name}`" for name in names)
            yield shown, default_of(field), docs[field.name]


def loader_settings() -> str:
    """Return a table of the loader's variables; leave out defaults that the meaning states."""
    docs = attribute_docs(LoaderEnv)
    defaults = {field.name: default_of(field) for field in fields(loader.Settings)}
    rows = (
        (
            ", ".join(f"`{variable}`" for variable in LoaderEnv.names_of(name)),
            "" if "Default:" in docs[name] else defaults.get(name, ""),
            docs[name],
        )
        for name in docs
    )
    return table(("Variable", "Default", "Meaning"), rows)


def default_of(field: Field[Any]) -> str:
    """Return a field's default as one would write it in its variable."""
    if field.default is MISSING and field.default_factory is MISSING:
        return "(required)"
    value = field.default if field.default is not MISSING else field.default_factory()  # type: ignore[misc]
    match value:
        case None | "" | () | JobOverrides() | Logins():
            return ""
        case bool():
            return str(value).lower()
        case int() | float():
            return f"{value:.15g}"
        case tuple():
            return ",".join(f"{item:.15g}" for item in value)
        case str() | Path():
            return str(value)
        case Mapping() | frozenset() if not value:
            return ""
    raise TypeError(f"the default of {field.name} cannot be shown: {value!r}")


PARTS: dict[str, dict[str, Callable[[], str]]] = {
    "api.md": {
        "conditions": lambda: meanings("Condition", ConditionType),
        "ready": lambda: meanings("Reason", ReadyReason),
        "webhook": lambda: meanings("Reason", WebhookReason),
        "reasons": reasons,
        "retries": lambda: meanings("Retry", Retry),
        "events": lambda: meanings("Event", EventReason),
    },
    "troubleshooting.md": {"remedies": remedies},
    "settings.md": {
        "operator": lambda: settings(operator.Settings, operator.PREFIX),
        "gateway": lambda: settings(gateway.GatewaySettings, gateway.PREFIX),
        "loader": loader_settings,
    },
}


def rendered(page: str) -> str:
    """Return a page with its generated parts up to date."""
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
    """Update all pages."""
    for page in PARTS:
        (DOCS / page).write_text(rendered(page))


if __name__ == "__main__":
    main()
