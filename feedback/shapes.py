"""The shapes that tables of feedback come in, recognised by their columns, and each row of them as judged replies."""

import re
from collections import Counter
from dataclasses import dataclass, field

from helpers.errors import KitError, closest

from .labels import Scale, Votes, label_of
from .records import ROLES, Refused, record, shorten
from .texts import literal, turns_in

PARTS = {
    "messages": ("messages", "conversations", "conversation", "dialogue", "dialog", "chat", "turns"),
    "chosen": ("chosen", "acceptedresponse", "preferred", "chosenresponse"),
    "rejected": ("rejected", "rejectedresponse", "dispreferred"),
    "label": ("label", "ktotag", "rating", "feedback", "thumb", "thumbs", "stars", "vote", "reaction", "score", "userrating", "userfeedback",
              "userscore", "thumbsup", "liked", "like", "helpful", "grade", "accepted", "desirable", "humanrating", "choice", "evaluation"),
    "prompt": ("prompt", "question", "query", "instruction", "userinput", "usermessage", "userprompt", "request"),
    "reply": ("completion", "response", "reply", "answer", "output", "assistant", "botresponse", "modelresponse", "modeloutput", "generation"),
    "extra": ("input",),
    "history": ("history",),
    "system": ("system", "systemprompt", "systemmessage"),
    "tools": ("tools", "functions"),
    "media": ("images", "image", "videos", "video", "audios", "audio"),
}
"""a record's part -> the columns it is found in, as `_plain` spells them, the first one present counting"""

KNOWN = """\
    messages, label                  a dialogue (role/content or from/value) whose last turn is judged
    prompt, completion, label        as TRL has it; each a text or a list of turns
    prompt, response, rating         a log of thumbs or ratings
    prompt, chosen, rejected         a pair: it becomes two rows"""

NO_VOTE = "nobody voted"


@dataclass
class Columns:
    """What the columns of a source hold: in how many rows each is filled, and the votes in those that may be labels."""

    filled: Counter = field(default_factory=Counter)
    votes: dict[str, Votes] = field(default_factory=dict)
    rows: int = 0

    def add(self, row: dict, used: set[str], candidates: set[str]) -> None:
        """Count one row. Inside a dict of which a part is used, the parts are counted; `candidates` may be labels."""
        self.rows += 1
        for name, value in _paths(row, used):
            self.filled[name] += not _empty(value)
            if name in candidates or _may_be_label(name):
                self.add_vote(name, value)

    def add_vote(self, name: str, value) -> None:
        self.votes.setdefault(name, Votes()).add(value)


@dataclass(frozen=True)
class Shape:
    """A recognised shape: its `name`, which column holds which part, and how its labels are read."""

    name: str
    parts: dict
    scale: Scale

    @property
    def rows_each(self) -> int:
        """Judged replies that one row makes: 2 for a pair, else 1."""
        return 2 if "chosen" in self.parts else 1


def parse_columns(text: str | dict | None) -> dict[str, str]:
    """`prompt=question,label=data.rating` as a dict. KitError for an unknown part."""
    pairs = text if isinstance(text, dict) else dict(
        (piece.partition("=")[0].strip(), piece.partition("=")[2].strip()) for piece in (text or "").split(",") if piece.strip())
    for part, column in pairs.items():
        if part not in PARTS or not column:
            raise KitError(f"--columns {text}: {part!r} names no part of a record{closest(part, PARTS)}",
                           f"PART=COLUMN, with the parts {', '.join(PARTS)}", "correct --columns")
    return pairs


def recognise(columns: Columns, given: dict[str, str]) -> tuple[str, dict[str, str]]:
    """The shape's name and which column holds which part. KitError prints the option to add, with the columns that were seen."""
    found = list(columns.filled)
    parts = _match(found, columns.votes) | {part: _resolve(column, found) for part, column in given.items()}
    if parts.get("prompt") != parts.get("extra") and _plain(parts.get("prompt", "")) != "instruction" and "extra" not in given:
        if "prompt" in parts or not {"reply", "chosen"} & set(parts) or "messages" in parts:
            parts.pop("extra", None)  # only Alpaca's `input` belongs to its instruction
        elif "extra" in parts:
            parts["prompt"] = parts.pop("extra")
    extras = {part for part in ("system", "tools", "media") if part in parts}
    if {"chosen", "rejected"} <= set(parts):
        name, used = "chosen/rejected pairs", {"chosen", "rejected", "extra", "history", "prompt" if "prompt" in parts else "messages"}
    elif {"messages", "label"} <= set(parts) and not {"prompt", "reply"} <= set(given):
        name, used = "messages and label (ShareGPT)", {"messages", "label"}
    elif {"prompt", "reply", "label"} <= set(parts):
        trl = parts["reply"] == "completion" and parts["label"] == "label"
        name = "prompt, completion, label (TRL)" if trl else "prompt, reply and rating (thumbs log)"
        used = {"prompt", "extra", "history", "reply", "label"}
    else:
        raise _unknown(found, parts, columns)
    return name, {part: column for part, column in parts.items() if part in used | extras}


def rows(value, shape: Shape) -> list[tuple[dict, tuple[str, ...]] | Refused]:
    """One row of a source as `shape.rows_each` judged replies: a record with the repairs it needed, or the reason why not."""
    if isinstance(value, Refused):
        return [value] * shape.rows_each
    if not isinstance(value, dict):
        return [Refused("not a record", f"{shorten(value)} is no object with columns")] * shape.rows_each
    sides = ("chosen", "rejected") if shape.rows_each == 2 else ("",)
    made = []
    for side in sides:
        try:
            made.append(_reply(value, shape, side))
        except Refused as refused:
            made.append(refused)
    return made


def said(value, side: str, repairs: list | None = None) -> list[dict]:
    """Turns, however they are written: a list, one turn, a request with messages, a response with choices, or a text said by `side`."""
    if isinstance(value, str):
        turns = turns_in(value, side)
        if turns is not None and repairs is not None:
            repairs.append("text decoded")
        return [{"role": side or None, "content": value}] if turns is None else turns
    if isinstance(value, list | tuple):
        return [_langchain(turn) if isinstance(turn, dict) else turn for turn in value]
    if not isinstance(value, dict):
        return [{"role": side, "content": value}]
    if {"role", "from"} & set(value) or "lc" in value or value.get("type") in ("human", "ai"):
        return [_langchain(value)]
    for key in ("messages", "message", "choices", "generations"):
        if inner := value.get(key):
            first = inner[0] if key in ("choices", "generations") and isinstance(inner, list) else inner
            return said(first, side, repairs)
    names = [name for name in value if _plain(name) in (*PARTS["prompt"], *PARTS["reply"], *PARTS["extra"], "text", "content", "result")]
    if len(names) == 1 or len(value) == 1:
        return said(value[names[0] if names else next(iter(value))], side, repairs)
    raise Refused("not a record", f"{shorten(value)} holds no text that is known to be the {'reply' if side == 'assistant' else 'prompt'}")


def value_at(row, path: str):
    """The value in a column, or at a dotted path inside one; None where there is none."""
    if isinstance(row, dict) and path in row:
        return row[path]
    first, _, rest = path.partition(".")
    if isinstance(row, str) and row[:1] == "{":  # CSV keeps nested data as text
        row = literal(row)
    return value_at(row[first], rest) if rest and isinstance(row, dict) and first in row else None


def _reply(value: dict, shape: Shape, side: str) -> tuple[dict, tuple[str, ...]]:
    """One judged reply of a row. `side`: chosen or rejected of a pair, else empty."""
    parts, repairs = shape.parts, []
    get = {part: value_at(value, column) for part, column in parts.items()}
    label = side == "chosen"
    if not side:
        label = label_of(get["label"], shape.scale)
        if label is None:
            raise Refused(NO_VOTE, "")
        if not isinstance(get["label"], bool):
            repairs.append("label repaired")
    if not _empty(get.get("media")):
        raise Refused("images", f"{parts['media']} holds {shorten(get['media'])}; this kit trains text")
    reply = side or ("messages" if "messages" in parts else "reply")
    if get.get(reply) is None:
        raise Refused("missing column", f"{parts[reply]} is empty")
    turns = said(get[reply], "" if reply == "messages" else "assistant", repairs)
    if reply != "messages" and not (len(turns) > 1 and _speaker(turns[0]) in ("user", "system")):
        if isinstance(get[reply], str) and "text decoded" not in repairs:
            before = _before(get, parts, repairs)
            turns[0]["content"] = get[reply].strip() if repairs[-1:] == ["text decoded"] else get[reply]  # the template's own blanks
            turns = before + turns
        else:
            turns = _before(get, parts, repairs) + turns
    elif reply != "messages" and isinstance(get.get("prompt"), str) and "text decoded" in repairs:
        if not any(get["prompt"].strip() in str(turn.get("content")) for turn in turns) and turns_in(get["prompt"], "user") is None:
            raise Refused("transcript", "the reply holds another dialogue than the prompt's")
    return record(_earlier(get.get("history")) + turns, label, get.get("system"), get.get("tools")), tuple(dict.fromkeys(repairs))


def _before(get: dict, parts: dict, repairs: list) -> list[dict]:
    """The prompt's turns; Alpaca's `input` continues the instruction on a line of its own."""
    part = next((part for part in ("prompt", "messages") if part in parts), None)
    if part is None:
        raise Refused("not a record", "a pair of replies without a prompt")
    prompt, extra = get[part], get.get("extra")
    if prompt is None:
        raise Refused("missing column", f"{parts[part]} is empty")
    if isinstance(prompt, str) and isinstance(extra, str) and extra.strip():
        prompt = f"{prompt}\n{extra}"
    return said(prompt, "user", repairs)


def _earlier(history) -> list[dict]:
    """Earlier turns, as LLaMA-Factory's Alpaca format has them: [[question, reply], …]; or a list of turns."""
    if _empty(history):
        return []
    history = literal(history) if isinstance(history, str) else history
    if not isinstance(history, list | tuple):
        raise Refused("not a record", f"history is {shorten(history)}, expected [[question, reply], …]")
    turns = []
    for turn in history:
        if isinstance(turn, list | tuple) and len(turn) == 2:
            turns += [{"role": "user", "content": turn[0]}, {"role": "assistant", "content": turn[1]}]
        else:
            turns.append(turn)
    return turns


def _langchain(turn: dict) -> dict:
    """A turn as LangChain serialises it ({"lc": 1, "id": […, "HumanMessage"], "kwargs": {…}}), with a role; others as they are."""
    if turn.get("lc") and isinstance(turn.get("kwargs"), dict):
        return {**turn["kwargs"], "role": str((turn.get("id") or [""])[-1]).lower().removesuffix("chunk").removesuffix("message")}
    return {**turn, "content": turn["data"].get("content")} if isinstance(turn.get("data"), dict) and "content" not in turn else turn


def _speaker(turn) -> str:
    role = turn.get("role", turn.get("from")) if isinstance(turn, dict) else None
    return ROLES.get(role.strip().lower(), "") if isinstance(role, str) else ""


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _empty(value) -> bool:
    return value is None or value != value or (isinstance(value, str | list | dict | tuple) and len(value) == 0)


def _may_be_label(name: str) -> bool:
    return _plain(name) in PARTS["label"] or _plain(name.split(".")[0]) in PARTS["label"]


def _match(found: list[str], votes: dict[str, Votes]) -> dict[str, str]:
    """Which column holds which part, by its name; of several that may be the label the first whose values are votes."""
    plain = {_plain(name): name for name in reversed(found)}
    matches = {part: next((plain[name] for name in names if name in plain), None) for part, names in PARTS.items()}
    candidates = [plain[name] for name in PARTS["label"] if name in plain] + [name for name in found if "." in name and _may_be_label(name)]
    matches["label"] = next((name for name in candidates if votes[name].are_labels), None)
    return {part: name for part, name in matches.items() if name is not None}


def _resolve(column: str, found: list[str]) -> str:
    """A column as it is really spelled, blanks and capitals aside."""
    same = [name for name in found if name.strip().lower() == column.strip().lower()]
    if same:
        return same[0]
    raise KitError(f"--columns names {column!r}, but the columns are: {', '.join(found) or 'none'}{closest(column, found)}",
                   "columns that are there", "correct --columns")


def _unknown(found: list[str], parts: dict, columns: Columns) -> KitError:
    lacking = [part for part in ("prompt", "reply", "label") if part not in parts]
    free = [name for name in found if name not in parts.values()] or found
    option = ",".join(f"{part}={parts.get(part, '…')}" for part in ("prompt", "reply", "label"))
    strange = "".join(f"; {name} holds no votes: {', '.join(shorten(value, 30) for value in votes.strange[:3])}"
                      for name, votes in columns.votes.items() if votes.strange)
    return KitError(f"it is not clear which column is the {' and which the '.join(lacking) or 'dialogue'}; the columns are: "
                    f"{', '.join(found) or 'none'}{strange}",
                    f"the columns of one of these shapes (other names are understood too):\n{KNOWN}",
                    f"add --columns {option}   (in place of …, one of: {', '.join(free[:12])})")


def _paths(row: dict, used: set[str], before: str = ""):
    """(dotted name, value) of a row's columns; of a dict only a part of which is used, its parts."""
    for name, value in row.items():
        path = f"{before}{name}"
        inner = any(each.startswith(f"{path}.") for each in used) and path not in used
        value = literal(value) if inner and isinstance(value, str) else value
        if inner and isinstance(value, dict):
            yield from _paths(value, used, f"{path}.")
        else:
            yield path, value
