"""The operator refuses a spec that cannot be loaded before it creates a Job."""

from __future__ import annotations

import pytest

from sd_api.choices import ModelType
from sd_api.sources import Link
from sd_operator.base.settings import Settings
from sd_operator.rules.spec_problem import spec_problem
from tests.support.modelurls import MEANT, NOT_ON_THE_HUB, REFUSED, TRAINED
from tests.support.rules.observed import model

TEMPLATE = "https://trainer.example.com/models/{id}.zip"


def problem(settings: Settings | None = None, **spec: object) -> str | None:
    """Return the problem of a model with these fields."""
    return spec_problem(model(**spec), settings or Settings())


@pytest.mark.parametrize("url", [url for url in MEANT if url])
def test_operator_reads_every_form_of_a_url(url: str) -> None:
    """A spec with the url has no problem, whether the url is in spec.url or in spec.vae.url."""
    assert problem(url=url) is None
    assert problem(vae={"url": url}) is None


@pytest.mark.parametrize("url", [url for url in REFUSED if url])
def test_operator_refuses_other_forms_and_names_the_right_one(url: str) -> None:
    """The message gives the right form, in the same words as the loader and the CRD's rules."""
    assert (problem(url=url) or "").startswith(f"spec.url {REFUSED[url]}")
    assert (problem(vae={"url": url}) or "").startswith(f"spec.vae.url {REFUSED[url]}")


@pytest.mark.parametrize("url", [url for url in TRAINED if url])
def test_operator_reads_the_urls_of_trained_models(url: str) -> None:
    """With the administrator's link template, a valid url of a trained model has no problem.

    For any other url, the problem has the words of the table TRAINED.
    """
    settings = Settings(trained_url_template=TEMPLATE)
    found, expected = problem(settings, url=url, modelType="api_trained"), TRAINED[url]
    if isinstance(expected, str):
        assert (found or "").startswith(f"spec.url {expected}")
    else:
        assert found is None


def test_link_with_model_type_huggingface_must_be_on_the_hub_or_its_mirror() -> None:
    """A link to another host is a problem, unless the settings name this host as a mirror."""
    [url, *_] = [url for url, meaning in MEANT.items() if isinstance(meaning, Link)]
    whole = ModelType.HUGGINGFACE.value
    assert (problem(url=url, modelType=whole) or "").startswith(f"spec.url {NOT_ON_THE_HUB}")
    mirror = Settings(hub_endpoint="https://mirror.example/hub/")
    assert problem(mirror, url="https://mirror.example/hub/org/name", modelType=whole) is None


def test_components_are_read_like_the_url() -> None:
    """Urls of components may have the forms of spec.url; components.from must be a Hub repo."""
    link = "https://example.com/flux.safetensors"
    assert (
        problem(url=link, components={"from": "org/flux", "transformer_2": {"url": link}}) is None
    )
    assert problem(url=link, components={"from": link}) == (
        "spec.components.from must be a diffusers repo of the Hub: ORG/NAME, or ORG/NAME@REVISION"
    )
    found = problem(url=link, components={"transformer_2": {"url": "s3://bucket/low"}})
    assert (found or "").startswith("spec.components.transformer_2.url is in an object store")
    both = problem(url=link, vae={"url": "a/b"}, components={"vae": {"url": "a/b"}})
    assert both == "spec.components.vae: spec.vae gives a VAE as well; remove one of them"


def test_url_and_git_revision_must_agree() -> None:
    """The message names both revisions."""
    assert problem(url="org/name@v1", gitRevision="v1") is None
    assert problem(url="org/name@v1", gitRevision="v2") == (
        "spec.url links to v1, but spec.gitRevision is v2; remove one of them"
    )
