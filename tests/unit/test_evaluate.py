"""What helpers.evaluate and helpers.evaluate.encoding promise, on a tiny real model."""

import math
import types

import pandas
import pytest
import tiny

from helpers import evaluate
from helpers.chat_template import Row
from helpers.errors import KitError


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Base model, adapter, dataset and config, made once."""
    folder = tmp_path_factory.mktemp("tiny")
    base = tiny.model(folder / "base")
    name = tiny.dataset(folder / "datasets")
    return {"base": base, "adapter": tiny.adapter(base, folder / "adapter"), "name": name, "folder": folder,
            "config": tiny.config(base, folder / "datasets")}


@pytest.fixture(scope="module")
def scorer(place):
    return evaluate.Scorer(place["config"], place["adapter"])


@pytest.fixture(scope="module")
def rows(scorer, place):
    return scorer.rows(place["name"])


def table(rewards, labels):
    return pandas.DataFrame({"reward": rewards, "label": labels, "prompt": range(len(rewards))})


def test_log_probabilities_are_those_of_llamafactorys_trainer(scorer, rows):
    import torch
    from llamafactory.train.trainer_utils import get_batch_logps

    for row, logp in zip(rows, scorer.logps(rows), strict=True):
        ids = torch.tensor([row.prompt_ids + row.reply_ids])
        labels = torch.tensor([[-100] * len(row.prompt_ids) + row.reply_ids])
        with torch.inference_mode():
            expected, tokens = get_batch_logps(scorer.model(ids).logits, labels)
        assert logp == pytest.approx(float(expected), abs=1e-3)
        assert len(row.reply_ids) == int(tokens)


@pytest.mark.slow
def test_rows_are_the_very_tokens_that_training_reads(place, rows, tmp_path, monkeypatch):
    monkeypatch.setenv("USE_RAY", "0")
    from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
    from llamafactory.hparams import get_train_args
    from llamafactory.model import load_tokenizer

    arguments = {**place["config"], "dataset": place["name"], "do_train": True, "output_dir": str(tmp_path / "out"),
                 "cache_dir": str(tmp_path), "overwrite_cache": True, "report_to": "none"}
    model_args, data_args, training_args, _, _ = get_train_args(arguments)
    tokenizer = load_tokenizer(model_args)["tokenizer"]
    template = get_template_and_fix_tokenizer(tokenizer, data_args)
    made = get_dataset(template, model_args, data_args, training_args, stage="kto", tokenizer=tokenizer)
    dataset = made["train_dataset"]
    assert [row.prompt_ids + row.reply_ids for row in rows] == dataset["input_ids"]
    assert [[-100] * len(row.prompt_ids) + row.reply_ids for row in rows] == dataset["labels"]
    assert [row.label for row in rows] == dataset["kto_tags"]


def test_rows_keep_prompt_reply_and_label(rows):
    assert [(row.prompt, row.reply, row.label) for row in rows] == tiny.REPLIES


def test_a_long_row_is_cut_to_the_cutoff(place):
    name = tiny.dataset(place["folder"] / "long", [("why? " * 100, "because " * 50, True), ("a", "b", False)])
    config = {**place["config"], "dataset_dir": str(place["folder"] / "long"), "cutoff_len": 64}
    long = evaluate.Scorer(config, place["adapter"]).rows(name)[0]
    assert len(long.prompt_ids) + len(long.reply_ids) == 64


def test_batching_and_padding_do_not_change_a_log_probability(scorer, rows):
    together = scorer.logps(rows)
    alone = [scorer.logps([row])[0] for row in rows]
    assert together == pytest.approx(alone, abs=1e-4)


def test_batches_hold_every_row_once_and_keep_to_the_limit():
    rows = [Row([], "", True, [1] * n, [1]) for n in (5, 90, 30, 31, 8, 200)]
    cut = evaluate.batches(rows, 100)
    assert sorted(i for batch in cut for i in batch) == list(range(6))
    assert cut[0] == [5]  # longer than the limit: by itself
    assert all(len(batch) * (len(rows[batch[0]].prompt_ids) + 1) <= 100 for batch in cut[1:])


def test_with_the_adapter_off_every_reward_is_exactly_zero(place):
    scorer = evaluate.Scorer(place["config"], place["adapter"])
    rows = scorer.rows(place["name"])
    off = scorer.logps(rows, tuned=False)
    table = evaluate.rewards(rows, off, off, place["config"])
    figures = evaluate.accuracy(table)
    assert (table["reward"] == 0).all()
    assert (figures["auc"], figures["margin"]) == (0.5, 0.0)


def test_an_untrained_adapter_has_rewards_of_zero(place, tmp_path):
    untrained = tiny.adapter(place["base"], tmp_path / "untrained", scale=0)
    scorer = evaluate.Scorer(place["config"], untrained)
    rows = scorer.rows(place["name"])
    table = evaluate.rewards(rows, scorer.logps(rows), scorer.logps(rows, tuned=False), place["config"])
    assert table["reward"].abs().max() == 0


def test_reward_is_beta_times_the_log_ratio(scorer, rows):
    made = evaluate.rewards(rows, [-1.0] * 5, [-3.0] * 5, {"pref_beta": 0.2})
    assert made["reward"].tolist() == pytest.approx([0.4] * 5)
    assert made["tokens"].tolist() == [len(row.reply_ids) for row in rows]


def test_the_adapter_changes_rewards(scorer, rows):
    policy, reference = scorer.logps(rows), scorer.logps(rows, tuned=False)
    assert all(abs(p - r) > 1e-3 for p, r in zip(policy, reference, strict=True))


def test_the_checkpoint_of_a_full_tuning_is_the_policy_and_the_base_the_reference(place, scorer, rows, tmp_path):
    other = tiny.model(tmp_path / "full", seed=5)
    full = evaluate.Scorer({**place["config"], "finetuning_type": "full"}, other)
    assert not full.is_adapter
    assert full.logps(rows, tuned=False) == pytest.approx(scorer.logps(rows, tuned=False))
    assert full.logps(rows) != pytest.approx(full.logps(rows, tuned=False), abs=0.1)


def test_logits_are_those_that_predict_the_reply(scorer, rows):
    import torch

    logits = scorer.logits(rows[0])
    summed = torch.log_softmax(logits, -1).gather(1, torch.tensor(rows[0].reply_ids).unsqueeze(1)).sum()
    assert float(summed) == pytest.approx(scorer.logps(rows[:1])[0], abs=1e-4)


def test_a_reply_is_the_same_alone_and_in_a_batch(scorer, rows):
    together = scorer.replies(rows, max_new_tokens=6)
    assert together == [scorer.replies([row], max_new_tokens=6)[0] for row in rows]
    assert together != scorer.replies(rows, tuned=False, max_new_tokens=6)
    assert scorer.replies([]) == []  # samples: 0
    with pytest.raises(KitError, match="max_new_tokens is 0"):
        scorer.replies(rows, max_new_tokens=0)


def test_another_model_finds_room_on_a_gpu_that_holds_only_one():
    went = []
    model, reference = (types.SimpleNamespace(to=lambda where, name=name: went.append((name, where))) for name in "mr")
    held = types.SimpleNamespace(device="cuda", model=model, reference=reference)
    with evaluate.Scorer.set_aside(held):
        assert went == [("m", "cpu"), ("r", "cpu")]
    assert went[2:] == [("m", "cuda"), ("r", "cuda")]


def test_area_and_margin_of_known_rewards():
    figures = evaluate.accuracy(table([3.0, 1.0, 2.0, 0.0], [True, True, False, False]))
    assert figures["auc"] == pytest.approx(0.75)  # three of the four pairs are in order
    assert figures["margin"] == pytest.approx(1.0)
    assert (figures["accepted"], figures["rejected"]) == (2, 2)


def test_intervals_are_seeded_and_hold_the_estimate():
    some = table([math.sin(i) + (i % 3 == 0) for i in range(60)], [i % 3 == 0 for i in range(60)])
    first, second = evaluate.accuracy(some), evaluate.accuracy(some)
    assert first == second
    assert first["auc_interval"][0] < first["auc"] < first["auc_interval"][1]
    assert first["margin_interval"][0] < first["margin"] < first["margin_interval"][1]


@pytest.mark.parametrize("rewards, labels, words", [
    ([1.0, 2.0], [True, True], "0 rejected"),
    ([1.0, math.nan], [True, False], "1 of 2 values are not finite"),
])
def test_figures_are_refused_where_they_would_mean_nothing(rewards, labels, words):
    with pytest.raises(KitError, match=words):
        evaluate.accuracy(table(rewards, labels))


def test_an_unknown_dataset_is_named_with_those_there_are(scorer, place):
    with pytest.raises(KitError, match=place["name"]):
        scorer.rows("tinny")


def test_a_row_that_training_would_drop_is_an_error(place):
    folder = place["folder"] / "broken"
    name = tiny.dataset(folder, [("a", "b", True), ("c", "d", "yes")])
    with pytest.raises(KitError, match="drop 1 of the 2 rows"):
        evaluate.Scorer({**place["config"], "dataset_dir": str(folder)}, place["adapter"]).rows(name)


def test_an_adapter_of_another_base_is_refused(place, tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    wide = tiny.model(tmp_path / "wide")
    LlamaForCausalLM(LlamaConfig(vocab_size=300, hidden_size=64, intermediate_size=64, num_hidden_layers=2,
                                 num_attention_heads=4, num_key_value_heads=2)).save_pretrained(wide)
    with pytest.raises(KitError, match="does not fit the base model"):
        evaluate.Scorer({**place["config"], "model_name_or_path": str(wide)}, place["adapter"]).model  # noqa: B018, it is loaded when asked


def test_a_folder_without_weights_is_refused(place, tmp_path):
    with pytest.raises(KitError, match="nothing to load"):
        evaluate.Scorer(place["config"], tmp_path)


def test_an_unknown_template_is_refused(place):
    with pytest.raises(KitError, match="smolm2"):
        evaluate.Scorer({**place["config"], "template": "smolm2"}, place["adapter"])


def test_a_run_that_held_nothing_out_is_told_so(run):
    run.note(dataset={"name": "x", "heldout_name": ""})
    with pytest.raises(KitError, match="nothing was held out"):
        evaluate.heldout(run)
