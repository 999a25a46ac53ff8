"""A KTO record: a dialogue that ends in a reply, and whether that reply was accepted. Anything else is refused."""

import copy
import json
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from .problems import REFUSED

Role = Literal["system", "user", "assistant", "observation", "function_call"]

ROLES = {
    "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant",
    "observation": "observation", "tool": "observation", "function_response": "observation",
    "function_call": "function_call", "tool_call": "function_call",
    "system": "system", "developer": "system",
}
"""what sources call a speaker -> what LLaMA-Factory's tags call it"""

ODD, EVEN = ("user", "observation"), ("assistant", "function_call")
"""who may speak in the 1st, 3rd, … and in the 2nd, 4th, … turn, a leading system turn not counted"""

UP = {"true", "yes", "up", "thumbs_up", "thumbsup", "👍", "good", "like", "accepted", "chosen", "desirable"}
DOWN = {"false", "no", "down", "thumbs_down", "thumbsdown", "👎", "bad", "dislike", "rejected", "undesirable"}
SCALES = {"binary": (0, 1), "sign": (-1, 1), "stars": (1, 2, 3, 4, 5)}
"""which numbers may stand for a label"""


class Refused(ValueError):
    """A row that cannot be trained on: the kind of problem (a key of `problems.KINDS`) and the reason in words."""

    def __init__(self, kind: str, reason: str):
        self.kind, self.reason = kind, reason
        super().__init__(f"{kind}: {reason}")


class Turn(BaseModel):
    """One turn of a dialogue, in LLaMA-Factory's own words."""

    model_config = ConfigDict(strict=True)

    role: Role
    content: str


class Record(BaseModel):
    """What LLaMA-Factory is given: turns that alternate and end in a reply, its label, and tools as JSON text or ""."""

    model_config = ConfigDict(strict=True)

    messages: list[Turn]
    label: bool
    tools: str = ""

    @model_validator(mode="after")
    def _trainable(self):
        turns = self.messages[1:] if self.messages and self.messages[0].role == "system" else self.messages
        if len(turns) < 2 or len(turns) % 2:
            raise PydanticCustomError("turn order", f"{len(turns)} turns: a question and a reply in turn are needed")
        for place, turn in enumerate(turns):
            if turn.role not in (ODD, EVEN)[place % 2]:
                raise PydanticCustomError("turn order", f"turn {place + 1} is {turn.role}, expected "
                                                        f"{' or '.join((ODD, EVEN)[place % 2])}")
            if not turn.content.strip():
                reply = place == len(turns) - 1
                raise PydanticCustomError("empty reply" if reply else "empty turn",
                                          "the reply is empty" if reply else f"turn {place + 1} ({turn.role}) is empty")
            if turn.role == "function_call":
                _check_call(turn.content)
        if not all(turn.content.isascii() or _is_unicode(turn.content) for turn in self.messages):
            raise PydanticCustomError("text", "a turn holds half a surrogate pair, which is no valid Unicode")
        return self


def record(turns, label, system=None, tools=None) -> dict:
    """`{"messages": [{"role", "content"}, …], "label": bool, "tools": str}`, checked against `Record`; Refused if not.

    `turns` is any JSON value that should be a list of turns (role/content or from/value, OpenAI's tool calls too);
    `label` is true, false, or None where there is none; `system` and `tools` come from columns of their own.
    """
    messages = [_turn(turn) for turn in _list(turns)]
    if isinstance(system, str) and system.strip() and not (messages and messages[0]["role"] == "system"):
        messages.insert(0, {"role": "system", "content": system})
    if messages and messages[0] == {"role": "system", "content": ""}:
        del messages[0]
    made = {"messages": messages, "label": label, "tools": _tools(tools) if tools else ""}
    try:
        Record.model_validate(made)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise Refused(*_kind(first)) from None
    return made


def label_of(value, scale: str, stars: int = 4) -> bool:
    """True for accepted. `scale` says what numbers mean (`SCALES`); `stars`: at least so many of five are accepted."""
    if isinstance(value, bool):
        return value
    if isinstance(value, str):
        word = value.strip().lower()
        if word in UP or word in DOWN:
            return word in UP
        try:
            value = float(word)
        except ValueError:
            raise Refused("label", f"{shorten(value)} is no label") from None
    if value is None:
        raise Refused("label", "there is no label")
    if not isinstance(value, int | float) or value not in SCALES[scale]:
        raise Refused("label", f"{shorten(value)} is not on the scale {SCALES[scale]}")
    return value >= stars if scale == "stars" else value == 1


def shorten(value, width: int = 60) -> str:
    """A value as it may stand in a message: its repr, cut."""
    text = repr(value[:width + 1] if isinstance(value, str | list) else value)
    return text if len(text) <= width else text[: width - 1] + "…"


def _list(turns) -> list:
    if isinstance(turns, str) and turns.lstrip().startswith("["):  # CSV keeps a list as text
        try:
            turns = json.loads(turns)
        except (ValueError, RecursionError):
            pass
    if not isinstance(turns, list):
        raise Refused("not a record", f"the dialogue is {shorten(turns)}, expected a list of turns")
    return turns


def _turn(turn) -> dict:
    """One turn under LLaMA-Factory's names; the role keeps its own name where it is unknown, for `Record` to refuse."""
    if not isinstance(turn, dict):
        raise Refused("not a record", f"a turn is {shorten(turn)}, expected an object with role and content")
    role = turn.get("role", turn.get("from"))
    content = turn.get("content", turn.get("value"))
    known = ROLES.get(role.strip().lower(), role) if isinstance(role, str) else role
    if turn.get("tool_calls"):
        known, content = "function_call", _openai_calls(turn["tool_calls"])
    if isinstance(content, list):
        content = _text_parts(content)
    return {"role": known, "content": "" if content is None else content}


def _openai_calls(calls) -> str:
    """OpenAI's `tool_calls` as LLaMA-Factory's function-call text: `[{"name": …, "arguments": {…}}, …]`."""
    try:
        made = []
        for call in calls:
            function = call.get("function", call)
            arguments = function.get("arguments", {})
            arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
            made.append({"name": function["name"], "arguments": arguments})
        return json.dumps(made[0] if len(made) == 1 else made, ensure_ascii=False)
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
        raise Refused("function call", f"tool_calls {shorten(calls)} lack a name or JSON arguments") from None


def _text_parts(parts: list) -> str:
    texts = [part.get("text") if isinstance(part, dict) and part.get("type") == "text" else part for part in parts]
    if not all(isinstance(text, str) for text in texts):
        raise Refused("text", f"content {shorten(parts)} is more than text")
    return "".join(texts)


def _is_unicode(text: str) -> bool:
    try:
        return bool(text.encode())
    except UnicodeEncodeError:
        return False


def _check_call(content: str) -> None:
    """LLaMA-Factory 0.9.3 ends the whole run on a function call that is not JSON with name and arguments."""
    try:
        calls = json.loads(content)
        for call in calls if isinstance(calls, list) else [calls]:
            if not isinstance(call["name"], str) or "arguments" not in call:
                raise KeyError
    except (KeyError, TypeError, ValueError, RecursionError):
        raise PydanticCustomError("function call", "a function call is not JSON with `name` and `arguments`") from None


def _tools(tools) -> str:
    """The description of tools as JSON text that none of LLaMA-Factory 0.9.3's tool formats stumbles over.

    Those look up name, description and each parameter's enum and items without looking whether they are there.
    """
    try:
        tools = json.loads(tools) if isinstance(tools, str) else copy.deepcopy(tools)
        if not isinstance(tools, list):
            raise TypeError
        for tool in tools:
            tool = tool["function"] if tool.get("type") == "function" else tool
            parameters = tool["parameters"] = tool.get("parameters") or {}
            tool["name"], tool["description"] = "" + tool["name"], "" + (tool.get("description") or "")
            parameters["required"] = [] + (parameters.get("required") or [])
            given = (parameters.get("properties") or {}).items()
            parameters["properties"] = {name: _parameter(value) for name, value in given if value is not None}
        return json.dumps(tools, ensure_ascii=False).encode().decode() if tools else ""
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
        raise Refused("tools", f"{shorten(tools)} is no JSON list of tools with name and parameters") from None


def _parameter(value: dict) -> dict:
    fitting = {"items": {} | value["items"]} if value.get("items") else {}
    if value.get("enum"):
        fitting["enum"] = [option if isinstance(option, str) else json.dumps(option) for option in value["enum"]]
    return value | fitting


def _kind(error: dict) -> tuple[str, str]:
    """pydantic's first complaint as (kind, reason)."""
    place = [str(part) for part in error["loc"]]
    value = shorten(error.get("input"))
    if error["type"] in REFUSED:
        return error["type"], error["msg"]
    if place[:1] == ["label"]:
        return "label", f"the label is {value}, expected true or false"
    if place[-1:] == ["role"]:
        return "unknown role", f"turn {int(place[1]) + 1} is said by {value}, known are {', '.join(Role.__args__)}"
    return "text", f"{'.'.join(place)} is {value}, expected text in valid Unicode"
