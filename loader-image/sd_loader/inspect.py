"""`sd-loader inspect`: shows what a model file or a published model is.

For a file, a load is planned but not run.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from sd_api.card import Card
from sd_api.choices import ModelType
from sd_api.fields import Contract
from sd_api.humanize import size
from sd_api.names import CARD_FILE, RECEIPT_FILE
from sd_api.reasons import Reason
from sd_loader.card import card_of_metadata
from sd_loader.convert.conversion import Conversion
from sd_loader.convert.detect.kinds import found_type
from sd_loader.convert.plan.file import plan_file
from sd_loader.convert.plan.open_files import OpenFiles
from sd_loader.errors import LoaderError
from sd_loader.store.folder import Folder
from sd_loader.store.receipt import read_receipt

_CARD_BYTES_MAX = 64 << 10


class Inspection(Contract):
    """The properties of a model file.

    The format has the value of status.source.format. The other fields have the values of the fields
    of the same name in status.artifact.
    """

    model_type: ModelType
    format: str
    base_model: str | None
    variant: str | None
    pipeline_class: str | None
    prediction_type: str | None
    precision: str
    tensors: int
    """Number of tensors."""
    size_bytes: int
    """Size of all tensors."""
    warnings: tuple[str, ...]
    card: Card | None
    """The card from the file's metadata."""

    def to_json(self) -> str:
        """Return one JSON object."""
        return self.model_dump_json(by_alias=True, exclude_none=True)

    def to_text(self) -> str:
        """Return one line for each field that has a value."""
        return as_text(
            {
                "model type": self.model_type,
                "format": self.format,
                "base model": self.base_model,
                "variant": self.variant,
                "pipeline": self.pipeline_class,
                "prediction": self.prediction_type,
                "precision": self.precision,
                "tensors": f"{self.tensors}, {size(self.size_bytes)}",
                "warning": "; ".join(self.warnings) or None,
            },
            self.card,
        )


class PublishedModel(Contract):
    """A published model. Fields of the same name as in status.artifact have the same values."""

    base_model: str | None
    variant: str | None
    format: str | None
    pipeline_class: str | None
    prediction_type: str | None
    precision: str | None
    files: int
    size_bytes: int
    digest: str
    card: Card | None
    """The card from its source and its file. Anyone who can write to the volume can change it."""

    def to_json(self) -> str:
        """Return one JSON object."""
        return self.model_dump_json(by_alias=True, exclude_none=True)

    def to_text(self) -> str:
        """Return one line for each field that has a value."""
        return as_text(
            {
                "base model": self.base_model,
                "variant": self.variant,
                "format": self.format,
                "pipeline": self.pipeline_class,
                "prediction": self.prediction_type,
                "precision": self.precision,
                "files": f"{self.files}, {size(self.size_bytes)}",
                "digest": self.digest,
            },
            self.card,
        )


def as_text(facts: Mapping[str, str | None], card: Card | None) -> str:
    """Return one line for each fact that has a value, and for each field of the card."""
    lines = {**facts, **dict(card.lines() if card else ())}
    width = max(len(name) for name, value in lines.items() if value) + len(": ")
    return "\n".join(f"{name + ':':<{width}}{value}" for name, value in lines.items() if value)


def inspect_published(path: Path) -> PublishedModel:
    """Inspect the folder of a published model."""
    with Folder.open_root(path) as folder:
        try:
            artifact = read_receipt(folder).artifact
        except (OSError, ValueError) as error:
            raise LoaderError(
                Reason.NOT_A_MODEL,
                f"{path} is a folder without a readable {RECEIPT_FILE}; give a model file, or the"
                " folder of a published model",
            ) from error
        card = _whole_card(folder) or artifact.card
    facts = artifact.model_dump(include=PublishedModel.model_fields.keys() - {"card"})
    return PublishedModel(**facts, card=card)


def _whole_card(folder: Folder) -> Card | None:
    try:
        return Card.decode(folder.read(CARD_FILE, _CARD_BYTES_MAX))
    except (OSError, ValueError):
        return None


def inspect(path: Path) -> Inspection:
    """Inspect a file. Raise the LoaderError that a load of this file would raise."""
    with ExitStack() as stack:
        opened = OpenFiles(stack)
        file = opened.open(path)
        model_type = found_type(file.tensors)
        plan = plan_file(file, Conversion(model_type, model_id="inspected"), opened)
        card = Card(word=plan.word).over(card_of_metadata(file.metadata))
        return Inspection(
            model_type=model_type,
            format=file.format,
            base_model=plan.base_model,
            variant=plan.variant,
            pipeline_class=plan.pipeline_class,
            prediction_type=plan.prediction_type,
            precision=plan.precision,
            tensors=len(file.tensors),
            size_bytes=sum(tensor.nbytes for tensor in file.tensors.values()),
            warnings=plan.warnings,
            card=card.or_none(),
        )
