"""How long it takes to find and judge many checkpoints: `python benchmarks/checkpoints.py [COUNT]` (default 10,000).

Real checkpoint folders of a two-worker LoRA run, with a header of the size that the local model's adapter has, are laid
out by hard links and copies in a temporary folder: `--where` puts them on the disk to be measured.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

TRIAL = Path(__file__).parents[1] / "tests/fixtures/trial/TorchTrainer_8f6d0_00000_0_2026-11-23_00-55-21"
TENSORS = 420  # of a rank-8 adapter on all linear layers of a 30-layer model


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("count", nargs="?", type=int, default=10_000)
    parser.add_argument("--where", default=None, help="folder for the temporary files")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.where) as scratch:
        lay_out(Path(scratch) / TRIAL.name, options.count)
        from helpers import checkpoints

        for round_ in ("first", "again"):
            began, busy = time.perf_counter(), time.process_time()
            found = checkpoints.find(scratch)
            took, busy = time.perf_counter() - began, time.process_time() - busy
            print(f"{round_:>5}: {len(found):,} checkpoints found and judged in {took:.2f} s ({busy:.2f} s of CPU)")
        began = time.perf_counter()
        checkpoints.table(found), checkpoints.latest(found), checkpoints.best(found)
        print(f"table, latest and best: {time.perf_counter() - began:.2f} s (pandas' import included)")
    return 0 if len(found) == options.count and all(item.complete for item in found) and took <= 2 else 1


def lay_out(trial: Path, count: int) -> None:
    """`count` checkpoints of the recorded trial, each with its own step in its own trainer_state.json."""
    model = trial.parent / "model"
    shutil.copytree(TRIAL / "checkpoint_000002" / "checkpoint", model)
    (model / "adapter_model.safetensors").write_bytes(adapter())
    shutil.copytree(TRIAL, trial, ignore=shutil.ignore_patterns("checkpoint_*"))
    state = json.loads((model / "trainer_state.json").read_text())
    (model / "trainer_state.json").unlink()
    names = os.listdir(model)
    for index in range(count):
        folder = trial / f"checkpoint_{index:06d}" / "checkpoint"
        folder.mkdir(parents=True)
        for name in names:
            os.link(model / name, folder / name)
        text = json.dumps(state | {"global_step": index + 1}, indent=2, sort_keys=True)
        (folder / "trainer_state.json").write_text(text)
    shutil.rmtree(model)


def adapter() -> bytes:
    """A valid safetensors file of TENSORS tensors of 16 bytes, named as a LoRA adapter's are."""
    header = {"__metadata__": {"format": "pt"}}
    for number in range(TENSORS):
        name = f"base_model.model.model.layers.{number // 14}.self_attn.q_proj.lora_{number % 14}.weight"
        header[name] = {"dtype": "F32", "shape": [2, 2], "data_offsets": [16 * number, 16 * number + 16]}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    return len(encoded).to_bytes(8, "little") + encoded + bytes(16 * TENSORS)


if __name__ == "__main__":
    sys.exit(main())
