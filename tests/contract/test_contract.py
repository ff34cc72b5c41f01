"""Tests of the small rules of the contract: loadHash, names, reasons."""

import pytest

from sd_api import names
from sd_api.choices import ComponentName, ModelType
from sd_api.loadhash import load_hash
from sd_api.reasons import ExitCode, Reason
from sd_api.spec import Components, Spec

LINK = "https://civitai.com/api/download/models/94640"


def digest(reload=None, name="m", **spec):
    """Return the loadHash of a spec with these fields."""
    return load_hash(Spec.model_validate({"url": LINK, **spec}), name, reload)


@pytest.mark.parametrize(
    "change",
    [
        {"url": LINK + "1"},
        {"modelType": "lora"},
        {"gitRevision": "v2"},
        {"revision": "fp16"},
        {"sha256": "0" * 64},
        {"weights": "ema"},
        {"baseModel": "sdxl"},
        {"predictionType": "v_prediction"},
        {"originalConfig": LINK},
        {"vae": {"url": "a/b"}},
        {"upcastAttention": True},
        {"verify": {"weights": True}},
        {"fromSafetensors": True},
        {"reload": "2026-11-23"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_fields_that_affect_the_weights_change_the_load_hash(change):
    """A change of one of these fields reloads the model."""
    assert digest(**change) != digest()


@pytest.mark.parametrize(
    "change",
    [
        {"webhook": "https://hooks.example.com"},
        {"suspend": True},
        {"priority": 5},
        {"deletionPolicy": "Retain"},
        {"credentialsSecretRef": {"name": "s"}},
        {"job": {"activeDeadlineSeconds": 60}},
        {"modelType": "custom_ckpt"},
        {"weights": "standard"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_fields_that_do_not_affect_the_weights_keep_the_load_hash(change):
    """A change of these fields does not reload the model. One case spells out a default."""
    assert digest(**change) == digest()


def test_the_load_hash_is_stable():
    """The hash of a spec equals the hash of earlier releases: another one would reload models."""
    assert digest() == "36d4c05502f9a1c1"


@pytest.mark.parametrize(
    ("url", "model_type"),
    [
        ("runwayml/stable-diffusion-v1-5", ModelType.HUGGINGFACE),
        ("https://huggingface.co/a/b", ModelType.HUGGINGFACE),
        ("https://huggingface.co/a/b/", ModelType.HUGGINGFACE),
        ("https://huggingface.co/a/b/resolve/main/c.safetensors", ModelType.CUSTOM_CKPT),
        (LINK, ModelType.CUSTOM_CKPT),
    ],
)
def test_the_model_type_follows_from_the_url(url, model_type):
    """A repo id or its page is a Hub repo; every other link is a checkpoint."""
    assert Spec(url=url).effective_model_type() is model_type


def test_a_controlnet_of_the_vendors_table_has_a_url():
    """A ControlNet's url is that of the table's row for the effective model id."""
    spec = Spec(model_type=ModelType.CONTROLNET)
    assert spec.effective_url("canny") == "lllyasviel/control_v11p_sd15_canny"
    assert spec.effective_url("other") is None


@pytest.mark.parametrize("name", ["a", "a" * 63, "a.b-c", "a" * 39 + ".b"])
def test_a_job_name_is_a_dns_label(name):
    """Whatever the model's name, the Job's name is a DNS label: it is a label value, too."""
    job = names.job_name(name, "uid", "0" * 16, 0)
    assert len(job) <= 52
    assert "." not in job
    assert job.rpartition("-")[0].strip("-")


def test_a_job_name_depends_on_uid_load_and_attempt():
    """A Job's name differs for another uid, load or attempt."""
    assert (
        len(
            {
                names.job_name("m", uid, load, attempt)
                for uid in "ab"
                for load in ("0" * 16, "1" * 16)
                for attempt in (0, 1)
            }
        )
        == 8
    )


@pytest.mark.parametrize("reason", list(Reason))
def test_every_reason_has_a_remedy(reason):
    """The value is a valid condition reason, and the remedy is a sentence."""
    assert reason.value.isalnum()
    assert reason.remedy.endswith(".")
    assert reason.exit_code in {ExitCode.TRY_AGAIN, ExitCode.PERMANENT}


def test_every_component_of_the_spec_has_a_name():
    """Rules, messages and options are made from the names, and the CRD from the fields."""
    fields = Components.model_json_schema(by_alias=True)["properties"]
    assert fields.keys() - {"from"} == {name.value for name in ComponentName}
