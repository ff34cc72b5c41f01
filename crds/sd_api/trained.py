"""Links of trained models: the administrator's template with the bare id of spec.url in it.

Users choose the id, so it must not choose the host: it stands after the host, and is quoted.
"""

from __future__ import annotations

import re
from urllib.parse import quote, urlsplit

from sd_api.netguard import effective_port
from sd_api.spec import ModelType
from sd_api.url_forms import BARE_ID_PATTERN

TEMPLATE_PATTERN = r"^https?://[^\s/?#{}]+[/?]\S*\{id\}\S*$"
"""The chart checks its value by the same pattern."""
TEMPLATE_RULE = (
    "must be an http(s) link with {id} where the trained model's id goes, after the host"
)


def check_template(text: str) -> str:
    """Return the template; raise ValueError if it is not a link, or {id} could choose the host."""
    try:
        parts = urlsplit(text)
        has_address = bool(parts.hostname) and effective_port(parts) > 0
    except ValueError:
        has_address = False
    if not has_address or re.fullmatch(TEMPLATE_PATTERN, text) is None:
        raise ValueError(TEMPLATE_RULE)
    return text


def is_trained_id(url: str, model_type: ModelType | None) -> bool:
    """Whether a source is a trained model's bare id, which needs the template."""
    return model_type is ModelType.API_TRAINED and re.fullmatch(BARE_ID_PATTERN, url) is not None


def trained_link(template: str, model: str) -> str:
    """The link of the trained model with this id."""
    return template.replace("{id}", quote(model, safe=""))
