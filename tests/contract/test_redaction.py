"""Secrets in urls and texts are hidden, whether known by their form or by their value."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sd_api.redaction import carries_secret, hide, redact_text, redact_url, secrets_of

SECRET = "c2VjcmV0czNjcmV0"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://u:secret@example.com:8443/a?token=secret#secret", "https://example.com:8443/a?…"),
        ("https://[2606:4700::1]/a", "https://[2606:4700::1]/a"),
        ("https://example.com/a", "https://example.com/a"),
        ("org/name", "org/name"),
        ("org/name@v2", "org/name@v2"),
        ("hf://org/name@v2/model.ckpt", "hf://org/name@v2/model.ckpt"),
        ("org/name?token=secret", "org/name"),
        ("user:secret@example.com/a#secret", "example.com/a"),
        ("urn:air:sd1:lora:civitai:7@71", "urn:air:sd1:lora:civitai:7@71"),
        ("civitai:7@71?token=secret", "civitai:7@71"),
        ("https://example.com:secret/", "(unreadable url)"),
        ("https://user:12/secret@example.com/a", "(unreadable url)"),
        ("https://user:/secret@example.com/a", "(unreadable url)"),
        ("https://user:x@1/secret@example.com/a", "(unreadable url)"),
        ("https://example.com/@user/a@1", "https://example.com/@user/a@1"),
    ],
)
def test_urls_are_shown_without_secrets(url, shown):
    """Userinfo, query and fragment are left out of messages."""
    assert redact_url(url) == shown


@given(st.text(max_size=60))
def test_any_text_can_be_redacted(text):
    """No input raises an error."""
    for url in (text, f"https://{text}", f"https://{text}/x", f"https://h:{text}/"):
        redact_url(url)
        redact_text(url)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("GET https://example.com/m?token=SECRET failed", "GET https://example.com/m?… failed"),
        ('"https://u:SECRET@example.com/m"', '"https://example.com/m"'),
        ("HTTPS://u:SECRET@example.com/m", "https://example.com/m"),
        ("1https://u:SECRET@example.com/m", "1https://example.com/m"),
        ("https://u:a'SECRET@example.com/m", "https://example.com/m"),
        ("https://example.com/m?token=a'b|SECRET", "https://example.com/m?…"),
        ("http://proxy:SECRET@10.0.0.1:3128 is away", "http://10.0.0.1:3128 is away"),
        ("Authorization: Bearer SECRET", "Authorization: Bearer …"),
        ("the key whsec_SECRET= is short", "the key whsec_… is short"),
        ("token hf_SECRET", "token hf_…"),
        ("a bearer of bad news", "a bearer of bad news"),
        ("Job a/b is gone", "Job a/b is gone"),
    ],
)
def test_secrets_in_a_text_are_redacted(text, shown):
    """Links are recognised in any spelling, tokens and signing keys by their form."""
    assert redact_text(text.replace("SECRET", SECRET)) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        pytest.param("at hf_abcdefghij.", "at ….", id="the token"),
        pytest.param("at HF_ABCDEFGHIJ.", "at ….", id="in upper case"),
        pytest.param("at hf_abcdefgh…", "at ……", id="cut short"),
        pytest.param("hf_abcdefghijhf_abcdefghij", "……", id="twice"),
        pytest.param("at hf_abcde", "at hf_abcde", id="no more than anybody's beginning"),
        pytest.param("at 0123456789 and a+b/c=d0e", "at … and …", id="of urls"),
        pytest.param("bearer of pruned fp16", "bearer of pruned fp16", id="words"),
    ],
)
def test_known_secrets_are_hidden(text, shown):
    """The beginning of a secret is hidden as well, if it is long enough to identify the secret."""
    request = {
        "url": "https://h/x?size=pruned&t=0123456789",
        "vae": [{"url": "h?k=a%2Bb%2Fc%3Dd0e"}],
    }
    assert hide(text, secrets_of(request, "hf_abcdefghij")) == shown


@pytest.mark.parametrize(
    ("url", "secret"),
    [
        pytest.param("https://civitai.com/api/download/models/1?token=x", True, id="token"),
        pytest.param("https://user:pw@example.com/m.ckpt", True, id="userinfo"),
        pytest.param("https://user@example.com/m.ckpt", True, id="user"),
        pytest.param("https://example.com/m.ckpt?type=Model&format=x", False, id="harmless query"),
        pytest.param("https://example.com/@v1/m.ckpt", False, id="at sign in the path"),
        pytest.param("runwayml/stable-diffusion-v1-5", False, id="repo id"),
        pytest.param("https://example.com/x?API_KEY=abc", True, id="upper case"),
        pytest.param("https://[::1/x", False, id="not a url"),
    ],
)
def test_urls_that_carry_secrets_are_noticed(url, secret):
    """A url carries a secret in its userinfo or in a parameter with such a name."""
    assert carries_secret(url) is secret
