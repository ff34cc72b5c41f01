"""Tokenizers and processors are published with known settings only, and with valid values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sd_api.reasons import Reason
from sd_loader.convert.plan.repo_configs import settings_file
from sd_loader.errors import LoaderError
from tests.support.models.familyrepos import encoded

TOKENIZER, SPECIAL, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
IMAGES, PROCESSOR = "preprocessor_config.json", "processor_config.json"
TEMPLATE, GENERATION = "chat_template.json", "generation_config.json"

QWEN = {
    "add_bos_token": False,
    "add_prefix_space": False,
    "added_tokens_decoder": {
        "151643": {
            "content": "<|endoftext|>",
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": True,
        }
    },
    "additional_special_tokens": ["<|im_start|>", "</s>"],
    "bos_token": None,
    "chat_template": "{% for message in messages %}{{ message.content }}{% endfor %}",
    "clean_up_tokenization_spaces": False,
    "eos_token": "<|im_end|>",
    "errors": "replace",
    "extra_special_tokens": {"image_token": "<image>"},
    "image_token": {"__type": "AddedToken", "content": "<image>", "special": True},
    "model_max_length": 1000000000000000019884624838656,
    "pad_token": "<|endoftext|>",
    "processor_class": "Qwen2_5_VLProcessor",
    "split_special_tokens": False,
    "tokenizer_class": "Qwen2Tokenizer",
    "unk_token": None,
}
PICTURES = {
    "do_convert_rgb": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_processor_type": "Qwen2VLImageProcessor",
    "max_pixels": 12845056,
    "merge_size": 2,
    "min_pixels": 3136,
    "patch_size": 14,
    "processor_class": "Qwen2_5_VLProcessor",
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"longest_edge": 12845056, "shortest_edge": 3136},
}
PIXTRAL = {
    "image_break_token": "[IMG_BREAK]",
    "image_end_token": "[IMG_END]",
    "image_processor": PICTURES,
    "image_token": "[IMG]",
    "patch_size": 14,
    "processor_class": "PixtralProcessor",
    "spatial_merge_size": 2,
}
GENERATING = {
    "bos_token_id": 151643,
    "do_sample": True,
    "eos_token_id": [151645, 151643],
    "pad_token_id": 151643,
    "repetition_penalty": 1.05,
    "temperature": 0.1,
    "top_k": 1,
    "top_p": 0.001,
}
REAL = {
    TOKENIZER: QWEN,
    SPECIAL: {"additional_special_tokens": ["<|im_start|>"], "eos_token": {"content": "</s>"}},
    ADDED: {"<|im_start|>": 151644, "a_file": 151645},
    IMAGES: PICTURES,
    "video_preprocessor_config.json": {**PICTURES, "fps": 2.0, "temporal_patch_size": 2},
    PROCESSOR: PIXTRAL,
    TEMPLATE: {"chat_template": "{{ messages }}"},
    GENERATION: GENERATING,
}


def published(folder: Path, name: str, content: bytes) -> bytes:
    """Return the published bytes of a file."""
    (folder / name).write_bytes(content)
    return settings_file(folder / name, f"part/{name}").content


@pytest.mark.parametrize("name", REAL)
def test_a_file_with_known_settings_keeps_its_bytes(tmp_path, name):
    """A file with settings of real models, such as Qwen-Image and FLUX.2, is published as it is."""
    content = encoded(REAL[name])
    assert published(tmp_path, name, content) == content


AUDIO = {"audio_tokenizer_class": "AutoModel", "audio_tokenizer_name_or_path": "evil/repo"}
UNKNOWN: list[Any] = [
    pytest.param(PROCESSOR, {"audio_tokenizer": AUDIO}, id="another repo"),
    pytest.param(TOKENIZER, {"sp_model_kwargs": {"model_file": "/etc/passwd"}}, id="another file"),
    pytest.param(TOKENIZER, {"vocab_file": "/etc/passwd", "gguf_file": "x"}, id="vocabulary file"),
    pytest.param(TOKENIZER, {"vocab": {"a": 0}, "merges": []}, id="vocabulary"),
    pytest.param(TOKENIZER, {"init_inputs": ["/etc/passwd"], "backend": "x"}, id="arguments"),
    pytest.param(TOKENIZER, {"name_or_path": "evil/repo", "_commit_hash": "x"}, id="names"),
    pytest.param(SPECIAL, {"tokenizer_object": {"x": 1}, "vocab_file": "x"}, id="special tokens"),
    pytest.param(IMAGES, {"preprocess": 1, "device": "cuda", "fetch_images": "x"}, id="methods"),
    pytest.param(TEMPLATE, {"audio_tokenizer": AUDIO, "size": 1}, id="template"),
    pytest.param(
        GENERATION,
        {"validate": 1, "__class__": "x", "compile_config": {"backend": "evil"}, "max_length": -1},
        id="generation",
    ),
]


@pytest.mark.parametrize(("name", "entries"), UNKNOWN)
def test_other_settings_are_left_out(tmp_path, name, entries):
    """Only known settings are published; transformers would act on others when it opens a model."""
    content = published(tmp_path, name, encoded({**REAL[name], **entries}))
    assert json.loads(content) == REAL[name]


def test_nested_settings_are_those_of_a_processor(tmp_path):
    """Unknown settings of an image processor are left out in the processor's file, too."""
    nested = {**PICTURES, "audio_tokenizer": AUDIO, "preprocess": 1}
    content = published(tmp_path, PROCESSOR, encoded({**PIXTRAL, "image_processor": nested}))
    assert json.loads(content) == PIXTRAL


INVALID: list[Any] = [
    (TOKENIZER, {"extra_ids": 2 * 10**9}, "extra_ids is 2000000000"),
    (TOKENIZER, {"errors": "../../x"}, "errors is ../../x"),
    (TOKENIZER, {"eos_token": 5}, "eos_token is 5"),
    (TOKENIZER, {"eos_token": {"content": "x", "evil": True}}, 'eos_token is {"content": "x",'),
    (TOKENIZER, {"eos_token": {"content": "x", "special": 1}}, 'eos_token is {"content": "x",'),
    (TOKENIZER, {"additional_special_tokens": "x"}, "additional_special_tokens is x"),
    (TOKENIZER, {"extra_special_tokens": {"x": [1]}}, 'extra_special_tokens is {"x": [1]}'),
    (TOKENIZER, {"added_tokens_decoder": [1, 2]}, "added_tokens_decoder is [1, 2]"),
    (TOKENIZER, {"added_tokens_decoder": {"x": {"content": "x"}}}, "added_tokens_decoder is"),
    (TOKENIZER, {"added_tokens_decoder": {"1": "x"}}, 'added_tokens_decoder is {"1": "x"}'),
    (
        TOKENIZER,
        {"added_tokens_decoder": {"1": {"content": "x", "__type": "AddedToken"}}},
        "added_tokens_decoder is",
    ),
    (SPECIAL, {"eos_token": {"content": "x", "__type": "AddedToken"}}, "eos_token is"),
    (ADDED, {"<x>": None}, "<x> is null"),
    (TOKENIZER, {"chat_template": 5}, "chat_template is 5"),
    (TOKENIZER, {"chat_template": [{"path": "x"}]}, 'chat_template is [{"path": "x"}]'),
    (
        TOKENIZER,
        {"chat_template": [{"name": "x", "template": 1}]},
        'chat_template is [{"name": "x"',
    ),
    (SPECIAL, {"additional_special_tokens": [5]}, "additional_special_tokens is [5]"),
    (ADDED, {"<x>": "1"}, '<x> is "1"'),
    (ADDED, {"<x>": -1}, "<x> is -1"),
    (IMAGES, {"fft_window_size": 2**28}, "fft_window_size is 268435456"),
    (IMAGES, {"image_processor_type": "evil/repo"}, "image_processor_type is evil/repo"),
    (GENERATION, {"eos_token_id": ["x"]}, 'eos_token_id is ["x"]'),
    (GENERATION, {"temperature": "x"}, "temperature is x"),
    (GENERATION, {"top_k": True}, "top_k is true"),
]


@pytest.mark.parametrize(("name", "entries", "words"), INVALID)
def test_a_setting_with_a_value_that_it_cannot_have_is_refused(tmp_path, name, entries, words):
    """The message names the file and says that transformers cannot read it."""
    with pytest.raises(LoaderError) as caught:
        published(tmp_path, name, encoded({**REAL[name], **entries}))
    assert caught.value.reason is Reason.UNSUPPORTED_FORMAT
    assert caught.value.message.startswith(f"part/{name}: {words}")
    assert caught.value.message.endswith(", which transformers cannot read")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_file_in_another_encoding_is_written_again_in_utf_8(tmp_path, encoding):
    """The file is published in UTF-8 without a byte order mark, as transformers requires."""
    content = published(tmp_path, TOKENIZER, json.dumps(QWEN).encode(encoding))
    assert json.loads(content.decode()) == QWEN
