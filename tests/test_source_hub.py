"""Hub repos: which files are downloaded, from what commit, and what a token is sent to."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from conversions import load_request
from fakefiles import Faults
from fakehub import FakeHub, blob_id
from modelindex import INDEX

from sd_api.load import Progress
from sd_api.reasons import Reason
from sd_api.spec import Revision
from sd_loader.errors import LoaderError
from sd_loader.settings import Settings
from sd_loader.source import Fetched, fetch
from sd_loader.source.answers import Retries
from sd_loader.source.hub import fetch_repo
from sd_loader.source.locate import repo_id_of
from sd_loader.source.pipelines import Pipeline
from sd_loader.source.repo_files import RepoFile, choose_files

QUICK = Retries(delays=(0, 0), longest_wait=0.5, sleep=lambda _seconds: None)
TOKEN = "hf_s3cret"
REPO = "org/model"
UNET = "unet/diffusion_pytorch_model.safetensors"
NEEDED = {
    "model_index.json": json.dumps(
        INDEX
        | {
            "_diffusers_version": "0.6.0",
            "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        }
    ),
    "scheduler/scheduler_config.json": "{}",
    "text_encoder/config.json": "{}",
    "text_encoder/model.safetensors": "t" * 30_000,
    "tokenizer/merges.txt": "#version: 0.2\n",
    "tokenizer/vocab.json": "{}",
    "unet/config.json": "{}",
    UNET: "u" * 200_000,
    "vae/config.json": "{}",
    "vae/diffusion_pytorch_model.safetensors": "v" * 50_000,
}
UNNEEDED = (
    ".gitattributes",
    "README.md",
    "handler.py",
    "model.safetensors",
    "v1-5-pruned.ckpt",
    "safety_checker/config.json",
    "safety_checker/model.safetensors",
    "text_encoder/flax_model.msgpack",
    "text_encoder/pytorch_model.bin",
    "unet/diffusion_pytorch_model.bin",
    "unet/diffusion_pytorch_model.fp16.safetensors",
    "unet/diffusion_pytorch_model.non_ema.safetensors",
    "unet/model.onnx",
    "unet/openvino_model.xml",
    "vae_decoder/model.onnx",
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A repo with everything that real ones have, some of it needed."""
    folder = tmp_path / "repo"
    for name, content in NEEDED.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    for name in UNNEEDED:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("not needed")
    return folder


@pytest.fixture
def hub(folder: Path) -> Iterator[FakeHub]:
    """A Hub with that repo, whose LFS files come from another origin."""
    with FakeHub(separate_cdn=True) as hub:
        hub.add_repo(REPO, folder)
        yield hub


@pytest.fixture
def settings(hub: FakeHub, tmp_path: Path) -> Settings:
    """Settings with the fake Hub as endpoint; its CDN is an allowed host."""
    return Settings(
        hub_endpoint=hub.url,
        allowed_hosts=frozenset({hub.cdn_host}),
        credentials_dir=tmp_path / "secret",
    )


@pytest.fixture
def into(tmp_path: Path) -> Path:
    """An empty source folder."""
    folder = tmp_path / "source"
    folder.mkdir()
    return folder


def load(settings: Settings, into: Path, **fields: object) -> Fetched:
    """Fetch, with retries that do not wait."""
    request = load_request(model_type="huggingface", **{"url": REPO, **fields})
    return fetch_repo(request, settings, into, lambda _progress: None, retries=QUICK)


def refusal(settings: Settings, into: Path, **fields: object) -> LoaderError:
    """The error of a fetch that must fail."""
    with pytest.raises(LoaderError) as caught:
        load(settings, into, **fields)
    return caught.value


def secret(settings: Settings, token: str = TOKEN, host: str | None = None) -> None:
    """Mount a credentials Secret."""
    settings.credentials_dir.mkdir()
    (settings.credentials_dir / "token").write_text(token)
    if host is not None:
        (settings.credentials_dir / "host").write_text(host)


def downloaded(into: Path) -> dict[str, str]:
    """The downloaded files without the notes beside them."""
    return {
        path.relative_to(into / "repo").as_posix(): path.read_text()
        for path in sorted((into / "repo").rglob("*"))
        if path.is_file() and path.suffix not in (".note", ".part")
    }


def test_what_is_needed_is_downloaded_and_nothing_else(hub, settings, into):
    """One set of weights, the configs and the tokenizer; pinned to the commit."""
    seen: list[Progress] = []
    request = load_request(model_type="huggingface", url=REPO)
    fetched = fetch(request, settings, into, seen.append)
    assert downloaded(into) == NEEDED
    size = sum(len(content) for content in NEEDED.values())
    assert (fetched.kind, fetched.path) == ("repo", "repo")
    assert fetched.source.commit == hub.repos[REPO].commit()
    assert fetched.source.size_bytes == size
    assert (seen[-1].bytes_done, seen[-1].bytes_total) == (size, size)
    assert [one.bytes_done for one in seen] == sorted(one.bytes_done for one in seen)
    assert hub.bytes_served == size
    asked = [item.path for item in hub.requests if "/resolve/" in item.path]
    assert all(f"/resolve/{fetched.source.commit}/" in path for path in asked)
    assert {item.path.split("/")[1] for item in hub.requests} == {"api", "org", "cdn"}
    assert all(item.headers["user-agent"].startswith("sd-loader/") for item in hub.requests)


def test_a_second_attempt_downloads_what_is_missing(hub, settings, into):
    """Also in the middle of a file; and a finished repo costs one question."""
    hub.faults[f"{REPO}/{UNET}"] = Faults(cut_at=150_000, cuts=99)
    give_up = Retries(delays=())
    request = load_request(model_type="huggingface", url=REPO)
    with pytest.raises(LoaderError):
        fetch_repo(request, settings, into, lambda _: None, retries=give_up)
    hub.faults.clear()
    load(settings, into)
    assert hub.bytes_served == sum(len(content) for content in NEEDED.values())
    hub.forget()
    load(settings, into)
    assert [item.path for item in hub.requests] == [f"/api/models/{REPO}/revision/main"]


def test_a_moved_branch_is_downloaded_anew(hub, settings, into, folder):
    """Files of two commits are never mixed, not even those that the second lacks."""
    load(settings, into)
    (folder / UNET).rename(folder / UNET.replace(".safetensors", ".fp16.safetensors"))
    (folder / "vae/config.json").write_text("[]")
    fetched = load(settings, into)
    assert fetched.source.commit == hub.repos[REPO].commit()
    files = downloaded(into)
    assert files["vae/config.json"] == "[]"
    assert UNET not in files
    assert len(files) == len(NEEDED)


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        pytest.param({}, {"unet": "diffusion_pytorch_model.safetensors"}, id="as it is"),
        pytest.param(
            {"revision": "fp16"},
            {"unet": "diffusion_pytorch_model.fp16.safetensors", "vae": "diffusion_pytorch_model"},
            id="the fp16 variant",
        ),
        pytest.param({"revision": "fp32"}, {"unet": "diffusion_pytorch_model.safe"}, id="plain"),
    ],
)
def test_the_variant_follows_the_precision(settings, into, fields, names):
    """Per component: the variant where there is one, else the plain file."""
    load(settings, into, **fields)
    for component, start in names.items():
        weights = [name for name in downloaded(into) if name.startswith(f"{component}/diffusion")]
        assert len(weights) == 1
        assert weights[0].startswith(f"{component}/{start}")


def files(*names: str) -> dict[str, RepoFile]:
    """A listing of a repo with a UNet only."""
    return {name: RepoFile(name, 1) for name in ("model_index.json", "unet/config.json", *names)}


@pytest.mark.parametrize(
    ("names", "revision", "chosen"),
    [
        pytest.param(["bin", "safetensors"], None, ["safetensors"], id="safetensors first"),
        pytest.param(["bin"], None, ["bin"], id="pickle if need be"),
        pytest.param(["fp16.safetensors", "bin"], None, ["fp16.safetensors"], id="one variant"),
        pytest.param(["fp16.bin", "safetensors"], "fp16", ["safetensors"], id="format first"),
        pytest.param(
            ["bf16.safetensors", "fp16.safetensors", "safetensors"],
            "bf16",
            ["bf16.safetensors"],
            id="bf16",
        ),
        pytest.param(
            ["fp16.safetensors", "safetensors"], "bf16", ["safetensors"], id="bf16 of plain"
        ),
        pytest.param(
            ["-00001-of-00002.safetensors", "-00002-of-00002.safetensors", "bin"],
            None,
            ["-00001-of-00002.safetensors", "-00002-of-00002.safetensors"],
            id="shards",
        ),
        pytest.param(["-00001-of-00002.safetensors", "bin"], None, ["bin"], id="incomplete shards"),
        pytest.param(
            ["fp16-00001-of-00001.safetensors", "safetensors"],
            "fp16",
            ["fp16-00001-of-00001.safetensors"],
            id="shards of a variant",
        ),
        pytest.param(
            ["-00001-of-00001.fp16.safetensors", "safetensors"],
            "fp16",
            ["-00001-of-00001.fp16.safetensors"],
            id="shards of a variant, as named once",
        ),
    ],
)
def test_one_set_of_weights_is_chosen(names, revision, chosen):
    """Of all that a component has."""

    def full(name: str) -> str:
        dot = "" if name.startswith("-") else "."
        return f"unet/diffusion_pytorch_model{dot}{name}"

    pipeline = Pipeline("StableDiffusionPipeline", {"unet": "UNet2DConditionModel"}, {})
    listing = files(*(full(name) for name in names))
    found = choose_files(listing, pipeline, Revision(revision) if revision else None)
    assert [file.path for file in found[2:]] == [full(name) for name in chosen]


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("org/name", "org/name"),
        ("https://huggingface.co/org/name", "org/name"),
        ("https://www.huggingface.co/org/name/", "org/name"),
        ("https://hf.co/org/name", "org/name"),
        ("https://mirror.example/hub/org/name", "org/name"),
        ("https://huggingface.co/org/name/tree/main", None),
        ("https://huggingface.co/org", None),
        ("https://elsewhere.example/org/name", None),
        ("https://huggingface.co.evil.example/org/name", None),
        ("name", None),
        ("../../etc", None),
        ("org/name/more", None),
    ],
)
def test_repos_are_named_by_id_or_page(url, expected):
    """Of the Hub, or of the mirror that the settings name."""
    if expected is None:
        with pytest.raises(LoaderError) as caught:
            repo_id_of(url, "https://mirror.example/hub")
        assert caught.value.reason is Reason.INVALID_SPEC
    else:
        assert repo_id_of(url, "https://mirror.example/hub") == expected


@pytest.mark.parametrize("url", ["../name", "org/..", "org/-name", "org/name.git"])
def test_ids_that_no_repo_can_have_are_refused(hub, settings, into, url):
    """Before anything is asked."""
    assert refusal(settings, into, url=url).reason is Reason.INVALID_SPEC
    assert hub.requests == []


def test_a_git_revision_is_resolved_once(hub, settings, into):
    """A branch with a slash too; an unknown one is named."""
    hub.repos[REPO] = replace(hub.repos[REPO], branches=("main", "refs/pr/1"))
    assert load(settings, into, git_revision="refs/pr/1").source.commit
    error = refusal(settings, into, git_revision="nowhere")
    assert error.reason is Reason.SOURCE_NOT_FOUND
    assert "nowhere" in error.message


@pytest.mark.parametrize(
    ("repo", "token", "reason"),
    [
        pytest.param({"gated": True}, None, Reason.ACCESS_DENIED, id="gated, no token"),
        pytest.param({"gated": True}, "other", Reason.ACCESS_DENIED, id="gated, other account"),
        pytest.param({"gated": True}, TOKEN, None, id="gated, granted"),
        pytest.param({"private": True}, None, Reason.SOURCE_NOT_FOUND, id="private, no token"),
        pytest.param({"private": True}, "other", Reason.SOURCE_NOT_FOUND, id="private, other"),
        pytest.param({"private": True}, TOKEN, None, id="private, granted"),
        pytest.param({}, "bad", Reason.AUTHENTICATION_REQUIRED, id="token not valid"),
    ],
)
def test_access_is_told_apart(hub, settings, into, folder, tmp_path, repo, token, reason):
    """What to do differs: accept a licence, give a token, give another."""
    hub.add_repo(REPO, folder, token=TOKEN, **repo)
    hub.add_repo("other/repo", tmp_path, token="other")
    if token is not None:
        secret(settings, token)
    if reason is None:
        load(settings, into, credentials=True)
        return
    error = refusal(settings, into, credentials=token is not None)
    assert error.reason is reason
    assert token is None or token not in error.message


def test_the_token_stays_with_the_hub(hub, settings, into, folder):
    """Every request to the Hub has it, none to the CDN."""
    hub.add_repo(REPO, folder, token=TOKEN, private=True)
    secret(settings)
    load(settings, into, credentials=True)
    hub_port = int(hub.host.rpartition(":")[2])
    for item in hub.requests:
        expected = f"Bearer {TOKEN}" if item.port == hub_port else None
        assert item.headers.get("authorization") == expected
    assert {item.port for item in hub.requests} > {hub_port}


def test_no_token_comes_from_the_home_folder(hub, settings, into, tmp_path, monkeypatch):
    """One that lies there by chance is nobody's choice."""
    (tmp_path / "token").write_text("hf_from_home")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setenv("HF_TOKEN", "hf_from_environment")
    load(settings, into)
    assert all("authorization" not in item.headers for item in hub.requests)


@pytest.mark.parametrize("host", ["huggingface.co", "127.0.0.1"])
def test_a_token_for_another_host_is_not_sent(hub, settings, into, host):
    """The Hub that is called is the mirror, not the one in the url."""
    secret(settings, host=host)
    error = refusal(settings, into, credentials=True, url=f"https://huggingface.co/{REPO}")
    assert error.reason is Reason.CREDENTIALS_HOST_MISMATCH
    assert hub.requests == []


@pytest.mark.parametrize(
    ("faults", "reason"),
    [
        pytest.param(Faults(status=429), Reason.RATE_LIMITED, id="429"),
        pytest.param(
            Faults(status=429, headers={"Retry-After": "9999"}), Reason.RATE_LIMITED, id="429 long"
        ),
        pytest.param(Faults(status=500), Reason.SOURCE_UNREACHABLE, id="500"),
        pytest.param(Faults(status=503, fails=1), None, id="503 once"),
        pytest.param(Faults(status=200, redirect="/x"), Reason.SOURCE_NOT_FOUND, id="nowhere"),
        pytest.param(
            Faults(redirect="https://10.0.0.1/"), Reason.ADDRESS_REFUSED, id="private address"
        ),
    ],
)
def test_the_hubs_failures_have_their_reasons(hub, settings, into, faults, reason):
    """The API's, with retries that end."""
    hub.api_faults = faults
    if reason is None:
        load(settings, into)
    else:
        assert refusal(settings, into).reason is reason


@pytest.mark.parametrize(
    ("faults", "reason"),
    [
        pytest.param(Faults(cut_at=90_000), None, id="cut"),
        pytest.param(Faults(cut_at=90_000, reset=True), None, id="reset"),
        pytest.param(Faults(status=503, fails=1), None, id="503 once"),
        pytest.param(Faults(status=403), Reason.ACCESS_DENIED, id="403"),
        pytest.param(Faults(status=404), Reason.SOURCE_NOT_FOUND, id="404"),
        pytest.param(Faults(body=b"x" * 200_000), Reason.DIGEST_MISMATCH, id="other bytes"),
        pytest.param(Faults(body=b"u" * 199_999), Reason.DIGEST_MISMATCH, id="fewer bytes"),
        pytest.param(Faults(endless=True), Reason.DIGEST_MISMATCH, id="endless"),
        pytest.param(Faults(body=b"u" * 9, chunked=True), Reason.DIGEST_MISMATCH, id="short"),
    ],
)
def test_a_files_failures_have_their_reasons(hub, settings, into, faults, reason):
    """Each file is checked against the Hub's digest, and wrong bytes do not stay."""
    hub.faults[f"{REPO}/{UNET}"] = faults
    if reason is None:
        load(settings, into)
        assert downloaded(into) == NEEDED
        return
    error = refusal(settings, into)
    assert error.reason is reason
    assert not (into / "repo" / UNET).exists()
    if reason is Reason.DIGEST_MISMATCH:
        assert not (into / "repo" / f"{UNET}.part").exists()


def test_small_files_are_checked_too(hub, settings, into):
    """By their git blob ids, which is all that the Hub tells of them."""
    hub.faults[f"{REPO}/unet/config.json"] = Faults(body=b"[]")
    error = refusal(settings, into)
    assert error.reason is Reason.DIGEST_MISMATCH
    assert blob_id(b"[]") in error.message
    hub.faults.clear()
    load(settings, into)


def test_the_size_limit_holds_for_the_sum(hub, settings, into):
    """Before a weight is downloaded."""
    error = refusal(replace(settings, max_bytes=250_000), into)
    assert error.reason is Reason.TOO_LARGE
    assert hub.bytes_served < 10_000


def test_what_will_not_fit_is_refused_before_the_weights(hub, settings, into, monkeypatch):
    """The free space is asked for once the sum is known."""
    import os

    real = os.statvfs(into)
    free = os.statvfs_result((1, 1, *real[2:3], 1000, 1000, *real[5:]))
    monkeypatch.setattr("sd_loader.source.part.os.statvfs", lambda _folder: free)
    assert refusal(settings, into).reason is Reason.INSUFFICIENT_STORAGE
    assert hub.bytes_served < 10_000


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "/etc/passwd", "unet\\..\\x", "a//b", "unet/../../x", "."]
)
def test_unsafe_file_names_refuse_the_repo(hub, settings, into, name):
    """What lists the files is not trusted."""
    hub.repos[REPO] = replace(hub.repos[REPO], extra_names=(name,))
    assert refusal(settings, into).reason is Reason.UNSAFE_MODEL
    assert list(into.iterdir()) == []


@pytest.mark.parametrize(
    ("names", "reason", "words"),
    [
        pytest.param(
            ["model_index.json", "model.safetensors", "v1-5-pruned.ckpt"],
            Reason.UNSUPPORTED_FORMAT,
            "handler.py",
            id="no index",
        ),
        pytest.param(["unet/config.json"], Reason.UNSUPPORTED_FORMAT, "unet/con", id="no config"),
        pytest.param(
            [UNET, "unet/diffusion_pytorch_model.fp16.safetensors"],
            None,
            "",
            id="pickle instead",
        ),
        pytest.param(
            [
                UNET,
                "unet/diffusion_pytorch_model.bin",
                "unet/diffusion_pytorch_model.fp16.safetensors",
            ],
            Reason.UNSUPPORTED_FORMAT,
            "unet/model.onnx",
            id="no weights that are read",
        ),
    ],
)
def test_incomplete_repos_are_refused_by_what_they_hold(
    settings, into, folder, names, reason, words
):
    """A repo of another kind is named by its files."""
    for name in names:
        (folder / name).unlink()
    if reason is None:
        load(settings, into)
        return
    error = refusal(settings, into)
    assert (error.reason, words in error.message) == (reason, True), error.message


def test_a_repo_with_code_is_refused_before_its_weights(hub, settings, into, folder):
    """The pipeline's classes are checked first."""
    index = json.loads(NEEDED["model_index.json"]) | {"unet": ["my_unet", "MyUNet"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    assert refusal(settings, into).reason is Reason.UNSAFE_MODEL
    assert hub.bytes_served < 10_000


def test_from_safetensors_refuses_a_repo_of_pickles(hub, settings, into, folder):
    """Before they are downloaded."""
    for name in (UNET, "unet/diffusion_pytorch_model.fp16.safetensors"):
        (folder / name).unlink()
    assert refusal(settings, into, from_safetensors=True).reason is Reason.UNSAFE_MODEL
    assert hub.bytes_served < 10_000


def test_a_digest_for_a_repo_is_refused(hub, settings, into):
    """Rather than ignored: a repo is pinned by its commit."""
    error = refusal(settings, into, sha256="0" * 64)
    assert (error.reason, "gitRevision" in error.message) == (Reason.INVALID_SPEC, True)
    assert hub.requests == []


def test_a_hub_that_is_none_is_named(settings, into, hub):
    """A page where the API should be."""
    hub.links[f"/api/models/{REPO}/revision/main"] = (b"<html>", Faults())
    assert refusal(settings, into).reason is Reason.SOURCE_UNREACHABLE
    hub.links[f"/api/models/{REPO}/revision/main"] = (b'{"id": "x"}', Faults())
    assert refusal(settings, into).reason is Reason.SOURCE_UNREACHABLE


def test_an_unreachable_hub_is_named(settings, into):
    """After a few tries."""
    gone = replace(settings, hub_endpoint="http://127.0.0.1:1")
    error = refusal(gone, into)
    assert error.reason is Reason.SOURCE_UNREACHABLE
    assert "127.0.0.1:1" in error.message


def test_the_fake_hub_satisfies_the_real_client(hub, tmp_path):
    """So that what is tested against it means something."""
    from huggingface_hub import set_client_factory, snapshot_download

    from sd_loader.source.transport import make_client

    allowed = frozenset({hub.host, hub.cdn_host})
    set_client_factory(lambda: make_client(Settings(allowed_hosts=allowed)))
    folder = snapshot_download(
        REPO,
        endpoint=hub.url,
        local_dir=tmp_path / "snapshot",
        cache_dir=tmp_path / "cache",
        token=False,
        allow_patterns=["unet/*"],
    )
    assert (Path(folder) / UNET).read_text() == NEEDED[UNET]
