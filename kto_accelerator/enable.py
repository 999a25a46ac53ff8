"""Switch the accelerator on in this process, and say for which configurations it is proved. Imports nothing heavy."""

import json
import os
from importlib import metadata
from pathlib import Path

LOSSES = ("kto", "apo_zero_unpaired")
"""The key `loss` of a config, which LLaMA-Factory does not know: KTO's, or the one of the same form around 0 instead of KL."""
OURS = {"loss": "kto", "fp8": False}
"""Keys of a config that are this package's own (arguments of `install`) -> what LLaMA-Factory's trainer does."""
VERSIONS = ("0.9.3", "0.9.4")
"""LLaMA-Factory versions whose KTO trainer was compared with this one."""
MODELS = ("llama", "mistral", "qwen2", "qwen3", "phi", "phi3", "olmo", "olmo2", "starcoder2", "glm", "glm4")
"""Model types (config.json) whose attention is known to accept packed rows and whose logits are the output layer's; each is tested.

Not gemma and mixtures of experts: in transformers 4.52 their models do not pass on where packed rows begin; rows would be mixed.
Not granite and cohere: they scale the logits.
"""


def supports(config: dict, shape: dict | None = None) -> tuple[bool, str]:
    """Whether the accelerator is proved for a LLaMA-Factory configuration and the version installed here, and why not.

    `shape`: the model's config.json (see `shape_of`); by default it is read where the model is a local folder. Where it is
    not known nothing is said against the model, and training checks its type when it starts.
    """
    shape = shape or shape_of(config)
    kind = shape.get("model_type")
    try:
        version = metadata.version("llamafactory")
    except metadata.PackageNotFoundError:
        version = ""
    window = shape.get("sliding_window") if shape.get("use_sliding_window", True) else None
    found = [
        (version and version not in VERSIONS, f"LLaMA-Factory is {version}; compared were {', '.join(VERSIONS)}"),
        (config.get("stage") != "kto", f"stage is {config.get('stage')}, not kto"),
        (config.get("finetuning_type", "lora") != "lora", f"finetuning_type is {config.get('finetuning_type')}, not lora"),
        (config.get("ref_model"), "it has a ref_model of its own"),
        (config.get("deepspeed") or config.get("fsdp"), "it uses DeepSpeed or FSDP"),
        (config.get("neftune_alpha"), "it uses neftune_alpha"),
        (config.get("use_unsloth"), "it uses Unsloth"),
        (config.get("shift_attn"), "it uses shift_attn"),
        (config.get("flash_attn") in ("disabled", "off", False), "flash_attn is off"),
        (config.get("fp8") and any(map(config.get, ("quantization_bit", "lora_dropout", "use_dora", "additional_target"))),
         "fp8 is for plain LoRA: no quantization_bit, lora_dropout, use_dora, additional_target"),
        (window and window < config.get("cutoff_len", 2048), f"attention slides over {window} tokens, cutoff_len is above that"),
        (kind and kind not in MODELS, f"the model type is {kind}; known are {', '.join(MODELS)}"),
    ]
    reasons = [why for true, why in found if true]
    return not reasons, "; ".join(reasons)


def shape_of(config: dict, hub: bool = False) -> dict:
    """The model's config.json: of a local folder; with `hub`, of the Hugging Face hub too. {} where it cannot be read."""
    model = str(config.get("model_name_or_path", ""))
    path = Path(model, "config.json")
    try:
        if hub and not path.is_file():
            from huggingface_hub import hf_hub_download

            path = Path(hf_hub_download(model, "config.json", revision=config.get("model_revision"), token=config.get("hf_hub_token")))
        return json.loads(path.read_text())
    except Exception:  # the hub's client has a dozen kinds; what cannot be read is said when the model is loaded
        return {}


def install(loss: str = "kto", fp8: bool = False) -> None:
    """Put the accelerated trainer in the place of LLaMA-Factory's, in this process; call it in every worker.

    `loss`: one of LOSSES. `fp8`: the frozen products in 8 bits (fp8.py). RuntimeError if there is no such loss, the GPU has no 8-bit
    floats, LLaMA-Factory is not one that was compared, or what is replaced is gone.
    """
    import torch
    from llamafactory.extras.env import VERSION as found
    from llamafactory.train.kto import workflow

    from .fp8 import refuse_gpu
    from .trainer import Accelerated, accelerated

    stock = getattr(workflow, "CustomKTOTrainer", None)
    if found not in VERSIONS or not hasattr(stock, "get_batch_loss_metrics"):
        raise RuntimeError(f"the accelerator knows the KTO trainer of LLaMA-Factory {', '.join(VERSIONS)}, this is {found}\n"
                           "  expected: llamafactory.train.kto.workflow.CustomKTOTrainer.get_batch_loss_metrics\n"
                           f"  fix:      pip install llamafactory=={VERSIONS[-1]}, or train without the accelerator")
    if loss not in LOSSES:
        raise RuntimeError(f"there is no loss {loss!r}\n  expected: {' or '.join(LOSSES)}\n  fix:      correct `loss`")
    if fp8:
        refuse_gpu()
    if not issubclass(stock, Accelerated):
        workflow.CustomKTOTrainer = accelerated(stock, loss, fp8)
    # Packed rows vary in length, which fragments GPU memory unless its segments may grow. Your own setting wins. The same as
    # PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True, but after torch was imported.
    if torch.cuda.is_available() and not os.environ.get("PYTORCH_CUDA_ALLOC_CONF"):
        setter = getattr(torch._C, "_accelerator_setAllocatorSettings", None)  # torch 2.10 and later
        (setter or torch.cuda.memory._set_allocator_settings)("expandable_segments:True")


def refuse_unproved(trainer) -> None:
    """RuntimeError for a training that the accelerator was not proved for."""
    settings, found = trainer.finetuning_args, []
    if settings.finetuning_type != "lora" or trainer.ref_model is not None:
        found.append(f"finetuning_type {settings.finetuning_type}" + (" with ref_model" if trainer.ref_model else ""))
    if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        found.append("DeepSpeed or FSDP")
    if trainer.args.neftune_noise_alpha:
        found.append("neftune_noise_alpha")
    if found:
        raise RuntimeError(f"the accelerator is not proved for {', '.join(found)}\n"
                           "  expected: LoRA or QLoRA, one process a GPU\n  fix:      train without the accelerator")
