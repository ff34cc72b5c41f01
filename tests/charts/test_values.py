"""Values that the chart refuses, and values that are absent."""

from __future__ import annotations

import json

import pytest

from sd_api.default_parts import BASES
from sd_api.url_forms import REPO_ID
from sd_operator.gateway.settings import GatewaySettings
from tests.support.charts.helmcharts import (
    FULL,
    HELMS,
    OPERATOR,
    VALUES,
    Json,
    at,
    deployment,
    env_of,
    helm,
    one,
    pod_of,
    render,
    with_value,
)
from tools.make_chart import default_values

PROGRAMS = [
    pytest.param(program, marks=() if program == "helm" else pytest.mark.slow) for program in HELMS
]
"""In the usual run, these tests skip the oldest supported Helm; a few other tests use it."""
PORTS = {
    "65536": (),
    "0": pytest.mark.slow,
    "99999": pytest.mark.slow,
    "184467440737095516161": pytest.mark.slow,
}
"""Ports that do not exist; the usual run tries one."""

REFUSED = [
    pytest.param({"replicas": "two"}, "replicas", ("want integer", "Expected: integer"), id="type"),
    pytest.param({"replicas": 0}, "replicas", ("minimum", "greater than or equal to 1"), id="none"),
    pytest.param({"replica": 1}, "replica", ("not allowed",), id="misspelt"),
    pytest.param(
        {"loader": {"gpu": {"cont": 1}}}, "gpu", ("'cont' not allowed", "cont is not"), id="deep"
    ),
    pytest.param(
        {"logLevel": "debug"}, "logLevel", ("'DEBUG', 'INFO'", '"DEBUG", "INFO"'), id="enum"
    ),
    pytest.param(
        {"hubEndpoint": "hub"}, "hubEndpoint must be a link", ("http:// or https://",), id="no link"
    ),
    pytest.param(
        {"hubEndpoint": "https://hub.example.com/x?token=s"},
        "hubEndpoint must not have a query or a fragment",
        ("put a login into the Secret that loginsSecret names",),
        id="key of the mirror",
    ),
    pytest.param({"models": {"namespaces": ["Art"]}}, "namespaces", ("a-z0-9",), id="namespace"),
    pytest.param({"models": {"claim": {"size": "big"}}}, "size", ("0-9",), id="quantity"),
    pytest.param(
        {"models": {"claim": {"accessModes": ["ReadOnlyMany"]}}},
        "accessModes",
        ("ReadWriteMany",),
        id="a volume that cannot be written",
    ),
    pytest.param(
        {"loader": {"securityContext": {"runAsUser": 1}}},
        "securityContext",
        ("'runAsUser' not allowed", "runAsUser is not allowed"),
        id="security context of neither Pod nor container",
    ),
    pytest.param(
        {"proxy": {"https": "http://user:word@proxy:3128"}},
        "proxy.https must not contain a user name or a password",
        ("put them into the Secret that loginsSecret names",),
        id="login of the proxy",
    ),
    pytest.param(
        {"hubEndpoint": "https://user:word@hub.example.com"},
        "hubEndpoint must not contain a user name or a password",
        ("put them into the Secret that loginsSecret names",),
        id="login of the mirror",
    ),
    pytest.param(
        {"networkPolicy": {"enabled": True}},
        "networkPolicy.apiServer.to must name the addresses of the API server",
        ("kubectl get endpoints kubernetes",),
        id="operator without an API server",
    ),
    pytest.param(
        {"loader": {"networkPolicy": {"refusedCIDRs": ["10.0.0.0"]}}},
        "refusedCIDRs",
        ("0-9",),
        id="no range",
    ),
    *(
        pytest.param(
            values,
            f"{name} has a port that does not exist",
            ("ports are numbers from 1 to 65535",),
            id=f"port {port} of {name}",
            marks=marks,
        )
        for port, marks in PORTS.items()
        for name, values in (
            ("allowedHosts", {"allowedHosts": ["a.example.com", f"h:{port}"]}),
            ("allowedHosts", {"allowedHosts": [f"[fd00::1]:{port}"]}),
            ("hubEndpoint", {"hubEndpoint": f"https://hub.example.com:{port}/hf"}),
            ("proxy.https", {"proxy": {"https": f"http://proxy:{port}"}}),
            ("trainedUrlTemplate", {"trainedUrlTemplate": f"https://[fd00::1]:{port}/{{id}}"}),
        )
    ),
    pytest.param({"image": {"digest": "abc"}}, "digest", ("sha256",), id="digest"),
    pytest.param(
        {"loader": {"defaultParts": {"sd15": "org/name"}}},
        "defaultParts",
        ("'sd15' not allowed", "sd15 is not"),
        id="unknown family",
    ),
    pytest.param(
        {"gateway": {"trustedProxies": ["ingress"]}}, "trustedProxies", ("0-9a-f",), id="a name"
    ),
    pytest.param(
        {"trainedUrlTemplate": "https://trainer.example.com/"},
        "trainedUrlTemplate",
        ("with {id} where the trained model's id goes",),
        id="template",
    ),
    pytest.param(
        {"trainedUrlTemplate": "https://{id}.example.com/"},
        "trainedUrlTemplate",
        ("after the host",),
        id="template with the id in the host",
    ),
    pytest.param(
        {"metrics": {"podMonitor": {"enabled": True}, "serviceMonitor": {"enabled": True}}},
        "metrics.podMonitor",
        ("would scrape every operator twice",),
        id="two monitors",
    ),
    pytest.param(
        {
            "models": {
                "namespaces": ["art"],
                "clusterWide": True,
                "claim": {"create": False},
            },
            "loader": {"networkPolicy": {"enabled": False}},
        },
        "models.namespaces",
        ("has no effect",),
        id="namespaces for nothing",
    ),
]


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize(("values", "where", "why"), REFUSED)
def test_a_wrong_value_is_refused(
    program: str, values: Json, where: str, why: tuple[str, ...]
) -> None:
    """The message names the value and what is allowed."""
    done = helm("template", "x", OPERATOR, values=values, program=program)
    assert done.returncode != 0
    assert where in done.stderr
    assert any(text in done.stderr for text in why), done.stderr


@pytest.mark.parametrize(
    ("values", "where", "why"), [row for row in REFUSED if row.id in ("type", "no link")]
)
def test_the_oldest_helm_refuses_a_wrong_value(
    values: Json, where: str, why: tuple[str, ...]
) -> None:
    """The oldest Helm refuses a value that the schema rejects and one that a template rejects."""
    test_a_wrong_value_is_refused("helm3", values, where, why)


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize(
    "values",
    [
        pytest.param({"trainedUrlTemplate": "https://e.com/?k=n0t-shown"}, id="template"),
        pytest.param({"trainedUrlTemplate": "n0t-shown"}, id="template without a scheme"),
        pytest.param({"trainedUrlTemplate": "https://a:n0t-shown@e.com/{id}"}, id="its login"),
        pytest.param({"hubEndpoint": "user:n0t-shown@hub"}, id="mirror without a scheme"),
        pytest.param({"hubEndpoint": "https://hub/x?token=n0t-shown"}, id="mirror"),
        pytest.param({"hubEndpoint": "https://hub/x#n0t-shown"}, id="fragment"),
        pytest.param({"proxy": {"https": "user:n0t-shown@proxy"}}, id="proxy without a scheme"),
        pytest.param({"proxy": {"https": "http://u:n0t-shown@proxy"}}, id="proxy"),
    ],
)
def test_a_refused_link_is_not_shown(program: str, values: Json) -> None:
    """The error does not show the link, which may contain a password or a key."""
    done = helm("template", "x", OPERATOR, values=values, program=program)
    assert done.returncode != 0
    assert " must " in done.stderr
    assert "n0t-shown" not in done.stderr + done.stdout


def test_families_and_repos_of_default_parts_are_those_of_the_setting() -> None:
    """The chart's schema accepts the families and repos that the operator's setting accepts."""
    schema = json.loads((OPERATOR / "values.schema.json").read_text())
    parts = schema["properties"]["loader"]["properties"]["defaultParts"]
    assert list(parts["properties"]) == BASES
    assert parts["additionalProperties"] is False
    assert schema["definitions"]["repo"]["pattern"] == f"^{REPO_ID}$"


def test_the_defaults_are_those_of_values_yaml() -> None:
    """files/defaults.yaml equals values.yaml, which templates cannot read."""
    assert (OPERATOR / "files" / "defaults.yaml").read_text() == default_values()


@pytest.mark.parametrize(
    "names",
    [
        pytest.param([name for name in VALUES if name != "gateway"], id="all but the gateway"),
        *(pytest.param([name], id=name, marks=pytest.mark.slow) for name in VALUES),
    ],
)
def test_an_absent_value_has_its_default(names: list[str]) -> None:
    """An absent value has its default, as after `--reuse-values` of an older release."""
    base = {} if "gateway" in names else {"gateway": {"enabled": True}}
    assert render(base | dict.fromkeys(names)) == render(base)


PARTS = [
    ("gateway", "maxConnections"),
    ("gateway", "networkPolicy"),
    ("gateway", "ingress", "host"),
    ("loader", "networkPolicy", "dns"),
    ("metrics", "podMonitor"),
    ("networkPolicy", "apiServer", "ports"),
    ("proxy", "https"),
]


@pytest.mark.parametrize(
    "paths",
    [
        pytest.param(PARTS, id="all"),
        *(pytest.param([path], id=".".join(path), marks=pytest.mark.slow) for path in PARTS),
    ],
)
@pytest.mark.parametrize("program", HELMS)
def test_an_absent_part_of_a_value_has_its_default(
    program: str, paths: list[tuple[str, ...]]
) -> None:
    """Null removes a default in Helm; it never becomes 0 or the text <nil>."""
    absent = given = FULL
    for path in paths:
        absent, given = with_value(absent, path, None), with_value(given, path, at(VALUES, path))
    assert render(absent, program=program) == render(given, program=program)


def test_limits_and_labels_can_be_removed() -> None:
    """In resources and labels, which are Kubernetes' own, null removes an entry."""
    labels = {"labels": {"grafana_dashboard": None}, "enabled": True}
    objects = render({"resources": {"limits": None}, "metrics": {"dashboard": labels}})
    (container,) = pod_of(deployment(objects))["containers"]
    assert container["resources"] == {"requests": VALUES["resources"]["requests"]}
    assert "grafana_dashboard" not in one(objects, "ConfigMap")["metadata"]["labels"]


def test_the_gateway_starts_with_its_own_limits() -> None:
    """A number that is null is not rendered as 0, which the gateway would refuse."""
    objects = render({"gateway": {"enabled": True, "maxConnections": None}})
    settings = GatewaySettings.from_env(env_of(objects, "gateway"))
    assert settings.max_connections == VALUES["gateway"]["maxConnections"]
