"""The chart sd-models, a catalog, and the ControlNets that come with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from cluster import Cluster
from helmcharts import CATALOG, ROOT, Json, helm, of_kind, render
from make_chart import catalog_schema

from sd_api.controlnets import CONTROLNET_REPOS

CONTROLNETS: Json = yaml.safe_load((CATALOG / "values-controlnets.yaml").read_text())
LINK = "https://example.com/model.safetensors"


def specs(values: Json) -> dict[str, Any]:
    """The specs of the models that a catalog renders, by name."""
    return {item["metadata"]["name"]: item["spec"] for item in render(values, CATALOG)}


def test_the_schema_is_made_from_the_contract() -> None:
    """`make crd` was run after the last change of it."""
    assert (CATALOG / "values.schema.json").read_text() == catalog_schema()


def test_the_example_is_the_vendors_eleven() -> None:
    """By id alone, in the chart and in examples/."""
    wanted = {key: {"modelType": "controlnet", "revision": "fp16"} for key in CONTROLNET_REPOS}
    examples = yaml.safe_load_all((ROOT / "examples" / "controlnets.yaml").read_text())

    assert specs(CONTROLNETS) == wanted
    assert {item["metadata"]["name"]: item["spec"] for item in examples} == wanted


def test_a_model_takes_from_the_defaults_what_it_does_not_say() -> None:
    """False is something said, and a field is taken whole."""
    values = {
        "defaults": {"suspend": True, "verify": {"weights": True}, "priority": 3},
        "models": {
            "a": {"url": LINK, "suspend": False, "verify": {"steps": 4}},
            "b": {"url": LINK, "priority": 0},
        },
    }
    assert specs(values) == {
        "a": {"url": LINK, "suspend": False, "verify": {"steps": 4}, "priority": 3},
        "b": {"url": LINK, "suspend": True, "verify": {"weights": True}, "priority": 0},
    }


def test_an_empty_catalog_is_one() -> None:
    """By default there is no model, and labels and annotations are the user's."""
    assert render({}, CATALOG) == []
    (model,) = render(
        {"models": {"a": {"url": LINK}}, "labels": {"team": "x"}, "annotations": {"note": "y"}},
        CATALOG,
    )
    assert model["metadata"]["labels"]["team"] == "x"
    assert model["metadata"]["annotations"] == {"note": "y"}


@pytest.mark.parametrize("program", ["helm", "helm3"])
@pytest.mark.parametrize(
    ("model", "where"),
    [
        pytest.param({"urll": LINK}, "urll", id="misspelt"),
        pytest.param({"revision": "fp8"}, "fp16", id="revision"),
        pytest.param({"verify": {"steps": 0}}, "steps", id="too few"),
        pytest.param({"job": {"resources": {"limit": {}}}}, "limit", id="deep"),
    ],
)
def test_a_wrong_model_is_refused_before_the_cluster(program: str, model: Json, where: str) -> None:
    """By the contract's own types."""
    done = helm("template", "x", CATALOG, values={"models": {"a": model}}, program=program)
    assert done.returncode != 0
    assert where in done.stderr


@pytest.mark.cluster
def test_the_api_server_takes_a_catalog(shared_cluster: Cluster) -> None:
    """As Helm sends it: every object, strictly."""
    models = render(CONTROLNETS, CATALOG)
    for model in models:
        del model["metadata"]["namespace"]
        model["metadata"]["name"] = f"catalog-{model['metadata']['name']}"
        model["spec"]["modelId"] = model["metadata"]["name"].removeprefix("catalog-")
    applied = shared_cluster.apply(yaml.safe_dump_all(models))
    assert applied.count("created") == len(CONTROLNET_REPOS)


def test_every_example_of_a_folder_is_yaml() -> None:
    """Helm's values beside it, too."""
    for path in [*Path(ROOT / "examples").glob("*.yaml"), *CATALOG.glob("*.yaml")]:
        assert list(yaml.safe_load_all(path.read_text()))
    assert of_kind(render(CONTROLNETS, CATALOG), "StableDiffusionModel")
