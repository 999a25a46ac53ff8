"""Gradients averaged over all workers after the pass backward, in the place of torch's DistributedDataParallel.

That one holds a hook and makes two copies for each of an adapter's hundreds of tensors, which keep the CPU busy while the GPU waits;
it lets workers wait for each other once more, for buffers that never change; and it holds on to nodes of autograd that CUDA graphs
(graphs.py) cannot capture then. It hides the sending behind the computing, which pays where whole models are trained: an adapter's
gradients are one message of some 80 MB.
"""

from functools import partial


class Averaging:
    """To be put before a transformers Trainer among a class's bases."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        # As for an evaluation: all that training wants but DistributedDataParallel.
        self.accelerator.prepare_model = partial(self.accelerator.prepare_model, evaluation_mode=True)
        if self.accelerator.num_processes > 1:
            from torch.distributed import broadcast

            for parameter in self.trained():
                broadcast(parameter.data, 0)

    def trained(self) -> list:
        """The parameters that are trained."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def training_step(self, *args, **kwargs):
        loss = super().training_step(*args, **kwargs)
        if self.accelerator.num_processes > 1 and self.accelerator.sync_gradients:  # not between micro-batches
            average(self.trained())
        return loss


def average(parameters: list) -> None:
    """The gradient of each parameter becomes the mean of all workers'; one that a worker has not counts as 0 there."""
    import torch
    from torch.distributed import all_reduce, get_world_size

    for kind in dict.fromkeys(parameter.dtype for parameter in parameters):  # not a set: all workers are to take them in one order
        some = [parameter for parameter in parameters if parameter.dtype == kind]
        gradients = [torch.zeros_like(one) if one.grad is None else one.grad for one in some]
        message = torch.cat([gradient.flatten() for gradient in gradients])
        all_reduce(message)
        message /= get_world_size()
        for parameter, part in zip(some, message.split([one.numel() for one in some]), strict=True):
            parameter.grad = part.view_as(parameter)
