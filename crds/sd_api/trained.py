"""Links of trained models: the administrator's template with the bare id of spec.url in it.

Users choose the id, so it must not choose the host: it stands after the host, and is quoted.
"""

from __future__ import annotations

import re
from urllib.parse import quote, unquote, urlsplit

from sd_api.choices import ModelType
from sd_api.netguard import effective_port
from sd_api.redaction import is_secret_name
from sd_api.url_forms import BARE_ID_PATTERN

TEMPLATE_PATTERN = r"^https?://[^\s/?#{}]+[/?]\S*\{id\}\S*$"
"""The pattern of a template. The chart checks its value for the template by this pattern, too."""
TEMPLATE_RULE = (
    "must be an http(s) link with {id} where the trained model's id goes, after the host"
)
KEY = "{key}"
"""Placeholder for the administrator's key in a template's path or query. No message shows the key
itself."""
KEY_FREE_RULE = (
    "must not contain a login or a key, and nothing that looks like one: the query may have plain"
    " values only, such as format=zip or v=1.5"
)
_PLAIN = re.compile(r"[a-z/._-]{0,32}|[0-9.-]{1,10}|[a-z0-9/._-]{1,6}")
"""Names and values that are not keys: words, numbers and dates, and short mixtures such as fp16."""
_MIXED_MIN_LENGTH = 12
"""Words that mix letters and digits are a key if those of a segment have this length in all."""
_LETTERS_MAX_LENGTH = 32
"""A longer word in a path is a key, even if it has letters only."""


def check_template(text: str) -> str:
    """Return the template; raise ValueError unless it is a link that has {id} after its host."""
    try:
        parts = urlsplit(text)
        has_address = bool(parts.hostname) and effective_port(parts) > 0
    except ValueError:
        has_address = False
    if not has_address or re.fullmatch(TEMPLATE_PATTERN, text) is None:
        raise ValueError(TEMPLATE_RULE)
    return text


def contains_key(template: str) -> bool:
    """Whether a template contains a login, or something that may be a key. {key} is not a key.

    In the query, every value that is not plain counts as a key. The path may have names of all
    kinds, so only a segment that looks random counts as a key there.
    """
    place, *query = re.split("[?&;#]", template)
    parts = urlsplit(place)
    return (
        "@" in parts.netloc
        or any(_looks_random(segment) for segment in parts.path.split("/"))
        or any(_may_be_key(*piece.partition("=")) for piece in query)
    )


def _looks_random(segment: str) -> bool:
    """Whether a segment of a path has the form of a key: a digest, a UUID, a token."""
    words = re.findall("[A-Za-z0-9]+", _written(segment))
    mixed = [word for word in words if not word.isalpha() and not word.isdecimal()]
    return (
        sum(map(len, mixed)) >= _MIXED_MIN_LENGTH
        or max(map(len, words), default=0) > _LETTERS_MAX_LENGTH
    )


def _may_be_key(name: str, equals: str, value: str) -> bool:
    """Return True if a parameter may hold a key.

    This is so if its name or value has other than plain characters, or if secrets have its name.
    """
    name, value = unquote(name), _written(value)
    if not equals:
        name, value = "", _written(name)
    is_plain = _PLAIN.fullmatch(name.lower()) and _PLAIN.fullmatch(value)
    return is_plain is None or (is_secret_name(name) and value != "")


def _written(text: str) -> str:
    """Return a piece of the template without the placeholders {id} and {key}, percent-decoded."""
    return unquote(text.replace("{id}", "").replace(KEY, ""))


def is_trained_id(url: str, model_type: ModelType | None) -> bool:
    """Whether a source is a trained model's bare id, which needs the template."""
    return model_type is ModelType.API_TRAINED and re.fullmatch(BARE_ID_PATTERN, url) is not None


def with_key(template: str, key: str | None) -> str:
    """Replace {key} in the template by the key; without a key, return the template as it is."""
    return template if key is None else template.replace(KEY, quote(key, safe=""))


def trained_link(template: str, model: str) -> str:
    """The link of the trained model with this id."""
    return template.replace("{id}", quote(model, safe=""))
