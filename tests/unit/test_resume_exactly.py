"""Going on within an epoch: transformers' own trainer, with and without the corrections; no Ray."""

import inspect

import pytest

from helpers import resume_exactly

ROWS, ACCUMULATION, STEPS = 28, 3, 9
"""4 rows a micro-batch: 7 micro-batches an epoch, so its third update is of one micro-batch only."""


@pytest.fixture
def uncorrected(monkeypatch):
    """transformers' training loop as it was installed, put back afterwards."""
    from transformers import trainer

    monkeypatch.setattr(trainer, "skip_first_batches", trainer.skip_first_batches)
    monkeypatch.setattr(trainer.Trainer, "_inner_training_loop", trainer.Trainer._inner_training_loop)


def train(folder, resume_from=None):
    """The weights after a training with a save a step, and the step it ended with."""
    import torch
    from transformers import Trainer, TrainingArguments

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(4, 1)

        def forward(self, x):
            return {"loss": (self.layer(torch.nn.functional.dropout(x, 0.5, self.training)) - x[:, :1]).square().mean()}

    torch.manual_seed(0)
    rows = [{"x": row} for row in torch.randn(ROWS, 4)]
    settings = TrainingArguments(
        output_dir=str(folder), max_steps=STEPS, save_steps=1, per_device_train_batch_size=4, use_cpu=True,
        gradient_accumulation_steps=ACCUMULATION, learning_rate=0.1, report_to=[], disable_tqdm=True, logging_steps=100)
    trainer = Trainer(model=Model(), args=settings, train_dataset=rows)
    trainer.train(resume_from_checkpoint=str(resume_from) if resume_from else None)
    return trainer.model.layer.weight.detach().clone(), trainer.state.global_step


@pytest.mark.slow
def test_a_resume_at_any_step_of_any_epoch_ends_with_the_same_weights(tmp_path, uncorrected):
    whole, _ = train(tmp_path / "whole")
    resume_exactly.install()
    resume_exactly.install()  # a second time changes nothing
    for step in (1, 3, 4, 5, 8):
        weights, ended = train(tmp_path / f"from-{step}", tmp_path / "whole" / f"checkpoint-{step}")
        assert ended == STEPS and weights.equal(whole), f"from step {step}"


@pytest.mark.slow
def test_without_the_corrections_it_is_exact_at_an_epochs_end_only(tmp_path, uncorrected):
    """transformers 4.52 loses the last update too; 4.57 takes it, on rows in the wrong order."""
    from transformers import Trainer

    loop = inspect.getsource(Trainer._inner_training_loop)
    loses = not any(words in loop for words in resume_exactly.FIXED)
    whole, _ = train(tmp_path / "whole")
    assert train(tmp_path / "at-the-end", tmp_path / "whole" / "checkpoint-3")[0].equal(whole)
    weights, ended = train(tmp_path / "within", tmp_path / "whole" / "checkpoint-4")
    assert (ended < STEPS) == loses and not weights.equal(whole)


def test_another_training_loop_is_refused(uncorrected, monkeypatch):
    from transformers import trainer

    monkeypatch.setattr(trainer.Trainer, "_inner_training_loop", lambda self: None)
    with pytest.raises(RuntimeError, match="nobody has checked"):
        resume_exactly.install()
