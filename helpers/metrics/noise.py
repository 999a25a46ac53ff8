"""How many rows stand behind a reward point, and how far it may be from the truth by chance alone."""

LABELS = ("chosen", "rejected")
MOST = 512
"""Windows with more rows than this on rank 0 are not searched for their counts."""


def counts(lines: list[dict], rows) -> dict:
    """Accepted and rejected rows behind each line, from the printed means: label -> float array, NaN where not certain.

    LLaMA-Factory 0.9.3 (train/kto/trainer.py, `log`) prints float32 sum / count in double precision, so mean · count
    is a float32 number for the true count and, but for powers of two and chance, for no other. Rewards,
    log-probabilities and logits must agree, and both labels' counts must add up to `rows` (rank 0's rows of the
    window); where two answers remain, none is given.
    """
    import numpy as np

    rows = np.asarray(rows, dtype=float)
    found = {label: np.full(len(lines), np.nan) for label in LABELS}
    for total in np.unique(rows[(rows > 0) & (rows <= MOST)]).astype(int):
        here = np.flatnonzero(rows == total)
        fits = {label: _fits([lines[place] for place in here], label, total) for label in LABELS}
        both = fits["chosen"] & fits["rejected"][:, ::-1]  # column n: n accepted rows and total - n rejected ones
        sure = both.sum(axis=1) == 1
        found["chosen"][here[sure]] = both[sure].argmax(axis=1)
        found["rejected"][here[sure]] = total - both[sure].argmax(axis=1)
    return found


def _fits(lines: list[dict], label: str, total: int):
    """Whether 0, 1, … `total` rows of `label` can stand behind each line: a boolean array of (lines, total + 1)."""
    import numpy as np

    sizes = np.arange(total + 1)
    fits = np.ones((len(lines), total + 1), dtype=bool)
    for key in ("rewards", "logps", "logits"):
        means = np.array([line.get(f"{key}/{label}", np.nan) for line in lines])[:, None]
        with np.errstate(over="ignore", invalid="ignore"):
            sums = means * sizes
            exact = np.abs(sums - sums.astype(np.float32)) <= 2.3e-16 * np.abs(sums)
        fits &= exact | ~np.isfinite(sums)
    missing = np.isnan([line.get(f"logps/{label}", np.nan) for line in lines])
    fits[:, 0], fits[missing, 1:] = missing, False
    return fits


def band(frame, span: int = 9):
    """Standard errors of the training windows' rewards: a DataFrame of step and rewards/chosen, …/rejected, …/margins.

    The log has no spread of rows, so it is estimated from neighbouring windows: for independent rows of variance σ²
    and means of n rows, E (m₂ − m₁)² = σ² (1/n₁ + 1/n₂) (von Neumann's successive differences). σ² is the mean over
    `span` neighbours, the standard error σ/√n. What is assumed: rows are independent, and the true reward hardly
    changes from one window to the next; where it does, the band is too wide, not too narrow. It says nothing about
    the other workers' rows. Where a count is not known, the label's usual share of the rows is taken. NaN where there
    are too few windows.
    """
    import numpy as np
    import pandas as pd

    train = frame[frame["split"] == "train"]
    result = pd.DataFrame({"step": train["step"]})
    for label in LABELS:
        behind, mean = _behind(train, label), train[f"rewards/{label}"]
        there = pd.DataFrame({"mean": mean, "n": behind}).dropna()
        squares = there["mean"].diff() ** 2 / (1 / there["n"] + 1 / there["n"].shift())
        variance = squares.rolling(span, center=True, min_periods=2).mean().bfill().ffill()
        result[f"rewards/{label}"] = np.sqrt(variance / there["n"]).reindex(train.index)
    result["rewards/margins"] = np.hypot(result["rewards/chosen"], result["rewards/rejected"])
    return result


def _behind(train, label: str):
    """Rows of `label` behind each window: the known count, else the label's usual share of the window's rows."""
    known = train[f"rows/{label}"].astype(float)
    share = known.sum() / train["rows"].where(known.notna()).sum() if known.sum() else 0.5
    return known.where(known > 0).fillna((train["rows"] * share).clip(lower=1))
