"""A training killed with SIGKILL, at random moments and in the middle of a save, ends with the weights of one that was not.

Real Ray, real LLaMA-Factory, two CPU workers; the model is a Llama of two layers so that a launch takes seconds.
"""

import hashlib
import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest
import yaml

from helpers import checkpoints, guard, launch, metrics, pipeline, runs
from helpers.profiles import ROOT

sys.path.insert(0, str(ROOT / "tests" / "unit"))
import tiny  # noqa: E402

pytestmark = pytest.mark.slow
STEPS, EVERY = 40, 4


def prepared(storage: Path, name: str) -> runs.Run:
    """A run on the tiny model, ready to be launched."""
    run = runs.start("local", str(storage), name)
    base = tiny.model(run.models / "tiny") if not (run.models / "tiny").exists() else run.models / "tiny"
    dataset = tiny.dataset(run.datasets, tiny.REPLIES * 8)
    config = yaml.safe_load((ROOT / "train-configs" / "kto_lora_local.yaml").read_text())
    config |= {
        "model_name_or_path": str(base),
        "template": "smollm2",
        "dataset": dataset,
        "dataset_dir": str(run.datasets),
        "output_dir": str(run.output_dir),
        "ray_run_name": run.name,
        "ray_storage_path": str(run.storage),
        "max_steps": STEPS,
        "save_steps": EVERY,
        "logging_steps": 1,
        "cutoff_len": 96,
        "lora_dropout": 0.1,
    }
    run.config_file.write_text(yaml.safe_dump(config))
    run.note(dataset={"name": dataset})
    return run


def weights(run: runs.Run) -> str:
    """The sha256 of the last checkpoint's adapter."""
    last, _ = checkpoints.latest(checkpoints.find(run))
    assert last.step == STEPS
    return hashlib.sha256((Path(last.path) / "adapter_model.safetensors").read_bytes()).hexdigest()


def kill(training: launch.Training) -> None:
    """SIGKILL to driver, workers and Ray at once; the guard sees its driver dead and clears up what is left."""
    for process in guard.marked(training.mark):
        try:
            os.kill(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    training.guardian.wait(20)


def until(training: launch.Training, moment) -> bool:
    """Follow the training until `moment(run)` is true; whether it came before the training's end."""
    began = time.monotonic()
    while training.guardian.poll() is None and time.monotonic() - began < 300:
        if moment(training.run):
            return True
        time.sleep(0.002)
    return False


def saved(run: runs.Run, step: int) -> Path:
    return next(iter(run.folder.glob(f"output*/checkpoint-{step}")), run.folder / "not-yet")


def test_a_training_killed_three_times_ends_with_the_weights_of_one_that_was_not(tmp_path):
    whole = prepared(tmp_path, "whole")
    launch.start(whole).wait()
    broken, moments = prepared(tmp_path, "broken"), random.Random(3)
    kills = [
        lambda run: saved(run, 8).exists() and moments.random() < 0.01,  # somewhere after the second save
        lambda run: saved(run, 20).exists() and not (saved(run, 20) / "trainer_state.json").exists(),  # during a save
        lambda run: saved(run, 28).exists() and moments.random() < 0.01,
    ]
    resumed_from = []
    for moment in kills:
        training = launch.start(broken)
        assert until(training, moment), "the training ended before it was killed"
        kill(training)
        training.stop()
        says = pipeline.prepare_resume(broken)
        resumed_from.append(int(says.rsplit(" ", 1)[1]))
    launch.start(broken).wait()
    assert resumed_from == sorted(resumed_from) and resumed_from[0] >= EVERY and resumed_from[1] <= 20
    assert weights(broken) == weights(whole)
    curves = [metrics.joined(run.log_file, 1).set_index("step")["loss"] for run in (broken, whole)]
    assert curves[0].equals(curves[1]) and len(curves[0]) == STEPS
