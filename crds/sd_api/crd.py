"""The CustomResourceDefinition, rendered from the contract's types.

`python -m sd_api.crd` prints it as YAML, or as JSON if PyYAML is not installed;
`crds/stablediffusionmodels.yaml` is that text, and a test fails when they differ.

Rules that cross fields are CEL at the root of the schema: a field's own rule sees neither
metadata.name nor whether the field was set or unset. They keep to the subset of CEL that both a
real API server and cel-python implement.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from sd_api import names, url_forms
from sd_api.choices import PIPELINES, ComponentName
from sd_api.controlnets import CONTROLNET_REPOS
from sd_api.spec import TWO_VAES, Spec
from sd_api.status import Status
from sd_api.url_forms import LINK_PATTERN, Refusal

_MODEL_ID = "(has(self.spec.modelId) ? self.spec.modelId : self.metadata.name)"
_OLD_MODEL_ID = "(has(oldSelf.spec.modelId) ? oldSelf.spec.modelId : oldSelf.metadata.name)"
_CLAIM = "(has({0}.spec.storage) ? {0}.spec.storage.claimName : '')"
_NO_URL = "!has(self.spec.url) || "
_TRAINED = "(has(self.spec.modelType) && self.spec.modelType == 'api_trained')"


def _literal(pattern: str) -> str:
    return "r'" + pattern + "'"


def _matches(pattern: str) -> str:
    return f"self.spec.url.matches({_literal(pattern)})"


def _is(kind: Refusal) -> str:
    """Return the expression for `Refusal.matches`."""
    if kind.unless is None:
        return _matches(kind.pattern)
    return f"({_matches(kind.pattern)} && !{_matches(kind.unless)})"


def _any(kinds: Iterable[Refusal]) -> str:
    return " || ".join(map(_is, kinds))


def _url_rules() -> Iterator[tuple[str, str, str]]:
    """Yield the rules of spec.url. They reject the same urls as `sources._refused`.

    Their messages have the same words.
    """
    for kind in url_forms.NAMED:
        exempt = "" if kind.concerns_trained else f"{_TRAINED} || "
        yield ".spec.url", f"{_NO_URL}{exempt}!{_is(kind)}", f"spec.url {kind.words}"
    bare = _is(url_forms.BARE_ID)
    named = _any(url_forms.NAMED)
    yield ".spec.url", f"{_NO_URL}{_TRAINED} || !{bare}", f"spec.url {url_forms.BARE_ID.words}"
    yield (
        ".spec.url",
        f"{_NO_URL}{_TRAINED} || {bare} || {_matches(url_forms.LINK_OR_REPO)} || {named}",
        f"spec.url {url_forms.NEITHER}",
    )
    named = _any(kind for kind in url_forms.NAMED if kind.concerns_trained)
    yield (
        ".spec.url",
        f"{_NO_URL}!{_TRAINED} || {_matches(url_forms.LINK_OR_TRAINED_ID)} || {named}",
        f"spec.url {url_forms.NOT_TRAINED}",
    )


_URL_RULES = tuple(_url_rules())

# Urls with percent-encoding are not compared: only the operator and the loader decode them.
_REVISIONS_AGREE = (
    f"{_NO_URL}!has(self.spec.gitRevision) || self.spec.url.contains('%')"
    f" || !{_matches(url_forms.NAMES_REVISION)}"
    f" || self.spec.url.matches({_literal(url_forms.NAMES_THIS_REVISION[0])}"
    f" + self.spec.gitRevision + {_literal(url_forms.NAMES_THIS_REVISION[1])})"
)


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
    *_URL_RULES,
    (
        ".spec.gitRevision",
        _REVISIONS_AGREE,
        "spec.gitRevision is not the revision that spec.url names; remove one of them",
    ),
    (
        ".spec.sha256",
        "!has(self.spec.sha256) || !(has(self.spec.modelType)"
        " ? self.spec.modelType == 'huggingface'"
        f" : (has(self.spec.url) && {_matches(url_forms.WHOLE_REPO)}))",
        "spec.sha256 is the digest of a single file; a Hugging Face repo is pinned by"
        " spec.gitRevision",
    ),
    (
        ".spec.components.from",
        "!has(self.spec.components) || !has(self.spec.components.from)"
        f" || self.spec.components.from.matches({_literal(url_forms.WHOLE_REPO)})",
        f"spec.components.from {url_forms.NOT_A_SKELETON}",
    ),
    (
        ".spec.components",
        "!has(self.spec.components) || "
        + " && ".join(
            f"(!has(self.spec.components.{name})"
            f" || self.spec.components.{name}.url.matches({_literal(url_forms.LINK_OR_REPO)}))"
            for name in ComponentName
        ),
        f"spec.components: each url {url_forms.NEITHER}",
    ),
    (
        ".spec.components.vae",
        "!has(self.spec.vae) || !has(self.spec.components) || !has(self.spec.components.vae)",
        TWO_VAES,
    ),
    (
        ".spec.components",
        "!has(self.spec.components) || !has(self.spec.modelType)"
        f" || self.spec.modelType in {sorted(kind.value for kind in PIPELINES)!r}",
        "spec.components is for whole models; a model of this spec.modelType has none",
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
    {"name": "Reason", "type": "string", "jsonPath": ".status.reason"},
    {"name": "Base", "type": "string", "jsonPath": ".status.artifact.baseModel"},
    {"name": "Size", "type": "string", "jsonPath": ".status.artifact.size"},
    {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
    {"name": "Model ID", "type": "string", "jsonPath": ".status.modelId", "priority": 1},
    {"name": "Path", "type": "string", "jsonPath": ".status.artifact.path", "priority": 1},
)


def custom_resource_definition() -> dict[str, Any]:
    """Return the apiextensions.k8s.io/v1 CustomResourceDefinition as a plain dict."""
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
    """Replace anyOf: `X | None` becomes X, and `str | int` Kubernetes' int-or-string."""
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
