"""Held-out log-probabilities are computed once, by what model and row are; and figures of many rows take little."""

import shutil
import subprocess
import sys

import pytest
import tiny

from helpers import evaluate, scores
from helpers.profiles import ROOT


@pytest.fixture
def place(run):
    base, name = tiny.model(run.models / "base"), tiny.dataset(run.datasets)
    return run, tiny.config(base, run.datasets), tiny.adapter(base, run.folder / "adapter"), name


def test_what_is_known_is_not_computed_again_and_no_model_is_loaded_for_it(place):
    run, config, adapter, name = place
    first = evaluate.Scorer(config, adapter)
    rows = first.rows(name)
    policy, reference = scores.logps(run, first, rows), scores.logps(run, first, rows, tuned=False)
    assert policy == first.logps(rows) and reference == first.logps(rows, tuned=False)
    again = evaluate.Scorer(config, adapter)
    assert scores.logps(run, again, rows[::-1]) == policy[::-1] and scores.logps(run, again, rows, tuned=False) == reference
    assert not {"model", "reference"} & set(vars(again))  # never loaded


def test_another_adapter_base_or_row_is_computed(place, tmp_path):
    run, config, adapter, name = place
    scorer = evaluate.Scorer(config, adapter)
    rows = scorer.rows(name)
    kept, before = scores.logps(run, scorer, rows), scores.identity(scorer, tuned=False)
    other = tiny.adapter(config["model_name_or_path"], tmp_path / "other", scale=0.4)
    scorer.take(other)
    assert scores.logps(run, scorer, rows) == scorer.logps(rows) != kept
    assert scores.identity(scorer, tuned=False) == before
    tiny.model(config["model_name_or_path"], seed=3)  # other weights under the same path
    assert scores.identity(scorer, tuned=False) != before
    longer = [type(rows[0])(row.messages, row.reply, row.label, row.prompt_ids, row.reply_ids + [5]) for row in rows]
    assert scores.logps(run, scorer, longer) != scores.logps(run, scorer, rows)


def test_a_copy_of_the_model_elsewhere_is_the_same_and_a_damaged_file_is_made_again(place, tmp_path):
    run, config, adapter, name = place
    scorer = evaluate.Scorer(config, adapter)
    rows = scorer.rows(name)
    kept = scores.logps(run, scorer, rows)
    moved = config | {"model_name_or_path": str(shutil.copytree(config["model_name_or_path"], tmp_path / "base"))}
    there = evaluate.Scorer(moved, shutil.copytree(adapter, tmp_path / "adapter"))
    assert scores.logps(run, there, rows) == kept and "model" not in vars(there)
    (run.folder / scores.NAME).write_text("{")
    assert scores.logps(run, there, rows) == pytest.approx(kept) and "model" in vars(there)


@pytest.mark.slow
def test_figures_of_200000_held_out_rows_take_less_than_a_gigabyte_and_ten_times_the_rows_less_than_40_times_the_time():
    # A matrix of accepted x rejected would take 80 GB and 100 times the time; 13 to 17 is what caches make of ten. A ratio, as machines differ in speed.
    code = """import time
from pathlib import Path
import numpy, pandas
from helpers import scores
def took(rows):
    draw = numpy.random.default_rng(0)
    label = draw.random(rows) < 0.5
    table = pandas.DataFrame({"reward": draw.normal(size=rows) + label, "label": label, "prompt": numpy.arange(rows) // 2})
    began = time.process_time()
    figures = scores.accuracy(table)
    assert abs(figures["auc"] - 0.76) < 0.01 and figures["auc_interval"][0] < figures["auc"] < figures["auc_interval"][1]
    return time.process_time() - began
before, all_rows, after = took(20_000), took(200_000), took(20_000)
# VmHWM, not ru_maxrss: that one is inherited, so it would be the memory of the tests themselves
print(all_rows / max(before, after), int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1e6)"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    growth, gigabytes = map(float, done.stdout.split())
    assert growth < 40 and gigabytes < 1
