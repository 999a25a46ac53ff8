"""A real MLflow server to start and stop, and what it holds of a run."""

import base64
import http.client
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

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
        for _ in range(1200):
            try:
                urllib.request.urlopen(f"{self.url}/health", timeout=5)
                return self
            except OSError:
                time.sleep(0.5)
        raise AssertionError("the MLflow server did not come up in ten minutes")

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


def asking_for_a_password(server: Server, user: str, password: str) -> ThreadingHTTPServer:
    """A proxy with basic authentication before a real server, as teams run one (mlflow's own needs flask-wtf, which is not in the lock)."""
    wanted = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()

    class Proxy(BaseHTTPRequestHandler):
        def answer(self):
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Authorization") != wanted:
                return self.reply(401, b"You are not authenticated.", "text/plain")
            behind = http.client.HTTPConnection("127.0.0.1", server.port)
            headers = {key: value for key, value in self.headers.items() if key not in ("Host", "Authorization")}
            behind.request(self.command, self.path, body, headers)
            got = behind.getresponse()
            return self.reply(got.status, got.read(), got.headers.get("Content-Type", ""))

        def reply(self, status, body, kind):
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_PUT = do_PATCH = answer

        def log_message(self, *_):
            pass

    proxy = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    return proxy
