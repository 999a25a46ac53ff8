"""The checks before anything is asked of a machine, and the two install commands' own checks."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from helpers import doctor, models
from helpers.errors import KitError
from helpers.profiles import ROOT


def test_every_required_package_is_installed_as_required():
    rows = doctor.packages()
    assert len(rows) >= 25 and [row for row in rows if not row["ok"]] == []


def test_a_package_of_another_version_is_named_with_the_required_one():
    with pytest.raises(KitError, match=r"ray 2.51.0 \(required: 2.48.0\)"):
        doctor.refuse_wrong_packages([{"package": "ray", "required": "2.48.0", "installed": "2.51.0", "ok": False}])


def test_too_little_disk_is_said_before_anything_is_written(tmp_path):
    with pytest.raises(KitError, match="free"):
        doctor.disk(tmp_path / "not" / "yet" / "there", needed_gib=1e9)
    assert doctor.disk(tmp_path, needed_gib=0) > 0 and not (tmp_path / "not").exists()


def test_a_folder_without_a_model_is_refused_and_a_hub_id_is_passed_on(tmp_path):
    with pytest.raises(KitError, match="no config.json there"):
        models.prepare_model(str(tmp_path), tmp_path)
    with pytest.raises(KitError, match="smollm2-135m-instruct"):
        models.prepare_model("smolm2", tmp_path)
    assert (
        models.prepare_model("meta-llama/Meta-Llama-3-8B-Instruct", tmp_path) == "meta-llama/Meta-Llama-3-8B-Instruct"
    )


def test_a_busy_port_is_named_with_another_to_take():
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        done = subprocess.run([sys.executable, ROOT / "tools" / "free_port.py", str(port)], capture_output=True, text=True)
    assert done.returncode == 1 and f"PORT={port + 1}" in done.stderr
