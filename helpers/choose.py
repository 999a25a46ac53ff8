"""Choose a checkpoint and say why; list all of them as a table or a tree."""

import math
from dataclasses import replace
from pathlib import Path, PurePosixPath

from . import files
from .checkpoints import Checkpoint
from .errors import KitError, closest

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
COLUMNS = {"loss": "loss", "margin": "rewards/margins", "kl": "kl_mean"}
"""Columns of the table that are figures: column -> metric. Loss, margin and area of every held-out set follow where there was one."""


def table(found: list[Checkpoint], relative_to: Path | None = None):
    """A DataFrame, one row a checkpoint: step, epoch, time, MB, figures of its last window and evaluation, complete, why, …

    `path` is text, below the folder `relative_to` if that is given.
    """
    import pandas as pd

    shown = COLUMNS | {key: key for item in found for key in item.metrics
                       if key.startswith("eval") and key.endswith(("_loss", "rewards/margins", "rewards/auc"))}
    columns = ["step", "epoch", "time", "MB", *shown, "complete", "why", "kept by", "trial", "path"]
    rows = [(item.step, item.epoch, item.time.replace(microsecond=0), item.bytes / 1e6,
             *(_value(item, key) for key in shown.values()), item.complete, item.why, item.layout, item.trial,
             below(item.path, relative_to)) for item in found]
    return pd.DataFrame(rows, columns=columns).astype({"step": "Int64"})


def tree(found: list[Checkpoint], root: Path) -> str:
    """The folders that hold checkpoints, below `root`, as text; of the first one its files and what they are."""
    lines, trial, opened = [f"{root.name}/"], None, False
    for item in sorted(found, key=lambda item: (not item.layout.startswith("Ray"), item.trial, item.step or 0)):
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


def latest(found: list[Checkpoint]) -> tuple[Checkpoint, str]:
    """The complete checkpoint with the highest step, and why. Of equal ones Ray's copy, then the one written last."""
    complete = _only(found, "complete")
    chosen = max(complete, key=lambda item: (item.step, *_rank(item)))
    reason = f"step {chosen.step} is the highest of the complete ones ({_numbers({item.step for item in complete})})"
    later = [item for item in found if not item.complete and (item.step is None or item.step > chosen.step)]
    return chosen, reason + (f"; passed over: {_listed(later)}" if later else "")


def best(found: list[Checkpoint], metric: str = "rewards/margins", higher_is_better: bool = True,
         scores=None) -> tuple[Checkpoint, str]:
    """The checkpoint with the best `metric` (a key of trainer_state.json's log, or `kl_mean`), and why; its weights are whole.

    With `scores`, a table of held-out figures (`evaluate.score_checkpoints`), `metric` "held-out" takes the earliest checkpoint
    that is not clearly worse than the one with the largest area under the curve. Of equal figures the earlier step wins, of equal
    steps the complete one, then Ray's copy. KitError where no checkpoint has the metric.
    """
    usable = _only(found, "usable")
    if metric == "held-out" and scores is not None and len(scores):
        # Clearly worse: the interval of how much larger the best one's area is, over the same prompts, lies above 0.
        top = scores.loc[scores["auc"].idxmax()]
        close = scores[~(scores["worse_low"] > 0) | (scores["step"] == top["step"])]
        first = close.loc[close["step"].idxmin()]
        step, why = int(first["step"]), "held-out accuracy {auc:.3f} ({auc_low:.3f} to {auc_high:.3f})".format(**first)
        if step == int(top["step"]):
            why += f" at step {step} is the highest of the steps {_numbers(map(int, scores['step']))}"
        else:
            why += (f" at step {step}: the earliest that is not clearly worse than the highest, {top['auc']:.3f} at step "
                    f"{int(top['step'])} (the difference is {first['worse_low']:.3f} to {first['worse_high']:.3f})")
        return max((item for item in usable if item.step == step), key=_rank), why
    rated = [item for item in usable if math.isfinite(_value(item, metric))]
    if not rated:
        known = sorted({key for item in usable for key in item.metrics} - {"step", "epoch"})
        raise KitError(f"no checkpoint has the metric {metric!r}{closest(metric, known)}",
                       f"one of {', '.join(known)}", "correct `metric`")
    sign, word = (1, "highest") if higher_is_better else (-1, "lowest")
    chosen = max(rated, key=lambda item: (sign * _value(item, metric), -item.step, *_rank(item)))
    steps = {item.step for item in rated}
    reason = f"{metric} {_value(chosen, metric):.4g} at step {chosen.step} is the {word} of the steps {_numbers(steps)}"
    lacking = {item.step for item in usable} - steps
    return chosen, reason + (f"; passed over, for the window before it has no such figure: {_numbers(lacking)}" if lacking else "")


def by_step(found: list[Checkpoint], step: int) -> tuple[Checkpoint, str]:
    """The checkpoint of exactly this step, and why; of several a complete one, then Ray's copy. KitError names the steps there are."""
    matching = [item for item in found if item.step == step and item.usable]
    if not matching:
        steps = {item.step for item in found if item.usable and item.step is not None}
        raise KitError(f"there is no usable checkpoint of step {step}", f"one of the steps {_numbers(steps)}", "correct the step")
    chosen = max(matching, key=_rank)
    return chosen, f"step {step} was asked for; it is {'' if chosen.complete else 'usable, but: '}{chosen.why}"


def fetch(checkpoint: Checkpoint, target: Path, to_resume: bool = True) -> Checkpoint:
    """The same checkpoint on a local path: itself, or from a bucket copied into the folder `target`, atomically.

    LLaMA-Factory resumes from, and exports, local folders only; on a cluster `target` must be one that all nodes see.
    Without `to_resume` the optimiser and the random states stay in the bucket.
    """
    if isinstance(checkpoint.path, Path):
        return checkpoint
    disk, _, source = files.open_folder(checkpoint.path)
    with files.new_folder(target) as folder:
        for path in disk.find(source):
            if to_resume or not path.endswith((".pt", ".pth", ".bin")):
                disk.get(path, str(folder / PurePosixPath(path).relative_to(source)))
    return replace(checkpoint, path=target)


def below(path: Path | str, folder: Path | None) -> str:
    """`path` as text, relative to `folder` if it is inside."""
    inside = folder is not None and isinstance(path, Path) and path.is_relative_to(folder)
    return str(path.relative_to(folder)) if inside else str(path)


def _value(item: Checkpoint, metric: str) -> float:
    return float(item.metrics.get(metric, math.nan))


def _rank(item: Checkpoint) -> tuple:
    """Of two checkpoints of one step the better: complete, then Ray's copy (it outlives the node), then the later."""
    return item.complete, item.layout.startswith("Ray"), item.time


def _numbers(steps) -> str:
    return ", ".join(str(step) for step in sorted(steps))


def _listed(items: list[Checkpoint]) -> str:
    """The first three checkpoints in words, with what is wrong with each."""
    folders = [Path(item.path) for item in items[:3]]
    names = [path.parent.name if path.name == "checkpoint" else path.name for path in folders]
    words = [f"{name} ({item.why})" for name, item in zip(names, items, strict=False)]
    return ", ".join(words) + (f" and {len(items) - 3} more" if len(items) > 3 else "")


def _only(found: list[Checkpoint], what: str) -> list[Checkpoint]:
    """The complete or the usable ones, those whose step is known. KitError where there is none."""
    kept = [item for item in found if getattr(item, what) and item.step is not None]
    if not kept:
        words = f"none of {len(found)} checkpoints is {what}: {_listed(found)}" if found else "there is no checkpoint"
        raise KitError(words, f"at least one {what} checkpoint", "train until the next save: 04_train")
    return kept
