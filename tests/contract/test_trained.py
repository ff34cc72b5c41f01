"""A url template turns the id of a trained model into a link."""

from __future__ import annotations

import re
from urllib.parse import parse_qsl, quote, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sd_api.choices import ModelType
from sd_api.trained import (
    TEMPLATE_PATTERN,
    check_template,
    contains_key,
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
        "https://trainer.example.com/{key}/{id}",
    ],
)
def test_a_template_has_the_id_after_the_host(template: str) -> None:
    """A template with {id} in its path or query is accepted."""
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
    """Any other template is refused, and the message states the rule."""
    with pytest.raises(ValueError, match=r"with \{id\} where the trained model's id goes, after"):
        check_template(template)


@pytest.mark.parametrize(
    "template", ["https://{key}@e.com/{id}?x={key}", "https://{key}.e.com/{id}"]
)
def test_a_key_is_never_a_part_of_the_host(template: str) -> None:
    """A template with {key} in its host is refused: the key would be sent to a name server."""
    with pytest.raises(ValueError, match=r"with \{id\} where"):
        check_template(template)


HOST = "https://trainer.example.com"


@pytest.mark.parametrize(
    "template",
    [
        f"{HOST}/{{id}}",
        f"{HOST}/{{key}}/models/{{id}}.safetensors",
        f"{HOST}:8443/api/v2/tenants/123456789012/trained-models-of-2024/{{id}}/download",
        f"{HOST}/sdxl-v2-lab3/{{id}}",
        f"{HOST}/{{id}}?key={{key}}",
        f"{HOST}/{{id}}?api_key={{key}}&format=safetensors&precision=fp16",
        f"{HOST}/get?model={{id}}.zip&v=1.5&api-version=2024-05-01&download",
        f"{HOST}/get?path=models/{{id}}&token={{key}}&verbose=",
    ],
)
def test_an_ordinary_template_contains_no_key(template: str) -> None:
    """A template with words, numbers, dates and versions is not taken to contain a key."""
    assert not contains_key(check_template(template))


@pytest.mark.parametrize(
    "rest",
    [
        pytest.param("9f86d081884c7d659a2feaa0c55ad015a3bf4f1b/{id}", id="digest in the path"),
        pytest.param("9f86d081884c7d65/{id}", id="short digest in the path"),
        pytest.param("1b4e28ba-2fa1-11d2-883f-0016d3cca427/{id}", id="UUID in the path"),
        pytest.param("1b4e28ba%2D2fa1%2D11d2/{id}", id="escapes in the path"),
        pytest.param("m/sk_live_4eC39HqLyjWD/{id}", id="prefixed key in the path"),
        pytest.param("{id}/" + "abcdefghijk" * 3, id="letters in the path"),
        pytest.param("{id};v=9f86d081884c7d65", id="parameter of the path"),
        pytest.param("{id}?k=shortsecret1", id="short value"),
        pytest.param("{id}?api=hunter2hunter2", id="word with digits"),
        pytest.param("{id}?v=CorrectHorse", id="capitals"),
        pytest.param("{id}?v=12345678901", id="long number"),
        pytest.param("{id}?pin=1234&token=abc", id="short value of a token"),
        pytest.param("{id}?k={id}hunter{key}2{id}hunter", id="around the places"),
        pytest.param("{id}?key={key}abc", id="half a key"),
        pytest.param("{id}?k=hunter%32", id="escape"),
        pytest.param("{id}?k=correct%20horse", id="blank"),
        pytest.param("{id}?shortsecret1", id="without a name"),
        pytest.param("{id}?shortsecret1=", id="as a name"),
        pytest.param("{id}?shortsecret1=yes", id="as a name with a value"),
        pytest.param("{id}?a=b=shortsecret1", id="second equals sign"),
        pytest.param("{id}?a=1&&&k=shortsecret1", id="empty pieces"),
        pytest.param("{id}#shortsecret1", id="fragment"),
    ],
)
def test_a_possible_key_in_a_template_is_found(rest: str) -> None:
    """In the query, any text that is not plain may be a key; in the path, any random text."""
    assert contains_key(check_template(f"{HOST}/{rest}"))


@given(st.text(min_size=1), st.from_regex(r"[A-Za-z0-9._-]{1,20}", fullmatch=True))
def test_a_key_is_one_segment_or_value(key: str, model: str) -> None:
    """Neither the key nor the id changes the rest of the link."""
    template = with_key("https://trainer.example.com/{key}/{id}?a={key}&b={id}", key)
    parts = urlsplit(trained_link(template, model))
    assert parts.path == f"/{quote(key, safe='')}/{quote(model)}"
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
    """The chart has the operator's pattern, so Helm rejects the same link templates."""
    assert (
        f"regexMatch `{TEMPLATE_PATTERN}`"
        in (ROOT / "charts/sd-operator/templates/_helpers.tpl").read_text()
    )
