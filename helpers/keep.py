"""Which checkpoints to keep, and removing the others: planned first, removed only when asked to.

Never removed: the only complete checkpoint of a run, one that the run's files name (chosen, resumed from, exported) or that another
run started from, and while a training runs whatever is newer than its last complete save.
"""

import os
import re
import shutil
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from . import checkpoints, choose, files
from .errors import KitError
from .evaluate import earlier_adapters
from .runs import Run

SAVED = re.compile(r"checkpoint-\d+|checkpoint_[\w.-]+")
"""How LLaMA-Factory and Ray name a checkpoint's folder."""


class Verdict(NamedTuple):
    """What is to become of one checkpoint, and why."""

    checkpoint: object
    keep: bool
    why: str


def plan(run, last: int = 2, metric: str = "rewards/margins", higher_is_better: bool = True) -> list[Verdict]:
    """A Verdict for every checkpoint of a Run: the `last` complete steps and the best by `metric` are kept, one copy each."""
    if last < 1:
        raise KitError(f"keep_last is {last}", "1 or more", "correct it; to remove a whole run, delete its folder")
    found, used = checkpoints.find(run), named_in(run)
    complete = sorted({item.step for item in found if item.complete})
    reasons = {step: "among the last complete ones" for step in complete[-last:]}
    try:
        top = choose.best(found, metric, higher_is_better)[0].step
        reasons[top] = f"the best by {metric}" + (f", and {reasons[top]}" if top in reasons else "")
    except KitError:  # none has the metric: the last ones stay
        pass
    copies = {step: choose.by_step(found, step)[0] for step in reasons}
    running = run.record().get("training", {}).get("status") == "running"
    verdicts = []
    for item in found:  # the first reason that holds decides
        keep, why = False, "neither among the last nor the best" if item.complete else f"not complete: {item.why}"
        if str(item.path) in used:
            keep, why = True, f"named in {used[str(item.path)]}"
        elif not complete:
            keep, why = True, "no checkpoint is complete: nothing is given up"
        elif item.layout == "renamed":
            keep, why = True, "its folder was renamed by hand"
        elif running and (item.step is None or item.step >= complete[-1]):
            keep, why = True, "the training is running, and this may be its save"
        elif item.step in copies and copies[item.step].path == item.path:
            keep, why = True, reasons[item.step]
        elif item.step in copies:
            why = f"step {item.step} is kept in {choose.below(copies[item.step].path, run.folder)}"
        verdicts.append(Verdict(item, keep, why))
    return verdicts


def named_in(run) -> dict[str, str]:
    """Path of each checkpoint that run.json, resume.yaml or another run's config.yaml names, and the file that does."""
    named = {}
    for file, read in ((run.record_file, files.read_json), (run.resume_file, files.read_yaml)):
        waiting = [read(file)] if file.exists() else []
        while waiting:  # every text in nested lists and mappings
            content = waiting.pop()
            if isinstance(content, dict | list):
                waiting += content.values() if isinstance(content, dict) else content
            elif isinstance(content, str):
                named[str(run.folder / content)] = file.name  # an absolute path stays what it is
                named.setdefault(content, file.name)
    for file in run.storage.glob("*/config.yaml"):  # later rounds, which start from one of these
        later = Run(run.profile, run.storage, file.parent.name)
        named |= {path: f"{later.name}'s config.yaml" for path in earlier_adapters(later.config())}
    return named


def shown(run, verdicts: list[Verdict]) -> str:
    """The plan as text: a line a checkpoint, and what it would free."""
    lines = [f"{'keep  ' if one.keep else 'remove'} {choose.below(one.checkpoint.path, run.folder)}: {one.why}"
             for one in verdicts]
    freed = sum(verdict.checkpoint.bytes for verdict in verdicts if not verdict.keep)
    kept = sum(verdict.checkpoint.bytes for verdict in verdicts if verdict.keep)
    return "\n".join([*lines, f"frees {freed / 1e6:,.1f} MB, {kept / 1e6:,.1f} MB stay"])


def remove(run, going: list) -> int:
    """Remove these checkpoints; the bytes freed. The run is looked at again first: KitError if it has changed so that one in use, or
    the last complete one, would go."""
    paths = {str(item.path) for item in going}
    used = paths & named_in(run).keys()
    complete = {str(item.path) for item in checkpoints.find(run) if item.complete}
    if used or (complete and complete <= paths):
        why = f"in use: {', '.join(sorted(used))}" if used else "no complete one would be left"
        raise KitError(f"not removed: {why}", "a run that is as it was when the plan was made", "plan anew")
    for item in going:
        local = isinstance(item.path, Path)
        path = item.path if local else PurePosixPath(item.path.partition("://")[2])
        folder = path.parent if path.name == "checkpoint" else path  # Ray's own folder around it
        if not SAVED.fullmatch(folder.name):
            raise KitError(f"not removed: {item.path}", "a folder that LLaMA-Factory or Ray named",
                           "remove it by hand if you mean it")
        if local:  # renamed first: a half-deleted folder is never taken for a checkpoint
            gone = folder.with_name(f".removing-{folder.name}")
            os.replace(folder, gone)
            shutil.rmtree(gone)
        else:
            files.bucket_filesystem(item.path.partition("://")[0]).delete_dir(str(folder))
    return sum(item.bytes for item in going)
