"""Build the config that resumes from a checkpoint, and check what differs from the original run.

Recovering ends an interrupted run as if nothing had happened. Extending gives a finished run more steps: a new learning-rate
schedule that starts in the middle. What each key does after a resume was read in transformers 4.52.4 (`Trainer._inner_training_loop`,
`_load_optimizer_and_scheduler`, `_load_rng_state`).
"""

import math
from contextlib import suppress
from pathlib import Path

from . import choose, files
from .checkpoints import Checkpoint
from .errors import Finding, KitError

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
        "loss", "pref_beta", "pref_ftx", "kto_chosen_weight", "kto_rejected_weight", "lora_alpha", "lora_dropout", "bf16",
        "fp16", "pure_bf16", "max_grad_norm", "ref_model"),
}
"""What a change of these keys does to a resumed training run, the most serious first."""
UNFIT = next(iter(EFFECTS))


def config(base: dict, checkpoint: Checkpoint, output_dir: Path, **changes) -> dict:
    """`base` resumed from `checkpoint`, with a fresh `output_dir`: Ray's own callback would copy the highest `checkpoint-N` there.

    `changes`: keys that are meant to differ, such as `max_steps` to extend. KitError if it is incomplete, or no step would be left.
    """
    if not checkpoint.complete:
        raise KitError(f"step {checkpoint.step} cannot be resumed from: {checkpoint.why}", "a complete checkpoint",
                       "resume from `latest`")
    total = changes.get("max_steps") or base.get("max_steps") or checkpoint.planned_steps
    if "num_train_epochs" not in changes and total and checkpoint.step >= total:
        raise KitError(f"nothing is left to train: the checkpoint is of step {checkpoint.step}, the run ends at {total}",
                       "a step before the end, or more steps",
                       f"to extend the finished run, set max_steps above {checkpoint.step}")
    resumed = base | {"resume_from_checkpoint": str(checkpoint.path), "output_dir": str(output_dir)} | changes
    resumed.pop("overwrite_output_dir", None)
    return resumed


def check(run, resumed: dict, checkpoint: Checkpoint, meant: tuple[str, ...] = ()) -> list[Finding]:
    """What would make resuming `run` from `checkpoint` with the config `resumed` another training: its settings, workers or data.

    FAIL stops a resume; a key in `meant` only warns, unless the weights would not fit.
    """
    findings, record, launched = [], run.record(), run.relocated(checkpoint.launched) or run.config()

    def differs(what: str, found, expected, effect: str, status: str = "FAIL") -> None:
        findings.append(Finding(status, f"{what}: {found} (was {expected})", why=effect, kind=what))

    for effect, keys in EFFECTS.items():
        for key in keys:
            if resumed.get(key) != launched.get(key):
                allowed = key in meant and effect != UNFIT
                differs(key, resumed.get(key), launched.get(key), effect, "WARN" if allowed else "FAIL")
    workers = resumed.get("ray_num_workers")
    if workers and checkpoint.workers and workers != checkpoint.workers and "ray_num_workers" not in meant:
        differs("world size", workers, checkpoint.workers,
                "not every worker has its random state, and the rows are dealt out differently")
    if recorded := record.get("dataset", {}).get("train_sha256"):
        here = "(no file)"
        with suppress(OSError, KitError):
            here = files.sha256(files.data_file(Path(resumed.get("dataset_dir") or "data"), resumed.get("dataset")))
        if here != recorded:
            differs("dataset", f"sha256 {here[:12]}", recorded[:12], "the rows already seen are no longer the first ones")
    every, save = resumed.get("logging_steps"), checkpoint.step
    if isinstance(every, int) and every > 0 and save % every:
        differs("logging_steps", every, f"a divisor of step {save}",
                "the first logged window after it lacks the steps before it; the weights are the same", "WARN")
    stock = "llamafactory-cli" in record.get("training", {}).get("command", "")
    if stock and 1e-6 < checkpoint.epoch % 1 < 1 - 1e-6:
        differs("place in the data", f"epoch {checkpoint.epoch:.2f}", "an epoch's end",
                "the stock command goes through the rest of this epoch in the first epoch's order, and takes no last update that is "
                "smaller than gradient_accumulation_steps; save_strategy: epoch, or our own launcher, avoids it", "WARN")
    return findings


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
    """Write the run's resume.yaml: config.yaml resumed from `checkpoint`, with `changes`; config.yaml stays as it is.

    A checkpoint in a bucket is copied into the run's folder first: transformers resumes from local folders only.
    KitError if it would not be the same training, or nothing is left to do.
    """
    base, local = run.config(), choose.fetch(checkpoint, run.folder / "fetched" / f"checkpoint-{checkpoint.step}")
    resumed = config(base, local, fresh_output_dir(run), **changes)
    if grave := [finding for finding in check(run, resumed, local, tuple(changes)) if finding.status == "FAIL"]:
        raise KitError("resuming would not continue the same training:\n  - "
                       + "\n  - ".join(f"{finding.found}: {finding.why}" for finding in grave),
                       "what the checkpoint was trained with",
                       "put it back, or name the keys you mean to change, or start a run with another run_name")
    return files.write(run.resume_file, files.dump_yaml(resumed))


def write_unattended(run, found: list[Checkpoint]) -> Checkpoint | None:
    """`write` for what was launched last, an extension too, and the checkpoint that it resumes from; None if there is none.

    It is the last complete one that leaves a step to train: after a kill between the last save and the end, the one before.
    """
    base, launches = run.config(), sorted(run.folder.glob("resumed-*.yaml"), key=lambda file: (len(file.name), file.name))
    launched = run.relocated(files.read_yaml(launches[-1])) if launches else base
    changes = {key: value for key, value in launched.items()
               if value != base.get(key) and key not in ("resume_from_checkpoint", "output_dir")}
    extended = changes.keys() & {"max_steps", "num_train_epochs"}  # else the steps of the checkpoint's own trial still hold
    left = [item for item in found if item.complete and item.step < min(
        launched.get("max_steps") or math.inf, math.inf if extended else item.planned_steps or math.inf)]
    if not left:
        return None
    chosen, _ = choose.latest(left)
    write(run, chosen, **changes)
    return chosen
