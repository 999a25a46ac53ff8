"""LLaMA-Factory's KTO trainer, faster: the same loss, rewards and KL without the work that it wastes.

LLaMA-Factory 0.9.3 keeps float32 logits of the whole sequence and vocabulary, runs the reference model on every row in
every epoch although it never changes, and computes on padding. Here rows are packed without padding and logits are made
in chunks and for reply tokens only (packed.py), reference log-probabilities are computed once a row, the passes without
gradient are one, nothing waits for the GPU between two log lines, and workers get equally many tokens (dealing.py).
The metric `logits/*`, a raw sum of no use, is 0.
"""

import hashlib
import os
from dataclasses import dataclass

import numpy as np

from . import dealing, packed, reference
from .everyone import EveryWorker

ROWS = "rows_without_padding"


@dataclass
class Rows:
    """A batch's rows and mismatched rows without padding, each's key, and which are accepted; all on the CPU."""

    rows: list[tuple]
    kl_rows: list[tuple]
    keys: list[bytes]
    accepted: object

    @classmethod
    def of(cls, batch: dict, kl: bool = True) -> "Rows":
        rows, kl_rows = packed.rows_of(batch), packed.rows_of(batch, "kl_") if kl else []
        return cls(rows, kl_rows, [key_of(row) for row in (*rows, *kl_rows)], batch["kto_tags"].cpu())


class WithRows:
    """A data collator that adds the batch's `Rows`: made on the CPU while the GPU is at work on the batch before."""

    def __init__(self, collator, kl: bool = True):
        self.collator, self.kl = collator, kl

    def __call__(self, features: list[dict]):
        batch = self.collator(features)
        batch[ROWS] = Rows.of(batch, self.kl)
        return batch


class Accelerated(EveryWorker):
    """To be put before LLaMA-Factory's CustomKTOTrainer among a class's bases: see `accelerated`."""

    loss = "kto"

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        refuse_unproved(self)
        self._one_pass = packed.prepare(self.model)
        self._places: dict[bytes, int] = {}  # a row's key -> the place of its reference log-probability in `_values`
        self._values = None
        self._shared_until = None  # the epoch
        self.data_collator = WithRows(self.data_collator, self.loss == "kto")
        self._open_store()

    def _open_store(self) -> None:
        """Take up the reference log-probabilities that earlier runs left in KTO_REFERENCE_DIR; save ours there too."""
        import torch
        from transformers import TrainerCallback

        self._store, self._unsaved = None, []
        if not (folder := os.environ.get("KTO_REFERENCE_DIR")):
            return
        template = str(getattr(self.data_collator.collator, "template", ""))
        self._store = reference.Store(folder, reference.identity_of(self.model, self.args, template))
        keys, values = self._store.read()
        if keys:
            self._places = {key: place for place, key in enumerate(keys)}
            self._values = torch.from_numpy(values).to(self.args.device)
        print(f"[kto_accelerator] {len(keys)} reference log-probabilities found in {self._store.folder}", flush=True)
        save = self.save_reference

        class SaveReference(TrainerCallback):
            def on_epoch_end(self, args, state, control, **kwargs):
                save()

            on_save = on_train_end = on_evaluate = on_epoch_end

        self.add_callback(SaveReference())

    def save_reference(self) -> None:
        """Write what this worker computed since the last time; a full disk or a lost mount must not end the training."""
        if self._store is None or not self._unsaved:
            return
        keys = [key for part, _ in self._unsaved for key in part]
        try:
            self._store.write(keys, np.concatenate([values.cpu().numpy() for _, values in self._unsaved]))
        except OSError as error:
            print(f"[kto_accelerator] reference log-probabilities were not saved: {error}", flush=True)
        self._unsaved = []

    def get_train_dataloader(self):
        """The stock one, but workers get equally many tokens."""
        return dealing.deal_evenly(super().get_train_dataloader(), self.train_dataset, self.accelerator.num_processes)

    def get_batch_loss_metrics(self, model, batch: dict):
        """Loss (a scalar) and metrics of one padded batch of R rows, as CustomKTOTrainer's method of this name.

        Metrics are tensors of one number each: read only when a line is logged.
        """
        import torch

        given = batch.get(ROWS) or Rows.of(batch, self.loss == "kto")
        with torch.no_grad():
            policy_kl, reference, reference_kl = self._without_gradient(model, given)
            if self.loss == "apo_zero_unpaired":  # KTO's loss with a reference point of 0: no mismatched rows
                policy_kl = reference_kl = reference.new_zeros(1)
        policy = packed.logps(model, given.rows)
        chosen, rejected = (packed.to_device(which.nonzero()[:, 0], policy.device)
                            for which in (given.accepted, ~given.accepted))
        losses, *rewards, kl = self.kto_loss(policy[chosen], policy[rejected], policy_kl,
                                             reference[chosen], reference[rejected], reference_kl)
        loss = losses.nanmean()
        if self.ftx_gamma > 1e-6 and len(chosen):
            lengths = (batch["labels"][:, 1:] != self.label_pad_token_id).sum(-1)
            loss = loss - self.ftx_gamma * (policy / lengths)[chosen].nanmean() / len(chosen) * len(given.rows)
        metrics = {"kl": kl} | sums("chosen", rewards[0], policy[chosen]) | sums("rejected", rewards[1], policy[rejected])
        self.keep(model, metrics)
        return loss, metrics

    def _without_gradient(self, model, given: Rows):
        """(R,) log-probabilities: the policy's of mismatched rows, the reference's of rows, and of mismatched rows."""
        import torch

        every = zip(given.keys, (*given.rows, *given.kl_rows), strict=True)
        unknown = {key: row for key, row in every if key not in self._places}
        fresh, kl_rows = list(unknown.values()), given.kl_rows
        if self._one_pass:
            policy_kl, found = packed.logps(model, kl_rows + fresh, adapted=len(kl_rows)).tensor_split([len(kl_rows)])
        else:
            policy_kl, found = packed.logps(model, kl_rows), self._adapter_off(model, fresh)
        self._learn(list(unknown), found)
        places = packed.to_device(torch.tensor([self._places[key] for key in given.keys]), policy_kl.device)
        return policy_kl, *self._values[places].tensor_split([len(given.rows)])

    def _adapter_off(self, model, rows: list):
        """(R,) log-probabilities with the whole adapter switched off: where it cannot be limited to some rows."""
        import torch

        if not rows:
            return torch.empty(0, device=self.args.device)
        with self.accelerator.unwrap_model(model).disable_adapter():
            return packed.logps(model, rows)

    def _learn(self, keys: list[bytes], found) -> None:
        """Keep new reference log-probabilities, here and, where they are shared, in every worker."""
        import torch

        if keys and self._store is not None:
            self._unsaved.append((keys, found))
        if self._sharing():
            from accelerate.utils import gather_object

            learnt = gather_object([dict(zip(keys, found.tolist(), strict=True))])
            new = {key: value for worker in learnt for key, value in worker.items() if key not in self._places}
            keys, found = list(new), torch.tensor(list(new.values()), device=found.device)
        self._places |= {key: len(self._places) + place for place, key in enumerate(keys)}
        self._values = found if self._values is None else torch.cat([self._values, found])

    def _sharing(self) -> bool:
        """Whether workers tell each other what they learn: next epoch a row may come to another worker.

        In the first epoch after a start or resumption, then every row is known; not in an evaluation, which deals the
        same rows to the same workers each time. The answer is the same in all workers, for they wait for each other.
        """
        if self.accelerator.num_processes == 1 or not self.model.training:
            return False
        epoch = self.state.epoch or 0.0
        self._shared_until = self._shared_until or epoch + 1
        return epoch < self._shared_until


def key_of(row: tuple) -> bytes:
    """A row's identity: the hash of its tokens and labels."""
    return hashlib.blake2b(b"".join(part.numpy().tobytes() for part in row), digest_size=16).digest()


def sums(label: str, rewards, logps) -> dict:
    """The sums and the count that CustomKTOTrainer's `log` divides; nothing where there is no row of that label."""
    if not len(rewards):
        return {}
    return {f"rewards/{label}_sum": rewards.nansum(), f"logps/{label}_sum": logps.detach().nansum(),
            f"logits/{label}_sum": 0.0, f"count/{label}": float(len(rewards))}


def refuse_unproved(trainer) -> None:
    """RuntimeError for a training that the accelerator was not proved for."""
    settings, found = trainer.finetuning_args, []
    if settings.finetuning_type != "lora" or trainer.ref_model is not None:
        found.append(f"finetuning_type {settings.finetuning_type}" + (" with ref_model" if trainer.ref_model else ""))
    if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        found.append("DeepSpeed or FSDP")
    if trainer.args.neftune_noise_alpha:
        found.append("neftune_noise_alpha")
    if found:
        raise RuntimeError(f"the accelerator is not proved for {', '.join(found)}\n"
                           "  expected: LoRA or QLoRA, one process a GPU\n  fix:      train without the accelerator")


def accelerated(trainer: type, loss: str = "kto") -> type:
    """The accelerated version of CustomKTOTrainer, with one of enable.LOSSES."""
    return type("AcceleratedKTOTrainer", (Accelerated, trainer), {"loss": loss})
