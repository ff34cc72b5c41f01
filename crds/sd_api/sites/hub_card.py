"""Makes a card from the YAML front matter of a Hub repo's README.md, as the Hub's API parses it."""

from __future__ import annotations

from collections.abc import Mapping

from sd_api.card import Card
from sd_api.sites.clean import entries, first_text, page, text, words

_SETTINGS = {"num_inference_steps": "steps", "guidance_scale": "guidance"}
"""Names of recommended settings, by the names of the parameters of the Hub's inference."""
_OTHER_LICENSE = "other"


def card_of_repo(repo_id: str, endpoint: str, front_matter: Mapping[str, object]) -> Card:
    """Return the card of a repo."""
    author, _, name = repo_id.rpartition("/")
    license_name = first_text(front_matter.get("license"))
    if license_name in (None, _OTHER_LICENSE):
        license_name = text(front_matter.get("license_name")) or license_name
    return Card(
        title=text(name),
        trigger_words=words([front_matter.get("instance_prompt")]),
        based_on=first_text(front_matter.get("base_model")),
        license=license_name,
        author=text(author),
        recommended=_recommended(front_matter.get("inference")),
        page=page(f"{endpoint.rstrip('/')}/{repo_id}"),
    )


def _recommended(inference: object) -> str | None:
    parameters = dict(entries(dict(entries(inference)).get("parameters")))
    shown = (
        f"{name} {parameters[parameter]}"
        for parameter, name in _SETTINGS.items()
        if type(parameters.get(parameter)) in (int, float)
    )
    return text(", ".join(shown))
