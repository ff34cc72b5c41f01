"""The format of log lines, and the secrets that they never contain."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from sd_operator.base import logs
from tests.support.operator.operated import Operated

log = logging.getLogger("sd_operator.test")


class Terminal(io.StringIO):
    """A stream that claims to be a terminal."""

    def isatty(self) -> bool:
        """Return True."""
        return True


@pytest.fixture(autouse=True)
def _logging() -> Iterator[None]:
    """Restore the logging configuration after the test."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers = []
    yield
    root.handlers, root.level = handlers, level


def lines(say: Callable[[], object], style: str = "json", level: str = "INFO") -> list[str]:
    """Set up logging with this style and level, call `say`, and return the lines that it logs."""
    stream = io.StringIO()
    logs.set_up(level, style, stream)
    say()
    return stream.getvalue().splitlines()


def entry(say: Callable[[], object]) -> dict[str, Any]:
    """Return the only JSON entry that `say` logs."""
    (line,) = lines(say)
    found: dict[str, Any] = json.loads(line)
    return found


def test_machines_read_json() -> None:
    """An entry has the time, the level, the logger and the message."""
    found = entry(lambda: log.warning("no Event %s", "ModelLoaded"))
    assert found.pop("time").endswith("+00:00")
    expected = {"level": "WARNING", "logger": "sd_operator.test", "message": "no Event ModelLoaded"}
    assert found == expected


def test_people_read_lines() -> None:
    """A line names the model before the message, unless the message already names it."""

    def say() -> None:
        log.info("serving all namespaces")
        logs.about("art/sketch", "0123456789abcdef")
        log.info("it is loaded")
        log.info("art/sketch is loaded")
        logs.about("", "")

    found = [line.partition(" ")[2] for line in lines(say, "text")]
    assert found == [
        "INFO    serving all namespaces",
        "INFO    art/sketch: it is loaded",
        "INFO    art/sketch is loaded",
    ]


def test_a_terminal_gets_text_by_default() -> None:
    """Other streams get JSON. A style other than auto applies to every stream."""
    for stream, style, is_json in (
        (Terminal(), "auto", False),
        (io.StringIO(), "auto", True),
        (Terminal(), "json", True),
        (io.StringIO(), "text", False),
    ):
        logs.set_up("INFO", style, stream)
        log.info("here")
        assert stream.getvalue().startswith("{") == is_json


def test_entries_name_the_model_and_load_of_their_task() -> None:
    """A task's entries name its own model, and so do those of the tasks that it starts."""

    async def child() -> None:
        log.info("child")

    async def one(name: str) -> None:
        logs.about(f"art/{name}", name * 16)
        await asyncio.sleep(0)
        log.info("parent")
        await asyncio.create_task(child())

    async def both() -> None:
        await asyncio.gather(one("a"), one("b"))
        log.info("neither")

    found = [json.loads(line) for line in lines(lambda: asyncio.run(both()))]
    told = [(each.get("model"), each.get("loadHash"), each["message"]) for each in found]
    assert sorted(told[:-1]) == [
        ("art/a", "a" * 16, "child"),
        ("art/a", "a" * 16, "parent"),
        ("art/b", "b" * 16, "child"),
        ("art/b", "b" * 16, "parent"),
    ]
    assert told[-1] == (None, None, "neither")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("GET https://example.com/m?token=SECRET failed", "GET https://example.com/m?… failed"),
        ('"https://u:SECRET@example.com/m"', '"https://example.com/m"'),
        ("http://proxy:SECRET@10.0.0.1:3128 is away", "http://10.0.0.1:3128 is away"),
        ("Authorization: Bearer SECRET", "Authorization: Bearer …"),
        ("the key whsec_SECRET= is short", "the key whsec_… is short"),
        ("token hf_SECRET", "token hf_…"),
        ("a bearer of bad news", "a bearer of bad news"),
        ("Job a/b is gone", "Job a/b is gone"),
    ],
)
@pytest.mark.parametrize("style", ["json", "text"])
def test_secrets_are_redacted(text: str, shown: str, style: str) -> None:
    """Messages, their arguments and tracebacks contain no secret."""
    secret = "c2VjcmV0czNjcmV0"
    text, shown = text.replace("SECRET", secret), shown.replace("SECRET", secret)

    def say() -> None:
        log.info(text)
        log.info("%s", text)
        try:
            raise ValueError(text)
        except ValueError:
            log.exception("broken")

    written = "\n".join(lines(say, style))
    assert secret not in written
    assert (
        written.count(json.dumps(shown, ensure_ascii=False)[1:-1] if style == "json" else shown)
        >= 3
    )


def test_an_error_carries_its_traceback() -> None:
    """The traceback is in the same line of JSON as the message."""

    def say() -> None:
        try:
            raise ValueError("broken")
        except ValueError:
            log.exception("a pass failed")

    found = entry(say)
    assert found["message"] == "a pass failed"
    assert found["error"].endswith("ValueError: broken")


@pytest.mark.cluster
@pytest.mark.slow
def test_log_has_few_lines_per_model(operated: Operated) -> None:
    """The operator logs events and changes of a decision, but not every pass over the model."""
    operated.start()
    item = operated.load(url=operated.link() + "?token=c2VjcmV0", webhook=operated.receiver.url)
    operated.delete()
    operated.gone()
    operated.eventually(lambda: "ModelDeleted" in operated.cluster.operator_log())
    found = [json.loads(line) for line in operated.cluster.operator_log().splitlines()]
    about = [one for one in found if one.get("model") == f"{operated.cluster.namespace}/sketch"]
    messages = [one["message"] for one in about]
    assert {one.partition(":")[0] for one in messages} >= {"LoadStarted", "ModelLoaded"}
    assert {one["loadHash"] for one in about} == {item["status"]["loadHash"]}
    assert len(messages) <= 20, messages
    assert len(found) <= 35, found
    assert "c2VjcmV0" not in operated.cluster.operator_log()
