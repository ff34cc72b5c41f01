"""Messages name what their reader has given: options, fields of a request or of a form."""

from __future__ import annotations

import json
import re

import pytest

from sd_api.names import ANNOTATION_RELOAD
from sd_api.reasons import Reason
from sd_api.spec import LoadFields, LoraOptions, Spec
from sd_api.wording import (
    PATTERNS,
    message_at_shell,
    message_in_api,
    option,
    remedy_at_shell,
    reword,
)
from sd_loader.arguments import parser

OF_A_CLUSTER = (
    "spec.",
    "Secret",
    "kubectl",
    "PersistentVolumeClaim",
    "NetworkPolicy",
    "annotation",
    "administrator",
    "namespace",
)
BY_KUBERNETES = {
    Reason.ARTIFACT_MISSING,
    Reason.BACKOFF_LIMIT_EXCEEDED,
    Reason.CLAIM_NOT_ALLOWED,
    Reason.CLAIM_NOT_BOUND,
    Reason.CLAIM_NOT_FOUND,
    Reason.CLEANUP_FAILED,
    Reason.DEADLINE_EXCEEDED,
    Reason.IMAGE_PULL_FAILED,
    Reason.POD_NOT_STARTING,
    Reason.PRIORITY_CLASS_NOT_ALLOWED,
    Reason.QUOTA_EXCEEDED,
    Reason.UNSCHEDULABLE,
    Reason.VOLUME_NOT_MOUNTED,
}
"""The reasons that only the operator gives."""


@pytest.mark.parametrize("reason", [reason for reason in Reason if reason not in BY_KUBERNETES])
def test_remedy_at_a_shell_names_nothing_of_a_cluster(reason: Reason) -> None:
    """At a shell, a remedy does not name a resource, a Secret or an administrator."""
    remedy = remedy_at_shell(reason)
    assert not [word for word in OF_A_CLUSTER if word in remedy]


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ("spec.url: the link is not well-formed", "--url: the link is not well-formed"),
        ("spec.vae.url: the file is empty", "--vae: the file is empty"),
        ("it needs spec.modelType: lora", "it needs --model-type lora"),
        ("use spec.revision: bf16 or fp32", "use --revision bf16 or fp32"),
        ("or spec.upcastAttention: true", "or --upcast-attention"),
        ("spec.sha256 is of another file", "--sha256 is of another file"),
        ("metadata.name is too long", "metadata.name is too long"),
        ("use spec.vae: {url: org/vae}, or", "use --vae org/vae, or"),
        ("set spec.baseModel.", "set --base-model."),
        ("name it in spec.components.from, or", "name it in --components-from, or"),
        ("spec.components.text_encoder_2.url: no", "--component text_encoder_2: no"),
        ("spec.components.vae does not apply", "--component vae does not apply"),
        ("spec.verify.render needs torch", "--verify-render needs torch"),
        ("spec.lora.expandLycoris: true expands it", "--lora-expand-lycoris expands it"),
        ("modelspec.architecture says otherwise", "modelspec.architecture says otherwise"),
        ("nothing to change", "nothing to change"),
    ],
)
def test_message_at_a_shell_names_options(message: str, words: str) -> None:
    """A field of the spec becomes the option that sets it, with the value in the message."""
    assert message_at_shell(message) == words


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ("spec.url: no such repo; check spec.gitRevision", "url: no such repo; check the branch"),
        ("use spec.upcastAttention: true", "use upcast_attention yes"),
        ("it needs spec.modelType: lora", "it needs spec.modelType: lora"),
        ("metadata.name is too long", "metadata.name is too long"),
    ],
)
def test_message_names_the_fields_of_a_surface(message: str, words: str) -> None:
    """A surface is the API or a form. A field that it does not have keeps its name in the spec."""
    own = {
        "spec.url": "url",
        "spec.gitRevision": "the branch",
        "spec.upcastAttention": "upcast_attention",
    }
    assert reword(message, own.get, yes="yes") == words


@pytest.mark.parametrize("reason", Reason)
def test_remedy_in_the_api_names_no_reload_annotation(reason: Reason) -> None:
    """In the API, a remedy says to send the request again, which reloads a stalled model."""
    remedy = message_in_api(reason.remedy, {"spec.url": "vae_url"})
    assert ANNOTATION_RELOAD not in remedy
    assert ("send the load request again" in remedy) is (ANNOTATION_RELOAD in reason.remedy)
    assert "spec.url" not in remedy


def test_every_pattern_of_the_spec_has_words() -> None:
    """Each pattern has words, which messages show instead of the regular expression."""
    patterns = set(re.findall(r'"pattern": ("[^"]+")', json.dumps(Spec.model_json_schema())))
    assert {json.loads(pattern) for pattern in patterns} == set(PATTERNS)


@pytest.mark.parametrize("field", sorted({*LoadFields.model_fields} - {"lora", "verify"}))
def test_each_option_that_messages_name_exists(
    field: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The option for a field exists in the loader's help, in either spelling of the field."""
    with pytest.raises(SystemExit):
        parser().parse_args(["load", "--help"])
    assert f"  {option(field)} " in capsys.readouterr().out
    assert option(LoadFields.model_fields[field].alias or field) == option(field)


@pytest.mark.parametrize("field", LoraOptions.model_fields)
def test_each_option_of_a_lora_exists(field: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The option for a field of spec.lora has both parts of the field's path, and exists."""
    with pytest.raises(SystemExit):
        parser().parse_args(["load", "--help"])
    assert f"  {option(f'lora.{field}')}" in capsys.readouterr().out
