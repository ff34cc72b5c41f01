"""Reads the stages and instructions of Dockerfiles, so that tests can check them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Instruction:
    """An instruction of a Dockerfile; its continued lines are joined."""

    word: str
    text: str

    @property
    def words(self) -> list[str]:
        """Return the words of the exec form; empty for the shell form."""
        found: list[str] = json.loads(self.text) if self.text.startswith("[") else []
        return found


@dataclass(frozen=True)
class Stage:
    """A stage and its base, which is another stage's name or an image."""

    name: str
    base: str
    instructions: tuple[Instruction, ...]


@dataclass(frozen=True)
class Dockerfile:
    """A Dockerfile: the ARG instructions before its first stage, and its stages."""

    path: Path
    arguments: dict[str, str]
    stages: tuple[Stage, ...]

    def stage(self, name: str) -> Stage:
        """Return a stage by name; the last stage has the name "" if the file gives it none."""
        return next(stage for stage in self.stages if stage.name == name)

    def built(self, name: str) -> list[Instruction]:
        """Return all instructions that build a target's image, those of its base stages first."""
        stage = self.stage(name)
        under = {other.name for other in self.stages}
        below = self.built(stage.base) if stage.base in under else []
        return [*below, *stage.instructions]

    def everything(self) -> Iterator[Instruction]:
        """Yield the instructions of all stages."""
        for stage in self.stages:
            yield from stage.instructions


def read(path: Path) -> Dockerfile:
    """Read a Dockerfile."""
    arguments: dict[str, str] = {}
    stages: list[Stage] = []
    for instruction in _instructions(path.read_text()):
        if instruction.word == "FROM":
            base, _, name = instruction.text.partition(" AS ")
            stages.append(Stage(name, base, ()))
        elif stages:
            last = stages.pop()
            stages.append(Stage(last.name, last.base, (*last.instructions, instruction)))
        else:
            assert instruction.word == "ARG", f"{instruction.word} before any FROM"
            name, _, value = instruction.text.partition("=")
            arguments[name] = value
    return Dockerfile(path, arguments, tuple(stages))


def labels(instructions: list[Instruction]) -> dict[str, str]:
    """Return the labels that these instructions set."""
    text = " ".join(one.text for one in instructions if one.word == "LABEL")
    return dict(re.findall(r'(\S+?)="([^"]*)"', text))


def copied(instruction: Instruction) -> list[str]:
    """Return the paths that a COPY takes from the build context."""
    words = instruction.text.split()
    return [] if words[0].startswith("--from=") else words[:-1]


def _instructions(text: str) -> Iterator[Instruction]:
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    for statement in re.split(r"(?<!\\)\n", "\n".join(lines)):
        word, _, rest = statement.partition(" ")
        yield Instruction(word, re.sub(r"\\\n\s*", "", rest).strip())
