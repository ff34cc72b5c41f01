"""The loader reads exactly the environment variables that the operator writes."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from sd_api.choices import Pictures, VerifyDigest
from sd_api.default_credentials import DefaultSecret
from sd_api.loader_env import LoaderEnv, LoaderEnvError

EVERY: dict[str, tuple[Any, str, str]] = {
    "termination_log": (
        "/dev/termination-log",
        "SD_LOADER_TERMINATION_LOG",
        "/dev/termination-log",
    ),
    "allowed_hosts": (
        frozenset({"mirror.example.com", "10.0.0.1:8080"}),
        "SD_LOADER_ALLOWED_HOSTS",
        "10.0.0.1:8080,mirror.example.com",
    ),
    "max_bytes": (10**10, "SD_LOADER_MAX_BYTES", "10000000000"),
    "retain_previous_seconds": (0, "SD_LOADER_RETAIN_PREVIOUS_SECONDS", "0"),
    "hub_endpoint": ("https://hub.example.com", "HF_ENDPOINT", "https://hub.example.com"),
    "civitai_endpoint": (
        "https://civitai.example.com",
        "SD_LOADER_CIVITAI_ENDPOINT",
        "https://civitai.example.com",
    ),
    "verify_digest": (VerifyDigest.WHEN_WHOLE, "SD_LOADER_VERIFY_DIGEST", "whenWhole"),
    "pictures": (Pictures.NONE, "SD_LOADER_PICTURES", "none"),
    "https_proxy": ("http://proxy.example.com", "HTTPS_PROXY", "http://proxy.example.com"),
    "no_proxy": (".example.com", "NO_PROXY", ".example.com"),
    "ca_file": ("/ca.crt", "SSL_CERT_FILE", "/ca.crt"),
    "credentials_dir": ("/run/secrets/sd", "SD_LOADER_CREDENTIALS_DIR", "/run/secrets/sd"),
    "default_credentials": (
        {
            "site.example:8443": DefaultSecret("site"),
            "hub.example": DefaultSecret("hub", True, True),
        },
        "SD_LOADER_DEFAULT_CREDENTIALS",
        "hub.example=hub:private:gateway,site.example:8443=site",
    ),
    "default_credentials_dir": (
        "/run/secrets/sd-defaults",
        "SD_LOADER_DEFAULT_CREDENTIALS_DIR",
        "/run/secrets/sd-defaults",
    ),
    "hub_token": ("hf_x", "HF_TOKEN", "hf_x"),
    "civitai_token": ("x", "CIVITAI_TOKEN", "x"),
    "logins_dir": ("/run/secrets/sd-logins", "SD_LOADER_LOGINS_DIR", "/run/secrets/sd-logins"),
    "default_parts": (
        {"sdxl": "org/xl", "sd-1": "org/one"},
        "SD_LOADER_DEFAULT_PARTS",
        "sd-1=org/one,sdxl=org/xl",
    ),
    "trained_url_template": (
        "https://trainer.example.com/{id}",
        "SD_LOADER_TRAINED_URL_TEMPLATE",
        "https://trainer.example.com/{id}",
    ),
    "pod": ("sketch-0", "SD_LOADER_POD", "sketch-0"),
}
"""A value for each field, with the name and the text of its variable."""


def test_each_variable_has_a_case() -> None:
    """A new variable needs a row here."""
    assert EVERY.keys() == {field.name for field in fields(LoaderEnv)}


@pytest.mark.parametrize("name", EVERY)
def test_a_variable_is_read_as_it_was_written(name: str) -> None:
    """Each variable has this name and text, because charts and people write them, too."""
    value, variable, text = EVERY[name]
    written = LoaderEnv(**{name: value})
    assert LoaderEnv.name_of(name) == variable
    assert written.to_env() == {variable: text}
    assert LoaderEnv.from_env({variable: text}) == written


def test_all_variables_survive_together() -> None:
    """All variables together are read with the values that were written."""
    written = LoaderEnv(**{name: value for name, (value, _, _) in EVERY.items()})
    assert LoaderEnv.from_env(written.to_env()) == written


@pytest.mark.parametrize("name", EVERY)
def test_an_empty_variable_is_not_set(name: str) -> None:
    """An empty variable counts as not set, since manifests often have empty values."""
    assert LoaderEnv.from_env({EVERY[name][1]: ""}) == LoaderEnv()


def test_unset_fields_are_not_written() -> None:
    """A variable with an empty value counts as not set."""
    assert LoaderEnv().to_env() == {}
    assert LoaderEnv(allowed_hosts=frozenset(), no_proxy="", default_parts={}).to_env() == {}


def test_hosts_are_read_in_lower_case() -> None:
    """Hosts are read in lower case and without surrounding blanks."""
    env = {"SD_LOADER_ALLOWED_HOSTS": " Mirror.Example.com , 10.0.0.1:8080,"}
    assert LoaderEnv.from_env(env).allowed_hosts == {"mirror.example.com", "10.0.0.1:8080"}


@pytest.mark.parametrize("name", ["https_proxy", "no_proxy"])
def test_the_proxy_may_be_spelled_in_lower_case(name: str) -> None:
    """Many programs read the lower-case name; the upper-case name takes precedence."""
    env = {name: "lower"}
    assert getattr(LoaderEnv.from_env(env), name) == "lower"
    assert getattr(LoaderEnv.from_env({**env, name.upper(): "upper"}), name) == "upper"
    assert LoaderEnv.from_env({"hf_endpoint": "lower"}) == LoaderEnv()


@pytest.mark.parametrize(
    ("variable", "text", "message"),
    [
        ("SD_LOADER_MAX_BYTES", "10G", "must be a whole number of at most 1000000000000000000"),
        ("SD_LOADER_MAX_BYTES", "-1", "must be a whole number"),
        ("SD_LOADER_MAX_BYTES", "1_000", "must be a whole number"),
        ("SD_LOADER_MAX_BYTES", "9" * 5000, "must be a whole number"),
        ("SD_LOADER_RETAIN_PREVIOUS_SECONDS", "3153600001", "of at most 3153600000"),
        ("SD_LOADER_DEFAULT_PARTS", "sd9=org/name", "must be entries BASE=ORG/NAME"),
        ("SD_LOADER_DEFAULT_CREDENTIALS", "hub.example", "must be entries HOST=SECRET"),
        ("SD_LOADER_DEFAULT_CREDENTIALS", "https://hub.example=s", "must be entries HOST=SECRET"),
        ("SD_LOADER_DEFAULT_CREDENTIALS", "../x=s", "must be entries HOST=SECRET"),
        ("SD_LOADER_DEFAULT_CREDENTIALS", "hub.example=s:public", "must be entries HOST=SECRET"),
        ("SD_LOADER_DEFAULT_CREDENTIALS", "hub.example=A_b", "must be entries HOST=SECRET"),
        ("SD_LOADER_TRAINED_URL_TEMPLATE", "https://{id}/x", "must be an http(s) link with {id}"),
    ],
)
def test_a_wrong_value_names_its_variable(variable: str, text: str, message: str) -> None:
    """The message is short and on one line, whatever the value."""
    with pytest.raises(LoaderEnvError) as error:
        LoaderEnv.from_env({variable: text})
    assert str(error.value).startswith(f"{variable} must be ")
    assert message in str(error.value)
    assert len(str(error.value)) < 250
    assert str(error.value).isprintable()


def test_variables_that_name_a_file_are_marked() -> None:
    """Each variable that names a file is marked, so that standalone can translate its path."""
    files = [name for name in EVERY if name.endswith(("_dir", "_file", "_log"))]
    names = {LoaderEnv.name_of(name) for name in files}
    assert LoaderEnv.path_names() == names | {"HOME", "HF_HOME"}
    assert LoaderEnv.path_names() < LoaderEnv.every_name()


def test_a_token_is_neither_shown_nor_given_to_a_container() -> None:
    """A token is in no `repr` and in no container's variables: containers get tokens as files."""
    written = LoaderEnv(hub_token="hf_x", civitai_token="site_x")
    assert "_x" not in repr(written)
    assert LoaderEnv.every_name().isdisjoint(written.to_env())
