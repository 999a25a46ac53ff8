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
    """The rows of every sheet, values as text, as a CSV file has them. A sheet's header is its first row with several values."""
    try:
        import openpyxl
        from openpyxl.utils.escape import unescape
    except ImportError:
        raise KitError(f"{path.name} is an Excel file, and openpyxl is not installed", "openpyxl, which reads Excel",
                       "pip install openpyxl==3.1.5, or save the sheet as CSV UTF-8") from None
    try:
        sheets = openpyxl.load_workbook(path, read_only=True, data_only=True).worksheets
    except Exception as error:  # openpyxl and zipfile raise many kinds
        raise KitError(f"{path.name} is no Excel file that can be read: {error}", ".xlsx", "save the sheet as CSV UTF-8") from None

    def text(value):
        if isinstance(value, str):
            return unescape(value)
        return value if value is None or isinstance(value, bool) else f"{value:.15g}" if isinstance(value, float) else str(value)

    for sheet in sheets:
        names = []
        for row in sheet.iter_rows(values_only=True):
            filled = sum(value is not None for value in row)
            if names and filled:
                yield dict(zip(names, map(text, row), strict=False))
            elif filled > 1:
                names = names_of([str(name or "") for name in row], f"{path.name}, sheet {sheet.title!r},")


def names_of(header: list[str], where: str) -> list[str]:
    """The columns' names, those without one by their place; KitError where two have the same."""
    names = [name.strip("\ufeff") or f"column {place}" for place, name in enumerate(header, 1)]
    if twice := [name for name in names if names.count(name) > 1]:
        raise KitError(f"{where} has the column {twice[0]!r} twice", "columns with names of their own", "rename one of them")
    return names


def refuse_what_does_not_fit(files: tuple[Path, ...], joined: bool = False) -> None:
    """KitError, with the figures, before memory runs out: the records are held as text, a compressed file's several times its size.

    `joined`: records that belong together are held as objects until all are read (measured: three times their text).
    """
    import psutil

    factor = {".gz": 8, ".parquet": 6, ".arrow": 2.5, ".xlsx": 12}
    factors = (6 if _one_object(file) else factor.get(file.suffix, 1.8) * (2 if joined else 1) for file in files)
    need = sum(file.stat().st_size * each for file, each in zip(files, factors, strict=True))
    limit = Path("/sys/fs/cgroup/memory.max")
    free = psutil.virtual_memory().available
    with contextlib.suppress(OSError, ValueError):
        free = min(free, int(limit.read_text()) - int(limit.with_name("memory.current").read_text()))
    if need > free:
        raise KitError(f"the feedback needs about {need / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are free",
                       "room for the records",
                       "use a machine with more memory, or split the file and prepare a part")


def _one_object(path: Path) -> bool:
    """Whether a JSON file is one object that holds the list: it is decoded whole, to about five times its size."""
    if path.suffix != ".json":
        return False
    with path.open("rb") as file:
        head = file.read(1 << 20)
    return head.lstrip()[:1] == b"{" and b"\n{" not in head
