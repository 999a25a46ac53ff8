"""Which checkpoints to keep, and removing the others: planned and shown first, done only when asked to.

Never removed: the only complete checkpoint of a run, one that the run's files name (chosen, resumed from, exported),
and while a training runs whatever is newer than its last complete save.
"""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from .. import checkpoints as room
from .. import files
from ..errors import KitError
from .layouts import LAYOUTS, Checkpoint
from .stores import bucket_filesystem


@dataclass(frozen=True)
class Verdict:
    """What is to become of one checkpoint, and why."""

    checkpoint: Checkpoint
    keep: bool
    why: str


def plan(run, found: list[Checkpoint], last: int = 2, metric: str = "rewards/margins",
         higher_is_better: bool = True) -> list[Verdict]:
    """A Verdict for every checkpoint of a Run: the `last` complete steps and the best by `metric` are kept, once each.

    Of a step that is kept one copy stays: a complete one first, then Ray's. Nothing is removed here; see `remove`.
    KitError if `last` is below 1: the only complete checkpoint is never given up.
    """
    if last < 1:
        raise KitError(f"keep_last is {last}", "1 or more", "correct it; to remove a whole run, delete its folder")
    used, running = named_in(run), run.record().get("training", {}).get("status") == "running"
    complete = sorted({item.step for item in found if item.complete})
    reasons = {step: "among the last complete ones" for step in complete[-last:]}
    try:
        top = room.best(found, metric, higher_is_better)[0].step
        reasons[top] = f"the best by {metric}" + (", and " + reasons[top] if top in reasons else "")
    except KitError:  # none has the metric: the last ones stay
        pass
    one_of_each = {step: room.by_step(found, step)[0] for step in reasons}
    newest = complete[-1] if complete else -1
    return [_verdict(item, reasons, one_of_each, used, newest, running) for item in found]


def _verdict(item: Checkpoint, reasons, one_of_each, used, newest: int, running: bool) -> Verdict:
    if str(item.path) in used:
        return Verdict(item, True, f"named in {used[str(item.path)]}")
    if newest < 0:
        return Verdict(item, True, "no checkpoint is complete: nothing is given up")
    if item.layout == "renamed":
        return Verdict(item, True, "its folder was renamed by hand")
    if running and (item.step is None or item.step >= newest):
        return Verdict(item, True, "the training is running, and this may be its save")
    if item.step in one_of_each:
        kept = one_of_each[item.step]
        if kept.path == item.path:
            return Verdict(item, True, reasons[item.step])
        return Verdict(item, False, f"step {item.step} is kept in {kept.trial or room.named(kept)}")
    return Verdict(item, False, "neither among the last nor the best" if item.complete else f"not complete: {item.why}")


def named_in(run) -> dict[str, str]:
    """Path of each checkpoint that run.json or resume.yaml names, and the file that does."""
    named = {}
    for file in (run.record_file, run.folder / "resume.yaml"):
        if not file.exists():
            continue
        content = files.read_json(file) if file.suffix == ".json" else files.read_yaml(file)
        for text in _strings(content):
            named[str(run.folder / text)] = file.name  # an absolute path stays what it is
            named.setdefault(text, file.name)
    return named


def _strings(content):
    """Every string in nested lists and mappings."""
    if isinstance(content, str):
        yield content
    elif isinstance(content, dict | list):
        for value in content.values() if isinstance(content, dict) else content:
            yield from _strings(value)


def shown(verdicts: list[Verdict], run) -> str:
    """The plan as text: a line a checkpoint, and what it would free."""
    lines = [f"{'keep  ' if one.keep else 'remove'} {room.below(one.checkpoint.path, run.folder)}: {one.why}"
             for one in verdicts]
    freed = sum(verdict.checkpoint.bytes for verdict in verdicts if not verdict.keep)
    kept = sum(verdict.checkpoint.bytes for verdict in verdicts if verdict.keep)
    return "\n".join([*lines, f"frees {freed / 1e6:,.1f} MB, {kept / 1e6:,.1f} MB stay"])


def remove(run, verdicts: list[Verdict], ask=input) -> int:
    """Show the plan, ask, and remove what it does not keep; returns the bytes freed, 0 if the answer was not `yes`.

    `ask`: called with the question, returns the answer; in a notebook `lambda question: "yes"` where a parameter says
    so. The run is looked at again before anything goes: KitError if it has changed so that one in use, or the last
    complete one, would go. A folder is renamed before it is deleted: a half-deleted one is never taken for a
    checkpoint (in a bucket it would be found incomplete).
    """
    going = [verdict.checkpoint for verdict in verdicts if not verdict.keep]
    print(shown(verdicts, run))
    if not going or ask(f"remove {len(going)} checkpoints? [yes/no] ").strip().lower() != "yes":
        return 0
    _still_safe(run, going)
    for item in going:
        _delete(item)
    return sum(item.bytes for item in going)


def _still_safe(run, going: list[Checkpoint]) -> None:
    """KitError if removing these would now take one in use, or leave the run without a complete checkpoint."""
    now, paths = room.find(run), {str(item.path) for item in going}
    used = paths & named_in(run).keys()
    complete = {str(item.path) for item in now if item.complete}
    if used or (complete and complete <= paths):
        why = f"in use: {', '.join(sorted(used))}" if used else "no complete one would be left"
        raise KitError(f"not removed: {why}", "a run that is as it was when the plan was made", "plan anew")


def _delete(item: Checkpoint) -> None:
    """Remove one checkpoint's folder, with Ray's folder around it; KitError if it is not one that a saver named."""
    path = Path(item.path) if isinstance(item.path, Path) else PurePosixPath(item.path.partition("://")[2])
    folder = path.parent if path.name == "checkpoint" else path
    if not any(pattern.fullmatch(folder.name) for pattern in LAYOUTS.values()):
        raise KitError(f"not removed: {item.path}", "a folder that LLaMA-Factory or Ray named",
                       "remove it by hand if you mean it")
    if not isinstance(folder, Path):
        bucket_filesystem(item.path.partition("://")[0]).delete_dir(str(folder))
        return
    going = folder.with_name(f".removing-{folder.name}")
    os.replace(folder, going)
    shutil.rmtree(going)
