"""Read votes: words, thumbs, stars, numbers, of one or several people."""

import re
import unicodedata
from collections import Counter
from dataclasses import dataclass, field
from decimal import Decimal
from typing import NamedTuple

from .records import Refused, shorten
from .scales import BINARY, SIGN, WORDS, Scale, folded
from .texts import literal

UP = """true t yes y up thumbsup thumbup 👍 good verygood goodresponse great excellent like liked likes love ❤ accept accepted chosen
    desirable positive pos helpful veryhelpful useful correct right agree stronglyagree upvote upvoted approve approved pass passed
    win plus satisfied verysatisfied happy ✅ ✔ ✓ ☑ 💯 🎉 😀 😊 🙂 😃 😄 😍 🤩 ok ja wahr gut hilfreich gefälltmir daumenhoch oui vrai
    bon bien utile pouceenhaut megusta si sí sì verdadero sim verdadeiro vero tak evet да хорошо нравится 是 好 赞 点赞 有用 满意 はい
    いいね 良い 高評価 예 네 좋아요""".split()
DOWN = """false f no n down thumbsdown thumbdown 👎 bad verybad badresponse notgood poor verypoor terrible dislike disliked dislikes
    hate reject rejected undesirable negative neg unhelpful nothelpful notveryhelpful nothelpfulatall useless incorrect wrong disagree
    stronglydisagree downvote downvoted disapprove disapproved fail failed loss minus nok notok notuseful notsatisfied unsatisfied
    dissatisfied verydissatisfied unhappy ❌ ✖ ✗ ✘ ☒ 🙁 ☹ 😞 😠 😡 💔 💩 nein falsch schlecht nichtgut nichthilfreich gefälltmirnicht
    daumenrunter non faux mauvais mal inutile pouceenbas nomegusta falso nao não nie nee nej hayır hayir нет плохо ненравится 否 坏 踩
    点踩 没用 不满意 いいえ 悪い 低評価 아니요 아니오 싫어요""".split()
NOBODY = "none null nan na n/a #n/a nil undefined neutral tie novote notvoted unrated skip skipped nofeedback pending 😐 🤷".split()
"""words in small letters, without MARKS"""
VOTES = dict.fromkeys(UP, True) | dict.fromkeys(DOWN, False)
SIGNS = re.compile(f"([{''.join(word for word in VOTES if len(word) == 1 and not word.isalnum())}])")

MARKS = re.compile(r":skin-tone-\d:|[\s_:;.!\-–—\"'\ufe0e\ufe0f\u200d\U0001F3FB-\U0001F3FF]")
NUMBER = re.compile(r"[★⭐]?\s*([+-]?\d+(?:[.,]\d+)?)\s*(?:(%)|(?:/|of|out of|von|sur|de|из)\s*(\d+)|(?:stars?|points?|pts|★|⭐)*)"
                    r"(?:\s*[:(–-]\s*\D{1,40})?", re.I)
"""4, 4.5, 4/5, 85 %, 4 stars, 4: good, 4 (good)"""
STARS = re.compile(r"([★⭐]+)(½?)([☆✩]*)")


class Number(NamedTuple):
    """A vote as a number. `top`: the scale's highest value, where the vote says it: 4/5, 85 %, ★★★★☆; else 0."""

    value: float
    top: int = 0


def parse(value):
    """One vote: True, False, a `Number`, a list of these from several annotators, None where nobody voted. ValueError for no vote."""
    if value is None or isinstance(value, bool) or value != value:  # NaN
        return None if value != value else value
    if isinstance(value, int | float | Decimal):
        if abs(value) > 1e9:
            raise ValueError(value)
        return Number(float(value))
    if isinstance(value, dict):
        if not value or value.get("status") in ("draft", "discarded", "pending"):
            return None
        found = [value[key] for key in ("value", "rating", "score", "vote", "label", "thumb", "choices") if key in value]
        if not found:
            raise ValueError(value)
        return parse(found[0])
    if isinstance(value, list | tuple):
        votes = []
        for vote in map(parse, value):
            votes += vote if isinstance(vote, list) else [vote] if vote is not None else []
        return votes[0] if len(votes) == 1 else votes or None
    if not isinstance(value, str) or len(value) > 200:
        raise ValueError(value)
    text = value.strip()
    if text[:1] in ("[", "(", "{") and (inner := literal(text)) is not None:
        return parse(inner)
    if len(several := re.split("[;|]", text)) > 1:
        return parse(several)
    if found := STARS.fullmatch(MARKS.sub("", text)):
        return Number(len(found[1]) + len(found[2]) / 2, sum(map(len, found.groups())) if found[3] else 5)
    text = re.sub(r":skin-tone-\d:", "", unicodedata.normalize("NFKC", text).replace("−", "-"))  # digits and signs of full width
    if found := NUMBER.fullmatch(text.strip(":").strip()):
        return Number(float(found[1].replace(",", ".")), 100 if found[2] else int(found[3] or 0))
    word = MARKS.sub("", text.casefold())
    said = {VOTES.get(part) for part in SIGNS.split(word) if part}  # "thumbs up 👍" says the same twice
    if len(said) == 1 and None not in said:
        return said.pop()
    if word and word not in NOBODY:
        raise ValueError(text)
    return None


def votes_in(value, named: dict) -> list:
    """All votes in a value, as `parse` or as the user has named them; empty if nobody voted."""
    if not named:
        votes = parse(value)
        return votes if isinstance(votes, list) else [] if votes is None else [votes]
    words = [folded(vote) for vote in (value if isinstance(value, list | tuple) else [value])]
    words = [word for word in words if word in named or word not in ("", "none", "nan")]
    if set(words) - named.keys():
        raise ValueError(value)
    return [named[word] for word in words if named[word] is not None]


@dataclass
class Votes:
    """All values of one column that may be the label: which numbers, how many words, and what is no vote at all."""

    named: dict = field(default_factory=dict)
    numbers: Counter = field(default_factory=Counter)
    tops: set = field(default_factory=set)
    words: int = 0
    strange: list = field(default_factory=list)
    strange_count: int = 0

    def add(self, value) -> None:
        try:
            votes = votes_in(value, self.named)
        except (ValueError, OverflowError, RecursionError):
            self.strange_count += 1
            if len(self.strange) < 5 and value not in self.strange:
                self.strange.append(value)
            return
        for vote in votes:
            if isinstance(vote, bool):
                self.words += 1
            else:
                self.numbers[vote.value] += 1
                self.tops.add(vote.top)

    @property
    def are_labels(self) -> bool:
        """Whether most of what was filled in are votes."""
        return self.words + self.numbers.total() > self.strange_count

    def shown(self) -> str:
        """The numbers seen, as a message has them."""
        common = [f"{value:g} ({count:,}×)" for value, count in sorted(self.numbers.items())]
        return ", ".join(common if len(common) <= 12 else [*common[:6], "…", *common[-5:]])


def label_of(value, scale: Scale) -> bool | None:
    """True for accepted, False for rejected, None where nobody voted. Refused where it is no vote, or annotators disagree evenly."""
    rated = scale not in (WORDS, BINARY, SIGN)
    try:
        votes = votes_in(value, scale.named)
        if scale.low == 1 or scale is SIGN:
            votes = [vote for vote in votes if isinstance(vote, bool) or vote.value]  # 0 is no vote
        numbers = [vote.value for vote in votes if isinstance(vote, Number)]
        if not all(scale.low <= number <= scale.high and (rated or number == int(number)) for number in numbers):
            raise ValueError(value)
    except (ValueError, OverflowError, RecursionError):
        raise Refused("label", f"{shorten(value)} is no vote on the scale: {scale.words}") from None
    if not votes:
        return None
    labels = [vote if isinstance(vote, bool) else vote.value >= scale.accept for vote in votes]
    if sum(labels) * 2 == len(labels):
        raise Refused("annotators disagree", f"{shorten(value)}: as many accept the reply as reject it")
    if rated and len(numbers) == len(votes):
        return sum(numbers) / len(numbers) >= scale.accept
    return sum(labels) * 2 > len(labels)


def more_for(votes_for, votes_against) -> bool | None:
    """The label where votes for and against stand in columns of their own: flags or counts. None where there are none."""
    try:
        ours, theirs = (vote.value if isinstance(vote := parse(value), Number) else float(vote or 0)
                        for value in (votes_for, votes_against))
    except (ValueError, TypeError):
        raise Refused("label", f"{shorten(votes_for)} or {shorten(votes_against)} is no number of votes") from None
    if ours == theirs and ours:
        raise Refused("annotators disagree", f"as many votes for the reply as against it: {ours:g}")
    return None if ours == theirs else ours > theirs
