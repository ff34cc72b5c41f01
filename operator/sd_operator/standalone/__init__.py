"""A small cluster on one machine: an API server, controllers, a node, and the operator.

The operator and the gateway run in separate processes. The API's objects are kept from one run of
standalone to the next, except with --ephemeral. Slow imports are inside `run`, so that other
commands of sd-operator do not wait for them.
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `sd-operator standalone`."""
    parser.add_argument(
        "--store", type=Path, required=True, help="folder where models are published"
    )
    parser.add_argument(
        "--kubeconfig",
        type=Path,
        help="kubeconfig to write (default: STATE/kubeconfig)",
    )
    kept = parser.add_mutually_exclusive_group()
    kept.add_argument(
        "--state",
        type=Path,
        help="private folder where the objects of the API are kept"
        " (default: one for each store, in $XDG_STATE_HOME or ~/.local/state)",
    )
    kept.add_argument(
        "--ephemeral", action="store_true", help="keep the objects of the API in memory only"
    )
    parser.add_argument(
        "--port", type=int, default=0, help="port on 127.0.0.1 (default: as in the last run)"
    )
    parser.add_argument(
        "--allowed-hosts",
        default="",
        metavar="HOST,…",
        help="hosts that may be called over http and at private addresses",
    )
    parser.add_argument(
        "--hf-endpoint", default="", metavar="URL", help="URL of the Hugging Face Hub or a mirror"
    )
    parser.add_argument(
        "--no-operator", action="store_true", help="start everything except the operator"
    )
    parser.add_argument(
        "--gateway", action="store_true", help="also serve the vendor's REST API and the gallery"
    )
    parser.add_argument(
        "--gateway-port",
        type=int,
        default=0,
        metavar="N",
        help="port of the gateway (default: as in the last run)",
    )


def run(args: argparse.Namespace) -> int:
    """Run standalone until a signal comes; return the exit code."""
    from sd_operator.standalone.main import main

    return main(args)
