"""What comes in: shapes, labels, roles, tools."""

import json

import pytest

from feedback.columns import Columns
from feedback.records import Refused, record
from feedback.scales import WORDS, scale_of
from feedback.shapes import Shape, recognise, rows
from helpers.errors import KitError

USER, REPLY = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}
CALL = {"role": "function_call", "content": '{"name": "weather", "arguments": {"city": "Oslo"}}'}
RESULT = {"role": "observation", "content": '{"celsius": 4}'}
WEATHER = {"name": "weather", "parameters": {"properties": {"city": {"type": "string"}}}}
TOOLS = [{"type": "function", "function": WEATHER}]



def shape_of(values, given=None, **how):
    columns, given = Columns(), given or {}
    for value in values:
        columns.add(value, set(given.values()), set(given.values()))
    name, parts = recognise(columns, given)
    votes = columns.votes.get(parts.get("label"))
    return Shape(name, parts, scale_of(votes, parts["label"], **how) if votes else WORDS)


def made_of(value, shape):
    return [made if isinstance(made, Refused) else made[0] for made in rows(value, shape)]


SHAPES = {
    "role and content": ({"messages": [USER, REPLY], "label": True}, "messages and label (ShareGPT)"),
    "from and value": (
        {"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "Because."}], "kto_tag": True},
        "messages and label (ShareGPT)"),
    "system turn": (
        {"messages": [{"role": "system", "content": "Be brief."}, USER, REPLY], "label": 1},
        "messages and label (ShareGPT)"),
    "tools": (
        {"messages": [USER, CALL, RESULT, REPLY], "tools": TOOLS, "label": True}, "messages and label (ShareGPT)"),
    "TRL": ({"prompt": "Why?", "completion": "Because.", "label": True}, "prompt, completion, label (TRL)"),
    "TRL, turns": ({"prompt": [USER], "completion": [REPLY], "label": True}, "prompt, completion, label (TRL)"),
    "thumbs": ({"Prompt": "Why?", "Response": "Because.", "Rating": "up"}, "prompt, reply and rating (thumbs log)"),
    "stars": ({"question": "Why?", "answer": "Because.", "stars": 5}, "prompt, reply and rating (thumbs log)"),
    "Alpaca": ({"instruction": "Explain", "input": "this", "output": "Because.", "kto_tag": True},
               "prompt, reply and rating (thumbs log)"),
}


@pytest.mark.parametrize("value, name", SHAPES.values(), ids=SHAPES)
def test_a_shape_is_recognised_and_becomes_an_accepted_record(value, name):
    shape = shape_of([value])
    (made,) = made_of(value, shape)
    assert shape.name == name
    assert made["label"] is True
    assert made["messages"][-1]["role"] == "assistant"
    assert made["messages"][-1]["content"] == "Because."


PAIRS = {
    "texts": {"prompt": "Why?", "chosen": "Because.", "rejected": "No."},
    "turns": {"conversations": [{"from": "human", "value": "Why?"}], "chosen": {"from": "gpt", "value": "Because."},
              "rejected": {"from": "gpt", "value": "No."}},
    "whole dialogues": {"prompt": "Why?", "chosen": [USER, REPLY], "rejected": [USER, {**REPLY, "content": "No."}]},
    "whole dialogues without prompt": {"chosen": [USER, REPLY], "rejected": [USER, {**REPLY, "content": "No."}]},
    "replies as lists": {"prompt": [USER], "chosen": [REPLY], "rejected": [{**REPLY, "content": "No."}]},
}


@pytest.mark.parametrize("value", PAIRS.values(), ids=PAIRS)
def test_a_pair_becomes_an_accepted_and_a_rejected_row_of_one_prompt(value):
    shape = shape_of([value])
    accepted, rejected = made_of(value, shape)
    assert (accepted["label"], rejected["label"]) == (True, False)
    assert accepted["messages"][:-1] == rejected["messages"][:-1] == [USER]
    assert (accepted["messages"][-1]["content"], rejected["messages"][-1]["content"]) == ("Because.", "No.")


def test_a_broken_pair_counts_as_two_rows():
    shape = shape_of([PAIRS["texts"]])
    assert len(rows("no pair", shape)) == 2
    accepted, rejected = made_of({"prompt": "Why?", "chosen": "Because.", "rejected": ""}, shape)
    assert accepted["label"] is True
    assert rejected.kind == "empty reply"


def test_an_unknown_shape_shows_the_columns_found_and_the_shapes_known():
    with pytest.raises(KitError) as error:
        shape_of([{"vraag": "Waarom?", "antwoord": "Daarom.", "duim": 1}])
    assert "vraag, antwoord, duim" in str(error.value)
    assert "add --columns prompt=…,reply=…,label=…" in str(error.value)
    assert "prompt, completion, label" in str(error.value)


def test_columns_can_be_named():
    columns = {"prompt": "vraag", "reply": "antwoord", "label": "duim"}
    value = {"vraag": "Waarom?", "antwoord": "Daarom.", "duim": 0}
    (made,) = made_of(value, shape_of([value], columns))
    assert made["messages"][1]["content"] == "Daarom."
    assert made["label"] is False


def test_a_column_named_that_is_not_there_is_an_error():
    with pytest.raises(KitError, match="names 'b', but the columns are: a"):
        shape_of([{"a": 1}], {"prompt": "b"})


@pytest.mark.parametrize("turns, kind", [
    ([USER], "turn order"), ([REPLY], "turn order"), ([], "turn order"), ([USER, USER], "turn order"),
    ([USER, REPLY, USER], "turn order"), ([USER, {**REPLY, "content": " \n"}], "empty reply"),
    ([{**USER, "content": ""}, REPLY], "empty turn"), ([{**USER, "role": "narrator"}, REPLY], "unknown role"),
    ([{"role": None, "content": None}, REPLY], "unknown role"), (None, "not a record"), ([None, REPLY], "not a record"),
    ([USER, {**REPLY, "content": "\ud800"}], "text"), ([USER, {**REPLY, "content": 5}], "text"),
    ([USER, {"role": "function_call", "content": "weather(Oslo)"}], "function call"),
    ([USER, REPLY, {"role": "system", "content": "Late."}, REPLY], "turn order"),
    ([USER, {"role": "assistant", "content": [{"type": "image_url", "image_url": "x"}]}], "images"),
])
def test_what_llama_factory_would_drop_or_misread_is_refused_with_its_kind(turns, kind):
    with pytest.raises(Refused) as refused:
        record(turns, True)
    assert refused.value.kind == kind


def test_openai_tool_calls_become_function_calls():
    called = {"role": "assistant", "content": None,
              "tool_calls": [{"type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}]}
    made = record([USER, called, {"role": "tool", "content": "4 °C"}, REPLY], True, tools=TOOLS)
    assert [turn["role"] for turn in made["messages"]] == ["user", "function_call", "observation", "assistant"]
    assert json.loads(made["messages"][1]["content"]) == {"name": "weather", "arguments": {"city": "Oslo"}}


def test_a_system_column_becomes_the_first_turn_and_an_empty_one_nothing():
    assert record([USER, REPLY], True, system="Be brief.")["messages"][0] == {"role": "system", "content": "Be brief."}
    assert record([{"role": "system", "content": ""}, USER, REPLY], True)["messages"] == [USER, REPLY]


@pytest.mark.parametrize("tools", ["not JSON", {"name": "x"}, [5], [{"description": "no name"}],
                                   [{"name": "x", "parameters": {"properties": {"a": 5}}}]])
def test_tools_that_would_end_the_training_are_refused(tools):
    with pytest.raises(Refused) as refused:
        record([USER, REPLY], True, tools=tools)
    assert refused.value.kind == "tools"
