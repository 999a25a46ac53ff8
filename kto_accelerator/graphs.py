"""CUDA graphs of the model's layers, for FP8: a step's thousands of kernels are launched at once instead of one by one from Python.

With 8-bit products the GPU would wait for those launches. A graph repeats the same kernels on the same memory, so it serves passes
of one shape; packed rows are padded to multiples of STEPS, which leaves a dozen. Graphs of one kind share their memory: those with
a backward to come, and those without gradient, which run between such a pass and its backward.
"""

import gc
from dataclasses import replace

import torch

from .attention import Memory
from .lean import LeanLayer

STEPS = (256, 2048)
"""Tokens and keys that passes are padded to multiples of (packed.pack). Padding with keys costs their copy only."""
LONGEST_STEPS = (1024, 4096)
"""What the tokens and keys of the longest row are rounded up to: attention skips what is not there."""
USUAL = 3
"""Passes of a kind that run as usual first: in them kernels are compiled and loaded, which a graph must not do."""


class Graphs:
    """Runs `layers(rows, memory)` -> hidden states (1, T, width), through graphs where it can.

    `parameters`: those that are trained. `tokens`: most tokens of a pass over rows; longer ones run as usual.
    """

    def __init__(self, layers, parameters: list, tokens: int):
        self.layers, self.parameters, self.tokens = layers, parameters, tokens + STEPS[0]
        self.room: dict = {}  # keys and values by layer of the last pass over rows: always in the same place
        self.usual: dict[tuple, int] = {}
        self.made: dict[tuple, Graph] = {}
        self.pools = {learns: torch.cuda.graph_pool_handle() for learns in (True, False)}
        self.gradients = [torch.zeros_like(parameter) for parameter in parameters]

    def __call__(self, rows, memory):
        tokens, shares, learns = rows.input_ids.shape[1], rows.keys is not None, torch.is_grad_enabled()
        if LeanLayer.first_tokens is not None or tokens > self.tokens or (shares and not memory.room):
            return self.layers(rows, memory)
        if not shares:
            memory.room, memory.capacity = self.room, self.tokens
        self.usual[shares, learns] = self.usual.get((shares, learns), 0) + 1
        if self.usual[shares, learns] <= USUAL:
            return self.layers(rows, memory)
        if shares:  # a graph sees the whole room, of which so many places are filled
            filled = len(memory[0][0])
            rows = replace(rows, keys=torch.where(rows.keys < filled, rows.keys, rows.keys + (self.tokens - filled)))
            memory = Memory(self.room)
        longest = [-(-size // step) * step for size, step in zip((rows.longest, rows.longest_key), LONGEST_STEPS, strict=True)]
        shape = tokens, len(rows.bounds), len(rows.keys) if shares else 0, *longest, learns
        if shape not in self.made:
            self.made[shape] = Graph(self, replace(rows, longest=longest[0], longest_key=longest[1]), memory, learns)
        return self.made[shape].run(rows, memory, self.parameters)


class Graph:
    """One captured pass."""

    def __init__(self, graphs: Graphs, rows, memory, learns: bool):
        self.rows, self.learns, self.gradients = rows.each(torch.clone), learns, graphs.gradients
        gc.collect()
        gc.freeze()  # a capture collects garbage twice, which takes long where all libraries are looked through
        how = {"pool": graphs.pools[learns], "capture_error_mode": "thread_local"}
        kept = torch.autocast("cuda", torch.get_autocast_dtype("cuda"), torch.is_autocast_enabled("cuda"), cache_enabled=False)
        self.forward = torch.cuda.CUDAGraph()
        with kept, torch.cuda.graph(self.forward, **how):
            hidden = graphs.layers(self.rows, memory)
        if learns:
            self.gradient, self.backward = torch.zeros_like(hidden), torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.backward, **how):
                torch._foreach_copy_(self.gradients, torch.autograd.grad(hidden, graphs.parameters, self.gradient))
        self.hidden = hidden.detach()

    def run(self, rows, memory, parameters: list):
        for there, new in zip(self.rows.layout(), rows.layout(), strict=True):
            there.copy_(new)
        if rows.keys is None:
            memory.fill(rows.input_ids.shape[1])
        if self.learns:
            return Replay.apply(self, *parameters)
        self.forward.replay()
        return self.hidden


class Replay(torch.autograd.Function):
    """A graph's pass as one node of autograd."""

    @staticmethod
    def forward(ctx, graph: Graph, *parameters):
        graph.forward.replay()
        ctx.graph = graph
        return graph.hidden.detach()

    @staticmethod
    def backward(ctx, gradient):
        ctx.graph.gradient.copy_(gradient)
        ctx.graph.backward.replay()
        return None, *torch._foreach_mul(ctx.graph.gradients, 1.0)  # copies: the next batch's backward writes there again
