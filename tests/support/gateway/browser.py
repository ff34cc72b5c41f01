"""A headless Chromium with tabs that record the errors of their consoles.

For example:

    with running_chromium(chromium_path(), folder) as address, connected(address) as browser:
        with tab(browser, site.url) as visitor:
            visitor.login(site.key)
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import running

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--headless",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
)
PHONE = {"width": 360, "height": 740}
DESKTOP = {"width": 1280, "height": 800}


def chromium_path() -> str | None:
    """Return the path of Chromium: from CHROMIUM, else from PATH, else None."""
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


@contextmanager
def running_chromium(path: str, folder: Path) -> Iterator[str]:
    """Run Chromium with a new profile; yields the address of its DevTools."""
    found = folder / "DevToolsActivePort"
    command = [path, *ARGUMENTS, f"--user-data-dir={folder}", "about:blank"]
    with running(command, folder / "log", lambda: found.exists() and bool(found.read_text())):
        yield f"http://127.0.0.1:{found.read_text().split()[0]}"


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """Connect to a running Chromium; yields Playwright's Browser."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.connect_over_cdp(address)
        yield browser
        browser.close()


@dataclass
class Tab:
    """An open page of one visitor."""

    page: Any
    url: str
    complaints: list[str] = field(default_factory=list)
    """Errors and warnings of the page's console, and uncaught errors of its scripts."""

    def open(self, path: str) -> None:
        """Go to a page of the gallery."""
        self.page.goto(f"{self.url}/gallery{path}")

    def login(self, key: str) -> None:
        """Log in with the form."""
        self.open("/login")
        self.page.get_by_label("API key").fill(key)
        self.page.get_by_role("button", name="Log in").click()
        self.page.get_by_role("button", name="Log out").wait_for()

    def _record(self, message: Any) -> None:
        # Chromium reports failed requests and CSP violations as errors, and mere advice as verbose.
        if message.type in ("error", "warning"):
            self.complaints.append(f"{self.page.url}: {message.text}")


@contextmanager
def tab(browser: Any, url: str, **options: Any) -> Iterator[Tab]:
    """Open a page with a fresh profile; at the end, fail if its console has an error or warning."""
    context = browser.new_context(**({"viewport": DESKTOP} | options))
    new_tab = Tab(context.new_page(), url)
    new_tab.page.set_default_timeout(20_000)
    new_tab.page.on("console", new_tab._record)
    new_tab.page.on("pageerror", lambda error: new_tab.complaints.append(str(error)))
    try:
        yield new_tab
    finally:
        context.close()
    assert not new_tab.complaints, new_tab.complaints
