"""An SFT run and a KTO run on top of it, trained by LLaMA-Factory: everything downstream has both adapters."""

import json
import os
import subprocess
import sys

import pytest
import tiny
import yaml

from helpers import card, evaluate, export, merging, proof

pytestmark = pytest.mark.slow


def train(config, folder):
    """LLaMA-Factory's own command, without Ray; then the folder it trained into."""
    common = {"do_train": True, "output_dir": str(folder), "report_to": "none", "overwrite_cache": True, "max_steps": 3,
              "per_device_train_batch_size": 2, "save_steps": 3, "logging_steps": 1, "lr_scheduler_type": "constant",
              "use_cpu": True, "preprocessing_num_workers": 1}
    file = folder.with_suffix(".yaml")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump({**common, **config}))
    environment = {**os.environ, "USE_RAY": "0", "DISABLE_VERSION_CHECK": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-m", "llamafactory.cli", "train", str(file)], env=environment,
                          capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder / "checkpoint-3"


@pytest.fixture
def trained(run):
    """(run, base, its SFT adapter, its KTO checkpoint)."""
    base, name = tiny.model(run.models / "tiny"), tiny.dataset(run.datasets)
    sft = {"instruction": "what?", "input": "", "output": "this."}
    (run.datasets / "sft.json").write_text(json.dumps([sft] * 4))
    known = json.loads((run.datasets / "dataset_info.json").read_text())
    (run.datasets / "dataset_info.json").write_text(json.dumps(known | {"sft": {"file_name": "sft.json"}}))
    common = tiny.config(base, run.datasets) | {"lora_target": "all", "learning_rate": 5e-2}
    first = train(common | {"stage": "sft", "dataset": "sft", "lora_target": "q_proj,v_proj", "use_rslora": True},
                  run.storage / "sft-run" / "output")
    config = common | {"dataset": name, "adapter_name_or_path": str(first), "create_new_adapter": True}
    checkpoint = train(config, run.output_dir)
    run.config_file.write_text(yaml.safe_dump(config))
    run.note(model={"name": "org/tiny", "path": str(base)}, dataset={"name": name, "heldout_name": name})
    return run, base, first, checkpoint, config


def test_everything_downstream_takes_base_and_sft_adapter_merged_as_its_reference_and_agrees(trained):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    run, base, first, checkpoint, config = trained
    scorer = evaluate.Scorer(config, checkpoint)
    rows = scorer.rows(config["dataset"])
    under = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), first).merge_and_unload()
    theirs = scorer.logps(rows, tuned=False, model=under)
    assert scorer.logps(rows, tuned=False) == pytest.approx(theirs, abs=1e-3)
    without = evaluate.Scorer({key: value for key, value in config.items() if key != "adapter_name_or_path"}, checkpoint)
    assert scorer.logps(rows) != pytest.approx(without.logps(rows), abs=0.1)
    folder = export.adapter(run, checkpoint)
    assert export.adapter_facts(folder)["rank"] == 8
    alone = proof.prove(scorer, folder, rows).set_index("pair")
    merged = proof.prove(scorer, merging.merge(run, checkpoint), rows).set_index("pair")
    assert alone.loc["adapter alone against adapter", "largest difference"] < 1e-3
    assert merged.loc["merged against adapter", "largest difference"] < 1e-3
    assert merged.loc["adapter against base", "largest difference"] > 0.05
    assert "the base with sft-run merged into it" in card.text(run)
