"""What the measured trainings of benchmarks/gpu_kto.py say: speed, share of the chip's peak, memory and signal.

    python benchmarks/gpu_kto_report.py RESULT.json [MORE.json ...] --out TOGETHER.json     several results as one

Arithmetic of a row, FLOPs: a forward pass F(t, r) over t tokens of which r are reply is 2·N·t + 2·L·d·t² + 2·h·V·r: N weights of
the layers' matrices, L layers of attention width d (causal: half the square), hidden size h, V words. A row of KTO needs
3 F(row) + 2 F(mismatched): the policy forward and backward (inputs only: the weights are frozen), its mismatched row, and the
reference on both; 2 F + 1 F once the reference is kept; one F(row) more where all weights are trained. Padding, recomputing and
logits elsewhere are no arithmetic that is needed, so the share of the peak falls with them.
"""

import argparse
import json
import statistics
from pathlib import Path

COLUMNS = {"samples/s": "7.2f", "first epoch": "7.2f", "later epochs": "7.2f", "tokens/s": "8.0f", "share of peak": "6.1%",
           "peak GiB": "6.1f", "first step s": "6.0f", "loss": "8.4f", "margin": "8.4f", "kl": "8.4f"}


def shape_of(model: str) -> dict:
    """N, L, d, h and V of the model's config.json (see above)."""
    config = json.loads((Path(model) / "config.json").read_text())
    heads, hidden, layers = config["num_attention_heads"], config["hidden_size"], config["num_hidden_layers"]
    width = heads * (config.get("head_dim") or hidden // heads)
    layer = hidden * (2 * width + 2 * width * config["num_key_value_heads"] // heads + 3 * config["intermediate_size"])
    return {"N": layer * layers, "L": layers, "d": width, "h": hidden, "V": config["vocab_size"]}


def arithmetic(shape: dict, rows: dict, kept: bool, full: bool = False) -> float:
    """FLOPs that a row of KTO needs (the formula above); `kept`: the reference's log-probabilities are known; `full`: no adapter."""

    def forward(prefix):
        return (2 * shape["N"] * rows[f"{prefix}tokens"] + 2 * shape["L"] * shape["d"] * rows[f"{prefix}squares"]
                + 2 * shape["h"] * shape["V"] * rows[f"{prefix}replies"])

    return ((2 if kept else 3) + full) * forward("") + (1 if kept else 2) * forward("kl_")


def figures(run: dict, rows: dict, shape: dict, peak: float) -> dict:
    """Speed of one measured training: over the last two thirds of its steps, of the first epoch, and of later epochs.

    `peak`: of one GPU, TFLOP/s. Rows that fill up an epoch's last step are counted as rows.
    """
    marks, a_step = run["steps"], rows_of_a_step(run)
    steps, epoch = marks[-1][0], -(-rows["count"] // a_step)
    begin = min(step for step, _ in marks if step >= max(steps // 3, 1))
    middle = min(max(epoch, begin), steps)  # from here on the accelerator knows the reference
    full = run.get("full", False)
    flops = a_step * ((middle - begin) * arithmetic(shape, rows, False, full)
                      + (steps - middle) * arithmetic(shape, rows, run["accelerated"], full))
    rate = speed(marks, begin, steps, a_step)
    seconds = (steps - begin) * a_step / rate
    return {"samples/s": rate, "first epoch": speed(marks, min(begin, epoch // 3), epoch, a_step),
            "later epochs": speed(marks, epoch, steps, a_step), "tokens/s": rate * rows["tokens"],
            "share of peak": flops / seconds / run["workers"] / (peak * 1e12),
            "peak GiB": run.get("allocated", 0) / 2**30, "reserved GiB": run.get("reserved", 0) / 2**30,
            "first step s": run["first_step"] - run["weights"], "weights s": run["weights"], "steps": steps}


def speed(marks: list, first: int, last: int, a_step: int) -> float | None:
    """Rows a second between the first and the last of the `marks` (step, time) that lie in these steps."""
    inside = [mark for mark in marks if max(first, 1) <= mark[0] <= last]
    if len(inside) < 2:
        return None
    (step, begin), (until, end) = inside[0], inside[-1]
    return (until - step) * a_step / (end - begin)


def rows_of_a_step(run: dict) -> int:
    """Of all workers together."""
    return run["batch"] * run["accumulation"] * run["workers"]


def signal_at(run: dict, rows: int) -> dict:
    """Loss, margin and KL of a micro-batch: means over the second half of the first `rows` rows."""
    logs = [log for log in run["logs"] if "loss" in log and rows / 2 < log["step"] * rows_of_a_step(run) <= rows]
    summed = 1 if run["trl"] else run["accumulation"] * run["every"]  # LLaMA-Factory logs the sum of the window's KLs

    def mean(key, of=1):
        values = [log[key] / of for log in logs if key in log]
        return statistics.fmean(values) if values else None

    return {"loss": mean("loss"), "margin": mean("rewards/margins"), "kl": mean("kl", summed)}


def summarise(runs: list[dict], shape: dict, peak: float) -> list[dict]:
    """One row a case: medians over its rounds; what failed says why."""
    good = [run for run in runs if "failed" not in run]
    rows = next((run["rows"] for run in good if "tokens" in run["rows"]), None)
    if rows is None:
        nothing = "no LLaMA-Factory case told how long the rows are"
        return [{"case": run["case"], "failed": run.get("failed", nothing)} for run in runs]
    same, table = min(run["steps"][-1][0] * rows_of_a_step(run) for run in good), []
    for name in dict.fromkeys(run["case"] for run in runs):
        mine = [figures(run, rows, shape, peak) | signal_at(run, same) for run in good if run["case"] == name]
        failed = [run["failed"] for run in runs if run["case"] == name and "failed" in run]
        middle = {key: _median([one[key] for one in mine]) for key in mine[0]} if mine else {}
        table.append({"case": name, **middle, "rounds": len(mine), "rows compared": same}
                     | ({"failed": failed[-1]} if failed else {}))
    return table


def _median(values: list):
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def show(table: list[dict]) -> str:
    """The table as text."""
    lines = [" " * 38 + " | ".join(f"{key:>12}" for key in COLUMNS)]
    for row in table:
        words = [f"{format(row[key], form) if row.get(key) is not None else '-':>12}" for key, form in COLUMNS.items()]
        lines.append(f"{row['case']:38}" + (" | ".join(words) if "samples/s" in row else f"failed: {row.get('failed')}"))
    return "\n".join(lines)


def draw(table: list[dict], runs: list[dict], path: Path, title: str) -> None:
    """Samples a second of each case, and the margin by rows: speed beside the signal it was bought with."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    size, colours = (12, 1.9 + 0.45 * len(table)), ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000"]
    figure, (bars, lines) = pyplot.subplots(1, 2, figsize=size, width_ratios=[3, 2], layout="constrained")
    shown = [row for row in table if row.get("samples/s")][::-1]
    drawn = bars.barh([row["case"] for row in shown], [row["samples/s"] for row in shown], color="#0072b2")
    bars.bar_label(drawn, [f"{row['samples/s']:.1f}/s, {row['peak GiB']:.0f} GiB" for row in shown], padding=3)
    bars.set(xlabel="samples a second, first third of the steps left out", title=title)
    bars.margins(x=0.35)
    for place, run in enumerate(run for run in runs if "failed" not in run):
        logs = [log for log in run["logs"] if "rewards/margins" in log]
        lines.plot([log["step"] * rows_of_a_step(run) for log in logs], [log["rewards/margins"] for log in logs],
                   label=run["case"], linestyle=["-", "--", ":", "-."][place % 4], color=colours[place % 7], linewidth=1.4)
    lines.set(xlabel="rows trained on", ylabel="reward margin", title="the signal")
    lines.legend(fontsize=7)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def write(facts: dict, runs: list[dict], out: Path) -> list[dict]:
    """The table, written to `out` with the facts and the runs, and drawn beside it. Returns the table.

    `facts`: date, device, GPUs, model (the shape), "bf16 peak TFLOP/s", learning_rate.
    """
    table = summarise(runs, facts["model"], facts["bf16 peak TFLOP/s"])
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({**facts, "table": table, "runs": runs}, indent=1) + "\n")
    method = "all parameters" if all(run.get("full") for run in runs) else "LoRA"
    draw(table, runs, out.with_suffix(".png"), f"KTO, {method}, {facts['device']}, {facts['date']}")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    found = [json.loads(path.read_text()) for path in options.results]
    facts = {key: value for key, value in found[0].items() if key not in ("table", "runs")}
    print(show(write(facts, [run for result in found for run in result["runs"]], options.out)))


if __name__ == "__main__":
    main()
