"""fp8.py's two kernels: one pass over memory each, one compilation each for all lengths."""

import triton
from triton import language as tl

TILE = 128


def block(width: int) -> int:
    return triton.next_power_of_2(width)


@triton.jit
def quantise(states, columns, numbers, scale, width, LARGEST: tl.constexpr, WEIGHTED: tl.constexpr, BLOCK: tl.constexpr):
    """A row for each program: its largest number becomes LARGEST."""
    row, places = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    inside = places < width
    values = tl.load(states + row * width + places, inside, 0.0).to(tl.float32)
    if WEIGHTED:
        values *= tl.load(columns + places, inside, 0.0)
    step = tl.maximum(tl.max(tl.abs(values)), 1e-12) / LARGEST
    tl.store(scale + row, step)
    tl.store(numbers + row * width + places, (values / step).to(tl.float8e4nv), inside)


@triton.jit
def turn(numbers, result, height, width, SIZE: tl.constexpr):
    """A square for each program."""
    rows = (tl.program_id(0) * SIZE + tl.arange(0, SIZE)).to(tl.int64)[:, None]
    columns = (tl.program_id(1) * SIZE + tl.arange(0, SIZE)).to(tl.int64)[None]
    square = tl.load(numbers + rows * width + columns, (rows < height) & (columns < width), 0)
    rows, columns = rows.trans(), columns.trans()
    tl.store(result + columns * height + rows, square.trans(), (rows < height) & (columns < width))
