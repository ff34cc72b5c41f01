"""`spec.lora.expandLycoris` publishes a LoHa or LoKr as a LoRA that makes the same changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sd_api.reasons import Reason
from sd_loader.convert.plan.needs import Needs, needs
from sd_loader.errors import LoaderError
from sd_loader.formats import open_tensor_file
from sd_loader.request import conversion_of
from tests.support.models import loraarrays
from tests.support.models.loraarrays import Arrays, random, request, write

EXPAND = {"expandLycoris": True}

BLOCK = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_"
QUERY = f"{BLOCK}attn1_to_q"
CROSS = f"{BLOCK}attn2_to_k"
CONV = "lora_unet_down_blocks_1_resnets_0_conv2"
PROJECTION = "lora_unet_down_blocks_1_attentions_0_proj_in"
LAYERS = {QUERY: (64, 64), CROSS: (64, 768), CONV: (64, 64, 3, 3)}
"""Shapes in a narrow SD 1."""
RANK = 4
FACTOR = 8


def loha(layer: str, outputs: int, inputs: int, rank: int = RANK) -> Arrays:
    """Return a LoHa layer."""
    return {
        f"{layer}.hada_w1_a": random(1, outputs, rank),
        f"{layer}.hada_w1_b": random(2, rank, inputs),
        f"{layer}.hada_w2_a": random(3, outputs, rank),
        f"{layer}.hada_w2_b": random(4, rank, inputs),
        f"{layer}.alpha": np.array(2, "float16"),
    }


def lokr(layer: str, outputs: int, inputs: int, *, factored: bool = False) -> Arrays:
    """Return a LoKr layer. factored: the first matrix is a product, as the second one is."""
    first = {
        f"{layer}.lokr_w1_a": random(1, FACTOR, 2),
        f"{layer}.lokr_w1_b": random(2, 2, FACTOR),
    }
    return {
        **(first if factored else {f"{layer}.lokr_w1": random(1, FACTOR, FACTOR)}),
        f"{layer}.lokr_w2_a": random(3, outputs // FACTOR, RANK),
        f"{layer}.lokr_w2_b": random(4, RANK, inputs // FACTOR),
        f"{layer}.alpha": np.array(2, "float16"),
    }


def change(arrays: Arrays, layer: str) -> np.ndarray:
    """Return the change of a LyCORIS layer as LyCORIS computes it, in double precision."""
    own = {
        name.removeprefix(f"{layer}."): array.astype("f8")
        for name, array in arrays.items()
        if name.startswith(f"{layer}.")
    }
    scale = own["alpha"] / RANK if "alpha" in own else 1.0
    if "hada_w1_a" in own:
        left, right = own["hada_w1_a"] @ own["hada_w1_b"], own["hada_w2_a"] @ own["hada_w2_b"]
        return left * right * scale
    first = own["lokr_w1"] if "lokr_w1" in own else own["lokr_w1_a"] @ own["lokr_w1_b"]
    return np.kron(first, own["lokr_w2_a"] @ own["lokr_w2_b"]) * scale


def lora_change(arrays: Arrays, layer: str) -> np.ndarray:
    """Return the change of a LoRA layer, in double precision."""
    down = arrays[f"{layer}.lora_down.weight"].astype("f8")
    up = arrays[f"{layer}.lora_up.weight"].astype("f8")
    scale = float(arrays[f"{layer}.alpha"]) / len(down)
    return up.reshape(len(up), -1) @ down.reshape(len(down), -1) * scale


def flat(shape: tuple[int, ...]) -> tuple[int, int]:
    """Outputs and inputs of a layer. The kernel of a convolution counts as inputs."""
    return shape[0], int(np.prod(shape[1:]))


def loaded(folder: Path, arrays: Arrays, **fields: object):
    """Load a LoRA with its LyCORIS layers expanded; return the result and the published arrays."""
    return loraarrays.loaded(folder, arrays, **{"lora": EXPAND, **fields})


KINDS = {
    "LoHa": (loha, RANK * RANK),
    "LoKr": (lokr, FACTOR * RANK),
    "LoKr of products": (lambda *layer: lokr(*layer, factored=True), 2 * RANK),
}


@pytest.mark.parametrize("kind", KINDS)
def test_expanded_layers_change_the_model_as_the_lycoris_does(tmp_path, kind):
    """The expanded LoRA makes the same change as the LyCORIS layers.

    It has single precision, in which products of half-precision numbers are exact.
    """
    make, rank = KINDS[kind]
    arrays = {
        key: a for name, shape in LAYERS.items() for key, a in make(name, *flat(shape)).items()
    }
    converted, published = loaded(tmp_path, arrays)
    for layer, shape in LAYERS.items():
        wanted, found = change(arrays, layer), lora_change(published, layer)
        assert np.abs(wanted - found).max() <= 1e-12 * np.abs(wanted).max()
        down = published[f"{layer}.lora_down.weight"]
        assert down.shape == (rank, *shape[1:])
        assert down.dtype == np.float32
    assert not any("hada" in name or "lokr" in name for name in published)
    assert converted.lora_rank == rank
    assert converted.base_model == "sd-1"
    assert converted.warnings[0] == (
        f"3 {kind[:4]} layers are expanded to LoRA layers of rank up to {rank}"
    )


def test_a_lycoris_of_a_transformer_is_expanded_like_any_other(tmp_path):
    """The change is compared in the layer's first eight rows."""
    layer = "lora_unet_double_blocks_0_img_attn_proj"
    arrays = loha(layer, 3072, 3072)
    _, published = loaded(tmp_path, arrays)
    few = {name: array[:8] if name.endswith("_a") else array for name, array in arrays.items()}
    up = f"{layer}.lora_up.weight"
    wanted, found = change(few, layer), lora_change(published | {up: published[up][:8]}, layer)
    assert np.abs(wanted - found).max() <= 1e-12 * np.abs(wanted).max()


def test_all_expanded_layers_share_one_alpha(tmp_path):
    """Diffusers ignores further alphas. The changes stay the same if ranks and scales differ."""
    small = loha(QUERY, 64, 64)
    large = {
        f"{CROSS}.{name}": array
        for name, array in {
            "hada_w1_a": random(1, 64, 2),
            "hada_w1_b": random(2, 2, 768),
            "hada_w2_a": random(3, 64, 2),
            "hada_w2_b": random(4, 2, 768),
        }.items()
    }
    converted, published = loaded(tmp_path, small | large)
    assert len({float(a) for name, a in published.items() if name.endswith("alpha")}) == 1
    found = lora_change(published, CROSS)
    wanted = change(large, CROSS)
    assert np.abs(wanted - found).max() <= 1e-6 * np.abs(wanted).max()
    assert converted.lora_rank == RANK * RANK


def test_a_lora_in_the_same_file_stays_as_it_is(tmp_path):
    """Only LyCORIS layers change."""
    own = {
        f"{CROSS}.lora_down.weight": random(1, 4, 768),
        f"{CROSS}.lora_up.weight": random(2, 64, 4),
        f"{CROSS}.alpha": np.array(1, "float16"),
    }
    _, published = loaded(tmp_path, loha(QUERY, 64, 64) | own)
    for name, array in own.items():
        assert published[name].tobytes() == array.tobytes()


def test_revision_is_the_precision_of_an_expanded_lora(tmp_path):
    """With spec.revision fp16, an expanded LoRA has half precision, which rounds each product."""
    _, published = loaded(tmp_path, loha(CROSS, 64, 768), revision="fp16")
    assert published[f"{CROSS}.lora_up.weight"].dtype == np.float16


@pytest.mark.parametrize(("base_model", "dimensions"), [("sd-1", 4), ("sd-2", 2)])
def test_spec_decides_whether_a_projection_is_a_convolution(tmp_path, base_model, dimensions):
    """SD 1 has a convolution and SD 2 a matrix. The LoHa's tensors have two dimensions for both."""
    arrays = loha(PROJECTION, 64, 64)
    with pytest.raises(LoaderError, match=r"spec\.baseModel says which"):
        loaded(tmp_path / "undecided", arrays)
    _, published = loaded(tmp_path / "decided", arrays, base_model=base_model)
    assert published[f"{PROJECTION}.lora_down.weight"].ndim == dimensions


def without(arrays: Arrays, ending: str) -> Arrays:
    """The arrays whose names do not have this ending."""
    return {name: array for name, array in arrays.items() if not name.endswith(ending)}


FULL = without(without(lokr(QUERY, 64, 64), "w2_a"), "w2_b") | {f"{QUERY}.lokr_w2": random(5, 8, 8)}
REFUSED = {
    "full LoKr": (FULL, Reason.UNSUPPORTED_FORMAT, "which no LoRA equals"),
    "Tucker": (
        loha(QUERY, 64, 64) | {f"{QUERY}.hada_t1": random(5, 4, 4, 3, 3)},
        Reason.CONVERSION_FAILED,
        "hada_t1 has the shape",
    ),
    "a factor is missing": (
        without(loha(QUERY, 64, 64), "w2_a"),
        Reason.UNSUPPORTED_FORMAT,
        "hada_w1_a, hada_w1_b, hada_w2_b",
    ),
    "rank of the factors": (
        loha(QUERY, 64, 64) | {f"{QUERY}.hada_w2_b": random(5, 3, 64)},
        Reason.CONVERSION_FAILED,
        "hada_w2_b has the shape [3, 64]",
    ),
    "rank of LoKr": (
        lokr(QUERY, 64, 64) | {f"{QUERY}.lokr_w2_b": random(5, 3, 8)},
        Reason.CONVERSION_FAILED,
        "lokr_w2_b has the shape [3, 8]",
    ),
    "full rank": (
        loha(QUERY, 64, 64, rank=8),
        Reason.UNSUPPORTED_FORMAT,
        "would have rank 64, which is full for a layer of [64, 64]: merge it",
    ),
    "width": (loha(QUERY, 64, 32), Reason.CONVERSION_FAILED, "change a layer of shape [64, 32]"),
    "unknown layer": (loha("lora_unet_x", 64, 64), Reason.CONVERSION_FAILED, "has no layer for"),
    "two alphas": (
        loha(QUERY, 64, 64) | {f"{QUERY}.alpha": random(5, 2)},
        Reason.CONVERSION_FAILED,
        "should be one number",
    ),
    "alpha that is not a number": (
        loha(CROSS, 64, 768) | {f"{CROSS}.alpha": np.array(np.nan, "float16")},
        Reason.VERIFICATION_FAILED,
        "alpha is nan",
    ),
    "DoRA": (
        loha(CROSS, 64, 768) | {f"{CROSS}.dora_scale": random(5, 64)},
        Reason.UNSUPPORTED_FORMAT,
        "DoRA",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_layers_that_cannot_be_expanded_are_refused(tmp_path, case):
    """The message states the cause, and nothing is published."""
    arrays, reason, message = REFUSED[case]
    with pytest.raises(LoaderError) as caught:
        loaded(tmp_path, arrays)
    assert caught.value.reason is reason
    assert message in caught.value.message
    assert not list((tmp_path / "out").iterdir())


def test_expansion_is_offered_where_it_is_possible(tmp_path):
    """The message for a LoHa offers spec.lora.expandLycoris. That for a full LoKr does not."""
    for number, (arrays, offered) in enumerate([(loha(CROSS, 64, 768), True), (FULL, False)]):
        with pytest.raises(LoaderError) as caught:
            loaded(tmp_path / str(number), arrays, lora={})
        assert ("spec.lora.expandLycoris: true" in caught.value.message) is offered


def test_a_file_that_would_expand_to_more_than_the_limit_is_refused(tmp_path):
    """A LoKr of 3 MB would become a LoRA of 12 GB."""
    arrays = {
        f"{QUERY}.lokr_w1": random(1, 4000, 1),
        f"{QUERY}.lokr_w2_a": random(2, 4000, 200),
        f"{QUERY}.lokr_w2_b": random(3, 200, 4000),
    }
    with pytest.raises(LoaderError, match="and at most 8 are allowed"):
        loaded(tmp_path, arrays)


def test_the_file_is_downloaded_completely_before_it_is_expanded(tmp_path):
    """`needs` asks for the whole file: the plan of an expanded LoRA needs the file's numbers."""
    with open_tensor_file(write(tmp_path / "file", loha(CROSS, 64, 768))) as file:
        assert needs(file, conversion_of(request(lora=EXPAND))).whole_file
        assert needs(file, conversion_of(request())) == Needs()


def test_spec_lora_is_refused_for_other_model_types(tmp_path):
    """spec.lora is refused for a model type other than lora, instead of being ignored."""
    with pytest.raises(LoaderError, match=r"spec\.lora is for LoRAs; modelType is vae") as caught:
        loaded(tmp_path, loha(CROSS, 64, 768), model_type="vae")
    assert caught.value.reason is Reason.INVALID_SPEC
