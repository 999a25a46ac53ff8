"""Estimate how long a training takes: rates measured on an H100 and an H200 (benchmarks/results), scaled by tokens and model size.

A worker's micro-batch takes rows x tokens x parameters over its trainer's rate, but no less than launching its kernels, so much a
layer. Another GPU: by the dense bf16 TFLOP/s that are published. Loading, evaluations and saves come on top. Within 30 % of every
benchmark of 8B LoRA and QLoRA; full parameters, DeepSpeed and other losses were not measured and are not estimated.
"""

import math

from . import export, gpus, models
from .runs import Run
from .schedule import Schedule

ROW = 515.3 * 7.50e9
"""Tokens x parameters of a row of the measurements: the reference's rows, Llama-3-8B's layers and head."""
RATES = {
    "accelerated": (15.4, 22.9, 0.0100),  # gpu_sharing.json; a layer: gpu_kto_h200.json, the reference configuration at batch 1
    "accelerated, fp8": (17.5, 26.5, 0.0100),  # gpu_fp8.json
    "accelerated, 4 bits": (10.2, 12.8, 0.0100),  # gpu_two_hosts.json
    "LLaMA-Factory's": (4.3, 4.3, 0.0231),  # gpu_kto.json, batch 8; a layer: gpu_kto_h200.json, batch 1
}
"""Trainer -> rows a second of one H100 in the first epoch and in later ones, seconds a layer at least in a micro-batch."""
SEVERAL = 0.93
"""Speed of each of two GPUs, of one alone (docs/gpu.md); more were not measured."""
NEEDED = {"hidden_size", "intermediate_size", "vocab_size", "num_hidden_layers", "num_attention_heads"}
"""Keys of a config.json that an estimate needs."""
SHOWN = ("L40S", "A100", "H100")
"""Kinds that are shown where no GPU is known."""


def unknown(config: dict, shape: dict, tokens: float | None, accelerated: bool) -> str:
    """Why there is no estimate; empty: there is one."""
    bits = config.get("quantization_bit")
    reasons = [
        (not (config.get("resources_per_worker") or {"GPU": 1}).get("GPU"), "CPUs differ too much"),
        (config.get("finetuning_type", "lora") != "lora", "only LoRA and QLoRA were measured"),
        (config.get("deepspeed"), "DeepSpeed was not measured"),
        (config.get("loss", "kto") != "kto", f"the loss {config.get('loss')} was not measured"),
        (bits and (bits != 4 or not accelerated), "of quantised models only 4 bits with the accelerator were measured"),
        (not NEEDED <= shape.keys(), "the model's config.json could not be read"),
        (any("expert" in key for key in shape), "no mixture of experts was measured"),
        (not tokens, "this run's 02_data did not note how long rows are"),
    ]
    return next((why for true, why in reasons if true), "")


def estimate(config: dict, shape: dict, rows: int, tokens: float, accelerated: bool, gpu: str) -> dict:
    """Seconds a step in the `first` epoch and `later`, `steps` and those of an `epoch`, `minutes` in all, on this kind of GPU.

    `rows` of `tokens` each on average, of a config for which nothing is `unknown`.
    """
    special = ", 4 bits" if config.get("quantization_bit") else ", fp8" if config.get("fp8") else ""
    first, later, launch = RATES[f"accelerated{special}" if accelerated else "LLaMA-Factory's"]
    if accelerated and special != ", 4 bits" and not config.get("disable_gradient_checkpointing"):
        first, later = first * 10 / 12, later * 6 / 8  # passes over the weights, with one forward more: arithmetic, not measured
    body, *_ = models.parameters(shape)
    work = tokens * (body + shape["vocab_size"] * shape["hidden_size"]) / ROW * gpus.KINDS["H100"][1] / gpus.KINDS[gpu][1]
    batch, pieces = config.get("per_device_train_batch_size", 8), config.get("gradient_accumulation_steps", 1)
    workers = config.get("ray_num_workers", 1)
    whole = batch * work / (SEVERAL if workers > 1 else 1)
    first, later = (pieces * max(whole / rate, launch * shape["num_hidden_layers"]) for rate in (first, later))
    epoch = Schedule(min(rows, config.get("max_samples") or rows), batch, pieces, workers).updates
    steps = config.get("max_steps") or -1
    steps = steps if steps > 0 else math.ceil(epoch * config.get("num_train_epochs", 3.0))
    seconds = first * min(steps, epoch) + later * max(steps - epoch, 0)
    return {"gpu": gpu, "first": first, "later": later, "epoch": epoch, "steps": steps, "minutes": round(seconds / 60, 2)}


def foretell(run: Run, config: dict, accelerated: bool) -> tuple[dict | None, str]:
    """(the `estimate` for the run's GPU, None without one; what to say: of three kinds where the GPU is not known)."""
    record, resources = run.record(), config.get("resources_per_worker")
    shape = export.settings_of(str(config["model_name_or_path"]), "config.json")
    tokens = record["dataset"].get("cutoff", {}).get("mean_tokens")
    found = gpus.smallest(record.get("gpus") or [], resources)
    kind = gpus.kind(found[0]) if found else ""
    why = unknown(config, shape, tokens, accelerated)
    if not why and found and not gpus.KINDS.get(kind, (0, None))[1]:
        why = f"no rate is known for {found[0]}"
    if why:
        return None, f"how long it takes is not estimated: {why}; notebook 4 says it after ten steps"
    rows, tokens = record["dataset"]["rows"], min(tokens, config.get("cutoff_len", 2048))
    told = [estimate(config, shape, rows, tokens, accelerated, each) for each in ([kind] if kind else SHOWN)]
    lines = [words(one) for one in told] + ["loading, evaluations and saves come on top; notebook 4 corrects it after ten steps"]
    there, workers = sum(count for *_, count in record.get("gpus") or []), config.get("ray_num_workers", 1)
    if there > workers:
        lines.append(f"{workers} of {there} GPUs train; ray_num_workers sets more")
    return told[0] if kind else None, "\n".join(lines if kind else ["no GPU was found yet; by kind:", *lines])


def words(one: dict) -> str:
    """An estimate in one line."""
    first, later = (one["epoch"] * one[which] / 60 for which in ("first", "later"))
    step, split = f"{one['first']:.3g} s a step", ""
    if one["steps"] > one["epoch"]:
        split = f" ({first:.1f} an epoch)"
        if later < first:
            step += f", {one['later']:.3g} s after the first epoch"
            split = f" ({first:.1f} the first epoch, {later:.1f} each later one)"
    source = "from rates measured on H100 and H200" if one["gpu"] in ("H100", "H200") else "scaled, not measured"
    return f"on {one['gpu']}: {step}; {one['minutes']:.1f} min in all{split}; {source}"


def corrected(measured: dict | None, estimated: dict | None) -> str:
    """What was measured (live.Pace), against the estimate; empty where nothing was."""
    if not measured:
        return ""
    before = f" (estimated {estimated['minutes']:.1f})" if estimated and estimated["steps"] == measured["steps"] else ""
    return f"measured: {measured['seconds']:.3g} s a step, {measured['minutes']:.1f} min in all{before}"
