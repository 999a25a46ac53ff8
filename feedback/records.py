"""Make a KTO record of a row: a dialogue that ends in a reply, and whether that reply was accepted."""

import copy
import itertools
import json
import re

_SAID_AS = {
    "user": "user human prompter customer instruction input benutzer nutzer utilisateur usuario usuário utente gebruiker użytkownik "
            "kullanıcı пользователь 用户 人类 ユーザー 사용자",
    "assistant": "assistant gpt chatgpt bot model ai chatbot llm response output assistent asistente assistente asystent asistan ki "
                 "ассистент 助手 アシスタント 어시스턴트",
    "observation": "observation tool function_response function",
    "function_call": "function_call tool_call",
    "system": "system developer",
}
ROLES = {name: role for role, names in _SAID_AS.items() for name in names.split()}
"""what sources call a speaker -> what LLaMA-Factory's tags call it"""

ODD, EVEN = ("user", "observation"), ("assistant", "function_call")
"""who may speak in the 1st, 3rd, … and in the 2nd, 4th, … turn, a leading system turn not counted"""

CONTROL = re.compile("(?P<control>(?<!Ã)[\x80-\x9f]|\x00)|(?P<surrogate>[\ud800-\udfff])")
TOKENS = re.compile(
    r"(?P<template><[|｜](?!user\|>)[^\s<>]{1,40}[|｜]>|^\s*<\|user\|>|<(?:start|end)_of_turn>|<[BE]OS_TOKEN>|\[gMASK\]"
    r"|\[/?(?:INST|SYSTEM_PROMPT|TOOL_CALLS|AVAILABLE_TOOLS|TOOL_RESULTS)\]|<</?SYS>>|<extra_id_\d+>|<reserved_\d+>|<pad>|<unk>"
    r"|\[\|(?:system|user|assistant|endofturn)\|\]|\]~!?b\]|\[Round \d+\]\s+问|</?tool_(?:call|response)>)"
    r"|^\s*(?P<error>#(?:N(?:AME|OM)\?|(?:REF|BEZUG|VALUE|WERT|VALEUR|DIV/0)!|N/A|NV))\s*\Z"
    r'|(?P<folded><details type="(?!reasoning))'
    r"|(?P<image><image(?:_\d+)?>|^\s*<(?:video|audio)>|\bdata:(?:image|audio|video)/[\w.+-]+;base64,)"
)
"""what no turn may hold: it would be trained on as if somebody had said it"""
MEDIA = ("images image imageurl imageurls imagepath inputimage videos video audios audio media photo photos screenshot pixelvalues "
         "attachments attachment files messagefiles fileuploads")
"""columns, and keys of turns, that hold what is no text, as `columns.plain` spells them"""

FAULTS = {
    "control": ("control characters", "{0!r} is a control character: the file was once read in the wrong encoding"),
    "surrogate": ("text", "half a surrogate pair, which is no valid Unicode"),
    "template": ("chat template", "the control token {0} inside a turn"),
    "error": ("text", "{0} is what a spreadsheet writes in place of a text that it took for a formula"),
    "folded": ("words beside a call", "{0} folds away calls of tools, as Open WebUI does"),
    "image": ("images", "{0} stands in the text; this kit trains text"),
}
THOUGHT = re.compile(r"<think>.*?(?:</think>\s*|\Z)", re.DOTALL)
"""LLaMA-Factory 0.9.3 keeps such a block before a call (FunctionFormatter in data/formatter.py); alone it is no reply"""


class Refused(ValueError):
    """A row that cannot be trained on: the kind of problem (a key of `problems.REFUSED`) and the reason in words."""

    def __init__(self, kind: str, reason: str):
        self.kind, self.reason = kind, reason
        super().__init__(f"{kind}: {reason}")


def record(turns, label: bool, system=None, tools=None) -> dict:
    """`{"messages": [{"role", "content"}, …], "label": bool, "tools": str}`, as LLaMA-Factory trains it; Refused if it cannot.

    `turns` is any value that should be a list of turns (role/content, from/value, OpenAI's tool calls); `system` and `tools`
    come from columns of their own.
    """
    if not isinstance(turns, list):
        raise Refused("not a record", f"the dialogue is {shorten(turns)}, expected a list of turns")
    messages = _with_joined_results(turns)
    if messages[:1] == [{"role": "system", "content": ""}]:
        del messages[0]
    if system and system == system and str(system).strip():  # no NaN
        first = _turn({"content": system} if isinstance(system, str | list) else system) | {"role": "system"}
        messages[:0] = [first] if messages[:1] != [first] else []  # another one in the dialogue is refused below
    _check(messages)
    return {"messages": messages, "label": label, "tools": _tools(tools) if tools else ""}


def shorten(value, width: int = 60) -> str:
    """A value as it may stand in a message: its repr, cut."""
    text = repr(value[:width + 1] if isinstance(value, str | list) else value)
    return text if len(text) <= width else text[: width - 1] + "…"


def _check(messages: list[dict]) -> None:
    """Refuse what LLaMA-Factory 0.9.3 would drop silently, misread, or end on."""
    turns = messages[1:] if messages and messages[0]["role"] == "system" else messages
    for place, turn in enumerate(messages, 1):
        role, text = turn["role"], turn["content"]
        if role not in ("system", *ODD, *EVEN):
            raise Refused("unknown role", f"turn {place} is said by {shorten(role)}" if role else f"turn {place} has no speaker")
        if not isinstance(text, str):
            raise Refused("text", f"turn {place} is {shorten(text)}, expected text")
        data = text.encode("utf-8", "surrogatepass")  # most texts have no trace of a fault, and are done without a search
        found = CONTROL.search(text) if b"\xc2" in data or b"\xed" in data or b"\0" in data else None
        if not found and ("<" in text or "[" in text or "base64" in text or text.lstrip()[:1] == "#"):
            found = TOKENS.search(text)
        if found:
            kind, words = FAULTS[found.lastgroup]
            raise Refused(kind, f"turn {place} ({role}): {words.format(found[0])}")
    if len(turns) < 2 or len(turns) % 2:
        raise Refused("turn order", f"{shorten([turn['role'] for turn in messages])}: a question and a reply in turn are needed")
    for place, turn in enumerate(turns):
        expected = (ODD, EVEN)[place % 2]
        if turn["role"] not in expected:
            raise Refused("turn order", f"turn {place + 1} is {turn['role']}, expected {' or '.join(expected)}")
        if not THOUGHT.sub("", turn["content"]).strip():
            kind = "empty reply" if place == len(turns) - 1 else "empty turn"
            raise Refused(kind, "the reply is empty" if kind == "empty reply" else f"turn {place + 1} ({turn['role']}) is empty")
        if turn["role"] == "function_call":
            try:  # LLaMA-Factory 0.9.3 ends the whole run on a call that is anything else
                calls = json.loads(THOUGHT.sub("", turn["content"]))
                for call in calls if isinstance(calls, list) else [calls]:
                    if not isinstance(call["name"], str) or "arguments" not in call:
                        raise KeyError
            except (KeyError, TypeError, ValueError, RecursionError):
                raise Refused("function call", "a function call is not JSON with `name` and `arguments`") from None


def speaker(turn) -> str:
    """A turn's role under LLaMA-Factory's names; an unknown role unchanged, empty if there is none."""
    role = next((turn[key] for key in ("role", "from", "author", "speaker", "sender", "type") if turn.get(key) is not None), "") \
        if isinstance(turn, dict) else ""
    role = role.get("role", "") if isinstance(role, dict) else role  # ChatGPT's own export
    return ROLES.get(role.strip().lower(), role) if isinstance(role, str) else role


def _turn(turn) -> dict:
    """One turn under LLaMA-Factory's names; an unknown role keeps its name, for `_check` to refuse."""
    if not isinstance(turn, dict):
        raise Refused("not a record", f"a turn is {shorten(turn)}, expected an object with role and content")
    role = speaker(turn)
    if media := next((key for key in turn if key.lower().replace("_", "") in MEDIA.split() and turn[key]), None):
        raise Refused("images", f"a turn has {media}; this kit trains text")
    content = next((turn[key] for key in ("content", "value", "text", "parts") if turn.get(key) is not None), "")
    if isinstance(content, dict):
        content = content.get("parts", content.get("text", content))
    if isinstance(content, list):
        content = "".join(_part(part) for part in content)
    calls = turn.get("tool_calls") or ([turn["function_call"]] if turn.get("function_call") else None)
    if not calls:
        return {"role": role, "content": content}
    if THOUGHT.sub("", str(content or "")).strip():
        raise Refused("words beside a call", f"{shorten(content)} is said in the same turn as a call")
    return {"role": "function_call", "content": (content or "") + _openai_calls(calls)}


def _part(part) -> str:
    """The text of one part of a turn's content, as OpenAI, Anthropic and Gemini split it."""
    if isinstance(part, str):
        return part
    kind = str(part.get("type", part.get("content_type", "text"))) if isinstance(part, dict) else ""
    text = part.get("text") if kind.endswith("text") else None
    text = text.get("value") if isinstance(text, dict) else text  # OpenAI's assistants
    if isinstance(text, str):
        return text
    if kind.startswith(("image", "input_image", "video", "audio", "input_audio", "file", "input_file", "document")):
        raise Refused("images", f"a turn holds {shorten(kind)}; this kit trains text")
    if kind.startswith(("tool_", "function")):
        raise Refused("function call", f"a turn's parts hold {shorten(kind)}")
    raise Refused("text", f"a turn's content holds {shorten(part)}, expected text")


def _openai_calls(calls) -> str:
    """OpenAI's `tool_calls` as LLaMA-Factory's function-call text: `{"name": …, "arguments": {…}}`, or a list of them."""
    try:
        made = []
        for call in calls:
            function = call.get("function", call)
            arguments = function.get("arguments", {})
            arguments = json.loads(arguments or "{}") if isinstance(arguments, str) else arguments
            made.append({"name": function["name"], "arguments": arguments})
        return json.dumps(made[0] if len(made) == 1 else made, ensure_ascii=False)
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
        raise Refused("function call", f"tool_calls {shorten(calls)} lack a name or JSON arguments") from None


def _with_joined_results(turns: list) -> list[dict]:
    """The turns, in which the results of parallel calls are one observation; they stand as their calls do, for only the ids tell."""
    messages, calls = [], []
    for are_results, group in itertools.groupby(turns, lambda turn: speaker(turn) == "observation"):
        group = list(group)
        if are_results:
            group.sort(key=lambda turn: calls.index(turn.get("tool_call_id")) if turn.get("tool_call_id") in calls else -1)
        found = [_turn(turn) for turn in group]
        if are_results and len(found) > 1:
            found = [{"role": "observation", "content": _joined([turn["content"] for turn in found])}]
        messages += found
        asked = group[-1].get("tool_calls")
        calls = [call["id"] for call in asked if isinstance(call, dict) and call.get("id")] if isinstance(asked, list) else []
    return messages


def _joined(results: list) -> str:
    """The results of calls as a JSON list where all are JSON, else one below the other."""
    if not all(isinstance(result, str) for result in results):
        raise Refused("text", f"the results of calls are {shorten(results)}, expected texts")
    try:
        return json.dumps([json.loads(result) for result in results], ensure_ascii=False, allow_nan=False)
    except (ValueError, RecursionError):
        return "\n".join(results)


def _tools(tools) -> str:
    """The description of tools as JSON text that none of LLaMA-Factory 0.9.3's tool formats stumbles over.

    Those look up name, description and each parameter's enum and items without checking that they are there.
    """
    try:
        tools = json.loads(tools) if isinstance(tools, str) else copy.deepcopy(tools)
        if not isinstance(tools, list):
            raise TypeError
        for tool in tools:
            tool = tool["function"] if tool.get("type") == "function" and "function" in tool else tool
            parameters = tool["parameters"] = tool.get("parameters") or {}
            tool["name"], tool["description"] = "" + tool["name"], "" + (tool.get("description") or "")
            parameters["required"] = [] + (parameters.get("required") or [])
            given = (parameters.get("properties") or {}).items()
            parameters["properties"] = properties = {name: {**value} for name, value in given if value is not None}
            for value in properties.values():
                if value.get("items"):
                    value["items"] = {} | value["items"]
                if value.get("enum"):
                    value["enum"] = [option if isinstance(option, str) else json.dumps(option) for option in value["enum"]]
        return json.dumps(tools, ensure_ascii=False, allow_nan=False).encode().decode() if tools else ""
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
        raise Refused("tools", f"{shorten(tools)} is no JSON list of tools with name and parameters") from None
