"""One Ray cluster for all of these tests: a head with a dashboard on loopback, and two worker nodes."""

import shutil
import tempfile
from pathlib import Path

import pytest
from nodes import Nodes


@pytest.fixture(scope="session")
def nodes():
    """The cluster; its sockets' paths must be short, so it lies right under the system's temp folder."""
    scratch = Path(tempfile.mkdtemp(prefix="kto"))
    with Nodes(scratch / "ray") as cluster:
        yield cluster
    shutil.rmtree(scratch, ignore_errors=True)
