"""Standalone without its operator, and with a stand-in for the loader: `python clusterstub.py`."""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from pathlib import Path

from sd_operator.standalone.main import run
from sd_operator.standalone.processes import Options

parser = argparse.ArgumentParser()
parser.add_argument("--store", type=Path, required=True)
parser.add_argument("--kubeconfig", type=Path, required=True)
parser.add_argument("--loader", nargs="+", required=True)
args = parser.parse_args()
with tempfile.TemporaryDirectory() as folder:
    options = Options(args.store, args.kubeconfig, with_operator=False, loader=args.loader)
    asyncio.run(run(options, Path(folder)))
