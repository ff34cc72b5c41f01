"""A headless Chromium, and a tab that notes every complaint of its console.

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
    """The browser that CHROMIUM names, else one of the PATH."""
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
    """A page of one visitor, with what its console complained of."""

    page: Any
    url: str
    complaints: list[str] = field(default_factory=list)

    def open(self, path: str) -> None:
        """Go to a page of the gallery."""
        self.page.goto(f"{self.url}/gallery{path}")

    def login(self, key: str) -> None:
        """Log in by the form."""
        self.open("/login")
        self.page.get_by_label("API key").fill(key)
        self.page.get_by_role("button", name="Log in").click()
        self.page.get_by_role("button", name="Log out").wait_for()

    def _note(self, message: Any) -> None:
        # Chromium's advice comes as verbose; errors of scripts, requests and the CSP as errors.
        if message.type in ("error", "warning"):
            self.complaints.append(f"{self.page.url}: {message.text}")


@contextmanager
def tab(browser: Any, url: str, **options: Any) -> Iterator[Tab]:
    """A visitor with a profile of their own; ends with an error where the console had one."""
    context = browser.new_context(**({"viewport": DESKTOP} | options))
    opened = Tab(context.new_page(), url)
    opened.page.set_default_timeout(20_000)
    opened.page.on("console", opened._note)
    opened.page.on("pageerror", lambda error: opened.complaints.append(str(error)))
    try:
        yield opened
    finally:
        context.close()
    assert not opened.complaints, opened.complaints
