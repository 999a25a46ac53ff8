"""Check feedback: every row is used, repaired and listed, counted as without a vote, or refused with a reason."""

import hashlib
import json
import zlib
from array import array
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from helpers import files
from helpers.errors import KitError

from . import importers, quality, register, tables
from .columns import NO_VOTE, parse_columns, value_at
from .find import Source, find
from .labels import Votes
from .problems import Ledger
from .records import Refused
from .scales import WORDS, Scale, named_votes, scale_of
from .shapes import Shape, recognise, rows

REFUSE_SHARE = 0.05
"""`prepare` ends with an error where more of the rows are refused"""


@dataclass(repr=False)
class Checked:
    """The records of a source that passed, in its order, and the ledger of all its rows.

    One entry a record: `records` (a JSON line), `where` (`file:row` of what it was made from), `languages` (of its reply); arrays:
    `prompts` and `replies` (64-bit hashes, a reply's together with its prompt), `words` (hash of the reply alone), `labels` (bool),
    `turns` (a question and its reply are one), `lengths` (characters of the reply). `unused`: columns not read -> rows that fill them.
    """

    source: Source
    shape: Shape
    sha256: str
    ledger: Ledger
    unused: dict[str, int]
    records: list[bytes]
    where: list[str]
    languages: list[str]
    prompts: np.ndarray
    replies: np.ndarray
    words: np.ndarray
    labels: np.ndarray
    turns: np.ndarray
    lengths: np.ndarray

    def lines(self, indices) -> list[bytes]:
        """The records of these indices as JSON lines, in this order."""
        return [self.records[index] for index in indices]

    def rows(self, indices) -> list[dict]:
        """The records of these indices: `{"messages": [{"role", "content"}, …], "label": bool, "tools": str}`."""
        return [json.loads(line) for line in self.lines(indices)]

    def text(self) -> str:
        """What was read, and how, in a few lines."""
        unused = ", ".join(f"{name} ({count:,} rows)" for name, count in self.unused.items())
        parts = {} if self.shape.parts is IMPORTED else self.shape.parts
        columns = ", ".join(f"{part} from {column}" for part, column in parts.items())
        return (f"labels: {self.shape.scale.words}\n" + (f"columns: {columns}\n" if columns else "")
                + f"unused columns: {unused or 'none'}\n{quality.lengths_in_words(self)}")

    def facts(self) -> dict:
        """The same for programs."""
        accepted = int(self.labels.sum())
        return {"shape": self.shape.name, "scale": self.shape.scale.words, "rows in": self.ledger.rows_in,
                "rows out": self.ledger.rows_out, "accepted": accepted, "rejected": len(self.labels) - accepted,
                "unvoted": self.ledger.unvoted, "unused": self.unused, "sha256": self.sha256}


def prompt_of(made: dict) -> bytes:
    """What makes a record's prompt: the tools, and the turns before the reply."""
    import orjson

    return orjson.dumps([made["tools"], made["messages"][:-1]])


def prompts_in(paths: list[Path]) -> np.ndarray:
    """The prompts of prepared files (JSON lines), as the hashes of `Checked.prompts`."""
    found = [_hash(prompt_of(json.loads(line))) for path in paths for line in path.read_bytes().splitlines()]
    return np.array(found, dtype=np.uint64)


def check(source: Source, report: Path | None = None, columns: str = "", scale: str = "", accept_from: float | None = None,
          stars: int = 4, strict: bool = False, refuse_share: float | None = None) -> Checked:
    """Read a source whole: recognise its shape and scale, refuse what cannot be trained on, note what is doubtful.

    `report`: the file that gets every problem; `columns`: which is which, as `prompt=…,reply=…,label=…`; `scale`: see
    `scales.scale_of`; `accept_from`: from which rating on a reply is accepted, and `stars` the same for 1 to 5 alone; `strict`:
    problems stop; `refuse_share`: more refused rows than that are an error. KitError where no row is left, or only one label.
    """
    tables.refuse_what_does_not_fit(source.files)
    given, ledger = parse_columns(columns), Ledger(report)
    try:
        table = importers.Table(source, given, named_votes(scale))
        name, parts = (table.importer.name, IMPORTED) if table.importer else recognise(table.columns, given)
        votes = table.columns.votes.get(parts.get("label"))
        if {"label", "against"} <= parts.keys():
            read_as = Scale(0, 0, 0, f"more votes in {parts['label']} than in {parts['against']} are accepted")
        else:
            read_as = scale_of(votes, parts["label"], scale, accept_from, stars) if votes else WORDS
            if votes and votes.numbers and not (scale or accept_from) and len(source.files) > 1:
                _refuse_several_scales(table, parts["label"], stars)
        unused = table.columns.unused(table.used if table.importer else set(parts.values()))
        digests = [files.sha256(file) for file in source.files]
        digest = digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
        shape = Shape(name, parts, read_as)
        checked = Checked(source, shape, digest, ledger, unused, **_convert(table, shape, ledger))
        encodings = zip(source.names, table.encodings, strict=True)
        ledger.note("encoding", ((file, f"read as {encoding.replace('cp1252', 'Windows-1252')}") for file, encoding in encodings
                                 if encoding not in ("utf-8", "utf-8-sig", "")))
        ledger.stop_if(refuse_share=refuse_share)
        quality.look_across(checked)
        ledger.stop_if(strict)
    except (OSError, EOFError, UnicodeError, zlib.error) as error:  # cut off, or of another encoding than its first bytes promise
        raise KitError(f"reading {source.origin} failed: {error}", "whole, readable files, and room for the report of problems",
                       "check the file, or free some space") from None
    finally:
        ledger.save()
    if len(set(checked.labels.tolist())) < 2:
        only = "accepted" if checked.labels[0] else "rejected"
        raise KitError(f"every usable row is {only}; labels were read as {checked.shape.scale.words}\n"
                       f"{ledger.text(*ledger.refused) if ledger.refused else ledger.account}", "accepted and rejected rows",
                       "add rows of the other kind, or say how to read the labels: --scale and --accept-from "
                       "(scale and accept_from in notebook 2)")
    return checked


def _refuse_several_scales(table: importers.Table, label: str, stars: int) -> None:
    """KitError where files of 20 ratings and more are on different scales, each by itself: together they pass for the longest one."""
    votes, scales = {}, {}
    for where, value in table.rows():
        votes.setdefault(where.rpartition(":")[0], Votes()).add(value_at(value, label) if isinstance(value, dict) else None)
    for file, found in votes.items():
        with suppress(KitError):  # a file alone may leave its scale open
            if found.numbers.total() >= 20:
                scales[file] = scale_of(found, label, stars=stars).words.partition(", 0 is no vote")[0]
    if len(set(scales.values())) > 1:
        raise KitError("the files' ratings are on different scales, each by itself:\n  "
                       + "\n  ".join(f"{file}: {words}" for file, words in scales.items()), "one scale",
                       "prepare the files apart; if they are on one scale all the same, add --scale=LOWEST-HIGHEST")


def prepare(dataset: str, datasets: Path, heldout: float = 0.2, seed: int = 42, name: str = "", refuse_share: float = REFUSE_SHARE,
            **how) -> dict:
    """All at once: find, check (`how`: see `check`), split, register; returns the facts that `register.register` does."""
    checked = check(find(dataset, datasets / "downloads"), refuse_share=refuse_share, **how)
    return register.register(checked, register.split(checked, heldout, seed), datasets, seed, name)


def example(checked: Checked) -> str:
    """A short accepted and a short rejected reply, to the same prompt where the data have one, as text."""
    sizes = np.array([len(line) for line in checked.records])
    accepted, rejected = np.flatnonzero(checked.labels), np.flatnonzero(~checked.labels)
    shared, here, there = np.intersect1d(checked.prompts[accepted], checked.prompts[rejected], return_indices=True)
    if len(shared):
        shortest = np.argmin(sizes[accepted[here]] + sizes[rejected[there]])
        accepted, rejected = accepted[here[[shortest]]], rejected[there[[shortest]]]
    texts = []
    for row in checked.rows(side[np.argmin(sizes[side])] for side in (accepted, rejected)):
        turns = [f"  {turn['role']:>13}: {' '.join(turn['content'].split())[:300]}" for turn in row["messages"]]
        texts.append("\n".join([f"label: {str(row['label']).lower()}", *turns]))
    return "\n\n".join(texts)


IMPORTED = {"messages": "messages", "label": "label", "system": "system", "tools": "tools"}
"""columns of the rows that an importer makes"""


def _convert(table: importers.Table, shape: Shape, ledger: Ledger) -> dict:
    """Every row as a record, one of the unvoted, or a refusal in the ledger; returns `Checked`'s fields of one entry a record."""
    import orjson

    records, places, languages = [], [], []
    kinds = {"prompts": "Q", "replies": "Q", "words": "Q", "turns": "i", "lengths": "i", "labels": "b"}
    kept = {name: array(kind) for name, kind in kinds.items()}
    for where, value in table.rows():
        for made in rows(value, shape):
            ledger.rows_in += 1
            if isinstance(made, Refused) and made.kind == NO_VOTE:
                ledger.unvoted += 1
                continue
            if isinstance(made, Refused):
                ledger.add(made.kind, where, made.reason)
                continue
            record, repairs = made
            prompt, reply = prompt_of(record), record["messages"][-1]["content"]
            records.append(orjson.dumps(record) + b"\n")
            places.append(where)
            languages.append(quality.language_of(reply))
            figures = (_hash(prompt), _hash(prompt + reply.encode()), _hash(reply.encode()), len(record["messages"]) // 2, len(reply),
                       record["label"])
            for values, figure in zip(kept.values(), figures, strict=True):
                values.append(figure)
            for kind in repairs:
                read = "read as true" if record["label"] else "read as false"
                ledger.add(kind, where, "its turns were told apart" if kind == "text decoded" else read)
            for kind, reason in quality.doubtful("\n".join(turn["content"] for turn in record["messages"])):
                ledger.add(kind, where, reason)
    ledger.rows_out = len(records)
    arrays = {name: np.asarray(values) for name, values in kept.items()}
    return {"records": records, "where": places, "languages": languages, **arrays, "labels": arrays["labels"].astype(bool)}


def _hash(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")
