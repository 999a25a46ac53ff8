"""What may not be committed: notebooks with stale or telling outputs, and secrets anywhere. Each finding names its remedy.

    .venv/bin/python tools/hygiene.py FILE...          # exit status 1 where something was found

The pre-commit hook and tests/unit/test_project.py both ask here.
"""

import hashlib
import json
import re
import sys
from pathlib import Path

from helpers.secrets import ISSUED

TELLING = {
    "an absolute path": r"/(?:root|home|work|tmp|Users|mnt/data)/[\w.-]+",
    "a warning": r"\w*Warning\b",
    "an error": r'"output_type": "error"|Traceback',
}
"""what an output may not hold -> pattern"""


def code_hash(book: dict) -> str:
    """sha256 of a notebook's code cells, in order: what its outputs come from."""
    code = ["".join(cell["source"]) for cell in book["cells"] if cell["cell_type"] == "code"]
    return hashlib.sha256(json.dumps(code).encode()).hexdigest()


def in_notebook(path: Path) -> list[str]:
    """What is wrong with a notebook's outputs."""
    book = json.loads(path.read_text())
    cells = [cell for cell in book["cells"] if cell["cell_type"] == "code"]
    found = []
    if [cell["execution_count"] for cell in cells] != list(range(1, len(cells) + 1)):
        found.append("its outputs are not of one run from top to bottom; to do: make notebooks")
    if book["metadata"].get("kto", {}).get("outputs_of") != code_hash(book):
        found.append("its outputs are older than its code; to do: make notebooks")
    text = re.sub(r"[A-Za-z0-9+/=]{500,}", "", json.dumps([cell["outputs"] for cell in cells]))  # pictures
    for what, pattern in TELLING.items():
        if told := re.search(pattern, text):
            found.append(f"an output holds {what}: {told[0]!r}; to do: mend the cell, then make notebooks")
    return found


def in_text(text: str) -> list[str]:
    """Secrets in a file's text, shown by their first letters."""
    return [
        f"it holds {what}: {found[0][:8]}…; to do: take it out, revoke it where it was issued, and read it from the environment"
        for what, pattern in ISSUED.items()
        if (found := re.search(pattern, text))
    ]


def findings(path: Path) -> list[str]:
    """All that is wrong with one file."""
    found = in_text(path.read_text(errors="ignore"))
    return found + (in_notebook(path) if path.suffix == ".ipynb" else [])


def main(paths: list[str]) -> int:
    found = [f"{path}: {finding}" for path in paths if Path(path).is_file() for finding in findings(Path(path))]
    print("\n".join(found), end="\n" if found else "")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
