"""The pages that lead to a first picture: their commands are correct and run, if they can here."""

import argparse
import base64
import json
import re
import shlex
import subprocess

import pytest

from sd_loader import arguments
from sd_operator.standalone import add_arguments
from tests.support.charts.helmcharts import helm
from tests.support.gateway import gallerymodels
from tests.support.paths import ROOT
from tools.kubectl import kubectl_path

PAGES = sorted((ROOT / "docs" / "start").glob("*.md"))
COMMANDS = {
    page.stem: re.findall(r"^    (\S.*)$", page.read_text(), re.MULTILINE) for page in PAGES
}
ALL = sorted({command for commands in COMMANDS.values() for command in commands})


def beginning_with(*words):
    """Return the commands of all pages that begin with these words; there must be some."""
    commands = [command for command in ALL if tuple(shlex.split(command)[: len(words)]) == words]
    assert commands, f"no page has a command that begins with {' '.join(words)}"
    return commands


def test_the_readme_leads_to_every_page():
    """The README links to the four pages that lead to a first picture."""
    text = (ROOT / "README.md").read_text()
    assert len(PAGES) == 4
    for page in PAGES:
        assert f"(docs/start/{page.name})" in text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_page_ends_in_a_picture(page):
    """Each page has a command that requests a picture, and the same command that decodes it."""
    (request,) = [line for line in COMMANDS[page.stem] if line.startswith("curl -sS -d")]
    (decoding,) = [line for line in COMMANDS[page.stem] if line.endswith("> picture.png")]
    assert decoding == beginning_with("python3", "-c")[0]
    body, address, out = re.match(r"curl -sS -d '(.+)' (\S+) -o (\S+)$", request).groups()
    assert isinstance(json.loads(body)["prompt"], str)
    assert address.endswith("/v1/images/generations")
    assert out in decoding


def test_the_files_that_the_commands_name_exist():
    """The files that the commands name exist in the repository, in whose clone they run."""
    named = {
        word for command in ALL for word in re.findall(r"(?:charts|examples)/[\w./-]+", command)
    }
    assert {name for name in named if not (ROOT / name).exists()} == set()


def test_the_programs_accept_their_options():
    """Standalone and the loader parse the options of the pages."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    for command in beginning_with("sd-operator", "standalone"):
        assert parser.parse_args(shlex.split(command)[2:]).gateway
    for command in beginning_with("sd-loader", "load"):
        assert arguments.parser().parse_args(shlex.split(command)[1:]).model_id == "mine"


def test_the_installed_extras_exist():
    """The extras that the commands install exist; pip would only warn if they did not."""
    names = {word for line in beginning_with("pip", "install") for word in _extras(line)}
    declared = (ROOT / "pyproject.toml").read_text()
    assert names == {"standalone", "gateway", "verify"}
    assert all(f"\n{name} = [" in declared for name in names)


def _extras(command):
    return re.search(r"\.\[([\w,]+)\]", command)[1].split(",")


@pytest.mark.slow
def test_the_charts_accept_the_values():
    """The test renders the charts instead of installing them."""
    for command in beginning_with("helm", "install"):
        words = [word for word in shlex.split(command)[2:] if word != "--create-namespace"]
        done = helm("template", *(str(ROOT / w) if w.startswith("charts/") else w for w in words))
        assert done.returncode == 0, done.stderr
        assert "http://127.0.0.1:8000" in done.stdout


@pytest.mark.slow
def test_the_picture_is_decoded(tmp_path):
    """The command of the pages decodes a server's response, in base64, to the picture."""
    picture = b"\x89PNG not really"
    answer = {"data": [{"b64_json": base64.b64encode(picture).decode()}]}
    (tmp_path / "answer.json").write_text(json.dumps(answer))
    (command,) = beginning_with("python3", "-c")
    subprocess.run(["bash", "-c", command], cwd=tmp_path, check=True, timeout=60)
    assert (tmp_path / "picture.png").read_bytes() == picture


@pytest.mark.slow
@pytest.mark.cluster
def test_the_commands_about_models_run(shared_cluster):
    """The model sd15 is Ready in a test namespace instead of `sd-system`. Watches are left out."""
    name = "sd15"
    uid = shared_cluster.model(name, url="org/name")["metadata"]["uid"]
    gallerymodels.set_status(shared_cluster, name, gallerymodels.ready(uid, name))
    given = f"--kubeconfig={shared_cluster.kubeconfig} --namespace={shared_cluster.namespace}"
    tried = 0
    for command in beginning_with("kubectl"):
        if " sdm" not in command or "--watch" in command:
            continue
        own = re.sub(r" (?:-n|--namespace) sd-system| --all-namespaces", "", command)
        script = f'kubectl() {{ {kubectl_path()} {given} "$@"; }}; {own}'
        done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, (own, done.stderr)
        assert done.stdout
        tried += 1
    assert tried >= 3
