"""Tables in, figures out: one training's four curves, several trainings compared.

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
REWARD_UNIT, KL_UNIT = "β × nats a reply", "nats a reply"
PANELS = (
    ("Loss", "KTO loss, mean of the rows", ("loss",)),
    ("Implied rewards", f"reward ({REWARD_UNIT})", ("rewards/chosen", "rewards/rejected")),
    ("Margin: chosen − rejected reward", f"margin ({REWARD_UNIT})", ("rewards/margins",)),
    ("KL estimate, mean per micro-batch", f"KL ({KL_UNIT})", ("kl_mean",)),
    ("Held-out accuracy: area under the ROC curve", "share of pairs in order", ("rewards/auc",)),
)
"""(title, y axis, columns of helpers.metrics' table). A reward is β·(log π − log π_ref) of a whole reply, the mean over the window's
rows (table.attrs["rows of"]: whose); the KL estimate is the mean of log π − log π_ref over mismatched pairs, without β, never below 0.
The last panel is there where an evaluation while training logged it."""

SERIES = {
    "loss": (BLUE, "-", "o", "loss"),
    "rewards/chosen": (BLUE, "-", "o", "chosen"),
    "rewards/rejected": (VERMILLION, "--", "s", "rejected"),
    "rewards/margins": (GREEN, "-", "o", "margin"),
    "kl_mean": (BLACK, "-", "o", "KL"),
    "rewards/auc": (PURPLE, "-", "D", "area"),
}
"""column -> (colour, line style, marker, name in the legend)"""

HELD_OUT, BAND = ", held out", "± 2 standard errors"
CROWDED = 100
"""With more logged windows than this the points are drawn faintly and a running mean over 1/25 of them on top."""


def training(table, checkpoints=(), title: str = ""):
    """One training as a Figure of four panels: loss, rewards, margin, KL against the optimiser step; a fifth for held-out accuracy.

    `table`: helpers.metrics.table(...); held-out rows are drawn over it with open markers, several sets by name. `checkpoints`:
    steps, or things with a `.step`; marked by triangles on the axis and dotted lines. A window without a value is a gap. Rewards get
    a band of two standard errors (helpers.metrics.band) where the rows behind them are known. KitError if there are no rows.
    """
    _refuse_empty(table, "this training")
    figure, panels = _panels(title, [table])
    train = _split(table, "train")
    for axes, (_, _, columns) in zip(panels, PANELS, strict=False):
        for column in columns:
            _draw(axes, train, column)
            _draw_evaluations(axes, table, column)
        _mark_checkpoints(axes, checkpoints, "checkpoint" if axes is panels[0] else "_checkpoint")
        _note_missing(axes, train, columns) if columns != ("rewards/auc",) else None
        entries = sorted(zip(*axes.get_legend_handles_labels(), strict=True), key=lambda entry: entry[1] == BAND)
        if len(entries) > 1:
            axes.legend(*zip(*entries, strict=True), fontsize=8, framealpha=0.8)
    return figure


def compare(tables: dict):
    """Several trainings' curves in one Figure of four panels; `tables`: run's name -> helpers.metrics.table(...).

    A run keeps one colour and one marker throughout; chosen rewards are solid, rejected ones dashed, held-out values open markers.
    Above 100 windows only the running mean is drawn; bands as in `training`, but for three runs at most. KitError without a table.
    """
    if not tables:
        raise KitError("there is no run to compare", "at least one run's table", "name some runs")
    for name, table in tables.items():
        _refuse_empty(table, f"the run {name!r}")
    crowded = any(len(_split(table, "train")) > CROWDED for table in tables.values())
    figure, panels = _panels("Running means over 1/25 of a run's windows" if crowded else "", tables.values())
    for number, (name, table) in enumerate(tables.items()):
        colour, marker = RUN_STYLES[number % len(RUN_STYLES)]
        for axes, (_, _, columns) in zip(panels, PANELS, strict=False):
            for column in columns:
                label = f"{name}, {SERIES[column][3]}" if len(columns) > 1 else name
                style = {"color": colour, "marker": marker, "label": label}
                _draw(axes, _split(table, "train"), column, faint=False, band=len(tables) <= 3, **style)
                _draw_evaluations(axes, table, column, **style)
    handles, names = panels[0].get_legend_handles_labels()
    runs = [(handle, name) for handle, name in zip(handles, names, strict=True) if HELD_OUT not in name]
    columns = min(4 if max(len(name) for _, name in runs) <= 25 else 2, len(runs))
    figure.legend(*zip(*runs, strict=True), loc="outside lower center", ncols=columns, fontsize=8)
    _style_legend(panels[1])
    return figure


def _panels(title: str, tables):
    fifth = any(_finite(table, "rewards/auc").notna().any() for table in tables)
    figure = picture((10, 9 if fifth else 6))
    figure.suptitle(title, color=INK) if title else None
    *panels, spare = [*figure.subplots(3 if fifth else 2, 2, sharex=True).flat, *([] if fifth else [None])]
    spare.set_axis_off() if fifth else None
    for axes, (name, unit, columns) in zip(panels, PANELS, strict=False):
        axes.set_title(name, fontsize=11, color=INK)
        axes.set_ylabel(unit, fontsize=9, color=INK)
        axes.set_xlabel("optimiser step", fontsize=9, color=INK)
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        axes.tick_params(labelsize=8, colors=INK, labelbottom=True)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if "loss" not in columns:
            axes.axhline(0.5 if fifth and axes is panels[4] else 0, color=FAINT, linewidth=0.8, zorder=1)
    return figure, panels


def _draw(axes, rows, column: str, faint: bool = True, band: bool = True, **style) -> None:
    """The line of one column, its points, and its band of two standard errors where they are known."""
    colour, line, marker, name = SERIES[column]
    style = {"color": colour, "linestyle": line, "marker": marker, "label": name, "linewidth": 1.6, **style}
    values = _finite(rows, column)
    if len(values) > CROWDED:  # faint points, and a running mean that is computed at every eighth of its window
        window = len(values) // 25
        if faint:
            axes.plot(rows["step"], values, color=style["color"], alpha=0.25, linewidth=0.6, label="_points")
            style |= {"label": f"{style['label']}, mean of {window}", "marker": ""}
        means = values.rolling(window, min_periods=window // 2).mean().dropna()
        values, band = means[:: -max(1, window // 8)][::-1], False
        style["markevery"] = max(1, len(values) // 8)
    axes.plot(rows["step"][values.index], values, markersize=4, **style)
    if band and f"{column} error" in rows:
        low, high = values - 2 * rows[f"{column} error"], values + 2 * rows[f"{column} error"]
        label = f"_{BAND}" if axes.collections else BAND
        axes.fill_between(rows["step"], low, high, color=style["color"], alpha=0.15, linewidth=0, label=label)


def _draw_evaluations(axes, table, column: str, **style) -> None:
    """Held-out values: open markers on a dotted line of the same colour; of several sets each with markers of its own, and its name."""
    colour, _, marker, name = SERIES[column]
    for number, split in enumerate(split for split in table["split"].unique() if split != "train"):
        rows = _split(table, split)
        values = _finite(rows, column).dropna()
        if len(values):
            drawn = {"color": colour, "marker": (marker, *"^vPX<>")[number % 7], "label": name, **style, "linestyle": ":"}
            drawn["label"] += HELD_OUT + (f" ({split.removeprefix('eval_')})" if split != "eval" else "")
            axes.plot(rows["step"][values.index], values, markersize=7, markerfacecolor="white", zorder=4, **drawn)


def _mark_checkpoints(axes, checkpoints, label: str) -> None:
    steps = sorted({int(getattr(checkpoint, "step", checkpoint)) for checkpoint in checkpoints})
    if not steps:
        return
    if len(steps) <= 20:
        for step in steps:
            axes.axvline(step, color=FAINT, linestyle=":", linewidth=0.9, zorder=1)
    axes.plot(steps, [0] * len(steps), linestyle="none", marker="^", markersize=6, color=INK, label=label,
              transform=axes.get_xaxis_transform(), clip_on=False, zorder=5)


def _note_missing(axes, rows, columns) -> None:
    """Say on the panel how many windows have no value: nothing drawn must not read as nothing wrong."""
    sound = rows[_finite(rows, "loss").notna()]
    if columns[0].startswith("rewards"):  # lacking wherever the window had no such rows, which is no fault
        lacking, colour = max(_finite(sound, column).isna().sum() for column in columns), INK
        words = f"{lacking} of {len(rows)} windows lack chosen or rejected rows"
    else:
        lacking, colour = _finite(rows, columns[0]).isna().sum(), VERMILLION
        words = f"not a finite number in {lacking} of {len(rows)} windows"
    if lacking:
        axes.text(0.99, 0.05, words, transform=axes.transAxes, ha="right", fontsize=8, color=colour, zorder=6,
                  bbox={"facecolor": "white", "edgecolor": "none", "pad": 1, "alpha": 0.8})


def _finite(rows, column: str):
    """The column as floats; NaN where it has no finite value, or where there is no such column."""
    import numpy as np

    values = rows[column].astype(float) if column in rows else rows["step"] * np.nan
    return values.where(np.isfinite(values))


def _split(table, split: str):
    """The rows of "train" or "eval": their loss corrected for short groups, and their rewards' errors, where known."""
    rows = table[table["split"] == split]
    if "loss_mean" in rows:
        rows = rows.assign(loss=rows["loss_mean"].fillna(rows["loss"]))
    if split == "train" and "rows" in rows:
        errors = metrics.band(rows).drop(columns="step")
        rows = rows.join(errors.add_suffix(" error"))
    return rows


def _refuse_empty(table, whose: str) -> None:
    if not len(table):
        raise KitError(f"{whose} has no logged metrics to draw", "a window", "fewer steps than logging_steps log none: see train.log")


def _style_legend(axes) -> None:
    """In the rewards panel of a comparison the line style tells chosen, rejected and held out apart."""
    from matplotlib.lines import Line2D

    handles, names = axes.get_legend_handles_labels()
    styles = {"chosen": {"linestyle": "-"}, "rejected": {"linestyle": "--"}}
    if any(HELD_OUT in name for name in names):
        styles["held out"] = {"linestyle": ":", "marker": "o", "markerfacecolor": "white"}
    shown = {name: Line2D([], [], color=FAINT, **style) for name, style in styles.items()}
    shown |= {BAND: handles[names.index(BAND)]} if BAND in names else {}
    axes.legend(list(shown.values()), list(shown), fontsize=8)


def picture(size: tuple[float, float]):
    """An empty white Figure of that size (inches), made without pyplot: nothing global changes and nothing needs closing."""
    from matplotlib.figure import Figure

    return Figure(figsize=size, dpi=144, layout="constrained", facecolor="white")


def show(figure, words: str) -> None:
    """Display a figure in a notebook, with `words` as its alt text; elsewhere nothing.

    As HTML too, because JupyterLab 4 gives a bare image no alt text; where HTML is not trusted the bare one is shown.
    """
    from IPython import get_ipython
    from IPython.display import display

    if get_ipython():
        png, page = image(figure, words)
        width = {"alt": words, "width": int(figure.get_figwidth() * 100)}
        display({"image/png": png, "text/html": page, "text/plain": words}, metadata={"image/png": width}, raw=True)


def image(figure, words: str, dpi: int = 144) -> tuple[str, str]:
    """(PNG in base64, `<img>` with alt text) of a figure, which is shown with 100 px an inch, sharp on fine displays."""
    from base64 import b64encode
    from html import escape
    from io import BytesIO

    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    png = b64encode(buffer.getvalue()).decode()
    return png, (f'<img alt="{escape(words)}" width="{int(figure.get_figwidth() * 100)}" '
                 f'style="max-width:100%;height:auto" src="data:image/png;base64,{png}">')


def save(figure, path: Path | str) -> Path:
    """Write the figure to `path` (.png, .svg or .pdf by its ending), its folder made where missing. KitError if not."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Software": None} if path.suffix == ".png" else None)
    except (OSError, ValueError) as error:
        raise KitError(f"could not save the figure {path}: {error}",
                       "a writable folder, and a name ending in .png, .svg or .pdf", "choose another path") from None
    return path
