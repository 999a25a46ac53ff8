"""The disk that checkpoints need is foretold from the config, within a tenth of what a real training then takes."""

import json
from pathlib import Path

import pytest

from helpers import checkpoints
from helpers.checkpoints import forecast
from helpers.errors import KitError

WIDE, NARROW, HEADS, LAYERS = 576, 1536, 192, 30
"""SmolLM2-135M: hidden size, intermediate size, key and value heads, layers."""
RECORDED = {"checkpoint": 33_278_858, "tokenizer": 3_528_241, "final": 13_387_000}
"""Bytes of a real training of the local model: rank 8 on all linear layers, two workers, 30 steps, a save every 10."""


@pytest.fixture
def model(tmp_path):
    """The local model's folder without its weights' data: headers and a tokenizer of the real size."""
    shapes = {"model.embed_tokens.weight": (49152, WIDE), "model.norm.weight": (WIDE,)}
    for layer in range(LAYERS):
        for name, shape in {"self_attn.q_proj": (WIDE, WIDE), "self_attn.k_proj": (HEADS, WIDE),
                            "self_attn.v_proj": (HEADS, WIDE), "self_attn.o_proj": (WIDE, WIDE),
                            "mlp.gate_proj": (NARROW, WIDE), "mlp.up_proj": (NARROW, WIDE),
                            "mlp.down_proj": (WIDE, NARROW)}.items():
            shapes[f"model.layers.{layer}.{name}.weight"] = shape
    folder, place, header = tmp_path / "model", 0, {}
    folder.mkdir()
    for name, (*shape,) in shapes.items():
        size = 4 * (shape[0] if len(shape) == 1 else shape[0] * shape[1])
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [place, place := place + size]}
    text = json.dumps(header).encode()
    with open(folder / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + place)  # a hole: no disk is used
    (folder / "tokenizer.json").write_bytes(bytes(RECORDED["tokenizer"]))
    (folder / "config.json").write_text("{}")
    return folder


def config(model, **changes):
    return {"model_name_or_path": str(model), "finetuning_type": "lora", "lora_rank": 8, "lora_target": "all",
            "max_steps": 30, "save_steps": 10, "logging_steps": 2, "ray_num_workers": 2} | changes


def within_a_tenth(foretold, real):
    return abs(foretold - real) <= real / 10


def test_a_checkpoint_of_the_local_model_is_foretold_within_a_tenth(model):
    foretold = forecast.forecast(config(model))
    assert foretold.trainable == 2_442_240
    assert within_a_tenth(foretold.checkpoint, RECORDED["checkpoint"])
    assert within_a_tenth(foretold.final, RECORDED["final"])
    assert within_a_tenth(foretold.total, 6 * RECORDED["checkpoint"] + RECORDED["final"])


def test_every_save_is_kept_twice_unless_a_limit_holds_in_output(model):
    foretold = forecast.forecast(config(model, max_steps=32))
    assert (foretold.saves, foretold.in_output, foretold.in_trial) == (4, 4, 4)  # 10, 20, 30 and the end
    limited = forecast.forecast(config(model, save_total_limit=1))
    assert (limited.in_output, limited.in_trial) == (1, 3)


def test_epochs_are_counted_in_steps(model):
    epochs = {key: value for key, value in config(model).items() if key != "max_steps"} | {
        "num_train_epochs": 3.0, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    assert forecast.total_steps(epochs, rows=300) == 3 * 19  # ceil(ceil(300 / 8) / 2)
    assert forecast.forecast(epochs | {"save_strategy": "epoch"}, rows=300).saves == 3
    assert forecast.forecast(epochs | {"save_strategy": "no"}, rows=300).total == forecast.forecast(
        epochs | {"save_strategy": "no"}, rows=300).final
    with pytest.raises(KitError, match="number of rows is not known"):
        forecast.forecast(epochs)


def test_targets_and_rank_decide_what_is_trained(model):
    attention = forecast.forecast(config(model, lora_target="q_proj,v_proj", lora_rank=16))
    assert attention.trainable == 30 * 16 * ((576 + 576) + (192 + 576))
    assert forecast.forecast(config(model, finetuning_type="full")).trainable > 134_000_000


def test_weights_alone_take_a_third(model):
    full, only = forecast.forecast(config(model)), forecast.forecast(config(model, save_only_model=True))
    assert full.checkpoint - only.checkpoint > 2 * 4 * full.trainable


@pytest.mark.parametrize("change", [{"deepspeed": "ds_z3.json"}, {"finetuning_type": "freeze"}, {"optim": "adafactor"}])
def test_what_cannot_be_foretold_is_said(model, change):
    with pytest.raises(KitError, match="not foretold"):
        forecast.forecast(config(model, **change))


def test_the_forecast_is_held_against_what_was_found(model):
    found = checkpoints.find(Path(__file__).parents[1] / "fixtures" / "trial")
    foretold = forecast.forecast(config(model))
    mean = sum(item.bytes for item in found) / len(found)
    assert forecast.error(foretold, found) == pytest.approx((foretold.checkpoint - mean) / mean)
    with pytest.raises(KitError, match="no complete checkpoint"):
        forecast.error(foretold, [])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")
def test_a_saved_adapter_and_its_optimiser_are_as_large_as_foretold(tmp_path):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    base = tmp_path / "base"
    settings = LlamaConfig(vocab_size=512, hidden_size=256, intermediate_size=688, num_hidden_layers=6,
                           num_attention_heads=8, num_key_value_heads=2)
    LlamaForCausalLM(settings).save_pretrained(base)
    assert forecast.shapes_of(str(base)) == forecast._from_config(str(base))
    targets = ["q_proj", "k_proj", "down_proj"]
    model = get_peft_model(LlamaForCausalLM.from_pretrained(base), LoraConfig(r=32, target_modules=targets))
    model(input_ids=torch.ones(1, 4, dtype=torch.long), labels=torch.ones(1, 4, dtype=torch.long)).loss.backward()
    optimiser = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad])
    optimiser.step()
    model.save_pretrained(tmp_path / "saved")
    torch.save(optimiser.state_dict(), tmp_path / "saved" / "optimizer.pt")
    names = ("adapter_model.safetensors", "optimizer.pt")
    real = sum((tmp_path / "saved" / name).stat().st_size for name in names)
    foretold = forecast.forecast(config(base, lora_rank=32, lora_target=",".join(targets), ray_num_workers=0))
    assert within_a_tenth(foretold.checkpoint - forecast.FIXED, real)
