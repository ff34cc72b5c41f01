"""What the loader loads, as rows: tests run over them, and docs/models.md is written from them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One thing that loads, and how it is known to be right.

    model_type: of spec. architecture and container: for people. peer: the function of diffusers
    whose result is compared in the test. opens_with: what opens the folder in the test.
    """

    model_type: str
    architecture: str
    container: str
    peer: str
    opens_with: str

    def __str__(self) -> str:
        return f"{self.model_type}, {self.architecture}, {self.container}"
