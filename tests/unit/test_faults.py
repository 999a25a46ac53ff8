"""Faults in the middle of a training. Real are the trainer, Ray, MLflow's server, the kernel, the file systems and the kills.

A stand-in prints instead of a training where only its processes and its log matter.
"""

import os
import subprocess
import sys
import threading
import time

import pytest
import tiny
import yaml
from mlflow_server import Server, what_mlflow_has
from unit.processes import VARIABLE, marked

from helpers import cluster, launch, metrics, runs, tracking
from helpers.errors import KitError
from helpers.profiles import ROOT

MARK = f"faults-{os.getpid()}"
WAITS = "import time; print('started', flush=True); time.sleep(600)"


def prepare(run, **settings) -> None:
    """A config for `run`: the tiny model on forty rows, for ever."""
    base, data = tiny.model(run.models / "tiny"), tiny.dataset(run.datasets, tiny.REPLIES * 8)
    ray = {"address": "local", "num_cpus": 2, "include_dashboard": False}
    config = {
        **tiny.config(base, run.datasets), "dataset": data, "do_train": True, "output_dir": str(run.output_dir),
        "ray_run_name": run.name, "ray_storage_path": str(run.storage), "overwrite_cache": True, "report_to": "none",
        "logging_steps": 2, "save_steps": 1_000_000, "per_device_train_batch_size": 4, "max_steps": 1_000_000,
        "learning_rate": 1e-4, "disable_gradient_checkpointing": True, "ray_num_workers": 1,
        "resources_per_worker": {"CPU": 1}, "ray_init_kwargs": ray, **settings,
    }
    run.config_file.write_text(yaml.safe_dump(config))


def stand_in(run, monkeypatch, code: str) -> None:
    prepare(run)
    monkeypatch.setattr(launch, "command", lambda run, *_: [sys.executable, "-c", code])


def mount(*words) -> None:
    """`mount` with these words, or a skip where this user may not."""
    done = subprocess.run(["mount", *map(str, words)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"needs the right to mount a file system: {done.stderr.strip()}")


@pytest.fixture
def unmount():
    """A list of folders, unmounted at the end."""
    mounted = []
    yield mounted
    for folder in reversed(mounted):
        subprocess.run(["umount", "-l", folder], check=True)


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    """One training on Ray: MLflow's server goes away and comes back, then the raylet is killed. What was seen, by name."""
    folder, seen = tmp_path_factory.mktemp("story"), {}
    server = Server(folder)
    starting = threading.Thread(target=server.start)
    starting.start()
    run = runs.start("local", str(folder / "storage"), "faulty")
    prepare(run)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", server.url)
        patch.setenv(VARIABLE, MARK)
        training = launch.start(run)
        patch.delenv(VARIABLE)  # MLflow's server is started again later, and is no process of the training
        starting.join()
        tracker = tracking.Tracker(run)
        try:
            for number, _ in enumerate(follow(training, tracker, seen)):
                if number == 0:
                    server.stop()
                elif number == 1:
                    server.start()
                elif number == 2:
                    seen["refusal"] = too_large(run, training)
                    killed = [process for process in marked(MARK) if process.name() == "raylet"]
                    killed[0].kill()
                    seen["killed"] = time.monotonic()
            seen["seconds to the end"] = time.monotonic() - seen["killed"]
            with pytest.raises(KitError) as error:
                training.check()
            seen["explained"], seen["left"] = str(error.value), marked(MARK)
            seen["table"] = metrics.table(run.log_file)
            seen["tracked"] = tracker.close(seen["table"])
            seen["in mlflow"] = what_mlflow_has(run, run.record()["tracking"]["run_id"])
            seen["run"] = run
            yield seen
        finally:
            training.stop()
            server.stop()


def follow(training, tracker, seen):
    """Feeds the tracker, and yields whenever twenty more windows were logged; their numbers go to `seen`."""
    windows, seen["windows"] = 0, []
    for events in training.events():
        windows += sum(event.kind == "metrics" for event in events)
        if windows >= 20 * (len(seen["windows"]) + 1):
            seen["windows"].append(windows)
            tracker.send(metrics.table(training.run.log_file))
            yield


def too_large(run, training) -> tuple[str, float]:
    """What a launch that asks the running Ray instance for four GPUs is told, and after how many seconds."""
    raylet = next(process for process in marked(MARK) if process.name() == "raylet")
    address = next(word.partition("=")[2] for word in raylet.cmdline() if word.startswith("--gcs-address="))
    greedy = runs.Run(run.profile.model_copy(update={"ray_address": address}), run.storage, "greedy")
    greedy.folder.mkdir()
    prepare(greedy, ray_num_workers=4, resources_per_worker={"GPU": 1}, ray_init_kwargs={})
    code = f"""
import time
import ray
from helpers import launch, profiles, runs
from helpers.errors import KitError
began, profile = time.monotonic(), profiles.load("local").model_copy(update={{"ray_address": {address!r}}})
try:
    launch.start(runs.Run(profile, runs.locate("local", {str(run.storage)!r}, "greedy").storage, "greedy"))
except KitError as error:
    print(time.monotonic() - began, error)
"""  # of its own, as a Ray on loopback is joined by processes that were told so before they imported ray
    env = {**os.environ, "PYTHONPATH": str(ROOT), cluster.LOOPBACK[0]: cluster.LOOPBACK[1]}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=480)
    seconds, said = done.stdout.split(" ", 1)
    return said, float(seconds)


@pytest.mark.slow
def test_mlflow_stopped_and_started_again_ends_no_training_and_loses_nothing(story):
    assert len(story["windows"]) >= 3 and story["tracked"].startswith("MLflow has the run 'faulty'")
    columns = [name for name in story["table"].columns if name not in tracking.UNITS]
    for row in story["table"].to_dict("records"):
        for name in columns:
            assert story["in mlflow"].get((name, row["step"])) == (row[name] if row[name] == row[name] else None)


@pytest.mark.slow
def test_what_a_running_cluster_cannot_hold_is_refused_at_once(story):
    said, seconds = story["refusal"]
    assert "4 workers of 1 GPU are asked for, 0 fit" in said and "the cluster is fixed" in said
    assert seconds < 60  # 2 on an idle machine; Ray itself would wait for ever


@pytest.mark.slow
def test_a_killed_raylet_ends_the_training_with_every_process_and_is_explained(story):
    assert story["seconds to the end"] < 180 and story["left"] == []
    assert story["explained"].startswith("a node was lost: ") and str(story["run"].log_file) in story["explained"]
    assert story["run"].record()["training"]["status"] == "failed"


@pytest.mark.slow
def test_a_storage_that_becomes_read_only_is_explained_and_what_was_saved_stays(run, monkeypatch, unmount, mark):
    """With LLaMA-Factory alone, without Ray. The storage is mounted over itself, since files in it are open."""
    prepare(run, save_steps=5)
    settings = launch.environment(run) | {"USE_RAY": "0"}
    monkeypatch.setattr(launch, "environment", lambda run, launcher: settings)
    training, saved = launch.start(run, "llamafactory-cli"), run.output_dir / "checkpoint-5" / "trainer_state.json"
    for _ in training.events():
        if saved.exists() and not unmount:
            mount("--bind", run.storage, run.storage)
            unmount.append(run.storage)
            mount("-o", "remount,bind,ro", run.storage)
    with pytest.raises(KitError) as error:
        training.check()
    assert "the storage became read-only: OSError: [Errno 30]" in str(error.value) and "resume" in str(error.value)
    assert marked(mark) == [] and not launch.is_alive(run)
    assert run.record()["run_name"] == "first-run" and saved.exists()


@pytest.mark.slow
@pytest.mark.parametrize("token", ["", "hf_canary_0123456789"])
def test_a_full_disk_is_explained_though_the_log_ends_before_it(tmp_path, monkeypatch, unmount, token):
    """With a token in the environment this process stands between the training and its log."""
    monkeypatch.setenv("HF_TOKEN", token)
    mount("-t", "tmpfs", "-o", "size=4m", "kto-test", tmp_path)
    unmount.append(tmp_path)
    run = runs.start("local", str(tmp_path / "storage"), "first-run")
    stand_in(run, monkeypatch, "for _ in range(8000): print('step' * 250, flush=True)\nraise SystemExit(3)")
    before = run.record()["run_name"]
    with pytest.raises(KitError, match="the disk is full: ") as error:
        launch.start(run).wait()
    assert str(run.log_file) in str(error.value) and "free space" in str(error.value)
    assert run.record()["run_name"] == before and not list(run.folder.glob("*.partial"))
    run.log_file.unlink()
    stand_in(run, monkeypatch, "print('again')")
    assert launch.start(run).wait().run.record()["training"]["status"] == "finished"


@pytest.mark.slow
def test_a_kernel_that_is_interrupted_ends_the_training_and_stays_alive(run, mark):
    from jupyter_client.manager import start_new_kernel

    prepare(run)
    manager, client = start_new_kernel()
    try:
        client.execute(f"""
import sys
from helpers import launch, runs
launch.command = lambda run, *_: [sys.executable, "-c", {WAITS!r}]
training = launch.start(runs.locate("local", {str(run.storage)!r}, "first-run"))
training.wait()
""", stop_on_error=False)  # else a question that comes within a moment of the error is aborted
        until = time.monotonic() + 120
        while not (run.log_file.exists() and b"started" in run.log_file.read_bytes()):
            assert time.monotonic() < until
            time.sleep(0.1)
        started = [process for process in marked(mark) if process.cmdline()[1:2] == ["-c"]]
        assert started
        began = time.monotonic()
        manager.interrupt_kernel()
        while any(process.is_running() for process in started):
            assert time.monotonic() - began < 60  # of 600
            time.sleep(0.1)
        assert client.get_shell_msg(timeout=60)["content"]["ename"] == "KeyboardInterrupt"
        assert client.execute("training", reply=True, timeout=60)["content"]["status"] == "ok"
        assert run.record()["training"]["status"] == "stopped"
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def test_of_two_launches_at_the_same_moment_one_trains_and_the_other_is_told_so(run, monkeypatch):
    stand_in(run, monkeypatch, WAITS)
    together, started, told = threading.Barrier(2), [], []

    def start():
        together.wait()
        try:
            started.append(launch.start(run))
        except KitError as error:
            told.append(str(error))

    threads = [threading.Thread(target=start) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for training in started:
        training.stop()
    assert len(started) == len(told) == 1 and ("in use" in told[0] or "being trained" in told[0])
