"""Writes the tokens of prompts to stdout, as a JSON list of lists of ids.

The first argument is the folder of a CLIP tokenizer, and the others are the prompts. The script
imports nothing of the project, so it runs in any environment that has transformers.
"""

from __future__ import annotations

import json
import sys

from transformers import CLIPTokenizer


def main(folder: str, *prompts: str) -> None:
    """Open the tokenizer and write the tokens to stdout."""
    tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    json.dump(tokenizer(list(prompts)).input_ids, sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
