"""A frozen product with its adapter on a GPU, in three ways: `python benchmarks/gpu_products.py [TOKENS ...]`.

Milliseconds for all products of Llama-3-8B's 32 layers in one pass: the frozen products alone, the adapter added afterwards, and
the adapter's part first with the frozen product added to it (as lean.py does it); forward and backward, rank 8, bf16.
"""

import sys

import torch
from torch.nn.functional import linear

SHAPES = [(4096, 4096, 2), (4096, 1024, 2), (4096, 14336, 2), (14336, 4096, 1)]  # inputs, outputs, how many a layer


def seconds(run, times: int = 30) -> float:
    for _ in range(5):
        run()
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    for _ in range(times):
        run()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / times / 1000


def ways(tokens: int, inputs: int, outputs: int) -> dict:
    """Name -> the function to time."""

    def normal(*size):
        return torch.randn(*size, device="cuda", dtype=torch.bfloat16)

    x, grad = normal(tokens, inputs), normal(tokens, outputs)
    weight, down, up = normal(outputs, inputs), normal(8, inputs), normal(outputs, 8)
    return {
        "forward, frozen": lambda: linear(x, weight),
        "forward, adapter after": lambda: linear(x, weight).addmm_(linear(x, down), up.t()),
        "forward, adapter first": lambda: (linear(x, down) @ up.t()).addmm_(x, weight.t()),
        "backward, frozen": lambda: grad @ weight,
        "backward, adapter after": lambda: (grad @ weight).addmm_(grad @ up, down),
        "backward, adapter first": lambda: ((grad @ up) @ down).addmm_(grad, weight),
    }


for tokens in map(int, sys.argv[1:] or (2600, 5200)):
    total: dict[str, float] = {}
    for inputs, outputs, count in SHAPES:
        for name, run in ways(tokens, inputs, outputs).items():
            total[name] = total.get(name, 0) + seconds(run) * count * 32 * 1000
    print(tokens, "tokens:", ", ".join(f"{name} {value:.1f} ms" for name, value in total.items()))
