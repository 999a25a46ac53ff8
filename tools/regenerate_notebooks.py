"""`make notebooks`: one real run of all six with their defaults, and its outputs kept in notebooks/.

Idempotent in everything deterministic: what papermill adds to the metadata (times, paths) is taken out again.
"""

import os
import sys
import tempfile
from pathlib import Path

import hygiene
import nbformat

from helpers import runs
from kto import parameters, pipeline


def clean(executed: Path, target: Path, seconds: float) -> None:
    """The executed notebook with the source notebook's metadata: outputs and execution counts are all that is taken over."""
    new, old = nbformat.read(executed, 4), nbformat.read(target, 4)
    ran = [cell for cell in new.cells if "injected-parameters" not in cell.metadata.get("tags", [])]
    for before, after in zip(old.cells, ran, strict=True):
        if before.cell_type == "code":
            before.outputs, before.execution_count = after.outputs, after.execution_count
    counts = iter(range(1, len(old.cells) + 1))
    for cell in old.cells:
        if cell.cell_type == "code":
            cell.execution_count = next(counts)
            for output in cell.outputs:
                output.pop("transient", None)
                if "execution_count" in output:
                    output.execution_count = cell.execution_count
    old.metadata = {
        "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
        "kto": {"outputs_of": hygiene.code_hash(old), "minutes": round(seconds / 60, 1)},
    }
    nbformat.write(old, target)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.environ["KTO_STORAGE"] = str(Path(folder) / "storage")
        run = runs.start("local", "", "first-run")
        pipeline.execute(run, {}, lambda line: print(line, file=sys.stderr))
        for path in parameters.notebooks():
            clean(run.notebooks / path.name, path, run.record()["seconds"][path.stem])


if __name__ == "__main__":
    main()
