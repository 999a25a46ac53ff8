"""Jobs on a real cluster through Ray's real job API, with commands that take seconds in place of the notebooks."""

import socket
import threading
import time

import pytest

from helpers.errors import KitError
from kto import job as jobs

pytestmark = pytest.mark.slow
COUNT = "for i in $(seq 25); do echo \"[1/6] $i\"; sleep 0.2; done"


class Cable:
    """A connection to the dashboard that can be cut and mended: a relay on a port of its own."""

    def __init__(self, address: str):
        self.to = int(address.rpartition(":")[2])
        self.ends: list[socket.socket] = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, args=(self.listener,), daemon=True).start()

    def cut(self) -> None:
        for end in [self.listener, *self.ends]:
            with_both_ways_shut(end)
        self.ends = []

    def mend(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=(self.listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", self.to))
            self.ends += [near, far]
            for one, other in ((near, far), (far, near)):
                threading.Thread(target=carry, args=(one, other), daemon=True).start()


def carry(source: socket.socket, target: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            target.sendall(data)
    except OSError:
        pass
    with_both_ways_shut(source)
    with_both_ways_shut(target)


def with_both_ways_shut(end: socket.socket) -> None:
    try:
        end.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass
    end.close()


@pytest.fixture
def client(nodes):
    return jobs.connect(nodes.dashboard)


def start(client, command: str, run: str) -> str:
    return client.submit_job(entrypoint=command, metadata={"run": run, "storage": "/nowhere"})


def test_a_lost_connection_is_made_anew_and_nothing_is_said_twice_or_left_out(nodes, client):
    cable, said = Cable(nodes.dashboard), []
    far = jobs.connect(f"http://127.0.0.1:{cable.port}")
    threading.Thread(target=lambda: (wait(lambda: "[1/6] 4\n" in "".join(said)), cable.cut(), time.sleep(2.5), cable.mend()), daemon=True).start()
    status = jobs.follow(far, start(client, COUNT, "lost"), said.append)
    assert [line for line in "".join(said).splitlines() if line.startswith("[")] == [f"[1/6] {i}" for i in range(1, 26)]
    assert status == "SUCCEEDED"
    cable.cut()


def test_a_connection_that_stays_away_is_given_up_and_the_job_runs_on(nodes, client):
    cable, said = Cable(nodes.dashboard), []
    far = jobs.connect(f"http://127.0.0.1:{cable.port}")
    job = start(client, "echo '[1/6] here'; sleep 30", "away")
    threading.Thread(target=lambda: (wait(lambda: said), cable.cut()), daemon=True).start()
    with pytest.raises(KitError, match="job runs on by itself"):
        jobs.follow(far, job, said.append, patience=3)
    assert str(client.get_job_status(job)) == "RUNNING"
    assert jobs.stop(client, job) == "STOPPED"


def test_a_job_is_found_by_its_runs_name_and_stopped_with_all_its_processes(client, tmp_path):
    job = start(client, f"sleep 300 & echo $! > {tmp_path}/pid; wait", "named")
    wait(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    assert jobs.find(client, "named")["job"] == job and jobs.find(client, job)["status"] == "RUNNING"
    with pytest.raises(KitError, match="one job a run at a time"):
        jobs.submit(client, "ray", "/mnt/shared/kto", "named", [], [])
    assert jobs.stop(client, job) == "STOPPED"
    import psutil

    pid = int((tmp_path / "pid").read_text())
    assert wait(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == "zombie")
    assert jobs.stop(client, job) == "STOPPED", "a second stop changes nothing"
    with pytest.raises(KitError, match="did you mean 'named'"):
        jobs.find(client, "namde")


def wait(condition, seconds: float = 30):
    until = time.monotonic() + seconds
    while not (met := condition()) and time.monotonic() < until:
        time.sleep(0.1)
    return met
