"""Runs of the loader that are killed at any step."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch

from devkit.fakefiles import FileServer
from tests.support.loader.loadercli import load_request
from tests.support.models.checkpoints import save_safetensors
from tests.support.models.vaes import tiny as tiny_vae
from tests.support.store.pods import (
    RUNS,
    Pod,
    Setup,
    check_versions,
    copy,
    end_state,
    name_of,
    points,
    prepared,
    sampled,
    served,
)
from tests.support.store.steps import KILLED, killed_at, steps_of
from tests.support.store.volumes import tree
from tests.support.tally import Tally


# The forked child only runs the loader, so it does not need the threads of other tests.
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.usefixtures("tagged_parts")
@pytest.mark.parametrize(("before", "pod", "apart"), sampled(RUNS, name_of, 24, 1, quick={1}))
def test_a_run_killed_at_any_step_is_completed_by_the_next_run(
    tmp_path: Path, tally: Tally, before: Setup, pod: Pod, apart: int
) -> None:
    """After SIGKILL and another Pod's run, the volume is as after an undisturbed run.

    In between, no version is incomplete, and the published models stay published.
    """
    start = prepared(tmp_path / "prepared", before)
    undisturbed = copy(start, tmp_path / "undisturbed")
    names = steps_of(lambda: pod.main(undisturbed, "pod-1"), undisturbed)
    expected = end_state(undisturbed)
    tried = points(names, apart)
    for step in tried:
        root = copy(start, tmp_path / str(step))
        assert pod.run(root, "pod-1", killed_at(step)) == KILLED
        where = f"step {step}: {names[step]}"
        check_versions(root)
        if pod.keeps:
            assert served(start).keys() <= served(root).keys(), where
        assert pod.run(root, "pod-2") == 0, where
        assert end_state(root) == expected, where
        shutil.rmtree(root)
    tally("kill points survived", len(tried))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize("ranges", [True, False], ids=["while it downloads", "once it is there"])
def test_a_real_conversion_killed_at_any_step_is_completed_by_the_next_run(
    tmp_path: Path, tally: Tally, monkeypatch: pytest.MonkeyPatch, ranges: bool
) -> None:
    """The writer's steps are included, with and without conversion during the download.

    The kernel's copies are steps, too.
    """
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr("sd_loader.convert.write.steps.COPIED_FROM", 0)
    file = save_safetensors(tmp_path / "vae.safetensors", tiny_vae(torch.float16))
    with FileServer() as server:
        monkeypatch.setenv("SD_LOADER_ALLOWED_HOSTS", server.host)
        url = server.serve_file("/vae.safetensors", file, ignore_range=not ranges)
        asked = load_request(url, model_type="vae").to_argument()
        pod = Pod((("fetch", "--request", asked), ("convert", "--request", asked)), "load")
        start = prepared(tmp_path / "prepared", [])
        undisturbed = copy(start, tmp_path / "undisturbed")
        names = steps_of(lambda: pod.main(undisturbed, "pod-1"), undisturbed)
        assert ranges or "os.copy_file_range" in names
        expected = end_state(undisturbed)
        whole = tree(undisturbed / "model")
        tried = points(names, 15)
        for step in tried:
            where = f"step {step}: {names[step]}"
            root = copy(start, tmp_path / str(step))
            # Threads that download change the steps a little, so the run may end before the kill.
            assert pod.run(root, "pod-1", killed_at(step)) in {KILLED, 0}, where
            assert tree(root / "model") in ({}, whole), where
            assert pod.run(root, "pod-2") == 0, where
            assert end_state(root) == expected, where
            shutil.rmtree(root)
    tally("kill points survived", len(tried))
