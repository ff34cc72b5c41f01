"""Error messages begin with the field of the spec."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from sd_api.reasons import Reason
from sd_loader.errors import LoaderError, TransientError, naming, prefixing


@pytest.mark.parametrize(
    ("error", "message"),
    [
        pytest.param(
            LoaderError(Reason.NOT_A_MODEL, "the file is empty"),
            "spec.vae.url: the file is empty",
            id="names no field",
        ),
        pytest.param(
            LoaderError(Reason.NOT_A_MODEL, "not a link", field="spec.vae.url"),
            "spec.vae.url: not a link",
            id="names its field",
        ),
        pytest.param(
            TransientError(Reason.NOT_A_MODEL, "h answered 503", after=3),
            "spec.vae.url: h answered 503",
            id="transient",
        ),
    ],
)
def test_error_names_its_field_once(error: LoaderError, message: str) -> None:
    """A model has several sources, so the message names the field of the one that failed."""
    with pytest.raises(LoaderError) as caught, naming("spec.vae.url"):
        raise error
    assert (caught.value.reason, caught.value.message) == (Reason.NOT_A_MODEL, message)
    assert str(caught.value) == message


@pytest.mark.parametrize("add", [naming, prefixing])
def test_remedy_of_an_error_is_kept(add: Callable[[str], AbstractContextManager[None]]) -> None:
    """A prefix changes only the message. The error keeps its own remedy, not the reason's."""
    with pytest.raises(LoaderError) as caught, add("spec.vae.url"):
        raise LoaderError(Reason.SOURCE_NOT_FOUND, "no such file", remedy="Give another path.")
    assert caught.value.remedy == "Give another path."


def test_other_errors_pass_unchanged() -> None:
    """`naming` changes only a LoaderError."""
    with pytest.raises(ValueError, match=r"^x$"), naming("spec.vae.url"):
        raise ValueError("x")
