"""The preflight on clusters: nodes that differ, and one that an autoscaler looks after."""

import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
import yaml
from nodes import BIN, free_port
from unit import tiny

from helpers import cluster, gpus
from helpers.cluster import ray_cluster
from helpers.profiles import ROOT, load
from kto import doctor


def profile(folder: Path, address: str, **overrides) -> str:
    """A reader's own profile for that cluster, in a file; its config is the local one."""
    mine = {"storage": str(folder / "storage"), "train_config": "kto_lora_local.yaml", "template": "smollm2", "gpu": False,
            "model_name_or_path": "smollm2-135m-instruct", "dataset": "short_answers", "ray_address": address, "overrides": overrides}  # fmt: skip
    (folder / "mine.yaml").write_text(yaml.safe_dump(mine))
    return str(folder / "mine.yaml")


def test_where_none_will_come_the_same_is_a_failure(nodes, tmp_path):
    asks = profile(tmp_path, nodes.address, ray_num_workers=4, resources_per_worker={"GPU": 1})
    placed = next(finding for finding in doctor.examine(asks) if finding.found.startswith("4 workers of 1 GPU"))
    assert placed.status == "FAIL" and "the cluster is fixed" in placed.found


def test_a_node_with_a_storage_of_its_own_is_named_by_the_doctor(nodes, tmp_path):
    if not nodes.apart:
        pytest.skip("needs a mount namespace, which takes root on Linux")
    (tmp_path / "storage").mkdir()
    alone = nodes.add(tmp_path / "storage")
    try:
        started = time.monotonic()
        findings = doctor.examine(profile(tmp_path, nodes.address), "", {})
        assert time.monotonic() - started < 40  # 20 on a machine that does nothing else
        failed = {finding.found: finding.remedy for finding in findings if finding.status == "FAIL"}
        assert [found for found in failed if "does not see what was written there from here" in found], findings
    finally:  # it says good-bye: a driver that joins soon after could pick a node that is lost but not yet missed
        leaving = nodes.nodes.pop(alone)
        leaving.terminate()
        leaving.wait(20)


def test_a_node_without_the_project_answers_the_doctor_and_reads_the_data(nodes, tmp_path, monkeypatch):
    if not nodes.apart:
        pytest.skip("needs a mount namespace, which takes root on Linux")
    monkeypatch.setenv("RAY_ADDRESS", nodes.address)
    name = tiny.dataset(tmp_path / "storage" / "datasets")
    bare = nodes.add(*(ROOT / package for package in ("helpers", "kto", "kto_accelerator", "locks")))
    try:
        findings = doctor.examine(profile(tmp_path, nodes.address), "", {"dataset": name})
        assert [finding for finding in findings if finding.status != "OK"] == []
        assert "every node reads the dataset, byte for byte" in [finding.found for finding in findings]
        table = cluster.read_everywhere(load("ray"), tmp_path / "storage" / "datasets", [name])
        assert len(table) == 2 and table["same"].all()
    finally:
        leaving = nodes.nodes.pop(bare)
        leaving.terminate()
        leaving.wait(20)


def test_the_gpus_of_a_node_are_noted_by_notebook_1_and_the_doctor_names_their_config(nodes, tmp_path, monkeypatch):
    """The driver's command is a stand-in that every node sees; the head has it too, but no GPU in Ray's books."""
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 'NVIDIA L40S, 46068'\necho 'NVIDIA L40S, 46068'\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("RAY_ADDRESS", nodes.address)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert cluster.resources(load("ray"))["answers"] == []
    added = nodes.add(gpus=2)
    try:
        resources = cluster.resources(load("ray"))
        assert resources["GPU"] == 2 and gpus.counted(resources["answers"]) == [["NVIDIA L40S", 45.0, 2]]
        found = [finding.found for finding in doctor.examine("ray", str(tmp_path / "storage"))]
        assert [line for line in found if line.startswith("the profile takes kto_lora_48gb.yaml: for the smallest GPU: NVIDIA L40S, 45 GiB")]
    finally:
        leaving = nodes.nodes.pop(added)
        leaving.terminate()
        leaving.wait(20)


@pytest.fixture
def scaling():
    """The address of a head whose autoscaler (Ray's own, with its fake provider) could start nodes with GPUs."""
    scratch = Path(tempfile.mkdtemp(prefix="kto"))
    head = "f" * 51 + "00000"
    kinds = {"ray.head.default": {"resources": {"CPU": 1}, "node_config": {}, "max_workers": 0},
             "4xL40S": {"resources": {"CPU": 48, "GPU": 4}, "node_config": {}, "min_workers": 0, "max_workers": 2}}  # fmt: skip
    empty = dict.fromkeys(("setup_commands", "head_setup_commands", "worker_setup_commands", "initialization_commands",
                           "cluster_synced_files", "rsync_exclude", "rsync_filter", "head_start_ray_commands", "worker_start_ray_commands"), [])  # fmt: skip
    (scratch / "scaling.json").write_text(json.dumps({
        "cluster_name": "fake", "max_workers": 2, "upscaling_speed": 1.0, "idle_timeout_minutes": 1, "provider": {"type": "fake_multinode"},
        "available_node_types": kinds, "head_node_type": "ray.head.default", "auth": {}, "docker": {}, "file_mounts": {},
        "file_mounts_sync_continuously": False, **empty}))  # fmt: skip
    port = free_port()
    env = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_FAKE_CLUSTER": "1",
           "RAY_OVERRIDE_NODE_ID_FOR_TESTING": head}  # fmt: skip
    command = [str(BIN / "ray"), "start", "--head", f"--port={port}", "--node-ip-address=127.0.0.1", "--num-cpus=1", "--include-dashboard=false",
               f"--temp-dir={scratch / 'ray'}", f"--autoscaling-config={scratch / 'scaling.json'}", f"--ray-client-server-port={free_port()}",
               f"--dashboard-agent-listen-port={free_port()}", "--min-worker-port=0", "--max-worker-port=0", "--object-store-memory=100000000",
               "--disable-usage-stats", "--block"]  # fmt: skip
    with open(scratch / "log", "wb") as log:
        ray = subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
    until = time.monotonic() + 60
    while b"Ray runtime started" not in (scratch / "log").read_bytes():
        assert ray.poll() is None and time.monotonic() < until, (scratch / "log").read_text()
        time.sleep(0.2)
    yield f"127.0.0.1:{port}"
    ray.terminate()
    ray.wait(20)
    shutil.rmtree(scratch, ignore_errors=True)


def test_where_nodes_will_come_workers_that_do_not_fit_are_a_warning_and_not_a_failure(scaling, tmp_path):
    asks = profile(tmp_path, scaling, ray_num_workers=4, resources_per_worker={"GPU": 1})
    with ray_cluster(load(asks)):
        until = time.monotonic() + 20  # the autoscaler's first report
        while cluster.to_come() is None and time.monotonic() < until:
            time.sleep(0.5)
    placed = next(finding for finding in doctor.examine(asks) if finding.found.startswith("4 workers of 1 GPU"))
    assert placed.status == "WARN" and "the cluster scales" in placed.found and "fixed" not in placed.found
