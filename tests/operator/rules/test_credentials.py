"""Which of the administrator's Secrets with tokens a load gets."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sd_api import names
from sd_api.default_credentials import DefaultSecret
from sd_api.load import LoadRequest
from sd_operator.base.settings import LoaderSettings, Settings
from sd_operator.rules import manifests
from tests.support.rules.observed import claim, model

SECRETS = {
    "huggingface.co": DefaultSecret("hub-token"),
    "mirror.example": DefaultSecret("mirror-token"),
    "site.example": DefaultSecret("site-token"),
    "site.example:8443": DefaultSecret("port-token"),
    "civitai.com": DefaultSecret("civitai-token"),
    "open.example": DefaultSecret("open-token", for_gateway=True),
}
LINK = "https://other.example/x"


def load(hub: str | None = None, civitai: str | None = None, **spec: Any) -> dict[str, Any]:
    """Return the manifest of a load with default credentials for several hosts."""
    loader = LoaderSettings(gpu_count=0, default_credentials=SECRETS)
    settings = Settings(hub_endpoint=hub, civitai_endpoint=civitai, loader=loader)
    return manifests.build(manifests.plan_load(model(**spec), settings, claim(), 0), settings)


def test_repos_of_missing_components_mount_the_secret_of_the_hub() -> None:
    """If the administrator names a repo for missing components, loads mount the Hub's Secret.

    That repo may be gated.
    """
    loader = LoaderSettings(
        gpu_count=0, default_credentials=SECRETS, default_parts={"flux": "org/flux"}
    )
    settings = Settings(loader=loader)
    plan = manifests.plan_load(model(url=LINK), settings, claim(), 0)
    assert mounted(manifests.build(plan, settings)) == {"hub-token"}


def mounted(manifest: dict[str, Any]) -> set[str]:
    """Return the names of the default Secrets that the Pod mounts; check that all are optional."""
    volumes = manifest["spec"]["template"]["spec"]["volumes"]
    sources = [source for it in volumes for source in it.get("projected", {}).get("sources", ())]
    assert all(source["secret"]["optional"] for source in sources)
    return {source["secret"]["name"] for source in sources}


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        pytest.param({"url": "org/name"}, {"hub-token"}, id="a repo"),
        pytest.param({"url": "https://hf.co/o/n/blob/main/x.ckpt"}, {"hub-token"}, id="its file"),
        pytest.param({"url": "https://site.example/x"}, {"site-token"}, id="a link"),
        pytest.param({"url": "https://Site.Example:443/x"}, {"site-token"}, id="usual port"),
        pytest.param({"url": "https://site.example:8443/x"}, {"port-token"}, id="another port"),
        pytest.param({"url": "https://u:p@site.example/x"}, {"site-token"}, id="with userinfo"),
        pytest.param({"url": "https://a.site.example/x"}, set(), id="a subdomain"),
        pytest.param({"url": "https://other.example/site.example"}, set(), id="in the path"),
        pytest.param({"url": "https://civitai.com/models/1"}, {"civitai-token"}, id="a page"),
        pytest.param({"url": "urn:air:sd1:lora:civitai:1@2"}, {"civitai-token"}, id="an AIR"),
        pytest.param({"url": LINK, "vae": {"url": "a/b"}}, {"hub-token"}, id="the VAE"),
        pytest.param(
            {"url": LINK, "components": {"text_encoder": {"url": "https://site.example/x"}}},
            {"site-token"},
            id="a component",
        ),
        pytest.param(
            {"url": LINK, "components": {"from": "org/name"}}, {"hub-token"}, id="other components"
        ),
        pytest.param(
            {"url": LINK, "originalConfig": "https://site.example/c.yaml"},
            {"site-token"},
            id="the original config",
        ),
        pytest.param(
            {"url": "org/name", "credentialsSecretRef": {"name": "own"}},
            set(),
            id="a Secret of its own",
        ),
    ],
)
def test_load_mounts_only_the_secrets_of_hosts_that_it_names(
    spec: dict[str, Any], expected: set[str]
) -> None:
    """The Pod mounts the Secrets of the hosts that its request names, and no other Secret.

    So a compromised loader cannot read a token for another host.
    """
    assert mounted(load(**spec)) == expected


@pytest.mark.parametrize(
    ("url", "expected"), [("org/name", {"hub-token"}), ("https://other.example/x", set())]
)
def test_a_model_that_names_a_default_secret_gets_only_the_default_access(
    url: str, expected: set[str]
) -> None:
    """The Secret is mounted only for its own host, and not as the model's own credentials."""
    manifest = load(url=url, credentialsSecretRef={"name": "hub-token"})
    assert mounted(manifest) == expected
    pod = manifest["spec"]["template"]["spec"]
    assert "credentials" not in {volume["name"] for volume in pod["volumes"]}
    request = LoadRequest.from_argument(pod["containers"][0]["args"][2])
    assert not request.credentials


def test_caller_of_the_gateway_uses_only_the_tokens_for_the_gateway() -> None:
    """A model of a gateway caller gets only the Secrets that the setting allows by `:gateway`."""
    by_gateway = {names.ANNOTATION_REQUESTED_BY: names.REQUESTED_BY_GATEWAY}
    assert mounted(load(url="org/name", annotations=by_gateway)) == set()
    assert mounted(load(url="https://open.example/x", annotations=by_gateway)) == {"open-token"}


def test_repo_on_a_mirror_mounts_the_secret_of_the_mirror() -> None:
    """With a mirror of the Hub or of Civitai, only the Secret for the mirror's host is mounted."""
    assert mounted(load("https://mirror.example/hf", url="org/name")) == {"mirror-token"}
    page = "https://civitai.com/models/1"
    assert mounted(load(civitai="https://site.example/c", url=page)) == {"site-token"}


def test_only_the_container_that_downloads_has_the_secrets() -> None:
    """The container gets the Secrets' names and files; arguments and variables have no token."""
    pod = load(url="org/name")["spec"]["template"]["spec"]
    (fetch,), (convert,) = pod["initContainers"], pod["containers"]
    [mount] = [it for it in fetch["volumeMounts"] if it["name"] == "defaults"]
    variables = {it["name"]: it.get("value") for it in fetch["env"]}
    assert mount["mountPath"] == variables["SD_LOADER_DEFAULT_CREDENTIALS_DIR"]
    assert variables["SD_LOADER_DEFAULT_CREDENTIALS"] == "huggingface.co=hub-token"
    assert "hub-token" not in json.dumps(convert)
    assert "defaults" not in {it["name"] for it in convert["volumeMounts"]}
