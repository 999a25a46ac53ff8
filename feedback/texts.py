"""Decode dialogues inside one text: a list, a transcript, a chat template; or refuse them."""

import ast
import json
import re

from .records import ROLES, Refused, shorten

TEMPLATES = [
    re.compile(r"<\|im_start\|>[ \t]*(\w+)[ \t]*(?:\n|<\|im_sep\|>)?"),  # ChatML, Phi 4, and what [INST] is turned into
    re.compile(r"<\|(?:start_header_id|header_start)\|>\s*(\w+)\s*<\|(?:end_header_id|header_end)\|>\s*"),  # Llama 3 and 4
    re.compile(r"<\|start_of_role\|>(\w+)<\|end_of_role\|>"),  # Granite
    re.compile(r"<\|START_OF_TURN_TOKEN\|><\|(\w+)_TOKEN\|>"),  # Command R
    re.compile(r"<start_of_turn>[ \t]*(\w+)[ \t]*\n?"),  # Gemma
    re.compile(r"<[|｜]((?i:system|user|assistant))[|｜]>\s*"),  # Zephyr, Phi 3, DeepSeek
    re.compile(r"\[\|(system|user|assistant)\|\]"),  # Exaone
    re.compile(r"<extra_id_[01]>(\w+)\n"),  # Nemotron
]
WHO = "|".join(sorted({name for name, role in ROLES.items() if role in ("user", "assistant", "system")}
                      - set("prompter instruction input model llm response output developer gpt".split()), key=len, reverse=True))
SPEAKER = re.compile(r"^[ \t]*(?:\[\d[^\]\n]{3,30}\][ \t]*)?(?:\*\*|\[)?(" + WHO +
                     r")(?:[ \xa0]?[:：]\*\*|\*\*[:：]|\]?[ \xa0]?[:：])[ \t]*", re.M | re.I)
"""a name, in brackets, bold, or after a time, with its colon"""
ASKED = re.compile(r"^(Q|Question|A|Answer|Instruct|Output|Frage|Antwort|Pregunta|Respuesta|问|答)[ \xa0]?[:：][ \t]*", re.M)
"""in prompts alone, and only where they begin so and end in an open answer: elsewhere it is a text of questions and answers"""
TRANSCRIPTS = [
    re.compile(r"(?:^|(?=###[ \t]*(?:Human|User|Assistant):))###[ \t]*"  # Alpaca; Guanaco, all in one line
               r"(System|Instruction|Input|Human|User|Assistant|Response|Output):[ \t]*\n?", re.M),
    re.compile(r"^#{2,4}[ \t]*(System|Human|User|Assistant|AI|Bot)[ \t]*\n", re.M | re.I),
    re.compile(r"^(SYSTEM|HUMAN|USER|ASSISTANT)[ \t]*\n", re.M),
    re.compile(r"^(You|ChatGPT|Claude|Gemini|Copilot) said:[ \t]*\n?", re.M),  # copied from a page
    re.compile(r"""(?:^|(?<=>))[ \t]*<(?:turn|message|msg)\b[^<>]{0,30}\b(?:role|from)=["'](\w+)["'][^<>]*>\s*""", re.M | re.I),
    re.compile(r"(?:^|(?<=\s))(SYSTEM|HUMAN|USER|ASSISTANT):"),  # Vicuna, all in one line
    re.compile(r"^[ \t]*<(system|human|user|assistant|bot)>\s*", re.M | re.I),
    SPEAKER,
]
PAIRED = (*TRANSCRIPTS[1:4], TRANSCRIPTS[6])
"""headings and tags, which stand in other texts too: a dialogue has both speakers"""
END = re.compile(r"(?:\s*(?:<\|(?:im_end|eot_id|eot|end|endoftext|end_of_text|END_OF_TURN_TOKEN)\|>|<｜end▁of▁sentence｜>"
                 r"|<end_of_turn>|</s>|<eos>"
                 r"|\[\|endofturn\|\]|</(?i:system|human|user|assistant|bot|turn|message|msg)>))+\s*$")
START = re.compile(r"^\s*(?:<s>|<bos>|<\|begin_of_text\|>|<\|endoftext\|>|<｜begin▁of▁sentence｜>|<BOS_TOKEN>)\s*")
OPEN = re.compile(r"\n\s*\**[\w .-]{1,24}(?:\*\*)?[:：](?:\*\*)?\s*$")
"""a speaker who is about to reply"""
NAMED = re.compile(r"[\w .-]{1,24}[:：]")
HINTS = ("<|", "<｜", "<start_of", "<end_of", "<BOS", "[INST]", "##", "</", "<eos>", "USER:", "HUMAN:", "ASSISTANT:", "<user>",
         "<human>", "[|", "<extra_id_", "USER\n", "HUMAN\n", " said:", "role=", "from=")
"""one of them, or a line that begins with a speaker, is in every text that needs a closer look; most have none, and are done"""

TURNS = re.compile(r"""(?=.*["'](?:role|from)["']\s*:)(?=.*["'](?:content|value)["']\s*:)""", re.S)
PRINTED = re.compile(r"""[\[(]?(?:Human|AI|System|Tool)Message\(content=|content=(["']).*\1 additional_kwargs=|b(["']).*\2\s*\Z"""
                     r"|- (?:role|from): (?:user|assistant|system|human|gpt)\n", re.S)
"""turns as LangChain prints them, or as YAML; bytes as Python does"""
SPEAKERS = ROLES | dict.fromkeys("q question instruct frage pregunta 问 you".split(), "user") | dict.fromkeys(
    "a answer antwort respuesta 答 claude gemini copilot".split(), "assistant")
"""who speaks in a text; no source calls a turn's role so"""

TEXTS = ("input", "question", "query", "prompt", "instruction", "output", "answer", "response", "reply", "completion", "text",
         "content", "result")
"""keys under which a traced call keeps its only text"""


def turns_in(text: str, side: str) -> list[dict] | None:
    """The turns that `text` holds, None where it is plain text. `side`: who says it if it is (user, assistant, or "" for either).

    Refused where turns are seen, but cannot be told apart.
    """
    listlike = text.lstrip()[:1] in ("[", "{", "(", '"')
    asks = side == "user" and ASKED.match(text) and OPEN.search(text)
    lines = (line for line in text.splitlines() if ":" in line[:64] or "：" in line[:64])
    if not (listlike or asks or any(hint in text for hint in HINTS) or any(map(SPEAKER.match, lines)) or PRINTED.match(text)):
        return None
    if listlike and (turns := _written(text, side)) is not None:
        return turns
    if PRINTED.match(text):
        raise Refused("turns as text", f"{shorten(text)} is text as a program printed it")
    whole = text
    text = re.sub(r"\[SYSTEM_PROMPT\](.*?)\[/SYSTEM_PROMPT\]", r"<|im_start|>system\n\1", text, flags=re.S)
    text = re.sub(r"\[INST\]\s*<<SYS>>\s*(.*?)\s*<</SYS>>\s*", r"<|im_start|>system\n\1<|im_start|>user\n", text, flags=re.S)
    text = re.sub(r"(?:</s>\s*)?(?:<s>\s*)?\[INST\]\s*", "<|im_start|>user\n", text)
    text = re.sub(r"\s*\[/INST\]\s*", "<|im_start|>assistant\n", text)
    for marker in (*TEMPLATES, *TRANSCRIPTS, *([ASKED] if asks else [])):
        before, *rest = marker.split(START.sub("", text))
        names, said = [role.lower() for role in rest[::2]], [END.sub("", words).strip() for words in rest[1::2]]
        roles = [SPEAKERS.get(name) for name in names]
        if marker in PAIRED and not {"user", "assistant"} <= set(roles):
            continue
        if turns := _told_apart(marker in TEMPLATES, before.strip(), roles, said, side, whole):
            return turns
    bare = END.sub("", text)
    return None if bare == text else [{"role": side or "assistant", "content": bare.strip()}]


def _written(text: str, side: str) -> list[dict] | None:
    """The turns of a list, or of a request or an answer of an API, written as JSON or Python; None where the text is neither."""
    value = literal(text)
    if (turns := as_turns(value)) is not None:
        return turns
    if isinstance(value, str):  # JSON in JSON
        return turns_in(value, side) if value[:1] in ("[", "{") else None
    if TURNS.search(text):
        if isinstance(value, dict) and value.keys() & {"messages", "message", "choices", "generations"}:
            return said(value, side)
        raise Refused("turns as text", f"{shorten(text)} looks like a list of turns, but is neither JSON nor Python")
    return None


def as_turns(value) -> list[dict] | None:
    """A list of turns, dicts or (speaker, words) pairs, or one of them; None where it is none."""
    values = value if isinstance(value, list | tuple) else [value]
    if values and all(isinstance(turn, list | tuple) and len(turn) == 2 and str(turn[0]).lower() in ROLES for turn in values):
        return [{"role": role, "content": content} for role, content in values]
    known = all(isinstance(turn, dict) and turn.keys() & {"role", "from"} and turn.keys() & {"content", "value", "tool_calls"}
                for turn in values)
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
    if not template and side == "user" and set(roles) == {"user"} and not before and OPEN.search(said[-1]):
        said, roles = [*said[:-1], OPEN.sub("", said[-1]), ""], [*roles, "assistant"]  # "User: … \n Falcon:"
    open_end = roles[-1] == "assistant" and not said[-1]
    if not template and side == "user" and open_end and before and len(roles) == 1:
        if NAMED.match(before):
            raise _unclear(whole)
        return [{"role": "user", "content": before}]
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
    return turns[:-1] if open_end and side == "user" and len(turns) > 1 else turns


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
        pairs = value and all(isinstance(turn, list | tuple) for turn in value)
        return pairs and as_turns(value) or [turn for each in value for turn in _turns(each)]
    if not isinstance(value, dict):
        return [{"role": side, "content": value}]
    if {"role", "from"} & set(value) or "lc" in value or value.get("type") in ("human", "ai"):
        return [_langchain(value)]
    for key in ("messages", "message", "choices", "generations"):
        if inner := value.get(key):
            first = inner[0] if key in ("choices", "generations") and isinstance(inner, list) else inner
            turns, system = said(first, side, repairs), value.get("system")
            return [{"role": "system", "content": system}, *turns] if system else turns
    names = [name for name in value if name.lower() in TEXTS]
    if len(names) == 1 or len(value) == 1:
        return said(value[names[0] if names else next(iter(value))], side, repairs)
    raise Refused("not a record", f"{shorten(value)} holds no text that is known to be said by {side}")


def earlier(history) -> list[dict]:
    """Earlier turns, as LLaMA-Factory's Alpaca format has them: [[question, reply], …]; or a list of turns."""
    if not history or history != history:  # NaN
        return []
    value = literal(history) if isinstance(history, str) else history
    value = turns_in(history, "") if value is None else value
    if not isinstance(value, list | tuple):
        raise Refused("not a record", f"history is {shorten(history)}, expected [[question, reply], …]")
    return said(value, "")


def _turns(turn) -> list:
    """A list's entry as turns: a question and its reply may be one, as a pair or as {"user": …, "assistant": …}."""
    if isinstance(turn, list | tuple) and len(turn) == 2:
        return [{"role": "user", "content": turn[0]}, {"role": "assistant", "content": turn[1]}]
    if not isinstance(turn, dict):
        return [turn]
    if len(turn) > 1 and all(str(key).lower() in SPEAKERS for key in turn):
        return [{"role": SPEAKERS[key.lower()], "content": words} for key, words in turn.items() if words is not None]
    return [_langchain(turn)]


def _langchain(turn: dict) -> dict:
    """A turn as LangChain serialises it ({"lc": 1, "id": […, "HumanMessage"], "kwargs": {…}}), with a role; others as they are."""
    if turn.get("lc") and isinstance(turn.get("kwargs"), dict):
        kind = str((turn.get("id") or [""])[-1]).lower()
        return {**turn["kwargs"], "role": kind.removesuffix("chunk").removesuffix("message")}
    if isinstance(turn.get("data"), dict) and "content" not in turn:
        return {**turn, "content": turn["data"].get("content")}
    return turn
