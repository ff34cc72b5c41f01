"""Re-encodes the picture that a model's page shows, in a process of its own.

Decoders are large, and the picture is hostile. The process has limits for memory and time, and in a
Job it runs in the container without a token. If it fails, the load goes on without a picture.
"""

from __future__ import annotations

import io
import resource
import subprocess
import sys

MAX_BYTES = 5 << 20
"""Largest picture that is downloaded."""
MAX_WIDTH = 1024
"""A wider picture is made smaller. The height may be twice this."""
MAX_PIXELS = 16 << 20
"""A picture with more pixels is not decoded."""

_FORMATS = ("PNG", "JPEG", "WEBP")
_QUALITY = 85
_MEMORY = 1 << 30
_SECONDS = 10
"""CPU time that the process may use."""
_PATIENCE = 30
"""Seconds by the wall clock until the process is killed. They are more than the CPU time, so that
a busy machine does not end the process early."""
_LINE = 100


class PictureError(Exception):
    """The picture cannot be kept. The message says why."""


def published(content: bytes) -> bytes:
    """Return the picture as a JPEG without metadata. Raise PictureError if that fails."""
    try:
        process = subprocess.run(
            [sys.executable, "-I", "-m", __name__],
            input=content,
            capture_output=True,
            timeout=_PATIENCE,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise PictureError("decoding it took too long") from None
    if process.returncode != 0 or not process.stdout:
        last = process.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        why = last.partition(": ")[2][:_LINE]
        raise PictureError(why or f"its decoder ended with {process.returncode}")
    return process.stdout


def reencoded(content: bytes) -> bytes:
    """Decode a picture and encode it again. Raise any error if it cannot be decoded.

    A picture with too many pixels (a decompression bomb) is not decoded. Only the first frame of a
    moving picture is kept. Colour profile, camera data and comments are dropped.
    """
    # Imported here: only the child process needs it.
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        opened = Image.open(io.BytesIO(content), formats=_FORMATS)
    except UnidentifiedImageError:
        raise PictureError("it is not a PNG, JPEG or WebP image") from None
    with opened as image:
        if image.width * image.height > MAX_PIXELS:
            raise PictureError(f"it has {image.width}x{image.height} pixels")
        mode = "RGBA" if image.has_transparency_data else "RGB"
        upright = ImageOps.exif_transpose(image).convert(mode)
    upright.thumbnail((MAX_WIDTH, 2 * MAX_WIDTH))
    flat = Image.new("RGB", upright.size, "white")
    flat.paste(upright, mask=upright if mode == "RGBA" else None)
    encoded = io.BytesIO()
    flat.save(encoded, "JPEG", quality=_QUALITY)
    return encoded.getvalue()


def main() -> None:
    """Re-encode the picture on stdin to stdout."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (_SECONDS, _SECONDS))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.stdout.buffer.write(reencoded(sys.stdin.buffer.read(MAX_BYTES)))


if __name__ == "__main__":
    main()
