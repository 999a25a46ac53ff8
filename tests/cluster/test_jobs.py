"""Jobs on a real cluster through Ray's real job API, with commands that take seconds in place of the notebooks."""

import subprocess
import sys
import time

import pytest

from helpers.errors import KitError
from helpers.profiles import ROOT
from kto import job as jobs

pytestmark = pytest.mark.slow


@pytest.fixture
def client(nodes):
    return jobs.connect(nodes.dashboard)


def start(client, command: str, run: str) -> str:
    return client.submit_job(entrypoint=command, metadata={"run": run, "storage": "/nowhere"})


def test_a_job_is_watched_to_its_end_and_its_failure_is_an_exit_status(nodes, client):
    job = start(client, "echo '[1/6] here'; exit 3", "fails")
    done = subprocess.run([sys.executable, "-m", "kto", "job", "logs", "fails", "--address", nodes.dashboard], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "[1/6] here" in done.stderr and f"job {job}: FAILED" in done.stderr


def test_a_job_is_found_by_its_runs_name_and_stopped_with_all_its_processes(nodes, client, tmp_path, capsys):
    job = start(client, f"sleep 300 & echo $! > {tmp_path}/pid; wait", "named")
    wait(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    assert jobs.find(client, "named")["job"] == job and jobs.find(client, job)["status"] == "RUNNING"
    jobs.stop(job, nodes.dashboard)
    import psutil

    pid = int((tmp_path / "pid").read_text())
    assert wait(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == "zombie")
    jobs.stop("named", nodes.dashboard)
    assert capsys.readouterr().out == f"{job} STOPPED\n" * 2, "a second stop changes nothing"
    with pytest.raises(KitError, match="did you mean 'named'"):
        jobs.find(client, "namde")


def wait(condition, seconds: float = 30):
    until = time.monotonic() + seconds
    while not (met := condition()) and time.monotonic() < until:
        time.sleep(0.1)
    return met
