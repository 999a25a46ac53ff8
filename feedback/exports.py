"""Read other tools' exports: one short function each, from a record to its judged replies."""

import re

from helpers.errors import KitError

from .columns import PARTS, plain, value_at
from .records import ROLES, Refused
from .texts import earlier, literal, said

LIKELY = re.compile("feedback|user|thumb|vote|rating|human", re.I)
FOLDED = re.compile(r'<details type="reasoning".*?</details>\s*', re.DOTALL)


class Scores(dict):
    """Votes by the names of their questions or scores, as a label; which one counts is decided for the source as a whole."""


def the_score(votes: dict) -> str:
    """Of several questions or scores (name -> its `Votes`) the one that people answered with a vote; KitError where it is not clear."""
    names = [name for name, found in votes.items() if found.are_labels] or list(votes)
    likely = [name for name in names if LIKELY.search(name) or plain(name) in PARTS["label"]] if len(names) > 1 else names
    if names and len(likely) != 1:
        raise KitError(f"there are several scores: {', '.join(names)}",
                       "one that people gave, with feedback, user, thumb, vote or rating in its name", "export this one alone")
    return likely[0] if likely else ""


def open_webui(record: dict) -> list[dict]:
    """A rated message in the snapshot of its chat."""
    messages = value_at(record, "snapshot.chat.chat.history.messages") or {}
    rated = str(value_at(record, "meta.message_id"))
    if rated not in messages:
        raise Refused("not a record", f"the rated message {rated} is not in the snapshot of its chat")
    return [_open_webui_reply(messages, rated, value_at(record, "data.rating"), value_at(record, "snapshot.chat.chat.params.system"))]


def open_webui_chats(record: dict) -> list[dict]:
    """A chat, in which votes stand beside the messages."""
    messages = value_at(record, "chat.history.messages")
    return [_open_webui_reply(messages, key, value_at(turn, "annotation.rating"), value_at(record, "chat.params.system"))
            for key, turn in messages.items() if turn.get("role") == "assistant" and turn.get("content")]


def _open_webui_reply(messages: dict, key: str, vote, system) -> dict:
    """A message and its vote; one whose text the user has edited is what they wanted to read."""
    return {"messages": _branch(messages, key, "parentId"), "label": True if messages[key].get("originalContent") else vote,
            "system": system}


def librechat(record: dict) -> list[dict]:
    """An exported conversation: its messages in a list, or as a tree of children."""
    turns = list(record.get("messages") or record.get("messagesTree") or [])
    for turn in turns:  # which grows as children are found
        turns += turn.get("children") or []
    return librechat_messages(turns)


def librechat_messages(records: list[dict]) -> list[dict]:
    """The messages of a conversation, as the database's collection holds them."""
    turns = {}
    for turn in records:
        content = turn.get("text") or [part for part in turn.get("content") or [] if part.get("type") != "think"]
        turns[turn["messageId"]] = {**turn, "role": "user" if turn.get("isCreatedByUser") else "assistant", "content": content}
    return [{"messages": _branch(turns, key, "parentMessageId"), "label": value_at(turn, "feedback.rating")}
            for key, turn in turns.items() if turn["role"] == "assistant"]


def langfuse(records: list[dict]) -> list[dict]:
    """A trace, or its root observation, with its scores; and any other observation that a score names."""
    answered = {record.get("id"): record for record in records if "output" in record}
    whole = [key for key, record in answered.items() if not value_at(record, "trace_id|traceId")] or [
        key for key, record in answered.items() if not value_at(record, "parent_observation_id|parentObservationId")]
    for record in records:
        answered |= {part["id"]: part for part in record.get("observations") or [] if isinstance(part, dict) and "output" in part}
    scores = {key: [] for key in whole}
    for record in records:
        found = (record.get("scores") or []) if "output" in record else [record]
        if isinstance(found, dict):  # as the page exports them
            found = [{"name": name, "value": value} for name, value in found.items()]
        for score in (score for score in found if isinstance(score, dict)):
            named = value_at(score, "observation_id|observationId")
            for key in [named] if named in answered else whole:
                scores.setdefault(key, []).append(score)
    return [{"messages": _exchange(answered[key].get("input"), answered[key].get("output")), "label": _human(found),
             "tools": value_at(answered[key], "input.tools")} for key, found in scores.items()]


def langsmith(records: list[dict]) -> list[dict]:
    """A run and its feedback: summed up in feedback_stats, or as records of their own that name it."""
    runs = [record for record in records if "outputs" in record]
    scores = [{"name": record["key"], "value": record.get("score", record.get("value"))} for record in records if "key" in record]
    for run in runs:
        stats = run.get("feedback_stats") or {}
        stats = literal(stats) if isinstance(stats, str) else stats
        for name, stat in stats.items():
            if isinstance(stat, dict):  # numbers by their mean, words by how often each was said
                words = [word for word, count in (stat.get("values") or {}).items() for _ in range(count)]
                scores.append({"name": name, "value": words if stat.get("avg") is None else stat["avg"]})
    return [{"messages": _exchange(run.get("inputs"), run.get("outputs")), "label": _human(scores)} for run in runs]


def label_studio(record: dict) -> list[dict]:
    """A task and its annotators' choices or ratings."""
    votes, kinds = {}, set()
    for annotation in record.get("annotations") or []:
        for result in annotation.get("result") or [] if not annotation.get("was_cancelled") else []:
            value = result.get("value") or {}
            found = value.get("choices") or [value[key] for key in ("rating", "number") if key in value]
            votes.setdefault(result.get("from_name"), []).extend(found)
            kinds.add(str(result.get("type")))
    if kinds and not any(votes.values()):
        raise Refused("label", f"the annotation holds {', '.join(sorted(kinds))}, and no choice or rating")
    return [_from_fields(record["data"], Scores(votes))]


def argilla(record: dict) -> list[dict]:
    """A record and its submitted responses; the question is the one that holds votes."""
    votes = {name: [answer.get("value") for answer in answers if answer.get("status", "submitted") == "submitted"]
             for name, answers in (record.get("responses") or {}).items()}
    return [_from_fields(record["fields"], Scores(votes))]


def arena(record: dict) -> list[dict]:
    """Two conversations and a winner: an accepted and a rejected one; two rejected where both are bad; nothing for a tie."""
    flags = (column.removeprefix("winner_") for column in ("winner_model_a", "winner_model_b", "winner_tie")
             if record.get(column) in (1, "1"))
    said_to_win = record.get("winner", record.get("preference")) or next(flags, "")
    winner = re.sub("[ _]|model|response|assistant", "", str(said_to_win).lower())
    a, b, none = (True, False), (False, True), (None, None)
    both = (False, False) if "bad" in winner else {"a": a, "left": a, "b": b, "right": b, "tie": none, "bothgood": none}.get(winner)
    if both is None:
        raise Refused("label", f"the winner is {said_to_win!r}, expected model_a, model_b, tie or tie (bothbad)")
    return [{"messages": _side(record, side), "label": label} for side, label in zip("ab", both, strict=True)]


def oasst(record: dict) -> list[dict]:
    """A tree of messages: of several replies the best-ranked is accepted, the last one rejected."""
    found, waiting = [], [([], record["prompt"])]
    while waiting:
        before, message = waiting.pop()
        turns = [*before, {"role": message.get("role"), "content": message.get("text")}]
        replies = message.get("replies") or []
        waiting += [(turns, reply) for reply in replies]
        ranks = [reply["rank"] for reply in replies if reply.get("rank") is not None]
        votes = {min(ranks): True, max(ranks): False} if len(set(ranks)) > 1 else {}
        found += [{"messages": [*turns, {"role": "assistant", "content": reply.get("text")}], "label": votes.get(reply.get("rank"))}
                  for reply in replies if ROLES.get(reply.get("role")) == "assistant"]
    return found


def oasst_messages(records: list[dict]) -> list[dict]:
    """The same tree as a list of messages."""
    nodes = {record["message_id"]: {**record, "replies": []} for record in records}
    for node in nodes.values():
        if node.get("parent_id") and node["parent_id"] in nodes:
            nodes[node["parent_id"]]["replies"].append(node)
    return [row for node in nodes.values() if not node.get("parent_id") for row in oasst({"prompt": node})]


def openai_preference(record: dict) -> list[dict]:
    """OpenAI's file for preference tuning."""
    asked, tools = said(record["input"], "user"), value_at(record, "input.tools")
    return [{"messages": asked + said(record[key], "assistant"), "label": label, "tools": tools}
            for key, label in (("preferred_output", True), ("non_preferred_output", False))]


def _branch(messages: dict, key: str, parent: str) -> list[dict]:
    """The turns from the beginning to this message; a chat with regenerated replies is a tree."""
    turns = []
    while key in messages and len(turns) < len(messages):
        turn = messages[key]
        turns.insert(0, {name: turn[name] for name in ("role", "content", "tool_calls", "files", "attachments") if turn.get(name)})
        if isinstance(turn.get("content"), str):  # Open WebUI keeps what its page folds away inside the text
            turns[0]["content"] = FOLDED.sub("", turn["content"])
        key = turn.get(parent)
    return turns


def _human(scores: list[dict]) -> Scores:
    """What people said, among scores that evaluators may have given too."""
    by_name = Scores()
    for score in scores:
        if score.get("source") != "EVAL":
            value = value_at(score, "stringValue|string_value|value")  # a category's number is its place in a list, no rating
            by_name.setdefault(str(score.get("name")), []).append(value)
    return by_name


def _exchange(asked, answered) -> list[dict]:
    """Input and output of a traced call as turns; tables keep them as JSON."""
    asked, answered = (literal(text) or text if isinstance(text, str) and text[:1] in ("{", "[", '"') else text
                       for text in (asked, answered))
    turns, reply = said(asked, "user"), said(answered, "assistant")
    return reply if len(reply) > len(turns) and reply[: len(turns)] == turns else turns + reply


def _from_fields(fields: dict, votes: Scores) -> dict:
    """Prompt and reply among fields that go by one of the usual names."""
    names = {part: next((name for name in fields if plain(name) in usual), None) for part, usual in PARTS.items()}
    asked = names["prompt"] or names["extra"] or names["messages"]
    if not asked or not (names["reply"] or names["messages"]):
        raise Refused("missing column", f"no prompt and reply among {', '.join(fields)}")
    turns = said(fields[asked if names["reply"] else names["messages"]], "user")
    if names["reply"]:
        turns += said(fields[names["reply"]], "assistant")
    return {"messages": turns, "label": votes, "system": fields.get(names["system"]), "tools": fields.get(names["tools"])}


def _side(record: dict, side: str) -> list[dict]:
    if f"conversation_{side}" in record:
        return said(record[f"conversation_{side}"], "user")[: 2 * int(record.get("turn") or 0) or None]  # MT-Bench judges each turn
    both = [record["prompt"], record[f"response_{side}"]]
    for place, text in enumerate(both):
        if isinstance(text, str):
            both[place] = literal(text) if text.startswith("[") else [text]
        if not isinstance(both[place], list):
            raise Refused("not a record", "an arena's prompt and responses are lists of texts")
    return earlier(list(zip(*both, strict=False)))
