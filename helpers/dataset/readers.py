"""Files to JSON values, row by row, in chunks that a worker can take alone; a broken row is a `Refused` value."""

import codecs
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import KitError
from . import jsonstream
from .records import Refused

SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".parquet")
BLOCK = 16 << 20
"""bytes of JSON lines in a chunk"""

ROWS = 2000
"""rows of CSV or Parquet made into values at once"""

BOMS = {codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32", codecs.BOM_UTF16_LE: "utf-16",
        codecs.BOM_UTF16_BE: "utf-16", codecs.BOM_UTF8: "utf-8-sig"}


@dataclass(frozen=True)
class Chunk:
    """A part of a file: bytes `start` to `stop` of JSON lines, a row group of Parquet, or a whole file of other kinds.

    `row`: the number of its first row in the file; `file`: the file's place in its source.
    """

    path: str
    kind: str
    start: int = 0
    stop: int = 0
    row: int = 1
    encoding: str = "utf-8"
    file: int = 0


def plan(path: Path) -> tuple[str, list[Chunk]]:
    """The file's sha256 and its chunks, in one pass. KitError for text that is neither UTF-8 nor marked UTF-16/32."""
    if path.suffix == ".parquet":
        return _sha256(path), _parquet_chunks(path)
    with path.open("rb") as file:
        head = file.read(4)
    encoding = next((name for bom, name in BOMS.items() if head.startswith(bom)), "utf-8")
    kind = "csv" if path.suffix == ".csv" else _json_kind(path, encoding)
    digest, chunks = _scan(path, kind, encoding)
    if kind != "lines" or encoding not in ("utf-8", "utf-8-sig"):
        chunks = [Chunk(str(path), kind, stop=path.stat().st_size, encoding=encoding)]
    return digest, chunks


def read(chunk: Chunk) -> Iterator[tuple[int, object]]:
    """(row number in its file, JSON value or `Refused`) for every row of the chunk; blank lines are no rows."""
    return {"lines": _lines, "array": _array, "csv": _csv, "parquet": _parquet}[chunk.kind](chunk)


def _scan(path: Path, kind: str, encoding: str) -> tuple[str, list[Chunk]]:
    """One pass over a text file: its sha256, its encoding checked, and where chunks of whole lines begin and end."""
    digest, decoder = hashlib.sha256(), codecs.getincrementaldecoder(encoding)()
    chunks, start, row, line, position, line_start = [], 0, 1, 1, 0, 0
    with path.open("rb") as file:
        while True:
            block = file.read(BLOCK)
            try:
                decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                pending = len(error.object) - len(block)
                raise _not_text(path, encoding, error, line, position - pending - line_start) from None
            if not block:
                break
            digest.update(block)
            last = block.rfind(b"\n") + 1
            line += block.count(b"\n")
            line_start = position + last if last else line_start
            if last:
                chunks.append(Chunk(str(path), kind, start, position + last, row, encoding))
                start, row = position + last, line
            position += len(block)
    if position > start:
        chunks.append(Chunk(str(path), kind, start, position, row, encoding))
    return digest.hexdigest(), chunks


def _not_text(path: Path, encoding: str, error: UnicodeDecodeError, line: int, read: int) -> KitError:
    """`line`: where the undecodable block begins, `read`: bytes of that line before it."""
    before = error.object[: error.start]
    column = error.start - before.rfind(10) if 10 in before else read + error.start + 1
    where = f"line {line + before.count(10)}, byte {column} of that line"
    return KitError(f"{path.name} is not {encoding.removesuffix('-sig').upper()}: {where} is "
                    f"0x{error.object[error.start]:02x} ({error.reason})",
                    "text in UTF-8, or in UTF-16 with its byte order mark",
                    f"convert it, for example: iconv -f LATIN1 -t UTF-8 {path.name} > converted{path.suffix}")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _json_kind(path: Path, encoding: str) -> str:
    """`lines` where every line is a record, `array` for one JSON list (or records spread over lines)."""
    with path.open(encoding=encoding, errors="replace") as file:
        while (first := file.read(1)).isspace():
            pass
        if first == "[":
            return "array"
        if path.suffix != ".json":
            return "lines"
        line = first + file.readline(1 << 20)
    try:
        json.loads(line)
        return "lines"
    except (ValueError, RecursionError):
        return "array"


def _lines(chunk: Chunk) -> Iterator[tuple[int, object]]:
    import orjson

    for row, line in enumerate(_split(chunk), chunk.row):
        if line and not line.isspace():
            try:
                yield row, orjson.loads(line)
            except orjson.JSONDecodeError as error:
                yield row, Refused("broken JSON", f"line {row} column {error.colno}: {error.msg}")


def _split(chunk: Chunk) -> Iterator[bytes]:
    if chunk.encoding not in ("utf-8", "utf-8-sig"):
        with open(chunk.path, encoding=chunk.encoding, newline="\n") as file:
            yield from (line.encode() for line in file)
        return
    with open(chunk.path, "rb") as file:
        file.seek(chunk.start)
        data = file.read(chunk.stop - chunk.start)
    if chunk.start == 0:
        data = data.removeprefix(codecs.BOM_UTF8)
    yield from data.split(b"\n")


def _array(chunk: Chunk) -> Iterator[tuple[int, object]]:
    with open(chunk.path, encoding=chunk.encoding) as file:
        yield from enumerate(jsonstream.values(file, Path(chunk.path).name), 1)


def _csv(chunk: Chunk) -> Iterator[tuple[int, object]]:
    """Rows of a CSV file with a header, every value as text."""
    import pyarrow as pa
    from pyarrow import csv

    broken = []
    size = min(max(chunk.stop + 1, 1024), 64 << 20)
    encoding = "utf8" if chunk.encoding.startswith("utf-8") else chunk.encoding
    with open(chunk.path, encoding=chunk.encoding, newline="") as file:
        import csv as standard

        header = next(standard.reader(file), [])
    try:
        with csv.open_csv(
            chunk.path, csv.ReadOptions(use_threads=False, block_size=size, encoding=encoding),
            csv.ParseOptions(newlines_in_values=True, invalid_row_handler=lambda row: broken.append(row) or "skip"),
            csv.ConvertOptions(column_types=dict.fromkeys(header, pa.string())),
        ) as batches:
            row = 1  # the header's
            for batch in batches:
                for start in range(0, batch.num_rows, ROWS):
                    for value in batch.slice(start, ROWS).to_pylist():
                        row += 1
                        while broken and broken[0].number <= row:
                            yield _bad_row(broken.pop(0))
                            row += 1
                        yield row, value
            yield from map(_bad_row, broken)
    except pa.ArrowInvalid as error:
        raise KitError(f"{Path(chunk.path).name} is no CSV that can be read: {error}",
                       "a header and rows of as many values", "export it again, or as JSONL") from None


def _bad_row(row) -> tuple[int, Refused]:
    reason = f"{row.actual_columns} values, the header has {row.expected_columns} columns"
    return row.number, Refused("broken row", reason)


def _parquet_chunks(path: Path) -> list[Chunk]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    except pa.ArrowInvalid as error:
        raise KitError(f"{path.name} is no Parquet file: {error}", "a whole Parquet file",
                       "export or download it again") from None
    return [Chunk(str(path), "parquet", group, size, 1 + sum(sizes[:group])) for group, size in enumerate(sizes)]


def _parquet(chunk: Chunk) -> Iterator[tuple[int, object]]:
    from pyarrow import parquet

    with parquet.ParquetFile(chunk.path) as file:
        row = chunk.row
        for batch in file.iter_batches(batch_size=ROWS, row_groups=[chunk.start]):
            for value in batch.to_pylist():
                yield row, value
                row += 1
