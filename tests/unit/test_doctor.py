"""The checks before anything is asked of a machine, and the two install commands' own checks."""

import socket
import subprocess
import sys

import pytest

from helpers import cluster, models
from helpers.errors import KitError
from helpers.profiles import ROOT


def test_every_required_package_is_installed_as_required():
    rows = cluster.packages()
    assert len(rows) >= 25 and [row for row in rows if not row["ok"]] == []
    assert {"torch", "ray", "papermill"} <= (names := {row["package"] for row in rows}) and not {"pytest", "playwright", "ruff"} & names


def test_a_package_of_another_version_is_named_with_the_required_one():
    found = cluster.refuse_unsupported([{"package": "mlflow", "required": "3.4.0", "installed": "3.5.0", "ok": False}])
    assert "mlflow 3.5.0 (required: 3.4.0)" in found[0].found


def row(package: str, installed: str) -> dict:
    return {"package": package, "required": "", "installed": installed, "ok": True}


@pytest.mark.parametrize(("package", "version"), [("llamafactory", "0.9.2"), ("llamafactory", "0.9.6"), ("transformers", "5.1.0"),
                                                  ("ray", "2.47.1"), ("ray", "missing")])
def test_what_a_stack_cannot_do_is_refused_by_name_with_what_to_do(package, version):
    with pytest.raises(KitError, match=package) as error:
        cluster.refuse_unsupported([row(package, version)])
    assert "make install" in str(error.value)


@pytest.mark.parametrize(("package", "version"), [("llamafactory", "0.9.4"), ("transformers", "4.57.1"), ("ray", "2.57.1"), ("ray", "2.60.0")])
def test_the_supported_range_is_accepted(package, version):
    assert cluster.refuse_unsupported([row(package, version)]) == []


def test_a_ray_newer_than_what_was_tried_is_a_warning_and_no_refusal():
    (found,) = cluster.refuse_unsupported([row("ray", "2.61.0")])
    assert found.status == "WARN" and "2.61.0 is newer" in found.found


def test_too_little_disk_is_said_before_anything_is_written(tmp_path):
    with pytest.raises(KitError, match="free"):
        cluster.disk(tmp_path / "not" / "yet" / "there", needed_gib=1e9)
    assert cluster.disk(tmp_path, needed_gib=0) > 0 and not (tmp_path / "not").exists()


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
