"""The gallery's door: login, session, the origin of forms, and the headers of its pages."""

from __future__ import annotations

import re
from dataclasses import replace
from html import unescape

import pytest

from sd_operator.gateway import keys
from sd_operator.gateway.settings import Settings
from tests.support.gateway import gallerymodels
from tests.support.gateway.gallerysite import Page, Site, serve
from tests.support.gateway.gatewayrun import Gateway, write_keys
from tests.support.kube.kubeconfig import credentials

pytestmark = pytest.mark.cluster

LINK = "https://example.com/model.safetensors"
PATHS = ("/", "/load", "/models/sketch", "/models/sketch/delete", "/live", "/?q=x&type=lora")


@pytest.mark.parametrize("path", PATHS)
def test_without_a_session_there_is_only_the_login(stranger, path):
    """From where one comes back to the page that was asked for."""
    answer = stranger.get(f"/gallery{path}")
    if path == "/live":
        assert answer.code == 401
        return
    assert answer.code == 303
    assert answer.location.startswith("/gallery/login?next=/gallery/")
    back = stranger.post(answer.location, {"key": stranger.key})
    assert (back.code, back.location) == (303, f"/gallery{path}")


def test_the_roots_lead_to_the_gallery(stranger):
    """So that an address without a path is enough."""
    assert stranger.get("/").location == "/gallery/"
    assert stranger.get("/gallery").location == "/gallery/"


def test_a_login_sets_a_cookie_that_scripts_and_other_sites_do_not_get(stranger):
    """Not beyond the gallery, and not for ever; over https only where the address is https."""
    cookie = stranger.login().headers["Set-Cookie"]
    for part in ("HttpOnly", "SameSite=lax", "Path=/gallery", "Max-Age=43200"):
        assert part in cookie
    assert stranger.key not in cookie
    assert "Secure" not in cookie, "the address of this test is plain http"


def test_a_cookie_is_for_https_where_nothing_says_otherwise(shared_cluster, tmp_path):
    """And one who comes over plain http is told why it does not work."""
    with serve(shared_cluster, tmp_path, public_url=None) as secure:
        assert "Secure" in secure.login().headers["Set-Cookie"]
        asked = secure.get("/gallery/login", Host="gallery.example.com:8000")
        assert "SD_GATEWAY_PUBLIC_URL" in asked.text
        behind = secure.get("/gallery/login", Host="gallery.example.com", X_Forwarded_Proto="https")
        assert "SD_GATEWAY_PUBLIC_URL" not in behind.text


def test_wrong_and_unknown_keys_are_answered_alike(stranger):
    """Without the key in the answer."""
    answers = [stranger.login(key) for key in ("wrong-key", stranger.key[:-1] + "!")]
    assert {answer.code for answer in answers} == {401}
    assert answers[0].text == answers[1].text
    assert "wrong-key" not in answers[0].text
    assert "This key is not known here." in answers[0].text


def test_no_key_is_logged(stranger, caplog):
    """Neither a wrong nor a right one, and no cookie; who has logged in is."""
    caplog.set_level("DEBUG")
    stranger.login("a-wrong-key")
    stranger.login()
    stranger.get("/gallery/")
    assert "key painter signed in to the gallery" in caplog.text
    for secret in ("a-wrong-key", stranger.key, stranger.cookie.partition("=")[2]):
        assert secret not in caplog.text


def test_failed_logins_are_limited(shared_cluster, tmp_path):
    """By the gateway's own limiter; the right key is let in all the same."""
    with serve(shared_cluster, tmp_path, failures_per_minute=3) as limited:
        codes = [limited.login("wrong").code for _ in range(5)]
        assert codes == [401, 401, 401, 429, 429]
        assert "try again later" in limited.login("wrong").text
        assert limited.login().code == 303


def test_a_session_ends_when_its_key_is_taken_out(shared_cluster, tmp_path):
    """At the next page."""
    with serve(shared_cluster, tmp_path) as own:
        own.login()
        assert own.get("/gallery/").code == 200
        own.keys_file.write_text(keys.new(shared_cluster.namespace, "painter")[1])
        assert own.get("/gallery/").code == 303


def test_logging_out_takes_the_cookie_away(site):
    """The browser drops it."""
    answer = site.post("/gallery/logout", {})
    assert (answer.code, answer.location) == (303, "/gallery/login")
    assert "Max-Age=0" in answer.headers["Set-Cookie"]
    assert site.get("/gallery/logout").code == 405, "a link or an image logs nobody out"


@pytest.mark.parametrize(
    "onward",
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
def test_the_login_leads_nowhere_else(stranger, onward):
    """Whatever the address says."""
    answer = stranger.post(f"/gallery/login?next={onward}", {"key": stranger.key})
    assert answer.location == "/gallery/"


@pytest.mark.parametrize(
    "path", ["/login", "/logout", "/load", "/models/x/delete", "/models/x/reload"]
)
@pytest.mark.parametrize(
    "headers",
    [{"Origin": "https://evil.example.com"}, {"Sec_Fetch_Site": "cross-site"}, {"Origin": "null"}],
)
def test_forms_of_other_sites_are_refused(site, path, headers):
    """Though the browser sends the cookie along."""
    answer = site.post(f"/gallery{path}", {"key": site.key, "metadata.name": "x"}, **headers)
    assert answer.code == 403
    assert "was not sent from a page of the gallery" in unescape(answer.text)


def test_a_key_sees_its_own_namespace_only(shared_cluster, site):
    """Whichever name is asked for."""
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


def test_pages_run_nothing_that_is_not_ours(site):
    """No inline script or style, nothing from elsewhere, no frame."""
    for path in ("/gallery/", "/gallery/load", "/gallery/login", "/gallery/models/nothing"):
        answer = site.get(path)
        policy = answer.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Referrer-Policy"] == "same-origin"
        assert answer.headers["Cache-Control"] == "no-store"
        page = Page(answer.text)
        assert page.handlers == []
        assert "style" not in page.tags
        assert all(link.startswith(("/gallery/", "#")) for link in page.links), page.links


def test_static_files_are_kept_by_browsers(site):
    """Under an address that changes with them."""
    for link in re.findall(r'/gallery/static/[^"]+', site.get("/gallery/login").text):
        answer = site.get(link)
        assert answer.code == 200
        assert "immutable" in answer.headers["Cache-Control"]
    assert site.get("/gallery/static/..%2f__init__.py").code == 404
    assert site.get("/gallery/static/nothing.js").code == 404


def test_without_the_api_server_there_is_a_page_that_says_so(shared_cluster, tmp_path):
    """The login works all the same: it needs the file of keys only."""
    server = credentials(shared_cluster.kubeconfig)[0]
    away = tmp_path / "kubeconfig"
    away.write_text(shared_cluster.kubeconfig.read_text().replace(server, "https://127.0.0.1:1"))
    backend = replace(shared_cluster.backend, kubeconfig=away)
    with serve(replace(shared_cluster, backend=backend), tmp_path) as own:
        own.login()
        answer = own.get("/gallery/")
    assert (answer.code, answer.headers["Retry-After"]) == (503, "5")
    assert "The Kubernetes API server does not answer" in answer.text


def test_calls_are_counted_by_their_whole_pattern(shared_cluster, tmp_path):
    """Not by the part that the gallery's own routes know, nor by a model's name."""
    write_keys(tmp_path / "keys", shared_cluster.namespace)
    with Gateway(Settings(tmp_path / "keys", shared_cluster.kubeconfig)) as gateway:
        gateway.request("GET", "/gallery/models/sketch")
        labels = {"route": "/gallery/models/{name}", "code": "303"}
        registry = gateway.metrics.registry
        assert registry.get_sample_value("sdmodel_gateway_requests_total", labels) == 1
