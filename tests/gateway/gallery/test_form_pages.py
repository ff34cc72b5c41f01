"""Tests of the load form in a headless Chromium: one answer updates the errors and the preview."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.gateway.browser import Tab

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
    name, source = page.locator(".verdict a").all_inner_texts()
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
    assert [error_of(page, label) for label in ("Name", "Source")] == ["", ""]
    assert page.evaluate("document.activeElement.id") == "spec-url", "the focus stays"


def test_mended_form_shows_no_old_errors(visitor: Tab) -> None:
    """After a rejected submission, the summary, the errors and the title follow the form."""
    page = visitor.page
    visitor.open("/load")
    field(page, "Name").fill("Bad Name")
    page.get_by_text(REJECTED).wait_for()
    page.get_by_role("button", name="Load", exact=True).click()
    summary = page.get_by_role("alert").filter(has_text="The model was not created")
    summary.wait_for()
    assert summary.get_by_role("link").all_inner_texts() == ["Name", "Source"]
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
