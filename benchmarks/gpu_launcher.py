"""A training on a GPU, killed in the middle of a save: `python benchmarks/gpu_launcher.py MODEL [STEPS] [TRAINER]`.

Three trainings of one configuration (LoRA, saves within epochs) through helpers.trainer: undisturbed; its worker killed with SIGKILL
while it writes a checkpoint, and replaced; resumed by hand from a checkpoint in the middle of an epoch. Compares their losses step by
step. TRAINER is what helpers.trainer's --accelerated takes: true (the default) or false.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import yaml

ROOT = Path(__file__).resolve().parent.parent
SAVE = 3


def prepare(folder: Path, model: str, steps: int, **settings) -> Path:
    """The config of one training in `folder`; 70 rows, 18 batches, so that an epoch of 5 updates ends with a smaller one."""
    rows = [{"messages": [{"role": "user", "content": f"What is {n} times {n + 7}?"},
                          {"role": "assistant", "content": f"It is {n * (n + 7)}." if n % 2 else "Nobody can say. " * (n % 5 + 1)}],
             "label": bool(n % 2)} for n in range(70)]
    folder.mkdir(parents=True)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    columns = {"messages": "messages", "kto_tag": "label"}
    (folder / "dataset_info.json").write_text(json.dumps({"rows": {"file_name": "rows.jsonl", "formatting": "sharegpt",
                                                                   "columns": columns, "tags": tags}}))
    config = {"model_name_or_path": model, "template": "llama3", "stage": "kto", "do_train": True, "finetuning_type": "lora",
              "lora_rank": 8, "lora_target": "all", "pref_beta": 0.1, "dataset": "rows", "dataset_dir": str(folder), "cutoff_len": 256,
              "overwrite_cache": True, "preprocessing_num_workers": 1,
              "output_dir": str(folder / "output"), "overwrite_output_dir": True,
              "logging_steps": 1, "save_steps": SAVE, "max_steps": steps, "plot_loss": False, "report_to": "none", "bf16": True,
              "per_device_train_batch_size": 4, "gradient_accumulation_steps": 4, "learning_rate": 1e-4, "seed": 42,
              "ray_run_name": "run", "ray_storage_path": str(folder / "ray"), "ray_num_workers": 1, "resources_per_worker": {"GPU": 1},
              "ray_init_kwargs": {"address": "local", "include_dashboard": False, "num_cpus": 4, "num_gpus": 1}, **settings}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def train(folder: Path, trainer: str, kill_at: int = 0) -> float:
    """Seconds that the training took; its worker is killed while it writes the checkpoint of step `kill_at`."""
    began, environment = time.monotonic(), {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "HF_HUB_OFFLINE": "1"}
    with open(folder / "train.log", "wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "helpers.trainer", str(folder / "config.yaml"), f"--accelerated={trainer}"],
                                   cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, env=environment)
        before, half = (folder / "output" / f"checkpoint-{step}" for step in (kill_at - SAVE, kill_at))
        worker = None
        while kill_at and process.poll() is None:
            if worker and half.exists() and any(half.iterdir()):
                worker.kill()  # at the sight of its first file: all is written within a second
                there = sorted(path.name for path in half.iterdir())
                print("killed while it wrote; there was", there, flush=True)
                if "trainer_state.json" in there:
                    sys.exit("too late: the checkpoint was whole")
                break
            if not worker and before.exists():
                below = psutil.Process(process.pid).children(recursive=True)
                worker = next(one for one in below if "RayTrainWorker" in " ".join(one.cmdline()))
            time.sleep(0.002)
        code = process.wait()
    if code:
        sys.exit((folder / "train.log").read_text(errors="replace")[-4000:])
    return time.monotonic() - began


def losses(folder: Path) -> dict[int, float]:
    """step -> loss of the newest checkpoint's own record."""
    states = [json.loads(path.read_text()) for path in folder.glob("ray/run/TorchTrainer_*/checkpoint_*/checkpoint/trainer_state.json")]
    newest = max(states, key=lambda state: state["global_step"])
    return {row["step"]: row["loss"] for row in newest["log_history"] if "loss" in row}


def main(model: str, steps: str = "14", trainer: str = "true") -> None:
    steps = int(steps)
    scratch = Path(tempfile.mkdtemp(prefix="kto-gpu-"))
    took = {"undisturbed": train(prepare(scratch / "undisturbed", model, steps), trainer)}
    took["killed"] = train(prepare(scratch / "killed", model, steps), trainer, kill_at=2 * SAVE)
    saved = next(path.parent for path in scratch.glob("undisturbed/ray/run/*/checkpoint_*/checkpoint/trainer_state.json")
                 if json.loads(path.read_text())["global_step"] == 2 * SAVE)
    took["resumed"] = train(prepare(scratch / "resumed", model, steps, resume_from_checkpoint=str(saved)), trainer)
    found = {name: losses(scratch / name) for name in took}
    for name, seconds in took.items():
        worst = max(abs(found[name][step] - loss) for step, loss in found["undisturbed"].items())
        print(f"accelerated {trainer}, {name:12} {seconds:4.0f} s, {len(found[name])} losses, "
              f"largest difference to the undisturbed training: {worst:g}")
    for line in (scratch / "killed" / "train.log").read_text(errors="replace").splitlines():
        if "[kto]" in line:
            print(line)
    if (out := os.environ.get("OUT")):
        Path(out, f"losses-{trainer}.json").write_text(json.dumps(found))
        Path(out, f"killed-{trainer}.log").write_bytes((scratch / "killed" / "train.log").read_bytes())


if __name__ == "__main__":
    main(*sys.argv[1:])
