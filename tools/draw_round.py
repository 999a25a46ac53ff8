"""Draws notebooks/pictures/second_round.png: what a second round does on the rows that each round held out.

    kto run --run-name first-round -p dataset=first_thumbs.json -p seed=1
    kto run --run-name second-round --start-from first-round -p dataset=second_thumbs.json -p seed=1
    .venv/bin/python tools/draw_round.py storage/first-round storage/second-round

The two files are dataset-configs/short_answers.json, split in halves by prompt.
"""

import sys
from pathlib import Path

from helpers import plots, runs
from helpers.plots import BLUE, VERMILLION
from helpers.profiles import ROOT


def main() -> None:
    first, second = (runs.of_folder(Path(folder).resolve()) for folder in sys.argv[1:3])
    measured = {row["rows of"]: row for row in second.record()["rounds"]}
    figure = plots.picture((8, 3.2))
    for place, (name, label, start) in enumerate([("auc", "held-out area under ROC", 0.5), ("margin", "held-out margin", 0.0)], 1):
        axes = figure.add_subplot(1, 2, place)
        for run, colour, marker, words in ((first, BLUE, "o", "first round's rows"), (second, VERMILLION, "s", "second round's rows")):
            row = measured[run.name]
            values = [start, row[f"{name}_before"], row[name]]
            axes.plot(["base", "after round 1", "after round 2"], values, marker=marker, color=colour,
                      label=f"{words} ({row['rows']})")
            print(run.name, name, [round(value, 3) for value in values], row["change_low"], row["change_high"])
        axes.set_ylabel(label)
        axes.legend(fontsize=8, loc="lower right")
    plots.save(figure, ROOT / "notebooks" / "pictures" / "second_round.png")


if __name__ == "__main__":
    main()
