"""Estimate the GPU memory of a config, part by part.

With N parameters, n workers, L layers of width d and inner width f, vocabulary V, and per_device_train_batch_size x cutoff_len = T
tokens (every row as long as may be: real data takes less), in bytes:

    weights      2N; 0.52 a weight of the layers with quantization_bit 4, 1.02 with 8; under ZeRO-3 divided by n
    adapter      rank x (inputs + outputs) of every linear layer, in float32: 4 each, as much for gradients and twice for AdamW
    optimiser    full parameters: gradients 2N and float32 copy with two moments 12N under ZeRO-3, divided by n; else 14N
    reference    0 with LoRA (the adapter switched off); 2N with full parameters, under ZeRO-3 divided by n
    activations  2 L d T and one layer's (2 (3f + 6.5d) T) with gradient checkpointing; every layer's without
    logits       5.75 copies of 4 V T (in bf16, in float32, their log-softmax, and the gradients of each): fitted to two measurements;
                 the accelerator makes them in pieces of 1.3 GiB

0 to 2 % above the peaks measured on an H100 and an H200 (benchmarks/results) with the stock trainer, 0 to 17 % with the accelerator,
which packs the real rows. The driver and NCCL take about a GiB besides. Full parameters and ZeRO-3 were not measured.
"""

from helpers import gpus
from helpers.errors import Finding
from helpers.models import parameters

GIB = 2**30


def estimate(config: dict, shape: dict, accelerated: bool = False) -> dict[str, float]:
    """GiB by part, of each worker's GPU. `config`: LLaMA-Factory's keys; `shape`: the model's config.json."""
    body, ends, sides = parameters(shape)
    full, deepspeed = config.get("finetuning_type", "lora") == "full", config.get("deepspeed") or ""
    own = deepspeed.get("zero_optimization", {}) if isinstance(deepspeed, dict) else {}  # else a file, named after its stage
    n = config.get("ray_num_workers", 1) if own.get("stage") == 3 or "z3" in str(deepspeed) else 1
    tokens = config.get("per_device_train_batch_size", 8) * config.get("cutoff_len", 2048)
    each = {4: 0.52, 8: 1.02}.get(config.get("quantization_bit"), 2)
    layer = 2 * (3 * shape["intermediate_size"] + 6.5 * shape["hidden_size"]) * tokens
    kept = 2 * shape["num_hidden_layers"] * shape["hidden_size"] * tokens + layer
    parts = {
        "weights": (each * body + 2 * ends) / n,
        "adapter": 0 if full else 16 * config.get("lora_rank", 8) * sides,
        "optimiser": 14 * (body + ends) / n if full else 0,
        "reference": 2 * (body + ends) / n if full else 0,
        "activations": layer * shape["num_hidden_layers"] if config.get("disable_gradient_checkpointing") else kept,
        "logits": min(1.3 * GIB if accelerated else float("inf"), 23 * shape["vocab_size"] * tokens),
    }
    return {name: size / GIB for name, size in parts.items()}


def fits(config: dict, shape: dict | None, found: list[tuple], accelerated: bool) -> list[Finding]:
    """The memory that the config takes of a GPU, against the smallest that its workers can get of those `found` ((name, GiB))."""
    needed = config.get("resources_per_worker") or {"GPU": 1}
    if not needed.get("GPU"):
        return []
    if not shape or "intermediate_size" not in shape:
        return [Finding("WARN", "how much memory is needed is not known: the model's config.json could not be read")]
    parts = estimate(config, shape, accelerated)
    needs = sum(parts.values()) + 1.0
    listed = ", ".join(f"{name} {gib:.1f}" for name, gib in parts.items() if gib >= 0.05)
    says = f"{needs:.0f} GiB of a GPU are needed at most ({listed}, driver 1)"
    if not (smallest := gpus.smallest(found, needed)):
        return [Finding("WARN", f"{says}; no GPU is there yet to compare with")]
    name, gib = smallest
    says += f"; the smallest has {gib:.0f} ({name})"
    if needs <= gib:
        return [Finding("WARN" if needs > 0.9 * gib else "OK", says)]
    return [Finding("FAIL", says, "per_device_train_batch_size or cutoff_len down, or "
                                  "-p train_config=kto_qlora.yaml or kto_lora_deepspeed.yaml")]
