"""Tests of the accessibility of every page with axe: on phone and desktop, light and dark.

The page /docs is one of them.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from sd_api.names import FINALIZER
from sd_api.reasons import Reason
from tests.support.gateway import gallerymodels
from tests.support.gateway.accessible import check
from tests.support.gateway.browser import DESKTOP, PHONE, tab
from tests.support.gateway.gallerymodels import HASH, failed, ready
from tests.support.gateway.gallerysite import Site, serve
from tests.support.kube.cluster import Cluster, namespace_of
from tests.support.tally import Tally

pytestmark = [pytest.mark.browser, pytest.mark.cluster]

LOOKS = [
    pytest.param(DESKTOP, "light", id="desktop-light"),
    pytest.param(PHONE, "dark", id="phone-dark", marks=pytest.mark.slow),
    pytest.param(DESKTOP, "dark", id="desktop-dark", marks=pytest.mark.slow),
    pytest.param(PHONE, "light", id="phone-light", marks=pytest.mark.slow),
]
PAGES = {
    "list": "/",
    "compact": "/?view=compact&select=yes",
    "nothing-found": "/?q=no-such-model",
    "ready": "/models/majicmix-realistic",
    "lora": "/models/film-grain",
    "loading": "/models/dreamshaper",
    "failed": "/models/wrong-link",
    "new": "/models/brand-new",
    "load": "/load?spec.vae.url=org/vae",
    "edit": "/models/canny/edit",
    "delete": "/models/canny/delete",
    "starter": "/starter",
}
MORE_PAGES = {
    "sorted": "/?sort=size&type=lora",
    "searched": "/?q=sdxl&view=compact",
    "repo": "/models/sdxl-base",
    "embedding": "/models/easy-negative",
    "controlnet": "/models/canny",
    "vae": "/models/vae-ft-mse",
    "queued": "/models/waiting",
    "converting": "/models/juggernaut-xl",
    "suspended": "/models/paused",
    "reload-failed": "/models/served",
    "deleting": "/models/leaving",
    "edit-failed": "/models/wrong-link/edit",
}
"""Pages that resemble those in PAGES. Only the slow tests visit them."""
LINK = "https://example.com/model.safetensors"
SMALL_PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de"
    "0000000c49444154789c6368f8cf0000030101807f5d4b0f0000000049454e44ae426082"
)


@pytest.fixture(scope="module")
def states(shared_cluster: Cluster) -> None:
    """The models of gallerymodels.make_all, one of them with a preview."""
    gallerymodels.make_all(shared_cluster)
    name = "majicmix-realistic"
    uid = shared_cluster.get("sdm", name)["metadata"]["uid"]
    path = f".store/{uid}/{HASH}/preview.png"
    image = shared_cluster.store / path
    image.parent.mkdir(parents=True)
    image.write_bytes(SMALL_PNG)
    gallerymodels.set_status(shared_cluster, name, ready(uid, name, previewPath=path))


@pytest.fixture(scope="module")
def more_states(shared_cluster: Cluster) -> None:
    """A suspended model, one whose reload failed, and one that is being deleted."""
    suspended = {"phase": "Pending", "reason": "Suspended"}
    gallerymodels.make(shared_cluster, "paused", suspended, url=LINK, suspend=True)
    uid = gallerymodels.make(shared_cluster, "served", url=LINK)["metadata"]["uid"]
    _, stalled = failed(Reason.SOURCE_NOT_FOUND, "The host answers 404")["conditions"]
    status = ready(uid, "served")
    status["conditions"].append(stalled)
    gallerymodels.set_status(shared_cluster, "served", status)
    gallerymodels.make(shared_cluster, "leaving", {"phase": "Deleting"}, url=LINK)
    shared_cluster.patch("sdm", "leaving", {"metadata": {"finalizers": [FINALIZER]}})
    shared_cluster.delete("sdm", "leaving")


def assert_scheme(page: Any, scheme: str) -> None:
    """Assert that a page is light or dark."""
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    lightness = sum(int(part) for part in re.findall(r"\d+", background)[:3])
    assert (lightness > 600) is (scheme == "light")


@pytest.mark.usefixtures("states")
@pytest.mark.parametrize(("viewport", "scheme"), LOOKS)
def test_pages_are_accessible(
    browser: Any,
    gallery: Site,
    tmp_path: Path,
    tally: Tally,
    viewport: dict[str, int],
    scheme: Any,
) -> None:
    """Each page passes axe in the browser's colours. The login links to /docs, which links back."""
    with tab(browser, gallery.url, viewport=viewport, color_scheme=scheme) as visit:
        visit.open("/login")
        check(visit.page, tmp_path / "login.png")
        visit.page.get_by_role("link", name="API", exact=True).click()
        visit.page.get_by_role("heading", name="load_model", exact=True).wait_for()
        check(visit.page, tmp_path / "docs.png")
        assert_scheme(visit.page, scheme)
        visit.page.get_by_role("link", name="Models", exact=True).click()
        visit.login(gallery.key)
        for name, path in PAGES.items():
            visit.open(path)
            check(visit.page, tmp_path / f"{name}.png")
            tally("gallery pages without a violation")
        assert_scheme(visit.page, scheme)


@pytest.mark.slow
@pytest.mark.usefixtures("states", "more_states")
@pytest.mark.parametrize(("viewport", "scheme"), LOOKS)
def test_pages_of_further_states_are_accessible(
    browser: Any, gallery: Site, tmp_path: Path, viewport: dict[str, int], scheme: Any
) -> None:
    """A model of every type and state, and a list that is sorted or searched, pass axe."""
    with tab(browser, gallery.url, viewport=viewport, color_scheme=scheme) as visit:
        visit.login(gallery.key)
        for name, path in MORE_PAGES.items():
            visit.open(path)
            check(visit.page, tmp_path / f"{name}.png")


@pytest.mark.slow
@pytest.mark.parametrize(("viewport", "scheme"), LOOKS)
def test_error_pages_are_accessible(
    browser: Any, backend: Any, tmp_path: Path, viewport: dict[str, int], scheme: Any
) -> None:
    """The pages of a wrong key, an empty gallery, a rejected form and a missing model pass axe."""
    with (
        namespace_of(backend, tmp_path) as empty,
        serve(empty, tmp_path) as site,
        tab(browser, site.url, viewport=viewport, color_scheme=scheme) as visit,
    ):
        page = visit.page
        visit.open("/login")
        page.get_by_label("API key").fill("wrong")
        page.get_by_role("button", name="Log in").click()
        page.get_by_text("This key is not valid.").wait_for()
        check(page, tmp_path / "wrong-key.png")
        visit.login(site.key)
        assert page.get_by_role("heading", name="There are no models yet").is_visible()
        check(page, tmp_path / "empty.png")
        visit.open("/load")
        page.get_by_label("Name", exact=True).fill("Bad Name")
        page.get_by_label("Source", exact=True).fill("not a link")
        page.get_by_text("This resource would be rejected").wait_for()
        page.get_by_role("button", name="Load", exact=True).click()
        page.get_by_role("alert").wait_for()
        assert page.get_by_label("Name", exact=True).input_value() == "Bad Name"
        check(page, tmp_path / "rejected.png")
        page.get_by_role("alert").get_by_role("link", name="Name").click()
        assert page.evaluate("document.activeElement.id") == "metadata-name"
        visit.open("/models/no-such-model")
        check(page, tmp_path / "error.png")
        # Chromium logs an error in the console for every page with an error status.
        expected = [text for text in visit.complaints if "Failed to load resource" in text]
        assert len(expected) == 3, visit.complaints
        visit.complaints[:] = [text for text in visit.complaints if text not in expected]
