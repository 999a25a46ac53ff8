"""llamafactory-cli with a faster KTO trainer: the same loss, rewards and KL, computed without what LLaMA-Factory leaves lying.

LLaMA-Factory 0.9.3 keeps float32 logits of the whole sequence and vocabulary, runs the reference model on every row in every
epoch though it never changes, and computes on padding. Here (helpers.packed does the tensors) rows are packed without padding,
logits are made in chunks and for reply tokens only, reference log-probabilities are kept from the first time a row is seen, and
the passes without gradient are one. `python -m helpers.accelerator train CONFIG` is otherwise `llamafactory-cli train CONFIG`,
with or without GPUs. For LoRA and QLoRA, one process a GPU; anything else is refused at the start. The metric `logits/*`, a raw
sum of no use, is logged as 0.
"""

import hashlib
import sys

from . import packed

VERSION = "0.9.3"


class Accelerated:
    """To be put before LLaMA-Factory's CustomKTOTrainer among a class's bases: see `accelerated`."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        refuse_unproved(self)
        self._one_pass = packed.prepare(self.model)
        self._reference: dict[bytes, float] = {}

    def get_batch_loss_metrics(self, model, batch: dict):
        """Loss (a scalar) and metrics of one padded batch of R rows, as CustomKTOTrainer's method of this name gives them."""
        import torch

        rows, kl_rows, tags = packed.rows_of(batch), packed.rows_of(batch, "kl_"), batch["kto_tags"]
        with torch.no_grad():
            policy_kl, reference, reference_kl = self._without_gradient(model, rows, kl_rows)
        policy = packed.logps(model, rows)
        losses, chosen, rejected, kl = self.kto_loss(policy[tags], policy[~tags], policy_kl,
                                                     reference[tags], reference[~tags], reference_kl)
        loss = losses.nanmean()
        if self.ftx_gamma > 1e-6 and len(chosen):
            lengths = (batch["labels"][:, 1:] != self.label_pad_token_id).sum(-1)
            loss = loss - self.ftx_gamma * (policy / lengths)[tags].nanmean() / len(chosen) * len(tags)
        return loss, _metrics(policy.detach(), tags, chosen, rejected, kl)

    def _without_gradient(self, model, rows: list, kl_rows: list):
        """(R,) log-probabilities of the policy on `kl_rows`, of the reference on `rows`, of the reference on `kl_rows`."""
        import torch

        keys = [key_of(row) for row in (*rows, *kl_rows)]
        unknown = {key: row for key, row in zip(keys, (*rows, *kl_rows), strict=True) if key not in self._reference}
        fresh = list(unknown.values())
        if self._one_pass:
            policy_kl, found = packed.logps(model, kl_rows + fresh, adapted=len(kl_rows)).split([len(kl_rows), len(fresh)])
        else:
            policy_kl, found = packed.logps(model, kl_rows), policy_free(self, model, fresh)
        self._learn(dict(zip(unknown, found.tolist(), strict=True)))
        known = torch.tensor([self._reference[key] for key in keys], device=policy_kl.device)
        return policy_kl, *known.split([len(rows), len(kl_rows)])

    def _learn(self, found: dict[bytes, float]) -> None:
        """Keep new reference log-probabilities, here and in every worker: next epoch a row may come to another one."""
        if self.accelerator.num_processes > 1:
            from accelerate.utils import gather_object

            for others in gather_object([found]):
                self._reference.update(others)
        self._reference.update(found)


def key_of(row: tuple) -> bytes:
    """A row's identity: the hash of its tokens and labels."""
    return hashlib.blake2b(b"".join(part.numpy().tobytes() for part in row), digest_size=16).digest()


def policy_free(trainer, model, rows: list):
    """(R,) log-probabilities with the whole adapter switched off: for adapters that cannot be limited to some rows."""
    import torch

    if not rows:
        return torch.empty(0)
    with trainer.accelerator.unwrap_model(model).disable_adapter():
        return packed.logps(model, rows)


def _metrics(policy, tags, chosen, rejected, kl) -> dict[str, float]:
    """The sums and counts that CustomKTOTrainer's `log` divides, fetched from the device at once."""
    import torch

    parts = [part.nansum() for part in (chosen, rejected, policy[tags], policy[~tags])]
    sums = torch.stack([*(part.float().to(kl.device) for part in parts), kl.float()]).tolist()
    metrics = {"kl": sums[4]}
    for place, (label, rewards) in enumerate((("chosen", chosen), ("rejected", rejected))):
        if len(rewards):
            metrics |= {f"rewards/{label}_sum": sums[place], f"logps/{label}_sum": sums[place + 2],
                        f"logits/{label}_sum": 0.0, f"count/{label}": float(len(rewards))}
    return metrics


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
        raise RuntimeError(f"the accelerator is not proved for {', '.join(found)}\n  expected: LoRA or QLoRA, one process a GPU\n"
                           "  to do:    train without the accelerator")


def accelerated(trainer: type) -> type:
    """The accelerated version of CustomKTOTrainer."""
    return type("AcceleratedKTOTrainer", (Accelerated, trainer), {})


def install() -> None:
    """Put the accelerated trainer in the place of LLaMA-Factory's, in this process; RuntimeError if it is not the code we know."""
    from llamafactory.extras.env import VERSION as found
    from llamafactory.train.kto import workflow

    if found != VERSION:
        raise RuntimeError(f"the accelerator knows LLaMA-Factory {VERSION}, this is {found}\n"
                           "  to do:    run `make install`, or train without the accelerator")
    if not issubclass(workflow.CustomKTOTrainer, Accelerated):
        workflow.CustomKTOTrainer = accelerated(workflow.CustomKTOTrainer)


_stock = None
"""LLaMA-Factory's own training function, kept where `training_function` has taken its place."""


def training_function(config: dict) -> None:
    """What every worker runs. Ray sends it by name: this package must be importable where the workers are."""
    from llamafactory.train import tuner

    install()
    (_stock or tuner._training_function)(config)


def replace_training_function() -> None:
    """In the launching process: LLaMA-Factory's workers run `training_function`, with GPUs or without."""
    from llamafactory.train import trainer_utils, tuner

    from . import cpu

    global _stock
    cpu.replace_scaling_config(trainer_utils)
    install()
    _stock, tuner._training_function = tuner._training_function, training_function


def main() -> None:
    """Replace, then run LLaMA-Factory's own command line with this process's arguments."""
    from llamafactory import cli

    from helpers import accelerator  # by its real name, not as __main__: Ray's workers import it

    accelerator.replace_training_function()
    sys.argv[0] = "llamafactory-cli"
    cli.main()


if __name__ == "__main__":
    main()
