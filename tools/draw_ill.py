"""Draws notebooks/pictures/healthy_and_ill.png from the logs of four real trainings in tests/fixtures/.

    .venv/bin/python tools/draw_ill.py
"""

from matplotlib.ticker import MaxNLocator

from helpers import metrics, plots
from helpers.plots import BLACK, BLUE, VERMILLION
from helpers.profiles import ROOT

FIXTURES = ROOT / "tests" / "fixtures"
RUNS = {
    "healthy": ("demo-two-workers.log", "the rewards draw apart,\nKL stays small"),
    "learning rate far too high": ("ill/kl-exploding.log", "both rewards jump together,\nKL runs away"),
    "learning rate far too low": ("ill/margin-flat.log", "nothing moves;\nno error is ever printed"),
    "diverged": ("ill/nan.log", "gradients and KL are nan, while\nloss and rewards are printed as 0"),
}


def main() -> None:
    figure = plots.picture((11, 4.6))
    for place, (title, (log, words)) in enumerate(RUNS.items()):
        table = metrics.table(FIXTURES / log, logging_steps=2)
        rewards, kl = figure.add_subplot(2, 4, place + 1), figure.add_subplot(2, 4, place + 5)
        for column, colour, style, marker, name in (("rewards/chosen", BLUE, "-", "o", "accepted"),
                                                    ("rewards/rejected", VERMILLION, "--", "s", "rejected")):
            seen = table[table[column].notna()]
            rewards.plot(seen["step"], seen[column], style, color=colour, marker=marker, markersize=3.5, label=name)
        kl.plot(table["step"], table["kl_mean"], color=BLACK, marker="o", markersize=3.5)
        rewards.set_title(f"{title}\n\n", fontweight="bold", fontsize=10.5)
        rewards.text(0.5, 1.02, words, transform=rewards.transAxes, ha="center", fontsize=8.5)
        kl.set_xlabel("step")
        for axes in (rewards, kl):
            axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
            axes.set_xlim(0, table["step"].max() + 1)
        if place in (0, 2, 3):  # one scale for those that stay near zero, so that flat looks flat
            rewards.set_ylim(-0.6, 0.6)
            kl.set_ylim(-0.1, 2)
        if table["kl_mean"].isna().all():
            kl.text(0.5, 0.5, "nan", transform=kl.transAxes, ha="center", fontsize=16)
    figure.axes[0].set_ylabel("implied reward\n(β × nats a reply)")
    figure.axes[1].set_ylabel("KL estimate\n(nats a reply)")
    figure.axes[0].legend(fontsize=8, loc="lower left")
    plots.save(figure, ROOT / "notebooks" / "pictures" / "healthy_and_ill.png")


if __name__ == "__main__":
    main()
