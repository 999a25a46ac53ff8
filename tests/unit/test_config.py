"""Templates, overrides and LLaMA-Factory's parser as their judge."""

import dataclasses
import json
import os
import subprocess
import sys
from dataclasses import replace
from importlib import metadata

import pytest
import yaml

from helpers import config, files, profiles
from helpers.errors import KitError
from helpers.profiles import ROOT
from kto_accelerator import enable


@pytest.fixture
def prepared(run):
    """A run as notebooks 1 and 2 leave it."""
    run.note(model={"name": "m", "path": "/models/m", "template": "smollm2"}, dataset={"name": "d", "rows": 300})
    return run


def test_overrides_win_over_the_template_and_none_leaves_it_alone(prepared):
    resolved = config.resolve(prepared, learning_rate=3e-4, pref_beta=None)
    assert resolved["learning_rate"] == 3e-4 and resolved["pref_beta"] == 0.1


@pytest.mark.parametrize(("rows", "processes"), [(300, 1), (5_000, 6), (1_000_000, 16)])
def test_few_rows_are_not_tokenised_by_sixteen_processes_unless_that_is_asked_for(prepared, rows, processes):
    prepared.note(dataset={"name": "d", "rows": rows})
    assert config.resolve(prepared, "kto_lora.yaml")["preprocessing_num_workers"] == processes
    assert config.resolve(prepared, "kto_lora.yaml", preprocessing_num_workers=8)["preprocessing_num_workers"] == 8


def test_the_runs_facts_are_filled_in_with_absolute_paths(prepared):
    resolved = config.resolve(prepared)
    assert resolved["output_dir"] == str(prepared.output_dir) and prepared.output_dir.is_absolute()
    assert resolved["ray_storage_path"] == str(prepared.storage) and resolved["ray_run_name"] == "first-run"


@pytest.mark.parametrize("name", ["kto_lora_local.yaml", "kto_lora.yaml"])
@pytest.mark.parametrize("address", ["auto", "10.0.0.1:6379"])
def test_a_profile_of_a_running_cluster_joins_it_whatever_the_template_says(prepared, name, address):
    template = config.template(name)["ray_init_kwargs"]
    there = replace(prepared, profile=prepared.profile.model_copy(update={"ray_address": address}))
    kept = {"runtime_env": template["runtime_env"]} if "runtime_env" in template else {}
    assert config.resolve(there, name)["ray_init_kwargs"] == kept | {"address": address}
    own = {"address": "local", "num_cpus": 2}
    assert config.resolve(there, name, ray_init_kwargs=own)["ray_init_kwargs"] == own
    assert config.resolve(prepared, name)["ray_init_kwargs"] == template


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
        files.read_yaml(path)


def test_fp8_is_refused_by_name_without_the_faster_trainer_and_accepted_with_it(prepared):
    resolved = config.resolve(prepared, fp8=True)
    with pytest.raises(KitError, match="fp8: True is not in LLaMA-Factory's own trainer"):
        config.write(prepared, resolved)
    prepared.note(accelerated="auto")
    assert files.read_yaml(config.write(prepared, resolved))["fp8"] is True
    with pytest.raises(KitError, match="fp8 is for plain LoRA"):
        config.write(prepared, resolved | {"lora_dropout": 0.1})


def test_the_loss_without_kl_is_refused_by_name_with_the_stock_trainer(prepared):
    resolved = config.resolve(prepared, loss="apo_zero_unpaired")
    with pytest.raises(KitError, match="loss: apo_zero_unpaired is not in LLaMA-Factory's own trainer"):
        config.write(prepared, resolved)
    assert not prepared.config_file.exists()
    small = resolved | {"per_device_train_batch_size": 1}
    assert config.traps(small, {}) == [] and "mismatched pair" in config.traps(small | {"loss": "kto"}, {})[0]


@pytest.mark.slow
def test_the_loss_without_kl_is_accepted_with_our_trainer_and_another_is_named(prepared):
    prepared.note(accelerated=True)
    config.write(prepared, config.resolve(prepared, loss="apo_zero_unpaired"))
    with pytest.raises(KitError, match="loss: 'bco': Input should be 'kto' or 'apo_zero_unpaired'"):
        config.write(prepared, config.resolve(prepared, loss="bco"))


@pytest.mark.parametrize(("more", "expected"), [
    ({"metric_for_best_model": "accuracy"}, "loss or rewards/margins"), ({"metric_for_best_model": "eval_accuracy"}, "loss or"),
    ({"eval_dataset": "a,b", "eval_on_each_dataset": True}, "a_loss or b_loss"), ({"metric_for_best_model": "rewards/margins"}, ""),
    ({}, ""), ({"metric_for_best_model": "b_loss", "eval_dataset": "a,b", "eval_on_each_dataset": True}, "")])
def test_a_best_model_by_a_metric_that_kto_does_not_return_is_named_before_the_first_evaluation(more, expected):
    found = config.unknown_metric({"load_best_model_at_end": True, **more})
    assert bool(found) == bool(expected) and all(f"expected: {expected}" in line for line in found)
    assert config.unknown_metric(more) == []
    assert config.unknown_metric({"lr_scheduler_type": "reduce_lr_on_plateau", **more}) == found


@pytest.mark.slow
def test_numbers_that_llamafactory_takes_and_that_train_nothing_are_named_at_once(prepared):
    wrong = {"lora_rank": 0, "ray_num_workers": 0, "per_device_train_batch_size": 0, "learning_rate": -1.0, "save_steps": 0,
             "pref_beta": 0.0, "num_train_epochs": 0.0, "kto_chosen_weight": -1.0}
    with pytest.raises(KitError) as error:
        config.write(prepared, config.resolve(prepared, **wrong))
    assert all(f"{key} is {value}; expected: " in str(error.value) for key, value in wrong.items())
    assert config.findings(config.resolve(prepared, max_steps=-1)) == []


@pytest.mark.parametrize(("overrides", "says"), [
    ({"dataset": "nosuch"}, "there is no dataset 'nosuch'"), ({"eval_dataset": "d,nosuch", "eval_steps": 2}, "there is no dataset 'nosuch'"),
    ({"resources_per_worker": "GPU"}, "resources_per_worker is 'GPU'")])
def test_what_would_end_the_workers_is_refused_before_they_start(prepared, overrides, says):
    files.write(prepared.datasets / "dataset_info.json", json.dumps({"d": {"file_name": "d.jsonl"}}))
    with pytest.raises(KitError, match=says):
        config.write(prepared, config.resolve(prepared, **overrides))


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
def test_every_template_in_the_folder_is_accepted_by_llamafactorys_parser_on_a_machine_without_gpu(prepared, tmp_path):
    names = sorted(path.name for path in config.TEMPLATES.rglob("*.yaml"))
    assert len(names) == 9 and names == config.available()
    for name in names:
        (tmp_path / name).write_text(yaml.safe_dump(config.resolve(prepared, name)))
    code = """import json, sys, yaml
from helpers import config
print("\\n" + json.dumps({path: config.findings(yaml.safe_load(open(path))) for path in sys.argv[1:]}))"""
    done = subprocess.run([sys.executable, "-c", code, *names], cwd=tmp_path, capture_output=True, text=True,
                          env={**os.environ, "USE_RAY": "1", "LLAMAFACTORY_VERBOSITY": "ERROR"})  # fmt: skip
    assert json.loads(done.stdout.splitlines()[-1]) == dict.fromkeys(names, []), done.stderr[-2000:]


@pytest.mark.parametrize("path", sorted(config.TEMPLATES.glob("*.yaml")), ids=lambda path: path.name)
def test_every_template_says_what_for_what_it_needs_and_how_to_launch_it(path):
    head = path.read_text().split("\n\n")[0]
    assert all(f"# {word}:" in head for word in ("For", "Needs", "Launch"))
    launch = head.partition("Launch:")[2]
    assert path.name in launch or profiles.load(launch.partition("--profile ")[2].split()[0]).train_config == path.name
    content = yaml.safe_load(path.read_text())
    assert content["trust_remote_code"] is False
    assert content.get("enable_liger_kernel") is (True if "GPU" in content["resources_per_worker"] else None)
    for knob in ("pref_beta", "cutoff_len", "per_device_train_batch_size", "learning_rate", "gradient_accumulation_steps"):
        line = next((line for line in path.read_text().splitlines() if line.startswith(f"{knob}:")), None)
        assert line is None or "#" in line or path.name == "kto_lora_local.yaml", f"{knob} has no comment"


def test_kto_lora_is_the_references_value_for_value_and_every_deviation_says_so():
    reference = yaml.safe_load((ROOT / "tests" / "fixtures" / "reference_kto_lora.yaml").read_text())
    ours, lines = config.template("kto_lora.yaml"), (config.TEMPLATES / "kto_lora.yaml").read_text().splitlines()
    from_the_run = {"model_name_or_path", "template", "dataset", "dataset_dir", "output_dir", "ray_run_name", "ray_storage_path"}
    differing = [key for key in reference if key not in from_the_run and ours.get(key) != reference[key]]
    assert sorted(differing) == ["ray_init_kwargs", "report_to", "resources_per_worker", "trust_remote_code"]
    for key in differing:
        start = next(number for number, line in enumerate(lines) if line.startswith(f"{key}:"))
        block = [line for line in lines[start + 1 :] if line.startswith((" ", "#"))]
        assert "differs (was" in lines[start] or any("differs (" in line for line in block), key
    assert {key for key in ours if key not in reference} == {"kto_chosen_weight", "kto_rejected_weight"}


def test_a_deepspeed_file_travels_inside_the_config_so_every_node_has_it(prepared):
    resolved = config.resolve(prepared, "kto_full_deepspeed.yaml")
    assert resolved["deepspeed"] == json.loads((config.TEMPLATES / "ds_z3.json").read_text())
    assert resolved["deepspeed"]["zero_optimization"]["stage"] == 3 and "optimizer" not in resolved["deepspeed"]


@pytest.mark.slow
def test_llamafactorys_own_objection_is_passed_on(prepared):
    with pytest.raises(KitError, match="predict_with_generate"):
        config.check(config.resolve(prepared) | {"predict_with_generate": True})


@pytest.mark.slow
def test_a_driver_with_several_gpus_is_not_told_to_launch_with_torchrun(prepared, tmp_path, monkeypatch):
    """Seen on two H100s: the parser asks for torchrun where it sees more than one GPU, which this machine has not: torch is told so."""
    (tmp_path / "sitecustomize.py").write_text("import os\nif os.environ.get('CUDA_VISIBLE_DEVICES') != '':\n    import torch\n"
                                               "    torch.cuda.is_available, torch.cuda.device_count = lambda: True, lambda: 2\n")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    config.check(config.resolve(prepared))


def test_a_batch_of_one_and_a_cut_dataset_are_traps(prepared):
    resolved = config.resolve(prepared) | {"per_device_train_batch_size": 1, "max_samples": 100}
    said = " ".join(config.traps(resolved, prepared.record()))
    assert "reference point" in said and "first 100 of 300" in said
    assert config.traps(config.resolve(prepared), prepared.record()) == []


def test_once_the_run_was_launched_a_resolved_config_is_refused_before_it_is_judged(prepared, monkeypatch):
    monkeypatch.setattr(config, "check", lambda _: pytest.fail("LLaMA-Factory's parser was asked, which takes 9 s"))
    prepared.log_file.touch()
    with pytest.raises(KitError, match="in use"):
        config.write(prepared, config.resolve(prepared))


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


def test_an_adapter_that_would_be_trained_further_against_the_bare_base_is_refused_with_the_two_ways_that_are_meant(prepared):
    with pytest.raises(KitError, match="another objective(?s:.*)create_new_adapter: true(?s:.*)merged model"):
        config.resolve(prepared, adapter_name_or_path="earlier/adapter")
    assert config.resolve(prepared, adapter_name_or_path="earlier/adapter", create_new_adapter=True)["create_new_adapter"]


def test_the_faster_trainer_is_taken_where_it_is_proved_and_the_reader_is_told_how_to_turn_it_off(monkeypatch):
    monkeypatch.setattr(enable, "VERSIONS", (metadata.version("llamafactory"),))
    lora = {"stage": "kto", "finetuning_type": "lora", "model_name_or_path": "org/name"}
    taken, says = config.accelerated(lora, "auto", {"model_type": "llama"})
    assert taken and "-p accelerated=false" in says
    taken, says = config.accelerated(lora, "auto", {"model_type": "gpt2"})
    assert not taken and "LLaMA-Factory's own trainer: the model type is gpt2" in says
    assert config.accelerated(lora, "false")[0] is False
    taken, says = config.accelerated(lora | {"finetuning_type": "full"}, True)
    assert taken and "not proved for this: finetuning_type is full" in says
    with pytest.raises(KitError, match="auto, true or false"):
        config.accelerated(lora, "yes")


def test_a_clusters_workers_get_the_profiles_packages_beside_what_the_template_says_and_this_machine_is_left_alone(prepared):
    there = dataclasses.replace(prepared, profile=profiles.load("anyscale"))
    environment = config.resolve(there)["ray_init_kwargs"]["runtime_env"]
    assert "llamafactory==0.9.3" in environment["pip"] and not [line for line in environment["pip"] if line.startswith(("#", "torch", "ray"))]
    assert environment["env_vars"] == config.template("kto_lora.yaml")["ray_init_kwargs"]["runtime_env"]["env_vars"]
    own = {"address": "auto", "runtime_env": {"pip": ["llamafactory==0.9.4"]}}
    assert config.resolve(there, ray_init_kwargs=own)["ray_init_kwargs"] == own
    here = dataclasses.replace(prepared, profile=prepared.profile.model_copy(update={"worker_packages": "locks/workers.txt"}))
    assert config.resolve(here) == config.resolve(prepared)


def test_a_profile_whose_worker_packages_are_no_file_is_refused(prepared):
    wrong = profiles.load("anyscale").model_copy(update={"worker_packages": "locks/worker.txt"})
    with pytest.raises(FileNotFoundError, match="locks/worker.txt"):
        config.resolve(dataclasses.replace(prepared, profile=wrong))


def test_keys_of_the_launch_that_a_later_llamafactory_no_longer_knows_are_judged_by_what_the_launcher_takes(monkeypatch):
    """As LLaMA-Factory 0.9.5 leaves them out: the parser's own classes, without the class that has them."""
    from llamafactory.hparams import parser

    later = dataclasses.make_dataclass("TrainingArguments", [("ray_num_workers", int, 1), ("learning_rate", float, 1e-3)])
    monkeypatch.setattr(parser, "_TRAIN_ARGS", [later])
    monkeypatch.setattr(parser, "get_train_args", lambda config: later(**config))
    good = {"learning_rate": 1e-4, "ray_num_workers": 2, "ray_run_name": "run", "resources_per_worker": {"CPU": 1}}
    assert config.findings(good) == []
    unknown, = config.findings(good | {"ray_storage": "saves"})
    assert "no key 'ray_storage' (did you mean 'ray_storage_path'?)" in unknown
