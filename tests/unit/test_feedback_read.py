"""Files of every kind, and files that are broken in every way that was thought of."""

import csv
import io
import json
from types import SimpleNamespace

import pytest

from feedback import check, find, read
from feedback.records import Refused
from helpers.errors import KitError

ROWS = [{"prompt": f"Why {i}?", "completion": f"Because {i}.", "label": i % 3 != 0} for i in range(30)]


def values(path):
    return [value for _, value in read.rows(path, read.encoding_of(path))]


def written(path, rows=ROWS):
    """The rows in a file of the kind that its suffix says."""
    import pandas as pd

    if path.suffix == ".csv":
        pd.DataFrame(rows).to_csv(path, index=False)
    elif path.suffix == ".parquet":
        pd.DataFrame(rows).to_parquet(path, row_group_size=7)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=2))
    else:
        path.write_text("\n\n".join(json.dumps(row) for row in rows))
    return path


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv", ".parquet"])
def test_every_kind_of_file_gives_the_same_records(tmp_path, suffix):
    checked = check.check(find.find(str(written(tmp_path / f"data{suffix}")), tmp_path))
    made = checked.rows(range(30))
    assert [row["messages"][1]["content"] for row in made] == [row["completion"] for row in ROWS]
    assert [row["label"] for row in made] == [row["label"] for row in ROWS]
    assert checked.ledger.rows_in == checked.ledger.rows_out == 30


def test_a_folder_and_a_glob_are_read_in_order_of_their_names(tmp_path):
    for part, suffix in enumerate((".csv", ".jsonl", ".json")):
        written(tmp_path / f"part-{part}{suffix}", ROWS[part * 10 : part * 10 + 10])
    (tmp_path / "notes.txt").write_text("no data")
    for source in (tmp_path, tmp_path / "part-*"):
        checked = check.check(find.find(str(source), tmp_path / "downloads"))
        assert [row["messages"][0]["content"] for row in checked.rows(range(30))] == [row["prompt"] for row in ROWS]
    assert checked.where[10] == "part-1.jsonl:1"


def test_a_json_file_with_one_record_a_line_is_read_as_lines(tmp_path):
    (tmp_path / "data.json").write_text("\n".join(json.dumps(row) for row in ROWS))
    assert values(tmp_path / "data.json") == ROWS


def test_records_spread_over_lines_without_a_list_are_read(tmp_path):
    (tmp_path / "data.json").write_text("\n".join(json.dumps(row, indent=1) for row in ROWS))
    assert values(tmp_path / "data.json") == ROWS


def test_a_list_of_any_values_is_read_as_it_is(tmp_path):
    content = [1, -2.5e3, "a\\u00e9\"]", None, True, {"a": [[], {}]}, 1234567]
    path = tmp_path / "data.json"
    path.write_text(json.dumps(content, indent=1))
    assert values(path) == content


@pytest.mark.parametrize("text, place", [
    ('[\n {"a": 1},\n {"a": 2,}\n]', "line 3 column 10"),
    ('[{"a": 1} {"a": 2}]', "line 1 column 11"),
    ('[\n{"a": 1},\n', "line 3 column 1"),
    ('[{"a": "cut of', "line 1 column 8"),
    ('[1]\n[2]', "line 2 column 1"),
])
def test_broken_json_is_an_error_with_line_and_column(tmp_path, text, place):
    path = tmp_path / "data.json"
    path.write_text(text)
    with pytest.raises(KitError, match=f"data.json is broken JSON: .*{place}"):
        values(path)


def test_a_broken_line_is_a_refused_row_with_line_and_column(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join([json.dumps(ROWS[0]), json.dumps(ROWS[1])[:-9], json.dumps(ROWS[2])]))
    checked = check.check(find.find(str(path), tmp_path))
    assert (checked.ledger.rows_in, checked.ledger.rows_out) == (3, 2)
    assert checked.ledger.problems["broken JSON"][0][0] == "data.jsonl:2"
    assert "line 2 column" in checked.ledger.problems["broken JSON"][0][1]


def test_a_csv_row_with_too_many_values_is_refused_not_lost(tmp_path):
    path = tmp_path / "data.csv"
    path.write_text('prompt,response,rating\nWhy?,"Because, well.",1\nWhy?,a,b,c\n"How\nso?",Thus.,0\nlast,\n')
    found = dict(read.rows(path, "utf-8"))
    assert (found[2]["prompt"], found[4]["prompt"]) == ("Why?", "How\nso?")
    assert {number: row.kind for number, row in found.items() if isinstance(row, Refused)} == dict.fromkeys(
        (3, 5), "broken row")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv"])
def test_text_in_any_unicode_with_its_mark_is_read(tmp_path, encoding, suffix):
    rows = [{**row, "prompt": f"Größe {i}? 😀"} for i, row in enumerate(ROWS)]
    path = tmp_path / f"data{suffix}"
    plain = written(tmp_path / f"plain{suffix}", rows).read_text()
    path.write_bytes(plain.encode(encoding))
    assert [row["prompt"] for row in values(path)] == [row["prompt"] for row in rows]


def test_a_single_line_of_50_mb_is_a_row_like_any_other(tmp_path):
    path = tmp_path / "data.jsonl"
    big = {"prompt": "Why?", "completion": "x" * 50_000_000, "label": True}
    path.write_text(f"{json.dumps(ROWS[0])}\n{json.dumps(big)}\n{json.dumps(ROWS[1])}\n")
    checked = check.check(find.find(str(path), tmp_path))
    assert checked.ledger.rows_out == 3
    assert len(checked.lines([1])[0]) > 50_000_000


@pytest.mark.parametrize("suffix, content", [
    (".parquet", b"PAR1 but not really"), (".parquet", b""), (".csv", b""), (".csv", b'a,b\n"1,2\n'), (".jsonl", b""),
    (".jsonl", b"\n\n"), (".jsonl", b"\x00\x01"), (".json", b""), (".json", b"[]"), (".json", b"[" * 100_000),
])
def test_an_empty_or_foreign_file_ends_in_one_clear_error(tmp_path, suffix, content):
    path = tmp_path / f"data{suffix}"
    path.write_bytes(content)
    with pytest.raises(KitError):
        check.check(find.find(str(path), tmp_path))


def test_a_folder_without_data_is_an_error_that_says_so(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "readme.txt").write_text("nothing here")
    with pytest.raises(KitError, match="there is no data"):
        find.find(str(tmp_path / "empty"), tmp_path)


def test_a_dataset_that_is_not_there_is_an_error_with_the_names_there_are(tmp_path):
    with pytest.raises(KitError, match="did you mean 'short_answers'"):
        find.find("short_answer", tmp_path)
    with pytest.raises(KitError, match="there is no data that can be read"):
        (tmp_path / "data.txt").write_text("x")
        find.find(str(tmp_path / "data.txt"), tmp_path)


def test_two_files_of_one_name_are_told_apart(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        written(tmp_path / folder / "data.jsonl")
    assert find.find(str(tmp_path), tmp_path).names == ["a/data.jsonl", "b/data.jsonl"]


def read_all(path, data):
    path.write_bytes(data)
    return values(path)


THUMBS = [{"prompt": f"{i}: how sweet is süß, the German word?", "response": f"{i}. As sweet as can be, ¿qué? It costs 5 € here", "rating": ["down", "up"][i % 2]} for i in range(6)]


def table(rows, separator=","):
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], delimiter=separator)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


@pytest.mark.parametrize("text", [
    table(THUMBS, ";").replace("rating", "rating (a,b,c,d,e)"), table(THUMBS, "\t").replace("prompt", "prompt (all, whole)"), table(THUMBS, "|"),
    table(THUMBS).replace("\r\n", "\r"), table(THUMBS).replace("\r\n", "\n", 3), table(THUMBS).replace("\r\n", "\r\n\r\n"),
    "sep=;\n" + table(THUMBS, ";"), "\ufeff" + table(THUMBS)])
def test_tables_are_parted_as_their_rows_are_whatever_stands_in_the_header(tmp_path, text):
    found = read_all(tmp_path / "thumbs.csv", text.encode())
    assert [list(row.values()) for row in found] == [list(row.values()) for row in THUMBS]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"])
@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.json"])
def test_every_encoding_gives_the_same_rows(tmp_path, encoding, name):
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in THUMBS)
    text = {"a.csv": table(THUMBS), "a.jsonl": lines, "a.json": json.dumps(THUMBS, ensure_ascii=False)}[name]
    assert read_all(tmp_path / name, text.encode(encoding)) == THUMBS


@pytest.mark.parametrize("encoding, word", [("cp1250", "łąka żółć"), ("mac_roman", "süß Übung"), ("cp850", "süß schön"), ("cp1251", "Как часто поливать")])
def test_other_encodings_of_one_byte_are_not_taken_for_windows_1252(tmp_path, encoding, word):
    with pytest.raises(KitError, match="iconv -f"):
        read_all(tmp_path / "a.csv", table([{"prompt": word, "response": word, "rating": 1}]).encode(encoding))


@pytest.mark.parametrize("value", [
    {"thumbs": THUMBS, "count": 6}, {"export": {"rows": THUMBS}}, {"conversations": THUMBS, "meta": {"a": 1}}, {"data": THUMBS}])
def test_a_list_of_records_inside_an_object_is_found_under_any_name(tmp_path, value):
    assert read_all(tmp_path / "a.json", json.dumps(value).encode()) == THUMBS


def test_a_list_that_is_part_of_one_record_stays_in_it(tmp_path):
    record = {"messages": [{"role": "user", "content": "a"}], "label": True}
    assert read_all(tmp_path / "a.json", json.dumps(record).encode()) == [record]


def test_objects_over_many_lines_that_follow_one_another_are_rows(tmp_path):
    assert read_all(tmp_path / "a.jsonl", "\n".join(json.dumps(row, indent=1) for row in THUMBS).encode()) == THUMBS


@pytest.mark.parametrize("start, words", [(b"\x1f\x8b\x08\0", "gzip"), (b"PK\x03\x04", "Excel"), (b"PAR1", "Parquet"), (b"<!DOCTYPE html>", "web page"),
                                          (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull")])
def test_a_file_of_another_kind_than_its_name_says_is_named(tmp_path, start, words):
    for name in ("a.csv", "a.json"):
        with pytest.raises(KitError, match=words):
            read_all(tmp_path / name, start + b"\x00\x01 and more")


def test_what_would_not_fit_into_memory_is_refused_with_the_figures_before_it_is_read(tmp_path, monkeypatch):
    import psutil

    lines, whole = tmp_path / "a.jsonl", tmp_path / "a.json"
    lines.write_text("\n".join(map(json.dumps, ROWS * 100)))
    whole.write_text(json.dumps({"data": ROWS * 100}))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=lines.stat().st_size * 3))
    assert check.check(find.find(str(lines), tmp_path)).ledger.rows_out == 3000
    with pytest.raises(KitError, match=r"needs about 0\.\d GB of memory, 0\.\d GB are free"):
        check.check(find.find(str(whole), tmp_path))
