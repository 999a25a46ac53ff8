"""Figures of all workers' rows in every log line, and the area under the ROC curve with every evaluation, for either trainer.

LLaMA-Factory's KTO trainer stores rewards and log-probabilities on worker 0 only. Here each worker keeps its own, and the sums are
gathered when a line is logged. `kl` is all workers' in either: it stays the sum over worker 0's batches.
"""

from .enable import VERSIONS

METRICS = ("kl", "count/chosen", "count/rejected",
           *(f"{what}/{label}_sum" for label in ("chosen", "rejected") for what in ("rewards", "logps", "logits")))
"""What a batch's metrics are called between two log lines: sums, and counts of rows."""


class EveryWorker:
    """To be put before LLaMA-Factory's CustomKTOTrainer among a class's bases."""

    _told = False

    def get_batch_loss_metrics(self, model, batch: dict):
        """As CustomKTOTrainer's; the metrics are kept on this worker, whichever it is."""
        loss, metrics = super().get_batch_loss_metrics(model, batch)
        self.keep(model, metrics)
        return loss, metrics

    def keep(self, model, metrics: dict) -> None:
        """Store metrics where the caller does not: it stores worker 0's."""
        if not self.accelerator.is_main_process:
            self.store_metrics(metrics, train_eval="train" if model.training else "eval")

    def kto_loss(self, *logps):
        """As KTOTrainer's; while evaluating the rows' rewards are kept, for the area."""
        losses, accepted, rejected, kl = super().kto_loss(*logps)
        if not self.model.training:
            self.__dict__.setdefault("_rewards", []).append((accepted.detach(), rejected.detach()))
        return losses, accepted, rejected, kl

    def log(self, logs: dict, *args, **kwargs) -> None:
        """Log the means over all workers' rows, with `eval_rewards/auc` where this is an evaluation with rows of both labels."""
        import torch

        if self.accelerator.num_processes > 1:
            kind, main = "train" if "loss" in logs else "eval", self.accelerator.is_main_process
            stored = self._stored_metrics.pop(kind, {})
            mine = [float(sum(stored.get(name, ()))) if main or name != "kl" else 0.0 for name in METRICS]
            every = self.accelerator.reduce(torch.tensor(mine, device=self.accelerator.device), "sum").tolist()
            found = dict(zip(METRICS, every, strict=True))
            labels = [label for label in ("chosen", "rejected") if found[f"count/{label}"]]
            if main and "kl" in stored:  # all on worker 0; CustomKTOTrainer adds the others' nothing
                names = ["kl", *(name for name in METRICS if any(label in name for label in labels))]
                self._stored_metrics[kind].update({name: [found[name]] for name in names})
                if not self._told:
                    print(f"[kto] metrics of all {self.accelerator.num_processes} workers", flush=True)
                    self._told = True
        if any(key.startswith("eval") and key.endswith("_loss") for key in logs):
            kept = zip(*self.__dict__.pop("_rewards", []), strict=True)  # accepted rows' rewards by batch, rejected rows'
            rewards = [[float(value) for part in parts for value in part] for parts in kept]
            if self.accelerator.num_processes > 1:
                from accelerate.utils import gather_object

                rewards = [sum(parts, []) for parts in zip(*filter(None, gather_object([rewards])), strict=True)]
            if rewards and all(rewards):
                logs["eval_rewards/auc"] = area(*rewards)
        super().log(logs, *args, **kwargs)


def area(accepted: list[float], rejected: list[float]) -> float:
    """How often an accepted row's reward is above a rejected one's, equal ones half: the area under the ROC curve."""
    import numpy as np

    below, values = np.sort(rejected), np.asarray(accepted)
    places = np.searchsorted(below, values, "left") + np.searchsorted(below, values, "right")
    return float(places.mean() / 2 / len(below))


def install() -> None:
    """Put EveryWorker before LLaMA-Factory's KTO trainer in this process; call it in every worker. Other versions stay as they are."""
    from llamafactory.extras.env import VERSION
    from llamafactory.train.kto import workflow

    stock = workflow.CustomKTOTrainer
    if VERSION in VERSIONS and not issubclass(stock, EveryWorker):
        workflow.CustomKTOTrainer = type("CustomKTOTrainer", (EveryWorker, stock), {})
