"""The setting that names, for each family, the Hub repo of the components that a file lacks.

Operator and loader read the same text: `sdxl=ORG/NAME,flux=ORG/NAME@REVISION`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from sd_api.taxonomy import TRANSFORMERS, UNETS
from sd_api.url_forms import REPO_ID

BASES = [name.value for name in (*UNETS, *TRANSFORMERS)]
"""The families for which a repo can be named."""


def parse_default_parts(text: str) -> dict[str, str]:
    """Read `sdxl=ORG/NAME,flux=ORG/NAME@REVISION`; raise ValueError with the cause."""
    found: dict[str, str] = {}
    for entry in (entry.strip() for entry in text.split(",") if entry.strip()):
        base, _, repo = (part.strip() for part in entry.partition("="))
        if not re.fullmatch(REPO_ID, repo):
            raise ValueError(
                "must be entries BASE=ORG/NAME or BASE=ORG/NAME@REVISION, separated by commas; one"
                f" is {entry[:80]!r}"
            )
        if base not in BASES:
            raise ValueError(
                f"must be entries BASE=ORG/NAME; the BASE {base[:40]!r} is not one of"
                f" {', '.join(BASES)}"
            )
        if base in found:
            raise ValueError(f"names two repos for {base}")
        found[base] = repo
    return found


def format_default_parts(parts: Mapping[str, str]) -> str:
    """Return the setting's text."""
    return ",".join(f"{base}={repo}" for base, repo in sorted(parts.items()))
