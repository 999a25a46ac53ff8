"""Recognise rating scales from a column's lowest and highest value, or as you specify."""

import math
import re
from typing import NamedTuple

from helpers.errors import KitError

ACCEPT = {(0, 1): 0.7, (1, 3): 3, (0, 4): 3, (1, 5): 4, (0, 5): 4, (1, 7): 5, (1, 10): 7, (0, 10): 7, (0, 100): 70}
"""scales by their ends -> from where on a rating is accepted, if nobody says otherwise"""


class Scale(NamedTuple):
    """How numbers become labels: accepted from `accept` on. `words` describes it in the output."""

    low: float
    high: float
    accept: float
    words: str
    named: dict = {}
    """votes that the user has named, as `folded` spells them -> True, False, or None for no vote; then nothing else is a vote"""


WORDS = Scale(0, 1, 1, "true and false, or words for them")
BINARY = Scale(0, 1, 1, "0 and 1; 1 is accepted")
SIGN = Scale(-1, 1, 1, "-1 and 1; 1 is accepted, 0 is no vote")


def named_votes(scale: str) -> dict:
    """`good,fine/bad[/unsure]` as {"good": True, "fine": True, "bad": False, "unsure": None}; empty for a scale by its name or ends."""
    sides = scale.split("/")
    if len(sides) not in (2, 3):
        if scale:
            _named(scale, None, 4)  # a scale that there is not is told before anything is read
        return {}
    return {folded(word): label for side, label in zip(sides, (True, False, None), strict=False)
            for word in side.split(",") if word.strip()}


def folded(vote) -> str:
    """One vote as `named_votes` spells it."""
    number = isinstance(vote, int | float) and not isinstance(vote, bool)
    return f"{vote:g}" if number else str(vote).strip().casefold()


def scale_of(votes, column: str, scale: str = "", accept_from: float | None = None, stars: int = 4) -> Scale:
    """The scale of a column's numbers. KitError, with the option to add, where their extent leaves it open.

    `scale`: binary, sign, stars, its ends as 1-10, or the votes themselves as accepted,…/rejected,…; `accept_from`: ratings
    from here on are accepted; `stars`: the same for a scale of 1 to 5 alone.
    """
    if votes.named:
        kinds = [", ".join(word for word, label in votes.named.items() if label is kind) for kind in (True, False, None)]
        words = f"{kinds[0]}: accepted; {kinds[1]}: rejected" + (f"; {kinds[2]}: no vote" if kinds[2] else "")
        return WORDS._replace(words=words, named=votes.named)
    found = _named(scale, accept_from, stars) if scale else _recognised(votes, column, accept_from, stars)
    return found._replace(words=f"{found.words}, 0 is no vote") if found.low == 1 and votes.numbers[0] else found


def _recognised(votes, column: str, accept_from: float | None, stars: int) -> Scale:
    seen = sorted(votes.numbers)
    if not seen:
        return WORDS
    low, high, whole = seen[0], seen[-1], all(value == int(value) for value in seen)
    tops = votes.tops - {0}
    if accept_from is not None:
        return _rated(min(low, accept_from), max(high, accept_from), accept_from)
    if votes.words > votes.numbers.total() or (votes.words and not set(seen) - {-1, 0, 1}):
        return SIGN if -1 in seen else WORDS  # any other number among words is the fault, not the scale
    if len(tops) == 1 and 0 not in votes.tops and low >= 0 and high <= (top := tops.pop()):
        return _named(f"{0 if top == 100 else min(1, int(low))}-{top}", None, stars)
    if whole and {low, high} <= {-1.0, 0.0, 1.0}:
        return SIGN if low < 0 else BINARY
    clear = high > 6 or low < 1 or column.strip().lower() not in ("grade", "note", "schulnote")  # of which 1 may be the best
    if clear and low >= 0 and len(tops) == 0 and (ends := _ends(seen, votes.numbers.total())):
        return _named(f"{ends[0]}-{ends[1]}", None, stars)
    raise KitError(f"the numbers in {column!r} fit no scale that is known, or several: {votes.shown()}",
                   "ratings whose lowest and highest values tell their scale (0/1, -1/1, 1-3, 0-4, 1-5, 1-7, 1-10, 0-100, 0.0-1.0)",
                   _options(seen))


def _ends(seen: list[float], count: int) -> tuple[int, int] | None:
    """The scale that the values seen can only mean; None where it may be several that disagree on what is accepted."""
    low, high = seen[0], seen[-1]
    if high <= 1:
        return 0, 1
    if high == 5 or (high == 4.5 and low >= 1):
        return (1, 5) if low >= 1 else (0, 5) if low else None  # is 0 the worst rating, or none?
    if high == 4 and low < 1:
        return 0, 4
    if high in (3, 7) and low == 1 and count >= 20:  # so many ratings without a higher one
        return 1, int(high)
    if 7 < high <= 10:
        return (0, 10) if low < 1 else (1, 10)
    return (0, 100) if 50 < high <= 100 and not _alone(seen) else None


def _named(scale: str, accept_from: float | None, stars: int) -> Scale:
    scale = {"stars": "1-5", "thumbs": "binary", "words": "binary"}.get(scale.strip().lower(), scale.strip().lower())
    if scale == "binary":
        return BINARY if accept_from is None else _named("0-1", accept_from, stars)
    if scale in ("sign", "-1..1", "-1-1") and accept_from is None:
        return SIGN
    ends = re.fullmatch(r"(-?\d+(?:\.\d+)?)\s*(?:-|–|to|\.\.|:)\s*(-?\d+(?:\.\d+)?)", scale)
    if not ends or float(ends[1]) >= float(ends[2]):
        raise KitError(f"there is no scale {scale!r}", "binary, sign, stars, the lowest and highest rating as 1-10, or "
                       "the votes as ACCEPTED,…/REJECTED,…", "correct --scale")
    low, high = float(ends[1]), float(ends[2])
    usual = stars if (low, high) == (1, 5) else _usual(low, high)
    accept = usual if accept_from is None else accept_from
    if not low < accept <= high:
        raise KitError(f"ratings of {accept:g} and more were to be accepted, on a scale of {low:g} to {high:g}",
                       f"a number above {low:g}, at most {high:g}", "correct --accept-from (or --stars)")
    return _rated(low, high, accept)


def _rated(low: float, high: float, accept: float) -> Scale:
    return Scale(low, high, accept, f"ratings {low:g} to {high:g}; {accept:g} and more are accepted")


def _usual(low: float, high: float) -> float:
    """From where on ratings are accepted: as ACCEPT has it, else six tenths up the scale."""
    accept = low + 0.6 * (high - low)
    return ACCEPT.get((low, high), math.ceil(accept) if high - low >= 2 else round(accept, 2))


def _options(seen: list[float]) -> str:
    """The very option to add."""
    low, high = math.floor(seen[0]), math.ceil(seen[-1])
    if low < 0:
        ends = [(low, high)] if low == -high and high <= 10 else []
    elif high > 10:  # where one value is far from the others it may be none: 99 among 1 to 5
        ends = [] if _alone(seen) or high > 100 else [(low, high), (0, 100)]
    elif low == 0:
        ends = [(0, high), (1, high)] if high > 2 else [(0, high)]
    else:  # the part of a longer scale that happens to be used
        ends = [(1, end) for end in sorted({max(high, 3), 5, 6, 7, 10}) if end >= high][:3]
    options = [f"--scale={a}{'..' if a < 0 else '-'}{b} --accept-from={_usual(a, b):g}{' (0: no vote)' if low == 0 and a == 1 else ''}"
               for a, b in ends]
    options = options or ["--accept-from=… (the lowest rating that is accepted)"]
    return "add " + ", or ".join([*options, "--scale=ACCEPTED,…/REJECTED,…/NO VOTE,… with the votes' names (1 may be the best)"])


def _alone(seen: list[float]) -> bool:
    return len(seen) > 2 and seen[-2] < seen[-1] / 3
