"""A stand-in for the loader in tests of Jobs: it does what its request's url says.

The url is a list of steps: `fetch.exit=3 convert.say=done convert.sleep=60`. Those of the other
container are left out. The termination message is `say`, else JSON of what the process found.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

command, _, request, _, store = sys.argv[1:]
steps = [step.partition("=") for step in json.loads(request)["url"].split()]
mine = {name.partition(".")[2]: value for name, _, value in steps if name.startswith(f"{command}.")}
secret = Path(os.environ.get("SD_LOADER_CREDENTIALS_DIR", "/nonexistent")) / "token"
found = {
    "command": command,
    "store": store,
    "home": os.environ.get("HOME"),
    "home_exists": Path(os.environ.get("HOME", "/nonexistent")).is_dir(),
    "pod": os.environ.get("SD_LOADER_POD"),
    "variables": sorted(os.environ),
    "token": secret.read_text() if secret.exists() else None,
    "mode": oct(secret.stat().st_mode & 0o777) if secret.exists() else None,
}
say = partial(print, flush=True)  # its output is what logs are tested with
say(f"{command} begins")
if "touch" in mine:
    (Path(store) / mine["touch"]).touch()
if "child" in mine:
    child = subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({mine['child']})"])
    (Path(store) / "child.pid").write_text(str(child.pid))
time.sleep(float(mine.get("sleep", 0)))
say(f"{command} ends")
Path(os.environ["SD_LOADER_TERMINATION_LOG"]).write_text(mine.get("say") or json.dumps(found))
sys.exit(int(mine.get("exit", 0)))
