"""Tests that a volume shows the keys of a Secret as files."""

from __future__ import annotations

import pytest

from sd_operator.standalone.executor import RefusedError
from sd_operator.standalone.secretfiles import secret_files

SECRET = {"data": {"token": "YWJj", "ca.crt": "eA==", ".netrc": "eQ=="}}


def items(*pairs: tuple[str, str]) -> dict[str, object]:
    """Return a volume with these keys and paths."""
    return {"items": [{"key": key, "path": path} for key, path in pairs]}


@pytest.mark.parametrize(
    ("volume", "files"),
    [
        pytest.param({}, {"token": b"abc", "ca.crt": b"x", ".netrc": b"y"}, id="all keys"),
        pytest.param(items(("token", "token")), {"token": b"abc"}, id="a listed key"),
        pytest.param(items(("token", "key")), {"key": b"abc"}, id="under another name"),
        pytest.param(items(("token", "t"), ("host", "h")), {"t": b"abc"}, id="a missing key"),
        pytest.param(items(("host", "host")), {}, id="only a missing key"),
    ],
)
def test_volume_has_the_listed_keys(volume: dict[str, object], files: dict[str, bytes]) -> None:
    """Without a list, the volume has all keys. A missing key or Secret has no file."""
    assert secret_files(volume, SECRET) == files
    assert secret_files(volume, {}) == {}


@pytest.mark.parametrize("path", ["../token", "/etc/token", "a/b", "..", ".", "..data", ""])
def test_path_outside_the_volume_is_refused(path: str) -> None:
    """A path that leads out of the volume is refused."""
    with pytest.raises(RefusedError, match="is not a file name"):
        secret_files(items(("token", path)), SECRET)
