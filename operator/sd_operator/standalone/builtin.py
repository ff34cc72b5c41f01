"""Rules of the built-in kinds: defaults, validation, immutable fields, graceful deletion."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator
from typing import Any

from sd_operator.standalone import metadata, resources, schema
from sd_operator.standalone.errors import Cause, Json, bad_request
from sd_operator.standalone.jobs import ENDED

IMMUTABLE = "field is immutable"
PROTECTION = "kubernetes.io/pvc-protection"
_DATA_KEY = "[-._a-zA-Z0-9]+"
_DATA_KEY_RULE = (
    "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',"
    f"  or 'KEY_NAME',  or 'key-name', regex used for validation is '{_DATA_KEY}')"
)
_RESTART = ("Always", "OnFailure", "Never")
_ACTIONS = ("Count", "FailIndex", "FailJob", "Ignore")
_CONTAINER_DEFAULTS = {
    "resources": {},
    "terminationMessagePath": "/dev/termination-log",
    "terminationMessagePolicy": "File",
    "imagePullPolicy": "IfNotPresent",
}
_POD_DEFAULTS = {
    "restartPolicy": "Always",
    "terminationGracePeriodSeconds": 30,
    "dnsPolicy": "ClusterFirst",
    "securityContext": {},
    "schedulerName": "default-scheduler",
}
_JOB_DEFAULTS = {
    "parallelism": 1,
    "completions": 1,
    "backoffLimit": 6,
    "completionMode": "NonIndexed",
    "suspend": False,
    "manualSelector": False,
}


def check_types(resource: resources.Resource, item: Json, handled: str) -> None:
    """Raise 400 if a field has a type that a real API server could not decode."""
    for cause in schema.validate(resource.schema, item):
        if cause.reason == "FieldValueTypeInvalid":
            actual, expected = cause.message.split('"')[1], cause.message.split("type ")[1]
            raise bad_request(
                f"{handled}json: cannot unmarshal {actual} into Go struct field"
                f" {resource.kind}.{cause.field} of type {expected.partition(':')[0]}"
            )
    if resource.kind == "Secret":
        for value in item.get("data", {}).values():
            try:
                base64.b64decode(value, validate=True)
            except binascii.Error as error:
                raise bad_request(f"{handled}illegal base64 data at input byte 0") from error


def set_defaults(resource: resources.Resource, item: Json) -> None:
    """Set the defaults that a real API server sets, if any code of this project reads them."""
    if resource.custom:
        return
    meta, spec = item["metadata"], item.setdefault("spec", {})
    name = meta.get("name", "")
    if resource is resources.JOBS:
        for key, value in _JOB_DEFAULTS.items():
            spec.setdefault(key, value)
        replaced = "Failed" if "podFailurePolicy" in spec else "TerminatingOrFailed"
        spec.setdefault("podReplacementPolicy", replaced)
        for rule in spec.get("podFailurePolicy", {}).get("rules", ()):
            for pattern in rule.get("onPodConditions", ()):
                pattern.setdefault("status", "True")
        labels = {"controller-uid": meta["uid"], "job-name": name}
        labels |= {f"batch.kubernetes.io/{key}": value for key, value in labels.items()}
        selector = {"batch.kubernetes.io/controller-uid": meta["uid"]}
        spec.setdefault("selector", {"matchLabels": selector})
        template = spec.setdefault("template", {})
        template_meta = template.setdefault("metadata", {})
        template_meta["labels"] = {**template_meta.get("labels", {}), **labels}
        meta["labels"] = {**meta.get("labels", {}), **labels}
        _default_pod(template.setdefault("spec", {}))
        item.setdefault("status", {})
    elif resource is resources.PODS:
        _default_pod(spec)
        item.setdefault("status", {"phase": "Pending", "qosClass": "BestEffort"})
    elif resource is resources.NAMESPACES:
        meta["labels"] = {**meta.get("labels", {}), "kubernetes.io/metadata.name": name}
        spec.setdefault("finalizers", ["kubernetes"])
        item.setdefault("status", {"phase": "Active"})
    elif resource is resources.CLAIMS:
        spec.setdefault("volumeMode", "Filesystem")
        if "status" not in item:
            item["status"] = {"phase": "Pending"}
            meta["finalizers"] = [*meta.get("finalizers", ()), PROTECTION]
    elif resource.kind == "Secret":
        item.setdefault("type", "Opaque")
        for key, text in item.pop("stringData", {}).items():
            item.setdefault("data", {})[key] = base64.b64encode(text.encode()).decode()
    elif resource is resources.DEFINITIONS and "names" in spec:
        accepted = [("NamesAccepted", "NoConflicts"), ("Established", "InitialNamesAccepted")]
        item["status"] = {
            "acceptedNames": spec["names"],
            "storedVersions": [v["name"] for v in spec.get("versions", ()) if v.get("storage")],
            "conditions": [
                {
                    "type": kind,
                    "status": "True",
                    "reason": reason,
                    "message": "",
                    "lastTransitionTime": meta["creationTimestamp"],
                }
                for kind, reason in accepted
            ],
        }
    if not spec:
        del item["spec"]


def _default_pod(spec: Json) -> None:
    for key, value in _POD_DEFAULTS.items():
        spec.setdefault(key, value)
    for container in (*spec.get("initContainers", ()), *spec.get("containers", ())):
        for key, value in _CONTAINER_DEFAULTS.items():
            container.setdefault(key, value)


def grace_period(resource: resources.Resource, item: Json, options: Json) -> int:
    """Return a deletion's grace period in seconds: 0, except for Pods that a node may still run."""
    if resource is not resources.PODS or not item["spec"].get("nodeName"):
        return 0
    if item.get("status", {}).get("phase") in ENDED:
        return 0
    requested = options.get("gracePeriodSeconds")
    default = item["spec"].get("terminationGracePeriodSeconds", 30)
    return int(default if requested is None else requested)


def validate(resource: resources.Resource, item: Json, old: Json | None) -> Iterator[Cause]:
    """Yield the errors of an object that its schema does not find."""
    spec = item.get("spec", {})
    if resource is resources.PODS:
        yield from _validate_pod(spec, "spec")
        if old is not None and _without_images(spec) != _without_images(old["spec"]):
            text = "pod updates may not change fields other than `spec.containers[*].image`"
            yield Cause.forbidden("spec", text)
    elif resource is resources.JOBS:
        yield from _validate_job(spec)
        for key in ("template", "selector", "completions", "podFailurePolicy"):
            mutable = key == "template" and spec.get("suspend")
            if old is not None and spec.get(key) != old["spec"].get(key) and not mutable:
                yield Cause.invalid(f"spec.{key}", spec.get(key), IMMUTABLE)
    elif resource is resources.CLAIMS:
        if not spec.get("accessModes"):
            text = "at least 1 access mode is required"
            yield Cause.required("spec.accessModes", text)
        if not spec.get("resources", {}).get("requests", {}).get("storage"):
            yield Cause.required("spec.resources[storage]")
    elif resource.kind == "Event":
        namespace = item.get("involvedObject", {}).get("namespace", "default")
        if namespace != item["metadata"].get("namespace"):
            text = "does not match event.namespace"
            yield Cause.invalid("involvedObject.namespace", namespace, text)
    elif resource.kind == "Secret":
        for key in item.get("data", {}):
            if not re.fullmatch(_DATA_KEY, key):
                yield Cause.invalid(f"data[{key}]", key, _DATA_KEY_RULE)
            if key == "." or key.startswith(".."):
                yield Cause.invalid(f"data[{key}]", key, "must not be '.' or start with '..'")
    elif resource is resources.DEFINITIONS:
        yield from _validate_definition(item)


def _without_images(spec: Json) -> Json:
    mutable = ("containers", "nodeName", "activeDeadlineSeconds", "tolerations")
    rest: Json = {key: value for key, value in spec.items() if key not in mutable}
    containers = spec.get("containers", ())
    rest["containers"] = [{k: v for k, v in c.items() if k != "image"} for c in containers]
    return rest


def _validate_job(spec: Json) -> Iterator[Cause]:
    for key in ("backoffLimit", "parallelism", "activeDeadlineSeconds", "ttlSecondsAfterFinished"):
        if spec.get(key, 0) < 0:
            text = "must be greater than or equal to 0"
            yield Cause.invalid(f"spec.{key}", spec[key], text)
    labels = spec["template"].get("metadata", {}).get("labels", {})
    yield from metadata.validate_labels(labels, "spec.template.labels")
    pod = spec["template"]["spec"]
    yield from _validate_pod(pod, "spec.template.spec")
    restart = pod["restartPolicy"]
    if restart == "Always":
        text = 'valid values: "OnFailure", "Never"'
        yield Cause.required("spec.template.spec.restartPolicy", text)
    policy = spec.get("podFailurePolicy")
    if policy is None:
        return
    if restart == "OnFailure":
        text = 'only "Never" is supported when podFailurePolicy is specified'
        yield Cause.invalid("spec.template.spec.restartPolicy", restart, text)
    names = {c.get("name") for c in (*pod.get("initContainers", ()), *pod.get("containers", ()))}
    for index, rule in enumerate(policy.get("rules", ())):
        yield from _validate_rule(rule, f"spec.podFailurePolicy.rules[{index}]", names)


def _validate_rule(rule: Json, path: str, names: set[str]) -> Iterator[Cause]:
    if rule.get("action") not in _ACTIONS:
        yield Cause.unsupported(f"{path}.action", rule.get("action"), _ACTIONS)
    codes = rule.get("onExitCodes")
    if (codes is None) == ("onPodConditions" not in rule):
        text = "specifying one of OnExitCodes and OnPodConditions is required"
        yield Cause.invalid(path, rule, text)
    if codes is None:
        return
    container = codes.get("containerName")
    if container is not None and container not in names:
        text = "must be one of the container or initContainer names in the pod template"
        yield Cause.invalid(f"{path}.onExitCodes.containerName", container, text)
    if codes.get("operator") not in ("In", "NotIn"):
        field = f"{path}.onExitCodes.operator"
        yield Cause.unsupported(field, codes.get("operator"), ("In", "NotIn"))
    for index, value in enumerate(codes.get("values", ())):
        if value == 0 and codes.get("operator") == "In":
            field = f"{path}.onExitCodes.values[{index}]"
            yield Cause.invalid(field, value, "must not be 0 for the In operator")


def _validate_pod(spec: Json, path: str) -> Iterator[Cause]:
    if spec.get("containers") == []:
        yield Cause.required(f"{path}.containers")
    if spec["restartPolicy"] not in _RESTART:
        yield Cause.unsupported(f"{path}.restartPolicy", spec["restartPolicy"], _RESTART)
    volumes: set[Any] = set()
    for index, volume in enumerate(spec.get("volumes", ())):
        name = volume.get("name", "")
        if not metadata.is_label(name):
            yield Cause.invalid(f"{path}.volumes[{index}].name", name, metadata.LABEL_RULE)
        if name in volumes:
            yield Cause.duplicate(f"{path}.volumes[{index}].name", name)
        volumes.add(name)
    seen: set[Any] = set()
    for group in ("initContainers", "containers"):
        for index, container in enumerate(spec.get(group, ())):
            container_path = f"{path}.{group}[{index}]"
            name = container.get("name", "")
            if not metadata.is_label(name):
                yield Cause.invalid(f"{container_path}.name", name, metadata.LABEL_RULE)
            if name in seen:
                yield Cause.duplicate(f"{container_path}.name", name)
            seen.add(name)
            if not container.get("image"):
                yield Cause.required(f"{container_path}.image")
            for mount_index, mount in enumerate(container.get("volumeMounts", ())):
                if mount.get("name") not in volumes:
                    field = f"{container_path}.volumeMounts[{mount_index}].name"
                    text = f'Not found: "{mount.get("name")}"'
                    yield Cause(field, "FieldValueNotFound", text)


def _validate_definition(item: Json) -> Iterator[Cause]:
    spec = item.get("spec", {})
    names = spec.get("names", {})
    for key in ("group", "scope", "versions"):
        if not spec.get(key):
            yield Cause.required(f"spec.{key}")
    for key in ("plural", "kind"):
        if not names.get(key):
            yield Cause.required(f"spec.names.{key}")
    expected = f"{names.get('plural')}.{spec.get('group')}"
    if item["metadata"].get("name") != expected:
        text = f'must be spec.names.plural+"."+spec.group: "{expected}"'
        yield Cause.invalid("metadata.name", item["metadata"].get("name"), text)
    for index, version in enumerate(spec.get("versions", ())):
        if not isinstance(version.get("schema", {}).get("openAPIV3Schema"), dict):
            yield Cause.required(f"spec.versions[{index}].schema.openAPIV3Schema")
