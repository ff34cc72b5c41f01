"""The documentation says what the code says."""

import re
from pathlib import Path

import pytest

from sd_api.reasons import Reason
from sd_api.spec import Spec

ROOT = Path(__file__).parent.parent
API = (ROOT / "docs" / "api.md").read_text()


@pytest.mark.parametrize("reason", list(Reason))
def test_every_reason_is_documented(reason):
    """With its retry rule and its remedy, word for word."""
    assert f"| {reason.value} | {reason.retry.value} | {reason.remedy} |" in API


@pytest.mark.parametrize("field", [field.alias for field in Spec.model_fields.values()])
def test_every_spec_field_is_documented(field):
    """In the table of docs/api.md."""
    assert re.search(rf"^\| {field}[ ,|]", API, re.MULTILINE) or f", {field} |" in API


@pytest.mark.parametrize("page", sorted(ROOT.glob("*.md")) + sorted(ROOT.glob("docs/**/*.md")))
def test_links_lead_somewhere(page):
    """Every relative link of a page is a file of the repository."""
    for target in re.findall(r"\]\((?!https?://)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target
