"""Bad repos of other families are refused, each with its reason, before anything is published."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sd_api.reasons import Reason
from sd_loader.diffusers_repo.component_files import RepoFile, check_size
from sd_loader.diffusers_repo.listed import read_pipeline
from sd_loader.diffusers_repo.listed_files import choose_pipeline_files
from sd_loader.errors import LoaderError
from tests.support.models import familyrepos
from tests.support.models.familyloads import publish
from tests.support.models.familyrepos import DIFFUSION, NF4, Files, quantized

FLUX = "a FLUX pipeline (FluxPipeline): "
INDEX = f"transformer/{DIFFUSION}.safetensors.index.json"
SECOND = f"transformer/{DIFFUSION}-00002-of-00002.safetensors"


def without(name: str) -> Files:
    """Return FLUX without a file."""
    files = familyrepos.flux()
    del files[name]
    return files


def with_entry(name: str, **entries: Any) -> Files:
    """Return FLUX with further entries in a JSON file."""
    files = familyrepos.flux()
    return {**files, name: familyrepos.encoded({**json.loads(files[name]), **entries})}


def without_entry(component: str) -> Files:
    """Return FLUX without an entry of its index."""
    files = familyrepos.flux()
    index = json.loads(files["model_index.json"])
    del index[component]
    return {**files, "model_index.json": familyrepos.encoded(index)}


def with_index(weight_map: dict[str, Any] | None) -> Files:
    """Return FLUX with this index of the transformer's shards."""
    return {**familyrepos.flux(), INDEX: familyrepos.encoded({"weight_map": weight_map})}


def without_tokenizer() -> Files:
    """Return FLUX without the files of its second tokenizer."""
    files = familyrepos.flux()
    return {name: content for name, content in files.items() if "tokenizer_2/" not in name}


def twice() -> Files:
    """Return FLUX with a tensor in two shards."""
    return {**familyrepos.flux(), SECOND: familyrepos.weights(familyrepos.FLUX_TRANSFORMER[0])}


REFUSED = [
    pytest.param(
        without_entry("text_encoder_2"),
        Reason.UNSUPPORTED_FORMAT,
        f"{FLUX}model_index.json lacks text_encoder_2, without which diffusers does not open the"
        " pipeline: use a complete repo",
        id="missing component",
    ),
    pytest.param(
        without(SECOND),
        Reason.UNSUPPORTED_FORMAT,
        f"{FLUX}the repo lacks {SECOND}, one of the 2 shards of its weights",
        id="missing shard",
    ),
    pytest.param(
        without("transformer/config.json"),
        Reason.UNSUPPORTED_FORMAT,
        f"{FLUX}the repo lacks transformer/config.json",
        id="missing config",
    ),
    pytest.param(
        without_tokenizer(),
        Reason.UNSUPPORTED_FORMAT,
        f"{FLUX}the repo has no files of the tokenizer or processor tokenizer_2; it holds no files",
        id="missing tokenizer",
    ),
    pytest.param(
        with_index({"x": f"{DIFFUSION}-00001-of-00002.safetensors"}),
        Reason.DAMAGED_FILE,
        f"{FLUX}transformer: the index of the shards lists x in"
        f" {DIFFUSION}-00001-of-00002.safetensors, which does not have it",
        id="tensor that no shard has",
    ),
    pytest.param(
        with_index({"proj_out.bias": "../vae/diffusion_pytorch_model.safetensors"}),
        Reason.DAMAGED_FILE,
        f"{FLUX}transformer: the index of the shards lists proj_out.bias in"
        " ../vae/diffusion_pytorch_model.safetensors, which does not have it",
        id="index that leads elsewhere",
    ),
    pytest.param(
        with_index(None),
        Reason.DAMAGED_FILE,
        f"{FLUX}transformer: the index of the shards has no weight_map",
        id="index without a map",
    ),
    pytest.param(
        {**without(INDEX), SECOND: twice()[SECOND]},
        Reason.DAMAGED_FILE,
        f"{FLUX}transformer: two shards have a tensor x_embedder.weight",
        id="tensor in two shards",
    ),
    pytest.param(
        with_entry("tokenizer/tokenizer_config.json", auto_map={"AutoTokenizer": ["t.T", None]}),
        Reason.UNSAFE_MODEL,
        f"{FLUX}tokenizer/tokenizer_config.json asks for code of the repo (auto_map)",
        id="auto_map of a tokenizer",
    ),
    pytest.param(
        with_entry("transformer/config.json", auto_map={"AutoModel": "m.M"}),
        Reason.UNSAFE_MODEL,
        f"{FLUX}transformer/config.json asks for code of the repo (auto_map)",
        id="auto_map of a model",
    ),
    pytest.param(
        with_entry("transformer/config.json", extra={"auto_map": {"AutoModel": "m.M"}}),
        Reason.UNSAFE_MODEL,
        f"{FLUX}transformer/config.json asks for code of the repo (auto_map)",
        id="auto_map inside a model's config",
    ),
    pytest.param(
        with_entry("scheduler/scheduler_config.json", extra={"auto_map": {"x": "m.M"}}),
        Reason.UNSAFE_MODEL,
        f"{FLUX}scheduler/scheduler_config.json asks for code of the repo (auto_map)",
        id="auto_map inside a scheduler's config",
    ),
    pytest.param(
        with_entry("text_encoder_2/config.json", d_model=2**31),
        Reason.UNSUPPORTED_FORMAT,
        f"{FLUX}text_encoder_2/config.json: d_model is 2147483648, which T5Config cannot have",
        id="config that takes a terabyte",
    ),
    pytest.param(
        quantized("torchao", quant_type={"default": {"_type": "Int8"}}),
        Reason.UNSUPPORTED_FORMAT,
        f"{FLUX}transformer: the weights are quantized (torchao), which is not supported: use a"
        " version of the model in fp16, bf16 or fp32 (seen: quantization_config)",
        id="other quantizer",
    ),
    pytest.param(
        {**quantized(), "transformer/config.json": familyrepos.flux()["transformer/config.json"]},
        Reason.UNSUPPORTED_FORMAT,
        f"{FLUX}transformer: the weights are quantized (nf4, by bitsandbytes), which is not"
        " supported: use a version of the model in fp16, bf16 or fp32 (seen:"
        " x_embedder.weight.quant_state.bitsandbytes__nf4)",
        id="quantized weights without settings",
    ),
]


@pytest.mark.parametrize(("files", "reason", "message"), REFUSED)
def test_a_bad_repo_is_refused_and_nothing_is_written(tmp_path, files, reason, message):
    """The message begins with the pipeline and names the file or component."""
    refused(files, tmp_path, reason, message)


def test_a_quantized_repo_cannot_be_cast(tmp_path):
    """spec.revision is refused for a repo in nf4; the message says to remove it."""
    message = (
        "spec.revision is fp16, but the weights of transformer are quantized (nf4, by"
        " bitsandbytes) and cannot be cast: remove spec.revision to publish them unchanged"
    )
    refused(quantized(**NF4), tmp_path, Reason.INVALID_SPEC, FLUX + message, "fp16")


def refused(
    files: Files, tmp_path: Path, reason: Reason, message: str, revision: str | None = None
) -> None:
    """Assert that a repo is refused with this reason and message, and that nothing is written."""
    with pytest.raises(LoaderError) as caught:
        publish(files, tmp_path, revision)
    assert (caught.value.reason, caught.value.message) == (reason, message)
    assert not list((tmp_path / "out").iterdir())


def test_a_huge_tokenizer_is_refused_and_a_large_one_is_not():
    """A tokenizer.json of 34 MB is accepted, as large language models have it; 2 GB are refused."""
    files = {name: RepoFile(name, len(it)) for name, it in familyrepos.flux().items()}
    name = "tokenizer_2/tokenizer.json"
    pipeline = read_pipeline(familyrepos.flux()["model_index.json"])
    for size in (34 << 20, 2 << 30):
        files[name] = replace(files[name], size=size)
        chosen = choose_pipeline_files(files, pipeline, None)
        tokenizer = next(file for file in chosen if file.path == name)
        if size < 1 << 30:
            check_size(tokenizer)
            continue
        with pytest.raises(LoaderError) as caught:
            check_size(tokenizer)
        assert caught.value.reason is Reason.TOO_LARGE
        assert caught.value.message == (
            f"{name} is 2147483648 bytes; a file of a tokenizer or processor may have at most"
            " 134217728"
        )


def test_a_tokenizer_cannot_name_other_files(tmp_path):
    """Settings that name files, such as vocab_file: /etc/passwd, are left out of the config."""
    name = "tokenizer/tokenizer_config.json"
    files = with_entry(name, vocab_file="/etc/passwd", fast_tokenizer_files=["x.json"])
    out, _result = publish(files, tmp_path)
    assert json.loads((out / name).read_text()) == {"tokenizer_class": "CLIPTokenizer"}
