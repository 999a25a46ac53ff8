"""Read files into rows: JSON, JSON Lines, CSV, Parquet, Arrow, Excel."""

import codecs
import csv
import gzip
import io
import itertools
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from helpers.errors import KitError

from . import tables
from .records import Refused

TEXTS = (".json", ".jsonl", ".ndjson", ".csv", ".tsv")
SUFFIXES = (*TEXTS, *(f"{suffix}.gz" for suffix in TEXTS), ".parquet", ".arrow", ".xlsx")
BOMS = {codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32", codecs.BOM_UTF16_LE: "utf-16",
        codecs.BOM_UTF16_BE: "utf-16", codecs.BOM_UTF8: "utf-8-sig"}
WRAPPERS = ("data", "rows", "items", "records", "results", "feedbacks", "examples", "traces", "runs")
"""keys under which an answer of an API holds its list"""
OF_A_RECORD = ("messages", "messagesTree", "conversation", "history", "annotations", "predictions", "tools", "functions", "replies",
               "scores", "observations", "preferred_output", "turns", "chosen", "rejected", "prompt", "completion")
"""keys of lists that are a part of one record"""

MAGIC = {b"\x1f\x8b": "compressed with gzip (.gz)", b"PK\x03\x04": "a zip archive or Excel (.xlsx)", b"PAR1": "Parquet (.parquet)",
         b"<!DOC": "a web page", b"version https://git-lfs": "a pointer of Git LFS (git lfs pull)"}
"""how files begin that are no text of rows, whatever their names end in"""
FOREIGN = re.compile("[a-z][À-ÖØ-ÞŸŠŽ]|[¹³][a-z¹³]|[†‡¥¶§¬][a-z]|[a-z]¿")
"""what text in another encoding of one byte a character, such as CP1250 or Macintosh, looks like in Windows-1252"""

csv.field_size_limit(sys.maxsize)


def rows(path: Path, encoding: str) -> Iterator[tuple[int, object]]:
    """(row's number in its file, JSON value or `Refused`) of every row; blank lines are no rows. `encoding`: see `encoding_of`."""
    kind = path.name.removesuffix(".gz").rpartition(".")[2]
    if kind in ("parquet", "arrow"):
        return enumerate(tables.arrow(path), 1)
    if kind == "xlsx":
        return enumerate(tables.xlsx(path), 2)
    return (_csv if kind in ("csv", "tsv") else _json)(path, encoding)


def _open(path: Path, mode: str, **how):
    return (gzip.open if path.suffix == ".gz" else open)(path, mode, **how)


def encoding_of(path: Path) -> str:
    """How a text file is written: by its byte order mark, else UTF-8, UTF-16, or Windows-1252. KitError for anything else."""
    if not path.name.endswith((*TEXTS, ".gz")):
        return ""
    with _open(path, "rb") as file:
        head = file.read(24)
        for bom, name in BOMS.items():
            if head.startswith(bom):
                return name
        for start, kind in MAGIC.items():
            if head.startswith(start):
                raise KitError(f"{path.name} is {kind}, whatever its name says", "JSON, JSON lines or CSV as text",
                               "give it the ending it should have, or export it again")
        if b"\0" in head[:2]:
            return "utf-16-be" if head[:1] == b"\0" else "utf-16-le"
        file.seek(0)
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                if _is_windows_1252(line + file.read(1 << 20)):
                    return "cp1252"
                raise KitError(f"{path.name} is neither UTF-8 nor Windows-1252: line {number} has the byte 0x{line[error.start]:02x}",
                               "text in UTF-8, UTF-16 or Windows-1252",
                               "convert it from its own encoding, such as CP1250, MACINTOSH, CP1251 or SHIFT_JIS: iconv -f CP1251 "
                               f"-t UTF-8 {path.name} > utf8_{path.name}; if it is UTF-8 with a broken place, fix it") from None
    return "utf-8"


def _is_windows_1252(data: bytes) -> bool:
    """Whether text that is no UTF-8 reads like a Western language as Windows-1252."""
    text = data.decode("utf-8", "replace")
    high, broken = sum(byte > 127 for byte in data), text.count("\ufffd")
    letters = max(sum(chr(byte).isalpha() for byte in data if byte < 128), 1)
    also_utf8 = sum(char > "\x7f" for char in text) - broken > broken
    undefined = any(byte in data for byte in (0x81, 0x8D, 0x8F, 0x90, 0x9D))
    return not (high >= letters / 3 or undefined or also_utf8) and len(FOREIGN.findall(data.decode("cp1252"))) * 10 <= high


def _json(path: Path, encoding: str) -> Iterator[tuple[int, object]]:
    """A record a line; or one list, however long; or an object that holds the list, or several, as an API's pages do."""
    with _open(path, "rt", encoding=encoding, newline="\n") as file:
        first = next((line for line in file if not line.isspace()), "").strip()
        file.seek(0)
        one_value = first[:1] != "[" and (path.name.removesuffix(".gz").endswith(".json") or first == "{")  # an object over many lines
        if first[:1] == "[" or (one_value and isinstance(_load(first, 1), Refused)):
            found = _values(file.read(), path.name)
        else:
            found = ((number, _load(line, number)) for number, line in enumerate(file, 1) if not line.isspace())
        head, numbers = list(itertools.islice(found, 2)), itertools.count(1)
        for number, value in itertools.chain(head, found):
            inner = one_value and _wrapped(value, len(head) == 1)
            yield from zip(numbers, inner, strict=False) if inner else [(number, value)]


def _wrapped(value, alone: bool = True) -> list | None:
    """The list of records inside an object, such as {"data": […], "meta": {…}}. Beside others it is a page: no words stand in it."""
    if not isinstance(value, dict) or not (alone or all(" " not in each for each in value.values() if isinstance(each, str))):
        return None
    if alone and (columns := _columns(value)):
        return columns
    inner = [each for each in value.values() if isinstance(each, dict)]
    if len(inner) == len(value) > 1:
        first, alike = inner[0], all(other.keys() == inner[0].keys() for other in inner)
        if first and alike and all(key.isdigit() for key in first):  # pandas' to_json(): {"prompt": {"0": …, "1": …}, "vote": {…}}
            return [{name: column[key] for name, column in value.items()} for key in first]
        if all(key.isdigit() for key in value) or (alike and len(inner) > 3):  # its to_json(orient="index"); rows by their ids
            return inner
    lists = {key: each for key, each in value.items() if isinstance(each, list) and each and isinstance(each[0], dict)}
    found = [key for key in WRAPPERS if key in lists] or [key for key in lists if alone and len(lists) == 1 and key not in OF_A_RECORD]
    if found:
        records = lists[found[0]]
        of_a_page = all(isinstance(each, dict) and "row_idx" in each and isinstance(each.get("row"), dict) for each in records)
        return [each["row"] for each in records] if of_a_page else records  # the hub's dataset viewer
    return _wrapped(inner[0]) if len(inner) == len(value) == 1 else None


def _columns(value: dict) -> list[dict] | None:
    """The records of an object that holds columns as lists: pandas' to_json(orient="split"), or a Dataset's to_dict()."""
    names, data = value.get("columns"), value.get("data")
    named = isinstance(names, list) and all(isinstance(name, str) for name in names)  # not pandas' names in several levels
    if named and isinstance(data, list) and all(isinstance(row, list) and len(row) == len(names) for row in data):
        return [dict(zip(names, row, strict=True)) for row in data]
    lists = [each for each in value.values() if isinstance(each, list)]
    sizes, turns = {len(each) for each in lists}, any(isinstance(each, dict) for column in lists for each in column)
    if len(lists) < len(value) or len(lists) < 2 or len(sizes) > 1 or max(sizes) < 2 or turns:  # a dialogue's turns are no column
        return None
    return [dict(zip(value, row, strict=True)) for row in zip(*lists, strict=True)]


def _load(line: str, number: int):
    import orjson

    try:
        return orjson.loads(line)
    except ValueError:  # broken, or what the standard library reads besides: NaN, Infinity, long integers, half a surrogate pair
        pass
    try:
        return json.loads(line)
    except (RecursionError, ValueError) as error:
        return Refused("broken JSON", f"line {number} column {getattr(error, 'colno', 1)}: {getattr(error, 'msg', error)}")


def _values(text: str, name: str) -> Iterator[tuple[int, object]]:
    """The values of one list, or values that follow one another, decoded one by one: only their text is in memory."""
    decode, space = json.JSONDecoder().raw_decode, json.decoder.WHITESPACE.match
    at = space(text, 0).end()
    inside = text[at : at + 1] == "["
    number, at = 0, space(text, at + inside).end()
    try:
        while at < len(text) and not (inside and text[at] == "]"):
            if inside and number:
                if text[at] != ",":
                    raise json.JSONDecodeError("expected ',' or ']'", text, at)
                at = space(text, at + 1).end()
            number += 1
            value, at = decode(text, at)
            yield number, value
            at = space(text, at).end()
        end = space(text, at + 1).end()
        if inside and (at == len(text) or end < len(text)):
            raise json.JSONDecodeError("the list has no end, or something follows it", text, end)
    except (RecursionError, ValueError) as error:
        raise KitError(f"{name} is broken JSON: {error}", "a JSON list of records, or one record a line",
                       "correct the file, or export it again") from None


def _csv(path: Path, encoding: str) -> Iterator[tuple[int, object]]:
    """Rows of a table with a header, every value as text."""
    with _open(path, "rt", encoding=encoding, newline="") as file:
        head = file.readline()
        if head.lower().startswith("sep=") and len(head.strip()) == 5:  # Excel's own line
            separator = head.strip()[4]
        else:
            separator = _separator(head, file.read(1 << 18))
            file.seek(0)
        reader = csv.reader(file, delimiter=separator, strict=True, skipinitialspace=f'{separator} "' in head)
        try:
            names = tables.names_of(next(reader, []), path.name)
        except csv.Error as error:
            raise KitError(f"the header of {path.name} cannot be read: {error}", "names of columns", "correct it") from None
        for number in itertools.count(2):
            before = reader.line_num
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:  # a quote that is never closed takes many lines with it: each is counted
                for _ in range(max(reader.line_num - before, 1)):
                    yield number, Refused("broken row", f"line {before + 1}: {error}")
                continue
            if row and len(row) != len(names):
                yield number, Refused("broken row", f"{len(row)} values, the header has {len(names)} columns")
            elif row:
                yield number, dict(zip(names, row, strict=True))


def _separator(head: str, text: str) -> str:
    """The mark that parts most of the first rows into as many values as the header; of several the one that makes the most."""
    def fit(mark: str) -> tuple[int, int]:
        names = len(next(csv.reader([head], delimiter=mark), []))
        rows = itertools.islice(csv.reader(io.StringIO(text, newline=""), delimiter=mark), 20)
        return sum(len(row) == names for row in rows if names > 1), names
    return max(",;\t|", key=fit)
