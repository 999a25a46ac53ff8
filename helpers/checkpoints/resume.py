"""Going on from a checkpoint: the config that does it, and what is checked before it is launched.

Recovering ends an interrupted run as if nothing had happened: same config, same data, same workers. Extending gives a
finished run more steps: a new learning-rate schedule that starts in the middle. What each key does after a resume was
read in transformers 4.52.4 (`Trainer._inner_training_loop`, `_load_optimizer_and_scheduler`, `_load_rng_state`).
"""

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path

from .. import files
from ..errors import KitError
from . import fetch, latest
from .layouts import Checkpoint, mapping

FILE = "resume.yaml"
"""In the run's folder; what is launched to go on."""

EFFECTS = {
    "the checkpoint's weights or optimiser do not fit": (
        "model_name_or_path", "stage", "finetuning_type", "lora_rank", "lora_target", "additional_target",
        "use_rslora", "use_dora", "pissa_init", "deepspeed", "optim", "quantization_bit"),
    "the learning rate jumps to another schedule": (
        "max_steps", "num_train_epochs", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_ratio", "warmup_steps"),
    "it is ignored: the optimiser's saved value is used": (
        "learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon"),
    "the rows come in another order: some are seen twice, some never": (
        "per_device_train_batch_size", "gradient_accumulation_steps", "ray_num_workers", "seed", "data_seed", "dataset",
        "max_samples", "group_by_length", "val_size", "dataloader_drop_last", "streaming"),
    "the rows are not what they were": ("template", "cutoff_len", "train_on_prompt", "mask_history", "default_system"),
    "the objective is another one": (
        "pref_beta", "pref_ftx", "kto_chosen_weight", "kto_rejected_weight", "lora_alpha", "lora_dropout", "bf16",
        "fp16", "pure_bf16", "max_grad_norm", "ref_model"),
}
"""What a change of these keys does to a training that goes on, the gravest first."""
STOCK = ("the stock command goes through the rest of this epoch in the first epoch's order, and takes no last update that is "
         "smaller than gradient_accumulation_steps; save_strategy: epoch, or the accelerator, avoids it")
"""What llamafactory-cli does after a save within an epoch, where helpers.resume_exactly does not correct it."""
UNFIT, SCHEDULE = list(EFFECTS)[:2]
SCHEDULE_KEYS = EFFECTS[SCHEDULE]


@dataclass(frozen=True)
class Finding:
    """One thing that a resume would not carry over as it was. `stops`: it would fail, or not be the same training."""

    what: str
    found: str
    expected: str
    effect: str
    stops: bool = True

    def __str__(self) -> str:
        return f"{self.what}: {self.found} (was {self.expected}): {self.effect}"


def config(base: dict, checkpoint: Checkpoint, output_dir: Path, **changes) -> dict:
    """The LLaMA-Factory config that goes on from `checkpoint`: `base`, the path to go on from, a fresh `output_dir`.

    A fresh one, because Ray's callback copies the highest-numbered `checkpoint-N` it finds there, which could be one of
    the earlier trial's. `changes`: keys that are meant to differ, such as `max_steps` to extend. KitError if the
    checkpoint is not complete, or no step would be left.
    """
    if not checkpoint.complete:
        raise KitError(f"step {checkpoint.step} cannot be resumed from: {checkpoint.why}", "a complete checkpoint",
                       "resume from `latest`")
    total = changes.get("max_steps") or base.get("max_steps") or checkpoint.planned_steps
    if "num_train_epochs" not in changes and total and checkpoint.step >= total:
        raise KitError(f"nothing is left to train: the checkpoint is of step {checkpoint.step}, the run ends at "
                       f"{total}", "a step before the end, or more steps",
                       f"to extend the finished run, set max_steps above {checkpoint.step}")
    resumed = base | {"resume_from_checkpoint": str(checkpoint.path), "output_dir": str(output_dir)} | changes
    resumed.pop("overwrite_output_dir", None)
    return resumed


def differences(before: dict, after: dict, meant: tuple[str, ...] = ()) -> list[Finding]:
    """What two LLaMA-Factory configs would train differently, one Finding a key of EFFECTS, the gravest first.

    A key in `meant` was changed on purpose and does not stop the resume, unless the weights would not fit.
    """
    return [Finding(key, str(after.get(key)), str(before.get(key)), effect, effect == UNFIT or key not in meant)
            for effect, keys in EFFECTS.items() for key in keys if before.get(key) != after.get(key)]


def check(resumed: dict, checkpoint: Checkpoint, base: dict, dataset_sha256: str = "",
          meant: tuple[str, ...] = ()) -> list[Finding]:
    """All that would make going on from `checkpoint` with the config `resumed` another training; empty: nothing.

    Compared are the config with the one that Ray noted when the checkpoint's trial was launched (without such a note
    with `base`, the run's config.yaml), the number of workers with the random states saved, the dataset's bytes with
    `dataset_sha256` (run.json's train_sha256), and the checkpoint's torch files with what this torch loads.
    """
    findings = differences(launched_config(checkpoint) or base, resumed, meant)
    workers = resumed.get("ray_num_workers")
    if workers and checkpoint.workers and workers != checkpoint.workers and "ray_num_workers" not in meant:
        findings.append(Finding("world size", str(workers), str(checkpoint.workers),
                                "not every worker has its random state, and the rows are dealt out differently"))
    found = dataset_hash(resumed)
    if dataset_sha256 and found != dataset_sha256:
        findings.append(Finding("dataset", f"sha256 {found[:12] or '(no file)'}", dataset_sha256[:12],
                                "the rows already seen are no longer the first ones"))
    log, save = resumed.get("logging_steps"), checkpoint.step
    if isinstance(log, int) and log > 0 and save % log:
        findings.append(Finding("logging_steps", str(log), f"a divisor of step {save}",
                                "the first logged window after it lacks the steps before it; the weights are the same",
                                stops=False))
    if (resumed.get("resources_per_worker") or {}).get("GPU") and 1e-6 < checkpoint.epoch % 1 < 1 - 1e-6:
        findings.append(Finding("place in the data", f"epoch {checkpoint.epoch:.2f}", "an epoch's end", STOCK, stops=False))
    return findings + unloadable(checkpoint)


def refuse(findings: list[Finding]) -> None:
    """KitError that lists every finding that stops; nothing where there is none."""
    grave = [finding for finding in findings if finding.stops]
    if grave:
        raise KitError("going on would not be the same training:\n  - " + "\n  - ".join(map(str, grave)),
                       "what the checkpoint was trained with",
                       "put it back, or name the keys you mean to change, or start a run with another run_name")


def launched_config(checkpoint: Checkpoint) -> dict:
    """The keys that the checkpoint's trial was launched with, from Ray's params.json beside it; empty without one."""
    if not isinstance(checkpoint.path, Path):
        return {}
    for folder in list(checkpoint.path.parents)[:2]:
        if (folder / "params.json").is_file():
            return (mapping((folder / "params.json").read_text(), json.loads).get("train_loop_config") or {}).get("args") or {}
    return {}


def dataset_hash(config: dict) -> str:
    """SHA-256 of the file that the config's `dataset` is read from, in hex; empty if there is no such local file."""
    registry = Path(config.get("dataset_dir") or "data") / "dataset_info.json"
    try:
        entry = json.loads(registry.read_text())[str(config.get("dataset"))]
        with open(registry.parent / entry["file_name"], "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, KeyError, ValueError, TypeError):
        return ""


def unloadable(checkpoint: Checkpoint) -> list[Finding]:
    """Files of the checkpoint that this torch would refuse to load, by the names in them; nothing is unpickled.

    transformers 4.52.4 loads optimiser, scheduler and random states with `weights_only`, and only from torch 2.6 on; in
    the random states it allows numpy arrays besides torch's own list (`transformers.trainer.safe_globals`). One saved
    under numpy 2 names `numpy._core`, one under numpy 1 `numpy.core`: only that of the numpy installed is allowed.
    """
    import numpy as np
    import torch

    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 6):
        return [Finding("torch", torch.__version__, "2.6 or newer", "transformers refuses to load the optimiser")]
    if not isinstance(checkpoint.path, Path):
        return []
    arrays = [np.zeros(0).__reduce__()[0], np.ndarray, np.dtype, type(np.dtype(np.uint32))]
    findings = []
    for file in sorted([*checkpoint.path.glob("*.pt"), *checkpoint.path.glob("rng_state*.pth")]):
        with torch.serialization.safe_globals(arrays if file.name.startswith("rng_state") else []):
            strange = torch.serialization.get_unsafe_globals_in_checkpoint(str(file))
        if strange:
            findings.append(Finding(file.name, ", ".join(strange), "names that torch loads safely",
                                    "loading it fails: it was saved by other versions of torch or numpy"))
    return findings


def run_config(run) -> dict:
    """The run's config.yaml as a dict."""
    return mapping(run.config_file.read_text())


def changed(before: dict, after: dict, run) -> str:
    """The keys of `after` that differ from `before` as YAML lines, paths as a notebook may show them."""
    lines = [f"{key}: {run.show(value) if isinstance(value, str) else value}"
             for key, value in after.items() if before.get(key) != value]
    return "\n".join(lines + [f"# without {key}" for key in before if key not in after])


def step_of(resume: str) -> int:
    """The step that the parameter `resume` names; KitError if it is neither a step nor `latest` or `best`."""
    if not str(resume).isdecimal():
        raise KitError(f"resume is {resume!r}", "latest, best or a step", "correct `resume`")
    return int(resume)


def fresh_output_dir(run) -> Path:
    """`output-2`, `output-3`, …: the first in the run's folder that does not exist."""
    number = next(n for n in range(2, 10_000) if not (run.folder / f"output-{n}").exists())
    return run.folder / f"output-{number}"


def write(run, checkpoint: Checkpoint, **changes) -> Path:
    """Write the run's resume.yaml: config.yaml going on from `checkpoint`, with `changes`; config.yaml stays as it is.

    A checkpoint in a bucket is copied into the run's folder first: transformers resumes from local folders only.
    KitError if it would not be the same training, or nothing is left to do.
    """
    base, local = run_config(run), fetch(checkpoint, run.folder / "fetched")
    resumed = config(base, local, fresh_output_dir(run), **changes)
    refuse(check(resumed, local, base, run.record().get("dataset", {}).get("train_sha256", ""), tuple(changes)))
    text = files.dump_yaml(resumed)
    return files.write(run.folder / FILE, text)


def write_unattended(run, found: list[Checkpoint]) -> Checkpoint | None:
    """`write` for what was launched last, an extension too, and the checkpoint that it goes on from; None if there is none.

    It is the last complete one that leaves a step to train: after a kill between the last save and the end, the one before.
    """
    complete = [item for item in found if item.complete]
    if not complete:
        return None
    base, launches = run_config(run), sorted(run.folder.glob("resumed-*.yaml"), key=lambda file: (len(file.name), file.name))
    launched = mapping(launches[-1].read_text()) if launches else base
    changes = {key: value for key, value in launched.items()
               if value != base.get(key) and key not in ("resume_from_checkpoint", "output_dir")}
    end = launched.get("max_steps") or math.inf
    left = [item for item in complete if item.step < min(end, _planned(item, changes))]
    if not left:
        return None
    chosen, _ = latest(left)
    write(run, chosen, **changes)
    return chosen


def _planned(item: Checkpoint, changes: dict) -> float:
    """The step that the checkpoint's own training was to end with, unless that is what was changed since."""
    return math.inf if changes.keys() & {"max_steps", "num_train_epochs"} else item.planned_steps or math.inf
