"""The accelerated trainer against LLaMA-Factory's own: the same batches give the same loss, rewards, KL and gradients.

The models are tiny and random; all else is real: LLaMA-Factory's parser, data processing, collator and trainer, which
`trainer` builds by LLaMA-Factory's own `run_kto`, stopped where the training would begin.
"""

import gc

import pytest
import tiny

from helpers import accelerator, packed

ROWS = [(f"Question {i}: " + "why " * (i % 7) + "?", "Because. " + "And so on. " * (i * 5 % 9), i % 3 > 0) for i in range(24)]
SHAPE = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
             max_position_embeddings=512, initializer_range=0.3, torch_dtype="float32", sliding_window=None)


class Built(Exception):
    """Carries a trainer out of `run_kto`."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("accelerator")


def trainer(folder, monkeypatch, kind: str = "llama", fast: bool = False, **settings):
    """LLaMA-Factory's trainer (or the accelerated one) on a tiny model of that type, its adapter's B random, not zero."""
    monkeypatch.setenv("USE_RAY", "0")
    import torch
    from llamafactory.train import tuner
    from llamafactory.train.kto import workflow
    from transformers import AutoConfig, AutoModelForCausalLM

    base = folder / kind
    if not base.exists():
        tiny.model(base)
        shape = {**AutoConfig.from_pretrained(base).to_dict(), **SHAPE, "head_dim": 8}
        torch.manual_seed(0)
        config = AutoConfig.for_model(kind, **{key: shape[key] for key in (*SHAPE, "vocab_size", "head_dim", "eos_token_id")})
        AutoModelForCausalLM.from_config(config).save_pretrained(base)
    stock = workflow.CustomKTOTrainer
    chosen = accelerator.accelerated(stock) if fast else stock

    def train(self, **kwargs):
        raise Built(self)

    monkeypatch.setattr(workflow, "CustomKTOTrainer", type("Captured", (chosen,), {"train": train}))
    arguments = {**tiny.config(base, folder / "datasets"), "dataset": tiny.dataset(folder / "datasets", ROWS), "do_train": True,
                 "lora_target": "all", "output_dir": str(folder / "out"), "overwrite_output_dir": True, "report_to": "none",
                 "per_device_train_batch_size": 6, "disable_gradient_checkpointing": True, "overwrite_cache": True,
                 "cache_dir": str(folder), **settings}
    with pytest.raises(Built) as caught:
        tuner._training_function({"args": arguments, "callbacks": []})
    monkeypatch.setattr(workflow, "CustomKTOTrainer", stock)
    built = caught.value.args[0]
    torch.manual_seed(1)
    for name, weight in built.model.named_parameters():
        if "lora_" in name:
            weight.data.copy_(torch.randn(weight.shape) * 0.2)
    return built


def outcome(built, batch: dict) -> tuple[float, dict, dict]:
    """Loss, metrics and gradients of one batch."""
    built.model.zero_grad()
    loss, metrics = built.get_batch_loss_metrics(built.model, built._prepare_inputs(batch))
    loss.backward()
    gradients = {name: weight.grad.clone() for name, weight in built.model.named_parameters() if weight.grad is not None}
    return float(loss), metrics, gradients


def assert_equal(ours, theirs, tolerance: float = 1e-5) -> None:
    """Loss, every metric and every gradient, relative to the size of each."""
    assert ours[0] == pytest.approx(theirs[0], rel=tolerance)
    assert {**ours[1], **{key: 0.0 for key in theirs[1] if "logits" in key}} == pytest.approx(
        {key: 0.0 if "logits" in key else value for key, value in theirs[1].items()}, rel=tolerance, abs=tolerance)
    assert ours[2].keys() == theirs[2].keys() and ours[2]
    for name, gradient in theirs[2].items():
        assert (ours[2][name] - gradient).norm() <= tolerance * gradient.norm() + 1e-9, name


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "settings"), [
    *((kind, {}) for kind in packed.MODELS),
    ("llama", {"disable_gradient_checkpointing": False}),
    ("llama", {"lora_dropout": 0.1, "pref_ftx": 0.5, "kto_chosen_weight": 1.3}),
    ("llama", {"use_dora": True}),  # no lean layers: the reference has a pass of its own
    ("llama", {"lora_target": "q_proj,down_proj", "flash_attn": "sdpa"}),
])
def test_loss_rewards_kl_and_gradients_are_the_stock_trainers(folder, monkeypatch, kind, settings):
    stock, fast = (trainer(folder, monkeypatch, kind, fast, **settings) for fast in (False, True))
    batches = list(stock.get_train_dataloader())
    assert len({len(batch["labels"][0]) for batch in batches}) > 1  # padded to different lengths
    for batch in (*batches, *batches):  # the second time the reference is remembered
        theirs = outcome(stock, batch)
        assert theirs[1]["kl"] != 0 or len(batches) > 1
        assert_equal(outcome(fast, batch), theirs)
    assert len(fast._reference) == 2 * len(ROWS)
