"""A picture from the source is decoded with limits and encoded again."""

from __future__ import annotations

import io
import struct
import sys
import zlib

import pytest
from PIL import Image, ImageCms, PngImagePlugin

from sd_loader.picture import MAX_WIDTH, PictureError, published, reencoded

SECRET = b"GPS and prompt"


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    """Encode an image."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def decoded(content: bytes) -> Image.Image:
    """Decode a published picture, and assert that it is a JPEG."""
    image = Image.open(io.BytesIO(content))
    image.load()
    assert image.format == "JPEG"
    return image


def bomb(width: int, height: int) -> bytes:
    """A PNG that states this size and has no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + crc

    header = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    data = zlib.compress(bytes(64))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("image", "kind"),
    [
        pytest.param(Image.new("RGB", (40, 30)), "PNG", id="PNG"),
        pytest.param(Image.new("RGB", (40, 30)), "JPEG", id="JPEG"),
        pytest.param(Image.new("RGB", (40, 30)), "WEBP", id="WebP"),
        pytest.param(Image.new("RGBA", (40, 30)), "PNG", id="transparent"),
        pytest.param(Image.new("P", (40, 30)), "PNG", id="palette"),
        pytest.param(Image.new("L", (40, 30)), "JPEG", id="grey"),
        pytest.param(Image.new("CMYK", (40, 30)), "JPEG", id="CMYK"),
    ],
)
def test_a_picture_becomes_a_jpeg(image: Image.Image, kind: str) -> None:
    """The JPEG is RGB whatever the picture's mode. Transparent pixels become white."""
    found = decoded(reencoded(encoded(image, kind)))
    assert (found.size, found.mode) == ((40, 30), "RGB")
    if image.mode == "RGBA":
        assert found.getpixel((5, 5)) == (255, 255, 255)


def test_a_wide_picture_is_made_smaller() -> None:
    """The picture keeps its proportions."""
    found = decoded(reencoded(encoded(Image.new("L", (2 * MAX_WIDTH, 600)), "PNG")))
    assert found.size == (MAX_WIDTH, 300)


def test_metadata_is_dropped() -> None:
    """Camera data, comments, prompts and colour profiles are removed; the rotation is applied."""
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = SECRET.decode()
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    options = {"exif": exif, "icc_profile": profile, "comment": SECRET}
    content = encoded(Image.new("RGB", (40, 30)), "JPEG", **options)
    assert SECRET in content
    found = reencoded(content)
    assert SECRET not in found
    assert decoded(found).size == (30, 40)
    assert not decoded(found).info.keys() & {"exif", "icc_profile", "comment"}
    text = PngImagePlugin.PngInfo()
    text.add_text("parameters", SECRET.decode())
    assert SECRET not in reencoded(encoded(Image.new("L", (4, 4)), "PNG", pnginfo=text))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b"", "not a PNG, JPEG or WebP", id="nothing"),
        pytest.param(b"<svg onload=alert(1)>", "not a PNG, JPEG or WebP", id="SVG"),
        pytest.param(encoded(Image.new("L", (4, 4)), "GIF"), "not a PNG, JPEG or WebP", id="GIF"),
        pytest.param(encoded(Image.new("L", (4, 4)), "BMP"), "not a PNG, JPEG or WebP", id="BMP"),
        pytest.param(bomb(8000, 8000), "it has 8000x8000 pixels", id="a bomb"),
    ],
)
def test_other_files_and_bombs_are_not_decoded(content: bytes, message: str) -> None:
    """The number of pixels is checked before any of them is decoded."""
    with pytest.raises(PictureError, match=message):
        reencoded(content)


def test_the_decoder_runs_in_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other process returns a JPEG, although the test's process cannot import Pillow."""
    content = encoded(Image.new("RGB", (40, 30)), "WEBP")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "PIL", None)
        with pytest.raises(ImportError):
            reencoded(content)
        picture = published(content)
    assert decoded(picture).size == (40, 30)


@pytest.mark.slow
@pytest.mark.parametrize("content", [b"\xff\xd8\xff" * 100, bomb(100, 100), bomb(1 << 30, 1 << 30)])
def test_a_decoder_that_fails_has_a_message(content: bytes) -> None:
    """Every failure of a decoder becomes a PictureError with a message of one line."""
    with pytest.raises(PictureError, match=r"^[^\n]{1,120}$"):
        published(content)
