"""Write the chart files that are made from other files.

They are the CRD, the address ranges, the defaults of values.yaml, and the catalog's schema and
starter models.

python -m tools.make_chart
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from sd_api import names
from sd_api.crd import custom_resource_definition
from sd_api.netguard import PORTS, REFUSED
from sd_api.starters import STARTERS

ROOT = Path(__file__).resolve().parent.parent
CHARTS = ROOT / "charts"
CRD_SOURCE = ROOT / "crds" / "stablediffusionmodels.yaml"
CRD = CHARTS / "sd-operator" / "files" / "stablediffusionmodels.yaml"
NETWORK = CHARTS / "sd-operator" / "files" / "network.yaml"
VALUES = CHARTS / "sd-operator" / "values.yaml"
DEFAULTS = CHARTS / "sd-operator" / "files" / "defaults.yaml"
CATALOG_SCHEMA = CHARTS / "sd-models" / "values.schema.json"
STARTER_VALUES = CHARTS / "sd-models" / "values-starter.yaml"

Json = dict[str, Any]


def network() -> str:
    """Return the ranges that the address guard refuses, and the ports that it permits."""
    lines = ["# Written by tools.make_chart from sd_api.netguard.", "refusedCIDRs:"]
    lines += [f'  - "{network}"' for network in REFUSED]
    return "\n".join([*lines, "ports:", *(f"  - {port}" for port in PORTS)]) + "\n"


def default_values() -> str:
    """Return values.yaml without its comments, for templates, which cannot read values.yaml."""
    head = "# Written by tools.make_chart from values.yaml.\n"
    return head + yaml.safe_dump(yaml.safe_load(VALUES.read_text()), sort_keys=False)


def catalog_schema() -> str:
    """Return the values schema of sd-models, with which Helm rejects invalid models."""
    version = custom_resource_definition()["spec"]["versions"][0]
    spec = strict(version["schema"]["openAPIV3Schema"]["properties"]["spec"])
    # A model may leave out a required field that the defaults set, so the schema requires none.
    spec.pop("required", None)
    strings = {"type": "object", "additionalProperties": {"type": "string"}}
    name = {
        "pattern": "^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$",
        "maxLength": names.NAME_MAX_LENGTH,
    }
    schema = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Values of sd-models",
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "global": {"type": "object"},
            "models": {
                "type": "object",
                "propertyNames": name,
                "additionalProperties": {"$ref": "#/definitions/spec"},
            },
            "defaults": {"$ref": "#/definitions/spec"},
            "labels": strings,
            "annotations": strings,
        },
        "definitions": {"spec": spec},
    }
    return json.dumps(schema, indent=2) + "\n"


def starter_values() -> str:
    """Return the values of the starter catalog, which the gallery offers as well."""
    head = (
        "# Written by tools.make_chart from sd_api.starters: models to begin with.\n"
        "#   helm install starter charts/sd-models -f charts/sd-models/values-starter.yaml\n"
    )
    models = {starter.name: starter.spec for starter in STARTERS}
    return head + yaml.safe_dump({"models": models}, sort_keys=False)


def strict(schema: Json) -> Json:
    """Convert a structural schema to a JSON Schema that rejects unknown fields."""
    node = {key: value for key, value in schema.items() if not key.startswith("x-kubernetes-")}
    if "properties" in node:
        node["properties"] = {key: strict(child) for key, child in node["properties"].items()}
        node["additionalProperties"] = False
    for key in ("items", "additionalProperties"):
        if isinstance(node.get(key), dict):
            node[key] = strict(node[key])
    return node


if __name__ == "__main__":
    CRD.write_text(CRD_SOURCE.read_text())
    NETWORK.write_text(network())
    DEFAULTS.write_text(default_values())
    CATALOG_SCHEMA.write_text(catalog_schema())
    STARTER_VALUES.write_text(starter_values())
