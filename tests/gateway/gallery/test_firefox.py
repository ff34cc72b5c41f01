"""Tests of the gallery in Firefox. Playwright needs its own build of Firefox."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.gateway import gallerymodels
from tests.support.gateway.browser import tab
from tests.support.gateway.gallerymodels import loading
from tests.support.gateway.gallerysite import Site
from tests.support.kube.cluster import Cluster

pytestmark = [pytest.mark.browser, pytest.mark.cluster]


def test_tabs_follow_one_stream_in_firefox(gallery: Site, shared_cluster: Cluster) -> None:
    """Nine tabs show each change, over HTTP/1.1."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    gallerymodels.make(shared_cluster, "fox", loading(10), url="https://example.com/m.safetensors")
    with playwright.sync_playwright() as driver:
        if not Path(driver.firefox.executable_path).exists():
            pytest.skip("there is no Firefox of Playwright: playwright install firefox")
        with tab(driver.firefox.launch(), gallery.url) as visitor:
            visitor.login(gallery.key)
            pages = [visitor.page.context.new_page() for _ in range(9)]
            for page in pages:
                page.goto(f"{gallery.url}/gallery/models/fox")
            for percent in (30, 60):
                gallerymodels.set_status(shared_cluster, "fox", loading(percent))
                for page in pages:
                    page.locator(f"progress[value='{percent}']").wait_for()
