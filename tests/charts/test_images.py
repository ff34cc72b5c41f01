"""Tests of the Dockerfiles and locks; test_image_builds builds the images."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from sd_operator.base.settings import LoaderSettings
from sd_operator.rules import manifests
from tests.support.charts import dockerfiles
from tests.support.charts.dockerfiles import Dockerfile
from tests.support.paths import ROOT
from tools import lock_images

OPERATOR = dockerfiles.read(ROOT / "operator" / "Dockerfile")
LOADER = dockerfiles.read(ROOT / "loader-image" / "Dockerfile")
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
CONTAINER = {"python_version": "3.11", "sys_platform": "linux", "platform_system": "Linux"}

both = pytest.mark.parametrize(
    "dockerfile", [pytest.param(OPERATOR, id="operator"), pytest.param(LOADER, id="loader")]
)
images = pytest.mark.parametrize(
    ("dockerfile", "target"),
    [
        pytest.param(OPERATOR, "", id="operator"),
        pytest.param(LOADER, "slim", id="loader-slim"),
        pytest.param(LOADER, "verify", id="loader"),
    ],
)
locks = pytest.mark.parametrize(
    "lock", [pytest.param(one, id=one.name) for one in lock_images.LOCKS]
)


@both
def test_every_stage_begins_with_one_of_two_chosen_images(dockerfile: Dockerfile) -> None:
    """A stage begins with BUILD_IMAGE, BASE_IMAGE or another stage."""
    names = {stage.name for stage in dockerfile.stages} - {""}
    for stage in dockerfile.stages:
        assert stage.base in {"${BUILD_IMAGE}", "${BASE_IMAGE}"} | names


@both
def test_no_default_image_is_untagged(dockerfile: Dockerfile) -> None:
    """Each default has a tag and the Python version that the locks are for."""
    for name in ("BUILD_IMAGE", "BASE_IMAGE"):
        tag = dockerfile.arguments[name].rpartition("/")[2].partition(":")[2]
        assert tag.startswith(f"{lock_images.PYTHON}-"), dockerfile.arguments[name]


def test_all_images_share_a_base() -> None:
    """The images have the same base, so a node pulls most of their layers only once."""
    assert OPERATOR.arguments == LOADER.arguments


@images
def test_image_runs_as_the_user_of_jobs(dockerfile: Dockerfile, target: str) -> None:
    """The user is a number, so that the kubelet knows that it is not root."""
    users = [one.text for one in dockerfile.built(target) if one.word == "USER"]
    assert users == [f"{manifests.USER_ID}:{manifests.USER_ID}"]


@images
def test_image_has_labels(dockerfile: Dockerfile, target: str) -> None:
    """The image has the labels that registries show."""
    found = dockerfiles.labels(dockerfile.built(target))
    words = ("title", "description", "licenses", "version", "revision")
    assert set(found) == {f"org.opencontainers.image.{word}" for word in words}
    assert found["org.opencontainers.image.licenses"] == PROJECT["project"]["license"]
    assert found["org.opencontainers.image.version"] == "${VERSION}"
    assert found["org.opencontainers.image.revision"] == "${REVISION}"


@images
def test_nothing_is_installed_in_the_image_itself(dockerfile: Dockerfile, target: str) -> None:
    """The image copies a finished environment and runs it once, so a wrong base fails the build."""
    commands = [one for one in dockerfile.built(target) if one.word == "RUN"]
    assert [one.words[0] for one in commands] in (["sd-operator"], ["python3"])
    taken = [
        one.text for one in dockerfile.built(target) if one.word == "COPY" and "--from" in one.text
    ]
    assert [text.split(maxsplit=1)[1] for text in taken] == ["/opt/sd /opt/sd"]


@images
def test_the_entry_point_is_one_of_the_project(dockerfile: Dockerfile, target: str) -> None:
    """The entry point is on the image's PATH, because Jobs name it without a path."""
    (entry,) = [one.words for one in dockerfile.built(target) if one.word == "ENTRYPOINT"]
    assert entry[0] in PROJECT["project"]["scripts"]
    env = " ".join(one.text for one in dockerfile.built(target) if one.word == "ENV")
    assert "PATH=/opt/sd/bin:${PATH}" in env
    for setting in ("HOME=/tmp", f"LOGNAME={entry[0]}", "PYTHONDONTWRITEBYTECODE=1"):
        assert setting in env.split(), "the root file system is read-only, and the uid has no name"


def test_jobs_run_the_loaders_entry_point() -> None:
    """The operator's manifests name the entry point of the image."""
    (entry,) = [one.words for one in LOADER.built("slim") if one.word == "ENTRYPOINT"]
    golden = (ROOT / "tests/operator/rules/golden" / "load-gpu.yaml").read_text()
    assert f"command:\n        - {entry[0]}\n" in golden


def test_the_operators_image_serves_a_cluster_by_default() -> None:
    """`docker run` without arguments runs the command of the Deployment."""
    (command,) = [one.words for one in OPERATOR.built("") if one.word == "CMD"]
    assert command == ["run"]


@both
def test_every_package_is_locked(dockerfile: Dockerfile) -> None:
    """Wheels are locked by digest. The builder chooses torch, which is locked by version."""
    installs = [
        command
        for one in dockerfile.everything()
        if one.word == "RUN"
        for command in one.text.split("&&")
        if re.search(r"pip .*\b(install|wheel|download)\b", command)
    ]
    assert installs
    for command in installs:
        locked = "--require-hashes --no-deps -r locks/" in re.sub(r"\s+", " ", command)
        torch = '-c locks/torch.txt "${TORCH_SPEC}"' in command
        assert locked or torch or "--no-index" in command, command
    assert any("PIP_ONLY_BINARY=:all:" in one.text for one in dockerfile.everything())


MOUNTS = {
    "type=secret,id=pip,target=/etc/pip.conf",
    "type=secret,id=ca,target=/etc/pip-ca.crt",
}


@both
def test_every_download_of_packages_can_use_a_mirror(dockerfile: Dockerfile) -> None:
    """The build reads the builder's pip.conf and certificates wherever it may reach an index."""
    for one in dockerfile.everything():
        for command in re.findall(r"pip [^&]*\binstall\b[^&]*", one.text):
            assert "--no-index" in command or set(re.findall(r"--mount=(\S+)", one.text)) == MOUNTS


def test_the_page_on_images_names_the_mounted_files() -> None:
    """The pip.conf of the page names the certificates' path; its commands name both secrets."""
    page = (ROOT / "docs" / "images.md").read_text()
    config = configparser.ConfigParser()
    (text,) = re.findall(r"^```ini\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    config.read_string(text)
    assert f"type=secret,id=ca,target={config['global']['cert']}" in MOUNTS
    commands = re.findall(
        r"^make images BUILDER=(\w+) IMAGE_ARGS=\"(--secret.*)\"$", page, re.MULTILINE
    )
    assert {builder for builder, _ in commands} == {"docker", "buildah"}
    ids = set(re.findall(r"id=(\w+)", " ".join(MOUNTS)))
    for _, arguments in commands:
        assert set(re.findall(r"--secret id=(\w+),src=\S+", arguments)) == ids


@both
def test_no_host_and_no_secret_is_named(dockerfile: Dockerfile) -> None:
    """Mirrors, credentials and certificates are the builder's secrets, which are in no layer."""
    assert "://" not in dockerfile.path.read_text()
    for one in dockerfile.everything():
        if one.word in ("ARG", "ENV"):
            assert not re.search(r"(?i)token|passw|secret|_key\b|index_url", one.text), one.text
        if "--mount" in one.text:
            assert one.text.startswith("--mount=type=secret,id=pip,target=/etc/pip.conf ")
            assert set(re.findall(r"--mount=(\S+)", one.text)) == MOUNTS
        assert one.word != "ADD", "COPY fetches and unpacks nothing"


@both
def test_copied_paths_exist_in_the_build_context(dockerfile: Dockerfile) -> None:
    """The copied paths are in the repository, and .dockerignore does not exclude them."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in lines, "what is not named stays out"
    allowed = [line[1:] for line in lines if line.startswith("!")]
    sources = [
        source
        for one in dockerfile.everything()
        if one.word == "COPY"
        for source in dockerfiles.copied(one)
    ]
    assert sources
    for source in sources:
        assert (ROOT / source).exists(), source
        assert any(source == path or source.startswith(f"{path}/") for path in allowed), source


def test_dockerignore_names_existing_paths_only() -> None:
    """Each path that .dockerignore does not exclude is in the repository."""
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if line.startswith("!"):
            assert (ROOT / line[1:]).exists(), line


def test_torch_has_the_tested_version_by_default() -> None:
    """The default of TORCH_SPEC is the version that the tests use."""
    (argument,) = [one.text for one in LOADER.everything() if one.text.startswith("TORCH_SPEC=")]
    assert argument.removeprefix("TORCH_SPEC=") == f"torch=={_constraints()['torch']}"


@locks
def test_locks_have_the_tested_versions(lock: lock_images.Lock) -> None:
    """The locks agree with constraints.txt; `make lock` writes them."""
    constraints = _constraints()
    for name, version in _pins(lock).items():
        assert constraints[name] == version, f"{name}: run `make lock`"


@locks
def test_locks_name_wheels_by_digest(lock: lock_images.Lock) -> None:
    """Each package has at least one wheel, and a lock has no other entries."""
    text = (lock_images.FOLDER / f"{lock.name}.txt").read_text()
    entry = r"[A-Za-z0-9_.-]+==[^\s\\]+( \\\n    --hash=sha256:[0-9a-f]{64})+\n"
    assert re.fullmatch(f"{re.escape(lock_images.HEADER)}({entry})+", text)


@pytest.mark.parametrize(
    "lock", [pytest.param(one, id=one.name) for one in lock_images.LOCKS if one.extra]
)
def test_locks_are_complete(lock: lock_images.Lock) -> None:
    """The locks have exactly the required packages, without torch and what only torch requires."""
    assert set(_pins(lock)) == _closure(lock), "run `make lock`"


def test_both_images_of_the_loader_decode_pictures() -> None:
    """Both images have pillow, because models that the slim image loads may have pictures."""
    locked = [set(_pins(lock)) for lock in lock_images.LOCKS if lock.extra in ("loader", "verify")]
    assert [packages & {"pillow"} for packages in locked] == [{"pillow"}, {"pillow"}]


def test_the_operator_imports_few_generated_kubernetes_classes() -> None:
    """The image has bytecode of such a class only if the operator imports the class."""
    (command,) = [one.text for one in OPERATOR.everything() if "compileall" in one.text]
    (left_out,) = re.findall(r"compileall .*-x '([^']+)'", command)
    imported = "import sd_operator.runtime.run, sd_operator.gateway.app"
    assert command.endswith(f"-c '{imported}'"), "which compiles what it imports"
    script = (
        f"{imported}, sys\n"
        "print(*(getattr(one, '__file__', '') for one in list(sys.modules.values())), sep='\\n')"
    )
    files = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert any("/kubernetes/aio/client/" in file for file in files)
    assert len([file for file in files if re.search(left_out, file)]) < 20


@both
def test_hadolint_reports_no_problem(dockerfile: Dockerfile) -> None:
    """The program prints nothing with its default rules."""
    program = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([program, dockerfile.path], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize(
    ("image", "name"),
    [
        pytest.param(LoaderSettings().image, "loader", id="loader"),
        pytest.param(LoaderSettings().slim_image, "loader-slim", id="loader-slim"),
    ],
)
def test_make_images_uses_the_tags_that_the_operator_expects(image: str, name: str) -> None:
    """The built images have the names that are the defaults of the operator's settings."""
    makefile = (ROOT / "Makefile").read_text()
    (registry,) = re.findall(r"^IMAGE_REGISTRY \?= (\S+)$", makefile, re.MULTILINE)
    assert image == f"{registry}/{name}:{PROJECT['project']['version']}"
    assert f"$(IMAGE_REGISTRY)/{name}:$(VERSION)" in makefile


@pytest.mark.parametrize(
    ("there", "used"),
    [
        pytest.param(("docker", "buildah"), "docker", id="both"),
        pytest.param(("buildah",), "buildah", id="buildah alone"),
    ],
)
def test_make_images_builds_with_the_installed_builder(
    tmp_path: Path, there: tuple[str, ...], used: str
) -> None:
    """`make images` builds three images with the version and the revision as build arguments."""
    for name in there:
        _program(tmp_path, name, 'echo "$0 $*"')
    done = _make_images(tmp_path)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith(f"{tmp_path}/{used} ")]
    assert len(lines) == 3
    for line in lines:
        assert f"--build-arg VERSION={PROJECT['project']['version']} " in line
        assert re.search(r"--build-arg REVISION=[0-9a-f]{40} ", line)


def test_make_images_says_what_to_install(tmp_path: Path) -> None:
    """The message appears if neither docker nor buildah is installed."""
    done = _make_images(tmp_path)
    assert done.returncode != 0
    assert "make images needs docker or buildah" in done.stderr


def _make_images(programs: Path) -> subprocess.CompletedProcess[str]:
    for name in ("sh", "sed", "git", "make"):
        found = shutil.which(name)
        assert found is not None
        (programs / name).symlink_to(found)
    return subprocess.run(
        [programs / "make", "--silent", "images"],
        cwd=ROOT,
        env={"PATH": str(programs)},
        capture_output=True,
        text=True,
        timeout=60,
    )


def _program(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def _constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = (line.partition("==") for line in lines if "==" in line)
    return {canonicalize_name(name): version for name, _, version in pins}


def _pins(lock: lock_images.Lock) -> dict[str, str]:
    text = (lock_images.FOLDER / f"{lock.name}.txt").read_text()
    found = re.findall(r"^([A-Za-z0-9_.-]+)==(\S+)", text, re.MULTILINE)
    return {canonicalize_name(name): version for name, version in found}


def _closure(lock: lock_images.Lock) -> set[str]:
    """Return all packages that an extra requires, by the metadata of the installed packages."""
    assert lock.extra is not None
    own = canonicalize_name(PROJECT["project"]["name"])
    extras: dict[str, list[str]] = PROJECT["project"]["optional-dependencies"]
    found: set[str] = set()
    seen: set[tuple[str, str]] = set()
    todo = [(Requirement(f"{own}[{lock.extra}]"), "")]
    while todo:
        requirement, wanted_for = todo.pop()
        marker = requirement.marker
        if marker is not None and not marker.evaluate({**CONTAINER, "extra": wanted_for}):
            continue
        name = canonicalize_name(requirement.name)
        if name in lock.without:
            continue
        found.add(name)
        for extra in {"", *requirement.extras}:
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            if name == own:
                needed = extras[extra] if extra else PROJECT["project"]["dependencies"]
            else:
                needed = metadata.requires(name) or []
            todo += [(Requirement(text), extra) for text in needed]
    return found - {own}
