"""A training killed with SIGKILL, at random moments and in the middle of a save, ends with the weights of one that was not.

Real Ray, real LLaMA-Factory, two CPU workers, saves inside epochs and at their ends; an epoch is three updates, the third of
one micro-batch in place of three. The model is a Llama of two layers, so that nearly all of the time is starting up. KTO_KILL_SEED=N repeats the moments of a run that said `seed N`.
"""

import os
import random
import re
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from unit import tiny
from unit.processes import VARIABLE, marked

from helpers import checkpoints, choose, launch, metrics, runs, tracking
from helpers.errors import KitError
from helpers.profiles import ROOT
from kto import pipeline

pytestmark = pytest.mark.slow
STEPS, EVERY = 40, 4


def prepared(storage: Path, name: str) -> runs.Run:
    """A run on the tiny model, ready to be launched."""
    run = runs.start("local", str(storage), name)
    base = run.models / "tiny"
    rows = [(f"{question} ({number})", reply, label) for number in range(11) for question, reply, label in tiny.REPLIES][:52]
    config = yaml.safe_load((ROOT / "train-configs" / "kto_lora_local.yaml").read_text()) | {
        "model_name_or_path": str(base if base.exists() else tiny.model(base)), "template": "smollm2",
        "dataset": tiny.dataset(run.datasets, rows), "dataset_dir": str(run.datasets), "output_dir": str(run.output_dir),
        "ray_run_name": run.name, "ray_storage_path": str(run.storage), "max_steps": STEPS, "save_steps": EVERY,
        "logging_steps": 1, "cutoff_len": 96, "gradient_accumulation_steps": 3}
    run.config_file.write_text(yaml.safe_dump(config))
    return run


def killed(training: launch.Training, whom: str, moment) -> None:
    """SIGKILL to `whom` as soon as `moment(training)` is true: a worker, the driver, or all processes of it at once."""
    wait(training, logged(1))
    processes = marked(os.environ[VARIABLE])
    workers = [process for process in processes if "RayTrainWorker" in " ".join(process.cmdline())]
    whom = {"worker": workers[:1], "driver": [training.process], "all": workers + processes}[whom]
    wait(training, moment)
    for process in whom:
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)


def wait(training: launch.Training, moment) -> None:
    until = time.monotonic() + 200
    while not moment(training):
        assert training.process.poll() is None and time.monotonic() < until, "the training ended before it was killed"
        time.sleep(0.001)


def explained(training: launch.Training) -> str:
    """How the killed training ended, in its error's words; no process of it is left."""
    began = time.monotonic()
    with pytest.raises(KitError) as error:
        training.wait()
    assert time.monotonic() - began < 60
    while left := [one.cmdline() for one in marked(os.environ[VARIABLE])]:
        assert time.monotonic() - began < 20, left
        time.sleep(0.5)
    assert training.run.record()["training"]["status"] == "failed"
    return str(error.value)


def logged(step: int, later: float = 0.0):
    """The moment `later` seconds after that step's bar was drawn."""
    seen = []

    def moment(training) -> bool:
        new = training.run.log_file.read_bytes()[training.begins :]
        if not seen and any(int(done) >= step for done in re.findall(rb"\| (\d+)/%d \[[^\]]*it" % STEPS, new)):
            seen.append(time.monotonic())
        return bool(seen) and time.monotonic() - seen[0] >= later

    return moment


def saving(step: int):
    """The moment when a checkpoint's folder is there, and not yet the file that is written last."""

    def moment(training) -> bool:
        folder = next(iter(training.run.folder.glob(f"output*/checkpoint-{step}")), None)
        return folder is not None and not (folder / "trainer_state.json").exists()

    return moment


def weights(run: runs.Run) -> bytes:
    last, _ = choose.latest(checkpoints.find(run))
    assert last.step == STEPS
    return (Path(last.path) / "adapter_model.safetensors").read_bytes()


def resumed(run: runs.Run) -> tuple[launch.Training, int]:
    """The run launched again as `run --resume auto` does, and the step it goes on from."""
    begin, says = pipeline.prepare_resume(run)
    assert begin == "04"
    return launch.start(run, retries=0), int(says.rsplit(" ", 1)[1])


def test_a_training_killed_again_and_again_loses_nothing(tmp_path, monkeypatch, mark):
    seed = int(os.environ.get("KTO_KILL_SEED") or random.randrange(1000))
    print("seed", seed)
    chance, broken = random.Random(seed), prepared(tmp_path, "broken")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    training = launch.start(broken, retries=0)
    killed(training, "worker", logged(chance.randint(5, 12), chance.uniform(0, 0.2)))
    assert "a worker was lost" in explained(training)
    sent = tracking.sync(broken, metrics.table(broken.log_file, 1))

    training, first = resumed(broken)
    half = 4 * chance.randint(5, 6)
    killed(training, "all", saving(half))
    explained(training)
    cut_short = [item for item in checkpoints.find(broken) if item.step == half]
    assert [item.complete for item in cut_short] == [False], "it was killed before or after the save, not during it"

    training, second = resumed(broken)
    killed(training, "driver", logged(chance.randint(28, 33), chance.uniform(0, 0.2)))
    explained(training)

    training, third = resumed(broken)
    training.wait()
    assert 4 <= first <= 16 and second == half - EVERY and 24 <= third <= 36

    whole = prepared(tmp_path, "whole")
    launch.start(whole).wait()
    assert weights(broken) == weights(whole)

    curves = [metrics.table(run.log_file, 1) for run in (broken, whole)]
    told = set(curves[0]["step"])  # what a worker logged last may not have reached its driver when that was killed: then it is nowhere printed
    assert told <= {*range(1, STEPS + 1)} and {*range(1, STEPS + 1)} - told <= {*range(third - 3, third + 1)}
    columns, there = ["step", "loss", "kl", "rewards/margins"], curves[1]["step"].isin(told)
    curves[1] = curves[1][there].reset_index(drop=True)
    assert curves[0][columns].equals(curves[1][columns])

    again = tracking.sync(broken, curves[0])
    assert again["run_id"] == sent["run_id"]
    history = tracking.client(broken).get_metric_history(sent["run_id"], "loss")
    assert sorted((point.step, point.value) for point in history) == list(zip(curves[1]["step"], curves[1]["loss"], strict=True))
