"""An environment that records which of its variables a program reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping


class Recorder(Mapping[str, str]):
    """Environment variables; `asked` has the names of those that were read."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self.env = env
        self.asked: set[str] = set()

    def __getitem__(self, key: str) -> str:
        self.asked.add(key)
        return self.env[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.env)

    def __len__(self) -> int:
        return len(self.env)
