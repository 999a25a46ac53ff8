"""FP8 for the frozen products (`fp8: true`): 8-bit floats (E4M3) with one scale a row; adapters and all else stay as they were.

With W = sw·W8 and x = sx·x8 (a scale for each row), x·Wᵀ = sx·(x8·W8ᵀ)·sw. W is quantised once; what it is multiplied with is
quantised when it comes. Backward, sw lies along the sum: g·W = (g·sw)·W8, so it is multiplied into g before g is quantised, and one
copy of W serves both. GPUs with compute capability 8.9 (Ada) or 9 (Hopper) multiply such numbers; elsewhere the same numbers are
multiplied in float32, slowly, for tests.
"""

LARGEST = 448.0
"""Of E4M3."""


def refuse_gpu() -> None:
    """RuntimeError where there is a GPU that cannot multiply 8-bit floats."""
    import torch

    if torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 9):
        raise RuntimeError(f"fp8: {torch.cuda.get_device_name()} has no 8-bit floats\n  expected: Ada or Hopper (L40S, L4, H100)"
                           "\n  fix:      fp8: false")


class Frozen:
    """A frozen weight (N, K), quantised: a byte a number."""

    def __init__(self, weight):
        weight = weight.detach()
        self.numbers, self.scale = quantised(weight)

    def times(self, x, bias=None):
        """x·Wᵀ + bias: (T, N) in x's dtype, from (T, K)."""
        result = product(*quantised_once(x), self.numbers, self.scale, x.dtype)
        return result if bias is None else result.add_(bias)

    def back(self, grad):
        """grad·W: (T, K) in grad's dtype, from (T, N)."""
        numbers, scale = quantised(grad, self.scale)
        return product(numbers, scale, turned(self.numbers), None, grad.dtype)


def product(left, left_scale, right, right_scale, dtype):
    """left·rightᵀ with scales of the rows of both: (T, N) in `dtype` from 8-bit (T, K), (T,), (N, K), (N,) or None."""
    import torch

    if right_scale is None:
        right_scale = left_scale.new_ones(len(right))
    if left.is_cuda:
        return torch._scaled_mm(left, right.t(), left_scale[:, None], right_scale[None], out_dtype=dtype, use_fast_accum=True)
    return ((left.float() @ right.float().t()) * left_scale[:, None] * right_scale).to(dtype)


def quantised(states, columns=None):
    """8-bit numbers (T, K) and their scales (T,) float32 of `states` (T, K), first multiplied with `columns` (K,) where given."""
    import torch

    if states.is_cuda:
        states = states.contiguous()
        numbers = torch.empty_like(states, dtype=torch.float8_e4m3fn)
        scale = states.new_empty(len(states), dtype=torch.float32)
        kernels().quantise[(len(states),)](states, columns, numbers, scale, states.shape[1], LARGEST, columns is not None,
                                           kernels().block(states.shape[1]))
        return numbers, scale
    states = states.float() if columns is None else states.float() * columns
    scale = states.abs().amax(1).clamp_min(1e-12) / LARGEST
    return (states / scale[:, None]).to(torch.float8_e4m3fn), scale


_last = None


def quantised_once(x):
    """`quantised`, but not again where `x` is what it was last given: queries, keys and values are products of one input."""
    global _last
    if _last is None or (x.data_ptr(), x.shape, x._version) != _last[1]:
        _last = x, (x.data_ptr(), x.shape, x._version), quantised(x)  # `x` is held, so that its place in memory stays its own
    return _last[2]


def turned(numbers):
    """The transpose (K, N) in memory of 8-bit numbers (N, K): GPUs multiply along the last axis of both only."""
    import torch

    if not numbers.is_cuda:
        return numbers.t().contiguous()
    (height, width), size = numbers.shape, kernels().TILE
    result = numbers.new_empty(width, height)
    kernels().turn[(-(-height // size), -(-width // size))](numbers.view(torch.uint8), result.view(torch.uint8), height, width, size)
    return result


def kernels():
    """The module with the Triton kernels: imported on GPUs only, where torch brings Triton."""
    from . import fp8_kernels

    return fp8_kernels
