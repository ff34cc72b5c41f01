"""Make the loader's bundled CLIP vocabulary from the one that open_clip ships.

    python -m tools.make_tokenizers bpe_simple_vocab_16e6.txt.gz

The wheel of open_clip_torch contains the file under open_clip/. The results equal the files
tokenizer/vocab.json and tokenizer/merges.txt in the repositories of Stable Diffusion byte for byte;
the digests below are the digests of those files.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import sys
from pathlib import Path

DATA = Path(__file__).resolve().parent.parent / "loader-image/sd_loader/convert/tables/data/clip"
DIGESTS = {
    "merges.txt": "9fd691f7c8039210e0fced15865466c65820d09b63988b0174bfe25de299051a",
    "vocab.json": "e089ad92ba36837a0d31433e555c8f45fe601ab5c221d4f607ded32d9f7a4349",
}
MERGES = 49152 - 256 - 2
SPECIAL = ("<|startoftext|>", "<|endoftext|>")


def make(vocabulary: str) -> dict[str, bytes]:
    """Make merges.txt and vocab.json from open_clip's list of merges, which starts with a title."""
    merges = vocabulary.split("\n")[1 : MERGES + 1]
    letters = [*byte_letters()]
    tokens = [
        *letters,
        *(letter + "</w>" for letter in letters),
        *("".join(merge.split()) for merge in merges),
        *SPECIAL,
    ]
    ids = {token: number for number, token in enumerate(tokens)}
    return {
        "merges.txt": ("\n".join(["#version: 0.2", *merges]) + "\n").encode(),
        "vocab.json": f"{json.dumps(ids, indent=2, sort_keys=True, ensure_ascii=False)}\n".encode(),
    }


def byte_letters() -> list[str]:
    """Return a character for each byte: its own if printable, else one from code point 256 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1)]
    printable += range(ord("®"), ord("ÿ") + 1)
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + n) for n in range(len(others))]


def main() -> None:
    """Write both files, compressed; exit with an error if a digest is wrong."""
    with gzip.open(sys.argv[1], "rt", encoding="utf-8") as file:
        made = make(file.read())
    for name, content in made.items():
        digest = hashlib.sha256(content).hexdigest()
        if digest != DIGESTS[name]:
            sys.exit(f"{name} has sha256 {digest}, expected {DIGESTS[name]}")
        path = DATA / f"{name}.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(content, mtime=0))
        print(f"{path.name}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
