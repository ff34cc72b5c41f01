"""The CRD matches the types, is structural and bounded, and has friendly rules."""

import re

import pytest
import yaml

from sd_api.controlnets import CONTROLNET_REPOS
from sd_api.crd import RULES, custom_resource_definition
from tests.support.crdrules import broken
from tests.support.paths import ROOT

VERSION = custom_resource_definition()["spec"]["versions"][0]
SCHEMA = VERSION["schema"]["openAPIV3Schema"]

ALLOWED_KEYS = {
    "type",
    "description",
    "properties",
    "required",
    "items",
    "additionalProperties",
    "enum",
    "default",
    "pattern",
    "format",
    "minimum",
    "maximum",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "maxProperties",
    "x-kubernetes-int-or-string",
    "x-kubernetes-list-type",
    "x-kubernetes-list-map-keys",
    "x-kubernetes-validations",
}


def nodes(schema, path="$"):
    """Yield every node of a schema with its path."""
    yield path, schema
    for key, child in schema.get("properties", {}).items():
        yield from nodes(child, f"{path}.{key}")
    if "items" in schema:
        yield from nodes(schema["items"], f"{path}[]")
    if isinstance(schema.get("additionalProperties"), dict):
        yield from nodes(schema["additionalProperties"], f"{path}{{}}")


def test_the_committed_file_is_the_rendered_one():
    """`make crd` was run after the last change of the contract."""
    committed = yaml.safe_load((ROOT / "crds" / "stablediffusionmodels.yaml").read_text())
    assert committed == custom_resource_definition()


def test_the_schema_is_structural():
    """Every node has a type and uses only what a structural schema allows."""
    for path, node in nodes(SCHEMA):
        assert set(node) <= ALLOWED_KEYS, path
        assert "type" in node or node.get("x-kubernetes-int-or-string"), path
        assert not ("properties" in node and "additionalProperties" in node), path


def test_every_user_given_value_is_bounded():
    """Strings have a maxLength or an enum, lists maxItems, maps maxProperties."""
    for path, node in nodes(SCHEMA["properties"]["spec"], "spec"):
        if node.get("type") == "string":
            assert "maxLength" in node or "enum" in node, path
        if node.get("type") == "array":
            assert "maxItems" in node, path
        if "additionalProperties" in node:
            assert "maxProperties" in node, path


def test_every_pattern_is_anchored():
    """Each pattern begins with ^ and ends with $: API servers would accept text around a match."""
    for path, node in nodes(SCHEMA):
        if "pattern" in node:
            assert node["pattern"].startswith("^"), path
            assert node["pattern"].endswith("$"), path


def test_every_spec_field_is_described():
    """`kubectl explain sdm.spec` has a sentence for each field."""
    for name, node in SCHEMA["properties"]["spec"]["properties"].items():
        assert node.get("description"), name


def test_conditions_are_a_list_map():
    """The schema makes the conditions a map by type, so that patches merge them by type."""
    conditions = SCHEMA["properties"]["status"]["properties"]["conditions"]
    assert conditions["x-kubernetes-list-type"] == "map"
    assert conditions["x-kubernetes-list-map-keys"] == ["type"]


def test_columns_read_the_status_only():
    """Printer columns cannot compute values, so they show status fields or the age."""
    for column in VERSION["additionalPrinterColumns"]:
        assert column["jsonPath"].startswith((".status.", ".metadata.creationTimestamp"))


def violations(spec, old=None, name="a-model"):
    """Return the messages of the rules that an object breaks."""
    return broken(RULES, spec, old, name)


LINK = "https://civitai.com/api/download/models/94640"


@pytest.mark.parametrize(
    "spec",
    [
        pytest.param({"url": "runwayml/stable-diffusion-v1-5"}, id="repo-id"),
        pytest.param({"url": "https://huggingface.co/a/b"}, id="hub-page"),
        pytest.param(
            {"url": "https://civitai.com/models/7/x?modelVersionId=71"}, id="civitai-page"
        ),
        pytest.param({"url": "urn:air:sd1:lora:civitai:7@71", "modelType": "lora"}, id="air"),
        pytest.param({"url": "a/b@v1.0", "gitRevision": "v1.0"}, id="revision-twice"),
        pytest.param({"url": "hf://a/b/x.ckpt", "gitRevision": "v1"}, id="revision-apart"),
        pytest.param(
            {"url": "https://hf.co/a/b/blob/refs/pr/1/x.ckpt?a=b", "gitRevision": "refs/pr/1"},
            id="revision-of-a-file",
        ),
        pytest.param({"url": LINK, "sha256": "0" * 64}, id="link-with-digest"),
        pytest.param({"url": LINK + "?token=x&y=%20", "modelType": "lora"}, id="link-with-query"),
        pytest.param({"url": "a/b", "modelType": "custom_ckpt"}, id="repo-of-a-checkpoint"),
        pytest.param({"url": "my-model-17", "modelType": "api_trained"}, id="trained-id"),
        pytest.param({"url": LINK, "modelType": "api_trained"}, id="trained-link"),
        pytest.param({"modelType": "controlnet", "modelId": "canny"}, id="controlnet-by-id"),
        pytest.param({"url": LINK, "storage": {"claimName": "x"}}, id="claim"),
        pytest.param(
            {
                "url": LINK,
                "components": {"from": "org/flux@v1", "transformer_2": {"url": LINK}},
            },
            id="components",
        ),
        pytest.param(
            {"url": "a/b", "modelType": "huggingface", "components": {"vae": {"url": "hf://a/b"}}},
            id="component-of-a-repo",
        ),
        pytest.param({"url": LINK, "webhook": "https://hooks.example.com/m"}, id="webhook"),
    ],
)
def test_documented_specs_are_accepted(spec):
    """The rules accept every documented way to name a model."""
    assert violations(spec) == []
    assert violations(spec, old=spec) == []


@pytest.mark.parametrize("model_id", sorted(CONTROLNET_REPOS))
def test_the_vendors_controlnets_need_no_url(model_id):
    """A ControlNet of the table needs no url, by spec.modelId or by the resource's name."""
    assert violations({"modelType": "controlnet"}, name=model_id) == []


@pytest.mark.parametrize(
    ("spec", "old", "says"),
    [
        pytest.param({}, None, "spec.url is required", id="no-url"),
        pytest.param(
            {"modelType": "controlnet"}, None, "only the vendor's ControlNets", id="unknown-id"
        ),
        pytest.param({"url": "gpt2"}, None, "ORG/NAME", id="bare-word"),
        pytest.param({"url": "ftp://host/x"}, None, "http(s) link", id="ftp"),
        pytest.param({"url": "/etc/passwd"}, None, "http(s) link", id="path"),
        pytest.param({"url": "file:///etc/passwd"}, None, "http(s) link", id="file"),
        pytest.param({"url": "https://h/a b"}, None, "http(s) link", id="space"),
        pytest.param({"url": "a/b/c", "modelType": "api_trained"}, None, "trained", id="trained"),
        pytest.param({"url": "a/b", "sha256": "0" * 64}, None, "gitRevision", id="repo-digest"),
        pytest.param(
            {"url": "hf://a/b@v1", "sha256": "0" * 64}, None, "gitRevision", id="revision-digest"
        ),
        pytest.param(
            {"url": "a/b@v1", "gitRevision": "v10"}, None, "remove one of them", id="two-revisions"
        ),
        pytest.param(
            {"url": "https://huggingface.co/a/b/tree/main", "gitRevision": "v1"},
            None,
            "remove one of them",
            id="page-and-revision",
        ),
        pytest.param({"url": LINK, "webhook": "hooks"}, None, "spec.webhook", id="webhook"),
        pytest.param(
            {"url": LINK, "components": {"from": LINK}},
            None,
            "spec.components.from must be a diffusers repo of the Hub: ORG/NAME",
            id="components-from-a-file",
        ),
        pytest.param(
            {"url": LINK, "modelType": "lora", "components": {"from": "a/b"}},
            None,
            "spec.components is for whole models",
            id="components-of-a-lora",
        ),
        pytest.param(
            {"url": LINK, "components": {"text_encoder": {"url": "t5.safetensors"}}},
            None,
            "spec.components: each url must be a Hugging Face repo id",
            id="component-at-a-path",
        ),
        pytest.param(
            {"url": LINK, "vae": {"url": "a/b"}, "components": {"vae": {"url": "a/b"}}},
            None,
            "spec.vae gives a VAE as well; remove one of them",
            id="two-vaes",
        ),
        pytest.param({"url": LINK, "modelId": "b"}, {"url": LINK}, "immutable", id="id-set"),
        pytest.param({"url": LINK}, {"url": LINK, "modelId": "b"}, "immutable", id="id-unset"),
        pytest.param(
            {"url": LINK, "storage": {"claimName": "b"}},
            {"url": LINK},
            "spec.storage is immutable",
            id="claim-set",
        ),
    ],
)
def test_an_impossible_spec_is_rejected_with_a_remedy(spec, old, says):
    """The message names the field and what to write instead."""
    assert says in "\n".join(violations(spec, old))


def test_no_rule_costs_more_than_an_api_server_allows():
    """The calls of `matches` in each rule together cost less than 900,000 by cel-go's estimate.

    That is (text length / 10) * (pattern length / 4) for a call. An API server allows one
    evaluation of a rule to cost a million (its PerCallLimit).
    """
    texts = 2048 / 10
    for _, rule, _ in RULES:
        patterns = re.findall(r"r'([^']*)'", rule)
        if "self.spec.gitRevision)" in rule:
            patterns.append("x" * 253)
        assert texts * sum(map(len, patterns)) / 4 < 900_000, rule[:80]


def test_a_name_that_does_not_fit_a_label_is_refused():
    """A name that is not a label value is refused: it becomes a label value and a folder name."""
    assert violations({"url": LINK}, name="x" * 63) == []
    assert "63" in violations({"url": LINK}, name="x" * 64)[0]


def test_spelling_out_the_default_model_id_changes_nothing():
    """spec.modelId may be added if it equals the default: only the effective id is immutable."""
    assert violations({"url": LINK, "modelId": "a-model"}, {"url": LINK}) == []
