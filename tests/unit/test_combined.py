"""What intervals, sampling, checkpoint scoring and combined adapters promise, on the tiny model with adapters made by peft."""

import json
from dataclasses import dataclass

import numpy
import pandas
import pytest
import tiny
import yaml
from sklearn.metrics import roc_auc_score

from helpers import chat_template, evaluate, export, files, proof, scores
from helpers.config import write
from helpers.errors import KitError


@pytest.fixture
def started(run, tmp_path):
    """(run, config, checkpoint, sft): a run whose training started from an rsLoRA adapter of other targets and rank."""
    base, name = tiny.model(run.models / "tiny"), tiny.dataset(run.datasets)
    sft = tiny.adapter(base, tmp_path / "sft", r=3, use_rslora=True, target_modules=["q_proj", "down_proj"])
    checkpoint = tiny.adapter(base, tmp_path / "kto", alpha_pattern={"v_proj": 3}, rank_pattern={"v_proj": 2})
    config = tiny.config(base, run.datasets) | {"adapter_name_or_path": str(sft), "create_new_adapter": True}
    run.config_file.write_text(yaml.safe_dump(config))
    run.note(model={"name": "org/tiny"}, dataset={"name": name, "heldout_name": name})
    return run, config, checkpoint, sft


def test_two_adapters_combined_into_one_answer_as_the_one_upon_the_other(started):
    run, config, checkpoint, _ = started
    scorer = evaluate.Scorer(config, checkpoint)
    folder = export.adapter(run, checkpoint)
    assert export.adapter_facts(folder)["rank"] == 7
    table = proof.prove(scorer, folder, scorer.rows(run.record()["dataset"]["name"]))
    assert table["largest difference"][0] < 1e-4 < 0.1 < table["largest difference"][1]


def test_an_adapter_without_the_one_it_started_from_is_caught(started):
    run, config, checkpoint, _ = started
    scorer = evaluate.Scorer(config, checkpoint)
    with pytest.raises(KitError, match="not what was trained"):
        proof.prove(scorer, checkpoint, scorer.rows(run.record()["dataset"]["name"]))


@dataclass
class Saved:
    step: int
    path: object
    complete: bool = True


def test_checkpoints_are_scored_evenly_spread_each_as_if_loaded_alone(started, tmp_path):
    run, config, _, _ = started
    made = [Saved(step, tiny.adapter(config["model_name_or_path"], tmp_path / str(step), scale=step / 20)) for step in range(1, 7)]
    table = evaluate.score_checkpoints(run, made, at_most=3)
    assert list(table["step"]) == [1, 4, 6]
    assert list(table.columns) == ["step", "auc", "auc_low", "auc_high", "margin", "margin_low", "margin_high",
                                   "worse_low", "worse_high"]
    scorer = evaluate.Scorer(config, made[-1].path)
    rows = scorer.rows(run.record()["dataset"]["name"])
    last = evaluate.accuracy(evaluate.rewards(rows, scorer.logps(rows), scorer.logps(rows, tuned=False), config))
    assert table["margin"].iloc[-1] == pytest.approx(last["margin"], abs=1e-4)
    assert table.attrs["sample"] == "5 of 5 held-out rows"
    best = table.loc[table["auc"].idxmax()]
    assert best["worse_low"] == best["worse_high"] == 0


def test_the_area_is_scikit_learns_with_ties_too():
    draw = numpy.random.default_rng(0)
    table = pandas.DataFrame({"reward": draw.integers(0, 9, 300), "label": draw.random(300) < 0.4, "prompt": range(300)})
    assert scores.accuracy(table)["auc"] == pytest.approx(roc_auc_score(table["label"], table["reward"]))


def test_the_interval_of_two_hundred_thousand_rows_is_narrow():  # test_scores has what it may cost
    draw = numpy.random.default_rng(0)
    label = draw.random(200_000) < 0.5
    table = pandas.DataFrame({"reward": draw.normal(size=200_000) + label, "label": label, "prompt": range(200_000)})
    figures = scores.accuracy(table)
    assert 0.755 < figures["auc_interval"][0] < figures["auc_interval"][1] < 0.765


def test_a_sample_takes_whole_prompts_and_is_always_the_same():
    records = [{"_system": "", "_prompt": str(n // 3)} for n in range(3000)]
    some = chat_template.sample(records, 100)
    assert 100 <= len(some) < 103 and some == chat_template.sample(records, 100)
    assert {line["_prompt"] for line in some} & {line["_prompt"] for line in records if line not in some} == set()


ON_TOP = {"adapter_name_or_path": "a/b", "create_new_adapter": True}


@pytest.mark.parametrize(("settings", "kinds"), [
    ({}, []), ({"use_rslora": True}, []), ({"use_dora": True}, ["adapter"]), ({"additional_target": "lm_head"}, ["adapter"]),
    ({"add_tokens": "<a>"}, ["adapter"]), ({"finetuning_type": "full"}, ["adapter"]), ({"quantization_bit": 4}, ["exact"]),
    ({"pissa_init": True}, ["reference"]), ({"rope_scaling": "linear"}, ["reference"]),
    ({"add_tokens": "<a>", "quantization_bit": 4}, ["adapter", "exact", "merge"]),
    ({"add_tokens": "<a>", "additional_target": "lm_head"}, ["adapter", "merge"]),
    ({"add_tokens": "<a>", "finetuning_type": "full"}, ["adapter", "merge"]),
    ({"add_tokens": "<a>", "additional_target": "lm_head,embed_tokens,norm"}, ["adapter"]),
    (ON_TOP | {"deepspeed": "ds_z3.json"}, ["reference"]),
    (ON_TOP | {"deepspeed": {"zero_optimization": {"stage": 3}}}, ["reference"]),
    (ON_TOP | {"deepspeed": {"zero_optimization": {"stage": 2}}}, []),
    (ON_TOP | {"quantization_bit": 4}, ["exact", "reference"]),
])
def test_what_a_configuration_rules_out_is_said_before_training(settings, kinds):
    found = export.unservable({"model_name_or_path": "org/model", **settings})
    assert [finding.kind for finding in found] == kinds


def test_a_base_that_is_quantised_itself_is_refused_before_training_by_its_folder_or_hub_id(run, monkeypatch):
    quantised = json.dumps({"quantization_config": {"quant_method": "gptq"}})
    monkeypatch.setattr(files, "from_hub", lambda name, file: (200, quantised) if name == "org/model-gptq" else (404, ""))
    assert export.unservable({"model_name_or_path": "org/model"}) == []
    (run.models / "gptq").mkdir(parents=True)
    (run.models / "gptq" / "config.json").write_text(quantised)
    for name in ("org/model-gptq", str(run.models / "gptq")):
        with pytest.raises(KitError, match=r"quantised \(gptq\)(.|\n)*quantization_bit: 4"):
            write(run, {"model_name_or_path": name})
    assert not run.config_file.exists()
