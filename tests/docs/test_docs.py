"""The documentation agrees with the code."""

import re

import pytest

from sd_api.reasons import EventReason, ReadyReason, Reason, WebhookReason
from sd_api.spec import Spec
from sd_api.status import ConditionType
from tests.support.paths import ROOT
from tools.make_docs import DOCS, PARTS, attribute_docs, rendered

API = (DOCS / "api.md").read_text()


@pytest.mark.parametrize("page", PARTS)
def test_the_generated_parts_of_a_page_are_those_of_the_code(page):
    """The page equals what `make docs` writes, so `make docs` was run after the last change."""
    assert rendered(page) == (DOCS / page).read_text()


@pytest.mark.parametrize("reason", list(Reason))
def test_every_reason_is_documented(reason):
    """docs/api.md has the reason's meaning, retry rule and remedy word for word.

    docs/troubleshooting.md has the remedy.
    """
    remedy = reason.remedy.replace("<", r"\<")
    meaning = attribute_docs(Reason)[reason.name]
    assert meaning.endswith(".")
    assert f"| {reason.value} | {meaning} | {reason.retry.value} | {remedy} |" in API
    assert f"| {reason.value} | {remedy} | " in (DOCS / "troubleshooting.md").read_text()


@pytest.mark.parametrize("enum", [ConditionType, ReadyReason, WebhookReason, EventReason])
def test_every_condition_and_every_other_reason_is_documented(enum):
    """docs/api.md has the meaning of each condition type and of each reason outside `Reason`."""
    for member in enum:
        assert re.search(rf"^\| {member.value} \| [A-Za-z].+\. \|$", API, re.MULTILINE)


def test_the_docstring_below_an_attribute_is_its_meaning():
    """The lines of the docstring are joined. An attribute without a docstring has no meaning."""

    class Example:
        """A class with attribute docstrings."""

        first = 1
        """The first,
        on two lines."""
        second: int = 2
        third = 3
        """The third."""

    assert attribute_docs(Example) == {"first": "The first, on two lines.", "third": "The third."}


@pytest.mark.parametrize("field", [field.alias for field in Spec.model_fields.values()])
def test_every_spec_field_is_documented(field):
    """Each field is in the table of docs/api.md."""
    assert re.search(rf"^\| {field}[ ,|]", API, re.MULTILINE) or f", {field} |" in API


@pytest.mark.parametrize("page", sorted(ROOT.glob("*.md")) + sorted(ROOT.glob("docs/**/*.md")))
def test_links_lead_to_existing_files(page):
    """Every relative link of a page leads to a file of the repository."""
    for target in re.findall(r"\]\((?!https?://)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_links_to_a_section_lead_to_its_heading():
    """Each link to a section has an anchor that GitHub makes from the words of a heading."""
    broken = set()
    for page in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")):
        links = re.findall(r"\]\((?!https?://)([^)#]*)#([^)]+)\)", page.read_text())
        for target, section in links:
            linked = page.parent / target if target else page
            if linked.suffix == ".md" and section not in _sections(linked.read_text()):
                broken.add((page.name, f"{target}#{section}"))
    assert broken == set()


def _sections(text):
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", ["faults.md", "security.md"])
def test_the_tests_that_a_page_names_exist(page):
    """Each test that a page names exists, so a renamed test must be renamed on the page."""
    code = "".join(path.read_text() for path in ROOT.glob("tests/**/test_*.py"))
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / page).read_text()))
    assert named
    assert {name for name in named if f"def {name}(" not in code} == set()


def test_every_variable_of_the_tests_is_documented():
    """CONTRIBUTING.md lists those of a cluster, docs/images.md those of image builds."""
    read = {
        name
        for path in ROOT.glob("tests/**/*.py")
        for name in re.findall(r"SD_TEST_[A-Z_]+[A-Z]", path.read_text())
    }
    pages = (ROOT / "CONTRIBUTING.md").read_text() + (ROOT / "docs" / "images.md").read_text()
    assert read == set(re.findall(r"SD_TEST_[A-Z_]+[A-Z]", pages))


@pytest.mark.parametrize(
    "page", ["README.md", "CHANGELOG.md", *sorted(f"docs/{p.name}" for p in DOCS.glob("*.md"))]
)
def test_no_page_installs_the_project_by_name_from_an_index(page):
    """No command installs the project by its name: anybody could take the name on an index."""
    assert not re.search(
        r"pip install .*\bsd[-_]operator(\[[a-z,]+\])?[\"' ]*$",
        (ROOT / page).read_text(),
        re.MULTILINE,
    )
