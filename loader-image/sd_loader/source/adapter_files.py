"""Which file of a Hub repo is the LoRA or the embedding that the repo is about."""

from __future__ import annotations

from collections.abc import Iterable

from sd_api.reasons import Reason
from sd_api.spec import ModelType
from sd_loader.errors import LoaderError
from sd_loader.formats.snippet import snippet

# As diffusers names them; what else lies at a repo's root counts only where it is alone.
_USUAL = {ModelType.LORA: "pytorch_lora_weights", ModelType.EMBEDDINGS: "learned_embeds"}
_SECOND = "learned_embeds_2"
_SAFE = "safetensors"
_PICKLES = ("bin", "pt", "ckpt")
# What training programs leave beside the result.
_NO_RESULT = ("scheduler", "optimizer", "checkpoint", "random_states", "training_args", "scaler")


def choose_adapter_file(
    names: Iterable[str], model_type: ModelType, *, safetensors_only: bool = False
) -> str:
    """The name of the file to load; refuses a repo that leaves open which one is meant.

    Safetensors before pickles, and among those the usual name before any other one.
    """
    root = sorted(name for name in names if "/" not in name)
    usual = _USUAL[model_type]
    if any(name.rpartition(".")[0] == _SECOND for name in root):
        raise LoaderError(
            Reason.UNSUPPORTED_FORMAT,
            "the repo keeps the two halves of an embedding of SDXL in two files; load one file that"
            " holds clip_l and clip_g",
        )
    for endings in ((_SAFE,), _PICKLES):
        found = [name for name in root if _is_result(name, endings)]
        if found and endings != (_SAFE,) and safetensors_only:
            raise LoaderError(
                Reason.UNSAFE_MODEL, f"the repo has {snippet(found[0])} only, no safetensors"
            )
        likely = [name for name in found if name.rpartition(".")[0] == usual] or found
        if len(likely) == 1:
            return likely[0]
        if likely:
            listed = ", ".join(snippet(name, 60) for name in likely[:5])
            raise LoaderError(
                Reason.UNSUPPORTED_FORMAT,
                f"the repo has {len(likely)} files that may be meant; give the link of one as"
                f" spec.url: {listed}",
            )
    listed = ", ".join(snippet(name, 60) for name in root[:5]) or "nothing"
    raise LoaderError(
        Reason.UNSUPPORTED_FORMAT,
        f"the repo has no file of the type {model_type.value} at its root; it holds {listed}",
    )


def _is_result(name: str, endings: tuple[str, ...]) -> bool:
    stem, _, ending = name.rpartition(".")
    return ending in endings and not any(word in stem for word in _NO_RESULT)
