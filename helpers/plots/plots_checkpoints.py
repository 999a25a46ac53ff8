"""The saves of a training on its line of steps, and what a failure at each point would cost."""

from datetime import datetime

from ..errors import KitError
from . import BLUE, FAINT, GREEN, VERMILLION
from .pictures import picture


def timeline(checkpoints, total_steps: int, seconds_a_step: float, restart_seconds: float = 0.0, chosen=None,
             title: str = ""):
    """A Figure of two panels over the optimiser steps: which saves there are, and the minutes a failure would cost.

    `checkpoints`: things with `.step`, `.complete`, `.trial` (helpers.checkpoints); `total_steps`: steps of the whole
    training; `seconds_a_step`: how long a step takes; `restart_seconds`: starting up again; `chosen`: the one that is
    taken, drawn as a star. The cost of a failure at step s is restart + (s - last complete save before it) x time a
    step; the saw's height is what `save_steps` decides. KitError if there is nothing to draw.
    """
    placed = [item for item in checkpoints if item.step is not None]
    if not placed or total_steps <= 0:
        raise KitError("no checkpoint has a step: nothing to draw", "a training that saved", "run 04_train first")
    figure = picture((10, 4))
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(1, 2))
    _saves(above, placed, total_steps, chosen)
    steps, minutes = cost(placed, total_steps, seconds_a_step, restart_seconds)
    below.plot(steps, minutes, color=BLUE, label="lost by a failure")
    below.fill_between(steps, minutes, restart_seconds / 60, color=BLUE, alpha=0.15, linewidth=0)
    if restart_seconds:
        below.axhline(restart_seconds / 60, color=FAINT, linestyle="--", label="of it: starting up again")
    below.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    below.set(title=f"What a failure costs: {max(minutes):.1f} minutes at worst", xlabel="optimiser step",
              ylabel="minutes", ylim=(0, None))
    if title:
        figure.suptitle(title)
    return figure


def cost(checkpoints, total_steps: int, seconds_a_step: float, restart_seconds: float = 0.0):
    """Steps and the minutes that a failure just there would cost: two lists, with both sides of every save.

    A training that has never saved starts over from step 0. Only complete checkpoints count.
    """
    saved = sorted({item.step for item in checkpoints if item.complete and item.step <= total_steps})
    corners = [(0, 0)]
    for step in saved:
        corners += [(step, step - corners[-1][0]), (step, 0)]
    if not saved or saved[-1] < total_steps:
        corners.append((total_steps, total_steps - corners[-1][0]))
    return [step for step, _ in corners], [(restart_seconds + lost * seconds_a_step) / 60 for _, lost in corners]


def pace(checkpoints) -> float | None:
    """Seconds a step between the first and the last save of a trial, by their times; None without two saves of one.

    Of several trials the newest that has two. A run that was copied may have lost its times: the figure is then
    meaningless.
    """
    for saves in reversed(_trials(checkpoints)):
        if saves[-1].step > saves[0].step:
            return (saves[-1].time - saves[0].time).total_seconds() / (saves[-1].step - saves[0].step)
    return None


def timing(checkpoints, started: str) -> tuple[float, float]:
    """Seconds a step, and seconds from the last launch (`started`, as run.json has it) to its first step.

    The latter by the time of the first save; a trial that went on from an earlier one is taken to have begun at that
    one's last save. With a single save the two cannot be told apart: all of the time is in the steps.
    """
    *earlier, newest = _trials(checkpoints)
    begun = max((item.step for saves in earlier for item in saves if item.step < newest[0].step), default=0)
    steps, took = newest[0].step - begun, (newest[0].time - datetime.fromisoformat(started)).total_seconds()
    a_step = pace(checkpoints)
    if a_step is None:
        return max(0.0, took) / max(1, steps), 0.0
    return a_step, max(0.0, took - steps * a_step)


def _trials(checkpoints) -> list[list]:
    """The saves of each trial by step, the trial that saved first at the beginning; Ray's own where there are any."""
    placed = sorted((item for item in checkpoints if item.step is not None), key=lambda item: (item.time, item.step))
    trials: dict[str, list] = {}
    for item in [item for item in placed if item.layout.startswith("Ray")] or placed:
        trials.setdefault(item.trial, []).append(item)
    return [sorted(saves, key=lambda item: item.step) for saves in trials.values()]


def _saves(axes, placed, total_steps: int, chosen) -> None:
    """One line a trial: a dot for a complete save, a cross for one that is not, a star for the chosen one."""
    trials = sorted({item.trial for item in placed}, key=lambda trial: min(i.time for i in placed if i.trial == trial))
    axes.set(title="Saves", yticks=range(len(trials)), yticklabels=[_short(trial) for trial in trials],
             xlim=(0, total_steps * 1.02), ylim=(len(trials) - 0.4, -0.6))
    for row, trial in enumerate(trials):
        own = [item for item in placed if item.trial == trial]
        ends = [min(item.step for item in own), max(item.step for item in own)]
        axes.plot(ends, [row, row], color=FAINT, linewidth=1, label="_line")
        for complete, marker, colour in ((True, "o", GREEN), (False, "X", VERMILLION)):
            steps = [item.step for item in own if item.complete is complete]
            axes.plot(steps, [row] * len(steps), marker, color=colour, label="complete" if complete else "not complete")
        if chosen is not None and chosen.trial == trial:
            axes.plot([chosen.step], [row], "*", color=BLUE, markersize=16, label="chosen")
    handles = {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
               if len(handle.get_xdata())}
    axes.legend(handles.values(), handles.keys(), loc="upper left", bbox_to_anchor=(1, 1), frameon=False)


def _short(trial: str) -> str:
    """A trial's name without its date and time: `TorchTrainer_8f6d0`."""
    return "_".join(trial.rpartition("/")[2].split("_")[:2]) or "."
