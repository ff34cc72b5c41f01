"""Tests of the gallery in a headless Chromium, with and without JavaScript."""

from __future__ import annotations

import re
import threading
from collections.abc import AsyncGenerator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from sd_api.reasons import Reason
from sd_operator.gateway.gallery import live
from sd_operator.gateway.gallery.words import in_words
from tests.support.gateway import gallerymodels
from tests.support.gateway.browser import PHONE, Tab, tab
from tests.support.gateway.gallerymodels import loading, ready
from tests.support.gateway.gallerysite import Site, serve, serve_again
from tests.support.kube.cluster import Cluster
from tests.support.operator.operated import Operated

pytestmark = [pytest.mark.browser, pytest.mark.cluster]

LINK = "https://example.com/model.safetensors"


def fill(page: Any, name: str, source: str) -> None:
    """Fill in the load form."""
    page.get_by_label("Name", exact=True).fill(name)
    page.get_by_label("Source", exact=True).fill(source)


def cards(page: Any) -> list[str]:
    """Return the names of the models on the list."""
    names: list[str] = page.locator("[id^=open-]").all_inner_texts()
    return names


def test_model_is_loaded_watched_and_deleted(
    browser: Any, operated: Operated, tmp_path: Path
) -> None:
    """The page follows the load without a reload; a model with a bad link shows its remedy."""
    operated.start()
    html = tmp_path / "page.html"
    html.write_text("<!doctype html><title>Log in</title>")
    page_link = operated.hub.serve_file("/page.safetensors", html)
    with serve(operated.cluster, tmp_path) as site, tab(browser, site.url) as visit:
        page = visit.page
        visit.login(site.key)
        page.get_by_role("link", name="Load a model").first.click()
        fill(page, "sketch", operated.link())
        page.get_by_text("The API server would accept this resource.").wait_for()
        page.get_by_text("About this link").wait_for()
        assert f"url: {operated.hub.url}" in page.locator("#yaml").inner_text()
        page.get_by_role("button", name="Load", exact=True).click()
        page.locator(".badge", has_text="Ready").wait_for()
        assert page.url == f"{site.url}/gallery/models/sketch"
        assert "StableDiffusionPipeline.from_pretrained" in page.locator("#snippet").inner_text()

        visit.open("/load")
        fill(page, "wrong", page_link)
        # htmx logs an error if the page is left while a request runs.
        page.get_by_text("The API server would accept this resource.").wait_for()
        page.get_by_text("About this link").wait_for()
        page.get_by_role("button", name="Load", exact=True).click()
        page.locator(".badge", has_text="Failed").wait_for()
        assert in_words(Reason.NOT_A_MODEL.remedy) in page.locator(".remedy").first.inner_text()

        page.get_by_role("link", name="All models").click()
        page.locator("#open-wrong").wait_for()
        assert cards(page) == ["sketch", "wrong"]
        page.locator("#open-sketch").click()
        page.get_by_role("link", name="Delete …").click()
        page.get_by_role("button", name="Delete sketch").click()
        page.locator("#open-sketch").wait_for(state="detached")
        assert cards(page) == ["wrong"]
    operated.gone("sketch")


def test_progress_updates_without_a_reload(visitor: Tab, shared_cluster: Cluster) -> None:
    """The list and the model's page update, new models appear, and the focus does not move."""
    page = visitor.page
    gallerymodels.make(shared_cluster, "moving", loading(10), url=LINK)
    visitor.open("/")
    page.evaluate("window.unloaded = false")
    card = page.locator(".card", has=page.locator("#open-moving"))
    page.locator("#open-moving").focus()
    gallerymodels.set_status(shared_cluster, "moving", loading(60))
    card.locator("progress[value='60']").wait_for()
    assert page.get_by_role("progressbar", name="Downloading moving").count() == 1
    page.get_by_role("status").filter(has_text="moving: 60% of 2.1 GB").wait_for()
    gallerymodels.make(shared_cluster, "newcomer", url=LINK)
    page.locator("#open-newcomer").wait_for()
    assert page.evaluate("document.activeElement.id") == "open-moving"
    assert page.evaluate("window.unloaded") is False, "the page was not reloaded"

    visitor.open("/models/moving")
    gallerymodels.set_status(shared_cluster, "moving", loading(70))
    page.locator("progress[value='70']").wait_for()
    uid = shared_cluster.get("sdm", "moving")["metadata"]["uid"]
    gallerymodels.set_status(shared_cluster, "moving", {**ready(uid, "moving"), "progress": None})
    page.locator("#snippet").wait_for()


# The row of the list is marked slow, because the test before this one also covers the list.
@pytest.mark.parametrize(
    "path",
    [
        pytest.param("/", id="list", marks=pytest.mark.slow),
        pytest.param("/models/steady", id="model"),
    ],
)
def test_progress_follows_every_change(
    visitor: Tab, shared_cluster: Cluster, path: str, request: pytest.FixtureRequest
) -> None:
    """The page shows each of five changes that follow one another."""
    name = f"steady-{request.node.callspec.id}"
    gallerymodels.make(shared_cluster, name, loading(10), url=LINK)
    visitor.open(path.replace("steady", name))
    bar = visitor.page.get_by_role("progressbar", name=f"Downloading {name}")
    for percent in (21, 32, 43, 54, 65):
        gallerymodels.set_status(shared_cluster, name, loading(percent))
        status = shared_cluster.get("sdm", name)["status"]["progress"]
        visitor.page.locator(f"progress[value='{status['percent']}']").wait_for()
        assert bar.get_attribute("value") == str(status["percent"])
        assert visitor.page.locator("main progress + p").all_inner_texts().count(status["text"])


@pytest.mark.slow
def test_page_catches_up_after_a_lost_connection(
    visitor: Tab, shared_cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page shows models that were created, deleted or changed in the meantime."""
    page, streams = visitor.page, 0
    cut, ended = threading.Event(), threading.Event()
    stream = live.stream

    async def cuttable(updates: Any, changes: Any, alive: Any) -> AsyncGenerator[bytes, None]:
        nonlocal streams
        streams += 1
        async for event in stream(updates, changes, alive):
            if cut.is_set():
                ended.set()
                return
            yield event

    monkeypatch.setattr(live, "stream", cuttable)
    monkeypatch.setattr(live, "HEARTBEAT_SECONDS", 0.05)
    for name in ("stays", "goes"):
        gallerymodels.make(shared_cluster, f"away-{name}", loading(10), url=LINK)
    visitor.open("/?q=away")
    cut.set()
    assert ended.wait(20)
    shared_cluster.kubectl("delete", "sdm", "away-goes")
    gallerymodels.set_status(shared_cluster, "away-stays", loading(90))
    gallerymodels.make(shared_cluster, "away-new", url=LINK)
    cut.clear()
    page.locator("#open-away-new").wait_for()
    assert cards(page) == ["away-new", "away-stays"]
    page.locator("progress[value='90']").wait_for()
    gallerymodels.set_status(shared_cluster, "away-stays", loading(95))
    page.locator("progress[value='95']").wait_for()
    assert streams >= 2


@pytest.mark.parametrize("worker", [True, False], ids=["shared-worker", "no-worker"])
def test_nine_tabs_use_few_connections(
    visitor: Tab, shared_cluster: Cluster, gallery: Site, worker: bool
) -> None:
    """Nine tabs are live at once. Without SharedWorker, a tab is updated only while visible."""
    name = f"nine-{'with' if worker else 'without'}"
    gallerymodels.make(shared_cluster, name, loading(10), url=LINK)
    context = visitor.page.context
    if not worker:
        context.add_init_script(HIDEABLE)
    pages = [context.new_page() for _ in range(9)]
    for page in pages:
        page.goto(f"{gallery.url}/gallery/models/{name}", timeout=20_000)
        page.locator("progress[value='10']").wait_for()
        if not worker and page is not pages[-1]:
            page.evaluate("hide(true)")
    gallerymodels.set_status(shared_cluster, name, loading(60))
    for page in pages:
        if not worker and page is not pages[-1]:
            assert page.locator("progress[value='10']").count() == 1
            page.evaluate("hide(false)")
        page.locator("progress[value='60']").wait_for(timeout=20_000)
        if not worker:
            page.evaluate("hide(true)")


HIDEABLE = """
delete window.SharedWorker;
let hidden = false;
Object.defineProperty(document, "hidden", { get: () => hidden });
window.hide = (value) => { hidden = value; document.dispatchEvent(new Event("visibilitychange")); };
"""
"""Removes SharedWorker from a page, and lets a test hide the page."""


def test_server_that_went_away_is_shown(
    browser: Any, shared_cluster: Cluster, tmp_path: Path
) -> None:
    """When the server has stopped, the open page says that the server does not respond."""
    server = ExitStack()
    site = server.enter_context(serve(shared_cluster, tmp_path))
    with server, tab(browser, site.url) as visit:
        visit.login(site.key)
        visit.open("/")
        assert visit.page.locator("#stream-notice").inner_text() == ""
        server.close()
        visit.page.get_by_text("The server does not respond").wait_for()
        visit.complaints.clear()


@pytest.mark.slow
def test_page_goes_on_after_a_restart_of_the_server(
    browser: Any, shared_cluster: Cluster, tmp_path: Path
) -> None:
    """The session holds, the notice goes, and a new model appears in the open page."""
    server = ExitStack()
    site = server.enter_context(serve(shared_cluster, tmp_path))
    with server, tab(browser, site.url) as visit:
        visit.login(site.key)
        visit.open("/")
        visit.page.evaluate("window.isFirst = true")
        server.close()
        visit.page.get_by_text("The server does not respond").wait_for()
        with serve_again(shared_cluster, site):
            gallerymodels.make(shared_cluster, "after-a-restart", url=LINK, modelType="lora")
            visit.page.locator("#open-after-a-restart").wait_for()
            visit.page.locator("#stream-notice:empty").wait_for(state="attached")
            assert visit.page.evaluate("window.isFirst")
        visit.complaints.clear()


def test_failed_search_says_so(visitor: Tab) -> None:
    """The page shows a notice if a search fails, and removes it when a search succeeds."""
    page = visitor.page
    visitor.open("/")
    page.route("**/gallery/?q=*", lambda route: route.abort())
    page.get_by_label("Search").press_sequentially("x")
    page.get_by_text("The search failed").wait_for()
    page.unroute("**/gallery/?q=*")
    page.get_by_label("Search").press_sequentially("y")
    page.locator("#request-notice:empty").wait_for(state="attached")
    visitor.complaints.clear()


def test_search_is_in_the_url(visitor: Tab, shared_cluster: Cluster) -> None:
    """The URL changes while the user types, the back button works, and the URL can be shared."""
    page = visitor.page
    for name, model_type in (("red-lora", "lora"), ("red-vae", "vae"), ("blue-lora", "lora")):
        gallerymodels.make(shared_cluster, name, url=LINK, modelType=model_type)
    visitor.open("/")
    page.get_by_label("Search").press_sequentially("red")
    page.wait_for_url("**/gallery/?q=red")
    page.locator("#open-blue-lora").wait_for(state="detached")
    assert cards(page) == ["red-lora", "red-vae"]
    assert page.locator("#count").inner_text().startswith("2 of ")
    assert page.evaluate("document.activeElement.id") == "q"
    assert {"LoRA (1)", "VAE (1)"} <= set(page.locator("#type option").all_inner_texts())
    page.get_by_label("Type").select_option("vae")
    page.wait_for_url("**/gallery/?q=red&type=vae")
    page.locator("#open-red-lora").wait_for(state="detached")
    page.go_back()
    page.locator("#open-red-lora").wait_for()
    assert page.get_by_label("Search").input_value() == "red"
    assert page.get_by_label("Type").input_value() == ""
    assert cards(page) == ["red-lora", "red-vae"]
    visitor.open("/?q=no-such-model")
    page.get_by_role("link", name="Show all").click()
    page.locator("#open-blue-lora").wait_for()


def test_everything_works_without_javascript(
    browser: Any, gallery: Site, shared_cluster: Cluster
) -> None:
    """Login, load form with YAML, search, edit, deletion and logout use plain forms and links."""
    with tab(browser, gallery.url, java_script_enabled=False, viewport=PHONE) as visit:
        page = visit.page
        visit.login(gallery.key)
        page.get_by_role("link", name="Load a model").first.click()
        fill(page, "scriptless", "https://example.com/x.safetensors")
        page.get_by_role("button", name="Show the YAML").click()
        assert "name: scriptless" in page.locator("#yaml").inner_text()
        page.get_by_role("button", name="Load", exact=True).click()
        assert page.locator("h1").inner_text() == "scriptless"
        page.get_by_role("link", name="All models").click()
        page.get_by_label("Search").fill("scriptl")
        page.get_by_role("button", name="Search").click()
        assert cards(page) == ["scriptless"]
        page.locator("#open-scriptless").click()
        page.get_by_role("link", name="Edit").click()
        page.get_by_label("Precision").select_option("fp16")
        page.get_by_role("button", name="Save").click()
        assert page.locator("h1").inner_text() == "scriptless"
        assert shared_cluster.get("sdm", "scriptless")["spec"]["revision"] == "fp16"
        page.get_by_role("link", name="All models").click()
        page.get_by_role("link", name="Select several").click()
        page.get_by_label("Select scriptless").check()
        page.get_by_role("button", name="Delete …").click()
        page.get_by_role("button", name="Delete scriptless").click()
        assert not shared_cluster.exists("sdm", "scriptless")
        page.get_by_role("button", name="Log out").click()
        assert page.locator("h1").inner_text() == "Log in"
        visit.open("/")
        assert page.locator("h1").inner_text() == "Log in"


def test_selected_models_stay_selected_while_the_list_updates(
    visitor: Tab, shared_cluster: Cluster
) -> None:
    """A new model makes the list fetch itself again; the check boxes keep their state."""
    page = visitor.page
    for name in ("keep-a", "keep-b"):
        gallerymodels.make(shared_cluster, name, url=LINK)
    visitor.open("/?q=keep&select=yes")
    page.get_by_label("Select keep-b").check()
    gallerymodels.make(shared_cluster, "keep-c", url=LINK)
    page.locator("#open-keep-c").wait_for()
    assert page.get_by_label("Select keep-b").is_checked()
    assert not page.get_by_label("Select keep-a").is_checked()


def test_texts_are_copied_with_and_without_permission(
    visitor: Tab, shared_cluster: Cluster
) -> None:
    """The text goes to the clipboard; if the browser denies that, the text is selected."""
    gallerymodels.make(shared_cluster, "copied", url=LINK)
    page = visitor.page
    visitor.open("/models/copied")
    page.get_by_text("YAML", exact=True).click()
    text = page.locator("#yaml").inner_text()
    button = page.locator("[data-copy=yaml]")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    button.click()
    page.get_by_role("button", name="Copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == text
    denied = "navigator.clipboard.writeText = () => Promise.reject(new Error('denied'))"
    page.evaluate(f"() => {{ {denied} }}")
    button.click()
    page.get_by_role("button", name="Selected").wait_for()
    assert page.evaluate("getSelection().toString()").strip() == text.strip()


def test_gallery_works_with_the_keyboard_alone(visitor: Tab, shared_cluster: Cluster) -> None:
    """A skip link comes first, / goes to the search, each focus is visible, Enter opens a model."""
    gallerymodels.make(shared_cluster, "aaa-first", url=LINK)
    page = visitor.page
    visitor.open("/")
    page.keyboard.press("Tab")
    skip = page.locator(".skip")
    assert page.evaluate("document.activeElement.className") == "skip"
    assert skip.bounding_box()["width"] > 50, "the skip link becomes visible"
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "q", "the focus skips the header"
    page.keyboard.press("Tab")
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "q"
    for _ in range(8):
        page.keyboard.press("Tab")
        style = "getComputedStyle(document.activeElement{}).outlineStyle"
        outlines = [page.evaluate(style.format(part)) for part in ("", ", '::after'")]
        assert "solid" in outlines or "auto" in outlines
    assert page.evaluate("document.activeElement.id") == "open-aaa-first"
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile("/gallery/models/aaa-first$"))


def test_hostile_text_is_not_executed(visitor: Tab, shared_cluster: Cluster) -> None:
    """Markup in a url or in a message of a live event is shown as text."""
    hostile = "<img src=x onerror=document.title='owned'><b hx-get=/gallery/>bold</b>"
    status = {**loading(10), "phase": "Failed", "reason": "Odd"}
    page = visitor.page
    gallerymodels.make(
        shared_cluster, "hostile", loading(10), url=f"https://e.com/{hostile.replace(' ', '/')}"
    )
    visitor.open("/models/hostile")
    status["conditions"] = [gallerymodels.condition("Stalled", "True", "NotAModel", hostile)]
    gallerymodels.set_status(shared_cluster, "hostile", {**status, "progress": None})
    page.get_by_text(hostile).first.wait_for()
    assert page.locator("main img, main b").count() == 0
    assert page.title() == "hostile · Model gallery"


def test_policy_blocks_inline_scripts(visitor: Tab) -> None:
    """The browser blocks an injected script, and the page's console shows it."""
    visitor.open("/")
    visitor.page.evaluate(
        "() => { const script = document.createElement('script');"
        " script.textContent = 'window.owned = true'; document.body.append(script); }"
    )
    assert visitor.page.evaluate("window.owned") is None
    (complaint,) = visitor.complaints
    assert "Content Security Policy" in complaint
    visitor.complaints.clear()
