"""The setting that names, for each base model, the Hub repo of missing components.

Operator and loader read the same text: `sd-1=ORG/NAME,sdxl=ORG/NAME`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from sd_api.taxonomy import UNETS
from sd_api.url_forms import HUB_REPO_PATTERN


def parse_default_parts(text: str) -> dict[str, str]:
    """Read `sd-1=ORG/NAME,sdxl=ORG/NAME`; raise ValueError with the cause."""
    found: dict[str, str] = {}
    for entry in (entry.strip() for entry in text.split(",") if entry.strip()):
        base, _, repo = (part.strip() for part in entry.partition("="))
        bases = [name.value for name in UNETS]
        if base not in bases or not re.match(HUB_REPO_PATTERN, repo):
            raise ValueError(
                "must be entries BASE=ORG/NAME, separated by commas, where BASE is one of"
                f" {', '.join(bases)}; one is {entry[:80]!r}"
            )
        if base in found:
            raise ValueError(f"names two repos for {base}")
        found[base] = repo
    return found


def format_default_parts(parts: Mapping[str, str]) -> str:
    """The setting's text."""
    return ",".join(f"{base}={repo}" for base, repo in sorted(parts.items()))
