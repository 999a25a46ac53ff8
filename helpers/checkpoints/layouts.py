"""Where checkpoints lie and what each says: one folder in, one Checkpoint out. `checkpoints` is the room to call.

Every layout of this stack is known: Ray Train V1 (`TorchTrainer_*/checkpoint_00000k/checkpoint`), Ray Train V2
(`checkpoint_<time>/checkpoint`) and LLaMA-Factory's own `output/checkpoint-N`; on disk or in a bucket.
"""

import json
import math
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import yaml

from .. import files
from . import wholeness
from .stores import LocalStore

LAYOUTS = {
    "Ray Train": re.compile(r"checkpoint_(\d{6,})"),
    "Ray Train V2": re.compile(r"checkpoint_(\d{4}-\d\d-\d\d_.*)"),
    "output_dir": re.compile(r"checkpoint-(\d+)"),
}
"""Who wrote a folder, by its name. Ray's number counts saves, LLaMA-Factory's is the step."""


@dataclass(frozen=True)
class Checkpoint:
    """One saved state of a training."""

    index: int
    """number of the save within its trial, from 0"""
    step: int | None
    """optimiser steps done; None where nothing in the folder says it"""
    epoch: float
    """passes over the data"""
    time: datetime
    """when its last file was written, UTC"""
    bytes: int
    """of all its files"""
    loss: float
    """of the last logged window; NaN where there is none"""
    margin: float
    """rewards/margins of the same window; NaN where it had no accepted, or no rejected rows"""
    kl: float
    """mean per micro-batch of the same window, in nats; NaN where the accumulation is not known"""
    usable: bool
    """its weights are whole: it can be evaluated and exported"""
    complete: bool
    """a training can go on from it exactly"""
    why: str
    """`complete`, or what is wrong"""
    path: Path | str
    """the folder that `resume_from_checkpoint` takes; in a bucket its address"""
    layout: str
    """who wrote it: a key of LAYOUTS, or `renamed`"""
    trial: str
    """the folder that holds it and its siblings, relative to what was searched"""
    workers: int
    """world size it was saved with; 0 where it cannot be told"""
    planned_steps: int | None = None
    """steps that the training was to take in all"""
    metrics: dict = field(repr=False, default_factory=dict)
    """all figures of that window as logged, `kl_mean`, and the last evaluation's (`eval_…`)"""


def find_in(store) -> list[Checkpoint]:
    """The checkpoints below the root of a store (see `stores`), in no order."""
    tree = store.tree()
    children: dict[str, dict[str, dict]] = {}
    for folder, names in tree.items():
        parent, _, name = folder.rpartition("/")
        children.setdefault(parent, {})[name] = names
    facts = _Facts(store, tree)
    outers = [(outer, layout) for outer in tree if (layout := _layout(tree, outer, store.root))]

    def one(outer_and_layout):
        return _read(store, children, facts, *outer_and_layout)

    if isinstance(store, LocalStore):
        found = [one(outer) for outer in outers]
    else:  # a bucket answers in tens of milliseconds: ask for many at once
        with ThreadPoolExecutor(32) as pool:
            found = list(pool.map(one, outers))
    return _numbered([item for item in found if item])


def _layout(tree, outer: str, root: str) -> str:
    """The layout of `outer` if it is a folder that holds one checkpoint, else an empty string.

    LLaMA-Factory leaves weights and a trainer_state.json in output_dir itself at the end: no checkpoint, no optimiser.
    """
    parent, _, name = outer.rpartition("/")
    around = parent.rpartition("/")[2]
    if name == "checkpoint" and outer != root and around.startswith("checkpoint_"):
        return ""  # it belongs to Ray's folder around it
    for layout, pattern in LAYOUTS.items():
        if pattern.fullmatch(name):
            return layout
    return "renamed" if {wholeness.STATE, "optimizer.pt"} <= tree[outer].keys() else ""


class _Facts:
    """What the configs around a checkpoint say: gradient accumulation of its trial, world size of the run."""

    def __init__(self, store, tree):
        self.store, self.tree, self.known = store, tree, {}
        self.config = self._config()

    def _config(self) -> dict:
        """The run's config.yaml: at the root that was searched, or on disk up to four folders above it."""
        if "config.yaml" in self.tree.get(self.store.root, {}):
            return mapping(self.store.read(f"{self.store.root}/config.yaml").decode())
        above = Path(self.store.root).parents[:4] if isinstance(self.store, LocalStore) else []
        near = next((folder / "config.yaml" for folder in above if (folder / "config.yaml").is_file()), None)
        return mapping(near.read_text()) if near else {}

    def of(self, trial: str) -> dict:
        """LLaMA-Factory's keys for a trial: its own params.json (Ray Train V1 writes it), else config.yaml."""
        if trial not in self.known:
            self.known[trial] = self.config
            if "params.json" in self.tree.get(trial, {}):
                params = mapping(self.store.read(f"{trial}/params.json").decode(), json.loads)
                self.known[trial] = (params.get("train_loop_config") or {}).get("args") or self.config
        return self.known[trial]


def mapping(text: str, parse=files.parse_yaml) -> dict:
    """A mapping from YAML, or with `parse` json.loads from JSON; empty where it is none: a help here, not a condition."""
    try:
        loaded = parse(text)
    except (yaml.YAMLError, ValueError):
        return {}
    return loaded if isinstance(loaded, dict) else {}


def _read(store, children, facts: _Facts, outer: str, layout: str) -> Checkpoint | None:
    """One checkpoint from the folder that its saver named; None if it vanished meanwhile."""
    trial, _, name = outer.rpartition("/")
    inner = "checkpoint" in children.get(outer, {}) and layout != "output_dir"
    folder = f"{outer}/checkpoint" if inner else outer
    files = children[outer]["checkpoint"] if inner else children[trial][name]
    number = re.search(r"\d+", name) if layout in ("Ray Train", "output_dir") else None
    try:
        why, fault, state = _judged(store, children, facts, trial, folder, files)
    except FileNotFoundError:
        return None
    metrics = _metrics(state.get("log_history", []), facts.of(trial).get("gradient_accumulation_steps"))
    size, time = _extent(folder, children, files)
    return Checkpoint(
        index=int(number.group()) if layout == "Ray Train" else -1,
        step=state.get("global_step", int(number.group()) if number and layout == "output_dir" else None),
        epoch=state.get("epoch") or math.nan, time=datetime.fromtimestamp(time, UTC), bytes=size,
        loss=metrics.get("loss", math.nan), margin=metrics.get("rewards/margins", math.nan),
        kl=metrics.get("kl_mean", math.nan), usable=not why, complete=not fault, why=fault or "complete",
        path=store.address(folder), layout=layout, trial=trial[len(store.root) :].strip("/"),
        workers=wholeness.workers(files), planned_steps=state.get("max_steps"), metrics=metrics)


def _judged(store, children, facts: _Facts, trial: str, folder: str, files) -> tuple[str, str, dict]:
    """What is wrong with the weights, with the checkpoint as a whole (empty: nothing), and its trainer_state."""
    world_size = (facts.config or facts.of(trial)).get("ray_num_workers")
    why = wholeness.weights_fault(store.read, folder, files)
    fault = why or wholeness.resume_fault(store.read, folder, files, children.get(folder, {}), world_size)
    if wholeness.STATE not in files:
        return why, fault, {}
    try:
        state = wholeness.read_state(store.read, f"{folder}/{wholeness.STATE}", files[wholeness.STATE].size)
    except ValueError:
        return why, fault or f"{wholeness.STATE} is unreadable or cut off", {}
    return why, fault, state


def _metrics(history: list[dict], accumulation: int | None) -> dict:
    """The last logged window's figures, with `kl_mean`, and the last evaluation's (`eval_…`).

    The logged `kl` is a sum over one worker's micro-batches: its mean is kl / (gradient accumulation x steps in the
    window).
    """
    windows = [entry for entry in history if "loss" in entry]
    metrics = dict(windows[-1]) if windows else {}
    if accumulation and "kl" in metrics:
        steps = metrics["step"] - (windows[-2]["step"] if len(windows) > 1 else 0)
        metrics["kl_mean"] = metrics["kl"] / (accumulation * max(1, steps))
    evaluations = [entry for entry in history if "eval_loss" in entry]
    if evaluations:
        metrics |= {key: value for key, value in evaluations[-1].items() if key.startswith("eval_")}
    return metrics


def _extent(folder: str, children, files) -> tuple[int, float]:
    """Bytes of all files of a checkpoint, subfolders included, and when the last of them was written."""
    size = sum(entry.size for entry in files.values())
    time = max((entry.time for entry in files.values()), default=0.0)
    for name, inside in children.get(folder, {}).items():
        below = _extent(f"{folder}/{name}", children, inside)
        size, time = size + below[0], max(time, below[1])
    return size, time


def _numbered(checkpoints: list[Checkpoint]) -> list[Checkpoint]:
    """`index` for the layouts whose folder names do not count the saves: the place by step within the trial."""
    seen: dict[str, int] = {}
    numbered = []
    for item in sorted(checkpoints, key=lambda item: (item.step is None, item.step or 0, item.time)):
        if item.index < 0:
            item = replace(item, index=seen.get(item.trial, 0))
            seen[item.trial] = item.index + 1
        numbered.append(item)
    return numbered
