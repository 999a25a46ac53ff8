"""Implied rewards, and how well they tell accepted from rejected rows: area under the ROC curve and margin, with intervals.

A resample draws prompts with replacement (rows of one prompt are not independent), so a row has a whole number as its
weight. The area is Mann and Whitney's statistic (1947) over the sorted values: a sort once, a running sum per resample.
"""

from .errors import KitError


def rewards(rows: list, policy: list[float], reference: list[float], config: dict):
    """A DataFrame, one line a row: label, reward, logp_policy, logp_reference, tokens (of the reply), prompt, reply.

    `reward` = beta * (logp_policy - logp_reference), the implied reward of KTO (Ethayarajh et al. 2024, after
    Rafailov et al. 2023), beta being the config's pref_beta; log-probabilities in nats, summed over the reply.
    """
    import pandas

    beta = float(config.get("pref_beta", 0.1))  # LLaMA-Factory's default
    return pandas.DataFrame({
        "label": [row.label for row in rows],
        "reward": [beta * (p - r) for p, r in zip(policy, reference, strict=True)],
        "logp_policy": policy, "logp_reference": reference,
        "tokens": [len(row.reply_ids) for row in rows],
        "prompt": [row.prompt for row in rows], "reply": [row.reply for row in rows],
    })


class Sorted:
    """One column of values, sorted once. Area and margin under any weights of the rows, in O(rows)."""

    def __init__(self, values, label):
        import numpy

        self.order = numpy.argsort(values, kind="stable")
        self.values, self.good = values[self.order], label[self.order]
        # rows of equal value count half: for each row, how many are below it and how many are not above it
        self.below = numpy.searchsorted(self.values, self.values, "left")
        self.upto = numpy.searchsorted(self.values, self.values, "right")

    def figures(self, weights) -> tuple[float, float]:
        """(area, margin) with these weights, nan where a label has none."""
        import numpy

        weights = weights[self.order]
        good, bad = numpy.where(self.good, weights, 0.0), numpy.where(self.good, 0.0, weights)
        accepted, rejected = good.sum(), bad.sum()
        if not accepted or not rejected:
            return numpy.nan, numpy.nan
        running = numpy.concatenate([[0.0], numpy.cumsum(bad)])
        wins = good @ (running[self.below] + running[self.upto]) / 2
        return wins / (accepted * rejected), good @ self.values / accepted - bad @ self.values / rejected


def bootstrap(columns: list, label, prompts, resamples: int = 1000, seed: int = 0):
    """(point [columns, 2], resampled [resamples, columns, 2]): area and margin of each column of values.

    All columns see the same resamples, so that differences between them are paired. KitError if a label is missing or
    a value is not finite.
    """
    import numpy

    label = numpy.asarray(label, bool)
    columns = [numpy.asarray(column, float) for column in columns]
    if label.all() or not label.any():
        raise KitError(f"{label.sum()} accepted and {(~label).sum()} rejected rows are held out", "at least one of each",
                       "hold out a larger share in 02_data")
    if wrong := sum(int((~numpy.isfinite(column)).sum()) for column in columns):
        raise KitError(f"{wrong} of {sum(map(len, columns))} values are not finite", "finite numbers",
                       "the training diverged: take an earlier checkpoint, or a lower learning_rate")
    sides, draw = [Sorted(column, label) for column in columns], numpy.random.default_rng(seed)
    _, group = numpy.unique(numpy.asarray(prompts), return_inverse=True)
    groups = group.max() + 1
    point = numpy.array([side.figures(numpy.ones(len(label))) for side in sides])
    drawn = []
    for _ in range(resamples):
        times = numpy.bincount(draw.integers(groups, size=groups), minlength=groups).astype(float)
        drawn.append([side.figures(times[group]) for side in sides])
    return point, numpy.array(drawn)


def interval(values) -> list[float]:
    """The middle 95 % of resampled values; resamples without one of the labels are left out."""
    import numpy

    return [round(float(value), 6) for value in numpy.nanpercentile(values, [2.5, 97.5])]


def accuracy(table, column: str = "reward", resamples: int = 1000, seed: int = 0) -> dict:
    """How well `column` of `table` (with `label` and, if there is one, `prompt`) tells accepted from rejected rows.

    Returns `auc` (area under the ROC curve; 0.5 is chance), `margin` (mean accepted - mean rejected), `auc_interval`
    and `margin_interval` (95 %, bootstrap over prompts), `accepted`, `rejected`. KitError as for `bootstrap`.
    """
    prompts = table["prompt"] if "prompt" in table else range(len(table))
    point, drawn = bootstrap([table[column]], table["label"], prompts, resamples, seed)
    accepted = int(table["label"].astype(bool).sum())
    return {"auc": float(point[0, 0]), "auc_interval": interval(drawn[:, 0, 0]),
            "margin": float(point[0, 1]), "margin_interval": interval(drawn[:, 0, 1]),
            "accepted": accepted, "rejected": len(table) - accepted}


def against_best(columns: list, label, prompts) -> list[dict]:
    """Of each column auc, margin and their intervals (`auc_low`, …), and `worse_low`, `worse_high`: how much smaller its
    area is than the largest one, a paired difference."""
    point, drawn = bootstrap(columns, label, prompts)
    best, lines = int(point[:, 0].argmax()), []
    for place, (auc, margin) in enumerate(point):
        spans = {"auc": drawn[:, place, 0], "margin": drawn[:, place, 1], "worse": drawn[:, best, 0] - drawn[:, place, 0]}
        line = {"auc": float(auc), "margin": float(margin)}
        for name, values in spans.items():
            line[f"{name}_low"], line[f"{name}_high"] = interval(values)
        order = ("auc", "auc_low", "auc_high", "margin", "margin_low", "margin_high", "worse_low", "worse_high")
        lines.append({name: line[name] for name in order})
    return lines
