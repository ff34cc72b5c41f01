"""A repo's tokenizer is published with the tokens that were added to it, or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sd_api.reasons import Reason
from sd_loader.convert.tables.clip import VOCABULARY_FILES, vocabulary_file
from sd_loader.errors import LoaderError
from tests.support.models.cliptokenizers import (
    END,
    FORMS,
    PROMPTS,
    SPECIAL,
    START,
    WORDS,
    Files,
    described,
    plain,
    publish,
    write,
)

CONFIG, MAP = "tokenizer_config.json", "special_tokens_map.json"
DECODER = "added_tokens_decoder"


def opened(folder: Path) -> Any:
    """The tokenizer that transformers makes of the folder."""
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(folder, local_files_only=True)


def config_of(folder: Path) -> dict[str, Any]:
    """The published config."""
    return json.loads((folder / CONFIG).read_text())


@pytest.mark.parametrize("form", FORMS)
def test_added_tokens_are_kept(tmp_path, form):
    """The published tokenizer splits prompts as the repo's does, and knows both tokens."""
    source = write(tmp_path / "source", FORMS[form](plain()))
    published = opened(publish(source, tmp_path / "out"))
    expected = opened(source)
    assert published(list(PROMPTS)).input_ids == expected(list(PROMPTS)).input_ids
    assert published.convert_tokens_to_ids(["<my-cat>", "<My-Dog>"]) == [WORDS, WORDS + 1]
    assert published("<my-cat>").input_ids[1] == WORDS
    assert len(published) == len(expected) == WORDS + 2
    for name in SPECIAL:
        assert getattr(published, name) == getattr(expected, name)
    assert published.model_max_length == 77


def test_ids_with_gaps_are_kept(tmp_path):
    """Added tokens keep their ids, even with gaps: new ids would have other embeddings."""
    files = plain() | {"added_tokens.json": {"<my-cat>": WORDS + 2}}
    published = opened(publish(write(tmp_path / "source", files), tmp_path / "out"))
    assert published("<my-cat>").input_ids[1:-1] == [WORDS + 2]


def test_usual_vocabulary_is_published_byte_for_byte(tmp_path):
    """The usual vocabulary is published as the bundled files, whatever the layout of the repo's."""
    words, merges = (vocabulary_file(name) for name in VOCABULARY_FILES)
    files = plain() | {"vocab.json": json.loads(words)}
    files["merges.txt"] = merges.replace(b"\n", b"\r\n")
    folder = publish(write(tmp_path / "source", files), tmp_path / "out", rows=49408)
    for name in VOCABULARY_FILES:
        assert (folder / name).read_bytes() == vocabulary_file(name)


def test_config_holds_only_known_settings(tmp_path):
    """Paths, templates and classes of the repo are dropped; special tokens have one form."""
    files = plain()
    files[CONFIG] |= {
        "tokenizer_class": "Evil",
        "chat_template": "{{ ''.__class__ }}",
        "vocab_file": "/etc/passwd",
        "tokenizer_file": "/etc/passwd",
        "name_or_path": "/home/somebody",
        "backend": "x",
        "errors": "ignore",
        "bos_token": {"__type": "AddedToken", "content": "<|startoftext|>", "evil": 1},
        "added_tokens_decoder": {str(WORDS - 2): {**described(START), "evil": 1}},
    }
    folder = publish(write(tmp_path / "source", files), tmp_path / "out")
    assert config_of(folder) == {
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(WORDS - 2): described(START),
            str(WORDS - 1): described(END, special=True),
        },
        "clean_up_tokenization_spaces": True,
        "do_lower_case": True,
        "errors": "ignore",
        "model_max_length": 77,
        "tokenizer_class": "CLIPTokenizer",
        **SPECIAL,
    }
    assert json.loads((folder / MAP).read_text()) == SPECIAL
    assert opened(folder)("a cat").input_ids[0] == WORDS - 2


@pytest.mark.parametrize(
    ("key", "value", "published"),
    [
        ("model_max_length", 60, 60),
        ("model_max_length", 77.0, 77),
        ("model_max_length", -5, 77),
        ("model_max_length", 0, 77),
        ("model_max_length", True, 77),
        ("model_max_length", 78, 77),
        ("model_max_length", 1_000_000, 77),
        ("model_max_length", 10**30, 77),
        ("model_max_length", "77", 77),
        ("model_max_length", None, 77),
        ("errors", "evil_handler", "replace"),
        ("errors", ["replace"], "replace"),
        ("errors", "strict", "strict"),
        ("do_lower_case", "no", True),
        ("do_lower_case", False, False),
        ("add_prefix_space", {}, False),
        ("clean_up_tokenization_spaces", 1, True),
    ],
)
def test_setting_that_is_not_valid_gets_the_usual_value(tmp_path, key, value, published):
    """An invalid setting gets the usual value; model_max_length fits the text encoder."""
    files = plain()
    files[CONFIG][key] = value
    folder = publish(write(tmp_path / "source", files), tmp_path / "out")
    assert config_of(folder)[key] == published
    assert type(config_of(folder)[key]) is type(published)


def changed(file: str, **changes: Any) -> Files:
    """A plain tokenizer with changed keys in one JSON file."""
    files = plain()
    content = files.get(file, {})
    files[file] = (json.loads(content) if isinstance(content, bytes) else content) | changes
    return files


def single(**model: Any) -> Files:
    """A tokenizer in tokenizer.json alone, with changes to its model."""
    usual = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "<|endoftext|>": 3}, "merges": []}
    start = {"<|startoftext|>": 4}
    content = {"model": {**usual, "vocab": usual["vocab"] | start, **model}, "added_tokens": []}
    return {"tokenizer.json": content}


TWO_WORDS = "tokenizer: a merge is not two words"
BEYOND = f"its text encoder has {WORDS + 3} tokens, with ids from 0 to {WORDS + 2}"
REFUSED = [
    pytest.param(
        changed("vocab.json", zzz=10**9),
        f"tokenizer: the token zzz has the id 1000000000; {BEYOND}",
        id="a huge id",
    ),
    pytest.param(
        changed("vocab.json", zzz=10**23),
        f"tokenizer: the token zzz has the id 10000000000000000000…; {BEYOND}",
        id="an id of more than 64 bits",
    ),
    pytest.param(
        changed("vocab.json", zzz=-1),
        f"tokenizer: the token zzz has the id -1; {BEYOND}",
        id="a negative id",
    ),
    pytest.param(
        changed("vocab.json", zzz=5),
        "tokenizer: the tokens & and zzz have the same id, 5",
        id="one id for two words",
    ),
    pytest.param(
        changed("vocab.json", zzz=1.5),
        "tokenizer: the tokenizer's vocabulary is not a table of ids by word",
        id="1.5",
    ),
    pytest.param(
        changed("vocab.json", **{"\ud800": WORDS}),
        "tokenizer: a token is not valid Unicode: ?",
        id="half of a surrogate pair",
    ),
    pytest.param(
        changed("vocab.json", **{"": WORDS}),
        'tokenizer: a token is not a text of 1 to 512 characters: ""',
        id="an empty word",
    ),
    pytest.param(
        changed("added_tokens.json", **{"<a>": 999_999_999}),
        f"tokenizer: the token <a> has the id 999999999; {BEYOND}",
        id="an added id beyond the text encoder",
    ),
    pytest.param(
        changed("added_tokens.json", **{"<a>": str(WORDS)}),
        f'tokenizer: an id in added_tokens.json is not a whole number: "{WORDS}"',
        id="an id as text",
    ),
    pytest.param(
        changed("added_tokens.json", **{"<a>": 5}),
        "tokenizer: the tokens & and <a> have the same id, 5",
        id="the id of another token",
    ),
    pytest.param(
        changed("added_tokens.json", **{"<a>": WORDS, "<b>": WORDS}),
        f"tokenizer: the tokens <a> and <b> have the same id, {WORDS}",
        id="one id for two added tokens",
    ),
    pytest.param(
        changed(CONFIG, **{DECODER: {f"{WORDS}": described("<a>"), f"0{WORDS}": described("<b>")}}),
        f"tokenizer: the tokens <a> and <b> have the same id, {WORDS}",
        id="one id in two spellings",
    ),
    pytest.param(
        changed("added_tokens.json", cat=WORDS),
        "tokenizer: the token cat has two ids",
        id="a second id for a word",
    ),
    pytest.param(
        changed(CONFIG, **{DECODER: {str(WORDS): described("<a>")}})
        | {"added_tokens.json": {"<a>": WORDS + 1}},
        "tokenizer: the token <a> has two ids",
        id="forms that contradict each other",
    ),
    pytest.param(
        changed(CONFIG, **{DECODER: [1, 2]}),
        "tokenizer: added_tokens_decoder in tokenizer_config.json is not a table of tokens by id",
        id="a decoder that is a list",
    ),
    pytest.param(
        changed(CONFIG, **{DECODER: {"x": described("<a>")}}),
        "tokenizer: an id in added_tokens_decoder is not a whole number: x",
        id="a decoder without ids",
    ),
    pytest.param(
        changed(CONFIG, **{DECODER: {str(WORDS): 7}}),
        "tokenizer: added_tokens_decoder has a value that is not a token: 7",
        id="a decoder without tokens",
    ),
    pytest.param(
        changed(CONFIG, **{DECODER: {str(WORDS): described("<a>", lstrip="yes")}}),
        "tokenizer: added_tokens_decoder has a token whose flags are not true or false",
        id="a flag as text",
    ),
    pytest.param(
        changed(CONFIG, **{DECODER: {"9999999999": described("<a>")}}),
        f"tokenizer: the token <a> has the id 9999999999; {BEYOND}",
        id="a decoder's id beyond the text encoder",
    ),
    pytest.param(
        changed(CONFIG, bos_token=5) | {MAP: {}},
        "tokenizer: bos_token has a value that is not a token: 5",
        id="a number as a special token",
    ),
    pytest.param(
        changed(CONFIG, bos_token={"evil": 1}) | {MAP: {}},
        'tokenizer: bos_token has a value that is not a token: {"evil": 1}',
        id="a special token without content",
    ),
    pytest.param(
        changed(MAP, additional_special_tokens="<a>"),
        "tokenizer: additional_special_tokens is not a list of tokens",
        id="a text as a list",
    ),
    pytest.param(
        changed(MAP, additional_special_tokens=[f"<{n}>" for n in range(4)]),
        f"tokenizer: the token <3> has the id {WORDS + 3}; {BEYOND}",
        id="more tokens than rows",
    ),
    pytest.param(
        plain() | {"merges.txt": b"#version: 0.2\n\xff\xfe\x00"},
        "tokenizer: merges.txt is not a text in UTF-8",
        id="binary merges",
    ),
    pytest.param(
        plain() | {"merges.txt": b"#version: 0.2\ni n g\n"},
        f"{TWO_WORDS}: i n g",
        id="a merge of three words",
    ),
    pytest.param(plain() | {"merges.txt": b"in\n"}, f"{TWO_WORDS}: in", id="a merge of one word"),
    pytest.param(
        plain() | {"merges.txt": b"i in\n"},
        "tokenizer: a merge has words that are not in the vocabulary: i in",
        id="a merge that gives no word",
    ),
    pytest.param(
        plain() | {"merges.txt": b"i n\n" * 48_895},
        "tokenizer: 48895 merges; older versions of transformers read at most 48894",
        id="too many merges",
    ),
    pytest.param(single(merges=[["a", 1]]), TWO_WORDS, id="a number in a merge"),
    pytest.param(single(merges=[["a", ["b"]]]), TWO_WORDS, id="a list in a merge"),
    pytest.param(single(merges=[{}]), TWO_WORDS, id="an object as a merge"),
    pytest.param(single(merges=7), TWO_WORDS, id="no list of merges"),
    pytest.param(
        single() | {CONFIG: {}, "added_tokens.json": {"<a>": 2}},
        "tokenizer: the tokens ab and <a> have the same id, 2",
        id="the id of a word of tokenizer.json",
    ),
]


@pytest.mark.parametrize(("files", "message"), REFUSED)
def test_tokenizer_that_transformers_cannot_open_is_refused(tmp_path, files, message):
    """A tokenizer is refused if its ids, merges or files do not fit together."""
    with pytest.raises(LoaderError) as caught:
        publish(write(tmp_path / "source", files), tmp_path / "out")
    assert caught.value.reason is Reason.CONVERSION_FAILED
    assert caught.value.message == message


def test_word_that_occurs_twice_has_the_last_id(tmp_path):
    """The published vocabulary has the word once, with the last id, as transformers reads it."""
    files = plain()
    files["vocab.json"] = files["vocab.json"].rstrip()[:-1] + b', "zzz": 5, "zzz": %d}' % WORDS
    folder = publish(write(tmp_path / "source", files), tmp_path / "out")
    assert (folder / "vocab.json").read_text().count('"zzz"') == 1
    assert opened(folder).convert_tokens_to_ids("zzz") == WORDS


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 60_000) | st.text(max_size=5) | st.just("<a>"),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["content", "special", "lstrip", "__type", "49408", "evil", "id"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=6,
)
KEYS = st.sampled_from(
    [
        *SPECIAL,
        "mask_token",
        DECODER,
        "additional_special_tokens",
        "extra_special_tokens",
        "model_max_length",
        "errors",
        "tokenizer_class",
        "vocab_file",
        "auto_map_",
    ]
)


ANY_CONFIG = given(
    config=st.dictionaries(KEYS, VALUES, max_size=4),
    special=st.dictionaries(KEYS, VALUES, max_size=3),
    added=st.dictionaries(st.text(max_size=4), VALUES, max_size=2),
    tokens=st.lists(VALUES, max_size=3),
)


@settings(max_examples=30, deadline=None)
@ANY_CONFIG
def test_any_config_is_refused_or_opens(tmp_path_factory, config, special, added, tokens):
    """An opened tokenizer gives only ids that the text encoder has."""
    assert_refused_or_opens(tmp_path_factory, config, special, added, tokens)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@ANY_CONFIG
def test_any_of_many_configs_is_refused_or_opens(tmp_path_factory, config, special, added, tokens):
    """With more examples, too, a tokenizer is refused, or opens and gives only known ids."""
    assert_refused_or_opens(tmp_path_factory, config, special, added, tokens)


def assert_refused_or_opens(tmp_path_factory, config, special, added, tokens):
    """Assert that the loader refuses the tokenizer, or transformers opens what it publishes."""
    folder = tmp_path_factory.mktemp("tokenizer")
    files = single() | {CONFIG: config, MAP: special, "added_tokens.json": added}
    files["tokenizer.json"]["added_tokens"] = tokens
    try:
        published = publish(write(folder / "source", files), folder / "out", rows=9)
    except LoaderError as error:
        assert error.message.isprintable()  # noqa: PT017 - one of two right outcomes
        return
    ids = opened(published)("ab <a> b")["input_ids"]
    assert all(0 <= number < 9 for number in ids)
