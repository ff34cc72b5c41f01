"""Tests of the chart's network policies."""

from __future__ import annotations

import ipaddress

import pytest
import yaml

from sd_api import names
from sd_api.netguard import PORTS, REFUSED, Address, refusal
from tests.support.charts.helmcharts import (
    OPERATOR,
    ROOT,
    Json,
    deployment,
    of_kind,
    one,
    pod_of,
    render,
)
from tests.support.hostile.addresses import PRIVATE_LITERALS
from tools.make_chart import network

PUBLIC_ADDRESSES = ["93.184.215.14", "1.1.1.1", "2606:4700::6810:85e5", "2a00:1450::1"]
EGRESS = {
    "loads": ("sd-operator-loader-egress", {}),
    "operator": (
        "sd-operator",
        {
            "networkPolicy": {
                "enabled": True,
                "apiServer": {"to": [{"ipBlock": {"cidr": "10.0.0.1/32"}}]},
            }
        },
    ),
}


def public_egress(name: str, values: Json) -> Json:
    """Return the rule of a network policy that allows public addresses."""
    policy = one(render(values), "NetworkPolicy", name)
    (rule,) = [
        rule
        for rule in policy["spec"]["egress"]
        if any(peer.get("ipBlock", {}).get("except") for peer in rule["to"])
    ]
    return rule


def reaches(rule: Json, address: Address) -> bool:
    """Whether a rule allows an address."""

    def inside(cidr: str) -> bool:
        network = ipaddress.ip_network(cidr)
        return address.version == network.version and address in network

    return any(
        inside(peer["ipBlock"]["cidr"]) and not any(map(inside, peer["ipBlock"]["except"]))
        for peer in rule["to"]
    )


@pytest.mark.parametrize("policy", EGRESS)
def test_the_network_policies_permit_what_the_address_guard_permits(policy: str) -> None:
    """Both refuse the same ranges: private networks, metadata services and their IPv6 forms."""
    rule = public_egress(*EGRESS[policy])
    edges = [edge for network in REFUSED for edge in (network[0], network[-1])]
    literals = [literal for literal in PRIVATE_LITERALS if is_address(literal)]
    addresses = [ipaddress.ip_address(text) for text in (*PUBLIC_ADDRESSES, *literals)]
    for address in (*edges, *addresses):
        assert reaches(rule, address) is (refusal(address) is None), address
    assert all(reaches(rule, ipaddress.ip_address(text)) for text in PUBLIC_ADDRESSES)
    assert {port["port"] for port in rule["ports"]} == set(PORTS)


def is_address(text: str) -> bool:
    """Whether a text is an address in its usual spelling."""
    try:
        return "%" not in str(ipaddress.ip_address(text))
    except ValueError:
        return False


@pytest.mark.parametrize("policy", EGRESS)
@pytest.mark.parametrize(
    ("values", "ports"),
    [
        pytest.param({"proxy": {"https": "http://proxy:3128"}}, {3128}, id="proxy"),
        pytest.param({"hubEndpoint": "https://hub.example.com:8443/hf"}, {8443}, id="mirror"),
        pytest.param({"hubEndpoint": "https://hub.example.com/a:8443/"}, set(), id="path"),
        pytest.param({"trainedUrlTemplate": "http://[fd00::1]:81/{id}"}, {81}, id="trained"),
        pytest.param({"allowedHosts": ["a.example.com:82", "b:83"]}, {82, 83}, id="hosts"),
        pytest.param({"allowedHosts": ["[fd00::1]:84", "a.example.com"]}, {84}, id="IPv6"),
        pytest.param({"allowedHosts": ["fd00::85", "10.0.0.1"]}, set(), id="no ports"),
    ],
)
def test_the_network_policies_open_the_ports_of_the_values(
    policy: str, values: Json, ports: set[int]
) -> None:
    """Only the ports 80 and 443, and ports that the values name, are open."""
    name, enabled = EGRESS[policy]
    rule = public_egress(name, enabled | values)
    assert {port["port"] for port in rule["ports"]} == set(PORTS) | ports


def test_additional_ranges_can_be_blocked() -> None:
    """Ranges of the values are blocked in addition to those of the address guard."""
    more = {"loader": {"networkPolicy": {"refusedCIDRs": ["93.184.0.0/16", "2606:4700::/32"]}}}
    rule = public_egress("sd-operator-loader-egress", more)
    for text in ("93.184.215.14", "2606:4700::6810:85e5", "10.0.0.1", "fd00::1"):
        assert not reaches(rule, ipaddress.ip_address(text))
    assert reaches(rule, ipaddress.ip_address("1.1.1.1"))


def test_the_ranges_are_those_of_the_address_guard() -> None:
    """The chart's file with ranges, which `make crd` writes, equals the address guard's ranges."""
    assert (OPERATOR / "files" / "network.yaml").read_text() == network()


def test_the_operators_network_policy_is_off_and_complete_if_it_is_on() -> None:
    """The policy needs the API server's addresses, and lets probes and scrapes in."""
    assert "sd-operator" not in {
        item["metadata"]["name"] for item in of_kind(render(), "NetworkPolicy")
    }
    objects = render(EGRESS["operator"][1])
    spec = one(objects, "NetworkPolicy", "sd-operator")["spec"]
    labels = deployment(objects)["spec"]["template"]["metadata"]["labels"]
    assert spec["podSelector"]["matchLabels"].items() <= labels.items()
    assert spec["policyTypes"] == ["Ingress", "Egress"]
    (container,) = pod_of(deployment(objects))["containers"]
    opened = {port["port"] for rule in spec["ingress"] for port in rule["ports"]}
    assert opened == {port["name"] for port in container["ports"]}
    server, dns, _ = spec["egress"]
    assert server["to"] == [{"ipBlock": {"cidr": "10.0.0.1/32"}}]
    assert [port["port"] for port in server["ports"]] == [443, 6443]
    assert {port["port"] for port in dns["ports"]} == {53, 5353}


def test_only_loads_have_egress() -> None:
    """Clean-ups, sweeps and checks need only the volume. No Pod may connect to a loader."""
    objects = render({"loader": {"extraEgress": [{"ports": [{"port": 3128}]}]}})
    shut = one(objects, "NetworkPolicy", "sd-operator-loader")["spec"]
    (expression,) = shut["podSelector"]["matchExpressions"]
    sweep = one(render({"sweep": {"enabled": True}}), "CronJob")
    labels = sweep["spec"]["jobTemplate"]["spec"]["template"]["metadata"]["labels"]
    egress = one(objects, "NetworkPolicy", "sd-operator-loader-egress")["spec"]
    golden = yaml.safe_load((ROOT / "tests/operator/rules/golden" / "load-cpu.yaml").read_text())
    load = golden["spec"]["template"]["metadata"]["labels"]
    clean_up = yaml.safe_load((ROOT / "tests/operator/rules/golden" / "remove.yaml").read_text())
    remove = clean_up["spec"]["template"]["metadata"]["labels"]

    assert shut["policyTypes"] == ["Ingress", "Egress"]
    assert "egress" not in shut
    check = {expression["key"]: names.CHECK_NAME}
    for one_of_them in (labels, load, remove, check):
        assert one_of_them[expression["key"]] in expression["values"]
    selector = egress["podSelector"]["matchLabels"]
    assert selector.items() <= load.items()
    assert not selector.items() <= remove.items()
    assert not selector.items() <= labels.items()
    assert not selector.items() <= check.items()
    dns, _, extra = egress["egress"]
    assert {port["port"] for port in dns["ports"]} == {53, 5353}
    assert all(peer for peer in dns["to"])
    assert extra == {"ports": [{"port": 3128}]}
