"""What changes the model before the adapter does: trained, evaluated, merged, proved, served; or refused before it is trained.

The table of notebook 6. Evaluated: with the log-probabilities and rewards that the trainer itself logged of the same rows.
"""

import json
import os
import subprocess
import sys

import pytest
import tiny
import yaml

from helpers import config as configs
from helpers import evaluate, export, proof, runs
from helpers.errors import KitError
from kto import forms
from kto_accelerator.enable import supports

TOKENS = {"add_tokens": "<a>,<b>", "resize_vocab": True}
MADE = {  # setting -> (keys, whether the base's embeddings are tied, whether its adapter is served beside others)
    "plain LoRA": ({}, False, True),
    "rsLoRA": ({"use_rslora": True}, False, True),
    "DoRA": ({"use_dora": True}, False, False),
    "additional_target": ({"additional_target": "embed_tokens,lm_head"}, False, False),
    "additional_target, tied embeddings": ({"additional_target": "embed_tokens"}, True, False),
    "added tokens": (TOKENS, False, False),
    "added tokens, tied embeddings": (TOKENS, True, False),
    "freeze": ({"finetuning_type": "freeze", "freeze_trainable_layers": 1}, False, False),
    "full": ({"finetuning_type": "full"}, False, False),
}
REFUSED = {  # setting -> (keys, what is said)
    "a quantised base": ({"model_name_or_path": "quantised"}, "name the base before quantisation"),
    "added tokens, base in few bits": ({**TOKENS, "quantization_bit": 4}, "add the tokens to the base first"),
    "added tokens, one embedding": ({**TOKENS, "additional_target": "lm_head"}, "leave additional_target out"),
    "added tokens, full": ({**TOKENS, "finetuning_type": "full"}, "add the tokens to the base first"),
    "PiSSA": ({"pissa_init": True}, "leave it out"),
}
TRAINING = {
    "do_train": True, "lora_target": "all", "learning_rate": 2e-2, "lr_scheduler_type": "constant", "max_steps": 3, "save_steps": 3,
    "logging_steps": 1, "eval_strategy": "steps", "eval_steps": 3, "per_device_train_batch_size": 2, "per_device_eval_batch_size": 2,
    "report_to": "none", "overwrite_cache": True, "use_cpu": True, "preprocessing_num_workers": 1}
TRAIN = """import sys, yaml
from llamafactory.train.tuner import run_exp
if sys.argv[1] == "faster":
    from kto_accelerator.enable import install
    install()
for file in sys.argv[2:]:
    config = yaml.safe_load(open(file))
    run_exp(config | {"output_dir": config["output_dir"] + ("-faster" if sys.argv[1] == "faster" else "")})
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """setting -> run, trained by LLaMA-Factory's own trainer one after another; into output-faster/ by the faster one too."""
    storage, made = tmp_path_factory.mktemp("settings") / "storage", {}
    for number, (setting, (keys, tied, _)) in enumerate(MADE.items()):
        run = runs.start("local", str(storage), f"run-{number}")
        base, name = tiny.model(storage / "models" / str(tied), tie_word_embeddings=tied), tiny.dataset(run.datasets)
        config = tiny.config(base, run.datasets) | TRAINING | {"dataset": name, "eval_dataset": name, "output_dir": str(run.output_dir)}
        run.config_file.write_text(yaml.safe_dump(config | keys))
        run.note(model={"name": str(base), "path": str(base), "template": "smollm2"}, dataset={"name": name, "heldout_name": name})
        made[setting] = run
    environment = {**os.environ, "USE_RAY": "0", "DISABLE_VERSION_CHECK": "1", "CUDA_VISIBLE_DEVICES": ""}
    for trainer in ("stock", "faster"):
        files = [str(run.config_file) for run in made.values() if trainer == "stock" or supports(run.config())[0]]
        done = subprocess.run([sys.executable, "-c", TRAIN, trainer, *files], env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr[-3000:]
    return made


def logged_of(output):
    """What the trainer itself logged of the held-out rows at the last step: log-probabilities and rewards."""
    history = json.loads((output / "checkpoint-3" / "trainer_state.json").read_text())["log_history"]
    line = next(line for line in history if "eval_logps/chosen" in line)
    return {f"{what}/{side}": line[f"eval_{what}/{side}"] for what in ("logps", "rewards") for side in ("chosen", "rejected")}


@pytest.mark.slow
@pytest.mark.parametrize("setting", MADE)
def test_what_is_trained_is_evaluated_merged_proved_and_served_or_its_adapter_is_said_not_to_be(trained, setting, capsys):
    run, beside_others = trained[setting], MADE[setting][2]
    config, checkpoint = run.config(), run.output_dir / "checkpoint-3"
    scorer = evaluate.Scorer(config, checkpoint)
    rows = scorer.rows(config["dataset"])
    table = evaluate.rewards(rows, scorer.logps(rows), scorer.logps(rows, tuned=False), config)
    means = table.groupby("label")[["logp_policy", "reward"]].mean()
    evaluated = {f"{what}/{side}": means.loc[label, column] for what, column in (("logps", "logp_policy"), ("rewards", "reward"))
                 for side, label in (("chosen", True), ("rejected", False))}
    assert evaluated == pytest.approx(logged_of(run.output_dir), rel=1e-5, abs=1e-4)
    if supports(config)[0]:
        assert logged_of(run.folder / "output-faster") == pytest.approx(logged_of(run.output_dir), rel=1e-4, abs=1e-3)
    forms.make(run, ["adapter", "merged"], str(checkpoint))
    merged = proof.prove(scorer, run.export / "merged", rows)
    assert merged["largest difference"][0] < 1e-3 < 0.05 < merged["largest difference"][1]
    assert (run.export / "merged" / "README.md").is_file()
    if beside_others:
        alone = proof.prove(scorer, run.export / "adapter" / run.name, rows)
        assert alone["largest difference"][0] < 1e-3 < 0.05 < alone["largest difference"][1]
    assert beside_others == (run.export / "adapter").exists() == ("no adapter to serve beside others" not in capsys.readouterr().err)


@pytest.mark.parametrize("setting", REFUSED)
def test_what_could_not_be_served_as_trained_is_refused_before_training_with_what_to_do(run, setting):
    keys, says = REFUSED[setting]
    (run.models / "quantised").mkdir(parents=True)
    (run.models / "quantised" / "config.json").write_text('{"quantization_config": {"quant_method": "gptq"}}')
    config = tiny.config(run.models / "plain", run.datasets) | keys
    config["model_name_or_path"] = str(run.models / keys.get("model_name_or_path", "plain"))
    with pytest.raises(KitError, match=says):
        configs.write(run, config)
    assert not run.config_file.exists() and export.unservable(config)
