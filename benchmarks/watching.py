"""What it costs a training to be watched: the same training from a bare shell and followed, in turn, on this machine.

Followed is as in notebook 4: launched by `helpers.launch`, parsed, sent to the embedded MLflow, judged by the watchdog, the
lines printed. Besides the wall time, which other work on the machine disturbs, the processor time of
the watching processes is measured: what they take, the training cannot have.

    python benchmarks/watching.py                       # bare, followed, followed, bare: 8 minutes on 2 cores
    python benchmarks/watching.py --pairs 3 --steps 16 --output watching.json
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean

import psutil

from feedback.check import prepare
from helpers import config, launch, logs, models, runs, tracking
from helpers.live import follow


def made_ready(storage: str, name: str, steps: int) -> runs.Run:
    """A run of the local profile with its model, data and config, as notebooks 1 to 3 leave it."""
    run = runs.start("local", storage, name)
    path = models.prepare_model(run.profile.model_name_or_path, run.models)
    run.note(model={"path": path, "template": run.profile.template}, dataset=prepare(run.profile.dataset, run.datasets))
    config.write(run, config.resolve(run, max_steps=steps, logging_steps=1))
    return run


def bare(run: runs.Run) -> dict:
    """The recorded command and environment, as anyone would type it; seconds."""
    environment = {**os.environ, **launch.environment(run)}
    began = time.perf_counter()
    with open(run.log_file, "wb") as log:
        subprocess.run(launch.command(run), stdout=log, stderr=subprocess.STDOUT, cwd=run.folder, env=environment,
                       check=True)
    return {"how": "bare", "wall s": time.perf_counter() - began, "trainer s": trainer_seconds(run)}


def followed(run: runs.Run) -> dict:
    """The same, launched and followed; seconds, and those of the processor in this process and the training's guardian."""
    began, busy = time.perf_counter(), time.process_time()
    training = launch.start(run)
    guardian, guard_busy = psutil.Process(training.guardian.pid), 0.0
    tracker = tracking.Tracker(run)
    stock = training.events

    def events(*arguments):
        nonlocal guard_busy
        for some in stock(*arguments):
            if training.guardian.poll() is None:
                guard_busy = sum(guardian.cpu_times()[:2])  # its own, not its children's
            yield some

    training.events = events
    table = follow(training, tracker)
    wall, busy = time.perf_counter() - began, time.process_time() - busy
    tracker.close(table)
    watching = {"watching CPU s": busy + guard_busy, "share": (busy + guard_busy) / (wall * os.cpu_count())}
    return {"how": "followed", "wall s": wall, "trainer s": trainer_seconds(run), **watching}


def trainer_seconds(run: runs.Run) -> float:
    """The trainer's own account of its training loop."""
    return next(e.data["train_runtime"] for e in logs.parse_file(run.log_file) if e.kind == "summary")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=2)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--output", type=Path)
    chosen = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    measured = []
    with tempfile.TemporaryDirectory() as storage:
        for number in range(2 * chosen.pairs):
            how = bare if number % 4 in (0, 3) else followed
            measured.append(how(made_ready(storage, f"{how.__name__}-{number}", chosen.steps)))
            print({key: value if key == "how" else round(value, 4) for key, value in measured[-1].items()}, flush=True)
    walls = {how: mean(row["wall s"] for row in measured if row["how"] == how) for how in ("bare", "followed")}
    share = max(row["share"] for row in measured if row["how"] == "followed")
    found = {"cores": os.cpu_count(), "steps": chosen.steps, "runs": measured, "mean wall s": walls,
             "wall ratio": walls["followed"] / walls["bare"], "largest share of the machine's processor time": share}
    print(json.dumps({key: value for key, value in found.items() if key != "runs"}, indent=2))
    if chosen.output:
        chosen.output.write_text(json.dumps(found, indent=2) + "\n")
    return 0 if share < 0.01 else 1


if __name__ == "__main__":
    sys.exit(main())
