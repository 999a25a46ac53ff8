"""A real MLflow server to start and stop, and what it holds of a run."""

import os
import socket
import subprocess
import sys
import time
import urllib.request

from helpers import tracking


class Server:
    """A real `mlflow server` on a free port of loopback; its store outlives it."""

    def __init__(self, folder):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.folder, self.url, self.process = folder, f"http://127.0.0.1:{self.port}", None

    def start(self):
        where = ["--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        stores = ["--backend-store-uri", f"sqlite:///{self.folder}/db", "--artifacts-destination", f"{self.folder}/art"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", *where, *stores],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        for _ in range(240):
            try:
                urllib.request.urlopen(f"{self.url}/health", timeout=1)
                return self
            except OSError:
                time.sleep(0.5)
        raise AssertionError("the MLflow server did not come up in two minutes")

    def stop(self):
        if self.process:
            os.killpg(self.process.pid, 9)
            self.process.wait()
            self.process = None


def what_mlflow_has(run, run_id) -> dict:
    """(metric, step) -> value, of every point."""
    client = tracking.client(run)
    names = client.get_run(run_id).data.metrics
    return {(name, point.step): point.value for name in names for point in client.get_metric_history(run_id, name)}
