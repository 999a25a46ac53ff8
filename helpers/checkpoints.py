"""Find and validate checkpoints in every layout, on disk or in a bucket. `choose` takes one of them, `resume` continues from it.

Layouts: Ray Train V1 (`TorchTrainer_*/checkpoint_00000k/checkpoint`), Ray Train V2 (`checkpoint_<time>/checkpoint`) and
LLaMA-Factory's own `output/checkpoint-N`; on disk or in a bucket. No weights are read, and no pickle is ever loaded.
"""

import json
import math
import re
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath

from . import files, schedule

NAMES = {"Ray Train": r"checkpoint_(\d{6,})", "Ray Train V2": r"checkpoint_(\d{4}-\d\d-\d\d_.*)",
         "output_dir": r"checkpoint-(\d+)"}
"""Who wrote a folder, by its name. Ray's number counts saves, LLaMA-Factory's is the step."""
WEIGHTS = ("adapter_model.safetensors", "model.safetensors")
INDEX, STATE = "model.safetensors.index.json", "trainer_state.json"
ELSEWHERE = {"notebooks", "figures", "export", "fetched", "mlartifacts", "models", "datasets"}
"""Folders of a run that contain no checkpoints."""


@dataclass(frozen=True)
class Checkpoint:
    """One saved state of a training run."""

    step: int | None  # optimiser steps done, None where nothing says it
    epoch: float
    time: datetime
    bytes: int
    usable: bool  # its weights are whole
    complete: bool  # a training run can resume from it exactly
    why: str  # `complete`, or what is wrong
    path: Path | str  # what `resume_from_checkpoint` takes, in a bucket its address
    layout: str  # a key of NAMES, or `renamed`
    trial: str  # the folder of its siblings, below what was searched
    workers: int  # world size it was saved with, 0 where it cannot be told
    planned_steps: int | None = None
    metrics: dict = field(repr=False, default_factory=dict)  # see `_metrics`
    launched: dict = field(repr=False, default_factory=dict)  # the config of its launch, where Ray Train V1 wrote it down


def find(where) -> list[Checkpoint]:
    """All checkpoints of a Run, or below a folder or an address such as `s3://bucket/runs/first-run`, by step.

    A Run that keeps its trials in a bucket is looked for there too; one whose folder holds none, where its config.yaml puts them.
    Of one step Ray's copies come first, the older before the newer. KitError where there is no such folder.
    """
    if hasattr(where, "config_file"):
        config = where.config() if where.config_file.exists() else {}
        trials = f"{str(config.get('ray_storage_path') or '.').rstrip('/')}/{config.get('ray_run_name')}"
        found = _below(where.folder)
        if bucket := config.get("ray_storage_filesystem"):
            found += _below(f"{bucket}://{trials.strip('/')}")
        elif not found and Path(trials).is_dir():
            found = _below(trials)
    else:
        found = _below(where)
    return sorted(found, key=lambda item: (item.step is None, item.step or 0, not item.layout.startswith("Ray"),
                                           item.time, str(item.path)))


def _below(where) -> list[Checkpoint]:
    disk, prefix, root = files.open_folder(where)
    listed = {path: info for path, info in disk.find(root, withdirs=True, detail=True).items() if path != root
              and not any(part in ELSEWHERE or part[0] == "." for part in PurePosixPath(path).relative_to(root).parts[:-1])}
    # The run's config.yaml: in the folder that was searched, or up to four above it.
    configs = [f"{folder}/config.yaml" for folder in (root, *list(PurePosixPath(root).parents)[:4])]
    near = next((path for path in configs if disk.exists(path)), None)
    try:
        config = files.parse_yaml(disk.cat_file(near)) if near else {}
    except files.yaml.YAMLError:  # some other tool's
        config = {}

    def read(outer: str) -> Checkpoint | None:
        path, state = PurePosixPath(outer), {f"{outer}/{STATE}", f"{outer}/optimizer.pt"}
        layout = next((layout for layout, pattern in NAMES.items() if re.fullmatch(pattern, path.name)), "renamed")
        # Without such a name: LLaMA-Factory's final weights in output_dir are none, what is inside Ray's own folder belongs to that.
        inside = path.name == "checkpoint" and path.parent.name.startswith("checkpoint_") and outer != root
        if layout == "renamed" and (inside or not state <= listed.keys()):
            return None
        try:
            return _read(disk, prefix, root, outer, layout, listed, config)
        except FileNotFoundError:  # rotated away by the training run meanwhile
            return None

    folders = [root, *(path for path, info in listed.items() if info["type"] == "directory")]
    with ThreadPoolExecutor(16) as pool:  # a bucket answers in tens of milliseconds
        return [item for item in pool.map(read, folders) if item]


def _read(disk, prefix: str, root: str, outer: str, layout: str, listed: dict, config: dict) -> Checkpoint:
    folder, trial = outer, str(PurePosixPath(outer).parent)
    if f"{outer}/checkpoint" in listed and layout != "output_dir":
        folder = f"{outer}/checkpoint"
    # Its files, those of DeepSpeed's and FSDP's subfolders by their path below it.
    there = {path.removeprefix(f"{folder}/"): info for path, info in listed.items()
             if path.startswith(f"{folder}/") and info["type"] != "directory"}
    params = json.loads(disk.cat_file(f"{trial}/params.json")) if f"{trial}/params.json" in listed else {}
    launched = (params.get("train_loop_config") or {}).get("args") or {}
    # The workers whose random states are there; a single worker's is called `rng_state.pth`.
    workers = {int(match[1] or 0) for name in there if (match := re.fullmatch(r"rng_state(?:_(\d+))?\.pth", name))}
    weights = weights_fault(disk, folder, there)
    fault = weights or resume_fault(disk, folder, there, workers, (config or launched).get("ray_num_workers"))
    try:
        state = json.loads(disk.cat_file(f"{folder}/{STATE}")) if STATE in there else {}
    except ValueError:
        state, fault = {}, fault or f"{STATE} is unreadable or cut off"
    number = int(PurePosixPath(outer).name.removeprefix("checkpoint-")) if layout == "output_dir" else None
    times = [info["mtime"] or 0 for info in there.values()]  # seconds, in a bucket a datetime
    times = [time.timestamp() if isinstance(time, datetime) else time for time in times]
    return Checkpoint(
        step=state.get("global_step", number), epoch=state.get("epoch") or math.nan,
        time=datetime.fromtimestamp(max(times, default=0), UTC),
        bytes=sum(info["size"] for info in there.values()), usable=not weights, complete=not fault,
        why=fault or "complete", path=f"{prefix}{folder}" if prefix else Path(folder), layout=layout,
        trial=trial.removeprefix(root).strip("/"), workers=max(workers, default=-1) + 1, planned_steps=state.get("max_steps"),
        metrics=_metrics(state.get("log_history", []), (launched or config).get("gradient_accumulation_steps")), launched=launched)


def weights_fault(disk, folder: str, there: dict) -> str:
    """Why the weights cannot be used, or an empty string: a safetensors file says in its header how long it must be."""
    names = [name for name in WEIGHTS if name in there]
    if not names and INDEX in there:
        try:
            names = sorted(set(json.loads(disk.cat_file(f"{folder}/{INDEX}"))["weight_map"].values()))
        except ValueError:
            return f"{INDEX} is unreadable"
    if not names:
        pickled = next((name for name in ("adapter_model.bin", "pytorch_model.bin") if name in there), "")
        return f"its weights are a pickle ({pickled}), which is never loaded here" if pickled else "no weights"
    for name in names:
        if name not in there:
            return f"{name} is missing"
        size = there[name]["size"]
        try:
            with disk.open(f"{folder}/{name}") as file:
                length = int.from_bytes(file.read(8), "little")
                tensors = json.loads(file.read(min(length, 100_000_000)))  # the library's own limit: above it the number is rubbish
            expected = 8 + length + max(tensor["data_offsets"][1] for key, tensor in tensors.items() if key != "__metadata__")
        except ValueError:
            return f"{name} is cut off or unreadable: no safetensors header"
        if size != expected:
            return f"{name} is {'cut off' if size < expected else 'too long'}: {size:,} of {expected:,} bytes"
    has_config = there.get("adapter_config.json", {}).get("size")
    return "adapter_config.json is missing" if names[0] == WEIGHTS[0] and not has_config else ""


def resume_fault(disk, folder: str, there: dict, workers: set[int], world_size: int | None) -> str:
    """Why training could not resume exactly from sound weights, or an empty string. torch.save writes zip files: whole or not."""
    sharded = any(name.startswith("global_step") for name in there)  # DeepSpeed keeps optimiser and scheduler in there
    if STATE not in there:
        return f"no {STATE}: the save was interrupted, or is still going on"
    if not sharded and not any(name.startswith(("optimizer.pt", "optimizer.bin", "optimizer_")) for name in there):
        return "no optimiser"
    if not sharded and "scheduler.pt" not in there:
        return "no scheduler"
    for name in there:
        if name.endswith((".pt", ".pth", "optimizer.bin")):
            with disk.open(f"{folder}/{name}") as file:
                if not zipfile.is_zipfile(file):
                    return f"{name} is cut off at {there[name]['size']:,} bytes"
    if not workers:
        return "no random state"
    if missing := set(range(max(workers) + 1)) - workers:
        return f"no random state of worker {min(missing)}"
    if world_size and len(workers) != world_size:
        return f"other world size: random states of {len(workers)}, but the run has {world_size} workers"
    return ""


def _metrics(history: list[dict], accumulation: int | None) -> dict:
    """The last logged window's figures, with kl_mean = kl / (accumulation x steps in the window), in nats, and the last evaluation's
    of each held-out set: eval_loss, eval_rewards/margins, or eval_NAME_…"""
    windows, held = [entry for entry in history if "loss" in entry], {}
    metrics = dict(windows[-1]) if windows else {}
    for entry in history:
        if any(re.match("eval.*_loss$", key) for key in entry):
            line = schedule.line_of("eval", entry, {})
            held |= {f"{line['split']}_{key}": line[key] for key in schedule.LOGGED if line[key] == line[key] and key != "kl"}
    if accumulation and "kl" in metrics:
        steps = metrics["step"] - (windows[-2]["step"] if len(windows) > 1 else 0)
        metrics["kl_mean"] = metrics["kl"] / (accumulation * max(1, steps))
    return metrics | held
