"""Plots besides the training curves: labels and lengths, checkpoints, held-out rewards and accuracy."""

from collections.abc import Mapping
from datetime import datetime

from .plots import BLUE, FAINT, GREEN, VERMILLION, picture

STYLE = {"accepted": (BLUE, "-", ""), "rejected": (VERMILLION, "--", "//")}
"""label -> (colour, line style, hatching): labels differ by colour and by pattern"""


def _figure(title: str, unit: str):
    """(Figure, its axes) of one panel, title and y axis named."""
    figure = picture((6, 3))
    axes = figure.add_subplot(title=title, ylabel=unit)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def labels(counts):
    """Bars of accepted and rejected rows for each part, from the DataFrame of `feedback.stats.counts`. -> Figure"""
    figure, axes = _figure("Labels", "rows")
    for place, (name, (colour, _, hatch)) in zip((-0.2, 0.2), STYLE.items(), strict=True):
        bars = axes.bar([i + place for i in range(len(counts))], counts[name], 0.38, label=name, color=colour, hatch=hatch,
                        edgecolor="white")
        axes.bar_label(bars, fmt="{:,.0f}")
    axes.set_xticks(range(len(counts)), counts.index)
    axes.margins(y=0.12)
    axes.legend(frameon=False)
    return figure


def turns(counts: Mapping[int, int]):
    """Bars of how many rows (values) have how many turns (keys; a question and its reply are one). -> Figure"""
    figure, axes = _figure("Turns", "rows")
    bars = axes.bar([str(turn) for turn in sorted(counts)], [counts[turn] for turn in sorted(counts)], color=GREEN, edgecolor="white")
    axes.bar_label(bars, fmt="{:,.0f}")
    axes.margins(y=0.12)
    axes.set_xlabel("turns of question and reply")
    return figure


def token_lengths(lengths_by_label: Mapping[str, list[int]], cutoff: int):
    """Histograms of tokens a row, by label, with the cutoff and the share of each label over it. -> Figure"""
    import numpy as np

    figure, axes = _figure("Token lengths", "rows")
    longest = max([cutoff, *(max(values, default=0) for values in lengths_by_label.values())])
    for name, values in lengths_by_label.items():
        over = sum(value > cutoff for value in values) / max(len(values), 1)
        colour, line, _ = STYLE[name]
        axes.hist(values, np.linspace(0, longest * 1.02, 41), histtype="step", linewidth=2, color=colour, linestyle=line,
                  label=f"{name}: {over:.0%} over the cutoff")
    axes.axvline(cutoff, color="black", linewidth=1, linestyle="-.", label=f"cutoff_len {cutoff:,}")
    axes.set_xlabel("tokens a row, prompt and reply")
    axes.legend(frameon=False)
    return figure


def reply_lengths(lengths_by_label: Mapping[str, list[int]], auc: float):
    """Lengths of replies by label, as shares; `auc`: of length against label, 0.5 if length says nothing. -> Figure"""
    import numpy as np

    figure, axes = _figure(f"Does length give the label away? AUC {auc:.2f}", "share of the label's replies")
    bins = np.linspace(0, np.percentile(np.concatenate([*lengths_by_label.values()]), 99), 25)
    for name, values in lengths_by_label.items():
        (colour, line, _), median = STYLE[name], np.median(values)
        axes.hist(np.minimum(values, bins[-1]), bins, weights=np.full(len(values), 1 / len(values)), histtype="step", linewidth=2,
                  label=f"{name}: median {int(median):,}", color=colour, linestyle=line)
        axes.axvline(median, color=colour, linewidth=1, linestyle=":")
    axes.set_xlabel("characters a reply")
    axes.legend(frameon=False)
    return figure


def rewards(table, beta: float):
    """A Figure: histograms of the implied rewards of accepted and of rejected rows, over the same bins; lines: means.

    `table`: of `evaluate.rewards`; the x axis is in beta × nats a reply, the y axis counts rows.
    """
    import numpy

    figure = picture((8, 3.6))
    axes, means = figure.subplots(), table.groupby("label")["reward"].mean()
    bins = numpy.histogram_bin_edges(table["reward"], bins=24)
    for label, name in ((True, "accepted"), (False, "rejected")):
        (colour, line, hatch), values = STYLE[name], table.loc[table["label"] == label, "reward"]
        axes.hist(values, bins=bins, alpha=0.55, color=colour, hatch=hatch, edgecolor="white",
                  label=f"{name}: {len(values)} rows, mean {means[label]:+.2f}")
        axes.axvline(means[label], color=colour, linestyle=line, label="_mean")
    axes.set(xlabel=f"implied reward (β × nats a reply, β = {beta:g})", ylabel="held-out rows")
    axes.set_title(f"Held-out implied rewards: accepted {means[True]:+.2f}, rejected {means[False]:+.2f} on average",
                   fontsize=11)
    axes.legend(fontsize=8, framealpha=0.8)
    return figure


def held_out(scores, chosen: int):
    """Held-out area under the curve and margin by step, with their 95 % intervals; the chosen step as a star. -> Figure

    `scores`: of `evaluate.score_checkpoints`.
    """
    figure, star = picture((10, 3.6)), scores[scores["step"] == chosen]
    titles = {"auc": "Held-out accuracy (area under the curve)", "margin": "Held-out margin (β × nats a reply)"}
    for axes, (name, title) in zip(figure.subplots(1, 2), titles.items(), strict=True):
        ends = [scores[name] - scores[f"{name}_low"], scores[f"{name}_high"] - scores[name]]
        axes.errorbar(scores["step"], scores[name], [end.clip(lower=0) for end in ends], color=BLUE, marker="o",
                      capsize=3, label="with its 95 % interval")
        axes.plot(star["step"], star[name], "*", color=VERMILLION, markersize=15, zorder=5, label=f"chosen: step {chosen}")
        axes.set_title(title, fontsize=11)
        axes.set_xlabel("optimiser step")
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=8, framealpha=0.8)
    return figure


def timeline(checkpoints, total_steps: int, seconds_a_step: float, restart_seconds: float, chosen, title: str):
    """A Figure of two panels over the optimiser steps: which saves there are, and the minutes a failure would cost.

    `checkpoints`: of helpers.checkpoints; `total_steps`: of the whole training; `restart_seconds`: starting up again;
    `chosen`: the one that is taken, a star. A failure at step s costs the restart and the steps since the last complete
    save before it: the saw's height is what `save_steps` decides.
    """
    placed = [item for item in checkpoints if item.step is not None]
    figure = picture((10, 4))
    figure.suptitle(title)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(1, 2))
    _saves(above, placed, chosen)
    above.set_xlim(0, total_steps * 1.02)
    steps, minutes = cost(placed, total_steps, seconds_a_step, restart_seconds)
    below.plot(steps, minutes, color=BLUE, label="lost by a failure")
    below.fill_between(steps, minutes, restart_seconds / 60, color=BLUE, alpha=0.15, linewidth=0)
    if restart_seconds:
        below.axhline(restart_seconds / 60, color=FAINT, linestyle="--", label="of it: starting up again")
    below.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    below.set(title=f"What a failure costs: {max(minutes):.1f} minutes at worst", xlabel="optimiser step",
              ylabel="minutes", ylim=(0, None))
    below.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    return figure


def cost(checkpoints, total_steps: int, seconds_a_step: float, restart_seconds: float):
    """Steps and the minutes that a failure just there would cost: two lists, with both sides of every save.

    A training that has never saved starts over from step 0. Only complete checkpoints count.
    """
    saved, last, corners = sorted({item.step for item in checkpoints if item.complete}), 0, [(0, 0)]
    for step in saved:
        corners += [(step, step - last), (step, 0)]
        last = step
    if last < total_steps:
        corners.append((total_steps, total_steps - last))
    return [step for step, _ in corners], [(restart_seconds + lost * seconds_a_step) / 60 for _, lost in corners]


def timing(checkpoints, started: str) -> tuple[float, float]:
    """Seconds a step, and seconds from the last launch (`started`, as run.json has it) to its first step, by the times of the saves.

    With a single save in the newest trial all of the time is in the steps. A trial that resumed is taken to have begun at an earlier
    one's last save. In a copied run, whose files have lost their times, the figures mean nothing.
    """
    placed = sorted((item for item in checkpoints if item.step is not None), key=lambda item: (item.time, item.step))
    placed = [item for item in placed if item.layout.startswith("Ray")] or placed
    newest = [item for item in placed if item.trial == placed[-1].trial]
    first, last = newest[0], newest[-1]
    begun = max((item.step for item in placed if item.trial != first.trial and item.step < first.step), default=0)
    steps, took = first.step - begun, (first.time - datetime.fromisoformat(started)).total_seconds()
    if last.step == first.step:
        return max(0.0, took) / max(1, steps), 0.0
    pace = (last.time - first.time).total_seconds() / (last.step - first.step)
    return pace, max(0.0, took - steps * pace)


def _saves(axes, placed, chosen) -> None:
    """One line a trial, the oldest on top: a dot for a complete save, a cross for one that is not, a star for the chosen one."""
    trials = list(dict.fromkeys(item.trial for item in sorted(placed, key=lambda item: item.time)))
    names = ["_".join(trial.rpartition("/")[2].split("_")[:2]) or "." for trial in trials]  # without date and time
    axes.set(title="Saves", yticks=range(len(trials)), yticklabels=names, ylim=(len(trials) - 0.4, -0.6))
    for row, trial in enumerate(trials):
        own = [item.step for item in placed if item.trial == trial]
        axes.plot([min(own), max(own)], [row, row], color=FAINT, linewidth=1, label="_line")
    groups = (("complete", [item for item in placed if item.complete], "o", GREEN, 6),
              ("not complete", [item for item in placed if not item.complete], "X", VERMILLION, 6),
              ("chosen", [chosen], "*", BLUE, 16))
    for label, items, marker, colour, size in groups:
        if items:
            rows = [trials.index(item.trial) for item in items]
            axes.plot([item.step for item in items], rows, marker, color=colour, markersize=size, label=label)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
