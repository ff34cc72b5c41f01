"""The sources of the prediction type, in their order, and the warning for a guess."""

from __future__ import annotations

import pytest

from sd_api.choices import BaseModelName, PredictionType
from sd_loader.convert.plan.original import NO_ORIGINAL, OriginalConfig
from sd_loader.convert.plan.prediction import Prediction, decide_prediction
from tests.support.models.conversions import conversion

EPSILON, V = PredictionType.EPSILON, PredictionType.V_PREDICTION
CONFIG_V, CONFIG_EPSILON = (
    OriginalConfig(prediction_type=V),
    OriginalConfig(prediction_type=EPSILON),
)
MARK = {"v_pred"}
SAYS_V = {"modelspec.prediction_type": "v"}
SAYS_EPSILON = {"modelspec.prediction_type": "epsilon"}
BASE_STEP = {"global_step": "875000"}

SD2 = [
    pytest.param({}, set(), {}, NO_ORIGINAL, V, "set spec.predictionType: epsilon", id="default"),
    pytest.param(
        {"prediction_type": "epsilon", "upcast_attention": True},
        MARK,
        SAYS_V,
        CONFIG_V,
        EPSILON,
        None,
        id="spec.predictionType before all",
    ),
    pytest.param(
        {"upcast_attention": True},
        set(),
        SAYS_EPSILON,
        CONFIG_EPSILON,
        V,
        "spec.upcastAttention is true",
        id="then spec.upcastAttention",
    ),
    pytest.param(
        {"upcast_attention": False},
        set(),
        {},
        CONFIG_EPSILON,
        EPSILON,
        None,
        id="upcastAttention: false says nothing",
    ),
    pytest.param({}, MARK, SAYS_V, CONFIG_EPSILON, EPSILON, None, id="then the original config"),
    pytest.param({}, MARK, SAYS_EPSILON, NO_ORIGINAL, V, None, id="then the marker"),
    pytest.param({}, set(), SAYS_EPSILON, NO_ORIGINAL, EPSILON, None, id="then the metadata"),
    pytest.param(
        {},
        set(),
        {"modelspec.architecture": "stable-diffusion-v2-512"},
        NO_ORIGINAL,
        EPSILON,
        None,
        id="its architecture",
    ),
    pytest.param(
        {},
        set(),
        {"modelspec.architecture": "stable-diffusion-v2-768-v"},
        NO_ORIGINAL,
        V,
        None,
        id="its other architecture",
    ),
    pytest.param(
        {}, set(), BASE_STEP, NO_ORIGINAL, EPSILON, "global_step", id="then diffusers' old sign"
    ),
    pytest.param(
        {},
        set(),
        {"global_step": "1"},
        NO_ORIGINAL,
        V,
        "taken for",
        id="another step",
    ),
]


@pytest.mark.parametrize(("fields", "names", "metadata", "original", "expected", "warning"), SD2)
def test_stable_diffusion_2_uses_the_first_source_that_gives_a_type(
    fields, names, metadata, original, expected, warning
):
    """The rows are in order of precedence. Without a source, a warning explains the guess."""
    prediction = decide_prediction(
        BaseModelName.SD2, names, metadata, conversion(**fields), original
    )
    assert prediction.type is expected
    assert (prediction.warning is None) is (warning is None)
    assert warning is None or warning in prediction.warning


@pytest.mark.parametrize("family", [f for f in BaseModelName if f is not BaseModelName.SD2])
@pytest.mark.parametrize("fields", [{}, {"upcast_attention": True}])
def test_other_models_predict_noise_without_a_marker(family, fields):
    """Models of other families than SD 2 predict noise unless the file has a marker."""
    options = conversion(**fields)
    assert decide_prediction(family, set(), {}, options, NO_ORIGINAL) == Prediction(EPSILON)
    assert decide_prediction(family, MARK, {}, options, NO_ORIGINAL) == Prediction(V)


def test_inpainting_of_stable_diffusion_2_predicts_noise():
    """The published inpainting model predicts noise."""
    prediction = decide_prediction(
        BaseModelName.SD2, set(), {}, conversion(), NO_ORIGINAL, text_to_image=False
    )
    assert prediction == Prediction(EPSILON)


def test_zero_terminal_snr_marker_is_always_read():
    """The marker concerns only the schedule, so the spec's prediction type does not hide it."""
    options = conversion(prediction_type="v_prediction")
    prediction = decide_prediction(BaseModelName.SDXL, {"ztsnr"}, {}, options, NO_ORIGINAL)
    assert prediction == Prediction(V, zero_terminal_snr=True)
