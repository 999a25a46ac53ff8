"""The shapes that feedback comes in, recognised by their columns, and each row of them as single-label records."""

from dataclasses import dataclass, field

from ..errors import KitError
from .records import ROLES, SCALES, Refused, label_of, record, shorten

NAMES = {
    "messages": ("messages", "conversations", "conversation", "dialogue", "dialog", "chat"),
    "chosen": ("chosen", "accepted_response", "preferred"),
    "rejected": ("rejected", "rejected_response", "dispreferred"),
    "label": ("label", "kto_tag", "rating", "feedback", "thumb", "thumbs", "stars", "vote", "reaction", "score"),
    "prompt": ("prompt", "question", "query", "instruction", "user_input"),
    "reply": ("completion", "response", "reply", "answer", "output"),
    "extra": ("input",),
    "system": ("system", "system_prompt"),
    "tools": ("tools", "functions"),
}
"""a record's part -> the columns it is found in, the first one present counting"""

KNOWN = """\
    messages, label                  a dialogue (role/content or from/value) whose last turn is judged
    prompt, completion, label        as TRL has it; each a text or a list of turns
    prompt, response, rating         a thumbs log: true/false, 0/1, -1/1, up/down, or 1-5 stars
    prompt, chosen, rejected         a pair: it becomes two rows"""


@dataclass(frozen=True)
class Shape:
    """A recognised shape: its `name`, which column holds which part, and what the labels' numbers mean (`SCALES`)."""

    name: str
    columns: dict = field(default_factory=dict)
    scale: str = "binary"

    @property
    def rows_each(self) -> int:
        """Single labels that one source record makes: 2 for a pair, else 1."""
        return 2 if "chosen" in self.columns else 1

    @property
    def label_column(self) -> str:
        return self.columns.get("label", "")


def recognise(sample: list, columns: dict | None = None, scale: str = "") -> Shape:
    """The shape of a source from a sample of its records.

    `columns` says which column is which where names are unusual, e.g. `{"prompt": "vraag", "label": "duim"}`; `scale`
    (binary, sign or stars) overrides what the sample's labels suggest. KitError shows columns found and shapes known.
    """
    found = sorted({key for value in sample if isinstance(value, dict) for key in value})
    parts = {part: name for part, name in _match(found).items()} | (columns or {})
    unknown = [name for name in (columns or {}).values() if name not in found]
    if unknown or set(columns or {}) - set(NAMES):
        raise KitError(f"`columns` names {columns}, but the columns are: {', '.join(found) or 'none'}",
                       f"some of {', '.join(NAMES)}, each with a column that is there", "correct `columns`")
    name, used = _kind(parts)
    if not name:
        raise KitError(f"the shape of this feedback is not known; its columns: {', '.join(found) or 'none'}",
                       f"the columns of one of these shapes (other names are understood too):\n{KNOWN}",
                       "rename the columns, or say which is which with `columns`")
    if scale and scale not in SCALES:
        raise KitError(f"there is no scale {scale!r}", f"one of {', '.join(SCALES)}", "correct `scale`")
    labels = [value.get(parts.get("label")) for value in sample if isinstance(value, dict)]
    columns = {part: column for part, column in parts.items() if part in (*used, "system", "tools")}
    return Shape(name, columns, scale or guess_scale(labels))


def guess_scale(labels: list) -> str:
    """What the numbers among `labels` mean: sign where -1 occurs, stars where 2 to 5 do, else 0/1."""
    numbers = {_number(label) for label in labels}
    if -1 in numbers:
        return "sign"
    return "stars" if numbers & {2, 3, 4, 5} else "binary"


def rows(value, shape: Shape, stars: int = 4) -> list[dict | Refused]:
    """One source record as `shape.rows_each` rows, each a record (see `records.record`) or the reason why not."""
    if isinstance(value, Refused):
        return [value] * shape.rows_each
    if not isinstance(value, dict):
        return [Refused("not a record", f"{shorten(value)} is no object with columns")] * shape.rows_each
    if shape.rows_each == 1:
        return [_attempt(_single, value, shape, stars)]
    return [_attempt(_of_pair, value, shape, side) for side in ("chosen", "rejected")]


def _match(found: list[str]) -> dict[str, str]:
    lower = {name.strip().lower(): name for name in reversed(found)}
    matches = {part: next((lower[name] for name in names if name in lower), None) for part, names in NAMES.items()}
    return {part: name for part, name in matches.items() if name is not None}


def _kind(parts: dict) -> tuple[str, tuple[str, ...]]:
    """The shape's name and the parts that it is made of; an empty name for none."""
    if {"chosen", "rejected"} <= set(parts):
        return "chosen/rejected pairs", ("prompt", "extra", "messages", "chosen", "rejected")
    if {"messages", "label"} <= set(parts):
        return "messages and label (ShareGPT)", ("messages", "label")
    if {"prompt", "reply", "label"} <= set(parts):
        trl = parts["reply"] == "completion" and parts["label"] == "label"
        name = "prompt, completion, label (TRL)" if trl else "prompt, reply and rating (thumbs log)"
        return name, ("prompt", "extra", "reply", "label")
    return "", ()


def _number(label) -> float | None:
    try:
        return None if isinstance(label, bool) else float(label)
    except (TypeError, ValueError, OverflowError):
        return None


def _attempt(make, *arguments) -> dict | Refused:
    try:
        return make(*arguments)
    except Refused as refused:
        return refused


def _single(value: dict, shape: Shape, stars: int) -> dict:
    parts = shape.columns
    _present(value, [parts["label"]])
    label = label_of(value[parts["label"]], shape.scale, stars)
    if "messages" in parts:
        _present(value, [parts["messages"]])
        turns = value[parts["messages"]]
    else:
        _present(value, [parts["prompt"], parts["reply"]])
        turns = _prompt(value, parts) + _said(value[parts["reply"]], "assistant")
    return _finish(value, parts, turns, label)


def _of_pair(value: dict, shape: Shape, side: str) -> dict:
    """One side of a pair: the whole dialogue, or a reply whose prompt is a column of its own."""
    parts = shape.columns
    _present(value, [parts[side]])
    turns = _said(value[parts[side]], "assistant")
    if len(turns) > 1 and _speaker(turns[0]) in ("user", "system"):
        pass  # the side is the whole dialogue
    elif "prompt" in parts:
        turns = _prompt(value, parts) + turns
    elif "messages" in parts:
        _present(value, [parts["messages"]])
        turns = _said(value[parts["messages"]], "user") + turns
    else:
        raise Refused("not a record", "a pair of replies without a prompt")
    return _finish(value, parts, turns, side == "chosen")


def _finish(value: dict, parts: dict, turns, label: bool) -> dict:
    return record(turns, label, value.get(parts.get("system")), value.get(parts.get("tools")))


def _present(value: dict, columns: list[str]) -> None:
    missing = [name for name in columns if name not in value]
    if missing:
        raise Refused("missing column", f"no {' and no '.join(missing)}")


def _prompt(value: dict, parts: dict) -> list:
    """The prompt's turns; Alpaca's `input` continues the instruction on a line of its own."""
    _present(value, [parts["prompt"]])
    prompt = value[parts["prompt"]]
    extra = value.get(parts.get("extra"))
    if isinstance(prompt, str) and isinstance(extra, str) and extra.strip():
        prompt = f"{prompt}\n{extra}"
    return _said(prompt, "user")


def _speaker(turn) -> str:
    role = turn.get("role", turn.get("from")) if isinstance(turn, dict) else None
    return ROLES.get(role, "") if isinstance(role, str) else ""


def _said(value, role: str) -> list:
    """A text as one turn of `role`; turns as they are."""
    if isinstance(value, list):
        return value
    if isinstance(value, dict) and ("role" in value or "from" in value):
        return [value]
    return [{"role": role, "content": value}]
