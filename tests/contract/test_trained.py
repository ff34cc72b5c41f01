"""A url template turns the id of a trained model into a link."""

from __future__ import annotations

import re
from urllib.parse import parse_qsl, quote, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sd_api.spec import ModelType
from sd_api.trained import (
    TEMPLATE_PATTERN,
    check_template,
    is_trained_id,
    trained_link,
    with_key,
)
from tests.support.paths import ROOT


@pytest.mark.parametrize(
    "template",
    [
        "https://trainer.example.com/models/{id}",
        "https://trainer.example.com/models/{id}.zip",
        "https://trainer.example.com/{id}/{id}",
        "https://trainer.example.com?model={id}",
        "http://trainer:8000/{id}",
        "http://[::1]:8000/{id}",
        "https://user:word@trainer.example.com/{id}",
        "https://trainer.example.com/{id}?key={key}",
    ],
)
def test_a_template_has_the_id_after_the_host(template: str) -> None:
    """The id stands in the path or in the query."""
    assert check_template(template) == template


@pytest.mark.parametrize(
    "template",
    [
        pytest.param("", id="empty"),
        pytest.param("{id}", id="the id alone"),
        pytest.param("https://{id}/x", id="the host"),
        pytest.param("https://{id}.example.com/x", id="part of the host"),
        pytest.param("https://{id}.example.com/{id}", id="part of the host, and the path"),
        pytest.param("https://{id}@example.com/x", id="the user"),
        pytest.param("https://example.com:{id}/x", id="the port"),
        pytest.param("https://example.com{id}", id="behind the host without a slash"),
        pytest.param("https://example.com#/{id}", id="a fragment"),
        pytest.param("https://example.com/x", id="nowhere"),
        pytest.param("https:///{id}", id="no host"),
        pytest.param("https://:80/{id}", id="a port without a host"),
        pytest.param("https://example.com:port/{id}", id="no port number"),
        pytest.param("https://example.com:99999/{id}", id="a port out of range"),
        pytest.param("https://[::1/{id}", id="no address"),
        pytest.param("ftp://example.com/{id}", id="another scheme"),
        pytest.param("https://example.com/a b/{id}", id="a blank"),
        pytest.param("https://example.com/{id}\n", id="a line's end"),
    ],
)
def test_any_other_template_is_refused(template: str) -> None:
    """The message states the rule."""
    with pytest.raises(ValueError, match=r"with \{id\} where the trained model's id goes, after"):
        check_template(template)


@pytest.mark.parametrize(
    "template", ["https://e.com/{key}/{id}", "https://{key}@e.com/{id}?x={key}"]
)
def test_a_key_stands_in_the_query(template: str) -> None:
    """Messages show urls without their query."""
    with pytest.raises(ValueError, match=r"may have \{key\} only in its query|with \{id\} where"):
        check_template(template)


@given(st.text(min_size=1), st.from_regex(r"[A-Za-z0-9._-]{1,20}", fullmatch=True))
def test_a_key_is_one_value_of_the_query(key: str, model: str) -> None:
    """Neither the key nor the id changes the rest of the link."""
    template = with_key("https://trainer.example.com/{id}?a={key}&b={id}", key)
    parts = urlsplit(trained_link(template, model))
    assert parts.path == f"/{quote(model)}"
    assert parse_qsl(parts.query) == [("a", key), ("b", model)]


@given(st.text(min_size=1))
def test_no_id_chooses_the_host(model: str) -> None:
    """Every id is quoted, so it cannot change the host of the link."""
    parts = urlsplit(trained_link("https://trainer.example.com/models/{id}.zip", model))
    assert parts.netloc == "trainer.example.com"
    assert (parts.query, parts.fragment) == ("", "")
    assert re.fullmatch(r"/models/[^/]+\.zip", parts.path)


@pytest.mark.parametrize(
    ("url", "model_type", "expected"),
    [
        ("abc-1", ModelType.API_TRAINED, True),
        ("abc-1", ModelType.CUSTOM_CKPT, False),
        ("abc-1", None, False),
        ("https://trainer.example.com/abc-1", ModelType.API_TRAINED, False),
        ("org/name", ModelType.API_TRAINED, False),
        ("../x", ModelType.API_TRAINED, False),
        ("abc?x", ModelType.API_TRAINED, False),
        ("abc\n", ModelType.API_TRAINED, False),
    ],
)
def test_only_a_bare_id_needs_the_template(
    url: str, model_type: ModelType | None, expected: bool
) -> None:
    """Bare ids exist only with modelType api_trained."""
    assert is_trained_id(url, model_type) is expected


def test_the_chart_has_the_same_rule() -> None:
    """Helm rejects what the operator would reject at its start."""
    assert (
        f"regexMatch `{TEMPLATE_PATTERN}`"
        in (ROOT / "charts/sd-operator/templates/_helpers.tpl").read_text()
    )
