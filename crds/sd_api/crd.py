"""The CustomResourceDefinition, rendered from the contract's types.

`python -m sd_api.crd` prints it as YAML, or as JSON if PyYAML is not installed;
`crds/stablediffusionmodels.yaml` is that text, and a test fails when they differ.

Rules that cross fields are CEL at the root of the schema: a field's own rule sees neither
metadata.name nor whether the field was set or unset. They keep to the subset of CEL that both a
real API server and cel-python implement.
"""

from __future__ import annotations

import json
from typing import Any

from sd_api import names
from sd_api.controlnets import CONTROLNET_REPOS
from sd_api.spec import (
    BARE_ID_PATTERN,
    HUB_PAGE_PATTERN,
    HUB_REPO_PATTERN,
    LINK_PATTERN,
    Spec,
)
from sd_api.status import Status

_MODEL_ID = "(has(self.spec.modelId) ? self.spec.modelId : self.metadata.name)"
_OLD_MODEL_ID = "(has(oldSelf.spec.modelId) ? oldSelf.spec.modelId : oldSelf.metadata.name)"
_CLAIM = "(has({0}.spec.storage) ? {0}.spec.storage.claimName : '')"
_NO_URL = "!has(self.spec.url) || "


def _literal(pattern: str) -> str:
    return "r'" + pattern + "'"


def _matches(*patterns: str) -> str:
    return " || ".join(f"self.spec.url.matches({_literal(pattern)})" for pattern in patterns)


RULES: tuple[tuple[str, str, str], ...] = (
    (
        ".metadata",
        f"size(self.metadata.name) <= {names.NAME_MAX_LENGTH}",
        f"metadata.name must be at most {names.NAME_MAX_LENGTH} characters;"
        " a longer name for the published folder goes into spec.modelId",
    ),
    (
        ".spec.url",
        "has(self.spec.url) || (has(self.spec.modelType) && self.spec.modelType == 'controlnet'"
        f" && {_MODEL_ID} in {sorted(CONTROLNET_REPOS)!r})",
        "spec.url is required: a Hugging Face repo id (ORG/NAME), an http(s) link, or a trained"
        " model's id; only the vendor's ControlNets load by model id alone: "
        + ", ".join(sorted(CONTROLNET_REPOS)),
    ),
    (
        ".spec.url",
        f"{_NO_URL}(has(self.spec.modelType) && self.spec.modelType == 'api_trained')"
        f" || {_matches(HUB_REPO_PATTERN, LINK_PATTERN)}",
        "spec.url must be a Hugging Face repo id (ORG/NAME) or an http(s) link;"
        " a bare id needs spec.modelType: api_trained",
    ),
    (
        ".spec.url",
        f"{_NO_URL}!has(self.spec.modelType) || self.spec.modelType != 'api_trained'"
        f" || {_matches(BARE_ID_PATTERN, LINK_PATTERN)}",
        "with spec.modelType api_trained, spec.url must be a trained model's id or an http(s) link",
    ),
    (
        ".spec.url",
        f"{_NO_URL}!has(self.spec.modelType) || self.spec.modelType != 'custom_ckpt'"
        f" || self.spec.url.matches({_literal(LINK_PATTERN)})",
        "with spec.modelType custom_ckpt, spec.url must be an http(s) link to the model file;"
        " a repo id needs spec.modelType: huggingface",
    ),
    (
        ".spec.sha256",
        "!has(self.spec.sha256) || !(has(self.spec.modelType)"
        " ? self.spec.modelType == 'huggingface'"
        f" : (has(self.spec.url) && ({_matches(HUB_REPO_PATTERN, HUB_PAGE_PATTERN)})))",
        "spec.sha256 is the digest of a single file; a Hugging Face repo is pinned by"
        " spec.gitRevision",
    ),
    (
        ".spec.webhook",
        f"!has(self.spec.webhook) || self.spec.webhook.matches({_literal(LINK_PATTERN)})",
        "spec.webhook must be an http(s) URL",
    ),
    (
        ".spec.originalConfig",
        f"!has(self.spec.originalConfig)"
        f" || self.spec.originalConfig.matches({_literal(LINK_PATTERN)})",
        "spec.originalConfig must be an http(s) link to a YAML file",
    ),
    (
        ".spec.modelId",
        f"{_MODEL_ID} == {_OLD_MODEL_ID}",
        "spec.modelId is immutable: delete this model and create another",
    ),
    (
        ".spec.storage",
        f"{_CLAIM.format('self')} == {_CLAIM.format('oldSelf')}",
        "spec.storage is immutable: delete this model and create it on the other volume",
    ),
)

_REWRITTEN = {
    "$defs",
    "additionalProperties",
    "const",
    "items",
    "properties",
    "propertyNames",
    "title",
}

COLUMNS: tuple[dict[str, Any], ...] = (
    {"name": "Type", "type": "string", "jsonPath": ".status.modelType"},
    {"name": "Phase", "type": "string", "jsonPath": ".status.phase"},
    {"name": "Progress", "type": "string", "jsonPath": ".status.progress.text"},
    {"name": "Base", "type": "string", "jsonPath": ".status.artifact.baseModel"},
    {"name": "Size", "type": "string", "jsonPath": ".status.artifact.size"},
    {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
    {"name": "Model ID", "type": "string", "jsonPath": ".status.modelId", "priority": 1},
    {"name": "Reason", "type": "string", "jsonPath": ".status.reason", "priority": 1},
    {"name": "Path", "type": "string", "jsonPath": ".status.artifact.path", "priority": 1},
)


def custom_resource_definition() -> dict[str, Any]:
    """The apiextensions.k8s.io/v1 CustomResourceDefinition as a plain dict."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{names.PLURAL}.{names.GROUP}"},
        "spec": {
            "group": names.GROUP,
            "names": {
                "kind": names.KIND,
                "listKind": f"{names.KIND}List",
                "plural": names.PLURAL,
                "singular": names.SINGULAR,
                "shortNames": [names.SHORT_NAME],
                "categories": ["all"],
            },
            "scope": "Namespaced",
            "versions": [
                {
                    "name": names.VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": [dict(column) for column in COLUMNS],
                    "schema": {"openAPIV3Schema": _root_schema()},
                }
            ],
        },
    }


def _root_schema() -> dict[str, Any]:
    return {
        "type": "object",
        "description": "A Stable Diffusion model, loaded onto a shared volume.",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": structural(Spec.model_json_schema(by_alias=True)),
            "status": structural(Status.model_json_schema(by_alias=True)),
        },
        "x-kubernetes-validations": [
            {"fieldPath": path, "rule": rule, "message": message} for path, rule, message in RULES
        ],
    }


def structural(schema: dict[str, Any]) -> dict[str, Any]:
    """Turn pydantic's JSON schema into a structural one: references inlined, no null types."""
    definitions = schema.get("$defs", {})

    def convert(node: dict[str, Any]) -> dict[str, Any]:
        if "$ref" in node:
            target = definitions[node["$ref"].rsplit("/", 1)[-1]]
            node = {**target, **{key: value for key, value in node.items() if key != "$ref"}}
        if "anyOf" in node:
            node = _merge_union(node)
            if "$ref" in node:
                return convert(node)
        result = {key: value for key, value in node.items() if key not in _REWRITTEN}
        if "const" in node:
            result["enum"] = [node["const"]]
        if result.get("default", ...) is None:
            del result["default"]
        if "properties" in node:
            result["properties"] = {
                key: convert(value) for key, value in node["properties"].items()
            }
        if "items" in node:
            result["items"] = convert(node["items"])
        if isinstance(node.get("additionalProperties"), dict):
            result["additionalProperties"] = convert(node["additionalProperties"])
        return result

    return convert(schema)


def _merge_union(node: dict[str, Any]) -> dict[str, Any]:
    """`X | None` is X, not required; `str | int` is Kubernetes' int-or-string."""
    branches = [branch for branch in node["anyOf"] if branch.get("type") != "null"]
    rest = {key: value for key, value in node.items() if key != "anyOf"}
    if len(branches) == 1:
        return {**branches[0], **rest}
    if {branch.get("type") for branch in branches} == {"string", "integer"}:
        limits = {k: v for branch in branches for k, v in branch.items() if k != "type"}
        return {**limits, **rest, "x-kubernetes-int-or-string": True}
    raise TypeError(f"a union that no structural schema can say: {node}")


def main() -> None:
    """Print the definition."""
    definition = custom_resource_definition()
    try:
        import yaml
    except ImportError:
        text = json.dumps(definition, indent=2) + "\n"
    else:
        text = yaml.safe_dump(definition, sort_keys=False, width=100, allow_unicode=True)
    print("# Made by `python -m sd_api.crd`; edit crds/sd_api instead.\n" + text, end="")  # noqa: T201 - this is a command


if __name__ == "__main__":
    main()
