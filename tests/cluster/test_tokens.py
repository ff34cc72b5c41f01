"""A gated repo loads with the token that the administrator keeps for the Hub."""

from __future__ import annotations

from pathlib import Path

import pytest

from devkit.tiny import write_checkpoint
from sd_api import names
from tests.support.kube.cluster import secret_manifest
from tests.support.models.lorashapes import LORA
from tests.support.operator.operated import Operated, condition

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

TOKEN = "hf_not-to-be-shown"


def test_gated_lora_loads_by_its_repo_id_alone(operated: Operated, tmp_path: Path) -> None:
    """The status names the missing Secret, and has the type once the file is read."""
    (tmp_path / "repo").mkdir()
    write_checkpoint(tmp_path / "repo" / "style.safetensors", LORA)
    operated.hub.add_repo("org/style", tmp_path / "repo", gated=True, token=TOKEN)
    operated.start(SD_OPERATOR_DEFAULT_CREDENTIALS=f"{operated.hub.host}=hub-token")
    operated.cluster.model("style", url="org/style")
    item = operated.stalled("style", "AuthenticationRequired")
    assert item["status"]["modelType"] == "unknown"
    message = condition(item, "Stalled")["message"]
    assert "accept its licence" in message
    assert "of the Secret hub-token" in message
    operated.cluster.apply(secret_manifest("hub-token", token=TOKEN))
    operated.cluster.annotate("sdm", "style", {names.ANNOTATION_RELOAD: "1"})
    item = operated.ready("style")
    assert item["status"]["modelType"] == "lora"
    jobs = operated.cluster.list("jobs")
    assert TOKEN not in str(item) + str(jobs) + operated.cluster.operator_log()
