"""Words failures for a person at a shell.

Messages and remedies are written for the owner of a resource: they name a field as `spec.modelType`
and mention Secrets and annotations. A person who runs `sd-loader` gives options instead. Only this
module translates between the two.
"""

from __future__ import annotations

import re

from sd_api.loader_env import LoaderEnv
from sd_api.reasons import Reason
from sd_api.spec import BaseModelName, LoraFormat, ModelType, PredictionType, Revision, Weights

_OPTIONS = {"vae.url": "vae"}
_VALUES = sorted(
    (
        member.value
        for enum in (BaseModelName, LoraFormat, ModelType, PredictionType, Revision, Weights)
        for member in enum
    ),
    key=len,
    reverse=True,
)
_MENTION = re.compile(
    r"\bspec\.(?P<path>[a-z][A-Za-z]*(?:\.[a-z][A-Za-z]*)*)"
    rf"(?:: (?:(?P<true>true)\b|\{{url: (?P<url>[^{{}}]+)\}}|(?P<value>{'|'.join(_VALUES)})\b))?"
)
_CREDENTIALS = LoaderEnv.name_of("credentials_dir")
_TOKEN = (
    "put the token into a file `token`, and the host that it is for into a file `host`, and set"
    f" {_CREDENTIALS} to the folder of the two files"
)

_REMEDIES = {
    Reason.INVALID_SPEC: "Correct the option that the message names.",
    Reason.MODEL_ID_CONFLICT: "Use another --model-id or another --store.",
    Reason.VOLUME_NOT_WRITABLE: (
        "Use a --store folder that you may write to, or get the right to write to this one."
    ),
    Reason.UNSUPPORTED_VOLUME: (
        "Use a --store folder on a file system that supports symbolic links and atomic rename,"
        " such as a local disk, NFS or CephFS."
    ),
    Reason.SECRET_NOT_FOUND: f"To give a token, {_TOKEN}.",
    Reason.CREDENTIALS_HOST_MISMATCH: (
        f"Write the exact host of --url into the file `host` in {_CREDENTIALS}, and use"
        " an https link: the token is sent to that host only, and never over plain http."
    ),
    Reason.SOURCE_NOT_FOUND: (
        f"Check --url and --git-revision; for a private repo, {_TOKEN}. If the source has removed"
        " the model, use another source."
    ),
    Reason.AUTHENTICATION_REQUIRED: f"Get a token from the source, {_TOKEN}.",
    Reason.ACCESS_DENIED: (
        "Open the model's page with the token's account: it says what is missing, such as an"
        " accepted licence, a purchase or the date of release. Or use the token of an account that"
        " may read it. Then run the command again."
    ),
    Reason.REQUEST_REJECTED: (
        "Give --url a new and complete link, in quotes: a signed link may have expired, or may have"
        " been cut off when it was copied."
    ),
    Reason.RATE_LIMITED: (
        f"Wait, or use a token, with which most sources allow more requests: {_TOKEN}."
    ),
    Reason.SOURCE_UNREACHABLE: (
        "Check the host in --url and this machine's network, DNS and proxy"
        f" ({LoaderEnv.name_of('https_proxy')}). If the source lets only browsers through, use"
        " another source."
    ),
    Reason.ADDRESS_REFUSED: (
        f"Use a public https address, or add the host to {LoaderEnv.name_of('allowed_hosts')}."
    ),
    Reason.NOT_A_MODEL: "Give --url the link of the model file itself, not of a page about it.",
    Reason.DAMAGED_FILE: (
        "Compare the file's size with the original's, and get the original again. If the original"
        " is damaged, use another copy."
    ),
    Reason.DIGEST_MISMATCH: (
        "Compare --sha256 with the digest that the source states. If they agree, the file was"
        " altered: run the command again to download it again."
    ),
    Reason.TOO_LARGE: (
        f"Choose a smaller variant of the model, or raise {LoaderEnv.name_of('max_bytes')}."
    ),
    Reason.UNSUPPORTED_FORMAT: (
        "Choose a model of a supported type and architecture, and the --model-type that fits it."
    ),
    Reason.CONVERSION_FAILED: (
        "Use --base-model or --original-config if the architecture was not detected correctly;"
        " otherwise use another file of the model."
    ),
    Reason.VERIFICATION_FAILED: (
        "Use --revision bf16 or fp32 if the weights do not fit fp16; otherwise use another file of"
        " the model."
    ),
    Reason.INSUFFICIENT_STORAGE: "Free space on the disk of the --store folder, or use another.",
    Reason.OUT_OF_MEMORY: "End other programs, or use a machine with more memory.",
    Reason.LOADER_CRASHED: (
        "Run the command again. If it fails in the same way, report this as a defect, with all that"
        " the command printed."
    ),
}


def message_at_shell(message: str) -> str:
    """Return the message with the options of `sd-loader load` in place of the fields of spec."""
    return _MENTION.sub(_option, message)


def remedy_at_shell(reason: Reason) -> str:
    """Return what a person can do who ran `sd-loader`."""
    return _REMEDIES.get(reason) or message_at_shell(reason.remedy)


def option(path: str) -> str:
    """Return the option for a field of the spec, whose path has Python's or JSON's spelling."""
    snake = re.sub(r"(?<=[a-z])([A-Z])", lambda match: f"_{match[1].lower()}", path)
    return "--" + re.sub(r"[._]", "-", _OPTIONS.get(snake, snake))


def _option(match: re.Match[str]) -> str:
    name = option(match["path"])
    value = match["url"] or match["value"]
    return f"{name} {value}" if value else name
