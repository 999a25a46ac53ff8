"""What helpers.export, proof, replies, serving and card promise, on a tiny real model merged by the real command."""

import json
import shutil
from types import SimpleNamespace

import pytest
import tiny
import yaml

from helpers import card, evaluate, export, files, merging, models, proof, replies, serving
from helpers.errors import KitError


@pytest.fixture
def made(run):
    """A run that was trained: base, adapter as a checkpoint, dataset, config.yaml, run.json, train.log."""
    base = tiny.model(run.models / "tiny")
    checkpoint = tiny.adapter(base, run.output_dir / "checkpoint-4")
    history = [{"step": 4, "loss": 0.4, "rewards/margins": 0.3}]
    state = {"global_step": 4, "epoch": 1.0, "max_steps": 4, "log_history": history}
    (checkpoint / "trainer_state.json").write_text(json.dumps(state))
    name = tiny.dataset(run.datasets)
    run.config_file.write_text(yaml.safe_dump({**tiny.config(base, run.datasets), "output_dir": str(run.output_dir)}))
    run.log_file.write_text("")
    run.note(model={"name": "tiny", "path": str(base), "template": "smollm2"}, versions={"transformers": "4.52.4"},
             dataset={"name": name, "heldout_name": name, "source": "/home/someone/tiny.json", "sha256": "ab" * 32,
                      "rows": 5, "heldout_rows": 5, "accepted": 3, "rejected": 2})
    return run, base, checkpoint


def scorer_of(run, checkpoint):
    scorer = evaluate.Scorer(run.config(), checkpoint)
    return scorer, scorer.rows(evaluate.heldout(run))


def merged_by_hand(scorer, folder):
    """What a merge should give, by peft itself."""
    from peft import PeftModel

    base = scorer.load(scorer.config["model_name_or_path"])
    PeftModel.from_pretrained(base, scorer.checkpoint).merge_and_unload().save_pretrained(folder)
    scorer.tokenizer.save_pretrained(folder)
    return folder


def nothing_unfinished(run):
    return not [path.name for path in run.export.rglob(".*")]


# choosing

def test_the_best_checkpoint_is_chosen_and_the_reason_given(made):
    run, _, checkpoint = made
    folder, step, why = export.choose(run)
    assert (folder, step) == (checkpoint, 4)
    assert "rewards/margins" in why


def test_a_checkpoint_can_be_given_as_a_step_or_a_path(made):
    run, _, checkpoint = made
    assert export.choose(run, "4")[0] == checkpoint
    assert export.choose(run, str(checkpoint))[0] == checkpoint


@pytest.mark.parametrize("word", ["bset", "/nowhere", "5"])
def test_what_is_no_checkpoint_is_refused(made, word):
    with pytest.raises(KitError, match=word):
        export.choose(made[0], word)


# the adapter

def test_the_adapter_is_two_files_with_the_bases_public_name(made):
    run, _, checkpoint = made
    run.note(model={"name": "smollm2-135m-instruct"})
    folder = export.adapter(run, checkpoint)
    assert folder == run.export / "adapter" / run.name
    assert sorted(path.name for path in folder.iterdir()) == list(export.ADAPTER_FILES)
    settings = json.loads((folder / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert str(run.storage) not in (folder / "adapter_config.json").read_text()
    assert export.adapter_facts(folder)["rank"] == 4


def test_the_exported_adapter_is_the_trained_one(made):
    run, _, checkpoint = made
    trained, rows = scorer_of(run, checkpoint)
    exported, _ = scorer_of(run, export.adapter(run, checkpoint))
    assert trained.logps(rows) == exported.logps(rows)


@pytest.mark.parametrize("settings", [{"use_dora": True}, {"bias": "lora_only"}, {"modules_to_save": ["lm_head"]}])
def test_an_adapter_that_no_server_takes_beside_others_is_refused(made, tmp_path, settings):
    run, base, _ = made
    with pytest.raises(KitError, match=next(iter(settings))):
        export.adapter(run, tiny.adapter(base, tmp_path / "odd", **settings))
    assert not run.export.exists()


def test_a_full_checkpoint_has_no_adapter_to_export(made):
    run, base, _ = made
    with pytest.raises(KitError, match="full or freeze"):
        export.adapter(run, base)


def test_an_interrupted_export_leaves_the_old_one_and_nothing_half_made(made):
    run, _, checkpoint = made
    folder = export.adapter(run, checkpoint)
    before = (folder / "adapter_config.json").read_text()
    with pytest.raises(KeyboardInterrupt), files.new_folder(folder) as beside:
        (beside / "adapter_config.json").write_text("half")
        raise KeyboardInterrupt
    assert (folder / "adapter_config.json").read_text() == before
    assert nothing_unfinished(run)


def test_an_export_takes_the_place_of_an_older_one(made):
    run, base, checkpoint = made
    old = export.adapter(run, checkpoint)
    (old / "left over").touch()
    assert sorted(path.name for path in export.adapter(run, checkpoint).iterdir()) == list(export.ADAPTER_FILES)
    assert nothing_unfinished(run)


# merging

@pytest.mark.slow
def test_the_stock_command_merges_and_the_proof_accepts_it(made):
    run, _, checkpoint = made
    merged = merging.merge(run, checkpoint)
    scorer, rows = scorer_of(run, checkpoint)
    evidence = proof.prove(scorer, merged, rows).set_index("pair")
    assert evidence.loc["merged against adapter", "largest difference"] < 1e-4
    assert evidence.loc["adapter against base", "largest difference"] > 0.1
    assert models.describe(merged)["torch_dtype"] == "float32"
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in merged.iterdir())
    assert nothing_unfinished(run)


@pytest.mark.slow
def test_a_failed_merge_says_why_and_leaves_the_old_model(made, tmp_path):
    run, base, checkpoint = made
    (run.export / "merged").mkdir(parents=True)
    (run.export / "merged" / "old").touch()
    shutil.copytree(checkpoint, tmp_path / "torn")
    (tmp_path / "torn" / "adapter_model.safetensors").write_bytes(b"torn")
    with pytest.raises(KitError, match="status 1.*SafetensorError"):
        merging.merge(run, tmp_path / "torn")
    assert [path.name for path in (run.export / "merged").iterdir()] == ["old"]
    assert nothing_unfinished(run)


def test_the_merge_keeps_the_bases_dtype_and_runs_no_code_from_the_hub(made):
    run, base, checkpoint = made
    asked = merging.merge_config(run.config(), checkpoint, run.export / "merged")
    assert asked["infer_dtype"] == "float32"
    assert not asked["trust_remote_code"] and not asked["export_legacy_format"]
    assert asked["adapter_name_or_path"] == str(checkpoint)


def test_a_full_tuning_is_exported_without_an_adapter(made, tmp_path):
    run, _, _ = made
    whole = tiny.model(tmp_path / "whole", seed=3)
    asked = merging.merge_config({**run.config(), "finetuning_type": "full"}, whole, run.export / "merged")
    assert asked["model_name_or_path"] == str(whole)
    assert "adapter_name_or_path" not in asked


def test_a_full_tunings_export_is_proved_against_its_checkpoint(made, tmp_path):
    run, _, _ = made
    whole = tiny.model(tmp_path / "whole", seed=3)
    scorer, rows = scorer_of(run, whole)
    assert list(proof.prove(scorer, whole, rows)["pair"]) == ["merged against checkpoint", "checkpoint against base"]


def test_a_merge_that_cannot_fit_on_the_disk_is_refused_before(made, monkeypatch):
    run, _, checkpoint = made
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
    assert len(merging.merge_needs(run)["warnings"]) == 1
    with pytest.raises(KitError, match="of disk"):
        merging.merge(run, checkpoint)
    assert not run.export.exists()


# the proof

def test_a_merge_onto_another_base_is_caught(made, tmp_path):
    run, _, checkpoint = made
    scorer, rows = scorer_of(run, checkpoint)
    other = tiny.model(tmp_path / "other", seed=9)
    with pytest.raises(KitError, match="not what was trained"):
        proof.prove(scorer, other, rows)


def test_a_forgotten_adapter_is_caught(made):
    run, base, checkpoint = made
    scorer, rows = scorer_of(run, checkpoint)
    with pytest.raises(KitError, match="not what was trained"):
        proof.prove(scorer, base, rows)


def test_a_merge_with_another_template_is_caught(made, tmp_path):
    run, _, checkpoint = made
    scorer, rows = scorer_of(run, checkpoint)
    merged = merged_by_hand(scorer, tmp_path / "merged")
    proof.prove(scorer, merged, rows)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(merged)
    tokenizer.chat_template = tokenizer.chat_template.replace("system", "user")
    tokenizer.save_pretrained(merged)
    with pytest.raises(KitError, match="chat template writes"):
        proof.prove(scorer, merged, rows)
    tokenizer.add_special_tokens({"eos_token": "<|eot_id|>"})
    tokenizer.save_pretrained(merged)
    with pytest.raises(KitError, match="the end token is '<|eot_id|>' instead of '<|im_end|>'"):
        proof.prove(scorer, merged, rows)


def test_a_rounding_that_hides_the_training_is_said_in_words():
    import pandas

    assert "faithful" in proof.verdict(pandas.DataFrame({"mean KL": [1e-9, 0.03]}))
    assert "rounding hides" in proof.verdict(pandas.DataFrame({"mean KL": [2e-3, 1e-3]}))


def test_another_vocabulary_is_named(made):
    import torch

    with pytest.raises(KitError, match="300 and 259"):
        proof.difference([(torch.zeros(2, 300), torch.zeros(2, 259))])


def test_kl_and_agreement_of_known_logits():
    import torch

    theirs, ours = torch.tensor([[0.5, 0.5], [0.9, 0.1]]), torch.tensor([[0.25, 0.75], [0.9, 0.1]])
    figures = proof.difference([(ours.log(), theirs.log())])
    assert figures["mean KL"] == pytest.approx((0.5 * 0.693147 + 0.5 * -0.405465) / 2, abs=1e-5)
    assert figures["tokens"] == 2


def test_the_chat_template_that_is_served_writes_what_training_read(made):
    run, _, checkpoint = made
    scorer, rows = scorer_of(run, checkpoint)
    assert proof.served_as_trained(scorer, rows) == (5, 5)


def test_a_prompt_that_training_cut_is_compared_as_far_as_it_goes(made):
    run, _, checkpoint = made
    scorer = evaluate.Scorer(run.config() | {"cutoff_len": 16}, checkpoint)
    rows = scorer.rows(evaluate.heldout(run))
    assert any(proof.chat_ids(scorer.tokenizer, row) != row.prompt_ids for row in rows)
    assert proof.served_as_trained(scorer, rows) == (5, 5)
    scorer.tokenizer.chat_template = "Q: " + scorer.tokenizer.chat_template
    assert proof.served_as_trained(scorer, rows) == (0, 5)


# before and after

def test_prompts_are_chosen_once_each_and_always_the_same(made):
    run, _, checkpoint = made
    _, rows = scorer_of(run, checkpoint)
    chosen = replies.choose(rows, 3)
    assert [row.prompt for row in chosen] == [row.prompt for row in replies.choose(rows, 3)]
    assert len({row.prompt for row in replies.choose(rows, 99)}) == 4


def test_the_table_tells_what_changed_and_how_the_preference_moved(made):
    run, _, checkpoint = made
    scorer, rows = scorer_of(run, checkpoint)
    table = evaluate.rewards(rows, [-9.0, -1.0, 0, 0, 0], [-1.0, -9.0, 0, 0, 0], scorer.config)
    answers = replies.before_after(scorer, rows[1:3], table, max_new_tokens=4)
    assert answers["changed"].tolist() == (answers["before"] != answers["after"]).tolist()
    assert answers["likelier"].tolist() == ["accepted → rejected", ""]
    assert "rejected +0.80: Did nobody" in answers["rated"][0]
    assert replies.moved(table) == {"accepted → rejected": 1}


def test_the_page_stands_alone_and_escapes_every_text(tmp_path):
    import pandas

    line = {name: "<script>alert(1)</script>" for name in ("prompt", "before", "after", "likelier", "rated")}
    table = replies.page(pandas.DataFrame([{**line, "changed": True}]), tmp_path / "before_after.html", "a <b> title")
    page = (tmp_path / "before_after.html").read_text()
    assert "<script>" not in page and "<b>" not in page and page.count("&lt;script&gt;") == 5
    assert "<td>yes</td>" in table and "http" not in page
    told = replies.page(pandas.DataFrame([{**line, "prompt": "one\ntwo", "changed": True}]), tmp_path / "before_after.html", "")
    assert "<td>one\ntwo</td>" in told  # a line break, and not a backslash and an n


# serving

def test_max_lora_rank_is_the_least_that_vllm_allows_and_holds_the_adapter():
    assert [serving.rank_allowed(rank) for rank in (4, 8, 9, 200, 512)] == [8, 8, 16, 256, 512]
    with pytest.raises(KitError, match="rank is 600"):
        serving.rank_allowed(600)


@pytest.mark.slow
def test_rays_own_classes_accept_the_service(made):
    run, _, checkpoint = made
    path = serving.write(run, export.adapter(run, checkpoint), "s3://bucket/adapters/")
    content = yaml.safe_load(path.read_text())
    llm = content["applications"][0]["args"]["llm_configs"][0]
    assert llm["lora_config"]["dynamic_lora_loading_path"] == "s3://bucket/adapters"
    assert llm["engine_kwargs"]["max_lora_rank"] == 8
    from ray.serve.schema import ServeDeploySchema

    ServeDeploySchema(**content)
    try:
        from ray.llm._internal.serve.configs.server_models import LLMConfig
    except ModuleNotFoundError:  # Ray 2.57 and 2.60
        from ray.llm._internal.serve.core.configs.llm_config import LLMConfig

    LLMConfig(**llm)


def test_a_local_folder_is_no_place_that_ray_fetches_adapters_from(made):
    run, _, checkpoint = made
    with pytest.raises(KitError, match="cannot fetch"):
        serving.publish(export.adapter(run, checkpoint), "/mnt/adapters")


def test_publishing_copies_both_files_to_a_bucket_under_the_adapters_name(made, s3):
    run, _, checkpoint = made
    s3.create_dir("bucket")
    folder = export.adapter(run, checkpoint)
    assert serving.publish(folder, "s3://bucket/adapters") == f"s3://bucket/adapters/{run.name}"
    for name in export.ADAPTER_FILES:
        with s3.open_input_file(f"bucket/adapters/{run.name}/{name}") as file:
            assert file.read() == (folder / name).read_bytes()


# the card

def test_the_card_tells_data_figures_and_use_and_no_path_of_this_machine(made):
    run, _, checkpoint = made
    run.note(model={"name": "smollm2-135m-instruct"},
             evaluation={"auc": 0.9, "auc_before": 0.5, "auc_interval": [0.8, 0.95],
                         "margin": 1.2, "margin_before": 0.0, "margin_interval": [1.0, 1.4]})
    folder = export.adapter(run, checkpoint)
    text = card.write(run).read_text()
    assert text == (folder / "README.md").read_text()
    about = yaml.safe_load(text.split("---\n")[1])
    assert about["license"] == "apache-2.0"
    assert about["base_model"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert "| 0.500 | 0.900 | 0.800 to 0.950 |" in text
    assert "ab" * 32 in text and "tiny.json" in text
    assert str(run.storage) not in text and "/home/someone" not in text
    assert f"SmolLM2-135M-Instruct:{run.name}" in text


def test_an_unknown_bases_licence_is_not_made_up(made):
    text = card.text(made[0])
    assert "license" not in yaml.safe_load(text.split("---\n")[1])
    assert "see its own card" in text


def test_a_local_bases_folder_is_not_told_to_the_world(made):
    run, base, _ = made
    run.note(model={"name": str(base)})
    text = card.text(run)
    assert str(base.parent) not in text and "base_model" not in yaml.safe_load(text.split("---\n")[1])


