"""Turn log events into a table of loss, rewards, margin and KL, and compare it with the trainer's own record.

LLaMA-Factory's rewards and log-probabilities are means over worker 0's rows of the window; its `kl` is a sum over
micro-batches, so `kl_mean` divides it. TRL logs means over all workers' rows, and so does our launcher, which says so.
transformers before 4.54 counts a short last group of an epoch in full, so `loss_mean` corrects the loss.
"""

import json
import math
import re
from pathlib import Path

from . import files, logs, schedule
from .errors import KitError

LOGGED = schedule.LOGGED
COLUMNS = ["step", "epoch", "split", *LOGGED, "kl_mean", "loss_mean", "micro_batches", "rows", "num_input_tokens_seen"]


def table(source, logging_steps: float | None = None):
    """The logged windows of a run as a pandas DataFrame, sorted by step; what a line lacks is NaN.

    `source`: a log's path, or events of `logs.Parser`. `logging_steps`: for logs that do not say. Launches that resumed the run are one
    table: where two logged the same step, the later one counts. A launch from the start counts alone, if it is the last.
    Columns: step; epoch (as logged); split (train, eval, or eval_NAME of several held-out sets); loss; grad_norm; learning_rate;
    rewards/auc (of an evaluation: the area under the ROC curve); rewards/… (β·log-ratio) and logps/… (nats a reply), means over the
    rows; kl (as logged); kl_mean (nats, of a micro-batch); loss_mean (of a micro-batch); micro_batches of worker 0 and rows behind the
    point; num_input_tokens_seen (all workers, since the start). `attrs`: logging_steps, logging_steps_from (argument, config, log),
    runs, resumed_from, "rows of" (worker 0, all workers), written_by (llamafactory, trl, ""), digits (4 where transformers 5 printed),
    notes (what is assumed or does not fit). KitError where nothing says which steps the lines are of.
    """
    import pandas as pd

    launches = schedule.lines_of(logs.parse_file(source) if isinstance(source, str | Path) else source)
    whole, *others = (_launch(lines, facts, logging_steps) for lines, facts in launches)
    for later in others:
        before = whole[whole["step"] <= later.attrs["resumed_from"]]
        if len(before) and len(later):
            later.attrs["resumed_from"], attrs = whole.attrs["resumed_from"], later.attrs
            later = pd.concat([before, later], ignore_index=True)
            later.attrs = attrs
        whole = later if len(later) else whole
    whole.attrs["runs"] = len(launches)
    return whole


def _launch(lines: list[dict], facts: dict, logging_steps: float | None):
    """`table` of one launch's lines."""
    import pandas as pd

    notes, total = [], schedule.whole(facts, "total_train_batch_size")
    batch = schedule.whole(facts, "per_device_train_batch_size", 1)
    said = schedule.whole(facts, "gradient_accumulation_steps")
    world = schedule.whole(facts, "world_size") or schedule.whole(facts, "ray_num_workers", 1)
    world = max(total // (batch * (said or 1)), 1) if total else world
    plan = schedule.Schedule(schedule.whole(facts, "num_examples"), batch, said or 1, world)
    train = [line for line in lines if line["split"] == "train"]

    # Which step each line is of.
    epochs, bars = [line["epoch"] for line in train], [line["bar"] for line in train]
    every, how = schedule.spacing(facts, plan, logging_steps, epochs, bars)
    if train and not how:
        raise KitError(f"nothing in this log says which steps its {len(train)} training lines are of",
                       "Ray's table, the trainer's own lines (Num examples = …), or progress bars that fit",
                       "give logging_steps, as the training's config has it (--logging-steps N)")
    for line, step in zip(train, schedule.steps_of(epochs, bars, plan, every, facts), strict=True):
        line["step"] = step
    if how == "log" and not plan.examples:
        notes.append("the log does not name the dataset's size: steps are read off the progress bars")
    if not all(plan.at(line["step"], line["epoch"]) for line in train):
        notes.append("the epochs do not fit the rows and workers that the log names: steps are counted by lines")

    # In which units they are: whose rows, sums or means.
    by = facts.get("written_by", "")
    trl = by == "trl" or (not by and any(line["trl"] or (line["no_logits"] and not said) for line in lines))
    if train and not by and not trl:
        unit = "is taken for LLaMA-Factory's sum" if said else "may be a sum or a mean"
        notes.append(f"the log names neither LLaMA-Factory nor TRL: kl {unit}")
    workers = schedule.whole(facts, "metrics_of_workers") or (plan.world if trl else 1)
    values = [line[key] for line in train for key in LOGGED if math.isfinite(line[key])]
    digits = 4 if values and all(value == float(f"{value:.4g}") for value in values) else 17
    version = [int(part) for part in re.findall(r"\d+", str(facts.get("transformers_version", "")))[:2]]
    corrected = digits == 4 or version >= [4, 54]  # the trainer divides a short group by its own size
    start = schedule.whole(facts, "resumed_from", 0)
    for line in train:
        step = line["step"]  # the window begins after the multiple of logging_steps before it, or where the run was resumed
        before = max((step - 1) // every * every, start)
        before = 1 if before == 0 and step > 1 and facts.get("logging_first_step") else before
        count = plan.micro_batches(step) - plan.micro_batches(before)
        rows = workers * (plan.rows(step) - plan.rows(before))
        line.update(micro_batches=count if said else math.nan, rows=rows if said else math.nan, loss_mean=line["loss"])
        if said and not corrected:
            line["loss_mean"] = line["loss"] * (step - before) * plan.accumulation / count
    schedule.place_evaluations(lines, facts, plan, workers)

    frame = pd.DataFrame(lines, columns=COLUMNS)
    frame["kl_mean"] = frame["kl"] if trl else frame["kl"] / frame["micro_batches"].where(frame["micro_batches"] > 0)
    frame = frame.sort_values("step", kind="stable").reset_index(drop=True)
    frame.attrs = {
        "logging_steps": every, "logging_steps_from": how, "digits": digits, "notes": notes,
        "resumed_from": start, "written_by": "trl" if trl else by,
        "rows of": "all workers" if trl or "metrics_of_workers" in facts else "worker 0"}
    return frame


def band(frame, span: int = 9):
    """Standard errors of the training windows' rewards: a DataFrame of step and rewards/chosen, …/rejected, …/margins.

    The log has no spread of rows, so it is estimated from neighbouring windows: for independent rows of variance σ² and
    means of n rows, E (m₂ − m₁)² = σ² (1/n₁ + 1/n₂) (von Neumann's successive differences). σ² is the mean over `span`
    neighbours, the standard error σ/√n, with half of the window's rows for n. Assumed: rows are independent, and the true
    reward hardly changes from one window to the next; where it does, the band is too wide. NaN where windows are too few.
    """
    import numpy as np
    import pandas as pd

    train = frame[frame["split"] == "train"]
    result = pd.DataFrame({"step": train["step"]})
    for label in ("chosen", "rejected"):
        there = pd.DataFrame({"mean": train[f"rewards/{label}"], "n": (train["rows"] / 2).clip(lower=1)}).dropna()
        squares = there["mean"].diff() ** 2 / (1 / there["n"] + 1 / there["n"].shift())
        variance = squares.rolling(span, center=True, min_periods=2).mean().bfill().ffill()
        result[f"rewards/{label}"] = np.sqrt(variance / there["n"]).reindex(train.index)
    result["rewards/margins"] = np.hypot(result["rewards/chosen"], result["rewards/rejected"])
    return result


def write_jsonl(frame, path: Path) -> Path:
    """One JSON record a window, atomically; a missing number is null, an infinite one the string "inf" or "-inf"."""
    plain = frame.replace({math.inf: "inf", -math.inf: "-inf"}).astype(object).where(frame.notna(), None)
    return files.write(Path(path), "".join(json.dumps(record) + "\n" for record in plain.to_dict("records")))


def reconcile(frame, trainer_state: Path):
    """The table against a checkpoint's trainer_state.json (`log_history`): a DataFrame of what differs, or empty.

    Columns: step, split, key, parsed, recorded, difference (NaN where one side lacks the value). Both sides from where the run was
    resumed to the checkpoint's step. Numbers are compared as the log prints them: the epoch to two places, all else exactly, or to
    four digits where transformers 5 printed them. `attrs["compared"]`: how many values.
    """
    import pandas as pd

    try:
        state = json.loads(Path(trainer_state).read_text())
        history, last = state["log_history"], state["global_step"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise KitError(f"cannot read {trainer_state}: {error!r}", "a checkpoint's trainer_state.json") from None
    short, rows = frame.attrs.get("digits") == 4, []
    for record in history:
        window = any(key == "loss" or key.startswith("eval_") for key in record)  # not the record of the whole training
        if window and record["step"] > frame.attrs.get("resumed_from", 0):
            line = schedule.line_of("metrics" if "loss" in record else "eval", record, {})
            rows.append(line | {"step": record["step"], "epoch": line["epoch"] if short else round(line["epoch"], 2)})

    def values(table):
        """One value a step, split and key; of two evaluations at one step the later."""
        table = table.drop_duplicates(["step", "split"], keep="last")
        return table.melt(["step", "split"], ["epoch", *LOGGED], "key").dropna().set_index(["step", "split", "key"])["value"]

    recorded = values(pd.DataFrame(rows, columns=COLUMNS)).astype(float)
    recorded = recorded.map(lambda value: float(f"{value:.4g}")) if short else recorded
    both = pd.concat({"parsed": values(frame[frame["step"] <= last]), "recorded": recorded}, axis=1).sort_index()
    result = both[both["parsed"] != both["recorded"]].reset_index()
    result["difference"] = result["parsed"] - result["recorded"]
    result.attrs["compared"] = len(both)
    return result


def summary(frame) -> str:
    """What the picture of a table shows, in words: a few short lines; first and last are means of a fifth of it."""
    train = frame[frame["split"] == "train"]
    if train.empty:
        return "No training window was logged yet."
    last, some = train.iloc[-1], max(len(train) // 5, 1)
    first_mean, last_mean = train.head(some).mean(numeric_only=True), train.tail(some).mean(numeric_only=True)
    words = [f"{len(train)} windows, to step {last['step']} (epoch {last['epoch']:.2f}); first and last fifth of them:"]
    for key, name, digits in (("loss_mean", "loss", 4), ("rewards/chosen", "chosen reward", 3),
                              ("rewards/rejected", "rejected reward", 3), ("rewards/margins", "margin", 3),
                              ("kl_mean", "KL of a micro-batch", 3)):
        words.append(f"  {name}: {first_mean[key]:.{digits}f} → {last_mean[key]:.{digits}f}")
    mean, error = last_margin(train, train.index[-some:])
    if error != error:
        words.append("  too few windows to judge the margin")
    elif abs(mean) > 2 * error:
        words.append(f"  {'accepted' if mean > 0 else 'rejected'} rows are preferred: the last margins are {mean:.3f} ± {error:.3f}")
    else:
        words.append(f"  the last margins, {mean:.3f} ± {error:.3f}, are within chance of these few rows: held-out rows can tell")
    for split, rows in frame[(frame["split"] != "train") & frame["loss"].notna()].groupby("split", sort=False):
        row, name = rows.iloc[-1], "held out" if split == "eval" else f"held out ({split.removeprefix('eval_')})"
        area = f", accuracy (area) {row['rewards/auc']:.3f}" if row["rewards/auc"] == row["rewards/auc"] else ""
        words.append(f"  {name}, step {row['step']}: loss {row['loss']:.4f}, margin {row['rewards/margins']:.3f}{area}")
    words += [f"  note: {note}" for note in frame.attrs.get("notes", [])]
    return "\n".join(words).replace(" nan", " none logged")


def last_margin(train, windows) -> tuple[float, float]:
    """Mean of the margins in `windows` (of the index) and its standard error; NaN where the windows are too few to tell."""
    margins = train["rewards/margins"][windows].dropna()
    errors = band(train)["rewards/margins"].reindex(margins.index).dropna()
    return margins.mean(), float((errors**2).sum() ** 0.5 / len(errors)) if len(errors) else math.nan
