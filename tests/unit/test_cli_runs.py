"""The commands that look at runs and logs, as a terminal calls them; the logs are recorded ones."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import tiny
import yaml
from typer.testing import CliRunner

from helpers import runs
from helpers.profiles import ROOT
from kto import compare
from kto.cli import app

LOGS = ROOT / "tests" / "fixtures"


def call(*words, code: int = 0):
    """What the command printed on stdout; its stderr after a failure."""
    done = CliRunner().invoke(app, list(map(str, words)))
    assert done.exit_code == code, done.output
    return done.stdout if code == 0 else done.stderr


@pytest.fixture
def two(run):
    """Two runs' folders, with the logs of real trainings; learning rate and ray_init_kwargs differ."""
    other = runs.start("local", str(run.storage), "second-run")
    for one, rate, log in ((run, 1e-3, "demo-two-workers"), (other, 5e-4, "cpu-two-workers")):
        config = {"output_dir": str(one.output_dir), "learning_rate": rate, "pref_beta": 0.1, "lora_rank": 8}
        own = {"ray_init_kwargs": {"runtime_env": {"env_vars": {"HF_TOKEN": f"hf_canary_{rate}"}}}}
        one.config_file.write_text(yaml.safe_dump(config | own))
        shutil.copy(LOGS / f"{log}.log", one.log_file)
        one.note(training={"status": "finished"}, dataset={"sha256": "abc"}, evaluation={"auc": 0.75, "margin": 1.5})
    return run, other


def test_one_log_is_plotted_as_a_training_and_said_in_words(tmp_path):
    picture = tmp_path / "new" / "curves.png"
    done = CliRunner().invoke(app, ["plot", str(LOGS / "reference.log"), "-o", str(picture)])
    assert done.stdout.strip() == str(picture) and picture.read_bytes().startswith(b"\x89PNG")
    assert "22 windows" in done.stderr and "margin" in done.stderr


def test_several_runs_are_plotted_in_one_figure(two, tmp_path):
    picture = tmp_path / "both.svg"
    call("plot", *(run.folder for run in two), "-o", picture)
    assert picture.read_text().startswith("<?xml")
    assert compare.labels([run.folder for run in two]) == ["learning_rate 0.001", "learning_rate 0.0005"]
    assert compare.labels([two[0].folder, LOGS / "reference.log"]) == ["first-run", "reference"]


def test_a_log_without_windows_is_an_error_and_leaves_no_picture(tmp_path):
    empty, picture = tmp_path / "empty.log", tmp_path / "empty.png"
    empty.write_text("nothing\n")
    assert "no logged window" in call("plot", empty, "-o", picture, code=1) and not picture.exists()
    assert "no logged window" in call("metrics", empty, code=2)


def test_a_log_that_does_not_say_its_steps_needs_them_told_and_what_is_assumed_is_said(tmp_path):
    log = tmp_path / "some.log"
    log.write_text("{'loss': 0.5, 'learning_rate': 1e-05, 'kl': 1.0, 'epoch': 0.5}\n")
    assert "--logging-steps" in call("metrics", log, code=2)
    done = CliRunner().invoke(app, ["metrics", str(log), "--logging-steps", "5", "--json"])
    assert json.loads(done.stdout)[0]["step"] == 5
    assert "rows of worker 0" in done.stderr and "neither LLaMA-Factory nor TRL" in done.stderr


def test_runs_are_compared_by_what_differs_and_by_where_they_ended(two):
    said = json.loads(call("compare", *(run.folder for run in two), "--json"))
    assert said["differences"] == [{"key": "learning_rate", "first-run": 0.001, "second-run": 0.0005}]
    first, second = said["outcomes"]
    assert (first["run"], first["step"], first["auc held out"]) == ("first-run", 30, 0.75)
    assert (second["run"], second["step"], second["status"]) == ("second-run", 6, "finished")
    text = call("compare", *(run.folder for run in two))
    assert "learning_rate" in text and "lora_rank" not in text and "hf_canary" not in text


def test_a_run_that_was_never_launched_is_compared_too(two):
    runs.start("local", str(two[0].storage), "third").config_file.write_text("learning_rate: 0.001\n")
    said = json.loads(call("compare", two[0].folder, two[0].storage / "third", "--json"))
    assert said["outcomes"][1] == {"run": "third", "status": "not launched", "auc held out": None,
                                   "margin held out": None}


def test_one_run_alone_or_no_run_at_all_is_an_error(two, tmp_path):
    assert "nothing to compare" in call("compare", two[0].folder, code=2)
    assert "no run's folder" in call("compare", two[0].folder, tmp_path, code=2)


@pytest.mark.slow
def test_evaluate_gives_the_held_out_figures_of_a_checkpoint(run):
    base = tiny.model(run.models / "tiny")
    name = tiny.dataset(run.datasets)
    adapter = tiny.adapter(base, run.folder / "adapter")
    run.config_file.write_text(yaml.safe_dump(tiny.config(base, run.datasets)))
    run.note(dataset={"heldout_name": name})
    said = json.loads(call("evaluate", run.folder, "--checkpoint", adapter, "--json"))
    assert said["before"]["auc"] == 0.5 and said["before"]["margin"] == 0.0
    assert (said["after"]["accepted"], said["after"]["rejected"]) == (3, 2) and said["after"]["margin"] != 0.0
    assert "there is no checkpoint" in call("evaluate", run.folder, code=1)


def test_the_listing_shows_the_newest_run_first(run):
    runs.start("local", str(run.storage), "second").note(created="2999-01-01T00:00:00+00:00")
    assert [row["run"] for row in compare.listing(run.storage)] == ["second", "first-run"]


def test_explain_says_of_any_log_how_it_ended_and_is_done(tmp_path):
    (tmp_path / "failed.log").write_text("(RayTrainWorker pid=7) ValueError: zip() argument 2 is longer than argument 1\n")
    assert "zip() argument 2 is longer" in call("explain", tmp_path / "failed.log")
    assert "there is no log" in call("explain", tmp_path / "none.log", code=2)


@pytest.mark.parametrize("words", [["runs", "--storage"], ["checkpoints"], ["evaluate"], ["export"], ["clean"], ["serve"], ["track"], ["metrics"]])
def test_a_folder_that_does_not_exist_is_wrong_usage(tmp_path, words):
    told = call(*words, tmp_path / "nosuch", code=2)
    assert str(tmp_path / "nosuch") in told and len(told.splitlines()) == 3


@pytest.mark.parametrize("content", [bytes(range(256)) * 9, "Traceback (most recent call last):".encode("utf-16")])
@pytest.mark.parametrize("command", ["explain", "metrics"])
def test_a_file_that_is_no_text_is_refused_by_name(tmp_path, command, content):
    (tmp_path / "odd.log").write_bytes(content)
    assert "odd.log is no text in UTF-8" in call(command, tmp_path / "odd.log", code=2)


@pytest.mark.slow
def test_a_hub_id_without_a_network_is_one_message(tmp_path):
    asked = [sys.executable, "-m", "kto", "data", "check", "org/name"]
    settings = os.environ | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    done = subprocess.run(asked, capture_output=True, text=True, env=settings, cwd=ROOT)
    assert done.returncode == 2 and done.stderr.startswith("error: the hub gave no dataset") and len(done.stderr.splitlines()) == 3


@pytest.mark.parametrize("command", [["runs"], ["doctor"], ["config", "show"], ["run"]])
def test_a_wrong_profile_is_wrong_usage_whatever_the_command(command):
    done = subprocess.run([sys.executable, "-m", "kto", *command, "--profile", "locl"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and "did you mean 'local'" in done.stderr and done.stdout == ""


def test_a_run_that_failed_before_its_first_window_hinders_no_comparison_of_the_others(two, tmp_path):
    early, none = (runs.start("local", str(two[0].storage), name) for name in ("early", "none"))
    early.log_file.write_text("a line\n")
    shutil.copy(two[0].config_file, early.config_file)
    early.note(training={"status": "failed"})
    folders = [run.folder for run in (*two, early, none)]
    found = json.loads(call("compare", *folders, "--json"))
    assert {row["key"] for row in found["differences"]} == {"learning_rate", "data.sha256"}  # the latter is not known of `early`
    assert [(row["run"], row["status"]) for row in found["outcomes"][2:]] == [("early", "failed"), ("none", "not launched")]
    drawn = CliRunner().invoke(app, ["plot", *map(str, folders), "-o", str(tmp_path / "some.png")])
    assert drawn.exit_code == 0 and drawn.stderr.count("left out") == 2 and (tmp_path / "some.png").is_file()
    assert "none of the runs" in call("plot", *folders[2:], "-o", tmp_path / "none.png", code=2)
