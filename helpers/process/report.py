"""Ray Train's report callback, made to wait until a save is complete.

In Ray 2.48's callback every worker copies `output_dir/checkpoint-N` the moment its own part is written, while worker 0 may still be
writing the weights: the copy then fails, or holds half a file and is uploaded over the whole one. A barrier before the
copy ends that. Used where this project starts the process (helpers.process.cpu, helpers.process.accelerator).
"""

import torch.distributed
from ray.train.huggingface.transformers import RayTrainReportCallback


class WaitingReportCallback(RayTrainReportCallback):
    """RayTrainReportCallback whose copy begins when all workers have written their part of the checkpoint."""

    def on_save(self, args, state, control, **kwargs):
        """A barrier over all workers, then Ray's own copy and report."""
        if torch.distributed.is_initialized():
            torch.distributed.barrier()
        super().on_save(args, state, control, **kwargs)
