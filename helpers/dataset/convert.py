"""Chunks of source files to tables of checked records: one function, run here or, above a size, on the cluster."""

import dataclasses
import hashlib
import itertools
import os
from collections.abc import Iterator

from ..errors import KitError
from ..profiles import Profile
from .readers import Chunk, read
from .records import Refused
from .shapes import Shape, rows

ROWS = 2000
"""source records in a table: few enough to stream, enough to be cheap"""

RAY_FROM = 512 << 20
"""bytes of input from which a cluster is worth its start-up: 13 s, in which one process reads 370 MB"""

RAY_CORES = 3
"""cores from which Ray can win on a machine of its own; on two it took 107 s where one process took 73 s"""


def tables(chunks: list[Chunk], shape: Shape, stars: int = 4, engine: str = "local",
           profile: Profile | None = None) -> Iterator:
    """Every row of the chunks, in order, as tables of `schema()`.

    `engine`: `local` (one process here) or `ray` (Ray Data's map_batches on the Ray that is connected, else on the
    profile's cluster); `choose_engine` picks by size. Both give the same rows in the same order.
    """
    if engine == "ray":
        return _on_ray(chunks, shape, stars, profile)
    return itertools.chain.from_iterable(convert(chunk, shape, stars) for chunk in chunks)


def choose_engine(chunks: list[Chunk], profile: Profile | None) -> str:
    """`ray` for a large source in several chunks on a cluster or on enough cores, else `local`.

    The two sizes it goes by were measured with benchmarks/dataset.py, on two cores.
    """
    size = sum(chunk.stop - chunk.start for chunk in chunks if chunk.kind != "parquet")
    size += sum(chunk.stop for chunk in chunks if chunk.kind == "parquet") * 2000  # rows, at about 2 kB each
    enough = profile is not None and (profile.ray_address != "local" or (os.cpu_count() or 1) >= RAY_CORES)
    return "ray" if enough and size >= RAY_FROM and len(chunks) > 1 else "local"


def schema():
    """file and row (where it came from), kind and reason (of a refused row), and what is kept of a good one."""
    import pyarrow as pa

    return pa.schema([
        ("file", pa.int32()), ("row", pa.int64()), ("kind", pa.string()), ("reason", pa.string()),
        ("json", pa.binary()), ("prompts", pa.uint64()), ("replies", pa.uint64()), ("labels", pa.bool_()),
        ("turns", pa.int32()), ("repaired", pa.bool_()),
    ])


def convert(chunk: Chunk, shape: Shape, stars: int = 4) -> Iterator:
    """The chunk's rows as tables of at most `ROWS` source records."""
    import pyarrow as pa

    layout, values = schema(), read(chunk)
    while batch := list(itertools.islice(values, ROWS)):
        yield pa.Table.from_pylist([
            _entry(made, value, shape) | {"file": chunk.file, "row": row}
            for row, value in batch for made in rows(value, shape, stars)
        ], schema=layout)


def _on_ray(chunks: list[Chunk], shape: Shape, stars: int, profile: Profile | None) -> Iterator:
    """The same through Ray Data: a task a chunk, blocks streamed back in order."""
    import logging
    from contextlib import nullcontext

    import ray

    from ..doctor import ray_cluster

    there = ray.is_initialized() or profile is None
    with nullcontext() if there else ray_cluster(profile, num_cpus=os.cpu_count() or 2):
        context = ray.data.DataContext.get_current()
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        context.execution_options.preserve_order = True
        context.enable_progress_bars = context.print_on_execution_start = False
        items = [dataclasses.asdict(chunk) for chunk in chunks]
        converted = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
            _convert_items, batch_size=1, fn_kwargs={"shape": shape, "stars": stars})
        try:
            yield from converted.iter_batches(batch_size=None, batch_format="pyarrow")
        except ray.exceptions.RayTaskError as error:
            cause = error.as_instanceof_cause()
            if isinstance(cause, KitError):
                raise KitError(cause.found, cause.expected, cause.remedy) from None
            if isinstance(cause, FileNotFoundError):
                raise KitError(f"a node of the cluster does not see {cause.filename}",
                               "a file on storage that all share", "move it there, or pass engine='local'") from None
            raise


def _convert_items(batch: dict, shape: Shape, stars: int) -> Iterator:
    """What a Ray task does: `convert` for the chunk whose fields make up the batch."""
    yield from convert(Chunk(**{name: values[0].item() if hasattr(values[0], "item") else values[0]
                                for name, values in batch.items()}), shape, stars)


def _entry(made: dict | Refused, value, shape: Shape) -> dict:
    """One row of the table: the record and what is kept of it, or why it was refused."""
    import orjson

    if isinstance(made, Refused):
        return {"kind": made.kind, "reason": made.reason}
    prompt = orjson.dumps([made["tools"], made["messages"][:-1]])
    reply = made["messages"][-1]["content"].encode()
    label = value[shape.label_column] if shape.label_column else True
    return {
        "json": orjson.dumps(made) + b"\n", "prompts": _hash(prompt), "replies": _hash(prompt + reply),
        "labels": made["label"], "turns": len(made["messages"]) // 2, "repaired": not isinstance(label, bool),
    }


def _hash(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")
