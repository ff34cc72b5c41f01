"""spec.baseModel accepts only the families that the loader supports with spec.modelType."""

from __future__ import annotations

import pytest

from sd_api.choices import BaseModelName, ModelType
from sd_api.reasons import Reason
from sd_api.taxonomy import LOADED
from sd_loader.convert.conversion import refuse_impossible
from sd_loader.errors import LoaderError
from tests.support.models.conversions import conversion


def refusal(model_type: ModelType, base_model: BaseModelName) -> LoaderError | None:
    """Return the error of a spec with this type and family, or None if the spec is accepted."""
    try:
        refuse_impossible(conversion(model_type=model_type, base_model=base_model))
    except LoaderError as error:
        return error
    return None


@pytest.mark.parametrize("model_type", ModelType)
def test_a_family_without_models_of_the_type_is_refused(model_type: ModelType) -> None:
    """For each model type, the families that it does not support are refused, and no others."""
    errors = {base: refusal(model_type, base) for base in BaseModelName}
    assert {base for base, error in errors.items() if error is None} == LOADED[model_type]
    assert {error.reason for error in errors.values() if error} <= {Reason.INVALID_SPEC}


def test_the_message_names_the_families_that_load() -> None:
    """The message lists every family that this type accepts."""
    error = refusal(ModelType.EMBEDDINGS, BaseModelName.FLUX)
    assert error is not None
    assert error.message == (
        "spec.baseModel is flux, but with modelType embeddings only models of sd-1, sd-2, sdxl load"
    )
