"""Ray Train's report callback, made to wait until a save is complete, and to go on exactly where a save was.

In Ray 2.48's callback every worker copies `output_dir/checkpoint-N` the moment its own part is written, while worker 0 may still be
writing the weights: the copy then fails, or holds half a file and is uploaded over the whole one. A barrier before the
copy ends that. Used where this project starts the process (helpers.process.cpu, helpers.process.accelerator).
"""

import torch.distributed
from ray.train.huggingface.transformers import RayTrainReportCallback

from . import exact


class WaitingReportCallback(RayTrainReportCallback):
    """RayTrainReportCallback whose copy begins when all workers have written their part of the checkpoint."""

    def on_init_end(self, args, state, control, **kwargs):
        """In each worker, before it trains: see helpers.process.exact."""
        if args.resume_from_checkpoint:
            exact.install()

    def on_save(self, args, state, control, **kwargs):
        """A barrier over all workers, then Ray's own copy and report."""
        if torch.distributed.is_initialized():
            torch.distributed.barrier()
        super().on_save(args, state, control, **kwargs)
