"""Messages of the loader have strict types, bounds and sizes, but may have new fields."""

from __future__ import annotations

import json
from string import ascii_letters, digits
from typing import Any, get_args

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import BaseModel

from sd_api.card import CARD_MAX_BYTES, TEXT_MAX, Card
from sd_api.check import VERSIONS_MAX, CheckResult
from sd_api.fields import COUNT_MAX
from sd_api.reasons import Reason
from sd_api.status import Status
from sd_api.wire import (
    MESSAGE_MAX_LENGTH,
    Artifact,
    LoadResult,
    Message,
    Progress,
    PublishedFile,
    Receipt,
    Source,
    Stage,
)

HEX = "0123456789abcdef"
SOURCE = Source(commit="c" * 40, sha256="a" * 64, size_bytes=7, format="ckpt")
ARTIFACT = Artifact(
    digest="blake3:" + "b" * 64,
    size_bytes=8,
    shared_bytes=1,
    files=2,
    base_model="sd-1",
    pipeline_class="StableDiffusionPipeline",
    precision="fp16",
    prediction_type="epsilon",
    lora_rank=64,
    card=Card(title="Pony", trigger_words=("score_9", "score_8_up")),
)
PROGRESS = Progress(
    stage=Stage.DOWNLOADING,
    percent=42,
    bytes_done=1,
    bytes_total=2,
    bytes_per_second=3,
    eta_seconds=4,
)
FAILED = LoadResult(outcome="failed", reason=Reason.TOO_LARGE, message="12 GB")
LOADED = LoadResult(outcome="loaded", source=SOURCE, artifact=ARTIFACT, preview=True)
RECEIPT = Receipt(
    uid="11111111-2222-3333-4444-555555555555",
    load_hash=HEX,
    source=SOURCE,
    artifact=ARTIFACT,
    message="the VAE is taken from org/name",
    files={
        "unet/diffusion_pytorch_model.safetensors": PublishedFile(
            blake3="d" * 64, sha256="c" * 64, size=6
        ),
        "preview.png": PublishedFile(blake3="e" * 64, size=2),
    },
)
CHECKED = CheckResult(outcome="checked", missing=(0, 7), unreadable=(3,))
WRITTEN = {"digest": "blake3:" + "0" * 64, "sizeBytes": 1, "files": 1}
MESSAGES = [
    pytest.param(PROGRESS, id="progress"),
    pytest.param(FAILED, id="failed"),
    pytest.param(LOADED, id="loaded"),
    pytest.param(RECEIPT, id="receipt"),
    pytest.param(CHECKED, id="check"),
]


@pytest.mark.parametrize("message", MESSAGES)
def test_a_message_is_read_as_it_was_written(message: Message) -> None:
    """Encoding a message and decoding the text or its bytes gives an equal message."""
    text = message.encode()
    assert type(message).decode(text) == message
    assert type(message).decode(text.encode()) == message
    assert type(message).decode(f"{text}\n") == message


def of_a_later_version(message: Any, path: str = "") -> Any:
    """Return a message with an unknown field at each level, except in the mapping `files`."""
    if not isinstance(message, dict):
        return message
    fields = {key: of_a_later_version(value, f"{path}.{key}") for key, value in message.items()}
    return fields if path == ".files" else {"later": {"deep": [{"x": None}]}, **fields}


@pytest.mark.parametrize(
    ("message", "levels"),
    [
        pytest.param(PROGRESS, 1, id="progress"),
        pytest.param(FAILED, 1, id="failed"),
        pytest.param(LOADED, 4, id="loaded"),
        pytest.param(RECEIPT, 6, id="receipt"),
        pytest.param(CHECKED, 1, id="check"),
    ],
)
def test_unknown_fields_are_ignored_at_every_level(message: Message, levels: int) -> None:
    """Fields that a later version of the loader may add, at any level, are ignored."""
    later = json.dumps(of_a_later_version(json.loads(message.encode())))
    assert later.count('"later"') == levels
    assert type(message).decode(later) == message


def test_unknown_fields_of_the_status_are_ignored_at_every_level() -> None:
    """A later version of the operator may add fields to what it takes from a result."""
    written = {
        "progress": {"stage": "Converting", "text": "42%"},
        "source": {"url": "a/b", "sizeBytes": 7},
        "artifact": {
            "digest": "blake3:" + "b" * 64,
            "sizeBytes": 8,
            "files": 2,
            "path": "m",
            "immutablePath": ".store/u/0",
            "claimName": "models",
            "size": "8 B",
            "lastUpdateTime": "2026-01-01T00:00:00Z",
        },
    }
    assert Status.model_validate(of_a_later_version(written)) == Status.model_validate(written)


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(Progress, id="progress"),
        pytest.param(LoadResult, id="result"),
        pytest.param(Receipt, id="receipt"),
        pytest.param(CheckResult, id="check"),
    ],
)
@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param("{}", id="no fields"),
        pytest.param("[]", id="a list"),
        pytest.param("Traceback (most recent call last):", id="text"),
        pytest.param("[" * 2000, id="nested"),
        pytest.param('{"later":' * 200 + "1" + "}" * 200, id="nested in an unknown field"),
        pytest.param(b"\xff\xfe{}", id="not UTF-8"),
        pytest.param("\ud800", id="a lone surrogate"),
    ],
)
def test_other_text_is_not_a_message(message: type[Message], text: str | bytes) -> None:
    """Text that is not such a message is read as None, without an error."""
    assert message.decode(text) is None


@pytest.mark.parametrize(
    ("message", "change"),
    [
        pytest.param(PROGRESS, {"stage": "Done"}, id="unknown stage"),
        pytest.param(PROGRESS, {"percent": 101}, id="percent above 100"),
        pytest.param(PROGRESS, {"percent": "42"}, id="a number as a string"),
        pytest.param(PROGRESS, {"percent": 42.0}, id="a number with a fraction"),
        pytest.param(PROGRESS, {"percent": True}, id="a truth for a number"),
        pytest.param(PROGRESS, {"bytesDone": -1}, id="a negative count"),
        pytest.param(PROGRESS, {"bytesDone": COUNT_MAX + 1}, id="a count above the limit"),
        pytest.param(PROGRESS, {"etaSeconds": 10**400}, id="a huge count"),
        pytest.param(FAILED, {"outcome": "Done"}, id="unknown outcome"),
        pytest.param(FAILED, {"reason": 7}, id="a number for a reason"),
        pytest.param(FAILED, {"reason": "../x"}, id="a reason that is not a word"),
        pytest.param(FAILED, {"reason": "X" * 65}, id="a long reason"),
        pytest.param(FAILED, {"message": "x" * (MESSAGE_MAX_LENGTH + 1)}, id="a long message"),
        pytest.param(LOADED, {"preview": 1}, id="a number for a truth"),
        pytest.param(
            LOADED, {"artifact": {"digest": "x", "sizeBytes": 1, "files": 1}}, id="digest"
        ),
        pytest.param(
            LOADED,
            {"artifact": {**WRITTEN, "digest": "0" * 64}},
            id="a digest without its algorithm",
        ),
        pytest.param(
            LOADED,
            {"artifact": {**WRITTEN, "sizeBytes": "1"}},
            id="a count as a string",
        ),
        pytest.param(
            LOADED, {"artifact": {"digest": "blake3:" + "0" * 64, "files": 1}}, id="no size"
        ),
        pytest.param(LOADED, {"artifact": {**WRITTEN, "card": {"title": 7}}}, id="a card"),
        pytest.param(LOADED, {"source": {"commit": "main"}}, id="commit"),
        pytest.param(LOADED, {"source": {"format": "x" * 33}}, id="a long format"),
        pytest.param(RECEIPT, {"uid": "../x"}, id="uid"),
        pytest.param(RECEIPT, {"loadHash": "x"}, id="load hash"),
        pytest.param(RECEIPT, {"message": "x" * (MESSAGE_MAX_LENGTH + 1)}, id="a long warning"),
        pytest.param(RECEIPT, {"files": {"../x": {"blake3": "0" * 64, "size": 1}}}, id="a parent"),
        pytest.param(RECEIPT, {"files": {"/x": {"blake3": "0" * 64, "size": 1}}}, id="absolute"),
        pytest.param(RECEIPT, {"files": {"x": {"blake3": "0" * 64, "size": "1"}}}, id="a size"),
        pytest.param(RECEIPT, {"files": [{"x": 1}]}, id="a list of files"),
        pytest.param(CHECKED, {"outcome": "loaded"}, id="outcome of another command"),
        pytest.param(CHECKED, {"missing": [-1]}, id="a negative position"),
        pytest.param(CHECKED, {"missing": [VERSIONS_MAX]}, id="a position above the limit"),
        pytest.param(CHECKED, {"missing": ["0"]}, id="a position as a string"),
        pytest.param(CHECKED, {"missing": [0] * (VERSIONS_MAX + 1)}, id="too many positions"),
        pytest.param(CHECKED, {"unreadable": "0"}, id="text for positions"),
    ],
)
def test_a_message_is_strict(message: Message, change: dict[str, Any]) -> None:
    """A message with a value of another type, pattern or range is read as None, not converted."""
    text = json.dumps({**json.loads(message.encode()), **change})
    assert type(message).decode(text) is None


def test_a_reason_of_a_later_version_counts_as_a_crash() -> None:
    """An unknown reason is read as LoaderCrashed; the message stays, so users can read it."""
    later = json.dumps({**json.loads(FAILED.encode()), "reason": "MoonPhaseWrong"})
    assert LoadResult.decode(later) == FAILED.model_copy(update={"reason": Reason.LOADER_CRASHED})


@pytest.mark.parametrize("reason", Reason)
def test_a_known_reason_is_read_as_it_was_written(reason: Reason) -> None:
    """Only a reason that this version does not know is replaced."""
    failed = FAILED.model_copy(update={"reason": reason})
    assert LoadResult.decode(failed.encode()) == failed


@pytest.mark.parametrize("message", MESSAGES)
def test_a_message_above_its_size_limit_is_not_read(message: Message) -> None:
    """The limit counts bytes, and a message of exactly that size is read."""
    text = message.encode()
    limit = type(message).max_bytes
    padding = limit - len(text.encode())
    assert type(message).decode(text + " " * padding) == message
    assert type(message).decode(text + " " * (padding + 1)) is None
    wide = json.dumps({"later": "é" * (limit // 2), **json.loads(text)}, ensure_ascii=False)
    assert len(wide) < limit < len(wide.encode())
    assert type(message).decode(wide) is None


def test_a_receipt_that_could_not_be_read_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """A receipt above the size limit raises an error: no later load could read it."""
    monkeypatch.setattr(Receipt, "max_bytes", len(RECEIPT.encode().encode()) - 1)
    with pytest.raises(ValueError, match="the receipt of 2 files is too long"):
        RECEIPT.encode()


def test_the_receipt_proves_a_result() -> None:
    """The receipt gives the result of the load that published the version."""
    assert RECEIPT.result() == LOADED.model_copy(update={"message": RECEIPT.message})
    assert RECEIPT.sharing(5).result().artifact == ARTIFACT.model_copy(update={"shared_bytes": 5})


LONG_CARD = Card(title='"' * TEXT_MAX, license="🦊" * TEXT_MAX, author="é" * 71 + "x").short()
CARDS = (LONG_CARD, Card(title="Pony"))
COUNTS = st.integers(0, COUNT_MAX)
DIGESTS = st.text(HEX, min_size=64, max_size=64)
WORDS = st.none() | st.text(ascii_letters + digits + "_.-", min_size=1, max_size=64)
SOURCES = {
    "commit": st.none() | st.text(HEX, min_size=40, max_size=64),
    "sha256": st.none() | DIGESTS,
    "sha256_missing": WORDS,
    "version": st.none() | st.text("0a@+_.:-", min_size=1, max_size=64),
    "file": st.none() | st.text("a 0._()+@-", min_size=1, max_size=128),
    "size_bytes": st.none() | COUNTS,
    "components_from": st.none() | st.from_regex(r"\A[a-z]{1,9}/[a-z.]{1,9}@[0-9a-f]{40}\Z"),
    "format": st.none() | st.text("abcz09-", min_size=1, max_size=32),
}
ARTIFACTS = {
    "digest": DIGESTS.map("blake3:{}".format),
    "size_bytes": COUNTS,
    "shared_bytes": COUNTS,
    "files": COUNTS,
    "base_model": WORDS,
    "variant": WORDS,
    "format": WORDS,
    "pipeline_class": WORDS,
    "precision": WORDS,
    "prediction_type": WORDS,
    "lora_rank": st.none() | COUNTS,
    "checked": WORDS,
    "card": st.none() | st.sampled_from(CARDS),
    "model_type": WORDS,
}
RESULTS = {
    "outcome": st.sampled_from(get_args(LoadResult.model_fields["outcome"].annotation)),
    "reason": st.none() | st.sampled_from(Reason),
    "message": st.text(max_size=MESSAGE_MAX_LENGTH)
    | st.text('\0"\\é🦊', max_size=MESSAGE_MAX_LENGTH)
    | st.text("\x01🦊", min_size=MESSAGE_MAX_LENGTH, max_size=MESSAGE_MAX_LENGTH),
    "source": st.none() | st.fixed_dictionaries(SOURCES),
    "artifact": st.none() | st.fixed_dictionaries(ARTIFACTS),
    "preview": st.booleans(),
    "picture": st.booleans(),
}
LONGEST = LoadResult(
    outcome="removed",
    reason=max(Reason, key=len),
    message="\x01" * MESSAGE_MAX_LENGTH,
    source=Source(
        commit="f" * 64,
        sha256="f" * 64,
        sha256_missing="w" * 64,
        components_from=f"{'o' * 96}/{'n' * 94}@{'f' * 64}",
        version="9" * 64,
        file="f" * 128,
        size_bytes=COUNT_MAX,
        format="f" * 32,
    ),
    artifact=Artifact(
        digest="blake3:" + "f" * 64,
        size_bytes=COUNT_MAX,
        shared_bytes=COUNT_MAX,
        files=COUNT_MAX,
        model_type="w" * 64,
        base_model="w" * 64,
        variant="w" * 64,
        format="w" * 64,
        pipeline_class="w" * 64,
        precision="w" * 64,
        prediction_type="w" * 64,
        lora_rank=COUNT_MAX,
        checked="w" * 64,
        card=LONG_CARD,
    ),
    preview=True,
    picture=True,
)
"""A result in which every field has its maximal length."""


@pytest.mark.parametrize(
    ("model", "strategies"), [(Source, SOURCES), (Artifact, ARTIFACTS), (LoadResult, RESULTS)]
)
def test_the_strategies_cover_each_field(
    model: type[BaseModel], strategies: dict[str, object]
) -> None:
    """A new field needs a strategy, so that the tests below generate it."""
    assert strategies.keys() == model.model_fields.keys()
    assert LONGEST.model_fields_set == LoadResult.model_fields.keys()
    assert LONG_CARD is not None
    assert LONG_CARD.nbytes == CARD_MAX_BYTES


@given(st.fixed_dictionaries(RESULTS).map(LoadResult.model_validate))
@example(LONGEST)
@example(LONGEST.model_copy(update={"message": "🦊" * MESSAGE_MAX_LENGTH}))
def test_every_result_fits(result: LoadResult) -> None:
    """Only the message is cut, and only as far as necessary."""
    text = result.encode()
    assert len(text.encode()) <= LoadResult.max_bytes
    read = LoadResult.decode(text)
    assert read is not None
    assert read.model_copy(update={"message": ""}) == result.model_copy(update={"message": ""})
    if read.message != result.message:
        start = read.message.removesuffix("…")
        assert read.message == f"{start}…"
        assert result.message.startswith(start)
        longer = result.model_copy(update={"message": f"{result.message[: len(start) + 1]}…"})
        whole = longer.model_dump_json(by_alias=True, exclude_defaults=True)
        assert len(whole.encode()) > LoadResult.max_bytes


def test_every_result_of_a_check_fits() -> None:
    """A check that finds nothing but faults has the longest result."""
    every = tuple(range(VERSIONS_MAX))
    for half in (VERSIONS_MAX, VERSIONS_MAX // 2, 0):
        result = CheckResult(outcome="checked", missing=every[:half], unreadable=every[half:])
        assert CheckResult.decode(result.encode()) == result


@given(st.text() | st.binary())
def test_no_text_breaks_a_reader(text: str | bytes) -> None:
    """Decoding any text never raises."""
    for message in (Progress, LoadResult, Receipt, CheckResult):
        message.decode(text)
