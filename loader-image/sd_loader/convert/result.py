"""What a conversion hands on: the files it wrote and what they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sd_loader.convert.write.files import FolderPlan


@dataclass(frozen=True, slots=True)
class FileDigest:
    """SHA-256, in lower-case hex, and size of a written file."""

    sha256: str
    size: int


@dataclass(frozen=True)
class Converted:
    """A diffusers folder that was written whole.

    files: digest of every file by its path in the folder. base_model, pipeline_class, precision
    (fp32, fp16, bf16 or mixed) and prediction_type: the words of status.artifact. warnings: what
    the user should know although the load succeeded.
    """

    files: Mapping[str, FileDigest]
    base_model: str | None = None
    pipeline_class: str | None = None
    precision: str | None = None
    prediction_type: str | None = None
    warnings: tuple[str, ...] = ()

    @classmethod
    def of(cls, plan: FolderPlan, files: Mapping[str, FileDigest]) -> Converted:
        """The folder that was planned, now that its files are written."""
        return cls(
            files=files,
            base_model=plan.base_model,
            pipeline_class=plan.pipeline_class,
            precision=plan.precision,
            prediction_type=plan.prediction_type,
            warnings=plan.warnings,
        )
