"""Feedback in, valid KTO records out: read, checked, split by prompt, shuffled, written and registered.

Rows stream through a spool file on local disk, so a dataset need not fit in memory: some 40 bytes a row are kept.
"""

import hashlib
import itertools
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from ..errors import KitError
from ..profiles import Profile
from . import convert, readers, registry
from .problems import Ledger
from .shapes import Shape, recognise
from .sources import Source, find
from .splits import clashes, shuffled, split

__all__ = ["Checked", "check", "example", "find", "prepare", "register", "split"]

SAMPLE = 2000
"""records from which the shape and the labels' scale are recognised"""


@dataclass
class Checked:
    """The records of a source that passed, and the ledger of all its rows.

    Arrays, one entry a record, in the source's order: `prompts` and `replies` (64-bit hashes, a reply's together with
    its prompt), `labels` (bool), `turns` (a question and its reply are one), `files` and `numbers` (where it came
    from). The records themselves lie in a spool file, which goes when this object does.
    """

    source: Source
    shape: Shape
    sha256: str
    ledger: Ledger
    prompts: np.ndarray
    replies: np.ndarray
    labels: np.ndarray
    turns: np.ndarray
    files: np.ndarray
    numbers: np.ndarray
    offsets: np.ndarray
    spool: tempfile.TemporaryDirectory = field(repr=False)

    def where(self, index: int) -> str:
        """`file:row` of what a record was made from."""
        return f"{self.source.names[self.files[index]]}:{self.numbers[index]}"

    def lines(self, indices):
        """The records of these indices as JSON lines (bytes), in this order."""
        with open(Path(self.spool.name) / "records.jsonl", "rb") as file:
            for index in indices:
                file.seek(self.offsets[index])
                yield file.read(int(self.offsets[index + 1] - self.offsets[index]))

    def rows(self, indices) -> list[dict]:
        """The records of these indices: `{"messages": [{"role", "content"}, …], "label": bool, "tools": str}`."""
        import orjson

        return [orjson.loads(line) for line in self.lines(indices)]


def check(source: Source, report: Path | None = None, columns: dict | None = None, scale: str = "", stars: int = 4,
          strict: bool = False, engine: str = "", profile: Profile | None = None) -> Checked:
    """Read a source whole: recognise its shape, refuse what cannot be trained on, note what is doubtful.

    `report`: the file that gets every problem; `columns`, `scale`: help where recognition fails (`shapes.recognise`);
    `stars`: so many of five or more are accepted; `strict`: problems stop instead of being counted; `engine`: local or
    ray (on the profile's cluster), empty for what suits the size. KitError where no row is left, or only one label.
    """
    spool = tempfile.TemporaryDirectory(prefix="kto-")
    ledger = Ledger(report or Path(spool.name) / "problems.jsonl")
    try:
        plans = [readers.plan(file) for file in source.files]
        chunks = [replace(chunk, file=place) for place, (_, part) in enumerate(plans) for chunk in part]
        sample = itertools.islice((value for chunk in chunks for _, value in readers.read(chunk)), SAMPLE)
        shape = recognise(list(sample), columns, scale)
        tables = convert.tables(chunks, shape, stars, engine or convert.choose_engine(chunks, profile), profile)
        kept = _spool(tables, Path(spool.name), ledger, source.names)
        repaired = kept.pop("repaired")
        checked = Checked(source, shape, _digest([digest for digest, _ in plans]), ledger, **kept, spool=spool)
        _look_across(checked, repaired)
    except OSError as error:
        raise KitError(f"reading {source.origin} failed: {error}", "readable files, and local disk for one copy of the "
                       f"data in {spool.name}", "free some space, or set TMPDIR to a larger disk") from None
    ledger.stop_if(strict)
    if len(np.unique(checked.labels)) < 2:
        only = "accepted" if checked.labels[0] else "rejected"
        raise KitError(f"every row is {only}; numbers among the labels were read as {shape.scale}",
                       "accepted and rejected rows", "add rows of the other kind, or say how to read the labels: "
                       "`scale` (binary, sign, stars) and `stars` (from how many on a row is accepted)")
    return checked


def example(checked: Checked) -> str:
    """A short accepted and a short rejected reply, to the same prompt where the data have one, as text."""
    sizes = np.diff(checked.offsets)
    accepted, rejected = np.flatnonzero(checked.labels), np.flatnonzero(~checked.labels)
    shared, here, there = np.intersect1d(checked.prompts[accepted], checked.prompts[rejected], return_indices=True)
    if len(shared):
        shortest = np.argmin(sizes[accepted[here]] + sizes[rejected[there]])
        chosen = accepted[here[shortest]], rejected[there[shortest]]
    else:
        chosen = [side[np.argmin(sizes[side])] for side in (accepted, rejected)]
    texts = []
    for row in checked.rows(chosen):
        turns = [f"  {turn['role']:>13}: {' '.join(turn['content'].split())[:300]}" for turn in row["messages"]]
        texts.append("\n".join([f"label: {str(row['label']).lower()}", *turns]))
    return "\n\n".join(texts)


def register(checked: Checked, heldout: np.ndarray, datasets: Path, seed: int = 42, name: str = "") -> dict:
    """Write both parts, each shuffled, into the folder `datasets` and enter them in its dataset_info.json.

    Names are `name` (or the source's) and a part of the content's hash, so runs with other splits keep theirs. Returns
    what run.json is to know: name, heldout_name, source, sha256 (the source's), train_sha256 (of the file that is trained
    on), rows, heldout_rows, accepted, rejected, refused, …
    """
    orders = []
    for side in (~heldout, heldout):
        indices = np.flatnonzero(side)
        orders.append(indices[shuffled(checked.prompts[indices], seed)])
    train, rest = orders
    parts = [("", checked.lines(train))] + ([("_heldout", checked.lines(rest))] if len(rest) else [])
    written = registry.write(datasets, name or checked.source.name, parts)
    names = list(written)
    return {
        "name": names[0], "heldout_name": names[1] if len(rest) else "",
        "source": checked.source.origin, "sha256": checked.sha256, "train_sha256": written[names[0]],
        "shape": checked.shape.name,
        "rows_in": checked.ledger.rows_in, "refused": checked.ledger.refused, "noted": checked.ledger.noted,
        **_count(checked, train), **{f"heldout_{key}": value for key, value in _count(checked, rest).items()},
        "neighbours_left": len(clashes(checked.prompts[train])), "seed": seed,
    }


def prepare(dataset: str, datasets: Path, heldout: float = 0.2, seed: int = 42, name: str = "", **how) -> dict:
    """All at once: find, check (`how`: see `check`), split, register; returns the facts that `register` does."""
    checked = check(find(dataset, datasets / "downloads"), **how)
    return register(checked, split(checked, heldout, seed), datasets, seed, name)


def _digest(digests: list[str]) -> str:
    """One file's own sha256; of several the sha256 of theirs, in order."""
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def _count(checked: Checked, indices: np.ndarray) -> dict:
    accepted = int(checked.labels[indices].sum())
    return {"rows": len(indices), "prompts": len(np.unique(checked.prompts[indices])), "accepted": accepted,
            "rejected": len(indices) - accepted}


KEPT = {"prompts": "prompts", "replies": "replies", "labels": "labels", "turns": "turns", "file": "files",
        "row": "numbers", "repaired": "repaired"}
"""column of `convert.schema` -> array of `Checked`"""


def _spool(tables, folder: Path, ledger: Ledger, names: list[str]) -> dict[str, np.ndarray]:
    """Write accepted records to the spool file, refused rows to the ledger; returns the kept columns as arrays."""
    kept = {name: [] for name in (*KEPT.values(), "sizes")}
    with (folder / "records.jsonl").open("wb") as file:
        for table in tables:
            ledger.rows_in += table.num_rows
            for bad in table.filter(table["kind"].is_valid()).select(["file", "row", "kind", "reason"]).to_pylist():
                ledger.add(bad["kind"], f"{names[bad['file']]}:{bad['row']}", bad["reason"])
            good = table.filter(table["kind"].is_null())
            ledger.rows_out += good.num_rows
            lines = good["json"].to_pylist()
            file.write(b"".join(lines))
            kept["sizes"].append(np.fromiter(map(len, lines), dtype=np.int64, count=len(lines)))
            for column, name in KEPT.items():
                kept[name].append(good[column].to_numpy())
    ledger.close()
    arrays = {name: np.concatenate(parts) if parts else np.array([]) for name, parts in kept.items()}
    offsets = np.concatenate([[0], np.cumsum(arrays.pop("sizes"))]).astype(np.int64)
    return arrays | {"labels": arrays["labels"].astype(bool), "offsets": offsets}


def _look_across(checked: Checked, repaired: np.ndarray) -> None:
    """Note what no single row shows: repaired labels, repeats, contradictions, blocks of a label, equal neighbours."""
    where, note, labels = checked.where, checked.ledger.note, checked.labels
    note("label repaired", ((where(i), f"read as {str(labels[i]).lower()}") for i in np.flatnonzero(repaired)))
    order = np.lexsort((labels, checked.replies))
    before, after = order[:-1], order[1:]
    same = checked.replies[before] == checked.replies[after]
    differ = labels[before] != labels[after]
    note("both labels", ((where(i), f"against {where(j)}") for i, j in zip(after[same & differ], before[same & differ],
                                                                          strict=True)))
    note("duplicate", ((where(i), f"repeats {where(j)}") for i, j in zip(after[same & ~differ], before[same & ~differ],
                                                                        strict=True)))
    changes, share = np.count_nonzero(labels[1:] != labels[:-1]), labels.mean() if len(labels) else 0
    if len(labels) >= 20 and changes < 0.2 * 2 * len(labels) * share * (1 - share):
        note("sorted by label", [("all rows", f"the label changes {changes:,} times in {len(labels):,} rows")])
    equal = np.flatnonzero(checked.prompts[1:] == checked.prompts[:-1]) + 1
    note("neighbours", ((where(i), f"the prompt of {where(i - 1)}") for i in equal))
