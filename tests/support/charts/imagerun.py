"""Runs containers from buildah's images as a kubelet would; needs root and util-linux.

A container has its own mount and process namespaces, a read-only root, the Pod's volumes, the uid
of the Pod's security context, no capabilities and no new privileges.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Json = dict[str, Any]

TIMEOUT = 240
GRACE_SECONDS = 30
UNSHARE = shutil.which("unshare") or "unshare"
BUILDAH_ENV = {"BUILDAH_ISOLATION": "chroot"}
TMPFS = "tmpfs"
"""The source of a mount that is an emptyDir."""

# Mount points are made before the root becomes read-only. /dev has only the devices that a
# container runtime adds. The script uses only util-linux of the base image, so that it needs
# nothing that the image adds.
_CONTAINER = """
set -eu
root=$1 workdir=$2 user=$3 mounts=$4
shift 4
mount --make-rprivate /
mount --bind "$root" "$root"
while IFS='|' read -r source target; do
    if [ -z "$target" ]; then continue; fi
    if [ -f "$source" ]; then
        mkdir -p "$(dirname "$root$target")" && touch "$root$target"
    else
        mkdir -p "$root$target"
    fi
done < "$mounts"
mkdir -p "$root/dev" "$root/proc"
mount -o remount,bind,ro "$root"
mount -t proc proc "$root/proc"
mount -t tmpfs -o mode=0755 tmpfs "$root/dev"
for device in null zero random urandom; do
    touch "$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
done
while IFS='|' read -r source target; do
    if [ -z "$target" ]; then continue; fi
    case "$source" in
        tmpfs) mount -t tmpfs -o mode=1777,size=1g tmpfs "$root$target" ;;
        *)
            if [ -f "$source" ] && [ ! -e "$root$target" ]; then touch "$root$target"; fi
            mount --bind "$source" "$root$target" ;;
    esac
done < "$mounts"
exec chroot "$root" /usr/bin/env -C "$workdir" /usr/bin/setpriv \
    --reuid="$user" --regid="$user" --clear-groups --no-new-privs \
    --inh-caps=-all --bounding-set=-all -- "$@"
"""


@dataclass(frozen=True)
class Process:
    """A running container."""

    unshare: subprocess.Popen[str]

    def signal(self, number: int) -> None:
        """Send a signal to the container's first process; `unshare` would not pass it on."""
        pid = self.unshare.pid
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            os.kill(int(child), number)

    def stop(self) -> tuple[int, str]:
        """Stop the container with SIGTERM, as the kubelet does; return its exit code and output."""
        self.signal(signal.SIGTERM)
        output, _ = self.unshare.communicate(timeout=GRACE_SECONDS)
        return self.unshare.returncode, output


@dataclass(frozen=True)
class Image:
    """An image's mounted root file system and its configuration."""

    root: Path
    config: Json

    @property
    def env(self) -> dict[str, str]:
        """The environment variables that the image sets."""
        return dict(entry.split("=", 1) for entry in self.config["Env"])

    @property
    def command(self) -> list[str]:
        """The command that the image runs by default."""
        return [*self.config["Entrypoint"], *self.config.get("Cmd", ())]

    def run(
        self,
        command: Sequence[str],
        mounts: Mapping[str, Path | str],
        env: Mapping[str, str] = {},
        *,
        folder: Path,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end; `mounts` maps paths to sources, `folder` is scratch space."""
        with self.started(command, mounts, env, folder=folder) as process:
            output, errors = process.unshare.communicate(timeout=TIMEOUT)
            return subprocess.CompletedProcess(command, process.unshare.returncode, output, errors)

    @contextmanager
    def started(
        self,
        command: Sequence[str],
        mounts: Mapping[str, Path | str],
        env: Mapping[str, str] = {},
        *,
        folder: Path,
    ) -> Iterator[Process]:
        """Start a command and kill it when the context ends."""
        table = folder / "mounts"
        table.write_text("".join(f"{source}|{target}\n" for target, source in mounts.items()))
        user = self.config["User"].split(":")[0]
        container = [str(self.root), self.config["WorkingDir"], user, str(table), *command]
        unshare = subprocess.Popen(
            [
                UNSHARE,
                "--mount",
                "--pid",
                "--fork",
                "sh",
                "-c",
                _CONTAINER,
                "container",
                *container,
            ],
            env={**self.env, **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        process = Process(unshare)
        try:
            yield process
        finally:
            if unshare.poll() is None:
                process.signal(signal.SIGKILL)
            unshare.communicate()


def missing() -> str | None:
    """Return what is missing to build and run images on this machine; None if nothing is."""
    for program, package in (("buildah", "buildah"), ("unshare", "util-linux")):
        if shutil.which(program) is None:
            return f"{program} is missing (Debian: {package})"
    return None if os.geteuid() == 0 else "images are built and run as root"


def buildah(*arguments: str | Path) -> str:
    """Run buildah, which must succeed, and return its output."""
    done = subprocess.run(
        ["buildah", *map(str, arguments)],
        env={**os.environ, **BUILDAH_ENV},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, f"buildah {arguments[0]}: {done.stdout}{done.stderr}"
    return done.stdout.strip()


def size(image: str) -> int:
    """Return the size of an image in bytes."""
    (found,) = json.loads(buildah("images", "--json", "--no-trunc", image))
    amount, unit = found["size"].split()
    return round(float(amount) * {"KB": 10**3, "MB": 10**6, "GB": 10**9}[unit.upper()])


@contextmanager
def mounted(name: str) -> Iterator[Image]:
    """Mount an image until the context ends."""
    container = buildah("from", "--pull-never", name)
    try:
        root = Path(buildah("mount", container))
        config = json.loads(buildah("inspect", "--type=image", name))["OCIv1"]["config"]
        yield Image(root, config)
    finally:
        buildah("rm", container)


def run_container(
    image: Image,
    container: Json,
    volumes: Mapping[str, Path | str],
    folder: Path,
    env: Mapping[str, str] = {},
) -> tuple[subprocess.CompletedProcess[str], str]:
    """Run a container of a Pod manifest; return the ended process and the termination message."""
    message = folder / "termination-log"
    message.write_text("")
    message.chmod(0o666)
    mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
    mounts[container["terminationMessagePath"]] = message
    given = {entry["name"]: entry.get("value", "pod-1") for entry in container["env"]}
    command = [*container["command"], *container["args"]]
    done = image.run(command, mounts, {**given, **env}, folder=folder)
    return done, message.read_text()
