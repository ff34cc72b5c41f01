"""Finds out what a conversion needs besides the source file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from sd_api.choices import BaseModelName
from sd_api.spec import LoraOptions
from sd_loader.convert.conversion import Conversion
from sd_loader.convert.detect.checkpoint import family_of
from sd_loader.convert.detect.kinds import transformer_file
from sd_loader.convert.detect.quantized import refuse_quantized
from sd_loader.convert.detect.transformers import TransformerFile
from sd_loader.convert.plan.all_in_one import missing_of, tokenizer_repo
from sd_loader.convert.plan.checkpoint import missing_components
from sd_loader.convert.plan.scaled_fp8 import has_scales, without_scales
from sd_loader.errors import LoaderError
from sd_loader.tensors import Tensor, TensorFile


@dataclass(frozen=True)
class Needs:
    """What must be downloaded before a file can be converted. Most files need nothing else."""

    base_model: BaseModelName | None = None
    """The base model that the components must fit. None unless the file is a checkpoint."""

    components: tuple[str, ...] = ()
    """Components of the pipeline that the file lacks, by the names of their folders.

    Components that the user replaces are not among them.
    """

    family: str | None = None
    """Family of the file's transformer. None if the file has no transformer of a known family."""

    transformer: TransformerFile | None = None
    """The file's transformer, if a diffusers repo must give the other components."""

    config_repo: str | None = None
    """Hub repo with configs and tokenizers that the pipeline needs. None if it needs no repo."""

    whole_file: bool = False
    """True if the file must be downloaded completely before its folder is planned.

    The plan then needs values of tensors, or the folder has files that are linked.
    """


def needs(file: TensorFile, conversion: Conversion) -> Needs:
    """Read from the file's header what else must be downloaded before it can be converted.

    Raise LoaderError if the file of a pipeline has quantized weights. If the file cannot be
    converted for another reason, name no downloads: the later plan raises the error.
    """
    if not conversion.is_pipeline:
        # The plan then needs values of tensors: the alphas for PEFT's config, or LyCORIS layers.
        return Needs(whole_file=conversion.lora != LoraOptions())
    whole_file = has_scales(file.tensors)
    tensors = without_scales(file.tensors) if whole_file else file.tensors
    refuse_quantized(tensors)
    found = _needs(tensors, conversion)
    return replace(found, whole_file=whole_file or found.transformer is not None)


def _needs(tensors: Mapping[str, Tensor], conversion: Conversion) -> Needs:
    found = transformer_file(tensors)
    if found is not None:
        return _needs_of_transformer(found, tensors)
    try:
        base_model = family_of(tensors, conversion.base_model)
        missing = missing_components(tensors, conversion.base_model)
    except LoaderError:
        return Needs()
    return Needs(base_model, tuple(name for name in missing if name not in conversion.replaced))


def _needs_of_transformer(found: TransformerFile, tensors: Mapping[str, Tensor]) -> Needs:
    family = found.family.table
    missing = missing_of(found, tensors)
    if missing == ():
        return Needs(family=family, config_repo=tokenizer_repo(found, tensors))
    return Needs(family=family, transformer=None if family is None else found)
