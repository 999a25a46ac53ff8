"""Templates, overrides and LLaMA-Factory's parser as their judge."""

import time

import pytest
import yaml

from helpers import config
from helpers.errors import KitError


@pytest.fixture
def prepared(run):
    """A run as notebooks 1 and 2 leave it."""
    run.note(model={"name": "m", "path": "/models/m", "template": "smollm2"}, dataset={"name": "d", "rows": 300})
    return run


def test_overrides_win_over_the_template_and_none_leaves_it_alone(prepared):
    resolved = config.resolve(prepared, learning_rate=3e-4, pref_beta=None)
    assert resolved["learning_rate"] == 3e-4 and resolved["pref_beta"] == 0.1


def test_the_runs_facts_are_filled_in_with_absolute_paths(prepared):
    resolved = config.resolve(prepared)
    assert resolved["output_dir"] == str(prepared.output_dir) and prepared.output_dir.is_absolute()
    assert resolved["ray_storage_path"] == str(prepared.storage) and resolved["ray_run_name"] == "first-run"


def test_a_run_without_a_dataset_names_the_notebook_to_run(run):
    run.note(model={"name": "m", "path": "/models/m", "template": "smollm2"})
    with pytest.raises(KitError, match="02_data"):
        config.resolve(run)


def test_a_missing_template_lists_those_that_are_there(prepared):
    with pytest.raises(KitError, match="kto_lora_local.yaml"):
        config.resolve(prepared, "kto_lroa.yaml")


def test_malformed_yaml_is_named_with_its_line(tmp_path):
    path = tmp_path / "t.yaml"
    path.write_text("stage: kto\nlora_rank 8\nmore: 1\n")
    with pytest.raises(KitError, match="line 3"):
        config.read_yaml(path)


@pytest.mark.slow
def test_every_wrong_key_is_named_at_once_and_the_good_file_stays(prepared):
    config.write(prepared, config.resolve(prepared))
    good = prepared.config_file.read_bytes()
    wrong = config.resolve(prepared) | {"lora_rnk": 8, "learning_rate": "5e-6", "bf16": "true", "max_steps": 2.5}
    with pytest.raises(KitError) as error:
        config.write(prepared, wrong)
    said = str(error.value)
    assert "'lora_rnk' (did you mean 'lora_rank'?)" in said and "write 5.0e-6" in said
    assert "bf16: 'true' is text" in said and "max_steps: 2.5" in said and "4 errors" in said
    assert prepared.config_file.read_bytes() == good
    assert sorted(path.name for path in prepared.folder.iterdir()) == ["config.yaml", "run.json"]


@pytest.mark.slow
@pytest.mark.parametrize("name", config.available())
def test_every_template_is_accepted_by_llamafactory_on_a_machine_without_gpu(prepared, tmp_path, name):
    path = tmp_path / name
    path.write_text(yaml.safe_dump(config.resolve(prepared, name)))
    config.check(path)


def test_all_templates_are_found():
    assert config.available() == [
        "kto_lora.yaml",
        "kto_lora_48gb.yaml",
        "kto_lora_80gb.yaml",
        "kto_lora_local.yaml",
        "kto_qlora_24gb.yaml",
    ]


@pytest.mark.slow
def test_llamafactorys_own_objection_is_passed_on(prepared, tmp_path):
    path = tmp_path / "t.yaml"
    path.write_text(yaml.safe_dump(config.resolve(prepared) | {"predict_with_generate": True}))
    with pytest.raises(KitError, match="predict_with_generate"):
        config.check(path)


def test_a_batch_of_one_and_a_cut_dataset_are_traps(prepared):
    resolved = config.resolve(prepared) | {"per_device_train_batch_size": 1, "max_samples": 100, "output_dir": "saves"}
    said = " ".join(config.traps(resolved, prepared.record()))
    assert "reference point" in said and "first 100 of 300" in said and "output_dir is relative" in said
    assert config.traps(config.resolve(prepared), prepared.record()) == []


def test_a_resolved_config_is_refused_within_seconds_once_the_run_was_launched(prepared):
    prepared.log_file.touch()
    started = time.monotonic()
    with pytest.raises(KitError, match="in use"):
        config.write(prepared, config.resolve(prepared))
    assert time.monotonic() - started < 1


def test_eval_steps_alone_asks_for_the_held_out_rows_in_batches_as_in_training(prepared):
    prepared.note(dataset={"name": "d", "rows": 300, "heldout_name": "d_heldout"})
    resolved = config.resolve(prepared, eval_steps=5)
    assert resolved["eval_dataset"] == "d_heldout" and resolved["eval_strategy"] == "steps"
    assert resolved["per_device_eval_batch_size"] == resolved["per_device_train_batch_size"]
    own = {"eval_dataset": "mine", "eval_strategy": "epoch", "per_device_eval_batch_size": 2}
    assert own.items() <= config.resolve(prepared, eval_steps=5, **own).items()
    assert "eval_dataset" not in config.resolve(prepared, eval_steps=5, val_size=0.1)
    assert not [key for key in config.resolve(prepared) if key.startswith("eval")]


def test_eval_steps_without_held_out_rows_is_an_error(prepared):
    with pytest.raises(KitError, match="nothing was held out"):
        config.resolve(prepared, eval_steps=5)
