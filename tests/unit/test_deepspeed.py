"""DeepSpeed for real, on the CPU: two steps of all parameters under every stage of ZeRO, split over two Ray workers."""

import os
import subprocess
import sys

import pytest
import tiny
import yaml

from helpers import config
from helpers.logs import Parser

CPU = {"bf16": False, "enable_liger_kernel": False, "ray_num_workers": 2, "resources_per_worker": {"CPU": 1}, "preprocessing_num_workers": 1,
       "ray_init_kwargs": {"address": "local", "num_cpus": 3, "include_dashboard": False}}  # fmt: skip
"""What a machine without a GPU needs otherwise. `use_cpu: true` is a trap: transformers then leaves DeepSpeed out of the set-up, and
it takes the world for a single process ("train_batch_size is not equal to ...")."""


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Where DeepSpeed compiles: the user's own folder may hold the lock of a build that was killed, for which others wait for ever."""
    return tmp_path_factory.mktemp("built")


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["ds_z1.json", "ds_z2.json", "ds_z3.json", "ds_z3_offload.json"])
def test_two_steps_of_all_parameters_under_each_zero_stage_on_two_workers_move_the_weights(run, built, stage):
    import torch
    from safetensors.torch import load_file

    base = tiny.model(run.models / "tiny")
    run.note(model={"name": "tiny", "path": str(base), "template": "smollm2"})
    run.note(dataset={"name": tiny.dataset(run.datasets, tiny.REPLIES * 4), "rows": 20})
    steps = {"max_steps": 2, "logging_steps": 1, "save_steps": 2, "learning_rate": 1e-3, "warmup_ratio": 0.0, "lr_scheduler_type": "constant",
             "cutoff_len": 200, "gradient_accumulation_steps": 1, "save_only_model": True, "num_train_epochs": None}  # fmt: skip
    resolved = config.resolve(run, "kto_full_deepspeed.yaml", deepspeed=stage, **CPU, **steps)
    run.config_file.write_text(yaml.safe_dump(resolved))
    env = {**os.environ, "USE_RAY": "1", "RAY_DEDUP_LOGS": "0", "HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "PASSIVE",
           "TORCH_EXTENSIONS_DIR": str(built)}
    command = [sys.executable, "-m", "helpers.trainer", str(run.config_file)]
    done = subprocess.run(command, cwd=run.folder, env=env, capture_output=True, timeout=900)
    log = done.stdout + done.stderr
    assert done.returncode == 0, log[-3000:].decode(errors="replace")
    assert f"ZeRO stage {stage[4]} ".encode() in log and b"world_size = 2" in log
    rows = [event.data for event in Parser().feed(log + b"\n") if event.kind == "metrics" and "loss" in event.data]
    assert len(rows) == 2 and rows[0]["loss"] == pytest.approx(0.5) and rows[1]["loss"] < rows[0]["loss"]
    before, after = (load_file(next(folder.glob("*.safetensors"))) for folder in (base, run.output_dir))
    assert all(after[name].shape == weight.shape for name, weight in before.items())  # gathered from both workers
    assert all(not torch.equal(after[name], weight) for name, weight in before.items() if "proj" in name)
