"""KTO of a Llama-3-8B on a GPU: speed, memory and signal of several configurations and of TRL's trainer, on the same rows.

    python benchmarks/gpu_kto.py --model MODEL --data kto.json --out benchmarks/results/gpu_kto.json [--only NAME ...]

Cases: benchmarks/gpu_kto.yaml, taken in turn, `--rounds` times over; each in a process of its own; the first third of the
steps is left out. `--trl PATH` is a folder with TRL >= 1.16 and its needs (PYTHONPATH of the yardstick; without it TRL is left
out). Prints a table, writes JSON and a figure beside it.

Arithmetic of a row, FLOPs: a forward pass F(t, r) over t tokens of which r are reply is 2·N·t + 2·L·d·t² + 2·h·V·r: N weights of
the layers' matrices, L layers of attention width d (causal: half the square), hidden size h, V words. A row of KTO needs
3 F(row) + 2 F(mismatched): the policy forward and backward (inputs only: the weights are frozen), its mismatched row, and the
reference on both; 2 F + 1 F once the reference is kept. Padding, recomputing and logits elsewhere are no arithmetic that is needed,
so the share of the peak falls with them.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import yaml

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PEAK = {"H100": 989, "H200": 989, "A100": 312, "L40S": 362, "L4": 121, "A10": 125}
"""bf16 peaks of data sheets, dense, TFLOP/s (SXM where there are several)."""
SECONDS = {"weights from": "loading weights file", "weights to": "All model checkpoint weights were used"}


def resolve(case: dict, folder: Path, options) -> dict:
    """The LLaMA-Factory configuration of a case: template, its changes, then the benchmark's own facts."""
    config = yaml.safe_load((ROOT / "train-configs" / case["config"]).read_text()) | case.get("overrides", {})
    facts = {"model_name_or_path": options.model, "template": options.template, "dataset": "benchmark", "report_to": "none",
             "dataset_dir": str(folder.parent), "output_dir": str(folder / "output"), "max_steps": steps_of(case, options),
             "logging_steps": options.every, "save_strategy": "no", "plot_loss": False, "ray_num_workers": options.workers,
             "ray_run_name": folder.name, "ray_storage_path": str(folder), "learning_rate": options.learning_rate}
    return config | facts | ({"bf16": False, "enable_liger_kernel": False} if options.cpu else {})


def steps_of(case: dict, options) -> int:
    return case.get("steps", options.steps)


def command(case: dict, folder: Path, options) -> tuple[list[str], dict]:
    """The child that trains the case, and its environment."""
    worker, result = [sys.executable, str(HERE / "gpu_kto_worker.py")], str(folder / "result.json")
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1",
           "RAY_DEDUP_LOGS": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    if "trl" in case:
        job = {**case["trl"], "model": options.model, "data": str(options.data), "steps": steps_of(case, options),
               "logging_steps": options.every, "cutoff_len": 1024, "learning_rate": options.learning_rate, "output_dir": str(folder / "output")}
        (folder / "job.json").write_text(json.dumps(job))
        return [*worker, "trl", str(folder / "job.json"), result], {**env, "PYTHONPATH": options.trl}
    (folder / "config.yaml").write_text(yaml.safe_dump(resolve(case, folder, options), sort_keys=False))
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), env.get("PYTHONPATH")]))
    ray = options.ray or options.workers > 1 or case.get("ray")
    env |= {"USE_RAY": "1"} if ray else {"USE_RAY": "0", "CUDA_VISIBLE_DEVICES": env.get("CUDA_VISIBLE_DEVICES", "0")[:1]}
    flags = ["--accelerated"] if case.get("accelerated") else []
    return [*worker, "llamafactory", str(folder / "config.yaml"), result, *flags], env


def measure(name: str, case: dict, folder: Path, options) -> dict:
    """Train the case once. What the worker found, with the seconds of start-up; or {"failed": why}."""
    folder.mkdir(parents=True)
    arguments, env = command(case, folder, options)
    started, seen, last = time.time(), {}, ""
    with open(folder / "train.log", "wb") as log, running(arguments, env, options.timeout) as child:
        for line in child.stdout:
            log.write(line)
            text = line.decode(errors="replace").strip()
            last = text[-300:] if "Error" in text else last
            seen |= {key: time.time() for key, words in SECONDS.items() if words in text}
    if child.returncode or not (folder / "result.json").exists():
        return {"case": name, "failed": last or f"status {child.returncode}"}
    found = json.loads((folder / "result.json").read_text())
    weights = seen.get("weights to", 0) - seen.get("weights from", 0)
    return {"case": name, **found, "trl": "trl" in case, "first_step": found["steps"][0][1] - started, "weights": weights}


@contextmanager
def running(arguments: list[str], env: dict, seconds: int):
    """A child in a session of its own, which ends after `seconds`, and with this program."""
    child = subprocess.Popen(arguments, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
    signal.signal(signal.SIGALRM, lambda *_: os.killpg(child.pid, signal.SIGKILL))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    signal.alarm(seconds)
    try:
        yield child
        child.wait()
    finally:
        signal.alarm(0)
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)


def shape_of(model: str) -> dict:
    """N, L, d, h and V of the model's config.json (see the formula above), and all of its parameters."""
    c = json.loads((Path(model) / "config.json").read_text())
    heads, hidden = c["num_attention_heads"], c["hidden_size"]
    width = heads * (c.get("head_dim") or hidden // heads)
    layer = hidden * (2 * width + 2 * width * c["num_key_value_heads"] // heads + 3 * c["intermediate_size"])
    return {"N": layer * c["num_hidden_layers"], "L": c["num_hidden_layers"], "d": width, "h": hidden, "V": c["vocab_size"]}


def arithmetic(shape: dict, rows: dict, kept: bool) -> float:
    """FLOPs that a row of KTO needs (the formula above); `kept`: the reference's log-probabilities are known."""
    def forward(prefix):
        return (2 * shape["N"] * rows[f"{prefix}tokens"] + 2 * shape["L"] * shape["d"] * rows[f"{prefix}squares"]
                + 2 * shape["h"] * shape["V"] * rows[f"{prefix}replies"])

    return (2 if kept else 3) * forward("") + (1 if kept else 2) * forward("kl_")


def figures(found: dict, rows: dict, accelerated: bool, options) -> dict:
    """Speed of one measured training: over the last two thirds of its steps, of the first epoch, and of later epochs."""
    marks, a_step = found["steps"], rows_of_a_step(found)
    steps, epoch = marks[-1][0], -(-rows["count"] // a_step)
    begin = min(step for step, _ in marks if step >= max(steps // 3, 1))
    middle = min(max(epoch, begin), steps)  # from here on the accelerator knows the reference
    flops = a_step * ((middle - begin) * arithmetic(options.shape, rows, False)
                      + (steps - middle) * arithmetic(options.shape, rows, accelerated))
    rate = speed(marks, begin, steps, a_step)
    seconds = (steps - begin) * a_step / rate
    return {"samples/s": rate, "first epoch": speed(marks, min(begin, epoch // 3), epoch, a_step),
            "later epochs": speed(marks, epoch, steps, a_step), "tokens/s": rate * rows["tokens"],
            "share of peak": flops / seconds / found["workers"] / (options.peak * 1e12),
            "peak GiB": found.get("allocated", 0) / 2**30, "reserved GiB": found.get("reserved", 0) / 2**30,
            "first step s": found["first_step"] - found["weights"], "weights s": found["weights"], "steps": steps}


def speed(marks: list, first: int, last: int, a_step: int) -> float | None:
    """Rows a second between the first and the last of the `marks` (step, time) that lie in these steps."""
    inside = [mark for mark in marks if max(first, 1) <= mark[0] <= last]
    if len(inside) < 2:
        return None
    (step, begin), (until, end) = inside[0], inside[-1]
    return (until - step) * a_step / (end - begin)


def rows_of_a_step(found: dict) -> int:
    return found["batch"] * found["accumulation"] * found["workers"]


def signal_at(found: dict, rows: int, options) -> dict:
    """Loss, margin and KL of a micro-batch: means over the second half of the first `rows` rows."""
    logs = [log for log in found["logs"] if "loss" in log and rows / 2 < log["step"] * rows_of_a_step(found) <= rows]
    sums = 1 if found["trl"] else found["accumulation"] * options.every  # LLaMA-Factory logs the sum of the window's KLs

    def mean(key, of=1):
        values = [log[key] / of for log in logs if key in log]
        return statistics.fmean(values) if values else None

    return {"loss": mean("loss"), "margin": mean("rewards/margins"), "kl": mean("kl", sums)}


def summarise(runs: list[dict], cases: dict, options) -> list[dict]:
    """One row a case: medians over its rounds; what failed says why."""
    good = [run for run in runs if "failed" not in run]
    rows = next((run["rows"] for run in good if "tokens" in run["rows"]), None)
    if rows is None:
        return [{"case": run["case"], "failed": run.get("failed", "no LLaMA-Factory case told the rows' lengths")} for run in runs]
    same = min(run["steps"][-1][0] * rows_of_a_step(run) for run in good)
    table = []
    for name in dict.fromkeys(run["case"] for run in runs):
        mine = [figures(run, rows, cases[name].get("accelerated", False), options) | signal_at(run, same, options)
                for run in good if run["case"] == name]
        failed = [run["failed"] for run in runs if run["case"] == name and "failed" in run]
        middle = {key: median([one[key] for one in mine]) for key in mine[0]} if mine else {}
        table.append({"case": name, **middle, "rounds": len(mine), "rows compared": same} | ({"failed": failed[-1]} if failed else {}))
    return table


def median(values: list):
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def show(table: list[dict]) -> str:
    """The table as text."""
    keys = {"samples/s": "7.2f", "first epoch": "7.2f", "later epochs": "7.2f", "tokens/s": "8.0f", "share of peak": "6.1%",
            "peak GiB": "6.1f", "first step s": "6.0f", "loss": "8.4f", "margin": "8.4f", "kl": "8.4f"}
    lines = [" " * 38 + " | ".join(f"{key:>12}" for key in keys)]
    for row in table:
        words = [f"{format(row[key], form) if row.get(key) is not None else '-':>12}" for key, form in keys.items()]
        lines.append(f"{row['case']:38}" + (" | ".join(words) if "samples/s" in row else f"failed: {row.get('failed')}"))
    return "\n".join(lines)


def draw(table: list[dict], runs: list[dict], path: Path, title: str) -> None:
    """Samples a second of each case, and the margin by rows: speed beside the signal it was bought with."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (bars, lines) = pyplot.subplots(1, 2, figsize=(12, 1.6 + 0.45 * len(table)), width_ratios=[3, 2], layout="constrained")
    shown = [row for row in table if row.get("samples/s")][::-1]
    drawn = bars.barh([row["case"] for row in shown], [row["samples/s"] for row in shown], color="#0072b2")
    bars.bar_label(drawn, [f"{row['samples/s']:.1f}/s, {row['peak GiB']:.0f} GiB" for row in shown], padding=3)
    bars.set(xlabel="samples a second, first third of the steps left out", title=title)
    bars.margins(x=0.25)
    for place, run in enumerate(run for run in runs if "failed" not in run):
        logs = [log for log in run["logs"] if "rewards/margins" in log]
        lines.plot([log["step"] * rows_of_a_step(run) for log in logs], [log["rewards/margins"] for log in logs],
                   label=run["case"], linestyle=["-", "--", ":", "-."][place % 4], linewidth=1.3)
    lines.set(xlabel="rows trained on", ylabel="reward margin", title="the signal")
    lines.legend(fontsize=7)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of the base model")
    parser.add_argument("--data", type=Path, required=True, help="JSON list of {messages, label}")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "gpu_kto.json")
    parser.add_argument("--work", type=Path, default=Path("/tmp/gpu_kto"), help="scratch folder; one folder a case with its log")
    parser.add_argument("--cases", type=Path, default=HERE / "gpu_kto.yaml")
    parser.add_argument("--only", nargs="*", help="these cases only")
    parser.add_argument("--template", default="llama3")
    parser.add_argument("--steps", type=int, default=76, help="of every case that does not say; two epochs of 300 rows at batch 8")
    parser.add_argument("--every", type=int, default=5, help="steps between two log lines")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--learning-rate", type=float, default=5e-6)
    parser.add_argument("--workers", type=int, default=1, help="GPUs, one worker each (on Ray if more than 1)")
    parser.add_argument("--ray", action="store_true", help="one worker on Ray too, as the pipeline launches it")
    parser.add_argument("--trl", default="", help="PYTHONPATH of the yardstick")
    parser.add_argument("--timeout", type=int, default=900, help="seconds a case may take")
    parser.add_argument("--peak", type=float, help="bf16 peak of one GPU in TFLOP/s; default: by its name")
    parser.add_argument("--cpu", action="store_true", help="float32 without Liger: to try the benchmark itself")
    options = parser.parse_args()
    cases = yaml.safe_load(options.cases.read_text())
    chosen = [name for name in (options.only or cases) if options.trl or "trl" not in cases[name]]
    work = options.work / datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    work.mkdir(parents=True)
    sys.path.insert(0, str(ROOT))
    from helpers import registry

    registry.update(work, {"benchmark": {**registry.ENTRY, "file_name": str(options.data.resolve()),
                                         "columns": {"messages": "messages", "kto_tag": "label"}}})
    options.shape, runs = shape_of(options.model), []
    for turn in range(options.rounds):
        for place, name in enumerate(chosen):
            runs.append(measure(name, cases[name], work / f"{turn}-{place}", options))
            device = next((run["device"] for run in runs if "device" in run), "CPU")
            options.peak = options.peak or next((peak for kind, peak in PEAK.items() if kind in device), 1)
            table = summarise(runs, cases, options)
            print(show([row for row in table if row["case"] == name]), flush=True)
            options.out.parent.mkdir(parents=True, exist_ok=True)
            facts = {"date": datetime.now(UTC).date().isoformat(), "device": device, "bf16 peak TFLOP/s": options.peak,
                     "GPUs": options.workers, "model": options.shape, "learning_rate": options.learning_rate}
            options.out.write_text(json.dumps({**facts, "table": table, "runs": runs}, indent=1) + "\n")
    print(show(table))
    draw(table, runs, options.out.with_suffix(".png"), f"KTO, LoRA, {options.workers} × {device}")


if __name__ == "__main__":
    main()
