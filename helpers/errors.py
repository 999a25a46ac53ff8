"""KitError, shown instead of a traceback (found, expected, fix), and Finding, a warning that ends nothing."""

from difflib import get_close_matches
from typing import NamedTuple

from .secrets import mask


class Finding(NamedTuple):
    """Something worth telling that ends nothing: one line of the doctor, the watchdog, a check before a resume."""

    status: str  # OK, WARN (look at it) or FAIL (it cannot go well)
    found: str
    remedy: str = ""
    why: str = ""  # the likely cause, or what it leads to
    kind: str = ""  # its short name for programs
    step: int | None = None  # where in the training it was first seen

    def __str__(self) -> str:
        parts = (("why", self.why), ("fix", self.remedy))
        return f"[{self.status}]".ljust(7) + self.found + "".join(f"\n       {name}: {text}" for name, text in parts if text)


class KitError(Exception):
    """Shown as a one-line message instead of a traceback: what was found, what was expected, what to do."""

    def __init__(self, found: str, expected: str = "", remedy: str = ""):
        self.found, self.expected, self.remedy = found, expected, remedy
        parts = (("expected: ", expected), ("fix:      ", remedy))
        super().__init__(mask(found + "".join(f"\n  {name}{text}" for name, text in parts if text)))

    def _render_traceback_(self) -> list[str]:
        """What IPython shows instead of a traceback."""
        return [f"{type(self).__name__}: {self}"]


def refuse(findings: list[Finding], expected: str = "") -> None:
    """KitError for the first FAIL among them."""
    for finding in findings:
        if finding.status == "FAIL":
            raise KitError(finding.found, expected, finding.remedy)


def closest(word: str, known) -> str:
    """`" (did you mean 'x'?)"` for the known word nearest to `word`, or an empty string."""
    near = get_close_matches(word, known, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""
