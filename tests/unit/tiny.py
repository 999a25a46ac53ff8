"""A whole model of 60,000 weights, made in a second: real Llama code, real tokenizer, real adapter."""

import json
from pathlib import Path

from feedback import register
from helpers import models

REPLIES = [
    ("How many ounces are in a pound?", "Sixteen.", True),
    ("How many ounces are in a pound?", "Did nobody ever teach you how to use a scale?", False),
    ("Who wrote Hamlet?", "William Shakespeare wrote it around 1600.", True),
    ("Is tea bad for dogs?", "That depends on so many things that nobody can really say.", False),
    ("What is the capital of France?", "Paris.", True),
]


def model(folder: Path, seed: int = 0, **shape_too) -> Path:
    """A Llama of two layers and its tokenizer, with SmolLM2's special tokens and chat template, in `folder`."""
    import torch
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers import models as kinds
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(kinds.BPE({token: i for i, token in enumerate(specials + letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|im_start|>", eos_token="<|im_end|>",
                                   pad_token="<|im_end|>", unk_token="<|endoftext|>", model_max_length=512)
    fast.chat_template = models.CHATML
    torch.manual_seed(seed)
    usual = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    shape = LlamaConfig(vocab_size=len(fast), max_position_embeddings=512, eos_token_id=2, pad_token_id=2, bos_token_id=1,
                        initializer_range=0.3, torch_dtype="float32", **usual | shape_too)
    LlamaForCausalLM(shape).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def adapter(base: Path, folder: Path, scale: float = 0.2, **settings) -> Path:
    """A LoRA adapter on `base`, of rank 4 by default, its B matrices random with that standard deviation (0: untrained)."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    targets = ["q_proj", "v_proj", "up_proj"]
    lora = LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": targets, "task_type": "CAUSAL_LM", **settings})
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(base), lora)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=scale) if scale else weight.zero_()
    adapted.save_pretrained(folder)
    return folder


def dataset(folder: Path, replies=REPLIES) -> str:
    """The replies registered as a dataset in `folder`; returns its name."""
    lines = []
    for prompt, reply, label in replies:
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": reply}]
        lines.append(json.dumps({"messages": turns, "label": label, "tools": ""}).encode() + b"\n")
    return next(iter(register.write(folder, "tiny", [("", lines)])))


def config(base: Path, datasets: Path) -> dict:
    """What the run's config.yaml would say of them."""
    return {"model_name_or_path": str(base), "template": "smollm2", "cutoff_len": 200, "dataset_dir": str(datasets),
            "pref_beta": 0.1, "stage": "kto", "finetuning_type": "lora", "lora_rank": 4}
