"""Profiles and run folders."""

import json
import os
import subprocess
import sys

import pytest

from helpers import profiles, runs
from helpers.errors import KitError

HEAVY = ("torch", "ray", "transformers", "mlflow", "llamafactory")
SERVES = {"serving.multiplex"}
"""What Ray Serve runs: its decorators need ray at import time. serving.server imports it once it is to serve."""


def test_importing_every_room_imports_no_heavy_library():
    files = [path for package in ("helpers", "feedback", "kto", "serving") for path in (profiles.ROOT / package).glob("*.py")]
    rooms = {f"{path.parent.name}.{path.stem}" for path in files if not path.stem.startswith("__")}
    assert SERVES < rooms and {"helpers.launch", "feedback.check", "kto.cli", "serving.server"} < rooms
    code = f"import sys, {', '.join(sorted(rooms - SERVES))}; print(*[name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=profiles.ROOT)
    assert done.stdout.split() == []


def test_a_wrong_profile_names_the_known_ones_and_the_closest():
    with pytest.raises(KitError) as error:
        profiles.load("locl")
    assert "did you mean 'local'" in str(error.value) and "anyscale" in str(error.value)


def test_a_profile_of_ones_own_is_a_yaml_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "storage: /data/kto\ntrain_config: kto_lora.yaml\nmodel_name_or_path: a/b\ntemplate: llama3\n"
        "dataset: short_answers\noverrides: {lora_rank: 16}\n"
    )
    mine = profiles.load(str(path))
    assert (mine.overrides, mine.gpu) == ({"lora_rank": 16}, True)
    assert profiles.load(mine.name) == mine


@pytest.mark.parametrize(("text", "says"), [("storage: [", "is malformed YAML"), ("just text", "holds a str"), ("", "is empty"),
                                            ("storage: x\nunknown_key: 1\n", "unknown_key: Extra inputs are not permitted")])
def test_a_broken_profile_file_is_named_with_what_is_wrong(tmp_path, text, says):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(KitError, match=f"mine.*{says}"):
        profiles.load(str(path))


def test_the_storage_is_the_parameter_then_the_environment_then_the_profiles_own(tmp_path, monkeypatch):
    local = profiles.load("local")
    monkeypatch.setenv("KTO_STORAGE", str(tmp_path / "env"))
    assert profiles.storage_for(local, str(tmp_path / "given")) == tmp_path / "given"
    assert profiles.storage_for(local) == tmp_path / "env"
    monkeypatch.delenv("KTO_STORAGE")
    assert profiles.storage_for(local) == profiles.ROOT / "storage"


def test_a_bucket_as_storage_is_refused_where_a_folder_of_that_name_would_be_made():
    with pytest.raises(KitError, match="the storage s3://bucket/kto is an address"):
        profiles.storage_for(profiles.load("local"), "s3://bucket/kto")


def test_a_profile_without_storage_asks_for_one(monkeypatch):
    monkeypatch.delenv("KTO_STORAGE", raising=False)
    with pytest.raises(KitError, match="no storage"):
        profiles.storage_for(profiles.load("ray"))


@pytest.mark.parametrize("name", ["", "../up", "a b", "-x", "x/y", "a" * 101])
def test_a_run_name_that_is_no_folder_name_is_refused(tmp_path, name):
    with pytest.raises(KitError, match="no name for a run"):
        runs.start("local", str(tmp_path), name)


def test_a_run_that_was_never_launched_can_be_started_again(run):
    created = run.record()["created"]
    again = runs.start("local", str(run.storage), run.name)
    assert again.record()["created"] == created


def test_a_launched_runs_name_is_refused_and_its_files_stay_as_they_were(run):
    run.log_file.write_text("a line")
    before = {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()}
    with pytest.raises(KitError, match="in use"):
        runs.start("local", str(run.storage), run.name)
    assert {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()} == before


def test_opening_a_run_that_is_not_there_lists_those_that_are(run):
    with pytest.raises(KitError, match="first-run"):
        runs.open_run("local", str(run.storage), "frist-run")


def test_opening_a_run_before_its_config_names_the_notebook_to_run(run):
    with pytest.raises(KitError, match="03_config"):
        runs.open_run("local", str(run.storage), run.name, needs="config.yaml", made_by="03_config")


def test_notes_merge_and_are_never_half_written(run):
    run.note(model={"name": "m"})
    run.note(dataset={"rows": 3})
    record = json.loads(run.record_file.read_text())
    assert record["model"] == {"name": "m"} and record["dataset"] == {"rows": 3}
    assert [path.name for path in run.folder.iterdir()] == ["run.json"]


def test_a_storage_that_cannot_be_written_is_one_clear_message(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(KitError, match="could not write"):
        runs.start("local", str(tmp_path / "file"), "first-run")


@pytest.mark.parametrize("text", ["", "[]", "{"])
def test_a_broken_run_json_is_named_by_whatever_reads_it(run, text):
    run.record_file.write_text(text)
    for read in (run.record, lambda: runs.of_folder(run.folder), lambda: runs.start("local", str(run.storage), run.name)):
        with pytest.raises(KitError, match="run.json (is broken|holds a list)"):
            read()


def test_a_run_opened_by_its_folder_finds_a_place_for_rays_files(run, monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", "/tmp/" + "x" * 40)
    runs.of_folder(run.folder)
    assert os.environ["RAY_TMPDIR"] == "/tmp"


def test_paths_are_shown_relative_to_the_storages_parent(run):
    assert run.show(run.config_file) == "storage/first-run/config.yaml"
