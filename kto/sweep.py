"""Run the pipeline over a grid of parameters, one run per combination.

Each run is `kto run` in a process of its own that joins the cluster by itself: one that fails ends no other. A run's name follows from
its parameters, so a second call finds what is done, skips it, and resumes what was interrupted.
"""

import hashlib
import itertools
import json
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from helpers import files, profiles, runs
from helpers.runs import Run

from . import parameters
from .terminal import Usage, as_usage


def grid(assignments: list[str]) -> list[dict[str, str]]:
    """`["a=1,2", "b=3"]` -> `[{"a": "1", "b": "3"}, {"a": "2", "b": "3"}]`. Usage for a value that a notebook would refuse.

    A value with a comma of its own (`overrides={...}`) is one value.
    """
    axes = {}
    for assignment in assignments:
        name, _, text = assignment.partition("=")
        if name in axes:
            raise Usage(f"-p {name} is given twice", "each parameter once, its values with commas", "-p name=1,2,3")
        values = {value: parameters.typed([f"{name}={value}"])[name]
                  for value in ([text] if text.startswith("{") else text.split(","))}
        axes[name] = values.values() if name in parameters.PATHS else values.keys()
    return [dict(zip(axes, point, strict=True)) for point in itertools.product(*axes.values())]


def name_of(sweep: str, point: dict[str, str]) -> str:
    """The run's name: the sweep's, the point's values to be readable, a hash of the point to be unique."""
    short = [Path(value).stem if "/" in value else value for value in point.values()]
    values = "_".join(re.sub(r"[^A-Za-z0-9.-]+", "-", value)[:12] for value in short)
    return f"{sweep}-{values[:50]}-{hashlib.sha256(json.dumps(sorted(point.items())).encode()).hexdigest()[:6]}"


def done(run: Run) -> bool:
    """Whether all six notebooks of the run are done."""
    record = run.record()
    return record.get("training", {}).get("status") == "finished" and "export" in record


def sweep(profile: str, storage: str, name: str, points: list[dict], at_most: int, say) -> list[dict]:
    """Run what is not done yet, `at_most` at a time; the table, a row a point. It is kept in <storage>/<name>.json as well."""
    with as_usage("correct --name"):
        located = [(runs.locate(profile, storage, name_of(name, point)), point) for point in points]
    waiting = [(run, point) for run, point in located if not done(run)]
    say(f"{len(points)} runs, {len(points) - len(waiting)} done before; {at_most} at a time")

    def one(run: Run, point: dict[str, str]) -> tuple[str, str]:
        why = start(profile, run, point)
        say(f"{run.name}: {why or 'done'}")
        return run.name, why

    with ThreadPoolExecutor(at_most) as pool:
        failures = dict(pool.map(lambda job: one(*job), waiting))
    rows = []
    for run, point in located:
        evaluation = run.record().get("evaluation", {})
        rows.append({"run": run.name, **point, "status": "done" if done(run) else "failed",
                     "auc": evaluation.get("auc"), "margin": evaluation.get("margin"),
                     "why": failures.get(run.name, "").removeprefix("error: ")[:120]})
    files.write(profiles.storage_for(profiles.load(profile), storage) / f"{name}.json", json.dumps(rows, indent=2) + "\n")
    return rows


def start(profile: str, run: Run, point: dict[str, str]) -> str:
    """Run one point in a separate process; returns its error, or an empty string."""
    words = ["run", "--profile", profile, "--storage", str(run.storage), "--run-name", run.name, "--resume", "if-any"]
    words += [word for key, value in point.items() for word in ("-p", f"{key}={value}")]
    ran = subprocess.run([sys.executable, "-m", "kto", *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                         text=True, errors="replace", cwd=profiles.ROOT)
    if ran.returncode == 0:
        return ""
    said = ran.stderr.strip().splitlines() or [f"exit status {ran.returncode}"]
    return next((line for line in reversed(said) if line.startswith("error: ")), said[-1])
