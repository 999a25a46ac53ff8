"""The pipeline over a grid of parameters: a run for each point, at most so many at a time, as tasks on the Ray cluster.

Each run is `kto run --resume auto` in a process of its own, so one that fails ends no other, and a sweep that was
interrupted goes on. A run's name follows from its parameters: what is done already is found again and skipped.
"""

import hashlib
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

from helpers import doctor, files, profiles, runs
from helpers.errors import KitError
from helpers.runs import Run

from . import pipeline

FOR_TASKS = {("OMP_NUM_THREADS", "1"), ("CUDA_VISIBLE_DEVICES", "")}
"""What Ray sets for a task that asks for no CPU and no GPU; a run's own processes may have both."""


def grid(assignments: list[str]) -> list[dict[str, str]]:
    """`["a=1,2", "b=3"]` -> `[{"a": "1", "b": "3"}, {"a": "2", "b": "3"}]`. KitError for a value that a notebook would refuse.

    A value with a comma of its own (`overrides={...}`) is one value.
    """
    axes = []
    for assignment in assignments:
        name, _, text = assignment.partition("=")
        values = [text] if text.startswith("{") else text.split(",")
        pipeline.typed([f"{name}={value}" for value in values])
        axes.append([(name, pipeline.absolute_paths({name: value})[name]) for value in dict.fromkeys(values)])
    names = [axis[0][0] for axis in axes]
    if twice := {name for name in names if names.count(name) > 1}:
        raise KitError(f"given twice: {', '.join(sorted(twice))}", "each parameter once, its values with commas", "-p name=1,2,3")
    return [dict(point) for point in itertools.product(*axes)]


def name_of(sweep: str, point: dict[str, str]) -> str:
    """The run's name: the sweep's, the point's values for a reader, a hash of the point for certainty."""
    values = "_".join(re.sub(r"[^A-Za-z0-9.-]+", "-", Path(value).stem if "/" in value else value)[:12] for value in point.values())
    return f"{sweep}-{values[:50]}-{hashlib.sha256(json.dumps(sorted(point.items())).encode()).hexdigest()[:6]}"


def done(run: Run) -> bool:
    """Whether the run went through all six notebooks."""
    record = run.record()
    return record.get("training", {}).get("status") == "finished" and "export" in record


def sweep(profile: str, storage: str, name: str, points: list[dict[str, str]], at_most: int = 1, say=print) -> list[dict]:
    """Run what is not done yet, `at_most` at a time; the table, a row a point. It is kept in <storage>/<name>.json as well.

    On the profile `local` every run starts its own Ray instance, and the tasks' own is a small one beside it.
    """
    loaded = profiles.load(profile)
    planned = {name_of(name, point): point for point in points}
    located = {run_name: runs.locate(profile, storage, run_name) for run_name in planned}
    waiting = [run_name for run_name, run in located.items() if not done(run)]
    say(f"{len(planned)} runs, {len(planned) - len(waiting)} done before; {at_most} at a time")
    failures: dict[str, str] = {}
    if waiting:
        with doctor.ray_cluster(loaded, num_cpus=1) as ray:
            task = ray.remote(num_cpus=0, max_retries=0)(one)
            here = {} if loaded.ray_address == "local" else {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
            working = {}
            while waiting or working:
                while waiting and len(working) < at_most:
                    run_name = waiting.pop(0)
                    words = arguments(profile, str(located[run_name].storage), run_name, planned[run_name])
                    working[task.remote(words, here)] = run_name
                    say(f"{run_name}: started")
                ended, _ = ray.wait(list(working))
                run_name = working.pop(ended[0])
                failures[run_name] = outcome(ray, ended[0])
                say(f"{run_name}: {failures[run_name] or 'done'}")
    rows = [row(located[run_name], point, failures.get(run_name, "")) for run_name, point in planned.items()]
    files.write(profiles.storage_for(loaded, storage) / f"{name}.json", json.dumps(rows, indent=2) + "\n")
    return rows


def arguments(profile: str, storage: str, run_name: str, point: dict[str, str]) -> list[str]:
    """What `kto` is given for a point."""
    words = ["run", "--profile", profile, "--storage", storage, "--run-name", run_name, "--resume", "auto"]
    return words + [word for key, value in point.items() for word in ("-p", f"{key}={value}")]


def one(words: list[str], settings: dict[str, str]) -> str:
    """A run, in a process of its own on whichever node this task is; empty, or what it said of its failure."""
    bare = {key: value for key, value in os.environ.items() if (key, value) not in FOR_TASKS}
    ran = subprocess.run([sys.executable, "-m", "kto", *words], capture_output=True, text=True, errors="replace",
                         cwd=profiles.ROOT, env=bare | settings)
    said = ran.stderr.strip().splitlines() or [f"exit status {ran.returncode}"]
    return "" if ran.returncode == 0 else next((line for line in reversed(said) if line.startswith("error: ")), said[-1])


def outcome(ray, task) -> str:
    try:
        return ray.get(task)
    except ray.exceptions.RayError as error:  # the node that the run was started on was lost
        return f"error: {str(error).strip().splitlines()[-1]}"


def row(run: Run, point: dict[str, str], failure: str) -> dict:
    """A line of the table."""
    evaluation = run.record().get("evaluation", {})
    figures = {"auc": evaluation.get("auc"), "margin": evaluation.get("margin")}
    return {"run": run.name, **point, "status": "done" if done(run) else "failed", **figures,
            "why": failure.removeprefix("error: ")[:120]}
