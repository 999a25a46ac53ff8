"""Sweeps, with a stand-in for the pipeline that fails at one point of the grid."""

import json
import time
from functools import partial
from threading import Barrier

import pytest

from helpers import runs
from helpers.errors import KitError
from kto import sweep


def stand_in(profile: str, run, point: dict, together: Barrier | None = None) -> str:
    """Instead of sweep.start: notes when it ran, and in the run's record what a pipeline leaves; fails for pref_beta 0.3.

    `together`: it waits there until so many run at once.
    """
    run = runs.start(profile, str(run.storage), run.name)
    began = time.time()
    if together:
        together.wait(60)
    with open(run.storage / "ran", "a") as file:
        file.write(f"{began} {time.time()}\n")
    if point["pref_beta"] == "0.3":
        return "error: 04_train, cell [5]: the well has run dry"
    run.note(training={"status": "finished"}, evaluation={"auc": 0.75, "margin": 0.5}, export={})
    return ""


def test_a_grid_is_every_combination_and_a_wrong_value_is_refused_before_anything_runs():
    points = sweep.grid(["learning_rate=1e-4,1e-3", 'overrides={"a": 1, "b": 2}', "pref_beta=0.1,0.3,0.1"])
    assert len(points) == 4 and all(point["overrides"] == '{"a": 1, "b": 2}' for point in points)
    assert sweep.grid([]) == [{}]
    for wrong in (["learning_rate=1e-4,fast"], ["max_stps=1,2"], ["max_steps=1", "max_steps=2"], ["max_steps"]):
        with pytest.raises(KitError):
            sweep.grid(wrong)


def test_a_runs_name_says_its_values_and_no_two_points_share_one():
    points = sweep.grid(["learning_rate=1e-4,1e-3,0.001", "max_steps=3,30"])
    names = [sweep.name_of("try", point) for point in points]
    assert names[0].startswith("try-1e-4_3-") and len(set(names)) == 6 and all(runs.NAME.fullmatch(name) for name in names)
    shuffled = dict(reversed(points[0].items()))
    assert sweep.name_of("try", shuffled).rpartition("-")[2] == names[0].rpartition("-")[2]


def test_so_many_at_a_time_a_failing_run_ends_no_other_and_a_second_call_skips_what_is_done(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "start", partial(stand_in, together=Barrier(2)))
    points, said = sweep.grid(["learning_rate=1e-4,1e-3", "pref_beta=0.1,0.3"]), []
    rows = sweep.sweep("local", str(tmp_path), "try", points, 2, said.append)
    assert [(row["pref_beta"], row["status"], row["auc"]) for row in rows] == [
        ("0.1", "done", 0.75), ("0.3", "failed", None), ("0.1", "done", 0.75), ("0.3", "failed", None)]
    assert rows[1]["why"] == "04_train, cell [5]: the well has run dry"
    assert json.loads((tmp_path / "try.json").read_text()) == rows
    times = [tuple(map(float, line.split())) for line in (tmp_path / "ran").read_text().splitlines()]
    at_once = [sum(began <= start < ended for began, ended in times) for start, _ in times]
    assert len(times) == 4 and max(at_once) == 2

    monkeypatch.setattr(sweep, "start", stand_in)
    again = sweep.sweep("local", str(tmp_path), "try", points[:3], 2, said.append)
    assert len((tmp_path / "ran").read_text().splitlines()) == 5 and [row["status"] for row in again] == ["done", "failed", "done"]
    assert "3 runs, 2 done before; 2 at a time" in said


def test_a_point_is_a_run_of_the_command_line_and_its_error_comes_back(tmp_path):
    assert "there is no parameter 'max_stps'" in sweep.start("local", runs.locate("local", str(tmp_path), "point"), {"max_stps": "1"})
