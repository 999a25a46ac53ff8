"""Install a lock into the Python that runs this, then the kit: `python tools/install.py [LOCK]`. `make install` calls it.

torch comes first. A machine without an NVIDIA driver gets torch's CPU build where one can be had: it is 3 GB smaller.
"""

import fcntl
import json
import subprocess
import sys
import time
from pathlib import Path

from pins import ROOT, lines, name

DRIVER = Path("/proc/driver/nvidia")
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
BUILT_TOGETHER = ("torch", "torchvision", "torchaudio")
QUIET = ("-qq", "--no-warn-conflicts", "--disable-pip-version-check", "--no-input")


def pip(*words) -> None:
    done = subprocess.run([sys.executable, "-m", "pip", "install", *QUIET, *words])
    if done.returncode:
        fix = "see whether the index answers, and repeat"
        sys.exit(f"error: pip could not install the lock (its own words are above)\n  fix: {fix}")


def cpu_builds(pins: list[str], *options: str) -> bool:
    """Whether pip would take a CPU build of torch and of whatever is built with it."""
    asked = ["install", *QUIET, "--dry-run", "--ignore-installed", "--no-deps", "--report", "-", *options, *pins]
    done = subprocess.run([sys.executable, "-m", "pip", *asked], capture_output=True, text=True)
    if done.returncode:
        return False
    return all(item["metadata"]["version"].endswith("+cpu") for item in json.loads(done.stdout)["install"])


def choose_torch(pins: list[str], driver: Path = DRIVER) -> tuple[list[str], str]:
    """(pip's options for the torch step, the choice and its reason in a line)."""
    if driver.exists():
        return [], "the index's build, as this machine has an NVIDIA driver"
    if cpu_builds(pins):
        return ["--no-deps"], "the CPU build that pip finds here, as this machine has no NVIDIA driver"
    there = ["--index-url", CPU_INDEX]
    if cpu_builds(pins, *there, "--timeout", "5", "--retries", "0"):
        return ["--no-deps", *there], f"the CPU build of {CPU_INDEX}, as this machine has no NVIDIA driver"
    return [], f"the index's build; no NVIDIA driver here, but no CPU build in reach (tried pip's index and {CPU_INDEX})"


def main(lock: Path = ROOT / "requirements.lock") -> None:
    started = time.monotonic()
    pins = lines(lock)
    torch = [line for line in pins if name(line) in BUILT_TOGETHER]
    options, reason = choose_torch(torch)
    print(f"torch: {reason}", file=sys.stderr)
    # a CUDA build brings libraries of its own: so torch comes with its dependencies, at the lock's versions
    pip("-c", lock, *options, *torch)
    pip("-c", lock, "setuptools")  # what the lock's few source packages are built with
    pip("--no-deps", "-r", lock)
    with open(ROOT / "pyproject.toml") as kit:  # one environment at a time: setuptools writes beside the kit's sources
        fcntl.flock(kit, fcntl.LOCK_EX)
        pip("--no-deps", "--no-build-isolation", "-e", ROOT)
    print(f"installed {len(pins)} packages in {time.monotonic() - started:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
