"""Recognise the format of a table by its columns, and read its rows as judged replies."""

from dataclasses import dataclass

from helpers.errors import KitError

from .columns import AGAINST, NO_VOTE, PARTS, Columns, empty, match, plain, resolve, value_at
from .labels import label_of, more_for
from .records import Refused, record, shorten, speaker
from .scales import Scale
from .texts import earlier, said, turns_in

KNOWN = """\
    messages, label                  a dialogue (role/content or from/value) whose last turn is judged
    prompt, completion, label        as TRL has it; each a text or a list of turns
    prompt, response, rating         a log of thumbs or ratings
    prompt, chosen, rejected         a pair: it becomes two rows"""

VOTED = {name for part in ("label", "reply", "messages", "chosen") for name in PARTS[part]}
"""columns, one of which is in every row that could have been voted on"""


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


def recognise(columns: Columns, given: dict[str, str]) -> tuple[str, dict[str, str]]:
    """The shape's name and which column holds which part. KitError prints the option to add, with the columns that were seen."""
    found = list(dict.fromkeys([*columns.names, *columns.filled]))
    votes = {given["label"]: columns.votes[given["label"]]} if given.get("label") in columns.votes else columns.votes
    parts = match(found, votes) | {part: resolve(column, found) for part, column in given.items()}
    if "extra" in parts and "extra" not in given and plain(parts.get("prompt", "")) != "instruction":
        input_ = parts.pop("extra")  # only Alpaca's `input` belongs to its instruction
        if {"reply", "chosen"} & set(parts) and not {"prompt", "messages"} & set(parts):
            parts["prompt"] = input_
    dialogue = parts.get("messages")
    if {"reply", "label"} <= set(parts) and columns.unanswered[dialogue] * 2 > min(columns.filled[dialogue], 100):
        parts["prompt"] = parts.pop("messages")  # a dialogue up to the question
    if {"messages", "prompt", "reply"} <= set(parts) and "messages" not in given and dialogue not in columns.unanswered:
        del parts["messages"]  # by its name alone: it holds no turns
    if "[]." in parts.get("label", "") and parts["label"].partition("[]")[0] != parts.get("messages"):
        del parts["label"]  # beside turns that are not the dialogue
    extras = {part for part in ("system", "tools", "media", "against") if part in parts}
    if {"chosen", "rejected"} <= set(parts) and not {"reply", "label"} & set(given):
        name = "chosen/rejected pairs"
        used = {"chosen", "rejected", "extra", "history", "prompt" if "prompt" in parts else "messages"}
    elif {"messages", "label"} <= set(parts) and not {"prompt", "reply"} <= set(given):
        name, used = "messages and label (ShareGPT)", {"messages", "label"}
    elif {"prompt", "reply", "label"} <= set(parts):
        trl = parts["reply"] == "completion" and parts["label"] == "label"
        name = "prompt, completion, label (TRL)" if trl else "prompt, reply and rating (thumbs log)"
        used = {"prompt", "extra", "history", "reply", "label"}
    else:
        raise _unknown(found, parts, columns)
    if "label" in used and plain(parts["label"].rpartition(".")[2]) in AGAINST and not columns.named:
        raise KitError(f"the column {parts['label']!r} holds votes against a reply, by its name", "what its values mean",
                       "add --scale=false/true, --scale=0/1, or its own values: --scale=ACCEPTED,…/REJECTED,…")
    return name, {part: column for part, column in parts.items() if part in used | extras}


def rows(value, shape: Shape) -> list[tuple[dict, tuple[str, ...]] | Refused]:
    """One row of a source as `shape.rows_each` judged replies: a record with the repairs it needed, or the reason why not."""
    if not isinstance(value, dict):
        refused = value if isinstance(value, Refused) else Refused("not a record", f"{shorten(value)} is no object with columns")
        return [refused] * shape.rows_each
    made = []
    for side in ("chosen", "rejected") if shape.rows_each == 2 else ("",):
        try:
            made += _rated_turns(value, shape) if "[]." in shape.parts.get("label", "") else [_reply(value, shape, side)]
        except Refused as refused:
            made.append(refused)
    return made


def _reply(value: dict, shape: Shape, side: str) -> tuple[dict, tuple[str, ...]]:
    """One judged reply of a row. `side`: chosen or rejected of a pair, else empty."""
    parts, repairs = shape.parts, []
    get = {part: value_at(value, column) for part, column in parts.items()}
    label = side == "chosen"
    if not side:
        label = more_for(get["label"], get["against"]) if "against" in parts else label_of(get["label"], shape.scale)
        if label is None:
            wanted = PARTS["label"] if any(parts[part] in value for part in ("reply", "messages") if part in parts) else VOTED
            if parts["label"].split(".")[0] not in value and any(plain(name) in wanted for name in value if not empty(value[name])):
                raise Refused("missing column", f"a row of another shape, with the columns {', '.join(value)}")
            raise Refused(NO_VOTE, "")
        if not isinstance(get["label"], bool):
            repairs.append("label repaired")
    _refuse_media(value, parts)
    reply = side or ("messages" if "messages" in parts else "reply")
    if side and isinstance(get[side], str) and get[side] in value:
        raise Refused("not a record", f"{parts[side]} names the column {get[side]!r}, and holds no reply")
    if get.get(reply) is None:
        raise Refused("missing column", f"{parts[reply]} is empty")
    turns = said(get[reply], "" if reply == "messages" else "assistant", repairs)
    if reply != "messages" and not (len(turns) > 1 and speaker(turns[0]) in ("user", "system")):
        own = "text decoded" not in repairs
        before = _before(get, parts, repairs)
        if own and "text decoded" in repairs and isinstance(get[reply], str):
            turns[0]["content"] = get[reply].strip()  # the blank after "Assistant:" is the template's
        turns = before + turns
    elif reply != "messages" and isinstance(get.get("prompt"), str) and "text decoded" in repairs:
        prompt = get["prompt"]
        if turns_in(prompt, "user") is None and not any(prompt.strip() in str(turn.get("content")) for turn in turns):
            raise Refused("transcript", "the reply holds another dialogue than the prompt's")
    tools = get.get("tools") or value_at(value, f"{parts.get('prompt')}.tools")
    return record(_after(earlier(get.get("history")), turns), label, get.get("system"), tools), tuple(dict.fromkeys(repairs))


def _after(past: list, turns: list) -> list:
    """Earlier turns and these. A history may already hold the question, or its reply too."""
    had, now = ([(speaker(turn), turn.get("content", turn.get("value")) if isinstance(turn, dict) else turn) for turn in side]
                for side in (past, turns))
    return past + turns[next((count for count in (2, 1) if had[-count:] == now[:count] and len(now) == 2), 0) :]


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


def _rated_turns(value: dict, shape: Shape) -> list[tuple[dict, tuple[str, ...]] | Refused]:
    """A dialogue whose turns carry votes: each of them is judged, with what came before it."""
    get = {part: value_at(value, column) for part, column in shape.parts.items()}
    key = shape.parts["label"].partition("[].")[2]
    made, turns = [], said(get["messages"], "")
    for place, turn in enumerate(turns, 1):
        try:
            label = label_of(turn.get(key), shape.scale) if isinstance(turn, dict) else None
            if label is not None:
                _refuse_media(value, shape.parts)
                made.append((record(turns[:place], label, get.get("system"), get.get("tools")), ()))
        except Refused as refused:
            made.append(refused)
    return made or [Refused(NO_VOTE, "")]


def _refuse_media(value: dict, parts: dict) -> None:
    for column in parts.get("media", "").split("+"):
        if not empty(value.get(column)):
            raise Refused("images", f"{column} holds {shorten(value[column])}; this kit trains text")


def _unknown(found: list[str], parts: dict, columns: Columns) -> KitError:
    lacking = [part for part in ("prompt", "reply", "label") if part not in parts]
    free = [name for name in found if name not in parts.values()] or found
    strange_label = next((name for name in found if name in columns.votes and columns.votes[name].strange), "…")
    option = ",".join(f"{part}={parts.get(part, strange_label if part == 'label' else '…')}" for part in ("prompt", "reply", "label"))
    strange = "".join(f"; {name} holds no votes: {', '.join(shorten(value, 30) for value in votes.strange[:3])}"
                      for name, votes in columns.votes.items() if votes.strange)
    return KitError(f"it is not clear which column is the {' and which the '.join(lacking) or 'dialogue'}; the columns are: "
                    f"{', '.join(found[:30]) or 'none'}{strange}", f"the columns of one of these shapes:\n{KNOWN}",
                    f"add --columns {option}   (in place of …, one of: {', '.join(free[:12])})"
                    + (", and --scale=ACCEPTED,…/REJECTED,… for votes in words of their own" if strange else ""))
