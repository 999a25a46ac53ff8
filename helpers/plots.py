"""Plot the curves of one training run, or of several for comparison.

Colours are Okabe and Ito's, told apart with any colour vision; line styles and markers say the same again.
"""

from pathlib import Path

from . import metrics
from .errors import KitError

BLUE, VERMILLION, GREEN, ORANGE, SKY, PURPLE, BLACK = (
    "#0072B2", "#D55E00", "#009E73", "#E69F00", "#56B4E9", "#CC79A7", "#000000")  # fmt: skip
"""Okabe and Ito's palette (2008) without its yellow, which is too faint on white."""

RUN_STYLES = list(zip((BLUE, VERMILLION, GREEN, ORANGE, PURPLE, SKY, BLACK), "os^DvPX", strict=True))
INK, FAINT = "#222222", "#8a8a8a"


def _style(colour: str, line: str, marker: str, label: str) -> dict:
    return {"color": colour, "linestyle": line, "marker": marker, "label": label}


PANELS = (
    ("Loss", "KTO loss, mean of the rows", {"loss": _style(BLUE, "-", "o", "loss")}),
    ("Implied rewards", "reward (β × nats a reply)", {
        "rewards/chosen": _style(BLUE, "-", "o", "chosen"), "rewards/rejected": _style(VERMILLION, "--", "s", "rejected")}),
    ("Margin: chosen − rejected reward", "margin (β × nats a reply)", {"rewards/margins": _style(GREEN, "-", "o", "margin")}),
    ("KL estimate, mean per micro-batch", "KL (nats a reply)", {"kl_mean": _style(BLACK, "-", "o", "KL")}),
    ("Held-out accuracy: area under the ROC curve", "share of pairs in order", {"rewards/auc": _style(PURPLE, "-", "D", "area")}),
)
"""(title, y axis, column of helpers.metrics' table -> its line). A reward is β·(log π − log π_ref) of a whole reply, the mean over the
window's rows (table.attrs["rows of"]: whose); the KL estimate is the mean of log π − log π_ref over mismatched pairs, without β,
never below 0. The last panel is there where an evaluation while training logged it."""

HELD_OUT, BAND = ", held out", "± 2 standard errors"
CROWDED = 100
"""With more logged windows than this the points are drawn faintly and a running mean over 1/25 of them on top."""


def training(table, checkpoints=(), title: str = ""):
    """One training as a Figure of four panels: loss, rewards, margin, KL against the optimiser step; a fifth for held-out accuracy.

    `table`: helpers.metrics.table(...); held-out rows are drawn over it with open markers, several sets by name. `checkpoints`:
    their steps, marked by triangles on the axis and dotted lines. A window without a value is a gap. Rewards get a band of two
    standard errors (helpers.metrics.band) where the rows behind them are known. KitError if there are no rows.
    """
    if not len(table):
        raise KitError("this training has no logged metrics to draw", "a window",
                       "fewer steps than logging_steps log none: see train.log")
    table = _to_draw(table)
    figure, panels = _panels(title, [table])
    train = table[table["split"] == "train"]
    for axes, (_, _, columns) in zip(panels, PANELS, strict=False):
        for column, style in columns.items():
            _draw(axes, train, column, style)
            _draw_evaluations(axes, table, column, style, "^vPX<>")
        for step in checkpoints if len(checkpoints) <= 20 else ():
            axes.axvline(step, color=FAINT, linestyle=":", linewidth=0.9, zorder=1)
        if checkpoints:
            axes.plot(sorted(checkpoints), [0] * len(checkpoints), linestyle="none", marker="^", markersize=6, color=INK,
                      label="checkpoint" if axes is panels[0] else "_checkpoint",
                      transform=axes.get_xaxis_transform(), clip_on=False, zorder=5)
        _note_missing(axes, train, columns)
        entries = sorted(zip(*axes.get_legend_handles_labels(), strict=True), key=lambda entry: entry[1] == BAND)
        if len(entries) > 1:
            axes.legend(*zip(*entries, strict=True), fontsize=8, framealpha=0.8)
    return figure


def compare(tables: dict):
    """Several trainings' curves in one Figure of four panels; `tables`: run's name -> helpers.metrics.table(...), none empty.

    A run keeps one colour and one marker throughout; chosen rewards are solid, rejected ones dashed, held-out values open markers.
    Above 100 windows only the running mean is drawn; bands as in `training`, but for three runs at most.
    """
    from matplotlib.lines import Line2D

    tables = {name: _to_draw(table) for name, table in tables.items()}
    crowded = any((table["split"] == "train").sum() > CROWDED for table in tables.values())
    figure, panels = _panels("Running means over 1/25 of a run's windows" if crowded else "", tables.values())
    for number, (name, table) in enumerate(tables.items()):
        colour, marker = RUN_STYLES[number % len(RUN_STYLES)]
        for axes, (_, _, columns) in zip(panels, PANELS, strict=False):
            for column, style in columns.items():
                label = f"{name}, {style['label']}" if len(columns) > 1 else name
                style = {**style, "color": colour, "marker": marker, "label": label}
                _draw(axes, table[table["split"] == "train"], column, style, faint=False, band=len(tables) <= 3)
                _draw_evaluations(axes, table, column, style)
    runs = {name: handle for handle, name in zip(*panels[0].get_legend_handles_labels(), strict=True) if HELD_OUT not in name}
    columns = min(4 if max(map(len, runs)) <= 25 else 2, len(runs))
    figure.legend(runs.values(), runs.keys(), loc="outside lower center", ncols=columns, fontsize=8)
    # In the rewards panel the line style tells chosen, rejected and held out apart.
    drawn = {name: handle for handle, name in zip(*panels[1].get_legend_handles_labels(), strict=True)}
    shown = {"chosen": Line2D([], [], color=FAINT, linestyle="-"), "rejected": Line2D([], [], color=FAINT, linestyle="--")}
    if any(HELD_OUT in name for name in drawn):
        shown["held out"] = Line2D([], [], color=FAINT, linestyle=":", marker="o", markerfacecolor="white")
    if BAND in drawn:
        shown[BAND] = drawn[BAND]
    panels[1].legend(shown.values(), shown.keys(), fontsize=8)
    return figure


def _panels(title: str, tables):
    """(Figure, its axes): one for each of PANELS, the fifth only where a table has it."""
    fifth = any(table["rewards/auc"].notna().any() for table in tables)
    figure = picture((10, 9 if fifth else 6))
    if title:
        figure.suptitle(title, color=INK)
    panels = list(figure.subplots(3 if fifth else 2, 2, sharex=True).flat)
    if fifth:
        panels.pop().set_axis_off()
    for axes, (name, unit, columns) in zip(panels, PANELS, strict=False):
        axes.set_title(name, fontsize=11, color=INK)
        axes.set_ylabel(unit, fontsize=9, color=INK)
        axes.set_xlabel("optimiser step", fontsize=9, color=INK)
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        axes.tick_params(labelsize=8, colors=INK, labelbottom=True)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if "loss" not in columns:
            axes.axhline(0.5 if "rewards/auc" in columns else 0, color=FAINT, linewidth=0.8, zorder=1)
    return figure, panels


def _draw(axes, rows, column: str, style: dict, faint: bool = True, band: bool = True) -> None:
    """The line of one column, its points, and its band of two standard errors where they are known."""
    style, values = {"linewidth": 1.6, "markersize": 4, **style}, rows[column]
    if len(values) > CROWDED:  # faint points, and a running mean that is computed at every eighth of its window
        window = len(values) // 25
        if faint:
            axes.plot(rows["step"], values, color=style["color"], alpha=0.25, linewidth=0.6, label="_points")
            style |= {"label": f"{style['label']}, mean of {window}", "marker": ""}
        means = values.rolling(window, min_periods=window // 2).mean().dropna()
        values, band = means[:: -max(1, window // 8)][::-1], False
        style["markevery"] = max(1, len(values) // 8)
    axes.plot(rows["step"][values.index], values, **style)
    if band and (error := rows.get(f"{column} error")) is not None:
        low, high = values - 2 * error, values + 2 * error
        label = f"_{BAND}" if axes.collections else BAND
        axes.fill_between(rows["step"], low, high, color=style["color"], alpha=0.15, linewidth=0, label=label)


def _draw_evaluations(axes, table, column: str, style: dict, markers: str = "") -> None:
    """Held-out values: open markers on a dotted line of the same colour; `markers`: of the second set and the next."""
    for number, split in enumerate(split for split in table["split"].unique() if split != "train"):
        rows = table[(table["split"] == split) & table[column].notna()]
        if len(rows):
            own = {"linestyle": ":", "marker": (style["marker"] + markers)[number % (1 + len(markers))],
                   "label": style["label"] + HELD_OUT + (f" ({split.removeprefix('eval_')})" if split != "eval" else "")}
            axes.plot(rows["step"], rows[column], markersize=7, markerfacecolor="white", zorder=4, **{**style, **own})


def _note_missing(axes, rows, columns) -> None:
    """Say on the panel how many windows have no value: nothing drawn must not read as nothing wrong."""
    if "rewards/chosen" in columns or "rewards/margins" in columns:  # lacking where the window had no such rows, which is no fault
        lacking, colour = max((rows[column].isna() & rows["loss"].notna()).sum() for column in columns), INK
        words = f"{lacking} of {len(rows)} windows lack chosen or rejected rows"
    else:
        lacking, colour = rows[next(iter(columns))].isna().sum(), VERMILLION
        words = f"not a finite number in {lacking} of {len(rows)} windows"
    if lacking and "rewards/auc" not in columns:
        axes.text(0.99, 0.05, words, transform=axes.transAxes, ha="right", fontsize=8, color=colour, zorder=6,
                  bbox={"facecolor": "white", "edgecolor": "none", "pad": 1, "alpha": 0.8})


def _to_draw(table):
    """PANELS' columns as finite numbers or NaN, the loss corrected for short groups, and the rewards' errors where rows are known."""
    import numpy as np

    columns = [column for _, _, columns in PANELS for column in columns]
    table = table.reset_index(drop=True)
    if "loss_mean" in table:
        table["loss"] = table["loss_mean"].fillna(table["loss"])
    drawn = table.reindex(columns=columns).astype(float).replace([np.inf, -np.inf], np.nan).join(table[["step", "split"]])
    return drawn.join(metrics.band(table).drop(columns="step").add_suffix(" error")) if "rows" in table else drawn


def picture(size: tuple[float, float]):
    """An empty white Figure of that size (inches), made without pyplot: nothing global changes and nothing needs closing."""
    from matplotlib.figure import Figure

    return Figure(figsize=size, dpi=144, layout="constrained", facecolor="white")


def show(figure, words: str) -> None:
    """Display a figure in a notebook, and print `words` below it; elsewhere nothing.

    Not as HTML, which VS Code hides in a folder that is not trusted. Printed, because JupyterLab 4 gives an image no alt text.
    """
    from textwrap import fill

    from IPython import get_ipython
    from IPython.display import display

    if get_ipython():
        data, metadata = image(figure, words)
        display(data, metadata=metadata, raw=True)
        print(fill(words, 100))  # VS Code does not wrap it


def image(figure, words: str, dpi: int = 144) -> tuple[dict, dict]:
    """A figure as (data, metadata) for IPython's display: a PNG, shown with 100 px an inch, with `words` as its alt text."""
    from base64 import b64encode
    from io import BytesIO

    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    data = {"image/png": b64encode(buffer.getvalue()).decode(), "text/plain": "[figure]"}
    return data, {"image/png": {"alt": words, "width": int(figure.get_figwidth() * 100)}}


def save(figure, path: Path | str) -> Path:
    """Write the figure to `path` (.png, .svg or .pdf by its ending), its folder made where missing. KitError if not."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise KitError(f"could not save the figure {path}: {error}",
                       "a writable folder, and a name ending in .png, .svg or .pdf", "choose another path") from None
    return path
