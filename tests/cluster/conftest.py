"""A Ray cluster for each of these files: a head with a dashboard on loopback; nodes come and go, and a test may wreck it."""

import shutil
import tempfile
from pathlib import Path

import pytest
from nodes import Nodes


@pytest.fixture(scope="module")
def nodes():
    """The cluster; its sockets' paths must be short, so it lies right under the system's temp folder."""
    scratch = Path(tempfile.mkdtemp(prefix="kto"))
    with Nodes(scratch / "ray") as cluster:
        yield cluster
    shutil.rmtree(scratch, ignore_errors=True)
