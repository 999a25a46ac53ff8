"""What can be wrong with feedback: every kind with its remedy, and the ledger in which no row is lost."""

import json
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from ..errors import KitError

SHOWN = 10
"""how many problems of a kind are shown; all of them stand in the ledger's file"""

REFUSED = {
    "broken JSON": "correct the line, or export the file again",
    "broken row": "quote values that hold commas or line breaks, or export the file as JSONL",
    "not a record": "one object a row, with the columns of one shape",
    "missing column": "fill the column, or take the row out",
    "label": "true or false, 0 or 1, -1 or 1, up or down; 1 to 5 for stars",
    "unknown role": "rename the role to user, assistant, system, observation or function_call",
    "turn order": "user or observation, then assistant or function_call, in turn, ending in a reply",
    "empty reply": "give the reply, or take the row out: LLaMA-Factory reads an accepted empty one as rejected",
    "empty turn": "give the turn its text, or take the row out",
    "function call": 'write the call as JSON: {"name": "…", "arguments": {…}}',
    "tools": 'write the tools as a JSON list: [{"name": "…", "description": "…", "parameters": {…}}, …]',
    "text": "plain text in valid Unicode",
}
"""kinds for which a row is refused -> remedy. `strict` stops at any of them."""

NOTED = {
    "both labels": ("the same reply to the same prompt is accepted and rejected", "decide which: the two work "
                    "against each other", True),
    "duplicate": ("prompt, reply and label once more", "take repeats out, unless each is a vote of its own", False),
    "label repaired": ("words or numbers for labels were turned into true and false", "nothing: LLaMA-Factory would "
                       "have dropped the rows", False),
    "sorted by label": ("labels come in blocks, so `max_samples` would take one class", "nothing: rows are written "
                        "shuffled", False),
    "neighbours": ("prompts equal to the row's before: such mismatched pairs match", "nothing: rows are written so "
                   "that neighbours differ", False),
    "over the cutoff": ("rows longer than cutoff_len are cut", "raise cutoff_len, or shorten the rows", False),
}
"""kinds whose rows are kept -> (what it is, remedy, whether `strict` stops at it)"""


@dataclass
class Ledger:
    """Rows in, rows out, and every problem: `counts` by kind, the first ten of each in `first`, all in `file`.

    `file` has one JSON line a problem: where (`file:row`), kind, reason. It exists only where there is one.
    """

    file: Path
    rows_in: int = 0
    rows_out: int = 0
    counts: dict = field(default_factory=dict)
    first: dict = field(default_factory=dict)
    _open: IO | None = field(default=None, repr=False)

    def __post_init__(self):
        self.file.unlink(missing_ok=True)

    def add(self, kind: str, where: str, reason: str) -> None:
        """Enter one problem."""
        self.counts[kind] = self.counts.get(kind, 0) + 1
        shown = self.first.setdefault(kind, [])
        if len(shown) < SHOWN:
            shown.append((where, reason))
        if self._open is None:
            self._open = self.file.open("a", encoding="utf-8")
        self._open.write(json.dumps({"where": where, "kind": kind, "reason": reason}, ensure_ascii=False) + "\n")

    def note(self, kind: str, problems: Iterable[tuple[str, str]]) -> None:
        """Enter many of a kind, in place of what was noted of it before: (where, reason) each."""
        self.counts.pop(kind, None)
        self.first.pop(kind, None)
        for where, reason in problems:
            self.add(kind, where, reason)
        self.close()

    def close(self) -> None:
        """Finish the file for now."""
        if self._open is not None:
            with suppress(OSError):  # a full disk was reported by the write before
                self._open.close()
            self._open = None

    @property
    def refused(self) -> dict[str, int]:
        """Rows refused, by kind; with `rows_out` they add up to `rows_in`."""
        return {kind: count for kind, count in self.counts.items() if kind in REFUSED}

    @property
    def noted(self) -> dict[str, int]:
        """Problems of rows that are kept, by kind."""
        return {kind: count for kind, count in self.counts.items() if kind in NOTED}

    def text(self, *kinds: str) -> str:
        """The account in words: rows in, out and refused, then each kind (or those named) with its remedy and rows."""
        lines = [f"{self.rows_in:,} rows in = {self.rows_out:,} rows out + {sum(self.refused.values()):,} refused"]
        for kind, count in self.counts.items():
            if kinds and kind not in kinds:
                continue
            meaning, remedy = ("refused", REFUSED[kind]) if kind in REFUSED else NOTED[kind][:2]
            lines += ["", f"{kind}: {count:,} ({meaning})", f"  fix: {remedy}"]
            lines += [f"  {where}  {reason}" for where, reason in self.first[kind]]
            if count > SHOWN:
                lines.append(f"  … and {count - SHOWN:,} more, in {self.file.name}")
        return "\n".join(lines)

    def stop_if(self, strict: bool) -> None:
        """KitError where nothing is left, or where `strict` and something was refused or contradicts itself."""
        if not self.rows_out:
            raise KitError(f"no row can be trained on: {self.text()}", "rows of one of the known shapes",
                           "mend what is listed, or choose another `dataset`")
        stopping = [*self.refused, *(kind for kind in self.noted if NOTED[kind][2])]
        if strict and stopping:
            raise KitError(f"strict: {self.text(*stopping)}", "none of these",
                           "mend the rows, or set `strict` to False to go on without the refused ones")
