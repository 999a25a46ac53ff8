"""The table's numbers against an independent float64 computation of the very batches that LLaMA-Factory trained on.

Run as a script this file is the training: LLaMA-Factory's own command, with each micro-batch and the adapter's weights
of that moment put aside. The test then computes loss, rewards and KL from those by the paper's formulas, in double.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers import metrics

BETA, RANK = 0.3, 4
WORDS = "what is the a of it very short long answer question please no yes good bad why how two ten red blue".split()


def put_batches_aside(folder: Path) -> None:
    """Make LLaMA-Factory's trainer write every micro-batch, and the adapter as it is then, before it is used."""
    import torch
    from llamafactory.train.kto.trainer import CustomKTOTrainer

    stock, count = CustomKTOTrainer.get_batch_loss_metrics, iter(range(10**6))

    def get_batch_loss_metrics(self, model, batch):
        weights = {name: value.detach().clone() for name, value in model.named_parameters() if "lora_" in name}
        torch.save({"batch": dict(batch), "weights": weights, "train": model.training, "step": self.state.global_step},
                   folder / f"{next(count):05}.pt")
        return stock(self, model, batch)

    CustomKTOTrainer.get_batch_loss_metrics = get_batch_loss_metrics


if __name__ == "__main__":
    put_batches_aside(Path(sys.argv.pop()))
    from llamafactory import cli

    cli.main()


def make_model(folder: Path) -> None:
    """A random Llama of two layers and width 32, in float32, with a tokenizer of a few words."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    special = ["<unk>", "<|im_start|>", "<|im_end|>", "system", "user", "assistant", "\n"]
    tokenizer = Tokenizer(models.WordLevel({word: at for at, word in enumerate(special + WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<|im_start|>",
                            eos_token="<|im_end|>", pad_token="<|im_end|>").save_pretrained(folder)
    torch.manual_seed(7)
    LlamaForCausalLM(LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.5, bos_token_id=1, eos_token_id=2, pad_token_id=2,
    )).save_pretrained(folder)


def make_data(folder: Path) -> None:
    """Ten rows to train on and five held out, of both labels and different lengths."""
    import random

    chance = random.Random(3)
    registry = {}
    for name, rows in (("train", 10), ("held", 5)):
        turns = [[" ".join(chance.choices(WORDS, k=chance.randint(2, 9))) for _ in range(2)] for _ in range(rows)]
        records = [{"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": reply}],
                    "label": chance.random() < 0.6} for prompt, reply in turns]
        (folder / f"{name}.json").write_text(json.dumps(records))
        registry[name] = {"file_name": f"{name}.json", "formatting": "sharegpt",
                          "columns": {"messages": "messages", "kto_tag": "label"},
                          "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user",
                                   "assistant_tag": "assistant"}}
    (folder / "dataset_info.json").write_text(json.dumps(registry))


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A finished training: train.log, batches/*.pt, output/. Epochs end with a short group; two evaluations."""
    folder = tmp_path_factory.mktemp("oracle")
    (folder / "batches").mkdir()
    make_model(folder / "model")
    make_data(folder)
    config = {
        "model_name_or_path": str(folder / "model"), "stage": "kto", "do_train": True, "finetuning_type": "lora",
        "lora_rank": RANK, "lora_alpha": 2 * RANK, "lora_target": "all", "pref_beta": BETA, "dataset": "train",
        "kto_chosen_weight": 1.0, "kto_rejected_weight": 1.5,
        "eval_dataset": "held", "dataset_dir": str(folder), "template": "chatml", "cutoff_len": 64,
        "output_dir": str(folder / "output"), "logging_steps": 2, "save_steps": 6, "eval_strategy": "steps",
        "eval_steps": 3, "per_device_eval_batch_size": 2, "report_to": "none", "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2, "max_steps": 6, "learning_rate": 0.01, "lr_scheduler_type": "constant",
        "overwrite_cache": True, "disable_gradient_checkpointing": True,
    }
    (folder / "config.yaml").write_text(json.dumps(config))
    env = {key: value for key, value in os.environ.items() if key not in ("USE_RAY", "FORCE_TORCHRUN")}
    with open(folder / "train.log", "wb") as log:
        subprocess.run([sys.executable, __file__, "train", folder / "config.yaml", folder / "batches"], stdout=log,
                       stderr=subprocess.STDOUT, cwd=folder, check=True, timeout=900,
                       env={**env, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "HF_DATASETS_CACHE": str(folder)})
    return folder


def log_probabilities(model, batch: dict, prefix: str = ""):
    """Σ log π(reply | prompt) of each row, in nats: a row's labels are -100 where they are not the reply."""
    import torch

    logits = model(input_ids=batch[f"{prefix}input_ids"], attention_mask=batch[f"{prefix}attention_mask"]).logits
    labels = batch[f"{prefix}labels"][:, 1:]
    picked = torch.log_softmax(logits[:, :-1], dim=-1).gather(2, labels.clamp(min=0)[..., None])[..., 0]
    return (picked * (labels != -100)).sum(dim=1)


@pytest.fixture(scope="module")
def batches(trained) -> list[dict]:
    """Each micro-batch's loss, rewards and KL by the formulas of Ethayarajh et al. (2024), in float64."""
    import torch
    from transformers import LlamaForCausalLM

    base = LlamaForCausalLM.from_pretrained(trained / "model", torch_dtype=torch.float64).eval()
    frozen = {name: value.clone() for name, value in base.state_dict().items()}
    results = []
    for file in sorted((trained / "batches").glob("*.pt")):
        kept = torch.load(file, weights_only=False)
        batch, accepted = kept["batch"], kept["batch"]["kto_tags"].bool()
        with torch.no_grad():
            base.load_state_dict(frozen)
            reference = {prefix: log_probabilities(base, batch, prefix) for prefix in ("", "kl_")}
            for name, down in kept["weights"].items():
                if "lora_A" in name:
                    up = kept["weights"][name.replace("lora_A", "lora_B")].double()
                    weight = name.split("base_model.model.")[1].split(".lora_A")[0] + ".weight"
                    merged = frozen[weight] + 2.0 * up @ down.double()  # 2 = lora_alpha / lora_rank
                    base.get_parameter(weight).copy_(merged)
            policy = {prefix: log_probabilities(base, batch, prefix) for prefix in ("", "kl_")}
        ratio = policy[""] - reference[""]
        z = (policy["kl_"] - reference["kl_"]).mean().clamp(min=0)
        losses = torch.where(accepted, 1.0 * (1 - torch.sigmoid(BETA * (ratio - z))),
                             1.5 * (1 - torch.sigmoid(BETA * (z - ratio))))
        result = {"train": kept["train"], "step": kept["step"], "loss": losses.mean().item(), "kl": z.item()}
        for label, rows in (("chosen", accepted), ("rejected", ~accepted)):
            result |= {label: (BETA * ratio)[rows].tolist(), f"logps/{label}": policy[""][rows].tolist()}
        results.append(result)
    return results


def mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else float("nan")


def check(row, batches: list[dict]) -> None:
    """A row of the table against the micro-batches of its window."""
    for label in ("chosen", "rejected"):
        rewards = [value for batch in batches for value in batch[label]]
        assert row[f"rewards/{label}"] == pytest.approx(mean(rewards), rel=1e-3, abs=1e-5, nan_ok=True)
        replies = [value for batch in batches for value in batch[f"logps/{label}"]]
        assert row[f"logps/{label}"] == pytest.approx(mean(replies), rel=1e-5, nan_ok=True)
    assert row["micro_batches"] == len(batches)
    assert row["rows"] == sum(len(batch["chosen"]) + len(batch["rejected"]) for batch in batches)
    assert row["kl"] == pytest.approx(sum(batch["kl"] for batch in batches), rel=1e-3, abs=1e-5)
    assert row["kl_mean"] == pytest.approx(mean([batch["kl"] for batch in batches]), rel=1e-3, abs=1e-5)


@pytest.mark.slow
def test_the_tables_loss_rewards_and_kl_are_those_of_the_batches(trained, batches):
    table = metrics.table(trained / "train.log", logging_steps=2)
    train = table[table["split"] == "train"]
    assert train["step"].tolist() == [2, 4, 6]
    assert train["micro_batches"].tolist() == [4, 3, 3]  # 10 rows in batches of 2, in groups of 2, 2 and 1
    for row in train.to_dict("records"):
        window = [batch for batch in batches if batch["train"] and row["step"] - 2 <= batch["step"] < row["step"]]
        check(row, window)
        assert row["loss_mean"] == pytest.approx(mean([batch["loss"] for batch in window]), abs=1e-4)
        assert row["loss"] == pytest.approx(sum(batch["loss"] for batch in window) / 4, abs=6e-5)  # four places
    assert train["kl"].iloc[1:].min() > 0.01


@pytest.mark.slow
def test_the_evaluations_are_those_of_the_held_out_batches(trained, batches):
    table = metrics.table(trained / "train.log", logging_steps=2)
    held_out = table[table["split"] == "eval"]
    assert held_out["step"].tolist() == [3, 6]
    for row in held_out.to_dict("records"):
        window = [batch for batch in batches if not batch["train"] and batch["step"] == row["step"]]
        check(row, window[:3])  # after the training LLaMA-Factory evaluates once more, and logs no such line


@pytest.mark.slow
def test_a_log_without_ray_reconciles_with_the_trainers_record(trained):
    table = metrics.table(trained / "train.log")
    differences = metrics.reconcile(table, trained / "output" / "checkpoint-6" / "trainer_state.json")
    assert differences.empty and differences.attrs["compared"] > 40
