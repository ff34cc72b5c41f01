"""Failures are worded for a person at a shell."""

from __future__ import annotations

import pytest

from sd_api.reasons import Reason
from sd_api.spec import LoadFields, LoraOptions
from sd_api.wording import message_at_shell, option, remedy_at_shell
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
    """A person who ran the command has no resource, no Secret and no administrator."""
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
        ("use spec.vae: {url: org/vae}, or", "use --vae org/vae, or"),
        ("set spec.baseModel.", "set --base-model."),
        ("spec.verify.render needs torch", "--verify-render needs torch"),
        ("spec.lora.expandLycoris: true expands it", "--lora-expand-lycoris expands it"),
        ("modelspec.architecture says otherwise", "modelspec.architecture says otherwise"),
        ("nothing to change", "nothing to change"),
    ],
)
def test_message_at_a_shell_names_options(message: str, words: str) -> None:
    """A field of the spec becomes the option that sets it, with the value that the message asks."""
    assert message_at_shell(message) == words


@pytest.mark.parametrize("field", sorted({*LoadFields.model_fields} - {"lora", "verify"}))
def test_each_option_that_messages_name_exists(
    field: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A message may spell the field as Python or as JSON does."""
    with pytest.raises(SystemExit):
        parser().parse_args(["load", "--help"])
    assert f"  {option(field)} " in capsys.readouterr().out
    assert option(LoadFields.model_fields[field].alias or field) == option(field)


@pytest.mark.parametrize("field", LoraOptions.model_fields)
def test_each_option_of_a_lora_exists(field: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Its name has the two parts of the field's path."""
    with pytest.raises(SystemExit):
        parser().parse_args(["load", "--help"])
    assert f"  {option(f'lora.{field}')}" in capsys.readouterr().out
