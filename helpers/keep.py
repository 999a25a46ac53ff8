"""Plan which checkpoints to keep, and remove the others on request.

Never removed: the only complete checkpoint of a run, one that the run's files name (chosen, resumed from, exported) or that another
run started from, and while a training runs whatever is newer than its last complete save.
"""

import contextlib
import re
from typing import NamedTuple

from . import checkpoints, choose, files
from .errors import KitError, refuse_out_of_range
from .evaluate import earlier_adapters
from .runs import Run

USUAL = "rewards/margins"


class Verdict(NamedTuple):
    """What is to become of one checkpoint, and why."""

    checkpoint: checkpoints.Checkpoint
    keep: bool
    why: str


def plan(run: Run, last: int = 2, metric: str = USUAL, higher_is_better: bool = True) -> list[Verdict]:
    """A Verdict for every checkpoint of a Run: the `last` complete steps and the best by `metric` are kept, one copy each.

    KitError for a metric that no checkpoint has.
    """
    refuse_out_of_range(keep_last=last)
    found, holders = checkpoints.find(run), holders_of(run)
    complete = sorted({item.step for item in found if item.complete})
    reasons = {step: "among the last complete ones" for step in complete[-last:]}
    # Where no checkpoint has the usual metric the last ones stay; one that was asked for must be there.
    with contextlib.suppress(*[KitError] if metric == USUAL or not complete else []):
        reasons[choose.best(found, metric, higher_is_better)[0].step] = f"the best by {metric}"
    copies = {step: choose.by_step(found, step)[0].path for step in reasons}
    running = run.record().get("training", {}).get("status") == "running"
    verdicts = []
    for item in found:  # the first reason that holds decides
        keep, why = False, "neither among the last nor the best" if item.complete else f"not complete: {item.why}"
        if holder := named_in(holders, item, run):
            keep, why = True, f"named in {holder}"
        elif not complete:
            keep, why = True, "no checkpoint is complete: nothing is given up"
        elif item.layout == "renamed":
            keep, why = True, "its folder was renamed by hand"
        elif running and (item.step is None or item.step >= complete[-1]):
            keep, why = True, "the training is running, and this may be its save"
        elif item.step in copies:
            keep = copies[item.step] == item.path
            why = reasons[item.step] if keep else f"step {item.step} is kept in {choose.below(copies[item.step], run.folder)}"
        verdicts.append(Verdict(item, keep, why))
    return verdicts


def holders_of(run: Run) -> dict[str, str]:
    """The files that may name a checkpoint of the run, and their content as text: its own, and configs of later rounds."""
    held = {"run.json": run.record(), "resume.yaml": files.read_yaml(run.resume_file) if run.resume_file.exists() else ""}
    for file in run.storage.glob("*/config.yaml"):
        later = Run(run.profile, run.storage, file.parent.name)
        held[f"{later.name}'s config.yaml"] = earlier_adapters(later.config())
    return {name: repr(content) for name, content in held.items()}


def named_in(holders: dict[str, str], item: checkpoints.Checkpoint, run: Run) -> str:
    """Which of `holders` names the checkpoint, by its path or by its place in the run's folder; empty if none does."""
    names = "|".join(map(re.escape, (str(item.path), choose.below(item.path, run.folder))))
    return next((holder for holder, text in holders.items() if re.search(rf"({names})(?![\w-])", text)), "")


def shown(run: Run, verdicts: list[Verdict]) -> str:
    """The plan as text: a line a checkpoint, and what it would free."""
    lines = [f"{'keep  ' if keep else 'remove'} {choose.below(item.path, run.folder)}: {why}" for item, keep, why in verdicts]
    freed = sum(item.bytes for item, keep, _ in verdicts if not keep)
    kept = sum(item.bytes for item, keep, _ in verdicts if keep)
    return "\n".join([*lines, f"frees {freed / 1e6:,.1f} MB, {kept / 1e6:,.1f} MB stay"])


def remove(run: Run, going: list[checkpoints.Checkpoint]) -> int:
    """Remove these checkpoints; the bytes freed. The run is looked at again first: KitError if it has changed so that one in use, or
    the last complete one, would go."""
    holders, paths = holders_of(run), [item.path for item in going]
    used = [str(item.path) for item in going if named_in(holders, item, run)]
    left = [item for item in checkpoints.find(run) if item.complete and item.path not in paths]
    if used or (going and not left):
        why = f"in use: {', '.join(used)}" if used else "no complete one would be left"
        raise KitError(f"not removed: {why}", "a run that is as it was when the plan was made", "plan anew")
    for item in going:
        disk, _, folder = files.open_folder(item.path)
        disk.rm(folder.removesuffix("/checkpoint"), recursive=True)  # Ray's own folder around it too
    return sum(item.bytes for item in going)
