"""Tests of the gallery's login, sessions, origin check, and security headers."""

from __future__ import annotations

import re
from dataclasses import replace
from html import unescape

import pytest

from sd_operator.gateway import keys
from sd_operator.gateway.settings import GatewaySettings
from tests.support.gateway import gallerymodels
from tests.support.gateway.gallerysite import Page, Site, serve
from tests.support.gateway.gatewayrun import Gateway, write_keys
from tests.support.kube.kubeconfig import credentials

pytestmark = pytest.mark.cluster

LINK = "https://example.com/model.safetensors"
PATHS = (
    *("/", "/load", "/starter", "/models/sketch", "/models/sketch/edit", "/models/sketch/delete"),
    *("/live", "/?q=x&type=lora"),
)


@pytest.mark.parametrize("path", PATHS)
def test_pages_redirect_to_the_login_without_a_session(stranger, path):
    """The login leads back to the requested page. The event stream has status 401 instead."""
    response = stranger.get(f"/gallery{path}")
    if path == "/live":
        assert response.code == 401
        return
    assert response.code == 303
    assert response.location.startswith("/gallery/login?next=/gallery/")
    login = stranger.post(response.location, {"key": stranger.key})
    assert (login.code, login.location) == (303, f"/gallery{path}")


def test_root_redirects_to_the_gallery(stranger):
    """Both / and /gallery redirect to /gallery/."""
    assert stranger.get("/").location == "/gallery/"
    assert stranger.get("/gallery").location == "/gallery/"


def test_session_cookie_is_restricted(stranger):
    """The cookie is HttpOnly and SameSite=lax, expires, and is for the gallery's paths only."""
    cookie = stranger.login().headers["Set-Cookie"]
    for part in ("HttpOnly", "SameSite=lax", "Path=/gallery", "Max-Age=43200"):
        assert part in cookie
    assert stranger.key not in cookie
    assert "Secure" not in cookie, "the public url of this test is http"


def test_cookie_needs_https_by_default(shared_cluster, tmp_path):
    """The session cookie is Secure; the login page warns a user who opens it over plain http."""
    with serve(shared_cluster, tmp_path, public_url=None) as secure:
        assert "Secure" in secure.login().headers["Set-Cookie"]
        plain = secure.get("/gallery/login", Host="gallery.example.com:8000")
        assert "SD_GATEWAY_PUBLIC_URL" in plain.text
        proxied = secure.get(
            "/gallery/login", Host="gallery.example.com", X_Forwarded_Proto="https"
        )
        assert "SD_GATEWAY_PUBLIC_URL" not in proxied.text


@pytest.mark.parametrize(
    ("host", "says"),
    [
        ("gallery.example.com:8000", "your browser drops it"),
        ("localhost:8000", "some browsers drop it"),
        ("127.0.0.1:8000", "some browsers drop it"),
    ],
)
def test_login_over_http_names_the_value_that_allows_it(shared_cluster, tmp_path, host, says):
    """The page names gateway.publicUrl, and says if all browsers drop the cookie or only some."""
    with serve(shared_cluster, tmp_path, public_url=None) as secure:
        for response in (
            secure.get("/gallery/login", Host=host),
            secure.post("/gallery/login", {"key": "wrong"}, Host=host, Origin=f"http://{host}"),
        ):
            assert says in response.text
            assert "the session cookie needs https" in response.text
            assert "<code>gateway.publicUrl</code>" in response.text


def test_login_over_http_is_silent_if_the_cookie_allows_it(stranger):
    """The login page has no warning if the public URL begins with http: the cookie is kept."""
    assert "https" not in stranger.get("/gallery/login").text


def test_all_wrong_keys_get_the_same_response(stranger):
    """The response for a wrong key is always the same, and does not contain the key."""
    responses = [stranger.login(key) for key in ("wrong-key", stranger.key[:-1] + "!")]
    assert {response.code for response in responses} == {401}
    assert responses[0].text == responses[1].text
    assert "wrong-key" not in responses[0].text
    assert "This key is not valid." in responses[0].text


def test_keys_and_cookies_are_not_logged(stranger, caplog):
    """The log has the id of the key that logged in."""
    caplog.set_level("DEBUG")
    stranger.login("a-wrong-key")
    stranger.login()
    stranger.get("/gallery/")
    assert "key painter logged in to the gallery" in caplog.text
    for secret in ("a-wrong-key", stranger.key, stranger.cookie.partition("=")[2]):
        assert secret not in caplog.text


def test_failed_logins_are_limited(shared_cluster, tmp_path):
    """The limit on failures is that of the gateway; a correct key is still accepted."""
    with serve(shared_cluster, tmp_path, failures_per_minute=3) as limited:
        codes = [limited.login("wrong").code for _ in range(5)]
        assert codes == [401, 401, 401, 429, 429]
        assert "try again later" in limited.login("wrong").text
        assert limited.login().code == 303


def test_session_ends_when_its_key_is_removed(shared_cluster, tmp_path):
    """After the key is removed from the key file, each page redirects to the login."""
    with serve(shared_cluster, tmp_path) as site:
        site.login()
        assert site.get("/gallery/").code == 200
        site.keys_file.write_text(keys.new(shared_cluster.namespace, "painter")[1])
        assert site.get("/gallery/").code == 303


def test_logout_deletes_the_cookie(site):
    """A POST to the logout deletes the cookie; a GET does not."""
    response = site.post("/gallery/logout", {})
    assert (response.code, response.location) == (303, "/gallery/login")
    assert "Max-Age=0" in response.headers["Set-Cookie"]
    assert site.get("/gallery/logout").code == 405, "a link or an image cannot log a user out"


@pytest.mark.parametrize(
    "target",
    [
        "//evil.example.com",
        "https://evil.example.com/gallery/",
        "/gallery",
        "/docs",
        "\\\\evil.example.com",
        "/gallery/logout",
        "javascript:alert(1)",
    ],
)
def test_login_redirects_only_to_the_gallery(stranger, target):
    """A login with a `next` that is not a page of the gallery redirects to the list of models."""
    response = stranger.post(f"/gallery/login?next={target}", {"key": stranger.key})
    assert response.location == "/gallery/"


@pytest.mark.parametrize(
    "path", ["/login", "/logout", "/load", "/models/x/delete", "/models/x/reload"]
)
@pytest.mark.parametrize(
    "headers",
    [{"Origin": "https://evil.example.com"}, {"Sec_Fetch_Site": "cross-site"}, {"Origin": "null"}],
)
def test_forms_from_other_sites_are_rejected(site, path, headers):
    """The status is 403, even if the request has the session cookie."""
    response = site.post(f"/gallery{path}", {"key": site.key, "metadata.name": "x"}, **headers)
    assert response.code == 403
    assert "The form was sent from another site" in unescape(response.text)


def test_session_shows_the_namespace_of_its_key_only(shared_cluster, site):
    """Pages and forms for a model of another namespace give status 404 and change nothing."""
    gallerymodels.make(shared_cluster, "not-for-others", url=LINK)
    key, line = keys.new("default", "other")
    site.keys_file.write_text(site.keys_file.read_text() + line + "\n")
    other = Site(site.url, site.keys_file, key)
    assert other.login().code == 303
    assert "not-for-others" in site.get("/gallery/").text
    assert "not-for-others" not in other.get("/gallery/").text
    for path in ("", "/delete", "/preview.png"):
        assert other.get(f"/gallery/models/not-for-others{path}").code == 404
    other.post("/gallery/models/not-for-others/delete", {"uid": "x"})
    assert shared_cluster.exists("sdm", "not-for-others")


def test_pages_load_only_their_own_resources(site):
    """There are no inline scripts or styles, no external resources and no frames."""
    for path in ("/gallery/", "/gallery/load", "/gallery/login", "/gallery/models/nothing"):
        response = site.get(path)
        policy = response.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert response.headers["Referrer-Policy"] == "same-origin"
        assert response.headers["Cache-Control"] == "no-store"
        page = Page(response.text)
        assert page.handlers == []
        assert "style" not in page.tags
        others = [link for link in page.links if not link.startswith(("/gallery/", "#"))]
        assert others == ["/docs"], "the link to the API's page"


def test_static_files_are_cached_by_browsers(site):
    """The URL of a static file changes with its content; other files are not served."""
    for link in re.findall(r'/gallery/static/[^"]+', site.get("/gallery/login").text):
        response = site.get(link)
        assert response.code == 200
        assert "immutable" in response.headers["Cache-Control"]
    assert site.get("/gallery/static/..%2f__init__.py").code == 404
    assert site.get("/gallery/static/nothing.js").code == 404


def test_shared_worker_may_only_connect(site):
    """The policy of the worker's script allows connections to the gateway and nothing else."""
    policy = site.get("/gallery/static/stream.js").headers["Content-Security-Policy"]
    assert policy == "default-src 'none'; connect-src 'self'"


def test_unavailable_api_server_gives_an_error_page(shared_cluster, tmp_path):
    """The login still works, because it needs only the key file."""
    server = credentials(shared_cluster.kubeconfig)[0]
    kubeconfig = tmp_path / "kubeconfig"
    text = shared_cluster.kubeconfig.read_text()
    kubeconfig.write_text(text.replace(server, "https://127.0.0.1:1"))
    backend = replace(shared_cluster.backend, kubeconfig=kubeconfig)
    with serve(replace(shared_cluster, backend=backend), tmp_path) as site:
        site.login()
        response = site.get("/gallery/")
    assert (response.code, response.headers["Retry-After"]) == (503, "5")
    assert "The Kubernetes API server does not answer" in response.text


def test_calls_are_counted_by_the_full_route_pattern(shared_cluster, tmp_path):
    """The metric's label has the mount path and no model name."""
    write_keys(tmp_path / "keys", shared_cluster.namespace)
    with Gateway(GatewaySettings(tmp_path / "keys", shared_cluster.kubeconfig)) as gateway:
        gateway.request("GET", "/gallery/models/sketch")
        labels = {"route": "/gallery/models/{name}", "code": "303"}
        registry = gateway.metrics.registry
        assert registry.get_sample_value("sdmodel_gateway_requests_total", labels) == 1
