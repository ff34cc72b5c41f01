"""Tests of how the commands start."""

from __future__ import annotations

import signal
import sys
from types import SimpleNamespace

import pytest

from sd_api.extras import start


def test_command_that_is_stopped_while_it_starts_has_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C during the imports, which take seconds, ends the command without a traceback."""

    def main() -> int:
        raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "slow_command", SimpleNamespace(main=main))
    assert start("sd-loader", "slow_command", "loader") == 128 + signal.SIGINT
    assert capsys.readouterr().err == "sd-loader: stopped by SIGINT\n"
