"""Tests of the chart sd-models (a catalog) and its example of ControlNets."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from sd_api.controlnets import CONTROLNET_REPOS
from sd_api.starters import STARTERS
from tests.support.charts.helmcharts import CATALOG, HELMS, ROOT, Json, helm, of_kind, render
from tests.support.charts.releases import Release
from tests.support.kube.cluster import Cluster
from tools.make_chart import catalog_schema, starter_values

CONTROLNETS: Json = yaml.safe_load((CATALOG / "values-controlnets.yaml").read_text())
LINK = "https://example.com/model.safetensors"


def specs(values: Json) -> dict[str, Any]:
    """Return the specs that a catalog renders, by the model's name."""
    return {item["metadata"]["name"]: item["spec"] for item in render(values, CATALOG)}


def test_the_schema_is_made_from_the_contract() -> None:
    """`make crd` was run after the contract's last change."""
    assert (CATALOG / "values.schema.json").read_text() == catalog_schema()


def test_the_example_has_the_vendors_eleven_controlnets() -> None:
    """The chart and examples/ name them by id alone."""
    wanted = {key: {"modelType": "controlnet", "revision": "fp16"} for key in CONTROLNET_REPOS}
    examples = yaml.safe_load_all((ROOT / "examples" / "controlnets.yaml").read_text())

    assert specs(CONTROLNETS) == wanted
    assert {item["metadata"]["name"]: item["spec"] for item in examples} == wanted


def test_the_starter_catalog_is_that_of_the_gallery() -> None:
    """`make crd` writes the gallery's starter models to the catalog, which renders them all."""
    text = (CATALOG / "values-starter.yaml").read_text()
    assert text == starter_values()
    wanted = {starter.name: starter.spec for starter in STARTERS}
    assert specs(yaml.safe_load(text)) == wanted
    assert CONTROLNET_REPOS.keys() <= wanted.keys()


def test_a_model_takes_missing_fields_from_the_defaults() -> None:
    """A model's field replaces the whole default, even if the field is false."""
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


def test_an_empty_catalog_is_valid() -> None:
    """By default there are no models. A model has the labels and annotations of the values."""
    assert render({}, CATALOG) == []
    (model,) = render(
        {"models": {"a": {"url": LINK}}, "labels": {"team": "x"}, "annotations": {"note": "z"}},
        CATALOG,
    )
    assert model["metadata"]["labels"]["team"] == "x"
    assert model["metadata"]["annotations"] == {"note": "z"}


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
def test_helm_rejects_an_invalid_model(program: str, model: Json, where: str) -> None:
    """The error names the invalid field: the chart's schema is made from the contract's types."""
    done = helm("template", "x", CATALOG, values={"models": {"a": model}}, program=program)
    assert done.returncode != 0
    assert where in done.stderr


@pytest.mark.cluster
@pytest.mark.parametrize("program", sorted(HELMS))
def test_a_catalog_is_installed_changed_rolled_back_and_removed(
    cluster: Cluster, program: str, tmp_path: Path
) -> None:
    """Helm uses the tests' API server; a model that leaves the catalog is deleted."""
    release = Release(cluster, program, tmp_path)

    def models() -> dict[str, Any]:
        return {item["metadata"]["name"]: item["spec"] for item in cluster.list("sdm")}

    release.helm("install", "nets", str(CATALOG), values=CONTROLNETS)
    assert models().keys() == CONTROLNET_REPOS.keys()
    assert all(spec["revision"] == "fp16" for spec in models().values())

    fewer = {"models": {"canny": {"revision": "bf16"}}, "defaults": CONTROLNETS["defaults"]}
    release.helm("upgrade", "nets", str(CATALOG), values=fewer)
    assert {name: spec["revision"] for name, spec in models().items()} == {"canny": "bf16"}

    release.helm("rollback", "nets", "1")
    assert models().keys() == CONTROLNET_REPOS.keys()
    assert models()["canny"]["revision"] == "fp16"

    release.helm("uninstall", "nets")
    assert models() == {}


@pytest.mark.cluster
def test_rules_between_fields_are_checked_in_a_dry_run(cluster: Cluster, tmp_path: Path) -> None:
    """The command of docs/operations.md reports the broken rule, which Helm does not check."""
    (command,) = re.findall(
        r"`(helm template models [^`]*)`", (ROOT / "docs" / "operations.md").read_text()
    )
    arguments = shlex.split(command.partition(" | ")[0])[1:]
    assert command.partition(" | ")[2] == "kubectl apply --dry-run=server -f -"
    values = {"good": {"url": LINK}, "bad": {"url": "org/name", "sha256": "0" * 64}}
    (tmp_path / "models.yaml").write_text(yaml.safe_dump({"models": values}))
    places = {
        "charts/sd-models": str(CATALOG),
        "sd-system": cluster.namespace,
        "models.yaml": str(tmp_path / "models.yaml"),
    }
    rendered = helm(*(places.get(word, word) for word in arguments))
    assert rendered.returncode == 0, rendered.stderr
    done = cluster.run("apply", "--dry-run=server", "-f", "-", stdin=rendered.stdout)
    assert done.returncode != 0
    assert "spec.sha256 is the digest of a single file" in done.stderr
    assert cluster.list("sdm") == []


def test_every_example_is_yaml() -> None:
    """Each file in examples/, also the values for Helm, is valid YAML."""
    for path in [*Path(ROOT / "examples").glob("*.yaml"), *CATALOG.glob("*.yaml")]:
        assert list(yaml.safe_load_all(path.read_text()))
    assert of_kind(render(CONTROLNETS, CATALOG), "StableDiffusionModel")
