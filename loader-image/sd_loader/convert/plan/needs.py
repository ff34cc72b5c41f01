"""Finds out what a conversion needs besides the source file."""

from __future__ import annotations

from dataclasses import dataclass

from sd_api.spec import BaseModelName, LoraOptions
from sd_loader.convert.conversion import Conversion
from sd_loader.convert.detect.checkpoint import family_of
from sd_loader.convert.detect.quantized import refuse_quantized
from sd_loader.convert.plan.checkpoint import missing_components
from sd_loader.convert.plan.fallback import foreign_pipeline
from sd_loader.convert.plan.vae import VAE
from sd_loader.errors import LoaderError
from sd_loader.tensors import TensorFile


@dataclass(frozen=True)
class Needs:
    """What must be downloaded before a file can be converted. Most files need nothing else."""

    base_model: BaseModelName | None = None
    """The base model that the components must fit. None unless the file is a checkpoint."""

    components: tuple[str, ...] = ()
    """Components of the pipeline that the file lacks, by the names of their folders.

    A VAE that the user replaces is not among them.
    """

    config_repo: str | None = None
    """Hub repo with the configs of a pipeline that only diffusers converts. None for others."""

    numbers: bool = False
    """Whether the folder is planned from the file's numbers, not from their shapes alone."""

    @property
    def whole_file(self) -> bool:
        """Whether the file must be complete before it is converted."""
        # diffusers reads all of a file.
        return self.numbers or self.config_repo is not None


def needs(file: TensorFile, conversion: Conversion) -> Needs:
    """Find out what the file lacks, from its header alone.

    Raises LoaderError for quantized weights, and for a model that only diffusers converts if
    diffusers is not installed or does not convert it either. Any other file that cannot be
    converted needs nothing: planning its folder says why.
    """
    if not conversion.is_pipeline:
        # A PEFT adapter has a LoRA's alphas in its config.
        return Needs(numbers=conversion.lora != LoraOptions())
    refuse_quantized(file.tensors)
    pipeline = foreign_pipeline(file, conversion)
    if pipeline is not None:
        return Needs(config_repo=pipeline.config_repo)
    try:
        base_model = family_of(file.tensors, conversion.base_model)
        missing = missing_components(file.tensors, conversion.base_model)
    except LoaderError:
        return Needs()
    replaced = {VAE} if conversion.replacement_vae else set()
    return Needs(base_model, tuple(name for name in missing if name not in replaced))
