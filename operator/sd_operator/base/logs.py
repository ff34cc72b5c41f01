"""Configures the logs of operator and gateway: JSON or lines for a terminal, always redacted."""

from __future__ import annotations

import json
import logging
import sys
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, TextIO

from sd_api.redaction import redact_text

_model: ContextVar[str] = ContextVar("model", default="")
_load_hash: ContextVar[str] = ContextVar("load_hash", default="")


def about(model: str, load_hash: str) -> None:
    """Add model and load to every log record of this task and of the tasks that it starts."""
    _model.set(model)
    _load_hash.set(load_hash)


class _Formatter(logging.Formatter):
    """Collects the fields of a record; subclasses format them."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as text."""
        # Redact before the encoding: JSON's escapes would hide where a link ends.
        fields = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": redact_text(record.getMessage()),
            "model": _model.get(),
            "loadHash": _load_hash.get(),
            "error": redact_text(self.formatException(record.exc_info)) if record.exc_info else "",
        }
        return self.write({key: value for key, value in fields.items() if value})

    def write(self, fields: dict[str, Any]) -> str:
        """Return the fields as text."""
        raise NotImplementedError


class JsonFormatter(_Formatter):
    """Writes one JSON object per line."""

    def write(self, fields: dict[str, Any]) -> str:
        """Return the fields as a JSON object."""
        return json.dumps(fields, ensure_ascii=False)


class TextFormatter(_Formatter):
    """Writes a line for people; a traceback follows on separate lines."""

    def write(self, fields: dict[str, Any]) -> str:
        """Return time, level, model and message."""
        model, message = fields.get("model", ""), fields["message"]
        if model and model not in message:
            message = f"{model}: {message}"
        line = f"{fields['time'][11:19]} {fields['level']:<7} {message}"
        return f"{line}\n{fields['error']}" if "error" in fields else line


def set_up(level: str, style: str, stream: TextIO | None = None) -> None:
    """Log to `stream`, by default standard error; style auto is text on a terminal, else json."""
    stream = stream or sys.stderr
    if style == "auto":
        style = "text" if stream.isatty() else "json"
    handler = logging.StreamHandler(stream)
    handler.setFormatter(TextFormatter() if style == "text" else JsonFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
