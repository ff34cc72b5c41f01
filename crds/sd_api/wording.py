"""Rewords messages for people who do not write resources, but use a shell, an API or a form.

Messages and remedies are written for the owner of a resource: they name a field as `spec.modelType`
and mention Secrets and annotations. A person who runs `sd-loader` gives options instead, a caller
of the gateway fills in the fields of a request, and a visitor of the gallery those of a form. Only
this module translates between them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from pydantic_core import ErrorDetails

from sd_api.choices import (
    BaseModelName,
    ComponentName,
    LoraFormat,
    ModelType,
    PredictionType,
    Revision,
    Weights,
)
from sd_api.fields import DNS_NAME_PATTERN, HEX_64_PATTERN
from sd_api.loader_env import LoaderEnv
from sd_api.names import ANNOTATION_RELOAD, MODEL_ID_PATTERN
from sd_api.reasons import Reason
from sd_api.spec import DATA_KEY_PATTERN, GIT_REVISION_PATTERN, QUANTITY_PATTERN

DNS_NAME_WORDS = (
    "must be lower-case letters, digits, dashes and dots, with a letter or digit at both ends"
)
MODEL_ID_WORDS = (
    "must be 1 to 63 letters, digits, dots, dashes and underscores,"
    " with a letter or digit at both ends"
)
PATTERNS = {
    DNS_NAME_PATTERN: DNS_NAME_WORDS,
    GIT_REVISION_PATTERN: (
        "must be letters, digits, dots, dashes, underscores and slashes,"
        " with a letter or digit at the start"
    ),
    MODEL_ID_PATTERN: MODEL_ID_WORDS,
    QUANTITY_PATTERN: "must be a quantity such as 2, 500m or 8Gi",
    DATA_KEY_PATTERN: "must be letters, digits, dashes, dots and underscores",
    HEX_64_PATTERN: "must be 64 digits of lower-case hex",
}
"""The words that messages show instead of each regular expression of the spec's fields."""

_OPTIONS = {
    "vae.url": "vae",
    "components": "component",
    **{f"components.{name}": f"component {name}" for name in ComponentName},
    **{f"components.{name}.url": f"component {name}" for name in ComponentName},
}
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
    r"\b(?P<path>metadata\.name|spec(?:\.[a-z][A-Za-z0-9_]*)+)"
    rf"(?:: (?:(?P<true>true)\b|\{{url: (?P<url>[^{{}}]+)\}}|(?P<value>{'|'.join(_VALUES)})\b))?"
)
_RELOAD = f"set the annotation {ANNOTATION_RELOAD} to a new value"
_CREDENTIALS = LoaderEnv.name_of("credentials_dir")
_TOKEN = (
    f"set {LoaderEnv.name_of('hub_token')} for the Hub or {LoaderEnv.name_of('civitai_token')} for"
    " Civitai, or give --token-file the path of a file with the token for the host of the link"
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
    Reason.SECRET_NOT_FOUND: f"To give another token, {_TOKEN}.",
    Reason.CREDENTIALS_HOST_MISMATCH: (
        f"Write the exact host of the link into the file `host` in {_CREDENTIALS}, and use"
        " an https link: the token is sent to that host only, and never over plain http."
    ),
    Reason.SOURCE_NOT_FOUND: (
        f"Check the link or repo, and its revision; for a private repo, {_TOKEN}. If the source"
        " has removed the model, use another source."
    ),
    Reason.AUTHENTICATION_REQUIRED: f"Get a token from the source, {_TOKEN}.",
    Reason.ACCESS_DENIED: (
        "Open the model's page with the token's account: it says what is missing, such as an"
        " accepted licence, a purchase or the date of release. Or use the token of an account that"
        " may read it. Then run the command again."
    ),
    Reason.REQUEST_REJECTED: (
        "Get a new and complete link, and give it in quotes: a signed link may have expired, or may"
        " have been cut off when it was copied."
    ),
    Reason.RATE_LIMITED: (
        f"Wait, or use a token, with which most sources allow more requests: {_TOKEN}."
    ),
    Reason.SOURCE_UNREACHABLE: (
        "Check the host in the link and this machine's network, DNS and proxy"
        f" ({LoaderEnv.name_of('https_proxy')}). If the source lets only browsers through, use"
        " another source."
    ),
    Reason.ADDRESS_REFUSED: (
        f"Use a public https address, or add the host to {LoaderEnv.name_of('allowed_hosts')}."
    ),
    Reason.NOT_A_MODEL: "Give the link of the model file itself, not of a page about it.",
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
        "Choose a model of a supported type and architecture, and leave --model-type out or give"
        " the one that fits it."
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


def problem_words(problem: ErrorDetails) -> str:
    """Return pydantic's message about a value, or our own if pydantic's shows a known pattern."""
    return PATTERNS.get(problem.get("ctx", {}).get("pattern", ""), problem["msg"])


def message_at_shell(message: str) -> str:
    """Return the message with the options of `sd-loader load` in place of the fields of spec."""

    def name(path: str) -> str | None:
        return option(path.removeprefix("spec.")) if path.startswith("spec.") else None

    return reword(message, name, yes="")


def message_in_api(message: str, fields: Mapping[str, str]) -> str:
    """Return the message with a request's fields in place of those of the resource.

    A caller of the gateway's API cannot set an annotation, but can repeat the load request, which
    has the same effect.
    """
    return reword(message.replace(_RELOAD, "send the load request again"), fields.get, yes="yes")


def message_in_gallery(message: str, label: Callable[[str], str | None]) -> str:
    """Return the message with the gallery's labels in place of the fields of the resource.

    A visitor cannot set an annotation, but the button "Load again" sets it.
    """

    def quoted(path: str) -> str | None:
        text = label(path)
        return f"“{text}”" if text else None

    return reword(message.replace(_RELOAD, "press “Load again”"), quoted, yes="Yes")


def reword(message: str, name: Callable[[str], str | None], *, yes: str) -> str:
    """Return the message with a surface's own names in place of the fields of the resource.

    name: the surface's name of a field, by a path such as `spec.url`; None if the surface does not
    have the field, which then keeps its own name. yes: the surface's word for true.
    """

    def renamed(match: re.Match[str]) -> str:
        own = name(match["path"])
        if own is None:
            return match[0]
        value = yes if match["true"] else match["url"] or match["value"]
        return f"{own} {value}" if value else own

    return _MENTION.sub(renamed, message)


def remedy_at_shell(reason: Reason) -> str:
    """Return the remedy for a person who ran `sd-loader` by hand."""
    return _REMEDIES.get(reason) or message_at_shell(reason.remedy)


def option(path: str) -> str:
    """Return the option for a field of the spec, whose path has Python's or JSON's spelling."""
    snake = re.sub(r"(?<=[a-z])([A-Z])", lambda match: f"_{match[1].lower()}", path)
    return "--" + (_OPTIONS.get(snake) or re.sub(r"[._]", "-", snake))
