"""Checkpoints: found wherever they lie, judged whole or not, chosen for a reason that is said in words."""

import math
import os
import shutil
from pathlib import Path

from ..errors import KitError, closest
from .layouts import Checkpoint, find_in, mapping
from .stores import bucket_filesystem, open_store

FILES = {
    "adapter_model.safetensors": "the LoRA weights",
    "model.safetensors": "the model's weights",
    "adapter_config.json": "rank, targets and base model of the adapter",
    "optimizer.pt": "Adam's two moments of every weight",
    "scheduler.pt": "where the learning-rate schedule stands",
    "rng_state": "a worker's random state",
    "trainer_state.json": "step, epoch, and every figure logged so far",
    "training_args.bin": "the arguments as a pickle: never loaded here",
    "tokenizer": "the tokenizer, copied into each checkpoint",
}
"""What the files of a checkpoint are, by the beginning of their names."""
HELD_OUT = ("eval_loss", "eval_rewards/margins")
"""Figures of an evaluation that the table shows where there are any."""


def find(where, filesystem=None) -> list[Checkpoint]:
    """All checkpoints of a run or below a folder, by step; an empty list if there is none.

    `where`: a Run, a path, an address like `s3://bucket/runs/first-run`, or a path in the pyarrow `filesystem`; it may
    be a run, a trial, one checkpoint, or a folder that holds such. A Run that keeps its trials in a bucket is looked
    for there too, one that holds none itself where its config.yaml puts them. No weights are read beyond their
    headers, no pickle is loaded. KitError where there is no such folder.
    """
    if not hasattr(where, "config_file"):
        return _sorted(find_in(open_store(where, filesystem)))
    config = mapping(where.config_file.read_text()) if where.config_file.exists() else {}
    trials = f"{str(config.get('ray_storage_path') or '.').rstrip('/')}/{config.get('ray_run_name')}"
    found = find_in(open_store(where.folder))
    if bucket := config.get("ray_storage_filesystem"):
        return _sorted(found + find_in(open_store(f"{bucket}://{trials.strip('/')}")))
    for folder in (trials, config.get("output_dir")):
        if not found and folder and Path(folder).is_dir():
            found = find_in(open_store(folder))
    return _sorted(found)


def _sorted(checkpoints: list[Checkpoint]) -> list[Checkpoint]:
    """By step, those without one last; of one step Ray's copies first, the older trial's before the newer one's."""
    return sorted(checkpoints, key=lambda item: (item.step is None, item.step or 0, not item.layout.startswith("Ray"),
                                                 item.time, item.index))


def table(checkpoints: list[Checkpoint], relative_to: Path | None = None):
    """A pandas DataFrame, one row a checkpoint; columns as in Checkpoint, size in MB, held-out figures if any.

    `kept by` is its layout; `path` is text, below the folder `relative_to` if that is given.
    """
    import pandas as pd

    held_out = [key for key in HELD_OUT if any(key in item.metrics for item in checkpoints)]
    columns = ["index", "step", "epoch", "time", "MB", "loss", "margin", "kl", *held_out, "complete", "why", "kept by",
               "trial", "path"]
    rows = [(c.index, c.step, c.epoch, c.time.replace(microsecond=0), c.bytes / 1e6, c.loss, c.margin,
             c.kl, *(c.metrics.get(key, math.nan) for key in held_out), c.complete, c.why, c.layout, c.trial,
             below(c.path, relative_to))
            for c in checkpoints]
    return pd.DataFrame(rows, columns=columns).astype({"step": "Int64"})


def below(path: Path | str, folder: Path | None) -> str:
    """`path` as text, relative to `folder` where it lies inside."""
    inside = folder is not None and isinstance(path, Path) and path.is_relative_to(folder)
    return str(path.relative_to(folder)) if inside else str(path)


def tree(checkpoints: list[Checkpoint], root: Path) -> str:
    """The folders that hold checkpoints, below `root`, as text; of the first one its files and what they are."""
    lines, trial, opened = [f"{root.name}/"], None, False
    begun = {item.trial: item.time for item in sorted(checkpoints, key=lambda item: item.time, reverse=True)}
    for item in sorted(checkpoints, key=lambda item: (not item.layout.startswith("Ray"), begun[item.trial],
                                                      item.trial, item.index)):
        if item.trial != trial:
            trial = item.trial
            lines.append(f"  {trial or '.'}/")
        folder = below(item.path, root / trial)
        lines.append(f"    {folder + '/':<34} step {item.step}, {item.bytes / 1e6:.1f} MB, {item.why}")
        if not opened and isinstance(item.path, Path):
            opened = True
            for file in sorted(item.path.iterdir(), key=lambda file: -file.stat().st_size):
                meaning = next((words for start, words in FILES.items() if file.name.startswith(start)), "")
                lines.append(f"      {file.name:<27} {file.stat().st_size / 1e6:8.3f} MB  {meaning}".rstrip())
    return "\n".join(lines)


def latest(checkpoints: list[Checkpoint]) -> tuple[Checkpoint, str]:
    """The complete checkpoint with the highest step, and why. Of equal ones Ray's copy, then the one written last."""
    complete = [item for item in checkpoints if item.complete]
    if not complete:
        raise _none_is(checkpoints, "complete", "train until the next save: 04_train")
    chosen = max(complete, key=lambda item: (item.step, *_rank(item)))
    steps = {item.step for item in complete}
    reason = f"step {chosen.step} is " + (f"the highest of the complete ones ({_numbers(steps)})" if len(steps) > 1
                                          else "the only complete one")
    later = [item for item in checkpoints if not item.complete and (item.step is None or item.step > chosen.step)]
    return chosen, reason + (f"; passed over: {_listed(later)}" if later else "")


def best(checkpoints: list[Checkpoint], metric: str = "rewards/margins",
         higher_is_better: bool = True) -> tuple[Checkpoint, str]:
    """The checkpoint with the best `metric` (a key of trainer_state.json's log, or `kl_mean`), and why.

    Its weights must be whole; it need not be resumable. One that lacks the metric is passed over. Of equal figures the
    earlier step wins (less training for the same), of equal steps the complete one, then Ray's copy, then the one
    written last. KitError where no checkpoint has the metric.
    """
    usable = [item for item in checkpoints if item.usable and item.step is not None]
    if not usable:
        raise _none_is(checkpoints, "usable", "train until the next save: 04_train")
    rated = [(value, item) for item in usable if math.isfinite(value := _value(item, metric))]
    if not rated:
        known = sorted({key for item in usable for key in item.metrics} - {"step", "epoch"})
        raise KitError(f"no checkpoint has the metric {metric!r}{closest(metric, known)}",
                       f"one of {', '.join(known)}", "correct `metric`")
    sign = 1 if higher_is_better else -1
    value, chosen = max(rated, key=lambda pair: (sign * pair[0], -pair[1].step, *_rank(pair[1])))
    steps = {item.step for _, item in rated}
    ties = {item.step for other, item in rated if other == value} - {chosen.step}
    lacking = {item.step for item in usable} - steps
    word = f"the {'highest' if higher_is_better else 'lowest'} of the steps {_numbers(steps)}"
    reason = f"{metric} {value:.4g} at step {chosen.step} is {word if len(steps) > 1 else 'the only such figure'}"
    reason += f"; step {_numbers(ties)} has the same, the earlier is taken" if ties else ""
    return chosen, reason + (f"; passed over, for the window before it has no such figure: {_numbers(lacking)}"
                             if lacking else "")


def by_step(checkpoints: list[Checkpoint], step: int) -> tuple[Checkpoint, str]:
    """The checkpoint of exactly this step, and why; KitError names the steps there are.

    Its weights must be whole. Of several a complete one, then Ray's copy, then the one written last.
    """
    matching = [item for item in checkpoints if item.step == step]
    usable = [item for item in matching if item.usable]
    if not usable:
        steps = {item.step for item in checkpoints if item.usable and item.step is not None}
        found = f"there is no checkpoint of step {step}"
        if matching:
            found = f"the checkpoint of step {step} cannot be used: {matching[0].why}"
        raise KitError(found, f"one of the steps {_numbers(steps) or '(none is usable)'}", "correct the step")
    chosen = max(usable, key=_rank)
    return chosen, f"step {step} was asked for; it is {'' if chosen.complete else 'usable, but: '}{chosen.why}"


def fetch(checkpoint: Checkpoint, folder: Path) -> Checkpoint:
    """The same checkpoint on a local path: itself, or from a bucket copied into `folder`, whole or not at all.

    LLaMA-Factory resumes from, and exports, local folders only; on a cluster `folder` must be one that all nodes see.
    KitError if the copy cannot be made or is not what was found in the bucket.
    """
    if isinstance(checkpoint.path, Path):
        return checkpoint
    from pyarrow import fs

    scheme, _, source = checkpoint.path.partition("://")
    target = Path(folder) / f"checkpoint-{checkpoint.step}"
    beside = target.with_name(f".{target.name}.partial")
    try:
        if not target.exists():
            shutil.rmtree(beside, ignore_errors=True)
            beside.mkdir(parents=True)
            fs.copy_files(source, str(beside), source_filesystem=bucket_filesystem(scheme),
                          destination_filesystem=fs.LocalFileSystem())
            os.replace(beside, target)
        copied, _ = by_step(find(target), checkpoint.step)
    except OSError as error:
        raise KitError(f"could not copy {checkpoint.path}: {error}", f"{checkpoint.bytes / 1e6:,.0f} MB of free space",
                       "free some space, or correct the credentials") from error
    if copied.bytes != checkpoint.bytes:
        raise KitError(f"{target} is not {checkpoint.path}: {copied.bytes:,} bytes, not {checkpoint.bytes:,}",
                       "the same files", f"remove it and try again: rm -r {target}")
    return copied


def _value(item: Checkpoint, metric: str) -> float:
    value = item.metrics.get(metric, math.nan)
    return float(value) if isinstance(value, int | float) else math.nan


def _rank(item: Checkpoint) -> tuple:
    """Of two checkpoints of one step the better: complete, then Ray's copy (it outlives the node), then the later."""
    return item.complete, item.layout.startswith("Ray"), item.time


def _numbers(steps) -> str:
    return ", ".join(str(step) for step in sorted(steps))


def _listed(items: list[Checkpoint]) -> str:
    """The first three checkpoints in words, with what is wrong with each."""
    words = [f"{named(item)} ({item.why})" for item in items[:3]]
    return ", ".join(words) + (f" and {len(items) - 3} more" if len(items) > 3 else "")


def named(item: Checkpoint) -> str:
    """The folder a checkpoint is known by: `checkpoint_000002` or `checkpoint-20`."""
    path = Path(item.path)
    return path.parent.name if path.name == "checkpoint" else path.name


def _none_is(checkpoints: list[Checkpoint], what: str, remedy: str) -> KitError:
    found = f"none of {len(checkpoints)} checkpoints is {what}: {_listed(checkpoints)}" if checkpoints else \
        "there is no checkpoint"
    return KitError(found, f"at least one {what} checkpoint", remedy)
