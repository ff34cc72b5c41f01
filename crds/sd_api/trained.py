"""Links of trained models: the administrator's template with the bare id of spec.url in it.

Users choose the id, so it must not choose the host: it stands after the host, and is quoted.
"""

from __future__ import annotations

import re
from urllib.parse import quote, unquote, urlsplit

from sd_api.netguard import effective_port
from sd_api.redaction import is_secret_name
from sd_api.spec import ModelType
from sd_api.url_forms import BARE_ID_PATTERN

TEMPLATE_PATTERN = r"^https?://[^\s/?#{}]+[/?]\S*\{id\}\S*$"
"""The chart checks its value by the same pattern."""
TEMPLATE_RULE = (
    "must be an http(s) link with {id} where the trained model's id goes, after the host"
)


KEY = "{key}"
"""Stands for the administrator's key in a template's query, which no message shows."""
KEY_RULE = f"may have {KEY} only in its query"
_KEY_MIN_LENGTH = 20
"""Keys have at least this length; ordinary values in a query are shorter."""


def check_template(text: str) -> str:
    """Return the template; raise ValueError if it is not a link, or {id} could choose the host."""
    try:
        parts = urlsplit(text)
        has_address = bool(parts.hostname) and effective_port(parts) > 0
    except ValueError:
        has_address = False
    if not has_address or re.fullmatch(TEMPLATE_PATTERN, text) is None:
        raise ValueError(TEMPLATE_RULE)
    if KEY in text.partition("?")[0]:
        raise ValueError(KEY_RULE)
    return text


def contains_key(template: str) -> bool:
    """Whether a template contains a login or a key; {key} alone is not a key."""
    place, *query = re.split("[?&;#]", template)
    pieces = [piece.partition("=") for piece in query]
    return "@" in urlsplit(place).netloc or any(
        _is_key(unquote(name), unquote(value or name)) for name, _, value in pieces
    )


def _is_key(name: str, value: str) -> bool:
    """Whether a parameter's value is a key: by the parameter's name, or by its own form."""
    written = value.replace("{id}", "")
    if KEY in written:
        written = written.replace(KEY, "")
    elif is_secret_name(name) and written:
        return True
    looks_random = re.search("[0-9]", written) and re.search("[A-Za-z]", written)
    return len(written) >= _KEY_MIN_LENGTH and looks_random is not None


def is_trained_id(url: str, model_type: ModelType | None) -> bool:
    """Whether a source is a trained model's bare id, which needs the template."""
    return model_type is ModelType.API_TRAINED and re.fullmatch(BARE_ID_PATTERN, url) is not None


def with_key(template: str, key: str | None) -> str:
    """Replace {key} in the template by the key; without a key, return the template as it is."""
    return template if key is None else template.replace(KEY, quote(key, safe=""))


def trained_link(template: str, model: str) -> str:
    """The link of the trained model with this id."""
    return template.replace("{id}", quote(model, safe=""))
