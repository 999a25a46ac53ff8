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


@pytest.mark.parametrize("command", ["check", "prepare"])
def test_feedback_that_is_not_there_is_one_message_and_status_2(command, tmp_path):
    done = ask(command, tmp_path / "none.jsonl")
    assert done.exit_code == 2 and "there is no dataset" in done.stderr and done.stdout == ""
