"""Files written whole, YAML and JSON read with one idea of a number."""

import json
import os

import pytest

from helpers import files
from helpers.errors import KitError


@pytest.mark.parametrize("text, value", [("5e-06", 5e-6), ("1e-8", 1e-8), ("1.0e-5", 1e-5), ("2E+3", 2000.0), ("-3e2", -300.0), ("5", 5), ("0.1", 0.1),
                                         ("1e", "1e"), ("e5", "e5"), ("12e4x", "12e4x"), ("'5e-06'", "5e-06"), ("true", True)])
def test_yaml_reads_numbers_as_json_and_people_write_them(text, value):
    found = files.parse_yaml(f"key: {text}")["key"]
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize("value", [5e-6, 1e-8, 1e-3, 1e22, 0.1, 3, True, None, "5e-06", "text"])
def test_what_is_dumped_as_yaml_is_read_back_the_same(value):
    assert files.parse_yaml(files.dump_yaml({"key": value})) == {"key": value}
    assert files.parse_yaml(json.dumps({"key": value})) == {"key": value}


@pytest.mark.parametrize("answers", [True, False])
def test_a_hub_that_does_not_answer_is_left_for_its_cache_for_a_while(monkeypatch, answers):
    from huggingface_hub import constants

    monkeypatch.setattr(files, "from_hub", lambda *_: (404, "") if answers else (0, "ConnectionError"))
    before, variables = constants.HF_HUB_OFFLINE, dict(os.environ)
    with files.hub_or_cache("org/name"):
        assert constants.HF_HUB_OFFLINE == (before or not answers)
    assert constants.HF_HUB_OFFLINE == before and dict(os.environ) == variables


def test_a_file_is_old_or_new_and_nothing_is_left_beside_it(tmp_path):
    target = tmp_path / "run.json"
    files.write(target, "old")
    with pytest.raises(KitError, match="could not write"):
        files.write(tmp_path / "run.json" / "below", "new")
    assert target.read_text() == "old" and [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_a_folder_takes_its_place_only_when_it_is_whole(tmp_path):
    target = tmp_path / "merged"
    with files.new_folder(target) as folder:
        (folder / "model").write_text("1")
    with pytest.raises(ZeroDivisionError), files.new_folder(target) as folder:
        (folder / "model").write_text("2")
        raise ZeroDivisionError
    assert (target / "model").read_text() == "1" and [path.name for path in tmp_path.iterdir()] == ["merged"]
    with files.new_folder(target) as folder:
        (folder / "model").write_text("3")
    assert (target / "model").read_text() == "3"
