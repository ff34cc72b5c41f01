"""The options of the loader's command line."""

from __future__ import annotations

import pytest

from sd_api.choices import BaseModelName
from sd_loader.arguments import parser

LOAD = ["load", "--model-id", "m", "--store", "s", "--base-model"]


@pytest.mark.parametrize(
    ("text", "family"),
    [("sd-1", BaseModelName.SD1), ("SD 1.5", BaseModelName.SD1), ("Flux.1 D", BaseModelName.FLUX)],
)
def test_base_model_is_read_as_people_write_it(text: str, family: BaseModelName) -> None:
    """Each spelling is parsed to the member of BaseModelName."""
    assert parser().parse_args([*LOAD, text]).base_model is family


def test_unknown_base_model_is_refused_with_the_families(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The message names the option, what was given and what may be given."""
    with pytest.raises(SystemExit):
        parser().parse_args([*LOAD, "sd-9"])
    message = capsys.readouterr().err
    assert "--base-model: 'sd-9' is not a family; the families are sd-1, sd-2, sdxl," in message
