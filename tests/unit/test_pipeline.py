"""The pipeline and its command line."""

import json
import os
import subprocess
import sys
import time

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from helpers import runs
from helpers.errors import KitError
from helpers.profiles import ROOT
from kto import pipeline

PARAMETERS = (
    'profile: str = "local"  # p\nstorage: str = ""  # s\nrun_name: str = "x"  # r\nmax_steps: int = None  # steps'
)


@pytest.fixture
def two_notebooks(tmp_path, monkeypatch):
    """Two small notebooks in place of the six: the first notes max_steps in the run, the second holds what `body` says."""

    def make(body: str):
        folder = tmp_path / "nbs"
        folder.mkdir()
        note = "from helpers import runs\nruns.open_run(profile, storage, run_name).note(max_steps=max_steps)"
        for name, code in (("01_first", note), ("02_second", body)):
            cells = [new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}), new_code_cell(code)]
            metadata = {"kernelspec": {"name": "python3", "display_name": "p", "language": "python"}}
            nbformat.write(new_notebook(cells=cells, metadata=metadata), folder / f"{name}.ipynb")
        monkeypatch.setattr(pipeline, "NOTEBOOKS", folder)

    return make


def test_there_are_six_notebooks_in_order():
    assert [path.stem[:2] for path in pipeline.notebooks()] == ["01", "02", "03", "04", "05", "06"]


def test_every_notebook_begins_its_parameters_with_the_common_three_alike():
    import papermill

    for path in pipeline.notebooks():
        found = papermill.inspect_notebook(str(path))
        assert list(found)[:3] == list(pipeline.COMMON), path.name
        assert [found[name]["default"] for name in pipeline.COMMON] == ['"local"', '""', '"first-run"'], path.name
        assert all(entry["help"] and entry["inferred_type_name"] != "None" for entry in found.values()), path.name


def test_a_parameter_of_one_name_has_one_default_and_type_everywhere():
    import papermill

    seen = {}
    for path in pipeline.notebooks():
        for name, entry in papermill.inspect_notebook(str(path)).items():
            facts = (entry["inferred_type_name"], entry["default"])
            assert seen.setdefault(name, facts) == facts, f"{name} in {path.name}"


def test_an_unknown_parameter_lists_the_valid_ones_and_the_closest():
    with pytest.raises(KitError) as error:
        pipeline.typed(["max_stps=3"])
    assert "did you mean 'max_steps'" in str(error.value) and "learning_rate" in str(error.value)


def test_values_get_the_types_of_the_parameters_cells():
    values = pipeline.typed(["max_steps=12", "learning_rate=5e-6", 'overrides={"lora_alpha": 32}', "dataset=a=b"])
    assert values == {"max_steps": 12, "learning_rate": 5e-6, "overrides": {"lora_alpha": 32}, "dataset": "a=b"}


@pytest.mark.parametrize("text", ["max_steps=many", "overrides=[1]", "max_steps=1.5", "profile=ray"])
def test_a_value_of_the_wrong_type_or_an_option_given_as_parameter_is_refused(text):
    with pytest.raises(KitError):
        pipeline.typed([text])


def test_a_path_given_on_the_command_line_is_made_absolute_and_a_name_is_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data.json").write_text("[]")
    values = pipeline.absolute_paths({"dataset": "data.json", "model_name_or_path": "org/name"})
    assert values == {"dataset": str(tmp_path / "data.json"), "model_name_or_path": "org/name"}


@pytest.mark.slow
def test_the_notebooks_run_in_order_with_their_parameters_into_the_runs_folder(run, two_notebooks):
    two_notebooks("assert runs, 'unused'" if False else "print(max_steps)")
    said = []
    pipeline.execute(run, {"max_steps": 7}, said.append)
    assert run.record()["max_steps"] == 7 and set(run.record()["seconds"]) == {"01_first", "02_second"}
    assert [path.name for path in sorted(run.notebooks.iterdir())] == ["01_first.ipynb", "02_second.ipynb"]
    assert said[0] == "[1/2] 01_first"


@pytest.mark.slow
def test_a_failing_cell_ends_the_pipeline_with_its_error_and_the_notebooks_name(run, two_notebooks):
    two_notebooks("raise ValueError('the well has run dry')")
    with pytest.raises(KitError) as error:
        pipeline.execute(run, {}, lambda line: None)
    assert "02_second" in str(error.value) and "ValueError: the well has run dry" in str(error.value)


def command(*arguments, **settings) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "kto", *arguments], capture_output=True, text=True, cwd=ROOT, **settings
    )


@pytest.mark.parametrize(
    ("arguments", "says", "status"),
    [
        (["run", "-p", "max_stps=3"], "did you mean 'max_steps'", 2),
        (["run", "--profile", "lokal"], "did you mean 'local'", 1),
        (["run", "--run-name", "a/b"], "no name for a run", 1),
        (["metrics", "no/such.log"], "there is no log", 2),
        (["config", "show", "--run-name", "never"], "01_setup", 1),
    ],
)
def test_wrong_usage_ends_in_seconds_with_one_message_and_its_exit_status(tmp_path, arguments, says, status):
    storage = [] if arguments[0] == "metrics" else ["--storage", str(tmp_path)]
    began = time.monotonic()
    done = command(*arguments, *storage)
    assert time.monotonic() - began < 15 and done.returncode == status
    assert says in done.stderr and "Traceback" not in done.stderr and done.stdout == ""


def test_a_run_name_in_use_ends_at_once_and_leaves_the_runs_files_as_they_were(run):
    run.log_file.write_text("a line")
    before = {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()}
    done = command("run", "--storage", str(run.storage), "--run-name", run.name)
    assert done.returncode == 1 and "in use" in done.stderr and "Traceback" not in done.stderr
    assert {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()} == before


def test_runs_are_listed_as_a_table_and_as_json(run):
    runs.start("local", str(run.storage), "second")
    assert {row["run"] for row in json.loads(command("runs", "--storage", str(run.storage), "--json").stdout)} == {
        "first-run",
        "second",
    }
    assert "not launched" in command("runs", "--storage", str(run.storage)).stdout


def test_every_command_explains_itself():
    for words in ([], ["run"], ["runs"], ["metrics"], ["config", "show"], ["parameters"]):
        done = command(*words, "--help")
        assert done.returncode == 0 and "Usage" in done.stdout


def test_a_run_that_is_being_trained_is_not_made_ready_to_go_on(run, monkeypatch):
    run.log_file.write_text("a line")
    run.note(training={"status": "running", "mark": "first-run-0123"})
    before = sorted(run.folder.iterdir())
    monkeypatch.setattr(pipeline, "ENDING", 0.5)
    training = subprocess.Popen(["sleep", "60"], env={"KTO_TRAINING": "first-run-0123", "PATH": os.environ["PATH"]})
    with pytest.raises(KitError, match="being trained"):
        pipeline.prepare_resume(run)
    assert sorted(run.folder.iterdir()) == before
    training.kill()
    training.wait()
    assert pipeline.prepare_resume(run)[1].endswith("starts again") and (run.folder / "train.failed-1.log").exists()
