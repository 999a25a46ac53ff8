"""Launching, following and ending a training: the processes are real, the training is a stand-in that prints and waits."""

import os
import signal
import subprocess
import sys
import time

import pytest
import yaml
from filelock import FileLock
from unit.processes import marked

from helpers import launch, runs
from helpers.errors import KitError

TREE = """
import subprocess, sys, threading, time
from helpers.trainer import end_with_stdin
threading.Thread(target=end_with_stdin, daemon=True).start()
child = subprocess.Popen([sys.executable, '-c', 'import os, time\\nwhile os.getppid() == ' + str(__import__("os").getpid()) + ': time.sleep(0.1)'])
print('started', flush=True)
time.sleep(600)
"""


@pytest.fixture
def ready(run):
    """A run with a config that asks for no GPU."""
    run.config_file.write_text(
        yaml.safe_dump(
            {
                "model_name_or_path": str(run.models),
                "ray_num_workers": 2,
                "resources_per_worker": {"CPU": 1},
                "ray_init_kwargs": {"num_cpus": 3},
            }
        )
    )
    return run


def stand_in(monkeypatch, code: str) -> None:
    monkeypatch.setattr(launch, "command", lambda run, *_: [sys.executable, "-c", code])


def wait_for(condition, seconds: float = 60) -> bool:
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.1)
    return condition()


def test_the_log_is_what_the_command_printed_byte_for_byte(ready, monkeypatch):
    stand_in(monkeypatch, r"import os; os.write(1, b'one\r two\x1b[0m\n\xff'); os.write(2, b'three')")
    launch.start(ready).wait()
    assert ready.log_file.read_bytes() == b"one\r two\x1b[0m\n\xffthree"
    assert ready.record()["training"]["status"] == "finished"


def test_a_failing_command_is_an_error_with_its_last_line_and_the_logs_path(ready, monkeypatch):
    stand_in(monkeypatch, "import sys; print('working'); sys.exit('the disk is on fire')")
    with pytest.raises(KitError) as error:
        launch.start(ready).wait()
    assert "the disk is on fire" in str(error.value) and str(ready.log_file) in str(error.value)
    assert ready.record()["training"]["status"] == "failed"


def test_stopping_ends_every_process_of_the_training_and_no_other(ready, monkeypatch, mark):
    stand_in(monkeypatch, TREE)
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], env={})
    training = launch.start(ready)
    assert wait_for(lambda: len(marked(mark)) == 2 and b"started" in ready.log_file.read_bytes())
    began = time.monotonic()
    training.stop()
    assert time.monotonic() - began < 60  # of 600: 10 s are for an orderly end
    assert wait_for(lambda: marked(mark) == []) and other.poll() is None
    assert ready.record()["training"]["status"] == "stopped"
    other.kill()


def test_when_the_notebooks_process_dies_the_training_ends_too(ready, mark):
    code = f"""
import sys, time
from helpers import launch, runs
launch.command = lambda run, *_: [sys.executable, '-c', {TREE!r}]
training = launch.start(runs.locate('local', {str(ready.storage)!r}, 'first-run'))
print('launched', flush=True)
time.sleep(600)
"""
    kernel = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    kernel.stdout.readline()
    assert wait_for(lambda: len(marked(mark)) == 3 and b"started" in ready.log_file.read_bytes())
    os.kill(kernel.pid, signal.SIGKILL)
    kernel.wait()
    assert wait_for(lambda: marked(mark) == [])


def test_an_interrupted_cell_stops_the_training(ready, monkeypatch, mark):
    stand_in(monkeypatch, TREE)
    training = launch.start(ready)
    with pytest.raises(KeyboardInterrupt):
        for _ in training.events():
            if b"started" in ready.log_file.read_bytes():
                raise KeyboardInterrupt
    training.stop()
    assert wait_for(lambda: marked(mark) == [])


def test_of_two_launches_with_one_name_the_second_refuses(ready, monkeypatch):
    stand_in(monkeypatch, TREE)
    training = launch.start(ready)
    with pytest.raises(KitError, match="in use"):
        launch.start(ready)
    training.stop()


def test_a_resumed_launch_appends_to_the_log_and_keeps_what_was_launched(ready, monkeypatch):
    stand_in(monkeypatch, "print('first')")
    launch.start(ready).wait()
    ready.resume_file.write_text(ready.config_file.read_text())
    stand_in(monkeypatch, "print('second')")
    training = launch.start(ready).wait()
    assert ready.log_file.read_text() == "first\nsecond\n" and training.begins == len("first\n")
    assert (ready.folder / "resumed-1.yaml").exists() and not ready.resume_file.exists()
    assert [launched["status"] for launched in ready.record()["training"]["earlier"]] == ["finished"]
    with pytest.raises(KitError, match="in use"):
        launch.start(ready)


def test_a_run_that_is_being_trained_is_not_resumed_beside_itself(ready, monkeypatch):
    stand_in(monkeypatch, TREE)
    training = launch.start(ready)
    ready.resume_file.write_text(ready.config_file.read_text())
    with FileLock(ready.folder / "train.lock"), pytest.raises(KitError, match="being trained at this moment"):
        launch.start(ready)  # the lock is held as helpers.trainer holds it
    training.stop()


def test_the_hub_is_asked_where_the_model_or_an_adapter_to_start_from_is_in_it(ready):
    config = yaml.safe_load(ready.config_file.read_text())
    ready.models.mkdir(parents=True, exist_ok=True)
    for changed, asked in ({}, False), ({"model_name_or_path": "org/model"}, True), \
            ({"adapter_name_or_path": "org/adapter", "create_new_adapter": True}, True), \
            ({"adapter_name_or_path": str(ready.models), "create_new_adapter": True}, False):
        ready.config_file.write_text(yaml.safe_dump(config | changed))
        assert ("HF_HUB_OFFLINE" not in launch.environment(ready, "helpers.trainer")) is asked


def test_the_stock_command_which_asks_for_gpus_is_refused_where_there_are_none(ready):
    ready.config_file.write_text(yaml.safe_dump({"model_name_or_path": "m", "resources_per_worker": {"CPU": 1}, "ray_num_workers": 2,
                                                 "ray_init_kwargs": {"num_cpus": 3, "num_gpus": 0}}))
    with pytest.raises(KitError, match=r"(?s)2 workers of 1 GPU, 1 CPU are asked for, 0 fit .*take launcher helpers.trainer"):
        launch.start(ready, "llamafactory-cli")
    assert not ready.log_file.exists() and "training" not in ready.record()


def test_one_launcher_runs_every_profile_and_the_stock_command_is_an_explicit_choice(ready, monkeypatch):
    assert launch.command(ready)[1:] == ["-m", "helpers.trainer", str(ready.config_file), "--retries=2", "--accelerated=false"]
    monkeypatch.setenv("HF_TOKEN", "canary-1234567")  # no variable decides what is launched
    ready.config_file.write_text(yaml.safe_dump({"model_name_or_path": "m", "resources_per_worker": {"GPU": 1}}))
    assert launch.command(ready)[1:] == ["-m", "helpers.trainer", str(ready.config_file), "--retries=2", "--accelerated=false"]
    stock = launch.command(ready, launcher="llamafactory-cli")
    assert stock[0].endswith("llamafactory-cli") and stock[1:] == ["train", str(ready.config_file)]
    assert launch.environment(ready, "llamafactory-cli")["USE_RAY"] == "1"
    monkeypatch.setattr(sys, "executable", "/elsewhere/bin/python")  # where no script lies beside it
    assert launch.command(ready, launcher="llamafactory-cli")[:4] == ["/elsewhere/bin/python", "-m", "llamafactory.cli", "train"]
    with pytest.raises(KitError, match="there is no launcher 'torchrun'"):
        launch.command(ready, launcher="torchrun")


@pytest.mark.parametrize(("noted", "launched"), [("auto", "auto"), (True, "true"), ("true", "true"), (False, "false"), ("false", "false")])
def test_the_launched_process_is_told_which_trainer_the_run_asked_for(ready, noted, launched):
    ready.note(accelerated=noted)
    assert launch.command(ready)[4:] == ["--retries=2", f"--accelerated={launched}"]


def test_no_process_is_started_where_its_launch_cannot_be_noted(ready, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a process was started"))

    def full(*_, **__):
        raise KitError("No space left on device")

    monkeypatch.setattr(runs.Run, "note", full)
    with pytest.raises(KitError, match="No space left"):
        launch.start(ready)


def test_a_launch_that_could_never_start_is_refused_before_any_process_starts_and_leaves_no_log(ready, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a process was started"))
    ready.config_file.write_text(
        yaml.safe_dump(
            {
                "model_name_or_path": "m",
                "ray_num_workers": 4,
                "resources_per_worker": {"GPU": 1},
                "ray_init_kwargs": {"num_gpus": 2, "num_cpus": 8},
            }
        )
    )
    with pytest.raises(KitError, match="4 workers of 1 GPU are asked for, 2 fit"):
        launch.start(ready)
    assert not ready.log_file.exists()
