"""The memory estimate against the peaks measured on real GPUs."""

import json

import pytest

from helpers import config
from helpers.profiles import ROOT
from kto import memory

LLAMA3_8B = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
             "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": False}  # fmt: skip
MEASURED = {  # file, case -> template, batch, accelerated, how far the estimate is off
    ("gpu_kto_h200", "reference configuration"): ("kto_lora.yaml", 1, False, 0.024),
    ("gpu_kto", "batch 8"): ("kto_lora.yaml", 8, False, 0.001),
    ("gpu_kto_h200", "reference configuration, accelerated"): ("kto_lora.yaml", 1, True, -0.002),
    ("gpu_kto_h200", "48 GB, accelerated"): ("kto_lora_48gb.yaml", 4, True, 0.077),
    ("gpu_kto", "80 GB, accelerated"): ("kto_lora_80gb.yaml", 8, True, 0.159),
    ("gpu_kto", "24 GB, accelerated"): ("kto_qlora_24gb.yaml", 8, True, 0.170),
}


@pytest.mark.parametrize(("file", "case"), MEASURED)
def test_the_estimate_is_as_far_from_the_measured_peak_as_is_said(file, case):
    name, batch, accelerated, off = MEASURED[file, case]
    table = json.loads((ROOT / "benchmarks" / "results" / f"{file}.json").read_text())["table"]
    peak = next(row["peak GiB"] for row in table if row["case"] == case)
    asked = config.template(name) | {"per_device_train_batch_size": batch}
    assert sum(memory.estimate(asked, LLAMA3_8B, accelerated).values()) / peak - 1 == pytest.approx(off, abs=0.005)


def test_parameters_and_adapter_are_counted_as_llamafactory_counts_them():
    body, ends, sides = memory.parameters(LLAMA3_8B)
    assert 8 * sides == 20_971_520  # "trainable params: 20,971,520 || all params: 8,051,232,768" in the reference's log
    assert body + ends + 8 * sides == pytest.approx(8_051_232_768, rel=1e-4)


def test_with_full_parameters_the_reference_model_counts_and_zero_3_divides_it():
    alone = config.template("kto_full_deepspeed.yaml")
    parts = memory.estimate(alone, LLAMA3_8B)
    assert parts["reference"] == parts["weights"] == pytest.approx(2 * 8.03e9 / 8 / 2**30, rel=0.01)
    assert memory.estimate(alone | {"deepspeed": None}, LLAMA3_8B)["reference"] == pytest.approx(8 * parts["reference"])
    assert memory.estimate(config.template("kto_lora.yaml"), LLAMA3_8B)["reference"] == 0


def test_memory_is_compared_with_the_smallest_gpu_or_with_the_pinned_kind():
    config = {"resources_per_worker": {"GPU": 1}, "per_device_train_batch_size": 8, "cutoff_len": 1024}
    (fails,) = memory.fits(config, LLAMA3_8B, [("A10G", 22.5), ("L40S", 45.0)], False)
    assert fails.status == "FAIL" and "weights 15.0" in fails.found and "the smallest has 22" in fails.found and "kto_qlora" in fails.remedy
    pinned = config | {"per_device_train_batch_size": 1, "resources_per_worker": {"GPU": 1, "anyscale/accelerator_shape:4xL40S": 0.001}}
    (fits,) = memory.fits(pinned, LLAMA3_8B, [], False)
    assert fits.status == "OK" and "the smallest has 45 (L40S)" in fits.found
    assert memory.fits({"resources_per_worker": {"CPU": 1}}, None, [], False) == []
