"""Jobs, without a cluster: what is refused before anything is sent, what a stopped run leaves, what is fetched. With one: tests/cluster."""

import json
import shlex
import signal
import subprocess
import sys
import time

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook
from typer.main import get_command

from helpers import runs
from helpers.errors import KitError
from kto import job as jobs
from kto.cli import app

RUNNING = """
import sys
from pathlib import Path
from kto import parameters
from kto.cli import app
parameters.NOTEBOOKS = Path(sys.argv.pop(1))
app(sys.argv[1:])
"""


class Quiet:
    """A cluster without jobs; what is submitted is kept."""

    def submit_job(self, **given):
        self.submitted = given
        return "job-1"


@pytest.fixture
def cluster(monkeypatch):
    quiet = Quiet()
    monkeypatch.setattr(jobs, "connect", lambda address: quiet)
    return quiet


@pytest.mark.parametrize("changes, says", [
    ({"parameter": ["max_stps=3"]}, "did you mean 'max_steps'"),
    ({"profile": "lokal"}, "did you mean 'local'"),
    ({"profile": "local"}, "starts a Ray instance of its own"),
    ({"storage": "storage"}, "not an absolute path"),
    ({"run_name": "a/b"}, "no name for a run"),
    ({"secret": ["HF_TOKEN"]}, "not set in this environment: HF_TOKEN")])
def test_a_job_that_could_not_work_is_refused_before_it_is_sent(monkeypatch, cluster, changes, says):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("KTO_STORAGE", raising=False)
    with pytest.raises(KitError, match=says):
        jobs.submit(**{"storage": "/mnt/shared/kto", "run_name": "first"} | changes)
    assert not hasattr(cluster, "submitted")


def test_without_a_dashboard_it_is_said_in_seconds_where_it_was_looked_for(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:2")
    with pytest.raises(KitError, match="127.0.0.1:2"):
        jobs.connect()
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:2")
    with pytest.raises(KitError, match="no Ray dashboard answers at http://127.0.0.1:1"):
        jobs.connect("http://127.0.0.1:1")


def test_the_jobs_command_is_one_that_the_command_line_takes_and_that_resumes(cluster):
    jobs.submit(storage="/mnt/a b", run_name="first", parameter=["dataset=a b.json", "max_steps=3"], follow=False)
    words = shlex.split(cluster.submitted["entrypoint"])
    assert words[:3] == ["python", "-m", "kto"]
    given = get_command(app).commands["run"].make_context("run", words[4:]).params
    assert (given["storage"], given["run_name"], given["resume"], given["log"]) == ("/mnt/a b", "first", "if-any", True)
    assert given["parameter"] == ["dataset=a b.json", "max_steps=3"]


@pytest.mark.parametrize("address", ["http://[bad", "http://127.0.0.1:99999"])
def test_an_address_without_sense_is_said_in_a_sentence(address):
    with pytest.raises(KitError, match="no Ray dashboard answers at"):
        jobs.connect(address)


def test_results_are_fetched_whole_and_never_over_others(run, tmp_path, monkeypatch, cluster):
    (run.folder / "TorchTrainer_1" / "checkpoint_000000").mkdir(parents=True)
    run.figures.mkdir()
    (run.figures / "training.png").write_bytes(b"png")
    row = {"storage": str(run.storage), "run": run.name}
    monkeypatch.setattr(jobs, "find", lambda client, name: row)
    jobs.fetch(run.name, tmp_path / "here")
    assert sorted(path.name for path in (tmp_path / "here" / run.name).iterdir()) == ["figures", "run.json"]
    jobs.fetch(run.name, tmp_path / "all", everything=True)
    assert (tmp_path / "all" / run.name / "TorchTrainer_1").is_dir()
    with pytest.raises(KitError, match="there already"):
        jobs.fetch(run.name, tmp_path / "here")
    row["storage"] = "/mnt/elsewhere"
    with pytest.raises(KitError, match="not to be seen from here"):
        jobs.fetch(run.name, tmp_path)


@pytest.mark.slow
def test_a_run_that_is_ended_from_outside_leaves_no_record_of_a_running_training(tmp_path):
    code = ("from helpers import runs\nimport time\nrun = runs.open_run(profile, storage, run_name)\n"
            "run.note(training={'status': 'running'})\ntime.sleep(600)")
    folder = tmp_path / "notebooks"
    folder.mkdir()
    cells = [new_code_cell('profile: str = "local"\nstorage: str = ""\nrun_name: str = "x"', metadata={"tags": ["parameters"]}),
             new_code_cell(code)]
    metadata = {"kernelspec": {"name": "python3", "display_name": "p", "language": "python"}}
    nbformat.write(new_notebook(cells=cells, metadata=metadata), folder / "04_train.ipynb")
    run = runs.locate("local", str(tmp_path / "storage"), "ended")
    process = subprocess.Popen([sys.executable, "-c", RUNNING, str(folder), "run", "--storage", str(run.storage),
                                "--run-name", run.name], stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 240
    while "training" not in run.record() and time.monotonic() < until:
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143, process.stderr.read()
    assert json.loads(run.record_file.read_text())["training"]["status"] == "stopped"
