"""Fixtures shared by the tests: a run in an empty storage."""

import os
import signal
import uuid
from contextlib import suppress

import psutil
import pytest
from hypothesis import settings
from unit.processes import VARIABLE, marked

from helpers import runs

# The same examples every time, so that a red test is the change's doing. New ones are looked for with --hypothesis-profile=default.
settings.register_profile("same", derandomize=True)
settings.load_profile("same")
# A shell lets its background jobs ignore it, and all that a test starts would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

LONGEST = ("rounds", "settings", "install", "moved", "accelerator", "secrets", "deepspeed", "install_cluster", "quantise", "faults",
           "serve", "config", "pipeline", "start_from", "chat_template", "export", "own_yaml", "tracking", "oracle")
"""Files that take half a minute and more. They come first where two workers share the tests, so that both end together."""


def pytest_collection_modifyitems(items):
    if "PYTEST_XDIST_WORKER" in os.environ:
        places = {f"test_{name}": place for place, name in enumerate(LONGEST)}
        items.sort(key=lambda item: places.get(item.path.stem, len(places)))


@pytest.fixture
def mark(monkeypatch):
    """A word that every process inherits which the test starts; `unit.processes.marked(mark)` finds them. None outlives the test."""
    word = uuid.uuid4().hex
    monkeypatch.setenv(VARIABLE, word)
    yield word
    for process in marked(word):
        with suppress(psutil.Error):
            process.kill()


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A freshly started local run in an empty storage."""
    monkeypatch.delenv("KTO_STORAGE", raising=False)
    return runs.start("local", str(tmp_path / "storage"), "first-run")


@pytest.fixture(scope="session")
def s3_server():
    """The endpoint of an S3 server of our own on loopback, on a port the system picks."""
    from moto.server import ThreadedMotoServer

    started = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    started.start()
    yield "http://{}:{}".format(*started.get_host_and_port())
    started.stop()


@pytest.fixture
def s3(s3_server, monkeypatch):
    """pyarrow's file system on that server, and the environment that leads to it."""
    from pyarrow import fs

    for name, value in {"AWS_ENDPOINT_URL": s3_server, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
                        "AWS_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true"}.items():
        monkeypatch.setenv(name, value)
    return fs.S3FileSystem(endpoint_override=s3_server, allow_bucket_creation=True, allow_bucket_deletion=True)
