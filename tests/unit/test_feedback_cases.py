"""What people really have, and what becomes of it; tests/fixtures/feedback/ holds the files, other inputs of their kinds are made here."""

import gzip
import json
import shutil
from pathlib import Path

import pytest

from feedback import check, find, read
from helpers.errors import KitError

FIXTURES = Path(__file__).parents[1] / "fixtures" / "feedback"
CACTUS = "Every two to three weeks in summer, once a month in winter."


def checked_file(path, **how):
    return check.check(find.find(str(path), path.parent / "downloads"), **how)


def checked_case(name, tmp_path, **how):
    return checked_file(Path(shutil.copy(FIXTURES / name, tmp_path)), **how)


def checked_rows(tmp_path, rows, **how):
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return checked_file(path, **how)


WHOLE = {  # file -> rows, accepted, scale, unused columns
    "ratings_1_to_10.csv": (32, 14, "ratings 1 to 10; 7 and more are accepted", {}),
    "trl_as_csv.csv": (32, 16, "true and false, or words for them", {}),
    "pairs_repr.csv": (32, 16, "true and false, or words for them", {}),
    "alpaca_kto_history.json": (32, 16, "true and false, or words for them", {}),
    "hh_style_pairs.jsonl": (32, 16, "true and false, or words for them", {}),
    "chatml_baked_in.jsonl": (32, 16, "true and false, or words for them", {"status": 16}),
    "comment_column_called_feedback.csv": (32, 16, "true and false, or words for them", {"feedback": 32}),
    "input_is_the_prompt_pairs.jsonl": (32, 16, "true and false, or words for them",
                                        {"generations": 16, "order": 16, "rating": 16, "status": 16}),
    "annotators_flattened.jsonl": (32, 16, "ratings 1 to 5; 4 and more are accepted", {"rating.responses.users": 32, "status": 32}),
    "semicolons_utf8_bom.csv": (8, 4, "0 and 1; 1 is accepted", {}),
    "commas_windows_1252.csv": (4, 2, "0 and 1; 1 is accepted", {}),
    "parallel_calls.jsonl": (12, 6, "true and false, or words for them", {}),
    "postgres_booleans.csv": (32, 16, "true and false, or words for them", {}),
    "metadata_nan.jsonl": (32, 16, "true and false, or words for them", {"toxicity": 16}),
    "metadata_nan_array.json": (32, 16, "true and false, or words for them", {"toxicity": 16}),
}


@pytest.mark.parametrize("name", WHOLE)
def test_every_row_is_used_with_its_label_and_what_is_not_used_is_named(name, tmp_path):
    rows, accepted, scale, unused = WHOLE[name]
    checked = checked_case(name, tmp_path)
    facts = checked.facts()
    assert (facts["rows in"], facts["rows out"], facts["accepted"], facts["unvoted"]) == (rows, rows, accepted, 0)
    assert facts["scale"] == scale and facts["unused"] == unused and not checked.ledger.refused
    text = json.dumps(checked.rows(range(rows)), ensure_ascii=False)
    assert not any(mark in text for mark in ("<|im_", "Human:", "{'role'", '{\\"role\\"', "\x92", "\ufffd"))
    assert unused.keys() <= set(checked.text().replace(",", " ").split()), "a reader is told too"


def test_a_label_in_a_case_is_that_of_its_own_reply(tmp_path):
    for name in ("trl_as_csv.csv", "pairs_repr.csv", "hh_style_pairs.jsonl", "chatml_baked_in.jsonl", "alpaca_kto_history.json",
                 "open_webui_feedback_export.json", "postgres_booleans.csv", "annotators_flattened.jsonl", "input_is_the_prompt_pairs.jsonl"):
        first, second = checked_case(name, tmp_path).rows([0, 1])
        assert (first["messages"][-1]["content"], first["label"]) == (CACTUS, True), name
        assert second["label"] is False and second["messages"][-1]["content"].startswith("Watering is a topic"), name
        assert first["messages"][:-1] == second["messages"][:-1] and "cactus" in first["messages"][-2]["content"], name


def test_earlier_turns_come_first_and_a_transcript_is_split(tmp_path):
    row = checked_case("alpaca_kto_history.json", tmp_path).rows([0])[0]
    assert [turn["role"] for turn in row["messages"]] == ["system", "user", "assistant", "user", "assistant", "user", "assistant"]
    assert row["messages"][1]["content"] == "I have a question about my household."
    row = checked_case("hh_style_pairs.jsonl", tmp_path).rows([0])[0]
    assert [turn["content"] for turn in row["messages"][:2]] == ["Hello, can you help me?", "Yes, what is it?"]
    row = checked_case("chatml_baked_in.jsonl", tmp_path).rows([0])[0]
    assert row["messages"][0] == {"role": "system", "content": "You help at home."}


def test_json_and_json_lines_of_the_same_rows_give_the_same_records(tmp_path):
    lines, array = (checked_case(name, tmp_path) for name in ("metadata_nan.jsonl", "metadata_nan_array.json"))
    assert lines.records == array.records and lines.unused == array.unused


def test_windows_1252_is_read_and_named(tmp_path):
    checked = checked_case("commas_windows_1252.csv", tmp_path)
    assert checked.rows([0])[0]["messages"][1]["content"] == "Yes – log in and press “Renew”; it’s free."
    assert checked.ledger.problems["encoding"] == [("commas_windows_1252.csv", "read as Windows-1252")]


def test_results_of_parallel_calls_become_one_observation(tmp_path):
    turns = checked_case("parallel_calls.jsonl", tmp_path).rows([0])[0]["messages"]
    assert [turn["role"] for turn in turns] == ["user", "function_call", "observation", "assistant"]
    assert len(json.loads(turns[1]["content"])) == 2 and json.loads(turns[2]["content"]) == [{"count": 3}, {"count": 9}]


@pytest.mark.parametrize("name, kind, count", [("kto_images.jsonl", "images", 32), ("words_beside_a_call.jsonl", "words beside a call", 12)])
def test_what_cannot_be_trained_is_refused_by_its_name(name, kind, count, tmp_path):
    with pytest.raises(KitError, match=rf"{count} rows in = 0 rows out \+ {count} refused[\s\S]*{kind}: {count}"):
        checked_case(name, tmp_path)


def test_nobody_voted_is_counted_apart_and_is_no_fault(tmp_path):
    checked = checked_case("mostly_no_vote.csv", tmp_path)
    assert (checked.ledger.rows_in, checked.ledger.rows_out, checked.ledger.unvoted, checked.ledger.refused) == (32, 11, 21, {})
    assert checked.ledger.account == "32 rows in = 11 rows out + 0 refused + 21 that nobody voted on"


def test_open_webuis_export_is_read(tmp_path):
    checked = checked_case("open_webui_feedback_export.json", tmp_path)
    assert checked.facts()["accepted"] == 4 and checked.shape.name.startswith("Open WebUI")
    assert {"data.reason", "meta.tags", "created_at"} <= set(checked.unused)


Q, GOOD, BAD = "How often should I water a cactus?", "Every two weeks.", "Who knows."
TEMPLATES = {
    "ChatML": ("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n{q}<|im_end|>\n<|im_start|>assistant\n", "{a}<|im_end|>"),
    "Llama 2": ("<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\n{q} [/INST]", " {a} </s>"),
    "Llama 3": ("<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n{q}"
                "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n", "{a}<|eot_id|>"),
    "Gemma": ("<bos><start_of_turn>user\n{q}<end_of_turn>\n<start_of_turn>model\n", "{a}<end_of_turn>"),
    "Zephyr": ("<|system|>\nBe brief.</s>\n<|user|>\n{q}</s>\n<|assistant|>\n", "{a}</s>"),
    "Phi": ("<|user|>\n{q}<|end|>\n<|assistant|>\n", "{a}<|end|>"),
    "Mistral": ("[INST] {q} [/INST]", "{a}</s>"),
    "Alpaca": ("Below is an instruction. Write a response.\n\n### Instruction:\n{q}\n\n### Response:\n", "{a}"),
    "Vicuna": ("Be brief. USER: {q} ASSISTANT:", "{a}</s>"),
    "Human and Assistant": ("\n\nHuman: {q}\n\nAssistant:", " {a}"),
    "User and AI": ("User: {q}\nAI:", "{a}"),
    "bold speakers": ("**User:** {q}\n\n**Assistant:**", "{a}"),
    "plain": ("{q}", "{a}"),
    "JSON turns": ('[{{"role": "user", "content": "{q}"}}]', '[{{"role": "assistant", "content": "{a}"}}]'),
    "Python turns": ("[{{'role': 'user', 'content': '{q}'}}]", "{{'role': 'assistant', 'content': '{a}'}}"),
    "Python tuples": ("[('human', '{q}')]", "[('ai', '{a}')]"),
    "from and value": ('[{{"from": "human", "value": "{q}"}}]', '[{{"from": "gpt", "value": "{a}"}}]'),
}


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("kind", ["labels", "pairs", "whole pairs"])
def test_turns_inside_one_text_are_recovered_whatever_the_template(name, kind, tmp_path):
    prompt, reply = TEMPLATES[name]
    asked, good, bad = prompt.format(q=Q), reply.format(a=GOOD), reply.format(a=BAD)
    if kind == "labels":
        rows = [{"prompt": asked, "completion": good, "label": True}, {"prompt": asked, "completion": bad, "label": False}]
    elif kind == "pairs":
        rows = [{"prompt": asked, "chosen": good, "rejected": bad}]
    elif name in ("plain",) or "turns" in name or "tuples" in name or "value" in name:
        return
    elif name in ("Alpaca", "Vicuna"):  # a text that begins with other words may be a reply that ran on
        with pytest.raises(KitError, match="transcript: 2"):
            checked_rows(tmp_path, [{"chosen": asked + good, "rejected": asked + bad}])
        return
    else:
        rows = [{"chosen": asked + good, "rejected": asked + bad}]
    for row, said in zip(checked_rows(tmp_path, rows).rows([0, 1]), (GOOD, BAD), strict=True):
        turns = [turn for turn in row["messages"] if turn["role"] != "system"]
        assert turns == [{"role": "user", "content": Q}, {"role": "assistant", "content": said}]


PLAIN = [f"row {i}" for i in range(60)]


@pytest.mark.parametrize("reply, kind", [
    ("Yes.\n\nHuman: And then?\n\nAssistant: No.", "transcript"), ("Yes.<|im_end|>\n<|im_start|>user\nAnd?", "chat template"),
    ("Yes. [INST] And? [/INST] No.", "chat template"), ("[{'role': 'assistant' 'content': 'numpy has no commas'}\n {'role': 'user'}]", "turns as text"),
    ("Yes <|eot_id|> no", "chat template"), ("he said \x93yes\x94", "control characters"), ("it\x92s", "control characters"),
])
def test_turns_that_cannot_be_told_apart_and_foreign_marks_are_refused_by_name(reply, kind, tmp_path):
    rows = [{"prompt": f"{i}?", "response": f"{i}.", "vote": i % 2 == 0} for i in range(60)] + [{"prompt": "Q?", "response": reply, "vote": True}]
    assert checked_rows(tmp_path, rows).ledger.refused == {kind: 1}


@pytest.mark.parametrize("reply", [
    "[1, 2, 3]", '{"name": "x"}', "(maybe)", "Use a list: [{'a': 1}]", "Ratio a:b", "See the AI: it is new", "### Heading\n\ntext", "a </s> b",
    "The roles are user: admin", "x <video> y", "if a | b: pass", "- item\n- User: admin",
])
def test_ordinary_text_is_left_as_it_is(reply, tmp_path):
    rows = [{"prompt": "Q?", "response": reply, "vote": True}, {"prompt": "Q?", "response": "No.", "vote": False}]
    assert checked_rows(tmp_path, rows).rows([0])[0]["messages"][1]["content"] == reply


TABLE = [("Can I renew online?", "Yes, “of course” – it’s free; log in.", "1"), ("Can I?", "Don’t know…", "0")] * 3


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "cp1252"])
@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".tsv"])
def test_separators_and_encodings_give_the_same_rows(separator, encoding, suffix, tmp_path):
    lines = [separator.join(("prompt", " Response ", "rating "))] + [separator.join(f'"{cell}"' for cell in row) for row in TABLE]
    data = ("\r\n".join(lines) + "\r\n").encode(encoding)
    path = tmp_path / f"thumbs{suffix}"
    path.write_bytes(gzip.compress(data) if suffix.endswith("gz") else data)
    checked = checked_file(path)
    assert [row["messages"][1]["content"] for row in checked.rows([0, 1])] == [row[1] for row in TABLE[:2]]
    assert checked.labels.tolist() == [True, False] * 3 and checked.source.name == "thumbs"


@pytest.mark.parametrize("encoding, text", [("cp1251", "Как часто поливать кактус"), ("shift_jis", "サボテンの水やりはどのくらい"), ("gbk", "仙人掌多久浇一次水")])
def test_other_encodings_are_refused_with_a_command_and_never_read_as_western(encoding, text, tmp_path):
    path = tmp_path / "thumbs.csv"
    path.write_bytes(f"prompt,response,rating\n{text},{text},1\n{text},{text}!,0\n".encode(encoding))
    with pytest.raises(KitError, match="neither UTF-8 nor Windows-1252[\\s\\S]*iconv -f"):
        checked_file(path)


def test_utf8_with_one_broken_byte_is_not_read_as_windows_1252(tmp_path):
    path = tmp_path / "thumbs.csv"
    path.write_bytes("prompt,response,rating\nGröße für Füße?,Größer.,1\nGröße?,Kleiner.,0\n".encode() + b"x,y\xff,1\n")
    with pytest.raises(KitError, match="line 4 has the byte 0xff"):
        checked_file(path)


def test_a_quote_that_never_closes_loses_no_line_unseen(tmp_path):
    path = tmp_path / "thumbs.csv"
    path.write_text("prompt,response,rating\na,b,1\nc,d,0\ne,\"f,1\n" + "g,h,0\n" * 20)
    ledger = checked_file(path).ledger
    assert (ledger.rows_in, ledger.rows_out, ledger.refused) == (23, 2, {"broken row": 21})


def test_columns_scale_and_threshold_can_be_given_by_hand_and_lead_into_nested_data(tmp_path):
    rows = [{"in": {"text": f"{i}?"}, "out": {"text": f"{i}."}, "data": {"rating": i % 5, "by": "me"}, "before": [["Hi", "Hello"]]} for i in range(1, 9)]
    given = {"columns": "prompt=in.text,reply=out.text,label=data.rating,history=before", "accept_from": 3}
    checked = checked_rows(tmp_path, rows, **given)
    assert checked.rows([0])[0]["messages"] == [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"},
                                                {"role": "user", "content": "1?"}, {"role": "assistant", "content": "1."}]
    assert checked.unused == {"data.by": 8} and checked.shape.scale.words == "ratings 0 to 4; 3 and more are accepted"
    for wrong, words in (("prompt=inn.text,reply=out.text", "the columns are: in"), ("promt=in", "did you mean 'prompt'"), ("prompt", "PART=COLUMN")):
        with pytest.raises(KitError, match=words):
            checked_rows(tmp_path, rows, columns=wrong)


def test_an_error_prints_the_option_to_add_and_that_option_works(tmp_path):
    rows = [{"kysymys": f"{i}?", "vastaus": f"{i}.", "peukalo": "hoch" if i % 2 else "runter", "was_good": i % 2} for i in range(6)]
    with pytest.raises(KitError, match=r"kysymys, vastaus, peukalo, was_good[\s\S]*add --columns prompt=…,reply=…,label=…"):
        checked_rows(tmp_path, rows)
    assert checked_rows(tmp_path, rows, columns="prompt=kysymys,reply=vastaus,label=was_good").ledger.rows_out == 6


def test_prepare_ends_with_an_error_and_writes_nothing_where_too_much_is_refused(tmp_path):
    path = tmp_path / "data.jsonl"
    rows = [{"prompt": f"{i}?", "response": f"{i}.", "vote": ["up", "down"][i % 2]} for i in range(90)]
    path.write_text("\n".join(map(json.dumps, rows + [{"prompt": f"{i}?", "response": "", "vote": "up"} for i in range(10)])))
    with pytest.raises(KitError, match=r"10% of the rows are refused: [\s\S]*--refuse-share"):
        check.prepare(str(path), tmp_path / "datasets")
    assert not list((tmp_path / "datasets").glob("*.json*"))
    assert check.prepare(str(path), tmp_path / "datasets", refuse_share=0.2)["refused"] == {"empty reply": 10}


def test_a_message_about_labels_does_not_hide_refused_rows(tmp_path):
    rows = [{"prompt": f"{i}?", "response": "yes" if i % 2 else "", "vote": i % 2 == 1} for i in range(10)]
    with pytest.raises(KitError, match=r"every usable row is accepted[\s\S]*10 rows in = 5 rows out \+ 5 refused[\s\S]*empty reply: 5"):
        checked_rows(tmp_path, rows)


def test_memory_that_would_run_out_is_a_refusal_with_the_figure(tmp_path, monkeypatch):
    import psutil

    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 100}))
    with pytest.raises(KitError, match="needs about 0.0 GB of memory"):
        checked_rows(tmp_path, [{"prompt": "a", "response": "b" * 200, "vote": True}])


def test_of_two_columns_with_votes_the_thumbs_are_taken_and_of_two_with_ratings_none_is_guessed(tmp_path):
    rows = [{"prompt": f"{i}?", "response": f"{i}.", "label": i % 5, "vote": "up" if i % 2 else "down"} for i in range(20)]
    checked = checked_rows(tmp_path, rows)
    assert checked.facts()["accepted"] == 10 and checked.unused == {"label": 20}
    rows = [{"prompt": f"{i}?", "response": f"{i}.", "rating": 1 + i % 5, "score": i / 20} for i in range(20)]
    with pytest.raises(KitError, match="several columns hold ratings: rating, score[\\s\\S]*add --columns label=rating, or --columns label=score"):
        checked_rows(tmp_path, rows)
    assert checked_rows(tmp_path, rows, columns="label=rating").unused == {"score": 20}


def test_votes_for_and_against_in_columns_of_their_own_are_counted_against_each_other(tmp_path):
    rows = [{"prompt": f"{i}?", "response": f"{i}.", "thumbs_up": int(i % 4 == 0), "thumbs_down": int(i % 4 == 1)} for i in range(20)]
    checked = checked_rows(tmp_path, [*rows, {"prompt": "x", "response": "y", "thumbs_up": 2, "thumbs_down": 2}])
    assert (checked.facts()["accepted"], checked.facts()["rejected"], checked.ledger.unvoted) == (5, 5, 10)
    assert checked.ledger.refused == {"annotators disagree": 1}
    assert checked.shape.scale.words == "more votes in thumbs_up than in thumbs_down are accepted"


def test_keys_of_turns_that_are_not_read_are_named_and_nested_votes_found(tmp_path):
    rows = [{"messages": [{"role": "user", "content": f"{i}?", "weight": 0}, {"role": "assistant", "content": f"{i}.", "reasoning_content": "hm"}],
             "metadata": {"rating": "good" if i % 2 else "bad", "by": "me"}} for i in range(8)]
    checked = checked_rows(tmp_path, rows)
    assert checked.facts()["accepted"] == 4
    assert checked.unused == {"messages[].weight": 8, "messages[].reasoning_content": 8, "metadata.by": 8}


def test_a_frame_as_pandas_writes_it_to_json_is_read(tmp_path):
    import pandas as pd

    path = tmp_path / "frame.json"
    frame = pd.DataFrame({"prompt": [f"{i}?" for i in range(9)], "response": [f"{i}." for i in range(9)], "vote": [i % 2 for i in range(9)]})
    for orient in ("columns", "records", "index", "split", "table"):
        frame.to_json(path, orient=orient)
        assert checked_file(path).ledger.rows_out == 9
        three = frame.head(3).to_json(orient=orient)  # as many rows as columns
        path.write_text(three)
        assert checked_file(path).ledger.rows_out == 3 and checked_file(path).facts()["accepted"] == 1, orient
    frame.to_json(tmp_path / "lines.jsonl", orient="records", lines=True)
    assert checked_file(tmp_path / "lines.jsonl").ledger.rows_out == 9


def test_a_datasets_columns_and_the_hubs_page_of_rows_are_read_as_rows(tmp_path):
    path, columns = tmp_path / "some.json", {"prompt": ["1?", "2?", "3?"], "completion": ["1.", "2.", "3."], "label": [True, True, False]}
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    for content in (columns, {"features": [], "rows": [{"row_idx": place, "row": row} for place, row in enumerate(rows)]}):
        path.write_text(json.dumps(content))
        assert checked_file(path).ledger.rows_out == 3 and checked_file(path).facts()["accepted"] == 2
    # Records below one another may have lists of one length in each; a dialogue and two people's votes are one record.
    turns = [{"role": "user", "content": "1?"}, {"role": "assistant", "content": "1."}]
    path.write_text("\n".join(json.dumps({"messages": turns, "label": [vote, vote]}) for vote in (1, 0, 1)))
    assert checked_file(path).ledger.rows_out == 3
    path.write_text(json.dumps({"messages": turns, "label": [1, 1]}))
    assert list(read.rows(path, "utf-8")) == [(1, {"messages": turns, "label": [1, 1]})]
    path.write_text(json.dumps({"columns": [["a", "prompt"], ["a", "label"]], "index": [0], "data": [["1?", 1]]}))
    with pytest.raises(KitError):
        checked_file(path)
