"""Every kind of problem with its fix, and the ledger that accounts for every row."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from helpers import files
from helpers.errors import KitError

SHOWN = 10
"""how many problems of a kind are shown; all of them stand in the ledger's file"""

REFUSED = {
    "broken JSON": "correct the line, or export the file again",
    "broken row": "quote values that hold separators or line breaks, or export the file as JSONL",
    "not a record": "one object a row, with the columns of one shape",
    "missing column": "fill the column, or take the row out",
    "label": "a vote on the scale that is stated; another scale: --scale, --accept-from",
    "annotators disagree": "decide which vote counts, or take the row out",
    "unknown role": "rename the role to user, assistant, system, observation or function_call",
    "turn order": "user or observation, then assistant or function_call, in turn, ending in a reply",
    "empty reply": "give the reply, or take the row out: LLaMA-Factory reads an accepted empty one as rejected",
    "empty turn": "give the turn its text, or take the row out",
    "function call": 'write the call as JSON: {"name": "…", "arguments": {…}}',
    "words beside a call": "LLaMA-Factory 0.9.3 trains a turn's words or its calls: take one of them out",
    "tools": 'write the tools as a JSON list: [{"name": "…", "description": "…", "parameters": {…}}, …]',
    "images": "take the row out: text alone is trained",
    "chat template": "export the turns without the template's tokens: user, assistant, …",
    "transcript": "export the turns one by one, or take out the row in which a reply goes on speaking for the user",
    "turns as text": "export the list as JSON, not as Python or numpy prints it",
    "control characters": "read the original file again, in its own encoding, such as Windows-1252",
    "text": "plain text in valid Unicode",
}
"""kinds for which a row is refused -> remedy. `strict` stops at any of them."""

NOTED = {
    "both labels": ("the same reply to the same prompt is accepted and rejected", "decide which: they work against each other", True),
    "duplicate": ("prompt, reply and label once more", "take repeats out, unless each is a vote of its own", False),
    "one reply, many prompts": ("the same reply to different prompts, with the same label",
                                "take most of them out if they are canned texts: they teach one sentence", False),
    "label repaired": ("words or numbers for labels were turned into true and false", "nothing: they are read as stated", False),
    "text decoded": ("a text held several turns", "nothing: they are trained, without the markers", False),
    "encoding": ("a file that is not UTF-8", "nothing, if the example reads well; else convert it to UTF-8", False),
    "label follows length": ("the label can be told from the reply's length alone", "KTO would learn length: add rows of both "
                             "labels in every length, or compare within a prompt", False),
    "one label is rare": ("a tenth of the rows or less", "add rows of that label; until then use notebook 2's weights", False),
    "language differs by label": ("one label's replies are in another language", "KTO would learn the language: mix them", False),
    "garbled text": ("leftovers of another encoding or of a chat template", "correct the text, or take the row out", True),
    "personal data": ("patterns of personal data in the text, shown masked", "mask them: a model can repeat what it learned", True),
    "secrets": ("patterns of passwords, keys or tokens in the text, shown masked", "revoke them, and take them out", True),
    "cut off": ("several replies end at the same length", "export them whole: an export or a spreadsheet cuts long texts", False),
    "one prompt": ("all replies are to the same prompt", "if another column holds the questions: --columns prompt=…", False),
    "over the cutoff": ("rows longer than cutoff_len are cut", "raise cutoff_len, or shorten the rows", False),
}
"""kinds whose rows are kept -> (what it is, remedy, whether `strict` stops at it)"""


@dataclass
class Ledger:
    """Rows in, rows out, and every problem: kind -> (where, reason) of each, where being `file:row`."""

    file: Path | None = None
    rows_in: int = 0
    rows_out: int = 0
    unvoted: int = 0
    problems: dict[str, list[tuple[str, str]]] = field(default_factory=dict)

    def add(self, kind: str, where: str, reason: str) -> None:
        """Enter one problem."""
        self.problems.setdefault(kind, []).append((where, reason))

    def note(self, kind: str, problems: Iterable[tuple[str, str]]) -> None:
        """Enter many of a kind, in place of what was noted of it before: (where, reason) each."""
        self.problems.pop(kind, None)
        for where, reason in problems:
            self.add(kind, where, reason)

    def save(self) -> None:
        """Write all problems into `file`, one JSON line each; it exists only where there is one."""
        if self.file and self.problems:
            files.write(self.file, "".join(
                json.dumps({"where": where, "kind": kind, "reason": reason}, ensure_ascii=False) + "\n"
                for kind, found in self.problems.items() for where, reason in found))
        elif self.file:
            self.file.unlink(missing_ok=True)

    @property
    def counts(self) -> dict[str, int]:
        """Problems by kind."""
        return {kind: len(found) for kind, found in self.problems.items()}

    @property
    def refused(self) -> dict[str, int]:
        """Rows refused, by kind; with `rows_out` and `unvoted` they add up to `rows_in`."""
        return {kind: count for kind, count in self.counts.items() if kind in REFUSED}

    @property
    def noted(self) -> dict[str, int]:
        """Problems of rows that are kept, by kind."""
        return {kind: count for kind, count in self.counts.items() if kind in NOTED}

    @property
    def account(self) -> str:
        """The one line in which every row is."""
        unvoted = f" + {self.unvoted:,} that nobody voted on" if self.unvoted else ""
        return f"{self.rows_in:,} rows in = {self.rows_out:,} rows out + {sum(self.refused.values()):,} refused{unvoted}"

    def text(self, *kinds: str) -> str:
        """The account in words, then each kind (or those named) with its remedy and rows."""
        lines = [self.account]
        for kind, count in self.counts.items():
            if kinds and kind not in kinds:
                continue
            meaning, remedy = ("refused", REFUSED[kind]) if kind in REFUSED else NOTED[kind][:2]
            lines += ["", f"{kind}: {count:,} ({meaning})", f"  fix: {remedy}"]
            lines += [f"  {where}  {reason}" for where, reason in self.problems[kind][:SHOWN]]
            if count > SHOWN:
                lines.append(f"  … and {count - SHOWN:,} more" + (f", in {self.file.name}" if self.file else ""))
        return "\n".join(lines)

    def stop_if(self, strict: bool = False, refuse_share: float | None = None) -> None:
        """KitError where nothing is left, where more than `refuse_share` is refused, or where `strict` and there is a fault."""
        refused = sum(self.refused.values())
        if not self.rows_out:
            raise KitError(f"no row can be trained on: {self.text()}", "rows of one of the known shapes, with votes",
                           "fix what is listed, say how to read the rows (--columns, --scale), or choose another `dataset`")
        if refuse_share is not None and refused > refuse_share * (refused + self.rows_out):
            raise KitError(f"{refused / (refused + self.rows_out):.0%} of the rows are refused: {self.text(*self.refused)}",
                           f"at most {refuse_share:.0%}",
                           "fix what is listed, or accept it: --refuse-share (refuse_share in notebook 2)")
        stopping = [*self.refused, *(kind for kind in self.noted if NOTED[kind][2])]
        if strict and stopping:
            raise KitError(f"strict: {self.text(*stopping)}", "none of these",
                           "fix the rows, or set `strict` to False to go on without the refused ones")
