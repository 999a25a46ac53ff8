"""What every supported stack must do: two-worker training, a killed worker, resume, found checkpoints, curves.

`make test` runs it on the default lock, `make test-stacks` on the others, each in an environment of its own. It needs nothing but
the launcher, a model of 60,000 weights and two cores, and takes about three minutes a stack. Ray decides whether Train V1 or V2 runs;
RAY_TRAIN_V2_ENABLED=0 or 1 does so by hand.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest
from pyarrow.fs import LocalFileSystem, copy_files

from helpers import checkpoints, choose, files, metrics
from helpers.profiles import ROOT

sys.path.insert(0, str(ROOT / "tests" / "unit"))
import tiny  # noqa: E402

pytest.importorskip("helpers.trainer", reason="NOT CHECKED: this tree has no launcher of its own (helpers/trainer.py)")
pytestmark = pytest.mark.slow
STEPS, SAVE, LOG = 60, 20, 2
LOOPBACK = {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


@pytest.fixture(scope="module")
def material(tmp_path_factory) -> dict:
    """The tiny model and its data, as a config names them."""
    folder = tmp_path_factory.mktemp("material")
    return tiny.config(tiny.model(folder / "model"), folder / "data") | {"dataset": tiny.dataset(folder / "data", tiny.REPLIES * 8)}


@pytest.fixture(scope="module")
def whole(material, tmp_path_factory) -> Path:
    """The folder of a training that nothing disturbed; what it listened on is in listening.json."""
    return train(tmp_path_factory.mktemp("whole"), material, note_ports)


def train(folder: Path, material: dict, meanwhile=lambda process, folder: None, **settings) -> Path:
    """Train in `folder` as anybody would by hand, calling `meanwhile` a few times a second; returns the folder."""
    config = material | {
        "do_train": True, "lora_target": "all", "overwrite_cache": True, "report_to": "none", "plot_loss": False,
        "output_dir": str(folder / "output"), "overwrite_output_dir": True, "max_steps": STEPS, "save_steps": SAVE,
        "logging_steps": LOG, "per_device_train_batch_size": 4, "learning_rate": 1e-3, "lr_scheduler_type": "cosine",
        "disable_gradient_checkpointing": True, "seed": 42, "ddp_timeout": 120, "preprocessing_num_workers": 1,
        "ray_run_name": "run", "ray_storage_path": str(folder / "ray"), "ray_num_workers": 2, "resources_per_worker": {"CPU": 1},
        "ray_init_kwargs": {"address": "local", "num_cpus": 3, "include_dashboard": False, "_node_ip_address": "127.0.0.1"},
    } | settings  # fmt: skip
    files.write(folder / "config.yaml", files.dump_yaml(config))
    quiet = {"HF_HUB_OFFLINE": "1", "RAY_USAGE_STATS_ENABLED": "0", "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}
    with (folder / "train.log").open("wb") as log:
        process = psutil.Popen(
            [sys.executable, "-m", "helpers.trainer", str(folder / "config.yaml"), "--retries", "1"],
            env=os.environ | quiet | {"PYTHONPATH": str(ROOT)}, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder,
        )  # fmt: skip
        try:
            end = time.monotonic() + 900
            while process.poll() is None and time.monotonic() < end:
                meanwhile(process, folder)
                time.sleep(0.2)
        finally:
            if (code := process.poll()) is None:
                process.terminate()
                process.wait(60)
    assert code == 0, (folder / "train.log").read_text()[-3000:]
    return folder


def note_ports(process, folder: Path) -> None:
    """Add to listening.json which of Ray's processes listens on what address, where that is not loopback.

    Not those of the two workers: the store by which torch brings them together listens everywhere, and has no setting for it.
    """
    noted = folder / "listening.json"
    seen = set(json.loads(noted.read_text())) if noted.exists() else set()
    for one in process.children(recursive=True):
        try:
            title = " ".join(one.cmdline())
            if "TrainWorker" in title or title.startswith("ray::execute."):  # Ray 2.57 and 2.60 name a worker by what it runs
                continue
            there = {place.laddr.ip for place in one.net_connections() if place.status == psutil.CONN_LISTEN}
            seen |= {f"{one.cmdline()[0].split('/')[-1]} on {ip}" for ip in there - LOOPBACK}
        except psutil.Error:
            continue  # it ended meanwhile
    noted.write_text(json.dumps(sorted(seen)))


def kill_a_worker(process, folder: Path) -> None:
    """Kill one of the two workers as soon as a whole checkpoint lies in the storage, whether Ray has noted it or not; once."""
    trials = folder / "ray" / "run"
    if (folder / "killed").exists() or not trials.exists() or not any(item.complete for item in checkpoints.find(trials)):
        return
    for one in process.children(recursive=True):
        try:
            if "TrainWorker" in " ".join(one.cmdline()):
                one.kill()
                (folder / "killed").touch()
                return
        except psutil.Error:
            continue


def losses(folder: Path, storage: Path | str = "") -> dict[int, float]:
    """step -> loss, as the trainer itself recorded them in the last checkpoint in `storage`, else in `folder`."""
    last = choose.fetch(checkpoints.find(storage or folder / "ray")[-1], folder / "fetched")
    history = json.loads((Path(last.path) / "trainer_state.json").read_text())["log_history"]
    return {line["step"]: line["loss"] for line in history if "loss" in line}


def test_two_workers_train_to_the_end_and_every_checkpoint_is_found_complete(whole):
    assert sorted(losses(whole)) == list(range(LOG, STEPS + 1, LOG))
    found = checkpoints.find(whole / "ray")
    assert [item.step for item in found] == list(range(SAVE, STEPS + 1, SAVE)) and all(item.complete for item in found)
    assert all("TorchTrainer" in str(item.path) for item in found)  # a folder for each launch, on Train V1 and V2


def test_the_curves_are_what_the_trainer_recorded(whole):
    table = metrics.table(whole / "train.log")
    assert list(table["step"]) == list(range(LOG, STEPS + 1, LOG))  # one row a window, however many workers report it
    last = checkpoints.find(whole / "ray")[-1]
    assert len(metrics.reconcile(table, Path(last.path) / "trainer_state.json")) == 0
    assert table["rewards/margins"].iloc[-5:].mean() > table["rewards/margins"].iloc[:5].mean()


def test_a_local_training_listens_on_loopback_alone(whole):
    assert json.loads((whole / "listening.json").read_text()) == []


def test_a_killed_worker_is_replaced_and_the_losses_are_those_of_an_undisturbed_training(whole, material, tmp_path):
    hurt = train(tmp_path, material, kill_a_worker)
    assert (hurt / "killed").exists() and "[kto] resume_from_checkpoint: /" in (hurt / "train.log").read_text()
    assert losses(hurt) == losses(whole)


def test_a_resumed_training_has_the_losses_of_an_undisturbed_one(whole, material, tmp_path):
    first = checkpoints.find(whole / "ray")[0]
    resumed = train(tmp_path, material, resume_from_checkpoint=str(first.path))
    assert losses(resumed) == losses(whole)
    assert metrics.table(resumed / "train.log")["step"].min() == SAVE + LOG


def test_a_training_resumes_from_a_bucket_and_keeps_its_checkpoints_in_one(whole, material, tmp_path, s3, monkeypatch):
    """At the endpoint that AWS_ENDPOINT_URL names: an S3 server on loopback. The copy is made once, for both workers."""
    first, settings = checkpoints.find(whole / "ray")[0], {"ray_storage_filesystem": "s3", "ray_storage_path": "kto/runs"}
    s3.create_dir("kto")
    copy_files(str(first.path), "kto/earlier", source_filesystem=LocalFileSystem(), destination_filesystem=s3)
    with tempfile.TemporaryDirectory(prefix="kto") as short:  # Ray's sockets lie in it
        monkeypatch.setenv("TMPDIR", short)
        resumed = train(tmp_path, material, resume_from_checkpoint="s3://kto/earlier", **settings)
        copies = [str(path) for path in Path(short).glob("kto-checkpoint-*") if path.is_dir()]
    assert losses(resumed, "s3://kto/runs/run") == losses(whole)
    assert len(copies) == 1 and f"[kto] resume_from_checkpoint: {copies[0]}" in (resumed / "train.log").read_text()
