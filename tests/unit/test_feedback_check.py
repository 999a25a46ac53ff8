"""No row is lost, and what is wrong with the rows together is seen too."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feedback import check, find, problems
from feedback.columns import NO_VOTE, PARTS
from feedback.labels import WORDS
from feedback.records import Refused
from feedback.shapes import Shape, rows
from helpers.errors import KitError


def checked_of(tmp_path, values, **how):
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(json.dumps(value) for value in values))
    return check.check(find.find(str(path), tmp_path / "downloads"), **how)


def row(prompt, reply="Because.", label=True):
    return {"prompt": prompt, "completion": reply, "label": label}


MIXED = [row("a"), row("b", label=False), row("c", ""), row("d", label=7), {"prompt": "e"}, {"prompt": "e", "label": True}, "no object", None, [1]]

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(
        st.sampled_from([name for names in PARTS.values() for name in names]
                        + ["role", "content", "from", "value", "tool_calls", "function", "name", "type", "text", "rating", "parts", "sender"])
        | st.text(max_size=5), inner, max_size=6),
    max_leaves=25,
)
roles = st.sampled_from(["user", "human", "assistant", "gpt", "system", "tool", "function_call", "x", None, 3])
turns = st.lists(st.fixed_dictionaries({"role": roles, "content": st.none() | st.text() | json_values}), max_size=5)
nearly = st.fixed_dictionaries(
    {"messages": turns | json_values, "label": st.booleans() | json_values},
    optional={"system": json_values, "tools": json_values})
shapes = st.sampled_from([Shape("", dict(zip(parts, columns, strict=True)), WORDS) for parts, columns in [
    (("messages", "label"), ("messages", "label")), (("prompt", "reply", "label"), ("prompt", "completion", "label")),
    (("prompt", "chosen", "rejected"), ("prompt", "chosen", "rejected")), (("chosen", "rejected"), ("chosen", "rejected")),
    (("messages", "system", "tools", "label", "media"), ("messages", "system", "tools", "label", "image")),
    (("prompt", "extra", "reply", "label", "history"), ("instruction", "input", "output", "label", "history"))]])


@given(value=json_values | nearly, shape=shapes)
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_json_value_becomes_records_or_reasons_never_a_traceback(value, shape):
    made = rows(value, shape)
    assert len(made) == shape.rows_each
    for outcome in made:
        if isinstance(outcome, Refused):
            assert outcome.kind in (*problems.REFUSED, NO_VOTE)
        else:
            record, repairs = outcome
            assert json.loads(json.dumps(record)) == record and set(record) == {"messages", "label", "tools"}
            assert set(repairs) <= set(problems.NOTED)


@pytest.mark.parametrize("value", [
    {"messages": [{"tool_calls": 1}], "label": False},
    {"messages": [{"tool_calls": [{"id": ["a"]}, {"id": ["b"]}]}, {"role": "tool", "tool_call_id": ["a"]}], "label": True},
    {"messages": [{"tool_calls": [{"id": "a"}, {"id": "b"}]}, {"role": "tool", "tool_call_id": {}}, {"role": "tool", "tool_call_id": "a"}],
     "label": True}])
def test_calls_and_ids_of_the_wrong_kind_are_refused(value):
    [outcome] = rows(value, Shape("", {"messages": "messages", "label": "label"}, WORDS))
    assert isinstance(outcome, Refused)


@given(values=st.lists(json_values | nearly, min_size=1, max_size=12))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_row_of_any_file_is_lost(tmp_path, values):
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(json.dumps(value) for value in [*values, {"messages": [], "label": True}]))
    try:
        checked = check.check(find.find(str(path), tmp_path))
    except KitError:
        return
    ledger = checked.ledger
    assert ledger.rows_in == (len(values) + 1) * checked.shape.rows_each
    assert ledger.rows_in == ledger.rows_out + sum(ledger.refused.values()) + ledger.unvoted
    assert len(checked.labels) == ledger.rows_out == len(checked.rows(range(ledger.rows_out)))


cells = st.none() | st.booleans() | st.integers(-2, 12) | st.floats() | st.sampled_from(
    ["up", "down", "👍", "", "4/5", "85%", "[5, 4]", "User: a\nAI: b", "<|im_end|>", "[{'role': 'user', 'content': 'a'}]", "nonsense"]) | st.text()
names = st.sampled_from(["prompt", "response", "rating", "label", "messages", "chosen", "rejected", "input", "history", "images", "thumbs_up",
                         "thumbs_down", "comment", "data.vote", "conversation_a", "trace_id", "id"])


@given(columns=st.lists(names, min_size=2, max_size=7, unique=True), rows=st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_rows_in_are_used_refused_and_unvoted_for_any_table_and_every_column_is_used_or_named(tmp_path, columns, rows):
    table = rows.draw(st.lists(st.fixed_dictionaries({column: cells for column in columns}), min_size=1, max_size=8))
    path = tmp_path / "table.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in table))
    try:
        checked = check.check(find.find(str(path), tmp_path))
    except KitError as error:
        assert "Traceback" not in str(error)
        return
    ledger = checked.ledger
    assert ledger.rows_in == len(table) * checked.shape.rows_each
    assert ledger.rows_in == ledger.rows_out + sum(ledger.refused.values()) + ledger.unvoted
    filled = {column for row in table for column, value in row.items() if value not in (None, "") and value == value}
    assert filled <= set(checked.shape.parts.values()) | set(checked.unused)


@given(text=st.binary(max_size=200))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_end_in_records_or_a_readable_error(tmp_path, text):
    for suffix in (".json", ".jsonl", ".csv"):
        path = tmp_path / f"data{suffix}"
        path.write_bytes(text)
        with pytest.raises(KitError):
            check.check(find.find(str(path), tmp_path))


def test_rows_in_are_rows_out_and_rows_refused_by_reason(tmp_path):
    ledger = checked_of(tmp_path, MIXED).ledger
    assert (ledger.rows_in, ledger.rows_out) == (9, 2)
    assert ledger.refused == {"empty reply": 1, "label": 1, "missing column": 1, "not a record": 3}
    assert ledger.unvoted == 1
    assert ledger.problems["empty reply"] == [("data.jsonl:3", "the reply is empty")]


def test_ten_of_a_kind_are_shown_and_all_of_them_written(tmp_path):
    values = [row("a"), row("b", label=False)] + [row(f"c{i}", "") for i in range(25)]
    ledger = checked_of(tmp_path, values, report=tmp_path / "problems.jsonl").ledger
    text = ledger.text()
    assert text.count("the reply is empty") == 10
    assert "… and 15 more, in problems.jsonl" in text
    written = [json.loads(line) for line in (tmp_path / "problems.jsonl").read_text().splitlines()]
    assert [each["where"] for each in written] == [f"data.jsonl:{number}" for number in range(3, 28)]


def test_every_kind_of_problem_has_its_remedy_in_the_account(tmp_path):
    text = checked_of(tmp_path, MIXED).ledger.text()
    for kind in ("empty reply", "label", "missing column", "not a record"):
        assert f"{kind}: " in text
        assert problems.REFUSED[kind] in text


def test_strict_stops_at_a_refused_row_and_shows_it(tmp_path):
    with pytest.raises(KitError, match=r"strict[\s\S]*data.jsonl:3  the reply is empty"):
        checked_of(tmp_path, MIXED, strict=True)


def test_strict_passes_what_only_wants_mention(tmp_path):
    values = [row("a"), row("a"), row("b", label=0)]
    noted = checked_of(tmp_path, values, strict=True).ledger.noted
    assert noted == {"label repaired": 1, "duplicate": 1}


def test_a_reply_that_is_both_accepted_and_rejected_is_noted_and_stops_strict(tmp_path):
    values = [row("a"), row("b"), row("a", label=False)]
    assert checked_of(tmp_path, values).ledger.problems["both labels"] == [("data.jsonl:1", "against data.jsonl:3")]
    with pytest.raises(KitError, match="both labels"):
        checked_of(tmp_path, values, strict=True)


def test_repeats_are_noted_and_kept(tmp_path):
    ledger = checked_of(tmp_path, [row("a"), row("b", label=False), row("a")]).ledger
    assert ledger.problems["duplicate"] == [("data.jsonl:3", "repeats data.jsonl:1")]
    assert ledger.rows_out == 3


def test_labels_in_words_and_numbers_are_repaired_and_said_to_be(tmp_path):
    checked = checked_of(tmp_path, [row("a", label=1), row("b", label=0), row("c", label="up")])
    assert checked.labels.tolist() == [True, False, True]
    assert checked.ledger.counts["label repaired"] == 3
    assert all(isinstance(record["label"], bool) for record in checked.rows(range(3)))


@pytest.mark.parametrize("label", [True, False])
def test_one_class_only_is_an_error_even_without_strict(tmp_path, label):
    with pytest.raises(KitError, match="every usable row is (accepted|rejected)"):
        checked_of(tmp_path, [row(f"{i}", label=label) for i in range(5)])


def test_the_dataset_that_comes_along_is_without_a_problem(tmp_path):
    checked = check.check(find.find("short_answers", tmp_path))
    assert checked.ledger.rows_in == checked.ledger.rows_out >= 320
    assert not checked.ledger.refused and not checked.ledger.noted
    assert len(set(checked.prompts.tolist())) >= 200
    assert 0.58 < checked.labels.mean() < 0.62
    assert (checked.turns > 1).mean() >= 0.25


def test_the_example_shows_both_labels_of_one_prompt_where_there_are_some(tmp_path):
    values = [row("a"), row("b", "No,\nnever.", False), row("b", "Yes."), row("c", label=False)]
    text = check.example(checked_of(tmp_path, values))
    assert text.split("\n\n") == ["label: true\n           user: b\n      assistant: Yes.",
                                 "label: false\n           user: b\n      assistant: No, never."]


