"""Log events into a table in KTO's units, one row a logged window, and that table against what the trainer recorded.

Rewards and log-probabilities are means over rank 0's rows of the window; the logged `kl` is a sum over its
micro-batches, so `kl_mean` divides it; the logged loss counts a short last group of an epoch in full, so `loss_mean`
corrects it.
"""

import json
import math
from pathlib import Path

from .. import files, logs
from ..errors import KitError
from . import noise, schedule

LOGGED = ["loss", "grad_norm", "learning_rate", "rewards/chosen", "rewards/rejected", "rewards/margins",
          "logps/chosen", "logps/rejected", "kl"]
COLUMNS = ["step", "epoch", "split", *LOGGED, "kl_mean", "loss_mean", "micro_batches", "rows", "rows/chosen",
           "rows/rejected", "num_input_tokens_seen"]


def table(source, logging_steps: float | None = None, micro_batches: float | None = None, run: int = -1):
    """The logged windows of a run as a pandas DataFrame, sorted by step; what a line lacks is NaN.

    `source`: a log's path, or events of `logs.Parser`. `logging_steps`, `micro_batches` (of one window): for logs
    that do not say. `run`: which run of a log with several (the last). Columns: step; epoch (two places, as logged);
    split (train, eval); loss; grad_norm; learning_rate; rewards/chosen, rewards/rejected, rewards/margins
    (β·log-ratio, means over rank 0's rows); logps/chosen, logps/rejected (nats a reply); kl (nats, the logged sum);
    kl_mean = kl / micro_batches; loss_mean (the loss of a micro-batch: in the window with an epoch's short last group
    the logged one divides by too many); micro_batches and rows of rank 0 behind the point; num_input_tokens_seen (all
    workers, since the start). `attrs`: logging_steps, logging_steps_from (argument, config, log, guess), runs,
    resumed_from.
    """
    import pandas as pd

    collected = _collect(logs.parse_file(source) if isinstance(source, str | Path) else source)
    if not -len(collected) <= run < len(collected):
        raise KitError(f"the log has no run {run}", f"0 to {len(collected) - 1}, or -1 for the last", "correct `run`")
    lines, facts = collected[run]
    plan = schedule.from_facts(facts)
    train = [line for line in lines if line["split"] == "train"]
    epochs, bars = [line["epoch"] for line in train], [line["bar"] for line in train]
    every, how = schedule.spacing(facts, plan, logging_steps, epochs, bars)
    for line, step in zip(train, schedule.steps_of(epochs, plan, every, facts), strict=True):
        before = schedule.window_start(step, every, facts)
        line.update(step=step, rows=plan.rows(step) - plan.rows(before))
        line["micro_batches"] = micro_batches or plan.micro_batches(step) - plan.micro_batches(before)
        line["loss_mean"] = line["loss"] * (step - before) * plan.accumulation / line["micro_batches"]
    if not schedule.whole(facts, "gradient_accumulation_steps") and not micro_batches:  # nothing said: no claim
        for line in train:
            line.update(micro_batches=math.nan, rows=math.nan, loss_mean=line["loss"])
    _place_evaluations(lines, facts, plan)
    behind = noise.counts(lines, [line["rows"] for line in lines])
    frame = pd.DataFrame(lines, columns=COLUMNS).assign(**{f"rows/{label}": behind[label] for label in behind})
    frame["kl_mean"] = frame["kl"] / frame["micro_batches"].where(frame["micro_batches"] > 0)
    frame = frame.sort_values("step", kind="stable").reset_index(drop=True)
    frame.attrs = {"logging_steps": every, "logging_steps_from": how, "runs": len(collected),
                   "resumed_from": schedule.whole(facts, "resumed_from", 0)}
    return frame


def joined(source, logging_steps: float | None = None):
    """The table of a run that was resumed, its launches as one: where two logged the same step, the later one counts.

    A launch that logged nothing, killed while it was starting up, takes nothing away. A window that never reached the log, as its
    driver was killed, is missing; the checkpoint's trainer_state.json has it.

    `source`: the log's path, every launch appended to it. As `table` otherwise; `attrs["resumed_from"]` is the first's.
    """
    import pandas as pd

    events = list(logs.parse_file(source))
    whole = table(events, logging_steps, run=0)
    attrs = whole.attrs
    for number in range(1, attrs["runs"]):
        later = table(events, logging_steps, run=number)
        before = whole[whole["step"] <= later.attrs["resumed_from"]]
        whole = whole if later.empty else pd.concat([before, later], ignore_index=True) if len(before) else later
    whole.attrs = attrs
    return whole


def _collect(events) -> list[tuple[list[dict], dict]]:
    """Each run's lines, with where the progress bar stood, and its facts. Only the first worker to speak counts."""
    runs, teller = {0: ([], {})}, {}
    for event in events:
        lines, facts = runs.setdefault(event.run, ([], {}))
        if event.kind == "config":
            facts.update(event.data)
        elif event.kind == "progress" and event.data["task"] == "training":
            facts["bar"] = event.data["done"]
        elif event.kind in ("metrics", "eval") and event.pid == teller.setdefault(event.run, event.pid):
            lines.append(_line(event, facts.get("bar", 0)))
    return list(runs.values())


def _line(event, bar: int) -> dict:
    prefix = "" if event.kind == "metrics" else "eval_"
    keys = [*LOGGED, "logits/chosen", "logits/rejected"]
    values = {key: _float(event.data.get(key if key == "kl" else prefix + key)) for key in keys}
    rest = {key: _float(event.data.get(key)) for key in ("epoch", "num_input_tokens_seen")}
    return {**values, **rest, "split": "eval" if prefix else "train", "bar": bar}


def _float(value) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def _place_evaluations(lines: list[dict], facts: dict, plan: schedule.Schedule) -> None:
    """Steps and micro-batches of evaluation lines: at `eval_steps` where known, else where the training was by then."""
    every, last = schedule.whole(facts, "eval_steps"), schedule.whole(facts, "resumed_from", 0)
    batch = schedule.whole(facts, "eval_batch_size") or schedule.whole(facts, "per_device_eval_batch_size")
    examples = schedule.whole(facts, "eval_examples", math.nan) if batch else math.nan
    count = examples if math.isnan(examples) else math.ceil(examples / (batch * plan.world))
    rows = examples if plan.world == 1 else count * (batch or 1)  # several workers' last batch is filled up
    reached = last
    for line in lines:
        if line["split"] == "train":
            reached = line["step"]
            continue
        step = max(reached, line["bar"])
        if not plan.at(step, line["epoch"]):  # a quick step's bar is not always printed: the epoch says it too
            step = plan.step_of(line["epoch"], reached) or step
        if every:
            due = (last // every + 1) * every
            step = due if plan.at(due, line["epoch"]) else step
        last = step
        line.update(step=step, micro_batches=count, rows=rows, loss_mean=line["loss"])


def write_jsonl(frame, path: Path) -> Path:
    """One JSON record a window, atomically; a missing number is null, an infinite one the string "inf" or "-inf"."""
    def plain(value):
        if isinstance(value, float) and not math.isfinite(value):
            return None if math.isnan(value) else str(value)
        return value

    records = ({key: plain(value) for key, value in row.items()} for row in frame.to_dict("records"))
    return files.write(Path(path), "".join(json.dumps(record) + "\n" for record in records))


def read_jsonl(path: Path):
    """The table that `write_jsonl` wrote (its `attrs` aside). KitError where the file is not one."""
    import pandas as pd

    try:
        records = [json.loads(line) for line in Path(path).read_text().splitlines()]
        frame = pd.DataFrame(records, columns=COLUMNS)
        return frame.astype({key: "int64" if key == "step" else float for key in COLUMNS if key != "split"})
    except OSError as error:
        raise KitError(f"cannot read {path}: {error.strerror}", "a run's metrics.jsonl", "run 04_train first") from None
    except (ValueError, TypeError) as error:
        raise KitError(f"{path} is not a table of metrics: {error}", "what write_jsonl writes") from None


def reconcile(frame, trainer_state: Path):
    """The table against a checkpoint's trainer_state.json (`log_history`): a DataFrame of what differs, or empty.

    Columns: step, split, key, parsed, recorded, difference (parsed − recorded; NaN where one side lacks the value).
    Both sides up to the checkpoint's step, and only what the log could hold: a resumed run's log begins where it was
    resumed. The epoch is compared as the log prints it, rounded to two places; every other number exactly.
    `attrs["compared"]`: how many values.
    """
    import pandas as pd

    try:
        state = json.loads(Path(trainer_state).read_text())
        history, last = state["log_history"], state["global_step"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise KitError(f"cannot read {trainer_state}: {error!r}", "a checkpoint's trainer_state.json") from None
    recorded = _recorded(history, frame.attrs.get("resumed_from", 0))
    parsed = {}
    for row in frame[frame["step"] <= last].to_dict("records"):
        parsed.update({(row["step"], row["split"], key): row[key] for key in ("epoch", *LOGGED)})
    differences, compared = [], 0
    for where in sorted(parsed.keys() | recorded.keys()):
        here, there = parsed.get(where, math.nan), recorded.get(where, math.nan)
        if math.isnan(here) and math.isnan(there):
            continue
        compared += 1
        if here != there:
            differences.append((*where, here, there, here - there))
    result = pd.DataFrame(differences, columns=["step", "split", "key", "parsed", "recorded", "difference"])
    result.attrs["compared"] = compared
    return result


def _recorded(history: list[dict], start: int) -> dict:
    """(step, split, key) -> value, of the records that a log since step `start` would hold."""
    values = {}
    for record in history:
        split = "train" if "loss" in record else "eval" if "eval_loss" in record else None
        if split and record["step"] > start:
            prefix = "" if split == "train" else "eval_"
            for key in LOGGED:
                values[record["step"], split, key] = _float(record.get(key if key == "kl" else prefix + key))
            values[record["step"], split, "epoch"] = round(_float(record.get("epoch")), 2)
    return values


def summary(frame) -> str:
    """What the picture of a table shows, in words: a few short lines; first and last are means of a fifth of it."""
    train = frame[frame["split"] == "train"]
    if train.empty:
        return "No training window was logged yet."
    last = train.iloc[-1]
    some = max(len(train) // 5, 1)
    first_mean, last_mean = train.head(some).mean(numeric_only=True), train.tail(some).mean(numeric_only=True)
    words = [f"{len(train)} windows, to step {last['step']} (epoch {last['epoch']:.2f}); first and last fifth of them:"]
    for key, name, digits in (("loss_mean", "loss", 4), ("rewards/chosen", "chosen reward", 3),
                              ("rewards/rejected", "rejected reward", 3), ("rewards/margins", "margin", 3),
                              ("kl_mean", "KL of a micro-batch", 3)):
        words.append(f"  {name}: {_say(first_mean[key], digits)} → {_say(last_mean[key], digits)}")
    words.append(_verdict(train, some))
    held_out = frame[(frame["split"] == "eval") & frame["loss"].notna()]
    if not held_out.empty:
        row = held_out.iloc[-1]
        margin = _say(row["rewards/margins"], 3)
        words.append(f"  held out, step {row['step']}: loss {row['loss']:.4f}, margin {margin}")
    return "\n".join(words)


def _say(value: float, digits: int) -> str:
    return "none logged" if math.isnan(value) else f"{value:.{digits}f}"


def _verdict(train, some: int) -> str:
    """Whether the last margins stand clear of chance, judged by the noise of the windows."""
    margins = train["rewards/margins"].tail(some).dropna()
    errors = noise.band(train)["rewards/margins"].reindex(margins.index).dropna()
    if margins.empty or errors.empty:
        return "  too few windows to judge the margin"
    mean, error = margins.mean(), float((errors**2).sum() ** 0.5 / len(errors))
    if mean > 2 * error:
        return f"  accepted rows are preferred: the last margins are {mean:.3f} ± {error:.3f}"
    if mean < -2 * error:
        return f"  rejected rows are preferred: the last margins are {mean:.3f} ± {error:.3f}"
    return f"  the last margins, {mean:.3f} ± {error:.3f}, are within chance of these few rows: held-out rows can tell"
