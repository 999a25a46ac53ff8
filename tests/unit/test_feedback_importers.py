"""Exports of other tools, each made here from the tool's own schema (feedback/importers.py says which), and what becomes of them."""

import csv
import json
from datetime import datetime

import pytest

from feedback import check, find, importers, sample
from helpers.errors import KitError

ASKED = [f"How often should I water plant {i}?" for i in range(8)]
SAID = [f"Every {i + 2} weeks." for i in range(8)]
UP = [i % 2 == 0 for i in range(8)]


def checked_of(tmp_path, content, name="export.json", **how):
    path = tmp_path / name
    lines = name.endswith(".jsonl")
    path.write_text("\n".join(map(json.dumps, content)) if lines else json.dumps(content, indent=1))
    return check.check(find.find(str(path), tmp_path / "downloads"), **how)


def thumb(i, up="up", down="down"):
    return up if UP[i] else down


def open_webui_chat(i, **reply):
    messages = {
        "u1": {"id": "u1", "parentId": None, "childrenIds": ["a1"], "role": "user", "content": "Hello"},
        "a1": {"id": "a1", "parentId": "u1", "childrenIds": ["u2"], "role": "assistant", "content": "Hi."},
        "u2": {"id": "u2", "parentId": "a1", "childrenIds": ["a2", "a3"], "role": "user", "content": ASKED[i]},
        "a2": {"id": "a2", "parentId": "u2", "childrenIds": [], "role": "assistant", "model": "m", "content": SAID[i], **reply},
        "a3": {"id": "a3", "parentId": "u2", "childrenIds": [], "role": "assistant", "model": "m", "content": "Another branch."},
    }
    return {"models": ["m"], "history": {"messages": messages, "currentId": "a3"}, "messages": list(messages.values())}


def open_webui(i):
    return {"id": f"f{i}", "user_id": "u", "version": 0, "type": "rating", "created_at": 1, "updated_at": 1,
            "data": {"rating": thumb(i, 1, -1), "model_id": "m", "reason": "", "comment": "", "details": {"rating": 7}},
            "meta": {"arena": False, "chat_id": "c", "message_id": "a2", "tags": []},
            "snapshot": {"chat": {"id": "c", "title": "t", "chat": open_webui_chat(i)}}}


def open_webui_chats(i):
    return {"id": f"c{i}", "title": "t", "chat": open_webui_chat(i, annotation={"rating": thumb(i, 1, -1), "reason": "", "comment": ""}),
            "created_at": 1, "archived": False}


def librechat_messages(i):
    common = {"conversationId": f"c{i}", "user": "u", "endpoint": "openAI", "createdAt": "2026-01-01"}
    return [{**common, "messageId": f"u{i}", "parentMessageId": "00000000-0000-0000-0000-000000000000", "sender": "User", "text": ASKED[i],
             "isCreatedByUser": True},
            {**common, "messageId": f"a{i}", "parentMessageId": f"u{i}", "sender": "GPT", "isCreatedByUser": False, "text": "",
             "content": [{"type": "text", "text": SAID[i]}],
             "feedback": {"rating": thumb(i, "thumbsUp", "thumbsDown"), "tag": "accurate_reliable"}}]


def librechat_export(i):
    return {"conversationId": f"c{i}", "endpoint": "openAI", "title": "t", "exportAt": "now", "branches": True, "recursive": False,
            "messages": librechat_messages(i)}


def librechat_tree(i):
    asked, said = librechat_messages(i)
    return {"conversationId": f"c{i}", "title": "t", "recursive": True, "messagesTree": [{**asked, "children": [{**said, "children": []}]}]}


def langfuse(i):
    return {"id": f"t{i}", "timestamp": "2026-01-01", "name": "chat", "input": {"messages": [{"role": "user", "content": ASKED[i]}]},
            "output": {"role": "assistant", "content": SAID[i]}, "metadata": {}, "observations": [],
            "scores": [{"id": "s", "traceId": f"t{i}", "name": "user-feedback", "value": thumb(i, 1, 0), "source": "API", "dataType": "BOOLEAN"},
                       {"id": "e", "traceId": f"t{i}", "name": "toxicity", "value": 0.3, "source": "EVAL", "dataType": "NUMERIC"}]}


def langfuse_apart(i):
    trace = {key: value for key, value in langfuse(i).items() if key != "scores"} | {"input": ASKED[i], "output": SAID[i]}
    return [trace, {"id": f"s{i}", "trace_id": f"t{i}", "name": "user-feedback", "value": None, "string_value": thumb(i), "source": "API"}]


def langsmith(i):
    return {"id": f"r{i}", "name": "ChatOpenAI", "run_type": "llm", "inputs": {"messages": [[
        {"lc": 1, "type": "constructor", "id": ["langchain", "schema", "messages", "HumanMessage"], "kwargs": {"content": ASKED[i]}}]][0]},
        "outputs": {"generations": [[{"text": SAID[i], "message": {"lc": 1, "id": ["AIMessage"], "kwargs": {"content": SAID[i]}}}]][0]},
        "feedback_stats": {"user_score": {"n": 1, "avg": thumb(i, 1.0, 0.0), "values": {}}}, "extra": {}}


def langsmith_apart(i):
    return [{"id": f"r{i}", "run_type": "chain", "inputs": {"question": ASKED[i]}, "outputs": {"answer": SAID[i]}},
            {"id": f"f{i}", "run_id": f"r{i}", "key": "thumb", "score": thumb(i, 1, 0), "value": None, "comment": None}]


def label_studio(i):
    vote = {"from_name": "vote", "to_name": "reply", "type": "choices", "value": {"choices": [thumb(i, "Thumbs up", "Thumbs down")]}}
    return {"id": i, "data": {"prompt": ASKED[i], "reply": SAID[i]}, "project": 1, "predictions": [],
            "annotations": [{"id": i, "result": [vote], "was_cancelled": False, "completed_by": 1},
                            {"id": 99, "result": [], "was_cancelled": True, "completed_by": 2}]}


def label_studio_ratings(i):
    rating = {"from_name": "rating", "to_name": "dialogue", "type": "rating", "value": {"rating": thumb(i, 5, 1)}}
    turns = [{"author": "user", "text": ASKED[i]}, {"author": "assistant", "text": SAID[i]}]
    return {"id": i, "data": {"dialogue": turns}, "annotations": [{"result": [rating], "was_cancelled": False}] * 2}


def argilla(i):
    return {"id": str(i), "status": "completed", "fields": {"prompt": ASKED[i], "response": SAID[i]}, "metadata": {}, "suggestions": {},
            "vectors": {}, "responses": {"rating": [{"value": thumb(i, 5, 1), "user_id": "a", "status": "submitted"},
                                                    {"value": 3, "user_id": "b", "status": "discarded"}]}}


def arena(i):
    turns = [[{"role": "user", "content": ASKED[i]}, {"role": "assistant", "content": said}] for said in (SAID[i], f"No {i}.")]
    return {"question_id": f"q{i}", "model_a": "x", "model_b": "y", "judge": "j", "turn": 1, "winner": thumb(i, "model_a", "model_b"),
            "conversation_a": turns[0], "conversation_b": turns[1]}


def arena_55k(i):
    return {"id": i, "model_a": "x", "model_b": "y", "prompt": json.dumps([ASKED[i]]), "response_a": json.dumps([SAID[i]]),
            "response_b": json.dumps([f"No {i}."]), "winner_model_a": int(UP[i]), "winner_model_b": int(not UP[i]), "winner_tie": 0}


def oasst(i):
    node = {"lang": "en", "emojis": {}, "labels": {}}
    replies = [{**node, "message_id": f"{i}{rank}", "text": text, "role": "assistant", "rank": rank, "replies": []}
               for rank, text in ((1, f"So so {i}."), (thumb(i, 0, 2), SAID[i]), (thumb(i, 2, 0), f"Bad {i}."))]
    return {"message_tree_id": f"m{i}", "tree_state": "ready_for_export",
            "prompt": {**node, "message_id": f"m{i}", "text": ASKED[i], "role": "prompter", "replies": replies}}


def oasst_messages(i):
    tree = oasst(i)
    common = {"message_tree_id": f"m{i}", "lang": "en"}
    root = {**common, "message_id": f"m{i}", "parent_id": None, "text": ASKED[i], "role": "prompter", "rank": None}
    return [root] + [{**common, **{key: reply[key] for key in ("message_id", "text", "role", "rank")}, "parent_id": f"m{i}"}
                     for reply in tree["prompt"]["replies"]]


def openai_preference(i):
    both = [[{"role": "assistant", "content": SAID[i]}], [{"role": "assistant", "content": f"No {i}."}]][:: 1 if UP[i] else -1]
    return {"input": {"messages": [{"role": "user", "content": ASKED[i]}], "tools": [], "parallel_tool_calls": True},
            "preferred_output": both[0], "non_preferred_output": both[1]}


EXPORTS = {  # how a record is made -> turns before the rated reply, rows that nobody voted on
    open_webui: (3, 0), open_webui_chats: (3, 16), librechat_messages: (1, 0), librechat_export: (1, 0), librechat_tree: (1, 0), langfuse: (1, 0),
    langfuse_apart: (1, 0), langsmith: (1, 0), langsmith_apart: (1, 0), label_studio: (1, 0), label_studio_ratings: (1, 0), argilla: (1, 0),
    arena: (1, 0), arena_55k: (1, 0), oasst: (1, 8), oasst_messages: (1, 8), openai_preference: (1, 0),
}


@pytest.mark.parametrize("make", EXPORTS, ids=lambda make: make.__name__)
@pytest.mark.parametrize("name", ["export.json", "export.jsonl", "wrapped.json"])
def test_an_export_is_read_as_it_is(make, name, tmp_path):
    made = [make(i) for i in range(8)]
    records = [record for each in made for record in (each if isinstance(each, list) else [each])]
    checked = checked_of(tmp_path, {"data": records, "meta": {"page": 1}} if name == "wrapped.json" else records, name)
    before, unvoted = EXPORTS[make]
    assert checked.ledger.unvoted == unvoted and not checked.ledger.refused
    found = {(row["messages"][-2]["content"], row["messages"][-1]["content"]): row for row in checked.rows(range(len(checked.records)))}
    for i in range(8):
        row = found[ASKED[i], SAID[i]]
        assert row["label"] is UP[i] and len(row["messages"]) == before + 1
    assert checked.shape.name in [importer.name for importer in importers.IMPORTERS]


def test_what_is_read_of_a_tree_is_not_called_unused(tmp_path):
    unused = checked_of(tmp_path, [oasst(i) for i in range(8)]).unused
    assert "prompt[].lang" in unused and not {"prompt[].replies", "prompt[].text", "prompt[].role"} & unused.keys()


def test_every_importer_in_the_table_is_tried_above():
    tried = {importers.find([each] if isinstance(each, dict) else each) for each in (make(0) for make in EXPORTS)}
    assert {importer.name for importer in importers.IMPORTERS} == {importer.name for importer in tried}


def test_votes_in_a_file_of_their_own_in_a_folder_find_their_traces(tmp_path):
    folder = tmp_path / "langfuse"
    for part, name in enumerate(("traces", "scores")):
        (folder / name).mkdir(parents=True)
        (folder / name / "2026-01.jsonl").write_text("\n".join(json.dumps(langfuse_apart(i)[part]) for i in range(8)))
    checked = check.check(find.find(str(folder), tmp_path))
    assert checked.labels.sum() == 4 and checked.ledger.rows_out == 8


def test_a_vote_without_its_reply_is_refused_and_a_reply_without_a_vote_is_unvoted(tmp_path):
    records = [record for i in range(8) for record in langfuse_apart(i)]
    ledger = checked_of(tmp_path, [*records[:-1], {**records[-1], "trace_id": "gone"}], "export.jsonl").ledger
    assert (ledger.rows_in, ledger.rows_out, ledger.unvoted, ledger.refused) == (9, 7, 1, {"not a record": 1})


def test_one_message_that_is_refused_takes_no_other_of_its_chat_with_it(tmp_path):
    records = [open_webui_chats(i) for i in range(8)]
    records[0]["chat"]["history"]["messages"]["a3"] |= {"files": [{"type": "image", "url": "x"}], "annotation": {"rating": 1}}
    checked = checked_of(tmp_path, records)
    assert (checked.ledger.rows_out, checked.ledger.unvoted, checked.ledger.refused) == (8, 15, {"images": 1})


def test_open_webuis_system_prompt_comes_first(tmp_path):
    records = [open_webui(i) for i in range(8)]
    for record in records:
        record["snapshot"]["chat"]["chat"]["params"] = {"system": "Be brief."}
    checked = checked_of(tmp_path, records)
    assert checked.rows([0])[0]["messages"][0] == {"role": "system", "content": "Be brief."}
    assert not any("params" in name for name in checked.unused)


@pytest.mark.parametrize("part, kind", [
    ({"type": "image_file", "image_file": {"filepath": "x"}}, "images"), ({"type": "error", "error": "overloaded"}, "text"),
    ({"type": "tool_call", "tool_call": {"name": "w"}}, "function call"), ({"type": "think", "think": "hm"}, None)])
def test_parts_of_librechats_messages_are_never_left_out_without_a_word(tmp_path, part, kind):
    records = [librechat_export(i) for i in range(8)]
    records[0]["messages"][1]["content"].append(part)
    assert checked_of(tmp_path, records).ledger.refused == ({kind: 1} if kind else {})


def test_a_category_of_langfuse_is_its_word_and_not_its_place_in_a_list(tmp_path):
    records = [langfuse(i) for i in range(8)]
    for i, record in enumerate(records):
        record["scores"] = [{"name": "feedback", "dataType": "CATEGORICAL", "value": thumb(i, 0, 1), "stringValue": thumb(i, "good", "bad"), "source": "API"}]
    assert checked_of(tmp_path, records).labels.tolist() == UP


def test_a_request_s_system_prompt_and_tools_are_kept(tmp_path):
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]
    asked = [{"system": "Be brief.", "messages": [{"role": "user", "content": ASKED[i]}], "tools": tools, "model": "m"} for i in range(8)]
    traces = [langfuse(i) | {"input": asked[i]} for i in range(8)]
    rows = [{"request": json.dumps(asked[i]), "response": SAID[i], "thumb": UP[i]} for i in range(8)]
    nested = [{"request": asked[i], "response": SAID[i], "thumb": UP[i]} for i in range(8)]
    for content in (traces, rows, nested):
        checked = checked_of(tmp_path, content)
        row = checked.rows([0])[0]
        assert [turn["content"] for turn in row["messages"]] == ["Be brief.", ASKED[0], SAID[0]] and "weather" in row["tools"]
    assert checked.unused == {"request.model": 8}


def test_langsmiths_votes_in_words_are_read(tmp_path):
    records = [langsmith(i) | {"feedback_stats": {"user_score": {"n": 1, "avg": None, "values": {thumb(i): 1}}}} for i in range(8)]
    assert checked_of(tmp_path, records).labels.tolist() == UP


def test_argillas_drafts_are_no_votes_when_flattened_either(tmp_path):
    common = {"rating.responses.users": ["a", "b"], "rating.responses.status": ["submitted", "discarded"]}
    rows = [{"prompt": ASKED[i], "response": SAID[i], "rating.responses": [thumb(i), thumb(i, "down", "up")], **common} for i in range(8)]
    rows.append({"prompt": "?", "response": "!", "rating.responses": ["up"], "rating.responses.users": ["a"], "rating.responses.status": ["draft"]})
    checked = checked_of(tmp_path, rows)
    assert checked.labels.tolist() == UP and checked.ledger.unvoted == 1 and checked.unused == {"rating.responses.users": 9}


def test_label_studios_choices_in_a_table_are_read(tmp_path):
    rows = [{"prompt": ASKED[i], "reply": SAID[i], "vote": json.dumps({"choices": [thumb(i)]}), "annotator": 1} for i in range(8)]
    assert checked_of(tmp_path, rows).labels.tolist() == UP


def test_the_same_score_counts_in_every_record_whatever_else_one_of_them_has(tmp_path):
    records = [langfuse(i) for i in range(8)]
    records[1]["scores"] = records[2]["scores"] = [{"name": "hallucination", "value": 1, "source": "API"}]
    records[3]["scores"].append({"name": "hallucination", "value": 1, "source": "API"})
    checked = checked_of(tmp_path, records)
    assert checked.labels.tolist() == [UP[i] for i in (0, 3, 4, 5, 6, 7)] and checked.ledger.unvoted == 2


def test_several_scores_by_people_are_asked_about(tmp_path):
    records = [langfuse(i) | {"scores": [{"name": name, "value": 1, "source": "API"} for name in ("tone", "truth")]} for i in range(8)]
    with pytest.raises(KitError, match="several scores: tone, truth"):
        checked_of(tmp_path, records)


def test_an_edited_reply_is_what_the_user_wanted_to_read(tmp_path):
    records = [open_webui(i) for i in range(8)]
    records[1]["snapshot"]["chat"]["chat"]["history"]["messages"]["a2"] |= {"content": "Better.", "originalContent": SAID[1]}
    row = checked_of(tmp_path, records).rows([1])[0]
    assert (row["messages"][-1]["content"], row["label"]) == ("Better.", True)


def test_what_open_webui_folds_away_is_no_part_of_a_reply_and_images_are_refused(tmp_path):
    records = [open_webui(i) for i in range(8)]
    messages = [record["snapshot"]["chat"]["chat"]["history"]["messages"] for record in records]
    messages[0]["a2"]["content"] = f'<details type="reasoning" done="true" duration="3">\n<summary>Thought</summary>\n> hm\n</details>\n{SAID[0]}'
    messages[1]["u2"]["files"] = [{"type": "image", "url": "data:"}]
    messages[2]["a2"]["content"] = '<details type="tool_calls" done="true" name="stock"></details>\nThree.'
    checked = checked_of(tmp_path, records)
    assert checked.rows([0])[0]["messages"][-1]["content"] == SAID[0]
    assert checked.ledger.refused == {"images": 1, "words beside a call": 1}


@pytest.mark.parametrize("winner, labels", [("tie", []), ("tie (bothbad)", [False, False]), ("both_bad", [False, False]), ("model_b", [False, True])])
def test_an_arenas_vote_is_a_pair_two_rejections_or_nothing(winner, labels, tmp_path):
    checked = checked_of(tmp_path, [*(arena(i) for i in range(7)), {**arena(7), "winner": winner}])
    assert [row["label"] for row in checked.rows(range(14, len(checked.records)))] == labels
    assert checked.ledger.unvoted == 2 - len(labels)


@pytest.mark.parametrize("broken", [{}, [], None, "text", {"snapshot": {"chat": 5}, "meta": {"message_id": "x"}},
                                    {"snapshot": {"chat": {"chat": {"history": {"messages": {"a": None}}}}}, "meta": {"message_id": "a"}}])
def test_a_broken_record_of_an_export_is_refused_not_lost(broken, tmp_path):
    ledger = checked_of(tmp_path, [*(open_webui(i) for i in range(8)), broken]).ledger
    assert (ledger.rows_in, ledger.rows_out, sum(ledger.refused.values())) == (9, 8, 1)


def test_a_table_with_a_column_called_scores_is_no_export(tmp_path):
    rows = [{"instruction": ASKED[i], "output": SAID[i], "scores": [1, 2], "label": UP[i]} for i in range(8)]
    checked = checked_of(tmp_path, rows)
    assert checked.shape.name.startswith("prompt, reply") and checked.unused == {"scores": 8}


def test_datasets_saved_to_disk_and_arrow_files_are_read(tmp_path):
    import datasets

    rows = datasets.Dataset.from_list([{"prompt": ASKED[i], "completion": SAID[i], "label": UP[i]} for i in range(8)])
    rows.save_to_disk(tmp_path / "saved")
    datasets.DatasetDict({"train": rows}).save_to_disk(tmp_path / "dictionary")
    for place in ("saved", "dictionary", "saved/data-00000-of-00001.arrow"):
        assert check.check(find.find(str(tmp_path / place), tmp_path)).labels.tolist() == UP


def test_classes_are_read_by_their_names_and_not_by_their_numbers(tmp_path):
    import datasets

    rows = datasets.Dataset.from_list([{"prompt": ASKED[i], "completion": SAID[i], "label": int(not UP[i])} for i in range(8)])
    rows = rows.cast_column("label", datasets.ClassLabel(names=["good", "bad"]))
    rows.save_to_disk(tmp_path / "saved")
    rows.to_parquet(tmp_path / "rows.parquet")
    for place in ("saved", "rows.parquet"):
        assert check.check(find.find(str(tmp_path / place), tmp_path)).labels.tolist() == UP


def test_excel_is_read_or_the_package_to_install_is_named(tmp_path):
    path = tmp_path / "thumbs.xlsx"
    try:
        import openpyxl
    except ImportError:
        path.write_bytes(b"PK")
        with pytest.raises(KitError, match="pip install openpyxl"):
            check.check(find.find(str(path), tmp_path))
        return
    book = openpyxl.Workbook()
    book.create_sheet("notes").append(("written by me",))
    more = book.create_sheet("more")
    for row in [("Feedback of 2026",), (), ("prompt", None, "response", "rating"), (2026, datetime(2026, 1, 2), "Every_x000D_\nweek.", "up"), (),
                (1.5, True, 7, False)]:
        more.append(row)
    for row in [("prompt", "response", "rating"), *zip(ASKED, SAID, (thumb(i) for i in range(8)), strict=True)]:
        book.active.append(row)
    book.save(path)
    checked = check.check(find.find(str(path), tmp_path))
    assert checked.labels.tolist() == [*UP, True, False] and checked.unused == {"column 2": 2}
    assert [[turn["content"] for turn in row["messages"]] for row in checked.rows([8, 9])] == [["2026", "Every\r\nweek."], ["1.5", "7"]]
    more["B3"] = "prompt"
    book.save(path)
    with pytest.raises(KitError, match="sheet 'more', has the column 'prompt' twice"):
        check.check(find.find(str(path), tmp_path))


REPLIES = [{"turns": [{"role": "user", "content": ASKED[i]}], "reply": SAID[i]} for i in range(7)] + [
    {"turns": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi."},
               {"role": "user", "content": ASKED[7]}], "reply": SAID[7]}]


@pytest.mark.parametrize("kind", sample.KINDS)
def test_replies_written_for_rating_come_back_as_feedback_once_they_are_rated(kind, tmp_path):
    path = tmp_path / f"to_rate{kind}"
    assert "kto data prepare" in sample.write(REPLIES, path)
    if kind == ".csv":
        text = path.read_text(encoding="utf-8-sig")
        header, *rows = csv.reader(text.splitlines(keepends=True))
        for i, row in enumerate(rows):
            row[header.index("rating")] = thumb(i)
        content = [dict(zip(header, row, strict=True)) for row in rows]
    elif kind == ".json":
        content = [{"id": i, **task, "annotations": label_studio(i)["annotations"]} for i, task in enumerate(json.loads(path.read_text()))]
    else:
        fields = [json.loads(line) for line in path.read_text().splitlines()]
        content = [argilla(i) | {"fields": each, "responses": {"rating": [{"value": thumb(i), "user_id": "a"}]}} for i, each in enumerate(fields)]
    checked = checked_of(tmp_path, content, "rated.json")
    assert checked.labels.tolist() == UP
    assert [row["messages"][:-1] for row in checked.rows(range(8))] == [each["turns"] for each in REPLIES]
    with pytest.raises(KitError, match="no kind that is written"):
        sample.write(REPLIES, tmp_path / "to_rate.docx")


@pytest.mark.parametrize("way", ["comma utf-8-sig", "semicolon cp1252", "tab utf-16", "Label Studio JSON_MIN", "Argilla flattened"])
def test_ratings_come_back_however_the_tool_saved_them(way, tmp_path):
    path = tmp_path / "to_rate.csv"
    sample.write(REPLIES, path)
    rows = list(csv.DictReader(path.read_text(encoding="utf-8-sig").splitlines(keepends=True)))
    for i, row in enumerate(rows):
        row["rating"] = thumb(i)
        if way == "Label Studio JSON_MIN":
            row |= {"id": i, "vote": row.pop("rating"), "annotator": 1, "annotation_id": i, "lead_time": 3.2}
        if way == "Argilla flattened":
            row |= {"id": i, "status": "completed", "rating.responses": [row.pop("rating")], "rating.responses.users": ["u"]}
    path.write_text(json.dumps(rows))
    if (separator := {"comma": ",", "semicolon": ";", "tab": "\t"}.get(way.split()[0])) is not None:
        with path.open("w", encoding=way.split()[1], newline="") as file:
            writer = csv.DictWriter(file, rows[0], delimiter=separator)
            writer.writeheader()
            writer.writerows(rows)
    else:
        path = path.rename(tmp_path / "rated.json")
    checked = check.check(find.find(str(path), tmp_path))
    assert checked.labels.tolist() == UP
    assert [row["messages"][:-1] for row in checked.rows(range(8))] == [each["turns"] for each in REPLIES]


def langfuse_enriched(i):
    """Langfuse's newer export: observations_v2/ beside scores/; the root is judged, not the calls below it."""
    common = {"trace_id": f"t{i}", "type": "SPAN", "name": "chat", "trace_name": "chat"}
    return [{**common, "id": f"o{i}", "parent_observation_id": None, "input": json.dumps({"question": ASKED[i]}), "output": json.dumps({"answer": SAID[i]})},
            {**common, "id": f"p{i}", "parent_observation_id": f"o{i}", "type": "GENERATION", "input": "Rephrase.", "output": f"Call {i}"},
            {"id": f"s{i}", "trace_id": f"t{i}", "observation_id": None, "name": "thumbs", "value": thumb(i, 1, 0), "source": "API"}]


def test_the_root_observation_is_judged_by_its_traces_scores_and_another_by_those_that_name_it(tmp_path):
    records = [record for i in range(8) for record in langfuse_enriched(i)]
    checked = checked_of(tmp_path, records, "export.jsonl")
    assert [row["messages"] for row in checked.rows(range(8))] == [
        [{"role": "user", "content": asked}, {"role": "assistant", "content": said}] for asked, said in zip(ASKED, SAID, strict=True)]
    records[2]["observation_id"] = "p0"
    ledger = checked_of(tmp_path, records, "export.jsonl").ledger
    assert (ledger.rows_out, ledger.unvoted) == (8, 1), "the call is judged, and its root is not"


def test_of_several_questions_the_one_with_votes_counts_and_two_are_asked_about(tmp_path):
    records = [label_studio(i) for i in range(8)]
    for record in records:
        record["annotations"][0]["result"].append({"from_name": "language", "type": "choices", "value": {"choices": ["English"]}})
    assert checked_of(tmp_path, records).ledger.rows_out == 8
    records[0]["annotations"][0]["result"] = [{"from_name": "p", "type": "pairwise", "value": {"selected": "left"}}]
    assert checked_of(tmp_path, records).ledger.refused == {"label": 1}
    records = [argilla(i) for i in range(8)]
    for record in records:
        record["responses"] = {"comment": [{"value": "as I said"}], **record["responses"]}
    assert checked_of(tmp_path, records).ledger.rows_out == 8
    for record in records:
        record["responses"] = {name: [{"value": 3}] for name in ("tone", "truth")}
    with pytest.raises(KitError, match="several scores: tone, truth"):
        checked_of(tmp_path, records)


def test_a_file_beside_a_message_is_never_left_out_without_a_word(tmp_path):
    records = [open_webui(i) for i in range(8)]
    records[1]["snapshot"]["chat"]["chat"]["history"]["messages"]["u1"]["files"] = [{"type": "file", "name": "report.pdf"}]
    assert checked_of(tmp_path, records).ledger.refused == {"images": 1}


@pytest.mark.parametrize("words", [("A", "B"), ("left", "right"), ("response_a", "response_b"), ("Assistant A", "Assistant B")])
def test_a_winner_goes_by_many_names_and_another_one_is_refused(tmp_path, words):
    records = [arena(i) | {"winner": thumb(i, *words)} for i in range(8)]
    assert checked_of(tmp_path, records).labels.sum() == 8
    records[0]["winner"] = "both good"
    assert checked_of(tmp_path, records).ledger.unvoted == 2
    records[0]["winner"] = 1
    assert checked_of(tmp_path, records).ledger.refused == {"label": 1}
    records = [{"prompt": ASKED[i], "response_a": SAID[i], "response_b": f"No {i}.", "preference": thumb(i, *words)} for i in range(8)]
    assert checked_of(tmp_path, records).rows([0])[0]["label"] is True


def test_of_a_longer_dialogue_the_turn_that_was_judged_is_the_last(tmp_path):
    records = [arena(i) | {"turn": 1} for i in range(8)]
    for record in records:
        record["conversation_a"] = [*record["conversation_a"], {"role": "user", "content": "More."}, {"role": "assistant", "content": "No."}]
    assert checked_of(tmp_path, records).rows([0])[0]["messages"][-1]["content"] == SAID[0]


def test_langsmith_rows_whose_parts_are_json_text_are_read(tmp_path):
    records = [{key: json.dumps(value) if key in ("inputs", "outputs", "feedback_stats") else value for key, value in langsmith(i).items()}
               for i in range(8)]
    assert checked_of(tmp_path, records).ledger.rows_out == 8
