"""The values of one JSON list, however long, decoded one after the other; an error names its line and column."""

import json
from collections.abc import Iterator
from typing import TextIO

from ..errors import KitError

BLOCK = 16 << 20
"""characters read at once"""


def values(file: TextIO, name: str) -> Iterator[object]:
    """Each value of the JSON list in `file`, or of JSON values that follow one another. KitError for broken JSON."""
    window = _Window(file, name)
    inside = window.peek() == "["
    window.at += inside
    count = 0
    while (following := window.peek()) and not (inside and following == "]"):
        if inside and count:
            if following != ",":
                raise window.error("expected ',' or ']'", window.at)
            window.at += 1
            window.peek()
        count += 1
        yield window.value()
    if inside:
        if following != "]":
            raise window.error("the file ends inside the list", window.at)
        window.at += 1
        if window.peek():
            raise window.error("something follows the list", window.at)


class _Window:
    """The unread part of a text file, with the line and column of any place in it."""

    def __init__(self, file: TextIO, name: str):
        self.file, self.name, self.decoder = file, name, json.JSONDecoder()
        self.text, self.at, self.line, self.column = "", 0, 1, 1

    def more(self) -> bool:
        """Drop what was read and append the next block; False, and nothing changed, at the file's end."""
        fresh = self.file.read(max(BLOCK, len(self.text)))
        if not fresh:
            return False
        done = self.text[: self.at]
        self.column = self.column + len(done) if "\n" not in done else len(done) - done.rfind("\n")
        self.line += done.count("\n")
        self.text, self.at = self.text[self.at :] + fresh, 0
        return True

    def peek(self) -> str:
        """The next character that is no white space, `at` standing on it; empty at the end."""
        while True:
            self.at = json.decoder.WHITESPACE.match(self.text, self.at).end()
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.more():
                return ""

    def value(self):
        """The JSON value that starts at `at`, which then stands behind it."""
        while True:
            try:
                value, end = self.decoder.raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                cut_off = error.pos > len(self.text) - 16 or error.msg.startswith("Unterminated")
                behind = error.pos - self.at
                if cut_off and self.more():
                    continue
                raise self.error(error.msg, self.at + behind) from None
            except RecursionError:
                raise self.error("nested too deeply", self.at) from None
            if end == len(self.text) and self.more():  # a number may go on in the next block
                continue
            self.at = end
            return value

    def error(self, message: str, at: int) -> KitError:
        before = self.text[:at]
        column = self.column + at if "\n" not in before else at - before.rfind("\n")
        line = self.line + before.count("\n")
        return KitError(f"{self.name} is broken JSON: line {line} column {column}: {message}",
                        "a JSON list of records, or one record a line", "correct the file, or export it again")
