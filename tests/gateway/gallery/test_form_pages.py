"""Tests of the load form in a headless Chromium: facts about a link, errors and preview."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from devkit.fakecivitai import FakeCivitai, File, Model, Version
from devkit.fakehub import FakeHub
from tests.support.gateway.accessible import check
from tests.support.gateway.browser import DESKTOP, PHONE, Tab, tab
from tests.support.gateway.gallerysite import serve
from tests.support.kube.cluster import Cluster

pytestmark = [pytest.mark.browser, pytest.mark.cluster]

ACCEPTED = "The API server would accept this resource."
REJECTED = "This resource would be rejected"
NAME_WORDS = "Name must be lower-case letters, digits, dashes and dots"
LINK = "https://example.com/model.safetensors"


def field(page: Any, label: str) -> Any:
    """Return the control with a label."""
    return page.get_by_label(label, exact=True)


def error_of(page: Any, label: str) -> str:
    """Return the error that is shown beside a control and announced with it."""
    control = field(page, label)
    described = control.get_attribute("aria-describedby").split()
    shown: str = page.locator(f"#{described[-1]}").inner_text()
    assert control.get_attribute("aria-invalid") == ("true" if shown else "false")
    return shown


@pytest.mark.slow
def test_errors_appear_and_go_while_the_form_is_filled_in(visitor: Tab) -> None:
    """A field is not called wrong before anything is typed into it."""
    page = visitor.page
    visitor.open("/load")
    field(page, "Name").press_sequentially("Bad Name")
    page.get_by_text(REJECTED).wait_for()
    assert error_of(page, "Name").startswith(NAME_WORDS)
    assert error_of(page, "Source") == ""
    source, name = page.locator(".verdict a").all_inner_texts()
    assert name == "Name"
    assert source.startswith("Source is required: a Hugging Face repo id"), "it is still missing"
    field(page, "Source").fill("not a link")
    page.locator("#spec-url-error", has_text="Source must be a Hugging Face repo id").wait_for()
    field(page, "Name").fill("good-name")
    page.locator("#metadata-name-error:empty").wait_for(state="attached")
    assert error_of(page, "Name") == ""
    assert error_of(page, "Source") != ""
    field(page, "Source").fill(LINK)
    page.get_by_text(ACCEPTED).wait_for()
    page.get_by_text("About this link").wait_for()
    assert [error_of(page, label) for label in ("Name", "Source")] == ["", ""]
    assert page.evaluate("document.activeElement.id") == "spec-url", "the focus stays"
    assert field(page, "Name").input_value() == "good-name", "a name of the visitor's own stays"


def test_mended_form_shows_no_old_errors(visitor: Tab) -> None:
    """After a rejected submission, the summary, the errors and the title follow the form."""
    page = visitor.page
    visitor.open("/load")
    field(page, "Name").fill("Bad Name")
    page.get_by_text(REJECTED).wait_for()
    page.get_by_role("button", name="Load", exact=True).click()
    summary = page.get_by_role("alert").filter(has_text="The model was not created")
    summary.wait_for()
    assert summary.get_by_role("link").all_inner_texts() == ["Source", "Name"]
    assert error_of(page, "Name").startswith(NAME_WORDS)
    assert error_of(page, "Source").startswith("Source is required")
    assert page.title().startswith("Error: ")
    assert page.get_by_text(ACCEPTED).count() == 0

    field(page, "Name").fill("good-name")
    page.get_by_text(REJECTED).wait_for()
    assert error_of(page, "Name") == ""
    assert error_of(page, "Source").startswith("Source is required"), "it was submitted empty"
    assert summary.count() == 0
    field(page, "Source").fill(LINK)
    page.get_by_text(ACCEPTED).wait_for()
    assert [error_of(page, label) for label in ("Name", "Source")] == ["", ""]
    assert page.locator(".complaint:visible").count() == 0
    assert not page.title().startswith("Error: ")
    # Chromium logs the status of the rejected form as an error.
    (complaint,) = visitor.complaints
    assert "422" in complaint
    visitor.complaints.clear()


@pytest.mark.parametrize(
    ("viewport", "scheme"),
    [
        pytest.param(DESKTOP, "light", id="desktop-light"),
        pytest.param(PHONE, "dark", id="phone-dark", marks=pytest.mark.slow),
        pytest.param(DESKTOP, "dark", id="desktop-dark", marks=pytest.mark.slow),
        pytest.param(PHONE, "light", id="phone-light", marks=pytest.mark.slow),
    ],
)
def test_pasted_link_shows_what_its_source_says(
    browser: Any, shared_cluster: Cluster, tmp_path: Path, viewport: dict[str, int], scheme: Any
) -> None:
    """The form proposes a name for each new link, unless the visitor has typed one."""
    weights = tmp_path / "repo" / "model.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(b"weights")
    with FakeCivitai() as civitai, FakeHub() as hub:
        civitai.add(Model(7, "LORA", [Version(70, [File(700, weights)])], name="Blue Fish"))
        hub.add_repo("org/gated", weights.parent, gated=True, token="hf_x")
        endpoints = {"civitai_endpoint": civitai.url, "hub_endpoint": hub.url}
        with (
            serve(shared_cluster, tmp_path, **endpoints) as site,
            tab(browser, site.url, viewport=viewport, color_scheme=scheme) as visit,
        ):
            page = visit.page
            visit.login(site.key)
            visit.open("/load")
            check(page, tmp_path / "empty.png")
            field(page, "Source").fill("https://civitai.com/models/7/blue-fish")
            page.get_by_text("Blue Fish (v1.0)").wait_for()
            page.locator("#yaml", has_text="name: blue-fish").wait_for()
            page.get_by_text(ACCEPTED).wait_for()
            assert field(page, "Name").input_value() == "blue-fish"
            assert page.evaluate("document.activeElement.id") == "spec-url", "the focus stays"
            check(page, tmp_path / "civitai.png")
            field(page, "Source").fill("org/gated")
            page.get_by_text("This repo is gated").wait_for()
            page.locator("#yaml", has_text="name: gated").wait_for()
            assert field(page, "Secret with the token").is_visible(), "its group is open"
            check(page, tmp_path / "gated.png")
            field(page, "Name").fill("my-own")
            field(page, "Source").fill("civitai:7@70")
            page.get_by_text("Blue Fish (v1.0)").wait_for()
            page.get_by_text(ACCEPTED).wait_for()
            assert field(page, "Name").input_value() == "my-own"
