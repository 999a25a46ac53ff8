"""Turns that lie inside one text: a list written as text, a transcript, a chat template. Decoded, or refused by name."""

import ast
import json
import re

from .records import ROLES, Refused, shorten

TEMPLATES = [
    re.compile(r"<\|im_start\|>[ \t]*(\w+)[ \t]*\n?"),  # ChatML, and what [INST] is turned into
    re.compile(r"<\|start_header_id\|>\s*(\w+)\s*<\|end_header_id\|>\s*"),  # Llama 3
    re.compile(r"<start_of_turn>[ \t]*(\w+)[ \t]*\n?"),  # Gemma
    re.compile(r"<\|(system|user|assistant)\|>\s*"),  # Zephyr, Phi
]
TRANSCRIPTS = [
    re.compile(r"^###[ \t]*(System|Instruction|Input|Human|User|Assistant|Response|Output):[ \t]*\n?", re.M),  # Alpaca
    re.compile(r"(?:^|(?<=\s))(SYSTEM|HUMAN|USER|ASSISTANT):"),  # Vicuna, all in one line
    re.compile(r"^[ \t]*\*{0,2}(System|Human|User|Customer|Assistant|AI|Bot|Chatbot|ChatGPT)(?::\*\*|\*\*:|:)[ \t]*", re.M | re.I),
]
END = re.compile(r"(?:\s*(?:<\|(?:im_end|eot_id|end|endoftext|end_of_text)\|>|<end_of_turn>|</s>|<eos>))+\s*$")
START = re.compile(r"^\s*(?:<s>|<bos>|<\|begin_of_text\|>|<\|endoftext\|>)\s*")
HINTS = ("<|", "<start_of", "<end_of", "[inst]", "###", "</s>", "<eos>", *(f"{who}{mark}:" for mark in ("", "**") for who in
         ("human", "user", "customer", "assistant", "ai", "bot", "gpt")))
"""one of them is in every text that needs a closer look, in small letters; most have none, and are done"""

TURNS = re.compile(r"""(?=.*["'](?:role|from)["']\s*:)(?=.*["'](?:content|value)["']\s*:)""", re.S)


TEXTS = ("input", "question", "query", "prompt", "instruction", "output", "answer", "response", "reply", "completion", "text",
         "content", "result")
"""keys under which a traced call keeps its only text"""


def turns_in(text: str, side: str) -> list[dict] | None:
    """The turns that `text` holds, None where it is plain text. `side`: who says it if it is (user, assistant, or "" for either).

    Refused where turns are seen, but cannot be told apart.
    """
    listlike, lower = text.lstrip()[:1] in ("[", "{", "("), text.lower()
    if not listlike and not any(hint in lower for hint in HINTS):
        return None
    if listlike:
        if (turns := listed(text)) is not None:
            return turns
        if TURNS.search(text):
            raise Refused("turns as text", f"{shorten(text)} looks like a list of turns, but is neither JSON nor Python")
    whole = text
    text = re.sub(r"\[INST\]\s*<<SYS>>\s*(.*?)\s*<</SYS>>\s*", r"<|im_start|>system\n\1<|im_start|>user\n", text, flags=re.S)
    text = re.sub(r"(?:</s>\s*)?(?:<s>\s*)?\[INST\]\s*", "<|im_start|>user\n", text)
    text = re.sub(r"\s*\[/INST\]\s*", "<|im_start|>assistant\n", text)
    for marker in (*TEMPLATES, *TRANSCRIPTS):
        before, *rest = marker.split(START.sub("", text))
        roles, said = [ROLES.get(role.lower()) for role in rest[::2]], [END.sub("", words).strip() for words in rest[1::2]]
        if turns := _told_apart(marker in TEMPLATES, before.strip(), roles, said, side, whole):
            return turns
    bare = END.sub("", text)
    return None if bare == text else [{"role": side or "assistant", "content": bare.strip()}]


def listed(text: str) -> list[dict] | None:
    """A list of turns written as JSON or as a Python literal: dicts, or (speaker, words) tuples. None where it is none."""
    value = literal(text)
    values = value if isinstance(value, list | tuple) else [value]
    if values and all(isinstance(turn, list | tuple) and len(turn) == 2 and str(turn[0]).lower() in ROLES for turn in values):
        return [{"role": role, "content": content} for role, content in values]
    known = all(isinstance(turn, dict) and (turn.keys() & {"role", "from"}) and
                (turn.keys() & {"content", "value", "tool_calls"}) for turn in values)
    return list(values) if values and known else None


def literal(text: str):
    """The value that a text spells in JSON or Python; None where it spells none."""
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
            pass
    return None


def _told_apart(template: bool, before: str, roles: list, said: list[str], side: str, whole: str) -> list[dict] | None:
    """The turns between a kind of marker; None where these markers mean nothing here. Refused where they may mean something."""
    if not roles:
        return None
    if None in roles:
        raise Refused("chat template", f"{shorten(whole)} has a speaker that is not known") if template else _unclear(whole)
    open_end = roles[-1] == "assistant" and not said[-1]
    if before and side == "assistant" and template and roles[0] != "assistant":
        raise Refused("chat template", f"{shorten(whole)}: another turn begins inside the reply")
    if before and not open_end and not (template and len(roles) > 1):
        if template or {"user", "assistant"} <= set(roles):  # a dialogue quoted in a text, or a reply that ran on
            raise _unclear(whole)
        return None
    if not template and not {"user", "assistant"} <= set(roles) and (len(roles) > 1 or roles[0] != side or not said[0]):
        return None  # "User: admin" in a reply is no transcript, nor is "User: … System: …" in a report
    turns = [{"role": "system", "content": before}] if before else []
    for role, words in zip(roles, said, strict=True):
        if turns and turns[-1]["role"] == role == "user":  # Alpaca's instruction and input
            turns[-1]["content"] += f"\n{words}"
        else:
            turns.append({"role": role, "content": words})
    return turns[:-1] if open_end and len(turns) > 1 else turns


def _unclear(text: str) -> Refused:
    return Refused("transcript", f"{shorten(text)} holds the turns of a dialogue among other words")


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
    names = [name for name in value if name.lower() in TEXTS]
    if len(names) == 1 or len(value) == 1:
        return said(value[names[0] if names else next(iter(value))], side, repairs)
    raise Refused("not a record", f"{shorten(value)} holds no text that is known to be said by {side}")


def earlier(history) -> list[dict]:
    """Earlier turns, as LLaMA-Factory's Alpaca format has them: [[question, reply], …]; or a list of turns."""
    if not history or history != history:  # NaN
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
        kind = str((turn.get("id") or [""])[-1]).lower()
        return {**turn["kwargs"], "role": kind.removesuffix("chunk").removesuffix("message")}
    if isinstance(turn.get("data"), dict) and "content" not in turn:
        return {**turn, "content": turn["data"].get("content")}
    return turn
