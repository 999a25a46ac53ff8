"""The held-out rewards as a picture: one histogram a label, before training a single bar at zero."""

from . import BLUE, VERMILLION
from .pictures import picture

LABELS = ((True, "accepted", BLUE, "", "-"), (False, "rejected", VERMILLION, "//", "--"))
"""label, name, colour, hatch, line of the mean"""


def rewards(table, beta: float = 0.1):
    """A Figure: histograms of the implied rewards of accepted and of rejected rows, over the same bins; lines: means.

    `table`: of `evaluate.rewards`; the x axis is in beta × nats a reply, the y axis counts rows.
    """
    import numpy

    figure = picture((8, 3.6))
    axes, means = figure.subplots(), table.groupby("label")["reward"].mean()
    bins = numpy.histogram_bin_edges(table["reward"], bins=24)
    for label, name, colour, hatch, line in LABELS:
        values = table.loc[table["label"] == label, "reward"]
        name = f"{name}: {len(values)} rows, mean {means[label]:+.2f}"
        axes.hist(values, bins=bins, alpha=0.55, color=colour, hatch=hatch, edgecolor="white", label=name)
        axes.axvline(means[label], color=colour, linestyle=line, label="_mean")
    axes.set(xlabel=f"implied reward (β × nats a reply, β = {beta:g})", ylabel="held-out rows")
    axes.set_title(f"Held-out implied rewards: accepted {means[True]:+.2f}, rejected {means[False]:+.2f} on average",
                   fontsize=11)
    axes.legend(fontsize=8, framealpha=0.8)
    return figure
