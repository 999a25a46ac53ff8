"""On a cluster image: install what the kit needs, and leave the image's own torch, ray and serving as they are.

    python tools/install_cluster.py [--dry-run] [--lose vllm]

A cluster image's torch fits its GPU drivers and its ray fits its nodes. So pip first says what it would do while both, and
what is built against them, stay (`--dry-run` ends here). Then everything is fetched and built, then installed in one step. If
that step fails, the image gets back what it had. `--lose NAME` allows a package of the image's to break, for example a vllm
that wants another transformers: you can train on such an image but no longer serve.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

from pins import ROOT, WITHOUT_DEPENDENCIES, lines, name

IMAGE = re.compile(
    r"(torch|torchvision|torchaudio|triton|ray|anyscale|vllm|xformers|flash-attn|setuptools|nvidia-.+|cuda-.+)$"
)
NOT_BESIDE_VLLM = ("llmcompressor", "compressed-tensors")  # both insist on a version of their own
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]


def plan(requirements: list[str], installed: dict[str, str], lose: list[str]) -> tuple[list[str], list[str], list[str]]:
    """(requirement lines to install, those to install without dependencies, lines that hold the image's own)."""
    keep = {package: version for package, version in installed.items() if IMAGE.match(package) and package not in lose}
    leave = {*keep, *(NOT_BESIDE_VLLM if "vllm" in keep else ())}
    wanted = [line for line in requirements if name(line) not in leave]
    bare = [line for line in wanted if name(line) in WITHOUT_DEPENDENCIES]
    held = [f"{package}=={version}" for package, version in sorted(keep.items())]
    return [line for line in wanted if line not in bare], bare, held


def installed() -> dict[str, str]:
    """name -> version of every distribution that this Python sees."""
    return {name(dist.metadata["Name"]): dist.version for dist in metadata.distributions() if dist.metadata["Name"]}


def would_install(*words: str) -> dict[str, str] | None:
    """name -> version of what `pip install` with these words would change; None where pip refuses, and says why."""
    asked = [*PIP, "install", "--quiet", "--dry-run", "--report", "-", *words]
    done = subprocess.run(asked, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        return None
    return {name(item["metadata"]["name"]): item["metadata"]["version"] for item in json.loads(done.stdout)["install"]}


def back_up(packages: list[str], folder: Path) -> list[tuple[Path, Path]]:
    """Copy the files of installed distributions to `folder`; (copy, original) of each."""
    pairs = []
    for package in packages:
        for file in metadata.distribution(package).files or ():
            if (original := Path(file.locate())).is_file():
                copy = folder / str(len(pairs))
                shutil.copy2(original, copy)
                pairs.append((copy, original))
    return pairs


def restore(new: list[str], pairs: list[tuple[Path, Path]]) -> None:
    """Take the new distributions out again and put the old ones' files back."""
    subprocess.run([*PIP, "uninstall", "--quiet", "--yes", *new], stderr=subprocess.DEVNULL)
    for copy, original in pairs:
        original.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(copy, original)


def refuse(found: str, fix: str) -> None:
    sys.exit(f"error: {found}; the image is as it was\n  fix: {fix}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dry-run", action="store_true", help="only say what would be installed")
    parser.add_argument("--lose", action="append", default=[], metavar="NAME", help="an image's package that may break")
    given = parser.parse_args()

    # 1. Is this an image that can be used at all?
    before = installed()
    if missing := [package for package in ("torch", "ray") if package not in before]:
        refuse(f"{' and '.join(missing)} not installed here, so this is no cluster image", "make install, which brings its own")
    if sys.version_info[:2] not in ((3, 11), (3, 12)):
        refuse(f"this is Python {sys.version_info[0]}.{sys.version_info[1]}", "an image with Python 3.11 or 3.12")

    # 2. What would pip do? The image's own packages are asked for too, so that what they require is respected.
    wanted, bare, held = plan(lines(ROOT / "requirements.txt"), before, given.lose)
    print("kept as the image has them:", ", ".join(held))
    changes = would_install(*(line for line in held if name(line) not in WITHOUT_DEPENDENCIES), *wanted)
    if changes is None:
        refuse("pip finds no versions for the kit that the image's own packages bear (its words are above)",
               "let the workers get the packages from Ray (locks/workers.txt), or allow one of the image's to break,\n"
               "       for example: make install-cluster LOSE=vllm")  # fmt: skip
    extra = would_install("--no-deps", *bare) if bare else {}
    if extra is None:
        refuse("the index lacks a package (pip's words are above)", "use an index that has it")
    exact = [f"{package}=={version}" for package, version in (changes | extra).items()]
    print(f"{len(exact)} packages to install:", ", ".join(exact) or "none")
    if touched := [line for line in held if name(line) in changes]:
        refuse(f"pip would replace {', '.join(touched)}, which are to stay", "report this, with pip's version")
    if given.dry_run:
        return

    with tempfile.TemporaryDirectory() as folder:
        # 3. Fetch and build everything first: this is what fails on a bad network, and it changes nothing.
        wheels = Path(folder, "wheels")
        wheels.mkdir()
        if exact and subprocess.run([*PIP, "wheel", "--quiet", "--no-deps", "--wheel-dir", wheels, *exact]).returncode:
            refuse("a package cannot be fetched or built (pip's words are above)", "repeat it when the index answers")
        # 4. Install; give the image back what it had where that fails.
        (saved := Path(folder, "saved")).mkdir()
        replaced = back_up([name(line) for line in exact if name(line) in before], saved)
        steps = [["--no-index", "--find-links", str(wheels), *exact]] if exact else []
        for words in [*steps, ["--no-build-isolation", "-e", str(ROOT)]]:
            if subprocess.run([*PIP, "install", "--quiet", "--no-deps", *words]).returncode:
                restore([name(line) for line in exact], replaced)
                refuse("pip could not install (its words are above)", "see that disk is free and yours to write")
    print("done; torch and ray are untouched")


if __name__ == "__main__":
    main()
