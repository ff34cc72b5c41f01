"""The loader's command line: its commands, their options and their help."""

from __future__ import annotations

import argparse
import sys
import textwrap
from pathlib import Path

from sd_api.choices import (
    BaseModelName,
    ComponentName,
    LoraFormat,
    ModelType,
    PredictionType,
    Revision,
    Weights,
)
from sd_api.completion import add_completion
from sd_api.taxonomy import canonical, listed

OF_JOBS = frozenset({"fetch", "convert", "remove", "check"})
"""The commands that the operator's Jobs run. People run the others."""
_OLDER_THAN_HOURS = 24.0
"""Default of --older-than. A loader Job may run for 6 h, so an older file cannot belong to a
running Pod, even on a file system without locks."""
_WIDTH = 78
_NAME_LENGTH = 40
"""Maximum number of characters of a wrong name in a message."""
_URL = "https://civitai.com/api/download/models/94640"


def parser() -> argparse.ArgumentParser:
    """Return the parser. Its result has the name of the command in `command`."""
    parser = argparse.ArgumentParser(
        prog="sd-loader",
        description="Downloads, converts, verifies and publishes Stable Diffusion models.",
        epilog=_examples(
            f"sd-loader load --url {_URL} --model-id majicmix --store ./models",
            "sd-loader list --store ./models",
            "sd-loader inspect some-checkpoint.ckpt",
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    add_completion(parser)
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    _add_load(_add(commands, "load", "download, convert and publish a model by hand"))
    _add_inspect(_add(commands, "inspect", "show what a model is, or why it cannot be loaded"))
    _add_list(_add(commands, "list", "list the models that are published in a store"))
    _add_verify(_add(commands, "verify", "compare a published model with its digests"))
    _add_sweep(_add(commands, "sweep", "list or remove orphaned files on a volume"))
    _add_request(
        _add(commands, "fetch", "download a model's source to the volume (for loader Jobs)"),
        '{"owner": {"uid": "u1", "namespace": "art", "name": "sd15"}, "modelId": "sd15",'
        ' "loadHash": "0123456789abcdef", "url": "ORG/NAME", "modelType": "huggingface"}',
    )
    _add_request(
        _add(commands, "convert", "convert the downloaded model and publish it (for loader Jobs)"),
        "{… the same request as for fetch …}",
    )
    _add_request(
        _add(commands, "remove", "remove the files of a deleted model (for loader Jobs)"),
        '{"owner": {"uid": "u1", "namespace": "art", "name": "sd15"}, "modelId": "sd15"}',
    )
    _add_request(
        _add(commands, "check", "find published models that are not complete (for check Jobs)"),
        '{"versions": [{"uid": "u1", "loadHash": "0123456789abcdef", "modelId": "sd15"}]}',
    )
    return parser


class _Version(argparse.Action):
    """Prints the version. It reads the package's metadata, for which other commands do not wait."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        sys.stdout.write(f"{version('sd-operator')}\n")
        parser.exit()


def _add(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, summary: str
) -> argparse.ArgumentParser:
    return commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _examples(*lines: str) -> str:
    title = "example" if len(lines) == 1 else "examples"
    return "\n  ".join((f"{title}:", *lines))


def _text(paragraph: str, *more: str) -> str:
    return "\n\n".join((textwrap.fill(paragraph, _WIDTH), *more))


def _add_store(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument("--store", required=True, type=Path, metavar="DIR", help=text)


def _add_json(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument("--json", action="store_true", help=text)


def _add_token_file(parser: argparse.ArgumentParser, source: str) -> None:
    parser.add_argument(
        "--token-file",
        type=Path,
        metavar="FILE",
        help=f"file with the token for the host of {source}; default: HF_TOKEN for the Hub,"
        " CIVITAI_TOKEN for Civitai",
    )


def _add_request(parser: argparse.ArgumentParser, request: str) -> None:
    parser.add_argument("--request", required=True, metavar="JSON", help="the operator's request")
    _add_store(parser, "root folder of the volume")
    parser.epilog = _examples(f"{parser.prog} --store /models --request '{request}'")


def _add_inspect(parser: argparse.ArgumentParser) -> None:
    parser.description = _text(
        "Shows what a model is, or why it cannot be loaded. A link or repo is looked up, but not"
        " loaded."
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="model file, folder of a published model, http(s) link, or Hugging Face repo",
    )
    _add_token_file(parser, "MODEL")
    _add_json(parser, "print one JSON object")
    parser.epilog = _examples(
        "sd-loader inspect some-checkpoint.ckpt",
        "sd-loader inspect ./models/majicmix",
        f"sd-loader inspect {_URL}",
        "sd-loader inspect ORG/NAME",
    )


def _add_list(parser: argparse.ArgumentParser) -> None:
    _add_store(parser, "folder with published models")
    _add_json(parser, "print one JSON object per line")
    parser.epilog = _examples("sd-loader list --store ./models")


def _add_verify(parser: argparse.ArgumentParser) -> None:
    parser.description = _text(
        "Reads all files of a published model and compares them with the digests in its receipt."
    )
    parser.add_argument("model_id", metavar="MODEL", help="name of the model's folder in the store")
    _add_store(parser, "folder with published models")
    parser.epilog = _text(
        "Exit codes: 0 if all files are as they were published; 3 if the model does not exist or a"
        " file was altered.",
        _examples("sd-loader verify majicmix --store ./models"),
    )


def _add_load(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--url",
        help="Hugging Face repo (ORG/NAME[@REVISION]), http(s) link, or local file; optional for"
        " the ControlNets that load by model id",
    )
    add("--model-id", required=True, help="name of the model's folder in the store")
    _add_store(parser, "folder to publish models in")
    add(
        "--model-type",
        choices=[kind.value for kind in ModelType],
        help="default: what the file or repo is; needed for api_trained",
    )
    add(
        "--revision",
        choices=[word.value for word in Revision],
        help="precision of the published weights; default: the source's",
    )
    _add_token_file(parser, "--url")
    add("--git-revision", help="branch, tag or commit of a Hub repo")
    add("--sha256", help="expected SHA-256 of a single file")
    add(
        "--weights",
        choices=[word.value for word in Weights],
        default=Weights.STANDARD.value,
        help="which weights to publish if a checkpoint has both sets; default: standard",
    )
    add(
        "--base-model",
        type=_base_model,
        choices=[*BaseModelName],
        metavar="FAMILY",
        help=f"family of the model: {listed(BaseModelName)}; default: detected",
    )
    add(
        "--prediction-type",
        choices=[word.value for word in PredictionType],
        help="what the UNet predicts; default: detected",
    )
    add(
        "--original-config",
        help="the checkpoint's original YAML config: http(s) link, or local file",
    )
    add(
        "--vae",
        type=lambda url: {"url": url},
        metavar="URL",
        help="VAE that replaces the model's own: repo, link, or local file",
    )
    add(
        "--components-from",
        metavar="REPO",
        help="diffusers repo (ORG/NAME[@REVISION]) of the components that the file lacks; default:"
        " that of SD_LOADER_DEFAULT_PARTS for the model's family",
    )
    add(
        "--component",
        type=_component,
        metavar="NAME=URL",
        action="append",
        default=[],
        help="component that replaces the pipeline's own, such as transformer_2: repo, link, or"
        " local file; may be repeated",
    )
    add(
        "--from-safetensors",
        action="store_true",
        default=None,
        help="fail if the source is not in safetensors format",
    )
    add(
        "--upcast-attention",
        action="store_true",
        default=None,
        help="set the UNet's upcast_attention; default: detected",
    )
    add(
        "--lora-format",
        choices=[word.value for word in LoraFormat],
        default=LoraFormat.DIFFUSERS.value,
        help="peft adds a PEFT adapter (adapter_config.json, adapter_model.safetensors)",
    )
    add(
        "--lora-expand-lycoris",
        action="store_true",
        help="expand LoHa and LoKr exactly to a LoRA of higher rank",
    )
    add("--verify-weights", action="store_true", help="scan every weight for NaN and Inf")
    add("--verify-render", action="store_true", help="render a test image; needs torch")
    parser.epilog = _examples(
        f"sd-loader load --url {_URL} --model-id majicmix --store ./models",
        "sd-loader load --url ORG/NAME --revision fp16 --model-id mine --store ./models",
        "sd-loader load --url ./my-lora.safetensors --model-type lora --model-id style"
        " --store ./models",
    )


def _component(text: str) -> tuple[str, str]:
    """Parse NAME=URL. Return the name and the url."""
    name, equals_sign, url = text.partition("=")
    names = [component.value for component in ComponentName]
    if not equals_sign or name not in names:
        raise argparse.ArgumentTypeError(
            f"must be NAME=URL, where NAME is one of {', '.join(names)}; it is {text[:80]!r}"
        )
    return name, url


def _add_sweep(parser: argparse.ArgumentParser) -> None:
    parser.description = _text(
        "Lists orphaned files on a volume, published files that were altered, and files that the"
        " loader did not create. Loads may run at the same time."
    )
    parser.epilog = _text(
        "Exit codes: 0 on success, even if there are orphans; 1 if an orphan could not be removed;"
        " 3 if a published file was altered, which a person must look into.",
        _examples("sd-loader sweep --store ./models --delete"),
    )
    add = parser.add_argument
    _add_store(parser, "root folder of the volume")
    add(
        "--delete",
        action="store_true",
        help="remove the orphans, and write the lists in .index again; all other files stay",
    )
    add("--digests", action="store_true", help="also compare the content of all published files")
    add(
        "--older-than",
        type=_hours,
        default=_OLDER_THAN_HOURS,
        metavar="HOURS",
        help="keep files that changed in the last HOURS, as a running Pod may use them"
        " (default: 24)",
    )
    _add_json(parser, "print one JSON object per line")


def _base_model(text: str) -> BaseModelName:
    name = canonical(text)
    if name is None:
        raise argparse.ArgumentTypeError(
            f"{text[:_NAME_LENGTH]!r} is not a family; the families are {listed(BaseModelName)}"
        )
    return name


def _hours(text: str) -> float:
    hours = float(text)
    if not 0 <= hours <= 24 * 365:
        raise ValueError(text)
    return hours
