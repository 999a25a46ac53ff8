"""What a vote says: words, thumbs, numbers on a scale that is recognised from its lowest and highest value, and stated."""

import math
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

from helpers.errors import KitError

from .records import Refused, shorten
from .texts import literal

UP = set("true t yes y up thumbsup thumbup 👍 good great like liked likes love ❤ accept accepted chosen desirable "
         "positive pos helpful correct right upvote upvoted approve approved pass passed satisfied happy ✅ ✔ 😀 😊 🙂 😃 "
         "ja oui si sí sim да".split())
DOWN = set("false f no n down thumbsdown thumbdown 👎 bad poor dislike disliked dislikes hate reject rejected undesirable negative "
           "neg unhelpful nothelpful incorrect wrong downvote downvoted disapprove disapproved fail failed unsatisfied "
           "dissatisfied unhappy ❌ ✖ 🙁 ☹ 😞 😠 nein non nao não нет".split())
NOBODY = set("none null nan na n/a nil undefined neutral tie novote notvoted unrated skip skipped nofeedback pending 😐 🤷".split())
"""words in small letters, without MARKS"""

MARKS = re.compile(r"[\s_:;.!\-–—\"'\ufe0e\ufe0f\u200d\U0001F3FB-\U0001F3FF]")
NUMBER = re.compile(r"([+-]?\d+(?:[.,]\d+)?)\s*(?:(%)|(?:/|of|out of)\s*(\d+)|(?:stars?|points?|pts|★|⭐)*)", re.I)
STARS = re.compile(r"([★⭐]+)([☆✩]*)")

ACCEPT = {(0, 1): 0.7, (1, 3): 3, (0, 4): 3, (1, 5): 4, (0, 5): 4, (1, 7): 5, (1, 10): 7, (0, 10): 7, (0, 100): 70}
"""scales by their ends -> from where on a rating is accepted, if nobody says otherwise"""


class Number(NamedTuple):
    value: float
    top: int = 0
    """the scale's highest value, where the vote says it: 4/5, 85 %, ★★★★☆"""


class Scale(NamedTuple):
    """How numbers become labels: accepted from `accept` on. `words` says it to a reader."""

    low: float
    high: float
    accept: float
    words: str


WORDS = Scale(0, 1, 1, "true and false, or words for them")
BINARY = Scale(0, 1, 1, "0 and 1; 1 is accepted")
SIGN = Scale(-1, 1, 1, "-1 and 1; 1 is accepted, 0 is no vote")


def parse(value):
    """One vote: True, False, a `Number`, a list of these from several annotators, None where nobody voted. ValueError for no vote."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        if isinstance(value, float) and math.isnan(value):
            return None
        if abs(value) > 1e9:
            raise ValueError(value)
        return Number(float(value))
    if isinstance(value, dict):
        if not value or value.get("status") in ("draft", "discarded", "pending"):
            return None
        key = next((key for key in ("value", "rating", "score", "vote", "label", "thumb") if key in value), None)
        if key is None:
            raise ValueError(value)
        return parse(value[key])
    if isinstance(value, list | tuple):
        votes = []
        for vote in map(parse, value):
            votes += vote if isinstance(vote, list) else [vote] if vote is not None else []
        return votes[0] if len(votes) == 1 else votes or None
    if not isinstance(value, str) or len(value) > 200:
        raise ValueError(value)
    return _parse_text(value.strip())


def _parse_text(text: str):
    if text[:1] in ("[", "(", "{") and (inner := literal(text)) is not None:
        return parse(inner)
    word = MARKS.sub("", text.casefold())
    if found := STARS.fullmatch(MARKS.sub("", text)):
        return Number(float(len(found[1])), len(found[1]) + len(found[2]) if found[2] else 5)
    if found := NUMBER.fullmatch(text.strip(":").strip()):
        return Number(float(found[1].replace(",", ".")), 100 if found[2] else int(found[3] or 0))
    if word in UP or word in DOWN:
        return word in UP
    if not word or word in NOBODY:
        return None
    raise ValueError(text)


@dataclass
class Votes:
    """All values of one column that may be the label: which numbers, how many words, how many are no votes at all."""

    numbers: Counter = field(default_factory=Counter)
    tops: set = field(default_factory=set)
    words: int = 0
    empty: int = 0
    strange: list = field(default_factory=list)
    strange_count: int = 0

    def add(self, value) -> None:
        try:
            votes = parse(value)
        except (ValueError, OverflowError, RecursionError):
            self.strange_count += 1
            if len(self.strange) < 5:
                self.strange.append(value)
            return
        self.empty += votes is None
        for vote in votes if isinstance(votes, list) else [votes]:
            if isinstance(vote, Number):
                self.numbers[vote.value] += 1
                self.tops.add(vote.top)
            elif isinstance(vote, bool):
                self.words += 1

    @property
    def are_labels(self) -> bool:
        """Whether most of what was filled in are votes."""
        return self.words + self.numbers.total() > self.strange_count

    def shown(self) -> str:
        """The numbers seen, as a message has them."""
        common = [f"{value:g} ({count:,}×)" for value, count in sorted(self.numbers.items())]
        return ", ".join(common if len(common) <= 12 else [*common[:6], "…", *common[-5:]])


def scale_of(votes: Votes, column: str, scale: str = "", accept_from: float | None = None, stars: int = 4) -> Scale:
    """The scale of a column's numbers. KitError, with the option to add, where their extent leaves it open.

    `scale`: binary, sign, stars, or its ends as 1-10; `accept_from`: ratings from here on are accepted; `stars`: the same for
    a scale of 1 to 5 alone.
    """
    seen = sorted(votes.numbers)
    if scale or not seen:
        return _named(scale, accept_from, stars) if scale else WORDS
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
    if low >= 0 and len(tops) == 0 and (ends := _ends(low, high, votes)):
        return _named(f"{ends[0]}-{ends[1]}", None, stars)
    raise KitError(f"the numbers in {column!r} fit no scale that is known, or several: {votes.shown()}",
                   "ratings whose lowest and highest values tell their scale (0/1, -1/1, 1-3, 0-4, 1-5, 1-7, 1-10, 0-100, 0.0-1.0)",
                   _options(low, high))


def _ends(low: float, high: float, votes: Votes) -> tuple[int, int] | None:
    """The scale that an extent can only mean; None where it may be several that disagree on what is accepted."""
    if high <= 1:
        return 0, 1
    if high == 5 or (high == 4.5 and low >= 1):
        return (0, 5) if low < 1 else (1, 5)
    if high == 4 and low < 1:
        return 0, 4
    if high in (3, 7) and low == 1 and votes.numbers.total() >= 20:  # so many ratings without a higher one
        return 1, int(high)
    if 7 < high <= 10:
        return (0, 10) if low < 1 else (1, 10)
    return (0, 100) if 50 < high <= 100 else None


def _named(scale: str, accept_from: float | None, stars: int) -> Scale:
    scale = {"stars": "1-5", "thumbs": "binary", "words": "binary"}.get(scale.strip().lower(), scale.strip().lower())
    if scale == "binary":
        return BINARY if accept_from is None else _named("0-1", accept_from, stars)
    if scale in ("sign", "-1..1", "-1-1") and accept_from is None:
        return SIGN
    ends = re.fullmatch(r"(-?\d+(?:\.\d+)?)\s*(?:-|–|to|\.\.|:)\s*(-?\d+(?:\.\d+)?)", scale)
    if not ends or float(ends[1]) >= float(ends[2]):
        raise KitError(f"there is no scale {scale!r}", "binary, sign, stars, or the lowest and highest rating, such as 1-10",
                       "correct --scale")
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
    return ACCEPT.get((low, high), math.ceil(accept) if high - low > 2 else round(accept, 2))


def _options(low: float, high: float) -> str:
    """The very option to add."""
    if low < 1 or high > 7:
        ends = [(math.floor(low), math.ceil(high))]
    else:  # the part of a longer scale that happens to be used
        ends = [(1, 3), (1, 5)] if high <= 3 else [(1, 5)] if high <= 5 else [(1, 7), (1, 10)]
    return "add " + ", or ".join(
        f"--scale={a}{'..' if a < 0 else '-'}{b} --accept-from={_usual(a, b):g}" for a, b in ends)


def label_of(value, scale: Scale) -> bool | None:
    """True for accepted, False for rejected, None where nobody voted. Refused where it is no vote, or annotators disagree evenly."""
    try:
        votes = parse(value)
        if votes is None:
            return None
        votes = votes if isinstance(votes, list) else [votes]
        labels = [label for label in (_one(vote, scale) for vote in votes) if label is not None]
    except (ValueError, OverflowError, RecursionError):
        raise Refused("label", f"{shorten(value)} is no vote on the scale: {scale.words}") from None
    if not labels:
        return None
    if sum(labels) * 2 == len(labels):
        raise Refused("annotators disagree", f"{shorten(value)}: as many accept the reply as reject it")
    if len(votes) > 1 and all(isinstance(vote, Number) for vote in votes) and scale is not SIGN:
        return sum(vote.value for vote in votes) / len(votes) >= scale.accept
    return sum(labels) * 2 > len(labels)


def more_for(votes_for, votes_against) -> bool | None:
    """The label where votes for and against stand in columns of their own: flags or counts. None where there are none."""
    counts = []
    for value in (votes_for, votes_against):
        try:
            vote = parse(value)
            counts.append(vote.value if isinstance(vote, Number) else float(vote or 0))
        except (ValueError, TypeError):
            raise Refused("label", f"{shorten(value)} is no number of votes") from None
    if counts[0] == counts[1] and counts[0]:
        raise Refused("annotators disagree", f"as many votes for the reply as against it: {counts[0]:g}")
    return None if counts[0] == counts[1] else counts[0] > counts[1]


def _one(vote, scale: Scale) -> bool | None:
    if isinstance(vote, bool):
        return vote
    whole = scale in (WORDS, BINARY, SIGN) and vote.value != int(vote.value)
    if whole or not scale.low <= vote.value <= scale.high:
        raise ValueError(vote.value)
    return None if scale is SIGN and not vote.value else vote.value >= scale.accept
