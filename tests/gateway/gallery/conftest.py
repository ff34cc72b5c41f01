"""The gallery's site and its visitors, and a browser to look at it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.gateway import browser as browsers
from tests.support.gateway.browser import Tab, tab
from tests.support.gateway.gallerysite import Site, serve
from tests.support.kube.cluster import Cluster


@pytest.fixture(scope="module")
def gallery(shared_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The gallery of shared_cluster's namespace; all tests of a module share its gateway."""
    folder = tmp_path_factory.mktemp("gallery")
    with serve(shared_cluster, folder, store=shared_cluster.store) as site:
        yield site


@pytest.fixture
def stranger(gallery: Site) -> Site:
    """A visitor who has not logged in."""
    return Site(gallery.url, gallery.keys_file, gallery.key)


@pytest.fixture
def site(stranger: Site) -> Site:
    """A visitor who has logged in."""
    assert stranger.login().code == 303
    return stranger


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One Chromium process for the run; returns the address of its DevTools."""
    path = browsers.chromium_path()
    if path is None:
        pytest.skip("there is no Chromium: apt-get install chromium, or set CHROMIUM to its path")
    with browsers.running_chromium(path, tmp_path_factory.mktemp("chromium")) as address:
        yield address


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Any]:
    """A connection to Chromium, which is closed at the end of the module.

    Playwright runs an event loop in this thread. While it runs, asyncio.run would fail in other
    tests.
    """
    with browsers.connected(chromium) as connection:
        yield connection


@pytest.fixture
def visitor(browser: Any, gallery: Site) -> Iterator[Tab]:
    """A visitor who is logged in, in a browser."""
    with tab(browser, gallery.url) as visitor:
        visitor.login(gallery.key)
        yield visitor
