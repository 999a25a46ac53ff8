"""A LLaMA-Factory YAML of the reader's own as train_config."""

import json

import pytest
import tiny
import yaml

from helpers import config, files, launch, metrics
from helpers.errors import KitError
from helpers.profiles import ROOT

KTO = """### model
model_name_or_path: meta-llama/Meta-Llama-3-8B-Instruct

### method
stage: kto
do_train: true
finetuning_type: lora
lora_target: all
pref_beta: 0.1

### dataset
dataset: kto_en_demo
template: llama3
cutoff_len: 2048
max_samples: 1000
overwrite_cache: true
preprocessing_num_workers: 16

### output
output_dir: saves/llama3-8b/lora/kto
logging_steps: 10
save_steps: 500
plot_loss: true
overwrite_output_dir: true

### train
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 5.0e-6
num_train_epochs: 3.0
lr_scheduler_type: cosine
warmup_ratio: 0.1
bf16: true
ddp_timeout: 180000000

### eval
val_size: 0.1
per_device_eval_batch_size: 1
eval_strategy: steps
eval_steps: 500
"""  # LLaMA-Factory's examples/train_lora/llama3_lora_kto.yaml, as it is written
RAY = """stage: kto
dataset_dir: REMOTE:llamafactory/demo_data
output_dir: tmp_dir
ray_run_name: llama3_8b_sft_lora
ray_storage_path: ./saves
ray_num_workers: 4
placement_strategy: PACK
resources_per_worker:
  GPU: 1
resume_from_checkpoint: null
"""  # the Ray part of its llama3_lora_sft_ray.yaml


@pytest.fixture
def prepared(run):
    run.note(model={"name": "m", "path": "/models/m", "template": "smollm2"},
             dataset={"name": "mine", "rows": 300, "heldout_name": "mine-heldout"})
    return run


def own(tmp_path, text: str, **more) -> str:
    path = tmp_path / "own" / "kto.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump(yaml.safe_load(text) | more) if more else text)
    return str(path)


@pytest.mark.slow
def test_llamafactorys_own_example_is_trained_on_the_runs_model_and_data_and_every_overruled_key_is_listed(prepared, tmp_path):
    name = own(tmp_path, KTO)
    resolved = config.resolve(prepared, name)
    assert (resolved["model_name_or_path"], resolved["template"], resolved["dataset"]) == ("/models/m", "smollm2", "mine")
    assert resolved["output_dir"] == str(prepared.output_dir) and resolved["dataset_dir"] == str(prepared.datasets)
    assert (resolved["lora_target"], resolved["cutoff_len"], resolved["learning_rate"]) == ("all", 2048, 5e-6)
    assert resolved["report_to"] == "none" and resolved["resources_per_worker"] == {"CPU": 1} and resolved["bf16"] is False
    said = config.template_in_run(prepared, name)[1]
    assert {line.split(":")[0] for line in said if "(yours" in line} == {"model_name_or_path", "template", "dataset", "output_dir", "bf16"}
    assert "dataset: mine (yours: kto_en_demo)" in said and "ray_num_workers: 2 (you left it out)" in said
    config.write(prepared, resolved)
    assert files.read_yaml(prepared.config_file) == resolved


def test_its_ray_part_keeps_workers_and_resources_and_gives_up_names_and_folders(prepared, tmp_path):
    resolved = config.resolve(prepared, own(tmp_path, RAY))
    assert resolved["ray_num_workers"] == 4 and resolved["resources_per_worker"] == {"GPU": 1} and resolved["do_train"] is True
    assert (resolved["ray_run_name"], resolved["ray_storage_path"]) == (prepared.name, str(prepared.storage))


def test_a_bucket_with_its_filesystem_stays_and_one_without_is_named_before_the_launch(prepared, tmp_path):
    assert config.resolve(prepared, own(tmp_path, "ray_storage_path: bucket/runs\nray_storage_filesystem: s3\n"))["ray_storage_path"] == "bucket/runs"
    with pytest.raises(KitError, match="ray_storage_filesystem: s3 and ray_storage_path: bucket/runs"):
        config.resolve(prepared, ray_storage_path="s3://bucket/runs")
    with pytest.raises(KitError, match="ray_storage_path is s3://bucket/runs: Ray would take it"):
        config.resolve(prepared, ray_storage_path="s3://bucket/runs", ray_storage_filesystem="s3")


@pytest.mark.parametrize(("text", "named"), [
    ("lora_target: <your-targets>\n", "lora_target: <your-targets>"), ("deepspeed: ${DS}\n", r"deepspeed: \$\{DS\}"),
    ("ray_init_kwargs:\n  runtime_env:\n    env_vars:\n      <YOUR-ENV-VAR-HERE>: \"<YOUR-ENV-VAR-HERE>\"\n", "ray_init_kwargs: <YOUR-ENV-VAR-HERE>"),
])
def test_placeholders_left_in_are_named_before_the_launch(prepared, tmp_path, text, named):
    with pytest.raises(KitError, match=f"placeholders left in it: .*{named}"):
        config.resolve(prepared, own(tmp_path, text))


def test_what_only_looks_like_a_placeholder_is_let_through(prepared, tmp_path):
    text = ("add_tokens: <tool>,</tool>\nadd_special_tokens: <|think|>\ndefault_system: Answer in <html>.\n"
            "ray_init_kwargs:\n  runtime_env:\n    env_vars:\n      PATH: ${PATH}:/opt/bin\n")
    assert config.resolve(prepared, own(tmp_path, text))["add_tokens"] == "<tool>,</tool>"
    for name in config.available():
        config.resolve(prepared, name)


def test_a_relative_deepspeed_file_is_found_beside_the_config_above_it_and_in_train_configs(prepared, tmp_path):
    name = own(tmp_path, "deepspeed: examples/ds.json\n")
    with pytest.raises(KitError, match="there is no file examples/ds.json"):
        config.resolve(prepared, name)
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples" / "ds.json").write_text(json.dumps({"zero_optimization": {"stage": 2}}))
    assert config.resolve(prepared, name)["deepspeed"] == {"zero_optimization": {"stage": 2}}
    ours = files.read_yaml(ROOT / "train-configs" / "ds_z3.json")
    assert config.resolve(prepared, own(tmp_path, "deepspeed: ds_z3.json\n"))["deepspeed"] == ours


def test_another_stage_is_refused_and_another_evaluation_set_is_the_runs(prepared, tmp_path):
    with pytest.raises(KitError, match="stage is dpo"):
        config.resolve(prepared, own(tmp_path, "stage: dpo\n"))
    made, said = config.template_in_run(prepared, own(tmp_path, "eval_dataset: dpo_en_demo\n"))
    assert made["eval_dataset"] == "mine-heldout" and "eval_dataset: mine-heldout (yours: dpo_en_demo)" in said


def test_our_own_templates_are_no_readers(prepared):
    assert [config.template_in_run(prepared, name)[1] for name in config.available()] == [[]] * len(config.available())


@pytest.mark.slow
def test_llamafactorys_own_example_trains_for_real_with_the_loss_without_kl_at_a_batch_of_1(run, tmp_path):
    base, name = tiny.model(run.models / "base"), tiny.dataset(run.datasets, tiny.REPLIES * 4)
    run.note(model={"name": "m", "path": str(base), "template": "smollm2"}, dataset={"name": name, "rows": 20}, accelerated="auto")
    given = own(tmp_path, KTO, loss="apo_zero_unpaired", preprocessing_num_workers=1, gradient_accumulation_steps=2, max_steps=3,
                logging_steps=1, lora_rank=4)
    resolved = config.resolve(run, given)
    assert resolved["per_device_train_batch_size"] == 1
    files.write(run.config_file, files.dump_yaml(resolved))
    launch.start(run).wait()
    table = metrics.table(run.log_file)
    assert "[kto] trainer kto_accelerator" in run.log_file.read_text() and table.attrs["rows of"] == "all workers"
    assert table["step"].tolist() == [1, 2, 3] and (table["kl"] == 0).all() and table["loss"].between(0.3, 0.7).all()
