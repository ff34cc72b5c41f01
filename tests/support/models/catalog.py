"""Rows of what the loader loads; tests run over them, and docs/models.md is made from them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """A kind of model that the loader loads, and the test that compares its result."""

    model_type: str
    """The spec's modelType."""
    architecture: str
    """The architecture, as users know it."""
    container: str
    """The file format, as users know it."""
    peer: str
    """The function of diffusers whose result the test compares."""
    opens_with: str
    """The class or function that opens the folder in the test."""

    def __str__(self) -> str:
        return f"{self.model_type}, {self.architecture}, {self.container}"
