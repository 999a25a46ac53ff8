"""Files to rows: JSON, JSON lines, CSV, Parquet, Arrow, Excel. A broken row is a `Refused` value, an unreadable file a KitError."""

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
         b"ARROW1": "Arrow (.arrow)", b"%PDF": "a PDF", b"BZh": "compressed with bzip2", b"(\xb5/\xfd": "compressed with zstd",
         b"<!DOC": "a web page", b"<html": "a web page", b"version https://git-lfs": "a pointer of Git LFS (git lfs pull)"}
"""how files begin that are no text of rows, whatever their names end in"""
FOREIGN = re.compile("[a-z][À-ÖØ-ÞŸŠŽ]|[¹³][a-z¹³]|[†‡¥¶§¬][a-z]|[a-z]¿")
"""what text in another encoding of one byte a character, such as CP1250 or Macintosh, looks like in Windows-1252"""

BLOCK = 4 << 20
"""bytes or characters read at once"""

csv.field_size_limit(sys.maxsize)


def rows(path: Path, encoding: str) -> Iterator[tuple[int, object]]:
    """(row's number in its file, JSON value or `Refused`) of every row; blank lines are no rows. `encoding`: see `encoding_of`."""
    kind = path.name.removesuffix(".gz").rpartition(".")[2]
    if kind in ("parquet", "arrow", "xlsx"):
        return enumerate(getattr(tables, kind)(path), 1 if kind != "xlsx" else 2)
    return {"csv": _csv, "tsv": _csv}.get(kind, _json)(path, encoding)


def encoding_of(path: Path) -> str:
    """How a text file is written: by its byte order mark, else UTF-8, UTF-16, or Windows-1252. KitError for anything else."""
    if not path.name.endswith((*TEXTS, ".gz")):
        return ""
    with _binary(path) as file:
        head = file.read(24)
        for bom, name in BOMS.items():
            if head.startswith(bom):
                return name
        if kind := next((MAGIC[start] for start in MAGIC if head.startswith(start)), None):
            raise KitError(f"{path.name} is {kind}, whatever its name says", "JSON, JSON lines or CSV as text",
                           "give it the ending it should have, or export it again")
        if head[1:2] == b"\0" or head[:1] == b"\0":
            return "utf-16-le" if head[1:2] == b"\0" else "utf-16-be"
        decoder, line, block = codecs.getincrementaldecoder("utf-8")(), 1, head + file.read(BLOCK)
        try:
            while block:
                decoder.decode(block)
                line += block.count(b"\n")
                block = file.read(BLOCK)
            decoder.decode(b"", final=True)
            return "utf-8"
        except UnicodeDecodeError as error:
            return _not_utf8(path, error, line + error.object.count(b"\n", 0, error.start))


def _not_utf8(path: Path, error: UnicodeDecodeError, line: int) -> str:
    """Windows-1252, if the text reads like a Western language then."""
    data = error.object
    text = data.decode("utf-8", "replace")
    high, broken = sum(byte > 127 for byte in data), text.count("\ufffd")
    words = max(sum(chr(byte).isalpha() for byte in data if byte < 128), 1)
    undefined = any(byte in data for byte in (0x81, 0x8D, 0x8F, 0x90, 0x9D))
    if high < words / 3 and not undefined and sum(char > "\x7f" and char != "\ufffd" for char in text) <= broken:
        if len(FOREIGN.findall(data.decode("cp1252"))) * 10 <= high:
            return "cp1252"
    raise KitError(f"{path.name} is neither UTF-8 nor Windows-1252: line {line} has the byte 0x{data[error.start]:02x}",
                   "text in UTF-8, UTF-16 or Windows-1252", "convert it from its own encoding, such as CP1250, MACINTOSH, CP1251 or "
                   f"SHIFT_JIS: iconv -f CP1251 -t UTF-8 {path.name} > utf8_{path.name}; if it is UTF-8 with a broken place, fix it")


def _binary(path: Path):
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")


def _text(path: Path, encoding: str, newline=None):
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding=encoding, newline=newline)
    return path.open(encoding=encoding, newline=newline)


def _json(path: Path, encoding: str) -> Iterator[tuple[int, object]]:
    """A record a line; or one list, however long; or an object that holds the list."""
    with _text(path, encoding) as file:
        while (first := file.read(1)).isspace():
            pass
        line = first + file.readline()
        head = first if first == "[" else _load(line, 1)
    one_value = path.name.removesuffix(".gz").endswith(".json") or line.strip() == "{"  # an object over many lines
    if head == "[" or (one_value and isinstance(head, Refused)):
        yield from _values(path, encoding)
    elif one_value and _wrapped(head):
        yield from enumerate(_wrapped(head), 1)
    else:
        with _text(path, encoding, "\n") as file:
            for number, line in enumerate(file, 1):
                if not line.isspace():
                    yield number, _load(line, number)


def _wrapped(value) -> list | None:
    """The list of records inside an object, such as {"data": […], "meta": {…}}."""
    if isinstance(value, dict) and len(value) > 1 and all(isinstance(column, dict) for column in value.values()):
        if all(key.isdigit() for key in value):  # pandas' to_json(orient="index")
            return list(value.values())
        first, *others = value.values()  # its to_json(): {"prompt": {"0": …, "1": …}, "vote": {…}}
        if first and all(key.isdigit() for key in first) and all(other.keys() == first.keys() for other in others):
            return [{name: column[key] for name, column in value.items()} for key in first]
    if not isinstance(value, dict):
        return None
    lists = {key: each for key, each in value.items() if isinstance(each, list) and each and isinstance(each[0], dict)}
    found = [key for key in WRAPPERS if key in lists] or [key for key in lists if len(lists) == 1 and key not in OF_A_RECORD]
    if found:
        return lists[found[0]]
    inner = [each for each in value.values() if isinstance(each, dict)]
    return _wrapped(inner[0]) if len(inner) == len(value) == 1 else None


def _load(line: str, number: int):
    import orjson

    try:
        return orjson.loads(line)
    except ValueError:  # broken, or what the standard library reads besides: NaN, Infinity, long integers, half a surrogate pair
        pass
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        return Refused("broken JSON", f"line {number} column {error.colno}: {error.msg}")
    except (RecursionError, ValueError) as error:
        return Refused("broken JSON", f"line {number}: {error}")


def _values(path: Path, encoding: str) -> Iterator[tuple[int, object]]:
    """The values of one list, or values that follow one another, decoded one by one: the file need not fit in memory."""
    decoder, number, text, at, ended = json.JSONDecoder(), 0, "", 0, False
    line, before = 1, 0  # of the text's first character: its line, and how much of that line came before

    def more() -> None:
        """Drop what was read, and append at least as much as is left."""
        nonlocal line, before, text, at, ended
        line += text.count("\n", 0, at)
        before = at - 1 - text.rfind("\n", 0, at) + (before if "\n" not in text[:at] else 0)
        block = file.read(max(BLOCK, len(text)))
        text, at, ended = text[at:] + block, 0, not block

    def following() -> str:
        """The next character that is no white space, `at` standing on it; empty at the end."""
        nonlocal at
        while True:
            at = json.decoder.WHITESPACE.match(text, at).end()
            if at < len(text) or ended:
                return text[at : at + 1]
            more()

    def broken(message: str, place: int) -> KitError:
        column = place - text.rfind("\n", 0, place) + (before if "\n" not in text[:place] else 0)
        return KitError(f"{path.name} is broken JSON: line {line + text.count(chr(10), 0, place)} column {column}: {message}",
                        "a JSON list of records, or one record a line", "correct the file, or export it again")

    with _text(path, encoding) as file:
        inside = following() == "["
        at += inside
        while (mark := following()) and not (inside and mark == "]"):
            if inside and number:
                if mark != ",":
                    raise broken("expected ',' or ']'", at)
                at += 1
                following()
            number += 1
            while True:
                try:
                    value, end = decoder.raw_decode(text, at)
                except (RecursionError, ValueError) as error:
                    if not ended and not isinstance(error, RecursionError):  # the value goes on in the next block
                        more()
                        continue
                    raise broken(getattr(error, "msg", "nested too deeply"), getattr(error, "pos", at)) from None
                if end < len(text) or ended:
                    break
                more()  # a number may go on
            at = end
            inner = _wrapped(value) if number == 1 and not inside else None
            yield from enumerate(inner, 1) if inner else [(number, value)]
        if inside and mark != "]":
            raise broken("the file ends inside the list", at)
        at += inside
        if following():
            raise broken("something follows the list", at)


def _csv(path: Path, encoding: str) -> Iterator[tuple[int, object]]:
    """Rows of a table with a header, every value as text."""
    with _text(path, encoding, "") as file:
        head = file.readline()
        separator = head.strip()[4] if head.lower().startswith("sep=") and len(head.strip()) == 5 else ""  # Excel's own line
        if not separator:
            separator = _separator(head, file.read(BLOCK >> 4))
            file.seek(0)
        reader = csv.reader(file, delimiter=separator, strict=True)
        try:
            names = tables.names_of(next(reader, []), path.name)
        except csv.Error as error:
            raise KitError(f"the header of {path.name} cannot be read: {error}", "names of columns", "correct it") from None
        number = 1
        while True:
            before = reader.line_num
            number += 1
            try:
                row = next(reader, None)
            except csv.Error as error:  # a quote that is never closed takes many lines with it: each is counted
                for _ in range(max(reader.line_num - before, 1)):
                    yield number, Refused("broken row", f"line {before + 1}: {error}")
                continue
            if row is None:
                return
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
