"""Figures of a dataset: labels, turns, token lengths against the cutoff. Labels differ by colour and by pattern."""

from collections.abc import Mapping

from .pictures import bundle, picture

STYLE = {
    "accepted": {"color": "#0072B2", "linestyle": "-", "hatch": ""},
    "rejected": {"color": "#D55E00", "linestyle": "--", "hatch": "//"},
}


def labels(counts):
    """Bars of accepted and rejected rows for each part, from the DataFrame of `data_stats.counts`. -> Figure"""
    figure, axes = _figure("Labels", "rows")
    for place, (name, style) in enumerate(STYLE.items()):
        bars = axes.bar([i + (place - 0.5) * 0.4 for i in range(len(counts))], counts[name], 0.38, label=name,
                        color=style["color"], hatch=style["hatch"], edgecolor="white")
        axes.bar_label(bars, fmt="{:,.0f}")
    axes.set_xticks(range(len(counts)), counts.index)
    axes.margins(y=0.12)
    axes.legend(frameon=False)
    return _worded(figure, "; ".join(f"{part}: {row['accepted']:,} rows accepted, {row['rejected']:,} rejected"
                                     for part, row in counts.iterrows()))


def turns(counts: Mapping[int, int]):
    """Bars of how many rows (values) have how many turns (keys; a question and its reply are one). -> Figure"""
    figure, axes = _figure("Turns", "rows")
    shown = sorted(counts)
    bars = axes.bar([str(turn) for turn in shown], [counts[turn] for turn in shown], color="#009E73", edgecolor="white")
    axes.bar_label(bars, fmt="{:,.0f}")
    axes.margins(y=0.12)
    axes.set_xlabel("turns of question and reply")
    return _worded(figure, "; ".join(f"{counts[turn]:,} rows of {turn} turn{'s' * (turn > 1)}" for turn in shown))


def token_lengths(lengths_by_label: Mapping[str, list[int]], cutoff: int):
    """Histograms of tokens a row, by label, with the cutoff and the share of each label over it. -> Figure"""
    import numpy as np

    figure, axes = _figure("Token lengths", "rows")
    longest = max([cutoff, *(max(values, default=0) for values in lengths_by_label.values())])
    bins = np.linspace(0, longest * 1.02, 41)
    words = []
    for name, values in lengths_by_label.items():
        over = sum(value > cutoff for value in values) / max(len(values), 1)
        words.append(f"{name}: median {np.median(values or [0]):.0f} tokens, {over:.1%} over the cutoff of {cutoff:,}")
        style = STYLE.get(name, {"color": "#555555", "linestyle": ":"})
        axes.hist(values, bins, histtype="step", linewidth=2, label=f"{name}: {over:.0%} over the cutoff",
                  color=style["color"], linestyle=style["linestyle"])
    axes.axvline(cutoff, color="black", linewidth=1, linestyle="-.", label=f"cutoff_len {cutoff:,}")
    axes.set_xlabel("tokens a row, prompt and reply")
    axes.legend(frameon=False)
    return _worded(figure, "; ".join(words))


def _figure(title: str, unit: str):
    figure = picture((6, 3))
    axes = figure.add_subplot()
    axes.set_title(title)
    axes.set_ylabel(unit)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _worded(figure, words: str):
    """The figure with what it shows as its alt text in notebooks."""
    title = figure.axes[0].get_title()
    figure._repr_mimebundle_ = lambda **_: bundle(figure, f"{title}. {words[0].upper()}{words[1:]}.")
    return figure
