"""Following a training: the log is recorded from a real ill run, the process that prints it is a stand-in."""

import sys
import time

import pytest
import yaml

from helpers import follow, launch
from helpers.errors import KitError
from helpers.logs import Event
from helpers.plots import live
from helpers.profiles import ROOT

LOGS = ROOT / "tests" / "fixtures"


@pytest.fixture
def replayed(run, monkeypatch):
    """`replayed(log)`: a started training that prints that recorded log, then lives on for `rest` seconds."""
    run.config_file.write_text(
        yaml.safe_dump(
            {
                "model_name_or_path": "m",
                "ray_num_workers": 1,
                "logging_steps": 1,
                "resources_per_worker": {"CPU": 1},
                "ray_init_kwargs": {"num_cpus": 2},
            }
        )
    )

    def start(log, rest=0):
        code = f"import sys, time; print(open({str(log)!r}).read(), flush=True); time.sleep({rest})"
        monkeypatch.setattr(launch, "command", lambda run, *_: [sys.executable, "-c", code])
        return launch.start(run)

    return start


def test_a_healthy_training_is_followed_to_its_table(replayed, capsys):
    view = live.LiveView(mode="quiet")
    table = follow.follow(replayed(LOGS / "cpu-two-workers.log"), view)
    assert list(table["step"]) == [1, 2, 3, 4, 5, 6] and view.state.failure == ""


def test_an_ill_training_is_diagnosed_once_and_goes_on(replayed, monkeypatch):
    view, warned = live.LiveView(mode="quiet"), []
    monkeypatch.setattr(
        view,
        "feed",
        lambda events: warned.extend(e for e in events if e.kind == "warning" and "fix:" in e.data["text"]),
    )
    follow.follow(replayed(sorted((LOGS / "ill").glob("*.log"))[-1]), view)
    kinds = [event.data["text"].splitlines()[0] for event in warned]
    assert warned and len(kinds) == len(set(kinds))


def test_told_to_the_watchdog_ends_an_ill_training_and_says_why(replayed, monkeypatch):
    monkeypatch.setattr(follow.Watch.__init__, "__defaults__", (0.1, 600.0, 0.0))
    training = replayed(sorted((LOGS / "ill").glob("*.log"))[-1], rest=60)
    with pytest.raises(KitError, match="stopped by the watchdog") as error:
        follow.follow(training, live.LiveView(mode="quiet"), stop_when_ill=True)
    assert "fix:" in str(error.value) and training.process.poll() is not None
    assert training.run.record()["training"]["status"] == "stopped"


def test_workers_that_never_come_are_noticed_and_said_once():
    watch = follow.Watch(patience=0.05, every=0.0)
    assert watch.feed([Event("phase", {"phase": "starting"})]) == []
    time.sleep(0.1)
    (finding,) = watch.feed([])
    assert finding.kind == "no progress" and "never started" in finding.why and watch.feed([]) == []


def test_a_training_that_no_longer_moves_is_noticed():
    watch = follow.Watch(patience=0.05, every=0.0)
    assert watch.feed([]) == []
    assert watch.feed([Event("config", {"logging_steps": 1}), Event("metrics", {"loss": 0.5, "kl": 0.0, "epoch": 0.1, "grad_norm": 1.0})]) == []
    time.sleep(0.1)
    assert [finding.kind for finding in watch.feed([])] == ["no progress"]


def test_looking_at_a_long_run_stays_a_small_part_of_the_time(monkeypatch):
    watch = follow.Watch(every=0.1)
    monkeypatch.setattr(follow.watchdog, "diagnose", lambda *_: time.sleep(0.2) or [])
    time.sleep(0.1)
    watch.feed([])
    assert 0.35 < watch.look - time.monotonic() + 0.2 < 0.6  # four times as long a look as allowed: four times as long a wait
