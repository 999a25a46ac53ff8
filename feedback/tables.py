"""Read Parquet, Arrow and Excel, and check first that the data fits into memory."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

from helpers.errors import KitError

FACTORS = {".gz": 8, ".json": 6, ".parquet": 6, ".arrow": 2.5, ".xlsx": 12}
"""memory that files need, in multiples of their size; 1.8 for lines of text: the records are held as text"""


def arrow(path: Path) -> Iterator:
    """The rows of a Parquet file; or of Arrow's stream, as `datasets` saves it, or its file format. Classes go by their names."""
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

    try:
        if path.suffix == ".parquet":
            batches = ParquetFile(path).iter_batches(2000)
        else:
            source = pa.memory_map(str(path))
            try:
                batches = pa.ipc.open_stream(source)
            except pa.ArrowInvalid:
                reader = pa.ipc.open_file(source)
                batches = map(reader.get_batch, range(reader.num_record_batches))
        for batch in batches:
            classes = _classes(batch.schema)
            for row in batch.to_pylist(maps_as_pydicts="lossy"):
                for column, names in classes.items():
                    row[column] = names[row[column]] if row[column] in range(len(names)) else None
                yield row
    except (pa.ArrowInvalid, OSError) as error:
        raise KitError(f"{path.name} cannot be read: {error}", "a whole Parquet or Arrow file", "export or download it again") from None


def _classes(schema) -> dict[str, list[str]]:
    """The names of a column's classes: `datasets` keeps numbers, and which of them is the good one only the names tell."""
    info = json.loads((schema.metadata or {}).get(b"huggingface", "{}")).get("info") or {}
    features = {column: feature for column, feature in (info.get("features") or {}).items() if isinstance(feature, dict)}
    return {column: feature["names"] for column, feature in features.items() if feature.get("_type") == "ClassLabel"}


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
    """KitError, with the figures, before memory runs out. `joined`: records that belong together are held until all are read."""
    import psutil

    need = sum(file.stat().st_size * FACTORS.get(file.suffix, 1.8) for file in files) * (2 if joined else 1)
    limit = Path("/sys/fs/cgroup/memory.max")
    free = psutil.virtual_memory().available
    with contextlib.suppress(OSError, ValueError):
        free = min(free, int(limit.read_text()) - int(limit.with_name("memory.current").read_text()))
    if need > free:
        raise KitError(f"the feedback needs about {need / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are free",
                       "room for the records", "use a machine with more memory, or split the file and prepare a part")
