"""The one exception a reader is meant to see: what was found, what was expected, what to do."""

from difflib import get_close_matches
from typing import NamedTuple

from .secrets import mask


class Finding(NamedTuple):
    """Something worth telling that ends nothing: one line of the doctor, the watchdog, a check before a resume.

    `status`: OK, WARN (look at it) or FAIL (it cannot go well); `found`: what is seen; `remedy`: what to do; `why`: the likely cause,
    or what it leads to; `kind`: its short name for programs; `step`: where in the training it was first seen.
    """

    status: str
    found: str
    remedy: str = ""
    why: str = ""
    kind: str = ""
    step: int | None = None

    def __str__(self) -> str:
        return (f"[{self.status}]{' ' * (5 - len(self.status))}{self.found}" + (f"\n       why: {self.why}" if self.why else "")
                + (f"\n       fix: {self.remedy}" if self.remedy else ""))


class KitError(Exception):
    """Shown as a one-line message instead of a traceback: what was found, what was expected, what to do."""

    def __init__(self, found: str, expected: str = "", remedy: str = ""):
        self.found, self.expected, self.remedy = found, expected, remedy
        lines = [found, f"  expected: {expected}" if expected else "", f"  fix:      {remedy}" if remedy else ""]
        super().__init__(mask("\n".join(line for line in lines if line)))

    def _render_traceback_(self) -> list[str]:
        """IPython asks an exception for its own rendering: in a notebook the message alone is shown, without frames."""
        return [f"{type(self).__name__}: {self}"]


def closest(word: str, known) -> str:
    """`" (did you mean 'x'?)"` for the known word nearest to `word`, or an empty string."""
    near = get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" (did you mean {near[0]!r}?)" if near else ""
