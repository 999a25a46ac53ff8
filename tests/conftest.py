"""Fixtures shared by the tests: a run in an empty storage."""

import pytest

from helpers import runs


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A freshly started local run in an empty storage."""
    monkeypatch.delenv("KTO_STORAGE", raising=False)
    return runs.start("local", str(tmp_path / "storage"), "first-run")
