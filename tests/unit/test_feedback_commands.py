"""`kto data …`: the dataset room from a terminal."""

import json

import pytest
from typer.testing import CliRunner

from helpers import files
from kto.cli import app

THUMBS = [
    {"prompt": "1 + 1?", "response": "2", "rating": "up"},
    {"prompt": "1 + 1?", "response": "3", "rating": "down"},
    {"prompt": "2 + 2?", "response": "4", "rating": "up"},
    {"prompt": "2 + 2?", "response": "5", "rating": "down"},
]


def ask(*arguments):
    return CliRunner().invoke(app, ["data", *map(str, arguments)])


@pytest.fixture
def feedback(tmp_path):
    def written(rows):
        path = tmp_path / "thumbs.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)))
        return path

    return written


def test_check_exits_with_1_where_rows_are_refused_and_writes_every_problem_to_the_report(feedback, tmp_path):
    path = feedback([*THUMBS, {"prompt": "3 + 3?", "response": "", "rating": "up"}])
    done = ask("check", path, "--report", tmp_path / "problems.jsonl", "--json")
    told = json.loads(done.stdout)
    assert done.exit_code == 1 and (told["rows in"], told["rows out"], told["refused"]) == (5, 4, {"empty reply": 1})
    kinds = [json.loads(line)["kind"] for line in (tmp_path / "problems.jsonl").read_text().splitlines()]
    assert kinds.count("empty reply") == 1
    assert ask("check", path, "--strict").exit_code == 2


def test_check_is_content_with_rows_that_can_all_be_used_and_shows_the_account(feedback):
    done = ask("check", feedback(THUMBS))
    assert done.exit_code == 0 and "4 rows in = 4 rows out + 0 refused" in done.stdout


def test_prepare_registers_both_parts_in_the_storage(feedback, tmp_path):
    done = ask("prepare", feedback(THUMBS), "--name", "sums", "--storage", tmp_path / "storage", "--heldout", 0.5)
    told = json.loads(done.stdout)
    known = files.registry(tmp_path / "storage" / "datasets")
    assert told["name"].startswith("sums_") and {told["name"], told["heldout_name"]} == set(known)


def test_check_tells_programs_how_labels_were_read_what_is_unused_and_who_did_not_vote(feedback):
    rows = [{**row, "rating": 1 + i % 10, "comment": "x" * (i % 2)} for i, row in enumerate(THUMBS * 10)] + [{**THUMBS[0], "rating": None}]
    told = json.loads(ask("check", feedback(rows), "--json").stdout)
    assert {"rows in", "rows out", "accepted", "rejected", "refused", "noted", "sha256", "shape"} < set(told)
    assert told["scale"] == "ratings 1 to 10; 7 and more are accepted" and told["unused"] == {"comment": 20} and told["unvoted"] == 1
    plain = ask("check", feedback(rows)).stdout
    assert "labels: ratings 1 to 10; 7 and more are accepted" in plain and "unused columns: comment (20 rows)" in plain
    assert "label from rating" in plain and "1 that nobody voted on" in plain


def test_columns_scale_and_threshold_are_options_of_both_commands(feedback, tmp_path):
    rows = [{"frage": f"{i}?", "antwort": f"{i}.", "data": {"note": i % 4}} for i in range(40)]
    path, columns = feedback(rows), "prompt=frage,reply=antwort,label=data.note"
    done = ask("check", path, "--columns", columns)
    assert done.exit_code == 2 and "add --scale=0-3 --accept-from=2" in done.stderr and done.stdout == ""
    told = json.loads(ask("check", path, "--columns", columns, "--scale=0-3", "--accept-from=2", "--json").stdout)
    assert (told["accepted"], told["rejected"]) == (20, 20)
    done = ask("prepare", path, "--columns", columns, "--accept-from=3", "--storage", tmp_path / "storage")
    facts = json.loads(done.stdout)
    assert facts["accepted"] + facts["heldout_accepted"] == 10 and "3 and more are accepted" in facts["scale"]


def test_prepare_of_bad_input_ends_with_status_2_and_writes_nothing(feedback, tmp_path):
    rows = THUMBS * 5 + [{"prompt": "3 + 3?", "response": "", "rating": "up"}] * 5
    done = ask("prepare", feedback(rows), "--storage", tmp_path / "storage")
    assert done.exit_code == 2 and "20% of the rows are refused" in done.stderr and not list((tmp_path / "storage").rglob("*.json*"))
    assert ask("prepare", feedback(rows), "--storage", tmp_path / "storage", "--refuse-share", 0.3).exit_code == 0


@pytest.mark.parametrize(("option", "value", "says"), [("--name", "../x", "'../x' is no name for a dataset"), ("--seed", -1, "seed is -1"),
                                                      ("--storage", "/dev/null/x", "could not write the dataset to /dev/null/x/datasets")])
def test_a_value_that_cannot_be_meant_is_refused_by_name(feedback, tmp_path, option, value, says):
    done = ask("prepare", feedback(THUMBS), "--storage", tmp_path / "storage", "--heldout", 0.5, option, value)
    assert done.exit_code == 2 and says in done.output and not (tmp_path / "storage").exists()


@pytest.mark.parametrize("command", ["check", "prepare"])
def test_feedback_that_is_not_there_is_one_message_and_status_2(command, tmp_path):
    done = ask(command, tmp_path / "none.jsonl")
    assert done.exit_code == 2 and "there is no dataset" in done.stderr and done.stdout == ""
