"""Makes a model card from the metadata of a file.

People write the entries `modelspec.*` into the file. The entries of a training program (kohya's
`ss_*`) count only for fields that the entries `modelspec.*` leave empty.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from sd_api.card import Card
from sd_api.sites.clean import entries, parsed, resolution, text, words

_MOST_EQUAL = 4
"""Maximum number of tags that share the highest count. If more share it, they are captions, not
trigger words."""

_TRADE_NAMES = {
    "pony": "Pony",
    "illustrious": "Illustrious",
    "noobai": "NoobAI",
    "animagine": "Animagine XL",
}
"""Trade names by a part of the base model's file name."""

_VERSIONS = {
    "sd_v1": "SD 1",
    "sd_v2": "SD 2",
    "sd_v2_v": "SD 2",
    "sdxl_base_v0-9": "SDXL 0.9",
    "sdxl_base_v1-0": "SDXL 1.0",
    "sd3": "SD 3",
    "flux1": "FLUX.1",
}
"""Trade names by the value of `ss_base_model_version`."""


def card_of_metadata(metadata: Mapping[str, str]) -> Card:
    """Return the card of a file. Fields for which the metadata has no value are empty."""
    return _written(metadata).over(_recorded(metadata))


def _written(metadata: Mapping[str, str]) -> Card:
    return Card(
        title=text(metadata.get("modelspec.title")),
        trigger_words=words([metadata.get("modelspec.trigger_phrase")]),
        license=text(metadata.get("modelspec.license")),
        author=text(metadata.get("modelspec.author")),
        resolution=resolution(metadata.get("modelspec.resolution")),
        recommended=text(metadata.get("modelspec.usage_hint")),
    )


def _recorded(metadata: Mapping[str, str]) -> Card:
    return Card(
        title=text(metadata.get("ss_output_name")),
        trigger_words=words(_frequent(metadata.get("ss_tag_frequency"))),
        based_on=_base(metadata),
        resolution=resolution(metadata.get("ss_resolution")),
    )


def _frequent(frequency: str | None) -> Iterator[str]:
    """Yield the most frequent tags of each folder of training images, unless they are too many.

    A trigger word is in the caption of every image in its folder.
    """
    for _, tags in entries(parsed(frequency)):
        counts = {tag: count for tag, count in entries(tags) if type(count) is int}
        most_often = max(counts.values(), default=0)
        most = [tag for tag, count in counts.items() if count == most_often]
        if len(most) <= _MOST_EQUAL:
            yield from most


def _base(metadata: Mapping[str, str]) -> str | None:
    """Return the base model's trade name, or else its file name or version."""
    # Textual inversion records the name of its checkpoint as sd_checkpoint_name.
    path = metadata.get("ss_sd_model_name") or metadata.get("sd_checkpoint_name") or ""
    # The folders of the machine that trained the model are private, so they are left out.
    name = path.replace("\\", "/").rsplit("/", 1)[-1]
    for part, trade_name in _TRADE_NAMES.items():
        if part in name.lower():
            return trade_name
    stem = name.removesuffix(".safetensors").removesuffix(".ckpt")
    version = metadata.get("ss_base_model_version") or ""
    return text(stem) or _VERSIONS.get(version) or text(version)
