"""Parquet, Arrow and Excel files to rows; and whether what is to be read fits into memory."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from helpers.errors import KitError


def parquet(path: Path) -> Iterator:
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

    try:
        batches = ParquetFile(path).iter_batches(2000)
        yield from (value for batch in batches for value in batch.to_pylist())
    except (pa.ArrowInvalid, OSError) as error:
        raise KitError(f"{path.name} is no Parquet file: {error}", "a whole Parquet file", "export or download it again") from None


def arrow(path: Path) -> Iterator:
    """Arrow's stream, as `datasets` saves it, or its file format."""
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as source:
            try:
                reader = pa.ipc.open_stream(source)
                batches = iter(reader)
            except pa.ArrowInvalid:
                reader = pa.ipc.open_file(source)
                batches = (reader.get_batch(place) for place in range(reader.num_record_batches))
            yield from (value for batch in batches for value in batch.to_pylist())
    except (pa.ArrowInvalid, OSError) as error:
        raise KitError(f"{path.name} is no Arrow file: {error}", "a whole Arrow file", "export it again") from None


def xlsx(path: Path) -> Iterator:
    """The first sheet, its first row being the header."""
    try:
        import openpyxl
    except ImportError:
        raise KitError(f"{path.name} is an Excel file, and openpyxl is not installed", "openpyxl, which reads Excel",
                       "pip install openpyxl, or save the sheet as CSV UTF-8") from None
    try:
        sheet = openpyxl.load_workbook(path, read_only=True, data_only=True).worksheets[0].iter_rows(values_only=True)
    except Exception as error:  # openpyxl and zipfile raise many kinds
        raise KitError(f"{path.name} is no Excel file that can be read: {error}", ".xlsx", "save the sheet as CSV UTF-8") from None
    names = [str(name) if name is not None else f"column {place}" for place, name in enumerate(next(sheet, ()), 1)]
    yield from (dict(zip(names, row, strict=False)) for row in sheet if any(value is not None for value in row))


def refuse_what_does_not_fit(files: tuple[Path, ...]) -> None:
    """KitError, with the figures, before memory runs out: the records are held as text, a compressed file's several times its size."""
    import psutil

    factor = {".gz": 8, ".parquet": 6, ".arrow": 2.5, ".xlsx": 12}
    need = sum(file.stat().st_size * factor.get(file.suffix, 1.8) for file in files)
    limit = Path("/sys/fs/cgroup/memory.max")
    free = psutil.virtual_memory().available
    with contextlib.suppress(OSError, ValueError):
        free = min(free, int(limit.read_text()) - int(limit.with_name("memory.current").read_text()))
    if need > free:
        raise KitError(f"the feedback needs about {need / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are free",
                       "room for the records",
                       "use a machine with more memory, or split the file and prepare a part")
