"""Going on from a checkpoint: the config that does it, and what would not be the same is said before it is launched."""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from helpers import checkpoints, files, resume, runs
from helpers.errors import KitError
from helpers.profiles import ROOT

FIXTURE = Path(__file__).parents[1] / "fixtures" / "trial"
TRIAL = "TorchTrainer_8f6d0_00000_0_2026-11-23_00-55-21"


@pytest.fixture
def trained(run):
    """A run with the recorded trial, the config it was launched with, and a dataset of its own."""
    shutil.copytree(FIXTURE, run.folder, dirs_exist_ok=True)
    launched = json.loads((run.folder / TRIAL / "params.json").read_text())["train_loop_config"]["args"]
    launched |= {"dataset_dir": str(run.datasets), "output_dir": str(run.output_dir)}
    run.config_file.write_text(yaml.safe_dump(launched))
    run.datasets.mkdir()
    (run.datasets / "dataset_info.json").write_text('{"train": {"file_name": "train.json"}}')
    (run.datasets / "train.json").write_text("[]")
    run.note(dataset={"name": "train", "sha256": "of the source", "train_sha256": hashlib.sha256(b"[]").hexdigest()})
    return run


@pytest.fixture
def found(trained):
    return checkpoints.find(trained)


def test_recovering_changes_the_path_and_the_output_folder_only(trained, found):
    before = trained.config_file.read_text()
    written = yaml.safe_load(resume.write(trained, found[1]).read_text())
    launched = yaml.safe_load(before)
    changed = {key for key in written | launched if written.get(key) != launched.get(key)}
    assert changed == {"resume_from_checkpoint", "output_dir"}
    assert written["resume_from_checkpoint"] == str(found[1].path)
    assert trained.config_file.read_text() == before


def test_the_output_folder_is_a_fresh_one(trained, found):
    assert resume.fresh_output_dir(trained).name == "output-2"
    (trained.folder / "output-2").mkdir()
    assert yaml.safe_load(resume.write(trained, found[0]).read_text())["output_dir"].endswith("output-3")


def test_an_incomplete_checkpoint_is_not_resumed_from(trained, found):
    (Path(found[1].path) / "optimizer.pt").unlink()
    with pytest.raises(KitError, match="step 20 cannot be resumed from: no optimiser"):
        resume.write(trained, checkpoints.find(trained)[1])


def test_a_finished_run_has_nothing_left_until_it_is_extended(trained, found):
    with pytest.raises(KitError, match="set max_steps above 30"):
        resume.write(trained, found[2])
    assert yaml.safe_load(resume.write(trained, found[2], max_steps=60).read_text())["max_steps"] == 60


def test_a_run_that_counts_epochs_ends_where_its_trainer_planned(trained, found):
    epochs = {key: value for key, value in trained.config().items() if key != "max_steps"}
    assert found[2].planned_steps == 30
    with pytest.raises(KitError, match="the run ends at 30"):
        resume.config(epochs, found[2], trained.folder / "output-2")
    assert resume.config(epochs, found[2], trained.folder / "output-2", num_train_epochs=3.0)["num_train_epochs"] == 3.0


@pytest.mark.parametrize("key, value, effect", [
    ("learning_rate", 1e-5, "it is ignored"), ("lr_scheduler_type", "linear", "jumps to another schedule"),
    ("max_steps", 60, "jumps to another schedule"), ("per_device_train_batch_size", 2, "rows come in another order"),
    ("pref_beta", 0.2, "objective"), ("lora_rank", 16, "do not fit"),
    ("cutoff_len", 128, "rows are not what they were")])
def test_a_config_changed_meanwhile_is_refused_by_name_and_effect(trained, found, key, value, effect):
    edited = trained.config() | {key: value}
    trained.config_file.write_text(yaml.safe_dump(edited))
    with pytest.raises(KitError, match=f"{key}: {value} .*{effect}"):
        resume.write(trained, found[0])


def test_a_copy_out_of_a_bucket_is_compared_with_what_its_own_launch_had(trained, found, tmp_path):
    copied = replace(found[0], path=Path(shutil.copytree(found[0].path, tmp_path / "fetched")))
    edited = trained.config() | {"pref_beta": 0.2}
    trained.config_file.write_text(yaml.safe_dump(edited))
    assert [finding.kind for finding in resume.check(trained, edited, copied)] == ["pref_beta"]


def test_a_change_that_is_meant_goes_through_unless_the_weights_would_not_fit(trained, found):
    assert resume.write(trained, found[0], pref_beta=0.2)
    with pytest.raises(KitError, match="lora_rank"):
        resume.write(trained, found[0], lora_rank=16)


def test_keys_that_change_nothing_may_differ(trained, found):
    others = {"save_steps": 5, "report_to": "mlflow", "ray_storage_path": "/x"}
    assert resume.check(trained, trained.config() | others, found[0]) == []


def test_another_world_size_is_refused(trained, found):
    trained.config_file.write_text(yaml.safe_dump(trained.config() | {"ray_num_workers": 4}))
    findings = resume.check(trained, trained.config(), found[0])
    assert [finding.kind for finding in findings] == ["ray_num_workers", "world size"]
    assert all(finding.status == "FAIL" for finding in findings)


def test_the_hash_that_notebook_2_records_is_the_one_that_a_resume_compares(trained, found, tmp_path):
    from feedback.check import prepare

    facts = prepare("short_answers", tmp_path)
    trained.note(dataset=facts)
    findings = resume.check(trained, trained.config() | {"dataset_dir": str(tmp_path), "dataset": facts["name"]}, found[0])
    assert [finding.found.partition(":")[0] for finding in findings] == ["dataset"] and "sha256" not in findings[0].found
    assert facts["train_sha256"] != facts["sha256"]


def test_a_dataset_with_other_bytes_is_refused(trained, found):
    (trained.datasets / "train.json").write_text("[1]")
    with pytest.raises(KitError, match="dataset: sha256"):
        resume.write(trained, found[0])
    (trained.datasets / "train.json").unlink()
    with pytest.raises(KitError, match="no file"):
        resume.write(trained, found[0])


def test_a_save_between_two_log_lines_is_pointed_out_but_allowed(trained, found):
    findings = resume.check(trained, trained.config() | {"logging_steps": 3}, found[0])
    assert [(finding.kind, finding.status) for finding in findings] == [("logging_steps", "WARN")]


def test_torch_ignores_a_new_learning_rate_after_a_resume():
    import torch

    def make(rate):
        optimiser = torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))], lr=rate)
        return optimiser, torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1.0)

    (saved, saved_plan), (resumed, resumed_plan) = make(1e-3), make(5e-6)
    resumed.load_state_dict(saved.state_dict())
    resumed_plan.load_state_dict(saved_plan.state_dict())
    resumed.step()
    resumed_plan.step()
    assert resumed.param_groups[0]["lr"] == 1e-3


def test_what_changes_is_shown_without_this_machines_paths(trained, found):
    base = trained.config() | {"overwrite_output_dir": True}
    extended = resume.config(base, found[2], resume.fresh_output_dir(trained), max_steps=60)
    assert set(resume.changed(base, extended, trained).splitlines()) == {
        "output_dir: storage/first-run/output-2", "max_steps: 60", "# without overwrite_output_dir",
        f"resume_from_checkpoint: storage/first-run/{TRIAL}/checkpoint_000002/checkpoint"}


def test_resume_is_latest_best_or_a_step():
    assert resume.step_of("20") == 20
    with pytest.raises(KitError, match="latest, best or a step"):
        resume.step_of("last")


def test_unattended_it_goes_on_from_the_last_complete_save_with_nothing_changed(trained, found):
    (Path(found[1].path) / "trainer_state.json").unlink()
    assert resume.write_unattended(trained, checkpoints.find(trained)).step == 10
    written = yaml.safe_load(trained.resume_file.read_text())
    assert written["resume_from_checkpoint"] == str(found[0].path) and written["max_steps"] == 30


def test_killed_between_its_last_save_and_its_end_it_goes_on_from_the_save_before(trained, found):
    assert [item.step for item in found if item.complete] == [10, 20, 30] and found[2].planned_steps == 30
    assert resume.write_unattended(trained, found).step == 20


def test_a_training_with_no_other_save_than_its_last_has_nothing_to_go_on_from(trained, found):
    assert resume.write_unattended(trained, found[2:]) is None
    assert resume.write_unattended(trained, []) is None
    assert not trained.resume_file.exists()


def test_an_interrupted_extension_goes_on_as_the_extension_that_was_launched_last(trained, found):
    launched = yaml.safe_load(resume.write(trained, found[2], max_steps=60).read_text())
    for number, steps in ((2, 40), (9, 50), (10, 60)):
        (trained.folder / f"resumed-{number}.yaml").write_text(yaml.safe_dump(launched | {"max_steps": steps}))
    assert resume.write_unattended(trained, found).step == 30
    assert yaml.safe_load(trained.resume_file.read_text())["max_steps"] == 60


def test_a_resume_within_an_epoch_by_the_stock_command_is_pointed_out_but_allowed(trained, found):
    config = trained.config()
    within = next(item for item in found if 0.01 < item.epoch % 1 < 0.99)
    assert resume.check(trained, config, within) == []
    trained.note(training={"command": "USE_RAY=1 llamafactory-cli train config.yaml"})
    assert [(finding.kind, finding.status) for finding in resume.check(trained, config, within)] == [("place in the data", "WARN")]
    assert resume.check(trained, config, replace(within, epoch=2.0)) == []


@pytest.mark.parametrize("template", sorted(path.name for path in (ROOT / "train-configs").glob("*.yaml")))
def test_a_run_with_a_templates_own_values_is_resumed(trained, template):
    """Ray's params.json writes 5e-06 where YAML has 5.0e-6: both are one number, and no reason to refuse a resume."""
    values = files.read_yaml(ROOT / "train-configs" / template)
    numbers = {key: values[key] for key in ("learning_rate", "adam_epsilon", "weight_decay", "warmup_ratio") if key in values}
    params = trained.folder / TRIAL / "params.json"
    noted = json.loads(params.read_text())
    noted["train_loop_config"]["args"] |= {"adam_epsilon": 1e-8, **numbers}
    params.write_text(json.dumps(noted))
    trained.config_file.write_text(files.dump_yaml(files.read_yaml(trained.config_file) | {"adam_epsilon": 1e-8, **numbers}))
    assert isinstance(numbers["learning_rate"], float)
    assert resume.write_unattended(trained, checkpoints.find(trained)).step == 20


def test_a_run_copied_to_another_storage_is_listed_and_resumed_there(trained, tmp_path):
    """Its config, its trial's params.json and its data name the storage where it was trained, which is gone."""
    launched = files.read_json(trained.folder / TRIAL / "params.json")
    config = trained.config() | {"model_name_or_path": str(trained.models / "base"), "ray_run_name": "first-run",
                                         "ray_storage_path": str(trained.storage)}
    trained.config_file.write_text(files.dump_yaml(config))
    launched["train_loop_config"]["args"] = config
    (trained.folder / TRIAL / "params.json").write_text(json.dumps(launched))
    laptop = tmp_path / "laptop"
    shutil.move(trained.storage, laptop)
    (laptop / "first-run").rename(laptop / "from-cluster")
    run = runs.locate("local", str(laptop), "from-cluster")
    here = run.config()
    assert here["output_dir"] == str(run.output_dir) and here["dataset_dir"] == str(run.datasets)
    assert here["model_name_or_path"] == str(run.models / "base") and here["ray_run_name"] == "from-cluster"
    assert here["ray_storage_path"] == str(laptop)
    assert resume.write_unattended(run, checkpoints.find(run)).step == 20
    written = run.resume_file.read_text()
    assert "from-cluster/output-2" in written and str(tmp_path / "storage") not in written


def test_a_path_outside_the_storage_and_a_hub_id_stay_as_they_are(trained, tmp_path):
    trained.config_file.write_text(files.dump_yaml({"output_dir": "/mnt/cluster_storage/kto/first-run/output"}))
    given = {"deepspeed": "/etc/ds.json", "model": "org/name", "data": ["/mnt/cluster_storage/kto/datasets/a.json", 3, None]}
    assert trained.relocated(given) == given | {"data": [str(trained.datasets / "a.json"), 3, None]}
