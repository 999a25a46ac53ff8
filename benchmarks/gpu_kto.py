"""KTO of a Llama-3-8B on a GPU: speed, memory and signal of several configurations and of TRL's trainer, on the same rows.

    python benchmarks/gpu_kto.py --model MODEL --data kto.json --out benchmarks/results/gpu_kto.json [--only NAME ...]

Cases: benchmarks/gpu_kto.yaml, taken in turn, `--rounds` times over; each in a process of its own; the first third of the
steps is left out. `--trl PATH` is a folder with TRL >= 1.16 and its needs (PYTHONPATH of the yardstick; without it TRL is left
out). Prints a table, writes JSON and a figure beside it; gpu_kto_report.py says what is counted.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import gpu_kto_report as report
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
               "logging_steps": options.every, "cutoff_len": 1024, "learning_rate": options.learning_rate,
               "output_dir": str(folder / "output")}
        (folder / "job.json").write_text(json.dumps(job))
        return [*worker, "trl", str(folder / "job.json"), result], {**env, "PYTHONPATH": options.trl}
    (folder / "config.yaml").write_text(yaml.safe_dump(resolve(case, folder, options), sort_keys=False))
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), env.get("PYTHONPATH")]))
    ray = options.ray or options.workers > 1 or case.get("ray")
    env |= {"USE_RAY": "1"} if ray else {"USE_RAY": "0", "CUDA_VISIBLE_DEVICES": env.get("CUDA_VISIBLE_DEVICES", "0")[:1]}
    if "reference" in case:
        env["KTO_REFERENCE_DIR"] = str(options.work / case["reference"])
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
    full = "trl" not in case and resolve(case, folder, options).get("finetuning_type") == "full"
    told = {"trl": "trl" in case, "accelerated": case.get("accelerated", False), "every": options.every, "full": full}
    return {"case": name, **told, **found, "first_step": found["steps"][0][1] - started, "weights": weights}


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
    from feedback import register

    register.update(work, {"benchmark": {**register.ENTRY, "file_name": str(options.data.resolve()),
                                         "columns": {"messages": "messages", "kto_tag": "label"}}})
    runs: list[dict] = []
    for turn in range(options.rounds):
        for place, name in enumerate(chosen):
            runs.append(measure(name, cases[name], work / f"{turn}-{place}", options))
            device = next((run["device"] for run in runs if "device" in run), "CPU")
            peak = options.peak or next((peak for kind, peak in PEAK.items() if kind in device), 1)
            facts = {"date": datetime.now(UTC).date().isoformat(), "device": device, "GPUs": options.workers,
                     "bf16 peak TFLOP/s": peak, "model": report.shape_of(options.model), "learning_rate": options.learning_rate}
            table = report.write(facts, runs, options.out)
            print(report.show([row for row in table if row["case"] == name]), flush=True)
    print(report.show(table))


if __name__ == "__main__":
    main()
