"""How much disk a training's checkpoints will take, from its config and the base model's shapes, before the launch.

A checkpoint is the trained weights, Adam's two moments of each, and a few files that do not depend on the model. Each
is kept twice: LLaMA-Factory's own (`save_total_limit` of them) and Ray Train's copies (all of them).
"""

import math
from dataclasses import dataclass
from pathlib import Path

from ..errors import KitError
from ..schedule import Schedule

NOT_TARGETS = ("lm_head", "embed", "wte", "wpe", "norm", "output_layer")
"""Parts of the names of 2-D weights that `lora_target: all` leaves out (LLaMA-Factory: linear layers, not the head)."""
PER_TENSOR, PER_MOMENTS = 130, 810
"""Bytes of overhead a tensor: its safetensors header entry, its three zip entries in optimizer.pt (both measured)."""
PER_WORKER, PER_WINDOW, FIXED = 14_500, 490, 16_000
"""Bytes of a random state, of a logged window in trainer_state.json, and of the remaining small files (measured)."""
TOKENIZER = ("tokenizer", "special_tokens_map", "chat_template", "vocab", "merges", "added_tokens")
OTHERWISE = ("deepspeed", "fsdp", "use_galore", "use_apollo", "use_badam", "use_adam_mini", "use_muon", "use_dora",
             "additional_target")
"""Keys with which the optimiser's state, or what is trained, is not what is counted here."""
ADAMW = ("adamw_torch", "adamw_torch_fused", "adamw_hf")


@dataclass(frozen=True)
class Forecast:
    """What the checkpoints of a training will take. Bytes; `trainable`: numbers that are trained."""

    trainable: int
    checkpoint: int
    """one checkpoint, in the middle of the training"""
    saves: int
    """how often it saves"""
    in_output: int
    """checkpoints that stay in output_dir"""
    in_trial: int
    """checkpoints that Ray keeps"""
    final: int
    """the weights and tokenizer that LLaMA-Factory leaves in output_dir itself"""

    @property
    def total(self) -> int:
        return self.checkpoint * (self.in_output + self.in_trial) + self.final

    def __str__(self) -> str:
        return (f"{self.saves} saves of {self.checkpoint / 1e6:,.1f} MB, kept {self.in_output} times in output and "
                f"{self.in_trial} times by Ray, and the final weights: {self.total / 1e6:,.0f} MB")


def forecast(config: dict, rows: int | None = None) -> Forecast:
    """The Forecast for a LLaMA-Factory config; `rows` of the dataset are needed where it counts epochs, not steps.

    For LoRA and full-parameter tuning with AdamW, without DeepSpeed: other optimisers and sharded states are not
    foretold (KitError). While Ray copies a checkpoint, each worker holds one more in its temporary folder.
    """
    trained = _trained(config)
    weight_bytes = 2 if config.get("pure_bf16") else 4
    numbers, tensors = sum(map(math.prod, trained)), len(trained)
    model = numbers * weight_bytes + tensors * PER_TENSOR + _tokenizer_bytes(config["model_name_or_path"])
    steps = total_steps(config, rows)
    saves = _saves(config, steps, rows)
    windows = steps / 2 / _every(config.get("logging_steps", 500), steps)
    states = 0 if config.get("save_only_model") else (
        numbers * 2 * weight_bytes + tensors * PER_MOMENTS + config.get("ray_num_workers", 1) * PER_WORKER)
    return Forecast(numbers, round(model + states + windows * PER_WINDOW + FIXED), saves,
                    min(saves, config.get("save_total_limit") or saves), saves, round(model + 2 * windows * PER_WINDOW))


def error(foretold: Forecast, found) -> float:
    """How far off the forecast was, as a part of what was found: the mean size of the complete checkpoints."""
    sizes = [item.bytes for item in found if item.complete]
    if not sizes:
        raise KitError("there is no complete checkpoint to compare the forecast with", "a training that saved",
                       "run 04_train")
    return foretold.checkpoint * len(sizes) / sum(sizes) - 1


def total_steps(config: dict, rows: int | None) -> int:
    """Optimiser steps of the training: `max_steps`, or epochs x steps an epoch (transformers rounds up)."""
    if (config.get("max_steps") or -1) > 0:
        return config["max_steps"]
    if not rows:
        raise KitError("the config counts epochs, and the number of rows is not known", "max_steps, or the rows",
                       "run 02_data first")
    rows = min(rows, config.get("max_samples") or rows)
    return math.ceil(config.get("num_train_epochs", 3.0) * _updates(config, rows))


def _updates(config: dict, rows: int) -> int:
    """Optimiser steps an epoch."""
    return Schedule(rows, config.get("per_device_train_batch_size", 8), config.get("gradient_accumulation_steps", 1),
                    config.get("ray_num_workers", 1)).updates


def _saves(config: dict, steps: int, rows: int | None) -> int:
    """How often the trainer saves: every `save_steps` steps, or each epoch; and at the end."""
    strategy = config.get("save_strategy", "steps")
    if strategy == "no":
        return 0
    every = _updates(config, rows) if strategy == "epoch" and rows else _every(config.get("save_steps", 500), steps)
    return math.ceil(steps / every)


def _every(interval: float, steps: int) -> int:
    """`save_steps` or `logging_steps` in steps; below 1 it is a part of the training."""
    return max(1, int(interval) if interval >= 1 else math.ceil(interval * steps))


def _trained(config: dict) -> list[tuple[int, ...]]:
    """Shapes of the tensors that are trained."""
    kind, optim = config.get("finetuning_type", "lora"), config.get("optim", "adamw_torch")
    strange = [key for key in OTHERWISE if config.get(key)]
    if strange or kind not in ("lora", "full") or optim not in ADAMW:
        what = ", ".join(strange) or f"finetuning_type {kind}, optim {optim}"
        raise KitError(f"the disk that this config needs is not foretold: {what}", "LoRA or full tuning with AdamW",
                       "look at the first checkpoint, and multiply")
    shapes = shapes_of(config["model_name_or_path"])
    if kind == "full":
        return list(shapes.values())
    target, rank = config.get("lora_target", "all"), config.get("lora_rank", 8)
    names = target if isinstance(target, list) else [name.strip() for name in target.split(",")]
    layers = [shape for name, shape in shapes.items() if len(shape) == 2 and _is_target(name, names)]
    return [shape for out, into in layers for shape in ((rank, into), (out, rank))]


def _is_target(name: str, targets: list[str]) -> bool:
    module = name.removesuffix(".weight").rpartition(".")[2]
    return module in targets or (targets == ["all"] and not any(part in name for part in NOT_TARGETS))


def shapes_of(model: str) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the base model's weights, from its safetensors headers, else from its config.json alone.

    `model`: a folder, or a hub id (its local copy is used where there is one; else its config.json is fetched).
    """
    from safetensors import safe_open

    folder = _folder(model)
    shapes = {}
    for file in sorted(folder.glob("*.safetensors")) if folder else []:
        with safe_open(file, framework="np") as weights:
            shapes |= {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}
    return shapes or _from_config(str(folder or model))


def _from_config(model: str) -> dict[str, tuple[int, ...]]:
    """The same from config.json: the model is built without memory for its weights (torch's meta device)."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        settings = AutoConfig.from_pretrained(model)
    except (OSError, ValueError) as found:
        raise KitError(f"the shapes of {model} are not known: {str(found).splitlines()[0]}", "its config.json",
                       "make the model ready: 01_setup") from None
    with torch.device("meta"):
        built = AutoModelForCausalLM.from_config(settings)
    return {name: tuple(weight.shape) for name, weight in built.named_parameters()}


def _folder(model: str) -> Path | None:
    """The local folder of a model: itself, or the hub's local copy; None if there is none."""
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, local_files_only=True))
    except (LocalEntryNotFoundError, ValueError, OSError):
        return None


def _tokenizer_bytes(model: str) -> int:
    """Bytes of the tokenizer's files, which every checkpoint holds a copy of; 0 where the model is not here yet."""
    folder = _folder(model)
    files = folder.iterdir() if folder else []
    return sum(file.stat().st_size for file in files if file.name.startswith(TOKENIZER))
