"""The documentation says what the code says."""

import re

import pytest

from sd_api.reasons import Reason
from sd_api.spec import Spec
from tests.support.paths import ROOT

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


@pytest.mark.parametrize("page", ["faults.md", "security.md"])
def test_the_tests_that_a_page_names_are_there(page):
    """Each fault and threat has one; a renamed test must be renamed there, too."""
    code = "".join(path.read_text() for path in ROOT.glob("tests/**/test_*.py"))
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / page).read_text()))
    assert named
    assert {name for name in named if f"def {name}(" not in code} == set()
