"""More than one node: a worker on each, a node lost in the middle, storage that is not shared."""

import json
import os
import re
import subprocess
import sys
import time

import pytest
import requests
import yaml
from unit import tiny

from helpers import checkpoints, cluster, metrics, profiles, runs
from helpers.errors import KitError
from helpers.profiles import ROOT

pytestmark = pytest.mark.slow
STEPS, SAVES = 60, 10
CANARY = "canary-3f9c1e"


@pytest.fixture(scope="module")
def profile(tmp_path_factory):
    """A reader's own profile: a cluster of CPU nodes, the tiny model, one worker a node."""
    folder = tmp_path_factory.mktemp("two")
    overrides = {"resources_per_worker": {"CPU": 1, "worker_place": 1}, "ray_init_kwargs": {"address": "auto"},
                 "save_steps": SAVES, "max_steps": STEPS}
    mine = {"storage": str(folder / "storage"), "train_config": "kto_lora_local.yaml", "template": "smollm2", "gpu": False,
            "model_name_or_path": str(tiny.model(folder / "model")), "dataset": "short_answers", "overrides": overrides}
    (folder / "two-nodes.yaml").write_text(yaml.safe_dump(mine))
    return folder / "two-nodes.yaml"


def wait(condition, seconds: float):
    until = time.monotonic() + seconds
    while not (met := condition()) and time.monotonic() < until:
        time.sleep(0.2)
    return met


def job(nodes, *words) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-m", "kto", "job", *map(str, words), "--address", nodes.dashboard], cwd=ROOT,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, "HF_TOKEN": CANARY})


def test_six_notebooks_as_a_job_lose_a_node_and_go_on_by_themselves(nodes, profile, tmp_path):
    if not nodes.apart:
        pytest.skip("needs nodes with files of their own: root on Linux, for namespaces")
    nodes.add()
    second = nodes.add()
    run = runs.locate(str(profile), "", "two")
    watched = job(nodes, "submit", "--profile", profile, "--run-name", run.name, "--secret", "HF_TOKEN")
    saved = wait(  # the second save has begun: the first is whole
        lambda: run.trained and f"checkpoint-{2 * SAVES}".encode() in run.log_file.read_bytes(), 400)
    assert saved or watched.kill() or pytest.fail(watched.communicate()[0])
    nodes.lose(second)
    nodes.add()
    said, _ = watched.communicate(timeout=600)
    assert watched.returncode == 0, said

    log = run.log_file.read_text(errors="replace")
    assert re.search(r"\[kto\] resume_from_checkpoint: \S*/checkpoint_00000\d/checkpoint", log), "from a complete checkpoint, not anew"
    assert "error: 04_train" not in said, "the launched process replaces the lost worker by itself"
    assert all(f"[{number}/6]" in said for number in range(1, 7)) and f"step {STEPS}" in said
    record = run.record()
    assert record["training"]["status"] == "finished" and not record["training"]["earlier"]
    assert max(item.step for item in checkpoints.find(run)) == STEPS
    steps = metrics.table(run.log_file)["step"]
    assert steps.is_monotonic_increasing and steps.max() == STEPS
    places = set(re.findall(r"RayTrainWorker pid=\d+, ip=([\d.]+)", log))
    assert len(places) == 3, "two nodes at first, and the one that came for the lost one"

    fetched = job(nodes, "fetch", run.name, "--to", tmp_path)
    assert fetched.wait(30) == 0
    assert (tmp_path / run.name / "metrics.jsonl").exists() and json.loads((tmp_path / run.name / "run.json").read_text()) == record
    assert CANARY not in said and CANARY not in requests.get(f"{nodes.dashboard}/api/jobs/", timeout=10).text
    written = [path for folder in (run.storage, nodes.scratch) for path in folder.rglob("*") if path.is_file()]
    assert any(path.name == "runtime_env_agent.log" for path in written)
    assert not [path for path in written if CANARY.encode() in path.read_bytes()]


def test_storage_that_is_not_shared_is_noticed_and_explained(nodes, tmp_path, monkeypatch):
    if not nodes.apart:
        pytest.skip("needs a mount namespace, which takes root on Linux")
    monkeypatch.setenv("RAY_ADDRESS", nodes.address)
    name = tiny.dataset(tmp_path / "datasets")
    mine = profiles.load("ray")
    assert cluster.read_everywhere(mine, tmp_path / "datasets", [name])["same"].all()
    alone = nodes.add(tmp_path)
    try:
        with pytest.raises(KitError, match="not every node reads the data") as error:
            cluster.read_everywhere(mine, tmp_path / "datasets", [name])
        assert "a storage that all nodes share" in str(error.value) and re.search(rf"\d +{name} +0 +False", str(error.value))
    finally:
        nodes.lose(alone)
