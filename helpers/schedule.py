"""The trainer's arithmetic: which step a log line belongs to, and how many rows are behind it.

Log lines carry no step. transformers logs at every multiple of `logging_steps` and prints the epoch, version 4 rounded to two places,
version 5 to four digits; both together say the step, also where lines are missing.
"""

import math
import re
from dataclasses import dataclass
from functools import cached_property

LOGGED = ["loss", "grad_norm", "learning_rate", "rewards/chosen", "rewards/rejected", "rewards/margins",
          "logps/chosen", "logps/rejected", "kl", "rewards/auc"]
TRL_ALONE = {"eval_kl", "entropy", "num_tokens", "mean_token_accuracy"}  # TRL's KTO trainer logs them and LLaMA-Factory's does not
WEB_UI = {"loss", "learning_rate", "epoch", "reward", "accuracy", "throughput"}  # LLaMA-Factory's prints these beside the whole record


@dataclass(frozen=True)
class Schedule:
    """How worker 0 goes through its rows (transformers 4.52.4, `set_initial_training_values` and the loop over `total_updates`)."""

    examples: int | None = None  # rows of the dataset, None where the log does not say
    batch: int = 1  # rows of a micro-batch on one worker
    accumulation: int = 1  # micro-batches of an optimiser step
    world: int = 1  # workers

    @cached_property
    def batches(self) -> float:
        """Micro-batches of one epoch on worker 0; infinite where unknown."""
        return math.ceil(self.examples / (self.batch * self.world)) if self.examples else math.inf

    @cached_property
    def updates(self) -> float:
        """Optimiser steps of one epoch; the last takes the micro-batches that are left."""
        return math.ceil(self.batches / self.accumulation) if self.examples else math.inf

    def micro_batches(self, step: int) -> float:
        """Micro-batches that worker 0 has seen after `step` optimiser steps."""
        return self._seen(step, self.accumulation, self.batches)

    def rows(self, step: int) -> float:
        """Rows that worker 0 has seen after `step` steps; with several workers accelerate fills the last batch up."""
        per_epoch = self.examples if self.world == 1 else self.batches * self.batch
        return self._seen(step, self.accumulation * self.batch, per_epoch)

    def _seen(self, step: int, per_step: int, per_epoch: float) -> float:
        if not self.examples:
            return step * per_step
        epoch = max(step - 1, 0) // self.updates
        return epoch * per_epoch + min((step - epoch * self.updates) * per_step, per_epoch)

    def at(self, step: int, epoch: float) -> bool:
        """Whether a line that prints `epoch` can be of `step`; nothing speaks against it where the dataset's size is unknown."""
        if not self.examples or epoch != epoch:
            return True
        exact = self.micro_batches(step) / self.batches
        return epoch in (round(exact, 2), float(f"{exact:.4g}"))

    def step_of(self, epoch: float, after: int) -> int | None:
        """The first step from `after` on whose line prints `epoch`; None if there is none."""
        if not self.examples or not epoch < 1e9:
            return None
        last = int(min((epoch + 0.01) * self.updates, after + 10**6)) + 1
        return next((step for step in range(after, last + 1) if self.at(step, epoch)), None)


def whole(facts: dict, key: str, default: int | None = None) -> int | None:
    """A fact that should be a whole number above 0; `default` where it is missing or is something else."""
    value = facts.get(key)
    return value if type(value) is int and value > 0 else default


def lines_of(events) -> list[tuple[list[dict], dict]]:
    """Each launch's lines, those of one worker, and its facts."""
    launches: dict[int, tuple[dict, dict]] = {0: ({}, {})}
    said = {}
    for event in events:
        workers, facts = launches.setdefault(event.run, ({}, {}))
        if event.kind == "config":
            by = {facts.get("written_by"), event.data.get("written_by")} - {None}
            facts.update(event.data)  # LLaMA-Factory uses parts of TRL
            facts.update({"written_by": "llamafactory" if "llamafactory" in by else "trl"} if by else {})
        elif event.kind == "progress":
            facts["bar"] = event.data["done"]
        elif event.kind in ("metrics", "eval") and event.data != said.get((event.run, event.worker)):
            said[event.run, event.worker] = event.data  # each of two nodes prints it, and their lines may have no prefix
            workers.setdefault(event.worker, []).append(line_of(event.kind, event.data, facts))
    whole = []
    for workers, facts in launches.values():
        lines, fullest = _worker_0(workers, facts), {}
        for line in lines:
            fullest[line["split"]] = max(fullest.get(line["split"], 0), line["told"])
        whole.append(([line for line in lines if line["told"] == fullest[line["split"]]], facts))
    return whole


def _worker_0(workers: dict, facts: dict) -> list[dict]:
    """The lines of worker 0: the one that the log names, else the first that logs rewards, else the first."""
    address, _, pid = str(facts.get("rank0", "")).rpartition(", pid=")
    for name in (f"{address}:{pid}", pid):  # Ray leaves the address out on the driver's own node
        if name in workers:
            return workers[name]
    rewarded = [lines for lines in workers.values() if any(not math.isnan(line["rewards/chosen"]) for line in lines)]
    return next(iter(rewarded or workers.values()), [])


def line_of(kind: str, data: dict, facts: dict) -> dict:
    """The values of one printed record, as floats, with its split, and what was known when it came."""
    split, prefix = "train", ""
    if kind == "eval":
        split = next((found[1] for key in data if (found := re.match(r"(eval(?:_.+)?)_loss$", str(key)))), "eval")
        # The rewards of a named set come without its name from LLaMA-Factory 0.9.3 and TRL.
        prefix = f"{split}_" if any(key.startswith(f"{split}_rewards") for key in data) else "eval_"
    values = {key: _float(data.get(prefix + key, data.get(f"{split}_{key}", data.get(key) if key == "kl" else None)))
              for key in LOGGED}
    return {**values, "split": split, "bar": facts.get("bar", 0), "trl": bool(TRL_ALONE & data.keys()),
            # The web UI repeats a window in short, another node of torchrun's prints it without rewards.
            "told": 2 if any("rewards/" in key for key in data) else int(not data.keys() <= WEB_UI),
            "no_logits": "rewards/chosen" in data and "logits/chosen" not in data,
            **{key: _float(data.get(key)) for key in ("epoch", "num_input_tokens_seen")},
            **{key: whole(facts, key) for key in ("eval_examples", "eval_batch_size")}}


def _float(value) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def spacing(facts: dict, schedule: Schedule, given: float | None, epochs: list, bars: list) -> tuple[int, str]:
    """`logging_steps` in steps, and where it is from: argument, config, log (epochs and progress bars), or "" where nothing says it.

    `epochs` and `bars`: what each training line prints, and where the progress bar stood before it (0: no bar yet).
    """
    asked = given or facts.get("logging_steps")
    if isinstance(asked, int | float) and 0 < asked < math.inf:
        steps = asked if asked >= 1 else math.ceil(asked * whole(facts, "total_steps", 0))  # a share of all
        return max(int(steps), 1), "argument" if given else "config"
    if facts.get("logging_strategy") == "epoch" and schedule.examples:
        return schedule.updates, "config"
    # Nothing says it: every spacing is tried up to the highest that the first epoch and the bars allow. One fits if each line's epoch
    # does; of several the one whose steps are nearest to the bars. Without epochs that say it, each bar must stand in its own window.
    start = whole(facts, "resumed_from", 0)
    highest = max([bar // place + 1 for place, bar in enumerate(bars, 1)] + [1])
    if schedule.examples and epochs and epochs[0] == epochs[0]:
        highest = max(highest, math.ceil(min((epochs[0] + 0.01) * schedule.updates, 1e6)) + 1)
    fits = []
    for steps in range(1, min(highest, 100_000) + 1):
        first = start - start % steps if schedule.examples or not any(bars[:1]) else (bars[0] - 1) // steps * steps
        places = [first + steps * place for place in range(1, len(epochs) + 1)]
        if all(schedule.at(step, epoch) and (schedule.examples or not bar or step - steps < bar <= step)
               for step, epoch, bar in zip(places, epochs, bars, strict=True)):
            fits.append((sum(abs(step - bar) for step, bar in zip(places, bars, strict=True) if bar), steps))
    return (min(fits)[1], "log") if fits and (any(bars) or (schedule.examples and len(fits) == 1)) else (1, "")


def steps_of(epochs: list[float], bars: list[int], schedule: Schedule, logging_steps: int, facts: dict) -> list[int]:
    """The step of each training line: the next multiple of `logging_steps`, or a later one that fits its epoch.

    Where the dataset's size is unknown, as the log's head is missing, the bars say it, if each is in a window of its own.
    """
    by_bars = [math.ceil(bar / logging_steps) * logging_steps for bar in bars]
    if not schedule.examples and all(bars) and sorted(set(by_bars)) == by_bars:
        return by_bars
    steps, step, fits = [], whole(facts, "resumed_from", 0), True
    for epoch in epochs:
        first = facts.get("logging_first_step") and step == 0
        step = 1 if first else (step // logging_steps + 1) * logging_steps
        if fits and not schedule.at(step, epoch):
            later = range(step + logging_steps, step + 1000 * logging_steps, logging_steps)
            found = next((other for other in later if schedule.at(other, epoch)), None)
            step, fits = found or step, found is not None  # no step fits: the epochs are not this schedule's
        steps.append(step)
    return steps


def place_evaluations(lines: list[dict], facts: dict, plan: Schedule, workers: int) -> None:
    """Give evaluation lines their step (at `eval_steps` where known, else where the training was by then), micro-batches, rows."""
    every, start = whole(facts, "eval_steps"), whole(facts, "resumed_from", 0)
    reached, last = start, {}
    for line in lines:
        if line["split"] == "train":
            reached = line["step"]
            continue
        step = max(reached, line["bar"])
        if not plan.at(step, line["epoch"]):  # a quick step's bar is not always printed: the epoch says it too
            step = plan.step_of(line["epoch"], reached) or step
        due = (last.get(line["split"], start) // every + 1) * every if every else 0
        last[line["split"]] = step = due if due and plan.at(due, line["epoch"]) else step
        batch, examples = line["eval_batch_size"] or whole(facts, "per_device_eval_batch_size"), line["eval_examples"]
        count = math.ceil(examples / (batch * plan.world)) if batch and examples else math.nan
        rows = examples if plan.world == 1 and count == count else workers * count * (batch or 1)  # the last batch is filled up
        line.update(step=step, micro_batches=count, rows=rows, loss_mean=line["loss"])
