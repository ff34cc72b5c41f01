"""The link to a page of Civitai is enough to load a model of any type."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path

import pytest
from PIL import Image

from devkit.fakecivitai import FakeCivitai, File, Model, Version
from devkit.fakehub import sha256
from devkit.layers import Shapes
from devkit.ldm_layouts import TINY_SD15, vae_shapes
from devkit.tiny import SMALLEST_SD15, sd15_shapes, write_checkpoint
from sd_api import names
from tests.support.gateway.gallerysite import serve
from tests.support.kube.cluster import Json, model_manifest
from tests.support.models.lorashapes import LORA
from tests.support.operator.operated import Operated

pytestmark = pytest.mark.cluster


@dataclass(frozen=True)
class Kind:
    """A type of Civitai, the tensors of a file of this type, and the type that it loads as."""

    type: str
    shapes: Shapes
    model_type: str


KINDS = (
    Kind("Checkpoint", sd15_shapes(SMALLEST_SD15), "custom_ckpt"),
    Kind("LORA", LORA, "lora"),
    Kind("TextualInversion", {"emb_params": (2, 768)}, "embeddings"),
    Kind("VAE", vae_shapes(TINY_SD15), "vae"),
)


@dataclass
class Site:
    """A running operator, and a Civitai that serves one model of each type."""

    operated: Operated
    civitai: FakeCivitai
    folder: Path

    def page(self, kind: Kind) -> str:
        """Serve a model of this type with a picture, and return the link to its page."""
        file = self.folder / "model.safetensors"
        write_checkpoint(file, kind.shapes)
        picture = io.BytesIO()
        Image.new("RGB", (2000, 1000)).save(picture, "WEBP")
        url = self.civitai.serve_file("/images/cat.webp", picture.getvalue())
        version = Version(
            71,
            [File(700, file)],
            base_model="Pony",
            trained_words=("<b>cat</b>",),
            images=[{"url": url, "nsfwLevel": 1, "type": "image"}],
        )
        self.civitai.add(Model(7, kind.type, [version], name="Cat"))
        return "https://civitai.com/models/7/cat"


@pytest.fixture
def site(operated: Operated, tmp_path: Path) -> Iterator[Site]:
    """A running operator whose Civitai endpoint is a server on this machine."""
    with FakeCivitai(address=operated.cluster.backend.source_host) as civitai:
        hosts = (operated.hub.host, civitai.host, civitai.cdn_host)
        operated.start(
            SD_OPERATOR_CIVITAI_ENDPOINT=civitai.url, SD_OPERATOR_ALLOWED_HOSTS=",".join(hosts)
        )
        yield Site(operated, civitai, tmp_path)


def check_status(item: Json, kind: Kind, file: Path) -> None:
    """Check type, source, card and picture of a Ready model."""
    status = item["status"]
    assert status["modelType"] == kind.model_type
    source, artifact = status["source"], status["artifact"]
    assert (source["version"], source["sha256"]) == ("7@71+700", sha256(file))
    card = artifact["card"]
    assert (card["title"], card["basedOn"], card["author"]) == ("Cat (v1.0)", "Pony", "someone")
    assert card["triggerWords"] == ["<b>cat</b>"]
    assert artifact["picturePath"].endswith(names.PICTURE_FILE), artifact


@pytest.mark.parametrize(
    "kind",
    [
        # One type shows all steps; the others differ only in the loader.
        pytest.param(kind, id=kind.type, marks=() if kind.type == "LORA" else pytest.mark.slow)
        for kind in KINDS
    ],
)
def test_a_manifest_needs_only_the_page_of_a_model(site: Site, kind: Kind) -> None:
    """The type comes from the file. Card and picture are in the status and in the gallery."""
    cluster = site.operated.cluster
    cluster.kubectl_apply(model_manifest("cat", url=site.page(kind)))
    item = site.operated.ready("cat")
    check_status(item, kind, site.folder / "model.safetensors")

    # The word that loads an embedding comes before the words of its page.
    word = item["status"]["artifact"]["card"].get("word", "<b>cat</b>")
    with serve(cluster, site.folder, store=cluster.store) as gallery:
        gallery.login()
        text = gallery.get("/gallery/models/cat").text
        for shown in ("Cat (v1.0)", "Pony", escape(word), names.PICTURE_FILE):
            assert shown in text
        picture = gallery.get(f"/gallery/models/cat/{names.PICTURE_FILE}")
        assert (picture.code, picture.headers["Content-Type"]) == (200, "image/jpeg")


@pytest.mark.slow
@pytest.mark.parametrize("kind", [pytest.param(kind, id=kind.type) for kind in KINDS])
def test_the_form_of_the_gallery_needs_only_the_page(site: Site, kind: Kind) -> None:
    """The visitor fills in the link and a name, and leaves all other fields empty."""
    cluster = site.operated.cluster
    with serve(cluster, site.folder, store=cluster.store) as gallery:
        gallery.login()
        form = {"metadata.name": "cat", "spec.url": site.page(kind), "action": "apply"}
        assert gallery.post("/gallery/load", form).code == 303
    check_status(site.operated.ready("cat"), kind, site.folder / "model.safetensors")


@pytest.mark.slow
def test_a_file_with_another_digest_than_civitai_states_is_refused(site: Site) -> None:
    """The SHA-256 that the API states is checked although spec.sha256 is not set."""
    page = site.page(KINDS[1])
    other = site.folder / "model.safetensors"
    wrong = File(700, other, sha256="0" * 64)
    site.civitai.add(Model(7, "LORA", [Version(71, [wrong])]))
    site.operated.cluster.model("cat", url=page)
    item = site.operated.stalled("cat", "DigestMismatch")
    assert "the digest that Civitai states" in str(item["status"]["conditions"])
