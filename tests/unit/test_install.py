"""The locks install on an ordinary machine: pip itself is asked, with its own defaults. Skipped only where no index answers."""

import json
import os
import re
import subprocess
import sys

import pytest
from wheels import wheel

from helpers.profiles import ROOT

sys.path.insert(0, str(ROOT / "tools"))
import install  # noqa: E402
import lock  # noqa: E402
import pins  # noqa: E402

STACKS = list(pins.STACKS)


def ask_pip(*words, python: str = sys.executable) -> subprocess.CompletedProcess:
    """`pip install --dry-run` for an empty environment on an ordinary machine; skips the test where no index answers."""
    asked = [python, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet", "--report", "-", *map(str, words)]
    environment = {key: value for key, value in os.environ.items() if key != "PIP_EXTRA_INDEX_URL"} | lock.ORDINARY
    done = subprocess.run(asked, env=environment, capture_output=True, text=True)
    if done.returncode and not index_answers(environment):
        pytest.skip("NOT CHECKED: no package index answers, so pip cannot say whether the lock installs")
    return done


def index_answers(environment: dict) -> bool:
    asked = [sys.executable, "-m", "pip", "index", "versions", "pip", "--retries", "0", "--timeout", "15"]
    return subprocess.run(asked, env=environment, capture_output=True).returncode == 0


def versions(done: subprocess.CompletedProcess) -> dict[str, str]:
    assert done.returncode == 0, done.stderr
    return {pins.name(item["metadata"]["name"]): item["metadata"]["version"] for item in json.loads(done.stdout)["install"]}


def locked(stack: str = "default") -> dict[str, str]:
    return {pins.name(line): line.split("==")[1] for line in pins.lines(pins.STACKS[stack].lock)}


@pytest.mark.slow
def test_the_torch_step_resolves_with_pips_own_defaults():
    found = versions(ask_pip("-c", ROOT / "requirements.lock", f"torch=={locked()['torch']}"))
    ours = {name: version for name, version in found.items() if name in locked()}
    assert ours.items() <= locked().items() and {"torch", "filelock"} <= set(ours)


@pytest.mark.slow
def test_the_whole_lock_resolves_with_its_dependencies_and_asks_for_nothing_that_is_not_in_it(tmp_path):
    bare = [line for line in pins.lines(ROOT / "requirements.lock") if pins.name(line) in pins.WITHOUT_DEPENDENCIES]
    rest = [line for line in pins.lines(ROOT / "requirements.lock") if line not in bare]
    (tmp_path / "rest.txt").write_text("\n".join(rest))
    found = versions(ask_pip("-r", tmp_path / "rest.txt")) | versions(ask_pip("--no-deps", *bare))
    strangers = {name for name in found if name not in locked() and not lock.TORCHS_OWN.match(name)}
    assert strangers == set() and locked().items() <= found.items()


def test_the_environment_of_these_tests_is_consistent_but_for_what_is_installed_without_dependencies():
    said = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True).stdout
    complaints = [line for line in said.splitlines() if " requires " in line or " has requirement " in line]
    assert [line for line in complaints if not line.startswith(tuple(pins.WITHOUT_DEPENDENCIES))] == []


@pytest.mark.parametrize("stack", STACKS)
def test_a_lock_names_its_purpose_and_its_command_and_holds_every_direct_requirement(stack):
    purpose, command = pins.STACKS[stack].lock.read_text().splitlines()[:2]
    assert pins.STACKS[stack].what_for in purpose and f"python tools/lock.py {stack}" in command
    asked = {pins.name(line): line.split("==")[1] for line in pins.direct(stack)}
    assert asked.items() <= locked(stack).items()
    assert all(re.fullmatch(r"[\w.-]+==[\w.+!]+", line) for line in pins.lines(pins.STACKS[stack].lock))


def test_a_differences_file_says_only_what_differs():
    base = set(pins.lines(ROOT / "requirements.txt"))
    for stack in pins.STACKS.values():
        assert not stack.differences or not base & set(pins.lines(stack.differences))


def test_the_workers_packages_are_those_of_the_images_lock_and_leave_torch_and_ray_alone():
    workers = pins.lines(ROOT / "locks" / "workers.txt")
    assert set(workers) <= set(pins.lines(pins.STACKS["image"].lock))
    assert "llamafactory==0.9.3" in workers and not {"torch", "ray"} & {pins.name(line) for line in workers}


def test_a_machine_with_a_driver_takes_the_indexs_torch(tmp_path, monkeypatch):
    monkeypatch.setattr(install, "cpu_builds", lambda *_: pytest.fail("asked although there is a driver"))
    assert install.choose_torch(["torch==2.13.0"], driver=tmp_path)[0] == []


def test_without_a_driver_a_cpu_build_that_pip_finds_is_taken_without_its_dependencies(tmp_path, monkeypatch):
    wheel(tmp_path, "torch", "2.13.0+cpu")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    options, reason = install.choose_torch(["torch==2.13.0"], driver=tmp_path / "none")
    assert options == ["--no-deps"] and "CPU build that pip finds" in reason


def test_without_a_driver_and_a_cpu_build_in_reach_it_says_so_and_takes_the_indexs(tmp_path, monkeypatch):
    wheel(tmp_path, "torch", "2.13.0")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setattr(install, "CPU_INDEX", "http://127.0.0.1:9/whl/cpu")
    options, reason = install.choose_torch(["torch==2.13.0"], driver=tmp_path / "none")
    assert options == [] and "no CPU build in reach" in reason


def test_torchvision_comes_from_where_torch_comes_from(tmp_path, monkeypatch):
    wheel(tmp_path, "torch", "2.13.0+cpu")
    wheel(tmp_path, "torchvision", "0.28.0")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    assert not install.cpu_builds(["torch==2.13.0", "torchvision==0.28.0"]) and install.cpu_builds(["torch==2.13.0"])


def make(folder, *words: str) -> subprocess.CompletedProcess:
    """`make` in a folder that has only what it reads before it installs."""
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        (folder / name).write_bytes((ROOT / name).read_bytes())
    return subprocess.run(["make", *words], cwd=folder, capture_output=True, text=True)


def test_make_with_another_python_says_which_ones_it_wants(tmp_path):
    (other := tmp_path / "python3.13").write_text(
        f'#!/bin/sh\n[ "$1" = -c ] && exec {sys.executable} -c "import sys; sys.version_info = (3, 13); $2"\n'
    )
    other.chmod(0o755)
    done = make(tmp_path, "demo", f"PYTHON={other}")
    assert done.returncode != 0 and "is Python 3.13" in done.stderr and "3.11 or 3.12" in done.stderr
    assert not (tmp_path / ".venv").exists()


def test_make_without_any_python_says_so(tmp_path):
    done = make(tmp_path, "test", "PYTHON=python-that-is-not-there")
    assert done.returncode != 0 and "no python-that-is-not-there found" in done.stderr
