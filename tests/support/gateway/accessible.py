"""Checks the accessibility of a page with axe.

For example:

    with tab(browser, site.url) as visit:
        visit.open("/login")
        check(visit.page, tmp_path / "login.png")
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

RULES = {"resultTypes": ["violations"]}


def check(page: Any, shot: Path) -> None:
    """Assert that a page passes axe, has one h1 and fits the screen; save a screenshot if not."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is missing")
    violations = axe.Axe().run(page, options=RULES).response["violations"]
    faults = [(rule["id"], [node["html"] for node in rule["nodes"]]) for rule in violations]
    if page.locator("h1").count() != 1:
        faults.append(("headings", page.locator("h1").all_inner_texts()))
    too_wide = page.evaluate("document.documentElement.scrollWidth - document.body.clientWidth")
    if too_wide > 0:
        faults.append(("too wide", [f"{too_wide} px"]))
    if faults:
        page.screenshot(path=shot, full_page=True)
    assert faults == [], f"{page.url}: see {shot}"
