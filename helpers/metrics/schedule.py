"""The trainer's arithmetic: which step a log line belongs to, and how many micro-batches and rows stand behind it.

Log lines carry no step. transformers 4.52.4 logs at every multiple of `logging_steps` (trainer_callback.py,
DefaultFlowCallback) and prints the epoch rounded to two places; both together say the step, also where lines are
missing.
"""

import logging
import math
from dataclasses import dataclass
from functools import cached_property

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Schedule:
    """How rank 0 goes through its rows. `examples`: rows of the dataset, None where the log does not say.

    `batch`: rows of a micro-batch on one worker; `accumulation`: micro-batches of an optimiser step; `world`: workers.
    From transformers 4.52.4, trainer.py: `set_initial_training_values` and the loop over `total_updates`.
    """

    examples: int | None = None
    batch: int = 1
    accumulation: int = 1
    world: int = 1

    @cached_property
    def batches(self) -> float:
        """Micro-batches of one epoch on rank 0; infinite where unknown."""
        return math.ceil(self.examples / (self.batch * self.world)) if self.examples else math.inf

    @cached_property
    def updates(self) -> float:
        """Optimiser steps of one epoch; the last takes the micro-batches that are left."""
        return math.ceil(self.batches / self.accumulation) if self.examples else math.inf

    def _place(self, step: int, per_step: int, per_epoch: float) -> float:
        if not self.examples:
            return step * per_step
        epoch = max(step - 1, 0) // self.updates
        return epoch * per_epoch + min((step - epoch * self.updates) * per_step, per_epoch)

    def micro_batches(self, step: int) -> float:
        """Micro-batches that rank 0 has seen after `step` optimiser steps."""
        return self._place(step, self.accumulation, self.batches)

    def rows(self, step: int) -> float:
        """Rows that rank 0 has seen after `step` steps; with several workers accelerate fills the last batch up."""
        per_epoch = self.examples if self.world == 1 else self.batches * self.batch
        return self._place(step, self.accumulation * self.batch, per_epoch)

    def epoch(self, step: int) -> float:
        """The epoch as the trainer computes it (nan where the dataset's size is unknown)."""
        if not self.examples:
            return math.nan
        whole = max(step - 1, 0) // self.updates
        return whole + (self.micro_batches(step) - whole * self.batches) / self.batches

    def step_of(self, epoch: float, after: int) -> int | None:
        """The first step from `after` on whose line prints `epoch`; None where there is none."""
        step = after
        while self.examples and self.epoch(step) <= epoch + 0.01:
            if self.at(step, epoch):
                return step
            step += 1
        return None

    def at(self, step: int, epoch: float) -> bool:
        """Whether a line that prints `epoch` can be of `step`; nothing speaks against it where the size is unknown."""
        return not self.examples or epoch != epoch or round(self.epoch(step), 2) == epoch


def whole(facts: dict, key: str, default: int | None = None) -> int | None:
    """A fact that should be a whole number above 0; `default` where it is missing or is something else."""
    value = facts.get(key)
    return value if type(value) is int and value > 0 else default


def from_facts(facts: dict) -> Schedule:
    """The schedule that a log's config events describe."""
    batch = whole(facts, "per_device_train_batch_size", 1)
    accumulation = whole(facts, "gradient_accumulation_steps", 1)
    total = whole(facts, "total_train_batch_size")
    workers = whole(facts, "world_size") or whole(facts, "ray_num_workers", 1)
    world = max(total // (batch * accumulation), 1) if total else workers
    return Schedule(whole(facts, "num_examples"), batch, accumulation, world)


def spacing(facts: dict, schedule: Schedule, given: float | None, epochs: list, bars: list) -> tuple[int, str]:
    """`logging_steps` in steps, and where it is from: argument, config, log (epochs and progress bars), or guess.

    `epochs` and `bars`: what each training line prints, and where the progress bar stood before it (0: no bar yet).
    """
    asked = given or facts.get("logging_steps")
    if isinstance(asked, int | float) and 0 < asked < math.inf:
        steps = asked if asked >= 1 else math.ceil(asked * whole(facts, "total_steps", 0))
        return max(int(steps), 1), "argument" if given else "config"
    if facts.get("logging_strategy") == "epoch" and schedule.examples:
        return schedule.updates, "config"
    start = whole(facts, "resumed_from", 0)
    highest = max([bar // place + 1 for place, bar in enumerate(bars, 1)] + [1])
    if schedule.examples and epochs and epochs[0] == epochs[0]:
        highest = max(highest, math.ceil((epochs[0] + 0.01) * schedule.updates) + 1)
    fits = []
    for steps in range(1, min(highest, 100_000) + 1):
        places = [start - start % steps + steps * place for place in range(1, len(epochs) + 1)]
        if all(schedule.at(step, epoch) for step, epoch in zip(places, epochs, strict=True)):
            fits.append((sum(abs(step - bar) for step, bar in zip(places, bars, strict=True) if bar), steps))
    if fits and (schedule.examples or any(bars)):
        return min(fits)[1], "log"
    log.warning("the log does not say logging_steps: 1 is assumed, so steps are counts of lines")
    return 1, "guess"


def steps_of(epochs: list[float], schedule: Schedule, logging_steps: int, facts: dict) -> list[int]:
    """The step of each training line: the next multiple of `logging_steps`, or a later one that fits its epoch."""
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


def window_start(step: int, logging_steps: int, facts: dict) -> int:
    """The step before a window's first: the multiple of `logging_steps` before `step`, or where the run was resumed."""
    before = max((step - 1) // logging_steps * logging_steps, whole(facts, "resumed_from", 0))
    return 1 if before == 0 and step > 1 and facts.get("logging_first_step") else before
