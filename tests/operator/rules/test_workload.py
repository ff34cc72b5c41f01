"""What a load's Job needs: the image with torch or the slim one, GPUs, CPU and memory."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from sd_api.choices import ModelType
from sd_api.spec import JobOverrides, Spec
from sd_operator.base.settings import LoaderSettings, Settings
from sd_operator.gateway.vendor import LoadModel, LoadModelV2, LoadVae
from sd_operator.rules import manifests, workload
from tests.support.rules.decisions import act, observed
from tests.support.rules.observed import URL, claim, model, published

ON = LoaderSettings()
TWO = LoaderSettings(gpu_count=2)
AMD = LoaderSettings(gpu_resource="amd.com/gpu")
OFF = LoaderSettings(gpu_count=0)
PLACED = LoaderSettings(placement=JobOverrides(runtime_class_name="nvidia"))

GPU = "nvidia.com/gpu"
WHOLE = (ModelType.HUGGINGFACE, ModelType.API_TRAINED, ModelType.CUSTOM_CKPT)
OTHERS = (ModelType.LORA, ModelType.EMBEDDINGS, ModelType.CONTROLNET, ModelType.VAE)


def of_type(model_type: ModelType | None, **fields: Any) -> Spec:
    """Return a spec of this model type."""
    return Spec.model_validate({"url": URL, "modelType": model_type} | fields)


def limit(amount: object, resource: str = GPU, kind: str = "limits") -> dict[str, Any]:
    """Return the fields of a spec whose Job asks for this amount of a resource."""
    return {"job": {"resources": {kind: {resource: amount}}}}


def asked(render: bool) -> dict[str, Any]:
    """Return the fields of a spec that states whether to render."""
    return {"verify": {"render": render}}


def needed(spec: Spec, loader: LoaderSettings) -> tuple[bool, object]:
    """Return whether the load renders, and the amount of GPUs in its limits."""
    overrides = spec.job or JobOverrides()
    renders = workload.renders(spec, overrides, loader)
    resources = workload.convert_resources(overrides, loader, renders=renders)
    return renders, resources["limits"].get(loader.gpu_resource)


WHOLE_MODELS = [
    pytest.param({}, ON, (True, 1), id="renders on the configured GPU"),
    pytest.param({}, TWO, (True, 2), id="on as many as are configured"),
    pytest.param({}, AMD, (True, 1), id="of the configured vendor"),
    pytest.param({}, OFF, (False, None), id="no GPU configured: no image"),
    pytest.param(asked(True), ON, (True, 1), id="asked to render"),
    pytest.param(asked(True), OFF, (True, None), id="asked to render on the CPU"),
    pytest.param(asked(False), ON, (False, None), id="asked not to: no GPU"),
    pytest.param(asked(False), OFF, (False, None), id="asked not to, without GPUs"),
    pytest.param(limit(4), ON, (True, 4), id="its own number of GPUs"),
    pytest.param(limit("4"), OFF, (True, "4"), id="its own GPU where none is configured"),
    pytest.param(limit(0), ON, (False, 0), id="its own GPU count is 0: no image"),
    pytest.param(limit("0"), ON, (False, "0"), id="the same as a string"),
    pytest.param(limit("0k"), ON, (False, "0k"), id="the same with a suffix"),
    pytest.param(limit(1, "amd.com/gpu"), ON, (True, 1), id="a resource of another name"),
    pytest.param(limit(4) | asked(False), ON, (False, 4), id="its own GPU is kept unused"),
    pytest.param(limit(0) | asked(True), ON, (True, 0), id="asked to render on the CPU by 0"),
    pytest.param(limit(2, kind="requests"), ON, (True, 2), id="a request alone is the limit too"),
    pytest.param(limit(2, kind="requests"), OFF, (True, 2), id="also where none is configured"),
]
ADAPTERS = [
    pytest.param({}, ON, (False, None), id="neither image nor GPU"),
    pytest.param({}, OFF, (False, None), id="no GPU configured"),
    pytest.param(asked(True), ON, (True, 1), id="asked to render"),
    pytest.param(asked(True), TWO, (True, 2), id="on as many as are configured"),
    pytest.param(asked(True), OFF, (True, None), id="asked to render on the CPU"),
    pytest.param(asked(False), ON, (False, None), id="asked not to"),
    pytest.param(limit(4), ON, (False, 4), id="its own GPU is kept"),
    pytest.param(limit(4), OFF, (False, 4), id="also where none is configured"),
    pytest.param(limit(4) | asked(True), ON, (True, 4), id="its own GPU renders if asked"),
    pytest.param(limit(0) | asked(True), ON, (True, 0), id="asked to render on the CPU by 0"),
]


@pytest.mark.parametrize("model_type", [*WHOLE, None])
@pytest.mark.parametrize(("fields", "loader", "expected"), WHOLE_MODELS)
def test_a_whole_model_renders_where_its_job_has_a_gpu(
    model_type: ModelType | None,
    fields: dict[str, Any],
    loader: LoaderSettings,
    expected: tuple[bool, object],
) -> None:
    """Each row states whether the load renders, and its GPUs. If set, spec.verify.render decides.

    Without modelType, a url means a whole model, too.
    """
    assert needed(of_type(model_type, **fields), loader) == expected


@pytest.mark.parametrize("model_type", OTHERS)
@pytest.mark.parametrize(("fields", "loader", "expected"), ADAPTERS)
def test_an_adapter_or_vae_renders_only_if_asked(
    model_type: ModelType,
    fields: dict[str, Any],
    loader: LoaderSettings,
    expected: tuple[bool, object],
) -> None:
    """By default, an adapter or VAE gets no GPU: it cannot draw an image without a base model."""
    assert needed(of_type(model_type, **fields), loader) == expected


def test_every_model_type_is_in_a_table() -> None:
    """The tables above have all model types, so a new one must be added there."""
    assert set(WHOLE) | set(OTHERS) == set(ModelType)


def gateway_specs() -> list[Any]:
    """Return rows: the spec that a load call of the gateway makes, and whether its load renders."""
    common = {"url": URL, "model_id": "m"}
    calls = [
        *((LoadModel(**common, model_type=kind.value), True) for kind in WHOLE),
        *((LoadModel(**common, model_type=kind.value), False) for kind in OTHERS),
        (LoadModelV2(**common, model_category="stable_diffusion", model_format="ckpt"), True),
        (LoadModelV2(**common, model_category="stable_diffusion", model_format="diffusers"), True),
        (LoadModelV2(**common, model_category="lora", model_format="safetensors"), False),
        (LoadModelV2(**common, model_category="controlnet", model_format="diffusers"), False),
        (LoadVae(vae_url=URL, vae_id="m", vae_type="pt"), False),
    ]
    return [
        pytest.param(call.spec(), renders, id=f"{type(call).__name__} {call.spec()['modelType']}")
        for call, renders in calls
    ]


@pytest.mark.parametrize(("spec", "renders"), gateway_specs())
def test_the_gateway_leaves_rendering_to_the_operator(spec: dict[str, Any], renders: bool) -> None:
    """The gateway's spec sets no verify.render, so the operator's defaults decide."""
    assert "verify" not in spec
    assert needed(Spec.model_validate(spec), ON) == (renders, 1 if renders else None)
    assert needed(Spec.model_validate(spec), OFF) == (False, None)


def test_memory_follows_the_work() -> None:
    """A load that renders has a higher memory limit than a load that only converts."""
    nothing = JobOverrides()
    converts = workload.convert_resources(nothing, ON, renders=False)
    renders = workload.convert_resources(nothing, ON, renders=True)
    assert converts["requests"]["memory"] == workload.FETCH["requests"]["memory"] == "256Mi"
    assert renders["requests"]["memory"] == "4Gi"
    assert converts["limits"] == {"memory": "2Gi"}
    assert renders["limits"] == {"memory": "16Gi", GPU: 1}


@pytest.mark.parametrize(
    ("fields", "loader", "expected"),
    [
        pytest.param({}, PLACED, "nvidia", id="renders on a GPU"),
        pytest.param(asked(False), PLACED, None, id="no GPU"),
        pytest.param({"modelType": "lora"}, PLACED, None, id="an adapter, without a GPU"),
        pytest.param(limit(0), PLACED, None, id="no GPU by override"),
        pytest.param(limit(1) | asked(False), PLACED, "nvidia", id="its own GPU"),
        pytest.param({}, replace(PLACED, gpu_count=0), "nvidia", id="no GPUs are configured"),
        pytest.param({"job": {"runtimeClassName": "kata"}}, PLACED, "kata", id="its own class"),
        pytest.param(
            asked(False) | {"job": {"runtimeClassName": "kata"}},
            PLACED,
            "kata",
            id="its own class, without a GPU",
        ),
        pytest.param({}, ON, None, id="no class"),
    ],
)
def test_the_runtime_class_of_gpus_is_for_pods_with_a_gpu(
    fields: dict[str, Any], loader: LoaderSettings, expected: str | None
) -> None:
    """If GPUs are configured, only Pods with a GPU have the administrator's RuntimeClass.

    A node without a GPU may not have this class.
    """
    settings = Settings(loader=loader)
    manifest = manifests.build(manifests.plan_load(model(**fields), settings, claim(), 0), settings)
    assert manifest["spec"]["template"]["spec"].get("runtimeClassName") == expected


@pytest.mark.parametrize("loader", [ON, TWO, AMD, OFF, PLACED])
def test_a_changed_setting_reloads_no_model(loader: LoaderSettings) -> None:
    """A model that was loaded with the default settings stays Ready with other settings."""
    ready = model(published())
    assert act(ready, observed(), Settings(loader=loader)).job is None
    assert (ready.spec or Spec()).verify.render is None, "the default is not in the resource"
