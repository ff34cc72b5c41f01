"""What a UNet predicts is decided by the first that says it, and a guess is said to be one."""

from __future__ import annotations

import pytest

from sd_api.spec import BaseModelName, PredictionType
from sd_loader.convert.plan.original import NOTHING_SAID, OriginalConfig
from sd_loader.convert.plan.prediction import Prediction, decide
from tests.support.models.conversions import load_request

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
    pytest.param({}, set(), {}, NOTHING_SAID, V, "set spec.predictionType: epsilon", id="default"),
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
        id="nor does false",
    ),
    pytest.param({}, MARK, SAYS_V, CONFIG_EPSILON, EPSILON, None, id="then the original config"),
    pytest.param({}, MARK, SAYS_EPSILON, NOTHING_SAID, V, None, id="then the marker"),
    pytest.param({}, set(), SAYS_EPSILON, NOTHING_SAID, EPSILON, None, id="then the metadata"),
    pytest.param(
        {},
        set(),
        {"modelspec.architecture": "stable-diffusion-v2-512"},
        NOTHING_SAID,
        EPSILON,
        None,
        id="its architecture",
    ),
    pytest.param(
        {},
        set(),
        {"modelspec.architecture": "stable-diffusion-v2-768-v"},
        NOTHING_SAID,
        V,
        None,
        id="its other architecture",
    ),
    pytest.param(
        {}, set(), BASE_STEP, NOTHING_SAID, EPSILON, "global_step", id="then diffusers' old sign"
    ),
    pytest.param(
        {},
        set(),
        {"global_step": "1"},
        NOTHING_SAID,
        V,
        "taken for",
        id="another step",
    ),
]


@pytest.mark.parametrize(("fields", "names", "metadata", "original", "expected", "said"), SD2)
def test_stable_diffusion_2_takes_the_first_that_says_it(
    fields, names, metadata, original, expected, said
):
    """In this order; and where none says it, how it was decided is told."""
    found = decide(BaseModelName.SD2, names, metadata, load_request(**fields), original)
    assert found.type is expected
    assert (found.said is None) is (said is None)
    assert said is None or said in found.said


@pytest.mark.parametrize("family", [f for f in BaseModelName if f is not BaseModelName.SD2])
@pytest.mark.parametrize("fields", [{}, {"upcast_attention": True}])
def test_others_predict_noise_unless_they_say_so(family, fields):
    """No v-model of these was published without a marker: nothing is guessed."""
    request = load_request(**fields)
    assert decide(family, set(), {}, request, NOTHING_SAID) == Prediction(EPSILON)
    assert decide(family, MARK, {}, request, NOTHING_SAID) == Prediction(V)


def test_inpainting_with_stable_diffusion_2_predicts_noise():
    """The one that was published does."""
    found = decide(BaseModelName.SD2, set(), {}, load_request(), NOTHING_SAID, text_to_image=False)
    assert found == Prediction(EPSILON)


def test_zero_terminal_snr_is_read_whoever_decides():
    """The marker speaks of the schedule alone."""
    request = load_request(prediction_type="v_prediction")
    found = decide(BaseModelName.SDXL, {"ztsnr"}, {}, request, NOTHING_SAID)
    assert found == Prediction(V, zero_terminal_snr=True)
