"""The one exception a reader is meant to see: what was found, what was expected, what to do."""

from difflib import get_close_matches

from .secrets import mask


class KitError(Exception):
    """Ends a cell or a command with one readable message instead of a stack of someone else's internals."""

    def __init__(self, found: str, expected: str = "", remedy: str = ""):
        self.found, self.expected, self.remedy = found, expected, remedy
        lines = [found, f"  expected: {expected}" if expected else "", f"  to do:    {remedy}" if remedy else ""]
        super().__init__(mask("\n".join(line for line in lines if line)))

    def _render_traceback_(self) -> list[str]:
        """IPython asks an exception for its own rendering: in a notebook the message alone is shown, without frames."""
        return [f"{type(self).__name__}: {self}"]


def closest(word: str, known) -> str:
    """`" (did you mean 'x'?)"` for the known word nearest to `word`, or an empty string."""
    near = get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" (did you mean {near[0]!r}?)" if near else ""
