"""A second round on new thumbs, on top of a first one: through the command line, to the replies that are served."""

import contextlib
import csv
import json
import shutil
import signal
import subprocess
import sys

import pytest
import tiny
import yaml
from test_serve import free_port
from typer.testing import CliRunner

from feedback import check, find, register
from helpers import evaluate, export, files, proof, rounds, runs
from helpers.errors import KitError
from helpers.profiles import ROOT
from kto import cli, pipeline


@pytest.fixture
def first(run):
    """An earlier run as its training leaves it: base, checkpoint, config, record."""
    base, name = tiny.model(run.models / "tiny"), tiny.dataset(run.datasets)
    checkpoint = tiny.adapter(base, run.output_dir / "checkpoint-4")
    history = [{"step": 4, "loss": 0.4, "rewards/margins": 0.3}]
    (checkpoint / "trainer_state.json").write_text(json.dumps({"global_step": 4, "max_steps": 4, "log_history": history}))
    config = tiny.config(base, run.datasets) | {"output_dir": str(run.output_dir), "adapter_name_or_path": "org/sft",
                                                "create_new_adapter": True}
    run.config_file.write_text(yaml.safe_dump(config))
    run.note(model={"name": "tiny", "path": str(base), "template": "smollm2"}, dataset={"name": name, "heldout_name": name})
    return run


@pytest.fixture
def second(first):
    """A run of the same storage as notebook 1 leaves it."""
    run = runs.start("local", str(first.storage), "second")
    run.note(model=first.record()["model"])
    return run


def test_a_second_round_starts_on_the_first_ones_best_above_the_adapters_that_it_started_from(first, second):
    rounds.held_again(second, "first-run")
    best = first.output_dir / "checkpoint-4"
    expected = {"adapter_name_or_path": f"org/sft,{best}", "create_new_adapter": True}
    assert rounds.on_top_of(second, "first-run") == rounds.on_top_of(second, str(first.folder)) == expected
    assert rounds.on_top_of(second, str(best)) == expected | {"adapter_name_or_path": str(best)}
    assert rounds.on_top_of(second, "") == {}


@pytest.mark.parametrize(("start_from", "says"), [
    ("frist-run", "did you mean 'first-run'"), ("/nowhere/at-all", "an adapter's folder"), ("second", "never trained")])
def test_what_is_nothing_to_start_from_is_wrong_usage_and_starts_nothing(first, second, monkeypatch, start_from, says):
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a process was started"))
    words = ["run", "--storage", str(first.storage), "--run-name", "third", "--start-from", start_from]
    done = CliRunner().invoke(cli.app, words)
    assert done.exit_code == 2 and says in done.stderr and "--start-from" in done.stderr, done.stderr
    assert not (first.storage / "third").exists()


def test_a_run_does_not_start_from_another_base_or_a_full_tuning_or_untested_on_what_was_held_out(first, second):
    with pytest.raises(KitError, match="02_data with start_from='first-run'"):
        rounds.on_top_of(second, "first-run")
    rounds.held_again(second, "first-run")
    second.note(model={"name": "other"})
    with pytest.raises(KitError, match="trained on tiny, this run's model is other"):
        rounds.on_top_of(second, "first-run")
    for name in export.ADAPTER_FILES:
        (first.output_dir / "checkpoint-4" / name).unlink()
    tiny.model(first.output_dir / "checkpoint-4")
    with pytest.raises(KitError, match="has no adapter"):
        rounds.adapters(first)


@pytest.mark.parametrize(("change", "says"), [
    ({"hidden_size": 64}, "proj has 64 inputs in the adapter, 32 in the model"), ({"num_hidden_layers": 3}, "layers.2.*no such layer"),
    ({"peft_type": "IA3"}, "of the kind IA3"), ({"weights": "adapter_model.bin"}, "no adapter_model.safetensors"), ({}, "")])
def test_an_adapter_that_does_not_fit_the_base_is_refused_before_the_training(first, second, tmp_path, change, says):
    shape = {key: value for key, value in change.items() if key in ("hidden_size", "num_hidden_layers")}
    other = tiny.adapter(tiny.model(tmp_path / "base", **shape), tmp_path / "adapter")
    if kind := change.get("peft_type"):
        (other / "adapter_config.json").write_text(json.dumps({"peft_type": kind}))
    if name := change.get("weights"):
        (other / "adapter_model.safetensors").rename(other / name)
    with pytest.raises(KitError, match=says) if says else contextlib.nullcontext():
        assert rounds.on_top_of(second, str(other)) == {"adapter_name_or_path": str(other), "create_new_adapter": True}


def test_what_all_earlier_rounds_held_out_is_held_out_again_wherever_the_storage_lies(first, second, tmp_path):
    first.note(earlier_heldout={"zeroth": str(first.datasets / "old.jsonl")})
    first.config_file.write_text(yaml.safe_dump({"output_dir": str(first.output_dir)}))
    there = files.data_file(first.datasets, first.record()["dataset"]["heldout_name"])
    assert rounds.held_again(second, "first-run") == [first.datasets / "old.jsonl", there]
    second.config_file.write_text(yaml.safe_dump({"output_dir": str(second.output_dir)}))
    first.storage.rename(tmp_path / "moved")
    moved_to = runs.of_folder(tmp_path / "moved" / "second")
    assert rounds.earlier_heldout(moved_to)["first-run"] == moved_to.datasets / there.name


def test_held_out_prompts_stay_out_of_the_training_with_any_share_and_seed(tmp_path):
    thumbs = [{"prompt": f"{i % 30}?", "reply": f"reply {i}", "label": i % 2 == 0} for i in range(90)]
    (tmp_path / "d.json").write_text(json.dumps(thumbs))
    checked = check.check(find.find(str(tmp_path / "d.json"), tmp_path))
    earlier = register.split(checked, 0.2, seed=1)
    facts = register.register(checked, earlier, tmp_path / "datasets")
    again = check.prompts_in([files.data_file(tmp_path / "datasets", facts["heldout_name"])])
    assert set(again.tolist()) == set(checked.prompts[earlier].tolist())
    for share, seed in ((0.2, 2), (0.5, 3)):
        held = register.split(checked, share, seed, again)
        assert (held & earlier).sum() == earlier.sum() < held.sum()
    assert (register.split(checked, 0, 1, again) == earlier).all()


def test_both_held_out_sets_are_measured_against_the_bare_base_before_and_after_the_round(first, second, tmp_path):
    plain = yaml.safe_load(first.config_file.read_text()) | {"adapter_name_or_path": None}
    first.config_file.write_text(yaml.safe_dump(plain))
    rounds.held_again(second, "first-run")
    base, own = first.models / "tiny", tiny.dataset(first.datasets, [(f"{i}?", "no " * i, i % 2 == 0) for i in range(6)])
    second.config_file.write_text(yaml.safe_dump(plain | rounds.on_top_of(second, "first-run") | {"output_dir": str(second.output_dir)}))
    checkpoint = tiny.adapter(base, second.output_dir / "checkpoint-4", target_modules=["o_proj"])
    shutil.copy(first.output_dir / "checkpoint-4" / "trainer_state.json", checkpoint)
    second.note(dataset={"heldout_name": own})
    old, new = rounds.measure(second)
    assert (old["rows of"], old["rows"], new["rows of"], new["rows"]) == ("first-run", 5, "second", 6)
    scorer = evaluate.Scorer(plain, first.output_dir / "checkpoint-4")
    rows = scorer.rows(first.record()["dataset"]["heldout_name"])
    then = evaluate.accuracy(evaluate.rewards(rows, scorer.logps(rows), scorer.logps(rows, tuned=False), plain))
    assert (old["auc_before"], old["margin_before"]) == pytest.approx((then["auc"], then["margin"]), abs=1e-4)
    assert old["margin"] != pytest.approx(old["margin_before"], abs=1e-2)
    assert rounds.measure(first) == []


def test_what_was_forgotten_is_said_in_words():
    line = {"rows of": "first-run", "rows": 60, "auc_before": 0.9, "auc": 0.7, "margin_before": 1.0, "margin": 0.2}
    assert "first-run (60): area 0.900 before this round, 0.700 after" in rounds.words([line | {"change_low": -0.3, "change_high": -0.1}])
    assert rounds.words([line | {"change_low": -0.3, "change_high": -0.1}]).endswith("forgotten in part")
    assert rounds.words([line | {"change_low": -0.3, "change_high": 0.1}]).endswith("not clearly changed")
    assert rounds.words([]) == ""


# through the six notebooks

COMMON = ["-p", "learning_rate=0.03", "-p", "max_steps=4", "-p", "save_steps=2", "-p", "eval_steps=2", "-p", "logging_steps=1",
          "-p", "ray_num_workers=1", "-p", "samples=2"]


def kto(storage, name, *words):
    done = subprocess.run([sys.executable, "-m", "kto", "run", "--storage", str(storage), "--run-name", name, *COMMON, *words],
                          capture_output=True, text=True, cwd=ROOT, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    return runs.of_folder(storage / name), done.stdout


def new_thumbs(first, file):
    """Rows with other votes, some of them to prompts that the first run held out."""
    held = files.data_file(first.datasets, first.record()["dataset"]["heldout_name"])
    trained = files.data_file(first.datasets, first.record()["dataset"]["name"])
    with file.open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["prompt", "response", "rating"])
        for path, some in ((held, 10), (trained, 50)):
            rows = [row for row in map(json.loads, path.read_text().splitlines()) if len(row["messages"]) == 2][:some]
            writer.writerows([*(turn["content"] for turn in row["messages"]), "down" if row["label"] else "up"] for row in rows)
    return file


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """(first run, second run on top of it with new thumbs, what the command said of the second)."""
    storage = tmp_path_factory.mktemp("rounds") / "storage"
    base = tiny.model(storage / "models" / "tiny")
    first, _ = kto(storage, "first-run", "-p", f"model_name_or_path={base}", "-p", "template=smollm2",
                   "-p", 'overrides={"use_rslora": true}')
    thumbs = new_thumbs(first, storage.parent / "new_thumbs.csv")
    return first, *kto(storage, "second", "--start-from", "first-run", "-p", f"dataset={thumbs}")


@pytest.mark.slow
def test_rewards_and_log_probabilities_are_those_that_the_trainer_itself_logged(two):
    first, second, _ = two
    config, checkpoint = second.config(), second.output_dir / "checkpoint-4"
    assert evaluate.earlier_adapters(config) == [str(export.choose(first)[0])]
    history = json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]
    logged = next(line for line in history if line["step"] == 4 and "eval_logps/chosen" in line)
    scorer = evaluate.Scorer(config, checkpoint)
    rows = scorer.rows(second.record()["dataset"]["heldout_name"])
    policy, reference = scorer.logps(rows), scorer.logps(rows, tuned=False)
    for side, wanted in (("chosen", True), ("rejected", False)):
        picked = [i for i, row in enumerate(rows) if row.label == wanted]
        assert sum(policy[i] for i in picked) / len(picked) == pytest.approx(logged[f"eval_logps/{side}"], rel=1e-5)
        reward = sum(config["pref_beta"] * (policy[i] - reference[i]) for i in picked) / len(picked)
        assert reward == pytest.approx(logged[f"eval_rewards/{side}"], abs=1e-4)
    without = evaluate.Scorer({**config, "adapter_name_or_path": None}, checkpoint)
    assert max(abs(a - b) for a, b in zip(policy, without.logps(rows), strict=True)) > 0.5


@pytest.mark.slow
def test_merged_model_and_combined_adapter_are_proved_and_the_adapter_is_served_as_trained(two):
    from openai import OpenAI

    _, second, _ = two
    made = second.record()["export"]
    assert made["logit_difference"] < 1e-3
    assert export.adapter_facts(second.export / "adapter" / "second")["rank"] == 16
    scorer = evaluate.Scorer(second.config(), export.choose(second)[0])
    rows = scorer.rows(second.record()["dataset"]["heldout_name"])
    alone = proof.prove(scorer, second.export / "adapter" / "second", rows)
    assert alone["largest difference"][0] < 1e-3 < 0.05 < alone["largest difference"][1]
    port = free_port()
    server = subprocess.Popen([sys.executable, "-m", "kto", "serve", str(second.folder), "--port", str(port)], cwd=ROOT,
                              stdout=subprocess.PIPE, text=True)
    try:
        client = OpenAI(base_url=server.stdout.readline().strip(), api_key="none", max_retries=0)
        asked = [row for row in rows if len(row.messages) == 1][:4]

        def said(model):
            return [client.chat.completions.create(model=model, messages=row.messages, temperature=0, max_tokens=12)
                    .choices[0].message.content for row in asked]

        assert [text.strip() for text in said("tiny:second")] == scorer.replies(asked, max_new_tokens=12)
        assert said("tiny:second") != said("tiny:first-run") != said("tiny")
    finally:
        server.send_signal(signal.SIGTERM)
        assert server.wait(240) == 0


@pytest.mark.slow
def test_no_round_trains_on_what_the_first_held_out_and_both_sets_are_reported(two):
    first, second, said = two
    held = set(check.prompts_in(list(rounds.heldout_before(first).values())).tolist())
    own = {part: set(check.prompts_in([files.data_file(second.datasets, second.record()["dataset"][part])]).tolist())
           for part in ("name", "heldout_name")}
    assert held & own["heldout_name"] and not held & own["name"]
    measured = {line["rows of"]: line for line in second.record()["rounds"]}
    assert measured["first-run"]["rows"] == first.record()["dataset"]["heldout_rows"]
    assert measured["second"]["rows"] == second.record()["dataset"]["heldout_rows"]
    assert measured["first-run"]["auc_before"] == pytest.approx(first.record()["evaluation"]["auc"], abs=5e-3)
    assert "held-out rows of first-run" in said and "held-out rows of first-run" in (second.export / "README.md").read_text()
    assert rounds.words(second.record()["rounds"]) == pipeline.summary(second)["rounds"]
