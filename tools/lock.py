"""Resolve a stack's direct requirements into its lock: `python tools/lock.py default|image|newest [--upgrade]`.

Needs an index and the stack's Python (`python3.11` or `python3.12` on the PATH, or `--python PATH`). pip resolves with its
own defaults, so a lock holds on any machine. Versions in the lock stay where they fit; `--upgrade` lets all of them move.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from pins import ROOT, STACKS, WITHOUT_DEPENDENCIES, direct, lines, name

ORDINARY = {"PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": "", "PIP_EXTRA_INDEX_URL": "", "PIP_CONSTRAINT": ""}
"""What makes pip forget a machine's own settings, but for its index and certificates."""
TORCHS_OWN = re.compile(r"(nvidia|cuda)-")
"""Libraries of torch's CUDA build, which pins them itself; a CPU build has none."""


def resolve(pip: list[str], requirements: list[str], *options: str) -> dict[str, str]:
    """name -> version of all that pip would install for these requirement lines in an empty environment."""
    with tempfile.TemporaryDirectory() as folder:
        (wanted := Path(folder, "wanted.txt")).write_text("\n".join(requirements) + "\n")
        report = Path(folder, "report.json")
        asked = ["install", "--quiet", "--dry-run", "--ignore-installed", "--report", report, "-r", wanted, *options]
        if subprocess.run([*pip, *asked], env=os.environ | ORDINARY).returncode:
            sys.exit("error: pip cannot resolve this\n  fix: correct the pins that it names, or add --upgrade")
        packages = [item["metadata"] for item in json.loads(report.read_text())["install"]]
    return {package["name"]: package["version"] for package in packages}


def lock(stack: str, python: str, upgrade: bool) -> str:
    """The text of the stack's lock."""
    wanted = direct(stack)
    names = {name(line) for line in wanted}
    plain = [line for line in wanted if name(line) not in WITHOUT_DEPENDENCIES]
    bare = [line for line in wanted if name(line) in WITHOUT_DEPENDENCIES]
    file = STACKS[stack].lock
    with tempfile.TemporaryDirectory() as folder:
        # a new environment with the newest pip, which resolves twice as fast as the one that Python brings
        subprocess.run([python, "-m", "venv", folder], check=True)
        pip = [f"{folder}/bin/python", "-m", "pip", "--disable-pip-version-check"]
        subprocess.run([*pip, "install", "--quiet", "--upgrade", "pip"], check=True, env=os.environ | ORDINARY)
        # what the lock has stays, but for what is asked for directly
        kept = [] if upgrade or not file.exists() else [line for line in lines(file) if name(line) not in names]
        (constraints := Path(folder, "kept.txt")).write_text("\n".join(kept) + "\n")
        found = resolve(pip, plain, "-c", str(constraints)) | resolve(pip, bare, "--no-deps")
    pins = [f"{package}=={version}" for package, version in found.items()
            if name(package) in names or not TORCHS_OWN.match(package)]  # fmt: skip
    head = [f"# For {STACKS[stack].what_for}.", f"# Made by: python tools/lock.py {stack}"]
    return "\n".join(head + sorted(pins, key=name)) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stack", choices=STACKS)
    parser.add_argument("--upgrade", action="store_true", help="let every version move that is left open")
    parser.add_argument("--python", help="the stack's Python, where it is not on the PATH")
    given = parser.parse_args()
    text = lock(given.stack, given.python or f"python{STACKS[given.stack].python}", given.upgrade)
    file = STACKS[given.stack].lock
    file.write_text(text)
    print(f"{file.relative_to(ROOT)}: {len(lines(file))} packages")


if __name__ == "__main__":
    main()
