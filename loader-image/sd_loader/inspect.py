"""`sd-loader inspect`: shows what a model file is. It plans a load but does not run it."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from sd_api.choices import ModelType
from sd_api.fields import Contract
from sd_api.humanize import size
from sd_loader.convert.conversion import Conversion
from sd_loader.convert.detect.kinds import found_type
from sd_loader.convert.plan.file import plan_file
from sd_loader.convert.plan.open_files import OpenFiles
from sd_loader.snippet import snippet

_TITLE = "modelspec.title"


class Inspection(Contract):
    """What a file is. Fields of the same name as in the status have the same values.

    format is that of status.source, the others are those of status.artifact.
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
    title: str | None
    warnings: tuple[str, ...]

    def to_json(self) -> str:
        """Return one JSON object."""
        return self.model_dump_json(by_alias=True, exclude_none=True)

    def to_text(self) -> str:
        """Return one line for each field that has a value."""
        lines = {
            "model type": self.model_type,
            "format": self.format,
            "base model": self.base_model,
            "variant": self.variant,
            "pipeline": self.pipeline_class,
            "prediction": self.prediction_type,
            "precision": self.precision,
            "tensors": f"{self.tensors}, {size(self.size_bytes)}",
            "title": self.title,
            "warning": "; ".join(self.warnings) or None,
        }
        return "\n".join(f"{name + ':':<12}{value}" for name, value in lines.items() if value)


def inspect(path: Path) -> Inspection:
    """Inspect a file. Raise the LoaderError that a load of this file would raise."""
    with ExitStack() as stack:
        opened = OpenFiles(stack)
        file = opened.open(path)
        model_type = found_type(file.tensors)
        plan = plan_file(file, Conversion(model_type, model_id="inspected"), opened)
        title = file.metadata.get(_TITLE)
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
            title=snippet(title) if title else None,
            warnings=plan.warnings,
        )
