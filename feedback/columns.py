"""What the columns of a table hold, how often they are filled, and which part of a record each one is."""

import functools
import re
from collections import Counter
from dataclasses import dataclass, field

from helpers.errors import KitError, closest

from .labels import Votes
from .records import MEDIA, speaker
from .texts import TEXTS, as_turns, literal

_NAMES = {
    "messages": "messages conversations conversation dialogue dialog chat turns contents",
    "chosen": "chosen acceptedresponse preferred chosenresponse",
    "rejected": "rejected rejectedresponse dispreferred",
    "label": "label ktotag rating feedback thumb thumbs stars vote reaction score userrating userfeedback userscore feedbackrating "
             "feedbackscore feedbacks thumbsup thumbup liked like likes upvotes upvote helpful good correct grade accepted desirable "
             "humanrating humanlabel humanfeedback choice evaluation satisfaction satisfactionscore satisfactionrating "
             "bewertung hilfreich note valoración avaliação valutazione оценка 评分 評価",
    "against": "thumbsdown thumbdown disliked dislike dislikes downvotes downvote unhelpful nothelpful",
    "prompt": "prompt question query instruction userinput usermessage userprompt userquery request prompttext requesttext "
              "inputtext chatinput inputs human frage pregunta pergunta domanda вопрос 问题 質問",
    "reply": "completion response reply answer output assistant botresponse modelresponse modeloutput generation completiontext "
             "responsetext outputtext chatoutput outputs generatedtext generatedresponse modelanswer airesponse llmresponse "
             "assistantresponse assistantmessage botmessage botreply antwort réponse respuesta resposta risposta ответ 回答",
    "extra": "input",
    "history": "history chathistory conversationhistory messagehistory previousmessages previousturns",
    "system": "system systemprompt systemmessage",
    "tools": "tools functions",
    "media": MEDIA,
}
PARTS = {part: names.split() for part, names in _NAMES.items()}
"""a record's part -> the columns it is found in, as `plain` spells them, the first one present counting"""

TURN_KEYS = {"role", "from", "author", "speaker", "type", "content", "value", "text", "tool_calls", "function_call",
             "tool_call_id", "id", "sender", "parts", "replies"}
READ = TURN_KEYS | {*TEXTS, "messages", "message", "choices", "generations", "system", "tools"}
"""keys of a prompt's or a reply's object that are read"""
FOR = ("thumbsup", "thumbup", "liked", "like", "likes", "upvotes", "upvote", "helpful", "accepted")
"""columns of votes for a reply, beside which there may be one of votes against it"""
AGAINST = (*PARTS["against"], "bad", "rejected", "harmful", "toxic", "incorrect", "wrong", "flagged", "reported")
"""columns in which a yes is no praise"""

NO_VOTE = "nobody voted"


@dataclass
class Columns:
    """What the columns of a source hold: in how many rows each is filled, and the votes in those that may be labels."""

    named: dict = field(default_factory=dict)
    filled: Counter = field(default_factory=Counter)
    votes: dict[str, Votes] = field(default_factory=dict)
    names: dict[str, None] = field(default_factory=dict)
    unanswered: Counter = field(default_factory=Counter)
    """lists of turns that end in a question, among the first hundred of a column"""

    def add(self, row: dict, used: set[str], given: set[str]) -> None:
        """Count one row; the parts of nested data under their dotted names. The columns `given` by hand may all be labels."""
        self.names.update(dict.fromkeys(row))
        found = dict(_paths(row, used))
        inside = ((name, value_at(row, name)) for name in given - found.keys() - row.keys())
        found |= {name: value for name, value in inside if value is not None}
        for name, value in found.items():
            self.filled[name] += not empty(value)
            if name in given or _may_be_label(name):
                self.add_vote(name, value)
            if self.filled[name] <= 100 and isinstance(value, str) and value[:1] == "[":
                value = as_turns(literal(value))
            if isinstance(value, dict):
                value = [value]
            if isinstance(value, list) and value and isinstance(value[0], dict) and value[0].keys() & {"role", "from"}:
                self._add_turns(name, [turn for turn in value if isinstance(turn, dict)])

    def _add_turns(self, name: str, turns: list[dict]) -> None:
        self.unanswered[name] += self.filled[name] <= 100 and speaker(turns[-1]) == "user"
        keys = (f"{name}[].{key}" for turn in turns for key in turn if key not in TURN_KEYS and not empty(turn[key]))
        self.filled.update(dict.fromkeys(keys, 1))
        for turn in turns:
            for key in turn.keys() - TURN_KEYS:
                if plain(key) in PARTS["label"]:
                    self.add_vote(f"{name}[].{key}", turn[key])

    def unused(self, used: set[str]) -> dict[str, int]:
        """The columns, and keys of turns, that nothing was read from, with the rows that fill them."""
        used = {column for columns in used for column in columns.split("+")}
        used |= {f"{column}.status" for column in used if column.endswith(".responses")}
        return {name: count for name, count in self.filled.items() if count and name not in used and "+" not in name
                and not any(column.startswith(f"{name}.") for column in used)
                and (name in self.names or not any(name.startswith(f"{column}.") for column in used)
                     or name.rpartition(".")[2] not in READ)
                and (name.partition("[]")[0] in used or "[]" not in name)}

    def add_vote(self, name: str, value) -> None:
        self.votes.setdefault(name, Votes(self.named)).add(value)


def parse_columns(text: str) -> dict[str, str]:
    """`prompt=question,label=data.rating` as a dict. KitError for an unknown part."""
    pieces = re.split(r",(?=[^,]*=)", text)  # a column's name may hold a comma
    pairs = {part.strip(): column.strip() for part, _, column in (piece.partition("=") for piece in pieces if piece.strip())}
    for part, column in pairs.items():
        if part not in PARTS or not column:
            lacks = "has no column" if part in PARTS else f"names no part of a record{closest(part, PARTS)}"
            raise KitError(f"--columns {text}: {part!r} {lacks}",
                           f"PART=COLUMN, with the parts {', '.join(PARTS)}", "correct --columns")
    return pairs


def match(found: list[str], votes: dict[str, Votes]) -> dict[str, str]:
    """Which column holds which part, by its name; of several that may be the label the first whose values are votes.

    Of several with votes the one with thumbs; KitError where all have ratings, for which of them counts?
    """
    by_name = {plain(name): name for name in reversed(found)}
    matches = {part: next((by_name[name] for name in names if name in by_name), None) for part, names in PARTS.items()}
    named = [by_name[name] for name in PARTS["label"] if name in by_name]
    nested = [name for name in found if "." in name]
    labels = next(filter(None, ([name for name in names if name in votes and votes[name].are_labels] for names in (named, nested))), [])
    thumbs = [name for name in labels if votes[name].words or not set(votes[name].numbers) - {-1, 0, 1}]
    if len(labels) > 1 and not thumbs and not (matches["chosen"] and matches["rejected"]):
        raise KitError(f"several columns hold ratings: {', '.join(labels)}", "one that is the label",
                       "add " + ", or ".join(f"--columns label={name}" for name in [*labels, "+".join(labels)])
                       + " (several annotators' votes on the same question)")
    matches["label"] = next(iter(thumbs or labels), None)
    matches["media"] = "+".join(name for name in found if plain(name) in PARTS["media"])
    if plain(matches["label"] or "") not in FOR:
        del matches["against"]
    return {part: name for part, name in matches.items() if name}


def resolve(column: str, found: list[str]) -> str:
    """A column as it is really spelled, blanks and capitals aside."""
    if column in found:
        return column
    same = [name for name in found if name.strip().lower() == column.strip().lower()]
    if same:
        return same[0]
    raise KitError(f"--columns names {column!r}, but the columns are: {', '.join(found) or 'none'}{closest(column, found)}",
                   "columns that are there", "correct --columns")


def value_at(row, path: str):
    """The value in a column, or at a dotted path inside one; or None. Of `a+b` the list of both, of `a|b` the filled one."""
    if isinstance(row, str) and row[:1] in ("{", "["):  # CSV keeps nested data as text
        row = literal(row)
    if isinstance(row, list):
        row = {str(place): value for place, value in enumerate(row)}
    if not isinstance(row, dict):
        return None
    if path in row:
        return _cell(row, path)
    if "|" in path:
        return next((value for each in path.split("|") if not empty(value := value_at(row, each))), None)
    if "+" in path:
        return [value_at(row, each) for each in path.split("+")]
    first, _, rest = path.partition(".")
    return value_at(row[first], rest) if rest and first in row else None


def _cell(row: dict, name: str):
    """A cell's value; of Argilla's responses beside their status, those that were submitted."""
    value, status = row[name], row.get(f"{name}.status") if name.endswith(".responses") else None
    value, status = (literal(each) if isinstance(each, str) and status else each for each in (value, status))
    if not isinstance(value, list) or not isinstance(status, list) or len(value) != len(status):
        return row[name]
    return [vote for vote, each in zip(value, status, strict=True) if each == "submitted"]


@functools.lru_cache(10_000)
def plain(name: str) -> str:
    """A column's name without blanks, capitals, a leading "is", and what is in brackets."""
    name = re.sub(r"^is(?=[_ A-Z])", "", name.strip())
    return re.sub(r"[\W_]", "", re.sub(r"\s+[(\[].*", "", name).casefold())


def empty(value) -> bool:
    return value is None or value != value or value in ("", "[]", "{}", [], {}, ())


@functools.lru_cache(10_000)
def _may_be_label(name: str) -> bool:
    """By its name, or the first or last part of a dotted one."""
    return any(plain(part) in PARTS["label"] for part in (name, name.split(".")[0], name.rpartition(".")[2]))


def _paths(row: dict, used: set[str], before: str = ""):
    """(dotted name, value) of a row's columns and of what small dicts in them hold; `used` ones are not taken apart."""
    for name, value in row.items():
        path = f"{before}{name}"
        inner = path not in used and any(each.startswith(f"{path}.") for each in used)
        value = literal(value) if inner and isinstance(value, str) else _cell(row, name)
        small = isinstance(value, dict) and len(value) <= 30 and path.count(".") < 2 and as_turns(value) is None
        if isinstance(value, dict) and path not in used and (inner or small):
            yield from _paths(value, used, f"{path}.")
        else:
            yield path, value
