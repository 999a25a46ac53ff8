"""The preflight against a hub and an MLflow of our own on loopback, and its reading of what a cluster has."""

import contextlib
import json
import os
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from helpers import cluster, profiles, runs
from helpers.errors import KitError
from kto import doctor, nodes

MODEL = "meta-llama/Meta-Llama-3-8B-Instruct"
TOKEN = "canary-hub-token-51c0"


class Gate(BaseHTTPRequestHandler):
    """A hub with one gated model, and an MLflow, behind the same token."""

    def do_GET(self):
        known = self.path == f"/{MODEL}/resolve/main/config.json"
        self.answer(404 if not known else 200 if self.let_in() else 401, {"hidden_size": 4096})

    def do_POST(self):
        self.answer(200 if self.let_in() else 403, {"experiments": []})

    def let_in(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def answer(self, code: int, body: dict) -> None:
        self.send_response(code)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def gate(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Gate)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for name in ("HF_TOKEN", "MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.server_port}")
    yield server
    server.shutdown()


def test_a_gated_model_is_refused_without_the_token_and_given_with_it(gate, monkeypatch):
    shape, (refused,) = doctor.base_model(MODEL)
    assert shape is None and refused.status == "FAIL" and "no token (HF_TOKEN is not set)" in refused.found and "licence" in refused.remedy
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    shape, (given,) = doctor.base_model(MODEL)
    assert shape == {"hidden_size": 4096} and given.status == "OK" and TOKEN not in str(given)


def test_an_unknown_model_and_a_hub_that_is_away_are_told_apart(gate, monkeypatch):
    assert "knows no model" in doctor.base_model("meta-llama/Meta-Lama")[1][0].found
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert "did not answer" in doctor.base_model(MODEL)[1][0].found


def test_an_mlflow_that_refuses_fails_and_one_that_is_away_warns(gate, monkeypatch):
    assert doctor.mlflow().status == "FAIL"
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", TOKEN)
    assert doctor.mlflow().status == "OK"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert doctor.mlflow().status == "WARN" and "kto track" in doctor.mlflow().remedy


def test_a_cluster_that_takes_connections_and_never_answers_is_a_finding_in_time(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "LIMIT", 5.0)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{silent.getsockname()[1]}")
        began = time.monotonic()
        found = doctor.examine("ray", str(tmp_path))
        assert time.monotonic() - began < 30  # 5 and what comes before; Ray itself would try for 35 and more
    assert [f.status for f in found if "did not answer, within 5 s" in f.found] == ["FAIL"]


def test_a_dataset_is_registered_or_to_be_registered_or_missing(tmp_path):
    import tiny

    name = tiny.dataset(tmp_path / "datasets")
    data, there = doctor.dataset(tmp_path, name)
    assert there.status == "OK" and len(data) == 1 and "registered" in there.found
    assert doctor.dataset(tmp_path, "short_answers")[1].status == "OK"
    assert doctor.dataset(tmp_path, "no_such_data")[1].status == "FAIL"


L40S = {"CPU": 48, "GPU": 4, "accelerator_type:L40S": 1, "anyscale/accelerator_shape:4xL40S": 1}
PINNED = {"ray_num_workers": 4, "resources_per_worker": {"GPU": 1, "anyscale/accelerator_shape:4xL40S": 0.001}}


@pytest.mark.parametrize(("config", "there", "more", "status", "words"), [
    (PINNED, [L40S], None, "OK", "4 workers"),
    (PINNED, [{"CPU": 48, "GPU": 4, "accelerator_type:H100": 1}], None, "FAIL", "lacking: anyscale/accelerator_shape:4xL40S; the cluster is fixed"),
    (PINNED, [{"CPU": 8}], L40S, "WARN", "scales, far enough"),
    (PINNED, [{"CPU": 8}], {"CPU": 99, "GPU": 2}, "FAIL", "never have more than GPU 2"),
    (PINNED, [{"CPU": 8}], {}, "WARN", "does not say"),
    ({"ray_num_workers": 2, "resources_per_worker": {"GPU": 2}}, [{"CPU": 9, "GPU": 3}, {"CPU": 9, "GPU": 1}], None, "FAIL", "1 fit"),
    ({"ray_num_workers": 2, "resources_per_worker": {"GPU": 1, "accelerator_type:L40S": 0.001}}, [L40S], None, "OK", "fit"),
    ({"ray_num_workers": 2, "resources_per_worker": {"CPU": 1}}, [{"CPU": 2}], None, "FAIL", "trainer, which takes one CPU, 1 fit"),
])  # fmt: skip
def test_workers_are_placed_node_by_node_with_their_pins(config, there, more, status, words):
    found = cluster.placed(config, there, more)
    assert found[0] == status and words in found[1]


def test_a_launch_here_takes_the_kind_of_gpu_as_pinned():
    config = {"ray_init_kwargs": {"num_cpus": 8, "num_gpus": 1, "resources": {"place": 2}},
              "resources_per_worker": {"GPU": 1, "accelerator_type:L40S": 0.001}}  # fmt: skip
    there, more = cluster.capacity(profiles.load("local"), config)
    assert cluster.placed(config, there, more)[0] == "OK"
    assert cluster.machine(config) == {"CPU": 8, "GPU": 1, "place": 2}


def answer(**changed) -> dict:
    mine = {row["package"]: row["installed"] for row in cluster.packages()}
    return {"name": "10.0.0.2", "python": "3.11", "versions": mine, "storage": "", "free": 99.0, "data": {}, "hub": None,
            "gpus": [("NVIDIA L40S", 45.0)]} | changed  # fmt: skip


def test_what_a_node_has_otherwise_is_named_with_the_node():
    mine = answer()["versions"]
    said = {f.status: f for f in nodes.compare([answer(), answer(name="10.0.0.3", versions=mine | {"peft": "0.17.0"})], [*mine], {})}
    assert f"10.0.0.3: peft 0.17.0 (here: {mine['peft']})" in said["FAIL"].found
    wrong = answer(storage="does not see what was written there from here", free=1.0, data={"/s/d.jsonl": "cannot be read: No such file"})
    failed = " ".join(f.found for f in nodes.compare([wrong], [*mine], {"/s/d.jsonl": "abc"}) if f.status == "FAIL")
    assert "10.0.0.2 does not see" in failed and "1.0 GiB free" in failed and "d.jsonl cannot be read" in failed


@pytest.mark.parametrize(("name", "own", "asked"), [
    ("ray", {}, "the packages"), ("anyscale", {}, "the ray and torch"), ("ray", {"runtime_env": {"pip": ["peft==0.17.0"]}}, "the ray and torch"),
])  # fmt: skip
def test_packages_that_ray_brings_are_not_looked_for_on_the_nodes(tmp_path, monkeypatch, name, own, asked):
    @contextlib.contextmanager
    def joined(profile, **kwargs):
        yield None

    monkeypatch.setattr(cluster, "ray_cluster", joined)
    monkeypatch.setattr(cluster, "nodes", lambda ray: [L40S])
    monkeypatch.setattr(cluster, "to_come", lambda: None)
    monkeypatch.setattr(cluster, "on_each_node", lambda ray, look, *given, patience: [("node", look(*given), "")])
    config = {"ray_init_kwargs": own, "ray_num_workers": 1}
    question = {"profile": name, "configs": {"mine.yaml": config}, "storage": str(tmp_path), "data": {}, "model": "", "shape": None,
                "accelerated": "auto"}
    assert f"every node has {asked} and the Python that are here" in [finding.found for finding in nodes.everywhere(question)]


def test_a_cluster_that_does_not_answer_is_said_before_ray_is_asked(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)  # Ray would try for 35 seconds and more
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    with pytest.raises(KitError, match="no Ray cluster answers at 127.0.0.1:9"):
        cluster.resources(profiles.load("ray"))


def test_a_profile_of_ones_own_is_a_few_lines(tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "storage: /data/kto\ntrain_config: kto_lora.yaml\nmodel_name_or_path: org/model\ntemplate: llama3\ndataset: short_answers\n"
    )
    mine = profiles.load(str(tmp_path / "mine.yaml"))
    assert str(profiles.storage_for(mine)) == "/data/kto" and mine.gpu and mine.ray_address == "auto"


def test_a_job_does_not_take_the_workspaces_own_storage(monkeypatch):
    monkeypatch.delenv("KTO_STORAGE", raising=False)
    anyscale = profiles.load("anyscale")
    assert str(profiles.storage_for(anyscale)) == "/mnt/cluster_storage/kto"
    monkeypatch.setenv("ANYSCALE_PRODJOB_ID", "prodjob_1")
    assert str(profiles.storage_for(anyscale)) == "/mnt/user_storage/kto"
    assert str(profiles.storage_for(anyscale, "/mnt/shared_storage/kto")) == "/mnt/shared_storage/kto"
    with pytest.raises(KitError, match="belongs to the workspace's own cluster"):
        profiles.storage_for(anyscale, "/mnt/cluster_storage/kto")


def looked(mark, **asked) -> dict:
    return nodes.look(str(mark), ["ray", "no-such-package"], asked.get("data", {}), "")


def test_a_node_that_does_not_see_the_storage_writes_nothing_there(tmp_path):
    assert "does not see" in looked(tmp_path / "elsewhere")["storage"] and not (tmp_path / "elsewhere").exists()


def test_a_node_says_what_it_has_and_what_it_cannot_read(tmp_path):
    (tmp_path / "data.jsonl").write_text("{}")
    answer = looked(tmp_path, data={str(tmp_path / "data.jsonl"): "", "/none": ""})
    assert answer["storage"] == "" and answer["versions"]["ray"][0] == "2"
    assert answer["versions"]["no-such-package"] == "missing"
    assert answer["data"]["/none"].startswith("cannot be read") and len(answer["data"][str(tmp_path / "data.jsonl")]) == 64


@pytest.mark.slow
def test_a_node_that_fails_at_the_question_is_told_from_one_that_is_slow(tmp_path):
    with cluster.ray_cluster(profiles.load("local"), num_cpus=1) as ray:
        ((address, told, why),) = cluster.on_each_node(ray, nodes.look, str(tmp_path), [], None, "", patience=60)  # data is None
        assert address == "127.0.0.1" and told is None and why.startswith("could not answer: TypeError")
        ((_, told, why),) = cluster.on_each_node(ray, nodes.look, str(tmp_path), [], {}, "", patience=0)
        assert told is None and why == "did not answer within 0 s"


def test_a_home_that_cannot_be_written_sends_caches_to_the_storage_and_a_long_temp_folder_rays_files_to_tmp(tmp_path, monkeypatch):
    for name in ("HF_HOME", "XDG_CACHE_HOME", "MPLCONFIGDIR", "RAY_TMPDIR", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "IPYTHONDIR",
                 "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, "x")
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TMPDIR", "/tmp")
    assert runs.settle(tmp_path) == [] and "HF_HOME" not in os.environ
    monkeypatch.setenv("HOME", str(tmp_path / "none"))
    monkeypatch.setenv("TMPDIR", "/tmp/" + "x" * 40)
    home, temp = runs.settle(tmp_path)
    assert "does not exist" in home and os.environ["HF_HOME"] == str(tmp_path / ".cache" / "huggingface")
    assert "too long for Ray's sockets" in temp and os.environ["RAY_TMPDIR"] == "/tmp"
    assert runs.settle(tmp_path) == []  # it is said once


@pytest.mark.slow
def test_the_local_profile_is_found_well_in_under_20_seconds(tmp_path):
    import time

    started = time.monotonic()
    findings = doctor.examine("local", str(tmp_path))
    assert [f for f in findings if f.status != "OK"] == [] and len(findings) >= 8
    assert time.monotonic() - started < 40  # 20 on a machine that does nothing else
    assert list(tmp_path.iterdir()) == []


def test_the_doctor_judges_packages_as_notebook_1_does(monkeypatch):
    row = {"package": "ray", "required": "2.48.0 to 2.60", "installed": "2.47.1", "ok": False}
    monkeypatch.setattr(cluster, "packages", lambda: [row])
    (old,) = nodes.tried(doctor.packages)
    assert old.status == "FAIL" and "ray 2.47.1 is older" in old.found and "make install" in old.remedy
    monkeypatch.setattr(cluster, "packages", lambda: [row | {"installed": "2.61.0"}])
    assert [finding.status for finding in doctor.packages()] == ["WARN"]
