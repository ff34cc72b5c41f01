"""Everything on one machine: a small API server, controllers, a node, and the operator itself.

Objects are in memory. What is heavy is imported only when it runs.
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the options of `sd-operator standalone`."""
    parser.add_argument(
        "--store", type=Path, required=True, help="folder in which models are published"
    )
    parser.add_argument(
        "--kubeconfig", type=Path, help="file to write (default: STORE/.standalone/kubeconfig)"
    )
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1 (default: any)")
    parser.add_argument(
        "--allowed-hosts",
        default="",
        metavar="HOST,…",
        help="hosts that may be called although their addresses are private, or by http",
    )
    parser.add_argument(
        "--hf-endpoint", default="", metavar="URL", help="Hugging Face Hub or a mirror of it"
    )
    parser.add_argument(
        "--no-operator", action="store_true", help="start everything but the operator"
    )
    parser.add_argument(
        "--gateway", action="store_true", help="serve the vendor's REST API and the gallery too"
    )
    parser.add_argument(
        "--gateway-port", type=int, default=0, metavar="N", help="the gateway's port (default: any)"
    )


def run(args: argparse.Namespace) -> int:
    """Run until interrupted; the exit code."""
    from sd_operator.standalone.main import main

    return main(args)
