"""Single files of a Hub repo: which file a repo id means, and how it is fetched and checked."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

from devkit.fakefiles import Faults
from sd_api.choices import ModelType, Revision
from sd_api.reasons import Reason
from sd_loader.diffusers_repo.component_files import RepoFile, choose_embedding_of_sdxl, choose_file
from sd_loader.errors import LoaderError
from sd_loader.handover import Fetched
from sd_loader.settings import Settings
from tests.support.loader.fetches import TOKEN, fetch
from tests.support.loader.hubfetches import REPO
from tests.support.loader.loadercli import safetensors_bytes
from tests.support.models.conversions import load_request

BODY = safetensors_bytes({"layer.weight": (64, 64)})
DIGEST = hashlib.sha256(BODY).hexdigest()
NAME = "v1/model.safetensors"
TYPES = ("custom_ckpt", "huggingface", "lora", "embeddings", "controlnet", "vae", "api_trained")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A repo with a model and a text file."""
    folder = tmp_path / "repo"
    (folder / "v1").mkdir(parents=True)
    (folder / NAME).write_bytes(BODY)
    (folder / "other.txt").write_text("words")
    return folder


def load(settings: Settings, into: Path, url: str, **fields: object) -> Fetched:
    """Fetch the url."""
    request = load_request(**{"model_type": "custom_ckpt", "url": url, **fields})
    return fetch(request, settings, into, lambda _progress: None)


def refusal(settings: Settings, into: Path, url: str, **fields: object) -> LoaderError:
    """Return the error of a fetch that must fail. The fetch leaves no complete file."""
    with pytest.raises(LoaderError) as caught:
        load(settings, into, url, **fields)
    assert not (into / "download").exists()
    return caught.value


def link(base: str, word: str = "resolve", revision: str = "main", name: str = NAME) -> str:
    """A link to a file of the repo."""
    return f"{base}/{REPO}/{word}/{revision}/{name}"


LINKS = [
    (base, word, model_type)
    for base in ("https://huggingface.co", "mirror")
    for word in ("resolve", "blob")
    for model_type in TYPES
]


def is_usual(base: str, word: str, model_type: str) -> bool:
    """Whether `make test` runs this row: each model type once, and each base with each word."""
    return model_type == "custom_ckpt" or (base, word) == ("mirror", "resolve")


@pytest.mark.parametrize(
    ("base", "word", "model_type"),
    [pytest.param(*row, marks=() if is_usual(*row) else pytest.mark.slow) for row in LINKS],
)
def test_link_to_a_hub_file_fetches_that_file(hub, settings, into, base, word, model_type):
    """The file is pinned to its commit and checked.

    A link to the public Hub is fetched from the mirror.
    """
    base = hub.url if base == "mirror" else base
    fetched = load(settings, into, f"{link(base, word)}?download=true", model_type=model_type)
    assert (into / fetched.path).read_bytes() == BODY
    assert fetched.kind == "file"
    assert fetched.source.commit == hub.repos[REPO].commit()
    assert (fetched.source.sha256, fetched.source.size_bytes) == (DIGEST, len(BODY))
    assert fetched.source.format == "safetensors"
    [requested] = [item.path for item in hub.requests if "/resolve/" in item.path]
    assert requested == f"/{REPO}/resolve/{fetched.source.commit}/{NAME}"


@pytest.mark.parametrize(
    "url",
    [
        f"hf://{REPO}/{NAME}",
        f"hf://{REPO}@main/{NAME}",
        f"http://huggingface.co/{REPO}/blob/main/{NAME}",
        f"hf.co/{REPO}/raw/main/{NAME}#L1",
    ],
)
def test_file_may_be_given_in_every_form(hub, settings, into, url):
    """Every form is fetched through the API, so the file is pinned and checked."""
    fetched = load(settings, into, url)
    assert fetched.source.commit == hub.repos[REPO].commit()
    assert fetched.source.sha256 == DIGEST


@pytest.mark.parametrize("revision", ["refs/pr/1", "refs%2Fpr%2F1", "my%2Fbranch"])
def test_revision_in_a_link_may_contain_slashes(hub, settings, into, revision):
    """The Hub's own links contain such revisions."""
    hub.repos[REPO] = replace(hub.repos[REPO], branches=("main", "refs/pr/1", "my/branch"))
    assert load(settings, into, link(hub.url, revision=revision)).source.sha256 == DIGEST


@pytest.mark.parametrize(
    ("url", "fields", "reason", "words"),
    [
        pytest.param(link("", name="x.ckpt"), {}, Reason.SOURCE_NOT_FOUND, NAME, id="no file"),
        pytest.param(
            link("", name="../x.ckpt"), {}, Reason.SOURCE_NOT_FOUND, "no file ../x", id="traversal"
        ),
        pytest.param(link("", revision="v9"), {}, Reason.SOURCE_NOT_FOUND, "v9", id="no revision"),
        pytest.param(
            "/org/none/resolve/main/x",
            {},
            Reason.SOURCE_NOT_FOUND,
            "does not exist or is private",
            id="no repo",
        ),
        pytest.param(
            link(""), {"git_revision": "v2"}, Reason.INVALID_SPEC, "links to main", id="two"
        ),
        pytest.param(
            link(""), {"sha256": "0" * 64}, Reason.DIGEST_MISMATCH, DIGEST, id="another digest"
        ),
        pytest.param(
            link("", name="other.txt"), {}, Reason.NOT_A_MODEL, "plain text", id="no model"
        ),
        pytest.param(
            link("", name="other.txt"), {"sha256": "0" * 64}, Reason.NOT_A_MODEL, "", id="no LFS"
        ),
    ],
)
def test_invalid_link_is_explained(hub, settings, into, url, fields, reason, words):
    """The message names the problem. If the repo lacks the file, it lists the repo's files."""
    error = refusal(settings, into, hub.url + url, **fields)
    assert (error.reason, words in error.message) == (reason, True), error.message


def test_link_and_spec_may_give_the_same_revision(hub, settings, into):
    """The spec may also give the file's digest."""
    fetched = load(settings, into, link(hub.url), git_revision="main", sha256=DIGEST)
    assert fetched.source.sha256 == DIGEST


def test_hub_token_needs_no_host_key(hub, settings, into, folder):
    """The Hub is the default host of the token. The CDN never receives it."""
    hub.add_repo(REPO, folder, token=TOKEN, private=True)
    assert refusal(settings, into, link(hub.url)).reason is Reason.SOURCE_NOT_FOUND
    settings.credentials_dir.mkdir()
    (settings.credentials_dir / "token").write_text(TOKEN)
    hub.forget()
    load(settings, into, link(hub.url), credentials=True)
    own = int(hub.host.rpartition(":")[2])
    for item in hub.requests:
        assert item.headers.get("authorization") == (
            f"Bearer {TOKEN}" if item.port == own else None
        )


@pytest.mark.parametrize(
    ("account", "reason"),
    [(None, Reason.AUTHENTICATION_REQUIRED), ("other", Reason.ACCESS_DENIED)],
)
def test_gated_file_is_denied_without_access(hub, settings, into, folder, account, reason):
    """The message says that the repo is gated."""
    hub.add_repo(REPO, folder, token=TOKEN, gated=True)
    hub.add_repo("other/repo", folder, token="other")
    if account:
        settings.credentials_dir.mkdir()
        (settings.credentials_dir / "token").write_text(account)
    error = refusal(settings, into, link(hub.url), credentials=account is not None)
    assert (error.reason, "gated" in error.message) == (reason, True)


@pytest.mark.parametrize(
    ("faults", "reason"),
    [
        pytest.param(Faults(flips=1), None, id="one flipped bit, once"),
        pytest.param(Faults(flips=2), Reason.DIGEST_MISMATCH, id="one flipped bit, twice"),
        pytest.param(Faults(cut_at=5000), None, id="cut"),
        pytest.param(Faults(body=BODY[:-1]), Reason.DIGEST_MISMATCH, id="too short"),
        pytest.param(Faults(cut_at=5000, flips=1), None, id="flipped and cut"),
        pytest.param(Faults(body=b"<html>" * 9), Reason.DIGEST_MISMATCH, id="a page"),
        pytest.param(
            Faults(status=429, headers={"Retry-After": "99"}), Reason.RATE_LIMITED, id="429"
        ),
    ],
)
def test_download_failures_have_their_reasons(hub, settings, into, faults, reason):
    """A file with a wrong digest is downloaded once more."""
    hub.faults[f"{REPO}/{NAME}"] = faults
    if reason is None:
        load(settings, into, link(hub.url))
        assert (into / "download").read_bytes() == BODY
    else:
        assert refusal(settings, into, link(hub.url)).reason is reason
    assert sum(hub.served.values()) <= 2 * len(BODY) + 5000


@pytest.mark.parametrize("flips", [1, 2])
def test_small_file_with_a_wrong_blob_id_is_downloaded_once_more(
    hub, settings, into, folder, flips
):
    """The Hub gives only a git blob id for such a file."""
    (folder / "embedding.dat").write_bytes(BODY)
    hub.faults[f"{REPO}/embedding.dat"] = Faults(flips=flips)
    url = link(hub.url, name="embedding.dat")
    if flips == 1:
        assert load(settings, into, url).source.sha256 == DIGEST
    else:
        assert refusal(settings, into, url).reason in (Reason.DIGEST_MISMATCH, Reason.NOT_A_MODEL)


@pytest.mark.parametrize("url", [REPO, "link"])
def test_renamed_repo_is_found_under_its_new_name(hub, settings, into, folder, url):
    """A warning names the new name, because another repo may take the old one."""
    (folder / "model.safetensors").write_bytes(BODY)
    hub.renamed["old/name"] = REPO
    url = "old/name" if url == REPO else f"{hub.url}/old/name/resolve/main/model.safetensors"
    fetched = load(settings, into, url)
    assert fetched.source.sha256 == DIGEST
    assert fetched.warnings == ("the repo old/name is now called org/model",)
    [requested] = [item.path for item in hub.requests if "/resolve/" in item.path]
    assert requested.startswith(f"/{REPO}/")


def test_token_follows_a_renamed_repo(hub, settings, into, folder):
    """The new name is on the same host, so the token is sent."""
    hub.add_repo(REPO, folder, token=TOKEN, private=True)
    hub.renamed["old/name"] = REPO
    settings.credentials_dir.mkdir()
    (settings.credentials_dir / "token").write_text(TOKEN)
    url = f"{hub.url}/old/name/resolve/main/{NAME}"
    assert load(settings, into, url, credentials=True).source.sha256 == DIGEST


def test_hub_redirect_to_a_private_address_is_refused(hub, settings, into):
    """The address guard also checks redirects of the Hub's API."""
    hub.api_faults = Faults(redirect="https://10.0.0.1/api/models/org/model")
    error = refusal(settings, into, link(hub.url))
    assert error.reason is Reason.ADDRESS_REFUSED


@pytest.mark.parametrize(
    ("model_type", "names", "revision", "chosen"),
    [
        ("huggingface", ["a.safetensors", "README.md"], None, "a.safetensors"),
        ("huggingface", ["a.ckpt"], None, "a.ckpt"),
        ("huggingface", ["a.ckpt", "b.safetensors"], None, "b.safetensors"),
        ("huggingface", ["a.safetensors", "a-fp16.safetensors"], None, "a.safetensors"),
        ("huggingface", ["a.safetensors", "a-fp16.safetensors"], "fp16", "a-fp16.safetensors"),
        ("huggingface", ["a.safetensors", "a-fp16.safetensors"], "bf16", "a.safetensors"),
        ("huggingface", ["a_fp32.safetensors", "a_fp16.safetensors"], "fp32", "a_fp32.safetensors"),
        ("huggingface", ["a_fp32.safetensors", "a_fp16.safetensors"], None, Reason.INVALID_SPEC),
        ("huggingface", ["a.safetensors", "a-fp16.ckpt"], "fp16", "a.safetensors"),
        ("huggingface", ["a.safetensors", "a-inpainting.safetensors"], None, Reason.INVALID_SPEC),
        ("huggingface", ["v1-pruned.ckpt", "v1-pruned-emaonly.ckpt"], None, Reason.INVALID_SPEC),
        ("huggingface", ["unet/a.safetensors"], None, Reason.UNSUPPORTED_FORMAT),
        ("huggingface", ["config.json", "model.safetensors"], None, Reason.UNSUPPORTED_FORMAT),
        ("huggingface", ["model.safetensors"], None, "model.safetensors"),
        ("huggingface", ["a.pt"], None, Reason.UNSUPPORTED_FORMAT),
        ("custom_ckpt", ["model_index.json"], None, Reason.UNSUPPORTED_FORMAT),
        ("custom_ckpt", ["model_index.json", "a.ckpt"], None, "a.ckpt"),
        ("lora", ["pytorch_lora_weights.safetensors", "x.safetensors"], None, 0),
        ("lora", ["x.safetensors", "pytorch_lora_weights.bin"], None, "x.safetensors"),
        ("lora", ["pytorch_lora_weights.bin"], None, "pytorch_lora_weights.bin"),
        ("lora", ["x.safetensors", "y.safetensors"], None, Reason.INVALID_SPEC),
        ("lora", ["x.pt"], None, "x.pt"),
        ("lora", ["checkpoint-500/pytorch_lora_weights.safetensors"], None, None),
        ("embeddings", ["learned_embeds.safetensors", "x.safetensors"], None, 0),
        ("embeddings", ["learned_embeds.bin", "learned_embeds-steps-500.bin"], None, 0),
        ("embeddings", ["learned_embeds.bin", "learned_embeds_2.bin"], None, None),
        ("embeddings", ["style.pt"], None, "style.pt"),
        ("embeddings", ["a.pt", "b.pt"], None, Reason.INVALID_SPEC),
        ("vae", ["v.ckpt", "v.safetensors"], None, "v.safetensors"),
        ("vae", ["v.vae.pt"], None, "v.vae.pt"),
        ("controlnet", ["c.pth", "c.yaml"], None, "c.pth"),
        ("controlnet", ["a.pth", "b.pth"], None, Reason.INVALID_SPEC),
    ],
)
def test_repo_id_means_one_file_or_is_refused(model_type, names, revision, chosen):
    """The loader does not guess between variants that differ in more than precision."""
    files = {name: RepoFile(name, 1) for name in names}
    wanted = Revision(revision) if revision else None
    if isinstance(chosen, int):
        chosen = names[chosen]
    if isinstance(chosen, str) and not isinstance(chosen, Reason):
        assert choose_file(files, ModelType(model_type), wanted).path == chosen
        return
    with pytest.raises(LoaderError) as caught:
        choose_file(files, ModelType(model_type), wanted)
    assert caught.value.reason is (chosen or Reason.UNSUPPORTED_FORMAT)
    if chosen is Reason.INVALID_SPEC:
        assert all(name in caught.value.message for name in names)
        assert "link to one" in caught.value.message


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["learned_embeds.bin", "learned_embeds_2.bin", "x.bin"], [0, 1]),
        (["learned_embeds_2.safetensors", "learned_embeds.safetensors"], [1, 0]),
        (["learned_embeds.bin", "learned_embeds_2.bin", "learned_embeds.safetensors"], [2, 1]),
        (["learned_embeds.bin", "learned_embeds-steps-500.bin"], []),
        (["learned_embeds_2.bin"], []),
        (["x/learned_embeds.bin", "x/learned_embeds_2.bin"], []),
    ],
)
def test_embedding_of_sdxl_may_have_two_files(names, chosen):
    """The second file is that of the second text encoder."""
    files = {name: RepoFile(name, 1) for name in names}
    found = choose_embedding_of_sdxl(files)
    assert [file.path for file in found] == [names[index] for index in chosen]


def test_half_of_an_embedding_in_two_files_is_refused():
    """The message names both files."""
    with pytest.raises(LoaderError, match=r"learned_embeds and learned_embeds_2.*at the repo's"):
        choose_file({"learned_embeds_2.bin": RepoFile("x", 1)}, ModelType.EMBEDDINGS, None)


@pytest.mark.parametrize(
    "other",
    ["samples/learned_embeds_2.png", "backup/learned_embeds_2.bin", "learned_embeds_2.png"],
)
def test_embedding_is_whole_beside_a_file_that_is_not_its_second_half(other):
    """Only weights at the repo's root can be the second half."""
    files = {name: RepoFile(name, 1) for name in ("learned_embeds.bin", other)}
    assert choose_file(files, ModelType.EMBEDDINGS, None).path == "learned_embeds.bin"


def test_from_safetensors_refuses_an_embedding_with_one_pickled_file():
    """The first file alone would be an embedding of another family, so the loader refuses both."""
    names = ("learned_embeds.safetensors", "learned_embeds_2.bin")
    with pytest.raises(LoaderError, match="fromSafetensors") as caught:
        choose_embedding_of_sdxl({name: RepoFile(name, 1) for name in names}, safetensors_only=True)
    assert caught.value.reason is Reason.UNSAFE_MODEL


@pytest.mark.parametrize("model_type", ["huggingface", "lora", "embeddings"])
def test_from_safetensors_refuses_a_pickled_file(model_type):
    """The load fails before the download."""
    name = "a.ckpt" if model_type == "huggingface" else "learned_embeds.bin"
    with pytest.raises(LoaderError, match="fromSafetensors") as caught:
        choose_file({name: RepoFile(name, 1)}, ModelType(model_type), None, safetensors_only=True)
    assert caught.value.reason is Reason.UNSAFE_MODEL


def test_wrong_model_type_for_a_pipeline_is_refused(settings, into, folder):
    """The message names the right model type."""
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "X"}))
    error = refusal(settings, into, REPO)
    assert error.reason is Reason.UNSUPPORTED_FORMAT
    assert "set spec.modelType: huggingface to load the pipeline" in error.message


def test_digest_of_a_single_file_repo_is_checked(settings, into, folder):
    """spec.sha256 applies to model types that are single files."""
    (folder / "a.safetensors").write_bytes(BODY)
    error = refusal(settings, into, REPO, sha256="0" * 64, model_type="lora")
    assert error.reason is Reason.DIGEST_MISMATCH
    assert load(settings, into, REPO, sha256=DIGEST).source.sha256 == DIGEST
