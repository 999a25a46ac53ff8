"""LLaMA-Factory's KTO trainer, faster: the same loss, rewards and KL without the work that it wastes.

LLaMA-Factory 0.9.3 keeps float32 logits of the whole sequence and vocabulary, runs the reference model on every row in
every epoch although it never changes, and computes on padding and on every prompt twice. Here rows are packed without
padding, logits are made in chunks and for reply tokens only, a prompt is computed once (packed.py), reference
log-probabilities are computed once a row, the passes without gradient are one, nothing waits for the GPU between two log
lines, batches are packed by processes of the data loader, and workers get equally many tokens (dealing.py).
The metric `logits/*`, a raw sum of no use, is 0.
"""

import hashlib
import os
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from . import attention, dealing, packed, reference
from .averaging import Averaging
from .enable import refuse_unproved
from .everyone import EveryWorker
from .lean import remember

ROWS = "rows_without_padding"


@dataclass
class Rows:
    """A batch of R rows and their mismatched rows (none: the loss without KL), all on the CPU.

    `tokens`: (2, N) ids and labels of all of them end to end, without padding; `lengths`, `keys`: of each; `shared`: how many tokens
    each mismatched row has in common with its row; `policy`, `mismatched`: both packed, the latter to share keys with the former.
    """

    tokens: object
    lengths: list[int]
    keys: list[bytes]
    accepted: object
    shared: list[int]
    policy: packed.Packed
    mismatched: packed.Packed | None

    @classmethod
    def of(cls, batch: dict, kl: bool = True, share: bool = True, steps: tuple[int, int] = (0, 0)) -> "Rows":
        import torch

        rows, kl_rows = packed.rows_of(batch), packed.rows_of(batch, "kl_") if kl else []
        every = [*rows, *kl_rows]
        shared = packed.shared_tokens(rows, kl_rows) if share and kl else [0] * len(kl_rows)
        made = cls(torch.stack([torch.cat(parts) for parts in zip(*every, strict=True)]), [len(ids) for ids, _ in every],
                   [key_of(row) for row in every], batch["kto_tags"].cpu(), shared, packed.pack(rows, steps=steps), None)
        return replace(made, mismatched=packed.pack(kl_rows, made.beside_rows(), made.before, steps)) if kl_rows else made

    @property
    def before(self) -> int:
        """Tokens of the pass over the rows, padding included."""
        return self.policy.input_ids.shape[1]

    def rows(self) -> list[tuple]:
        """(ids, labels) of rows, then of mismatched rows."""
        return list(zip(*(part.split(self.lengths) for part in self.tokens), strict=True))

    def beside_rows(self) -> list[tuple[int, int]]:
        """Of each mismatched row, where the tokens it shares lie in the pass over the rows, and how many they are."""
        starts = np.cumsum([0, *self.lengths])[:len(self.shared)].tolist()
        return list(zip(starts, self.shared, strict=True))

    def pin_memory(self) -> "Rows":
        """For the data loader: copies that a GPU can fetch by itself."""
        pinned = [part and part.each(lambda tensor: tensor.pin_memory()) for part in (self.policy, self.mismatched)]
        return replace(self, policy=pinned[0], mismatched=pinned[1])


def with_rows(collator, settings: tuple, features: list[dict]) -> dict:
    """The collator's batch with its `Rows`: made on the CPU while the GPU is at work on the batch before."""
    batch = collator(features)
    batch[ROWS] = Rows.of(batch, *settings)
    return batch


class Accelerated(Averaging, EveryWorker):
    """To be put before LLaMA-Factory's CustomKTOTrainer among a class's bases: see `accelerated`."""

    loss, fp8 = "kto", False

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        refuse_unproved(self)
        self._places: dict[bytes, int] = {}  # a row's key -> the place of its reference log-probability in `_values`
        self._values = None
        self._untold, self._epoch = [], None  # what the other workers do not know yet, since which epoch
        self._share = self.model.get_base_model().config._attn_implementation == "sdpa"
        self._open_store()  # looks at the weights, which may be quantised next
        steps, tokens = (0, 0), 0  # no graphs
        if self.fp8 and self.args.device.type == "cuda" and self._share and not self.model.is_gradient_checkpointing:
            from .graphs import STEPS

            steps = STEPS
            tokens = self.args.per_device_train_batch_size * max(dealing.lengths_of(self.train_dataset))
        self._one_pass = packed.prepare(self.model, self.fp8, tokens)
        remember(self.model)
        self._settings = self.loss == "kto", self._share, steps
        self.data_collator = partial(with_rows, self.data_collator, self._settings)

    def _open_store(self) -> None:
        """Take up the reference log-probabilities that earlier runs left in KTO_REFERENCE_DIR; save ours there too."""
        import torch
        from transformers import TrainerCallback

        self._store, self._unsaved = None, []
        if not (folder := os.environ.get("KTO_REFERENCE_DIR")):
            return
        template = str(getattr(self.data_collator, "template", ""))
        identity = reference.identity_of(self.model, self.args, template) | ({"fp8": True} if self.fp8 else {})
        self._store = reference.Store(folder, identity)
        keys, values = self._store.read()
        if keys:
            self._places = {key: place for place, key in enumerate(keys)}
            self._values = torch.from_numpy(values).to(self.args.device)
        print(f"[kto_accelerator] {len(keys)} reference log-probabilities found in {self._store.folder}", flush=True)
        moments = ("on_epoch_end", "on_save", "on_train_end", "on_evaluate")
        saves = dict.fromkeys(moments, lambda *_, **__: self.save_reference())
        self.add_callback(type("SaveReference", (TrainerCallback,), saves)())

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
        """The stock one, but workers get equally many tokens; on a GPU two processes make batches ahead, if nothing else is asked."""
        if self.args.device.type == "cuda" and not self.args.dataloader_num_workers:
            self.args.dataloader_num_workers, self.args.dataloader_persistent_workers = 2, True
        return dealing.deal_evenly(super().get_train_dataloader(), self.train_dataset, self.accelerator.num_processes, self._share)

    def get_batch_loss_metrics(self, model, batch: dict):
        """Loss (a scalar) and metrics of one padded batch of R rows, as CustomKTOTrainer's method of this name.

        Metrics are tensors of one number each: read only when a line is logged.
        """
        import torch

        self._tell_workers()
        given = batch.get(ROWS) or Rows.of(batch, *self._settings)
        memory = attention.Memory() if self._share else None
        policy = packed.logps(model, given.policy, memory=memory)
        with torch.no_grad():
            policy_kl, reference, reference_kl = self._without_gradient(model, given, memory)
            if self.loss == "apo_zero_unpaired":  # KTO's loss with a reference point of 0: no mismatched rows
                policy_kl = reference_kl = reference.new_zeros(1)
        del memory
        chosen, rejected = (packed.to_device(which.nonzero()[:, 0], policy.device)
                            for which in (given.accepted, ~given.accepted))
        losses, *rewards, kl = self.kto_loss(policy[chosen], policy[rejected], policy_kl,
                                             reference[chosen], reference[rejected], reference_kl)
        loss = losses.nanmean()
        if self.ftx_gamma > 1e-6 and len(chosen):
            lengths = (batch["labels"][:, 1:] != self.label_pad_token_id).sum(-1)
            loss = loss - self.ftx_gamma * (policy / lengths)[chosen].nanmean() / len(chosen) * len(given.accepted)
        metrics = {"kl": kl} | sums("chosen", rewards[0], policy[chosen]) | sums("rejected", rewards[1], policy[rejected])
        self.keep(model, metrics)
        return loss, metrics

    def _without_gradient(self, model, given: Rows, memory: attention.Memory | None):
        """(R,) log-probabilities: the policy's of mismatched rows, the reference's of rows, and of mismatched rows.

        `memory`: keys and values of the policy's pass over the rows.
        """
        import torch

        new = {key: place for place, key in enumerate(given.keys) if key not in self._places}
        policy_kl = found = torch.empty(0, device=next(model.parameters()).device)
        if new and self._one_pass:
            policy_kl, found = logps_with_new(model, given, list(new.values()), memory).tensor_split([len(given.shared)])
        else:
            if given.mismatched:
                policy_kl = packed.logps(model, given.mismatched, memory=memory, again=True)
            if new:  # the adapter cannot be limited to some rows
                rows = given.rows()
                with model.disable_adapter():
                    found = packed.logps(model, packed.pack([rows[place] for place in new.values()]), again=True)
        self._learn(list(new), found)
        places = packed.to_device(torch.tensor([self._places[key] for key in given.keys]), self._values.device)
        return policy_kl, *self._values[places].tensor_split([len(given.accepted)])

    def _learn(self, keys: list[bytes], found) -> None:
        """Keep new reference log-probabilities: `found`, a tensor with one for each of `keys`."""
        if keys and self._store is not None:
            self._unsaved.append((keys, found))
        if keys and self.model.training and self.accelerator.num_processes > 1:  # an evaluation deals the same rows to the same workers
            self._untold.append((keys, found))
        self._add(keys, found)

    def _add(self, keys: list[bytes], found) -> None:
        import torch

        self._places |= {key: len(self._places) + place for place, key in enumerate(keys)}
        self._values = found if self._values is None else torch.cat([self._values, found])

    def _tell_workers(self) -> None:
        """When an epoch begins, workers tell each other what they learnt in the one before: a row may come to another one now.

        Not after each batch: that waits for the GPU. The epoch is the same in all workers, for they wait for each other.
        """
        epoch = int(self.state.epoch or 0)
        if self.accelerator.num_processes == 1 or not self.model.training or epoch == self._epoch:
            return
        import torch
        from accelerate.utils import gather_object

        mine = {key: value for keys, found in self._untold for key, value in zip(keys, found.tolist(), strict=True)}
        self._untold, self._epoch = [], epoch
        new = {key: value for learnt in gather_object([mine]) for key, value in learnt.items() if key not in self._places}
        self._add(list(new), torch.tensor(list(new.values()), device=self.args.device))


def logps_with_new(model, given: Rows, new: list[int], memory: attention.Memory | None):
    """One pass: mismatched rows, then with the adapter off the rows of the places `new`, which share prompts among each other."""
    rows, sharing, count = given.rows(), given.beside_rows(), len(given.accepted)
    adapted = sum(given.lengths[count:]) - sum(given.shared)
    begin, starts = given.before + adapted, {}  # where a new row's tokens begin
    for place in new:
        starts[place] = begin
        alike = (starts[place - count], given.shared[place - count]) if place - count in starts else (0, 0)
        sharing.append(alike)
        begin += given.lengths[place] - alike[1]
    laid = packed.pack([*rows[count:], *(rows[place] for place in new)], sharing, given.before)
    return packed.logps(model, laid, adapted, memory, again=True)


def key_of(row: tuple) -> bytes:
    """A row's identity: the hash of its tokens and labels."""
    return hashlib.blake2b(b"".join(part.numpy().tobytes() for part in row), digest_size=16).digest()


def sums(label: str, rewards, logps) -> dict:
    """The sums and the count that CustomKTOTrainer's `log` divides; nothing where there is no row of that label."""
    if not len(rewards):
        return {}
    return {f"rewards/{label}_sum": rewards.nansum(), f"logps/{label}_sum": logps.detach().nansum(),
            f"logits/{label}_sum": 0.0, f"count/{label}": float(len(rewards))}


def accelerated(trainer: type, loss: str = "kto", fp8: bool = False) -> type:
    """The accelerated version of CustomKTOTrainer, with one of enable.LOSSES."""
    return type("AcceleratedKTOTrainer", (Accelerated, trainer), {"loss": loss, "fp8": fp8})
