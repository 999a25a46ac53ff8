"""The pipeline and its command line."""

import json
import os
import signal
import subprocess
import sys
import time

import nbformat
import pytest
import yaml
from filelock import FileLock
from nbformat.v4 import new_code_cell, new_notebook
from typer.testing import CliRunner

from helpers import runs
from helpers.errors import KitError
from helpers.profiles import ROOT
from kto import compare, parameters, pipeline, terminal
from kto.cli import app

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
        monkeypatch.setattr(parameters, "NOTEBOOKS", folder)

    return make


def test_there_are_six_notebooks_in_order():
    assert [path.stem[:2] for path in parameters.notebooks()] == ["01", "02", "03", "04", "05", "06"]


def test_every_notebook_begins_its_parameters_with_the_common_three_alike():
    import papermill

    for path in parameters.notebooks():
        found = papermill.inspect_notebook(str(path))
        assert list(found)[:3] == list(parameters.COMMON), path.name
        assert [found[name]["default"] for name in parameters.COMMON] == ['"local"', '""', '"first-run"'], path.name
        assert all(entry["help"] and entry["inferred_type_name"] != "None" for entry in found.values()), path.name


def test_a_parameter_of_one_name_has_one_default_and_type_everywhere():
    import papermill

    seen = {}
    for path in parameters.notebooks():
        for name, entry in papermill.inspect_notebook(str(path)).items():
            facts = (entry["inferred_type_name"], entry["default"])
            assert seen.setdefault(name, facts) == facts, f"{name} in {path.name}"


def test_an_unknown_parameter_lists_the_valid_ones_and_the_closest():
    with pytest.raises(KitError) as error:
        parameters.typed(["max_stps=3"])
    assert "did you mean 'max_steps'" in str(error.value) and "learning_rate" in str(error.value)


def test_values_get_the_types_of_the_parameters_cells():
    values = parameters.typed(["max_steps=12", "learning_rate=5e-6", 'overrides={"lora_alpha": 32}', "dataset=a=b"])
    assert values == {"max_steps": 12, "learning_rate": 5e-6, "overrides": {"lora_alpha": 32}, "dataset": "a=b"}


@pytest.mark.parametrize("text", ["max_steps=many", "overrides=[1]", "max_steps=1.5", "profile=ray"])
def test_a_value_of_the_wrong_type_or_an_option_given_as_parameter_is_refused(text):
    with pytest.raises(KitError):
        parameters.typed([text])


@pytest.mark.parametrize(("text", "least"), [
    *((text, "1 or more") for text in ("max_steps=0", "score_at_most=0", "max_new_tokens=0", "keep_last=0")),
    *((text, "0 or more") for text in ("samples=-1", "retries=-1", "seed=-1", "kto_chosen_weight=-0.5")),
    *((text, "a finite number above 0") for text in ("learning_rate=0", "num_train_epochs=nan", "learning_rate=inf")),
    *((text, "a share of the prompts") for text in ("heldout=1.5", "heldout=-0.1", "heldout=1"))])
def test_a_number_that_would_train_nothing_or_fail_after_the_training_is_refused_before_it(text, least):
    name, _, value = text.partition("=")
    with pytest.raises(KitError, match=rf"{name} is {value}(\.0)?, expected: {least}"):
        parameters.typed([text])
    assert parameters.typed(["max_steps=-1", "samples=0", "seed=0", "retries=0"])  # what can be meant


@pytest.mark.parametrize(("text", "says"), [
    ("accelerated=maybe", "auto, true, false"), ("loss=dpo", "kto, apo_zero_unpaired"), ("launcher=trainer", "helpers.trainer, llamafactory-cli"),
    ("quantise=fp8,int3", "fp8, w8a8"), ("quantise=fp8, w4a16", "fp8, w8a8"), ("resume=lastest", "did you mean 'latest'"),
    ("resume=a step", "latest, best, a step"), ("metric=eval", "eval_…"), ("metric=rewards/margin", "did you mean 'rewards/margins'")])
def test_a_choice_that_its_notebook_would_refuse_is_refused_before_anything_runs(text, says):
    with pytest.raises(KitError, match=f"{text.partition('=')[0]} is .*, expected: one of .*{says}"):
        parameters.typed([text])


def test_every_choice_that_a_notebook_takes_is_taken():
    for text in ("accelerated=auto", "accelerated=False", "loss=apo_zero_unpaired", "launcher=llamafactory-cli", "quantise=", "quantise=fp8,w4a16", "resume=",
                 "resume=12", "resume=best", "metric=held-out", "metric=eval_mine_loss", "metric=kl_mean", "metric=rewards/margins"):
        assert parameters.typed([text]) == dict([text.split("=")])


def test_a_path_given_on_the_command_line_is_made_absolute_and_a_name_is_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data.json").write_text("[]")
    values = parameters.typed(["dataset=data.json", "model_name_or_path=org/name"])
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


@pytest.mark.slow
def test_a_notebooks_process_that_is_killed_is_said_in_a_sentence(run, two_notebooks):
    two_notebooks("import os\nos.kill(os.getpid(), 9)")
    with pytest.raises(KitError, match="02_second: the notebook's process ended(.|\n)*--resume auto"):
        pipeline.execute(run, {}, lambda line: None)


def command(*arguments, **settings) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "kto", *arguments], capture_output=True, text=True, cwd=ROOT, **settings
    )


@pytest.mark.parametrize(
    ("arguments", "says", "status"),
    [
        (["run", "-p", "max_stps=3"], "did you mean 'max_steps'", 2),
        (["run", "--profile", "lokal"], "did you mean 'local'", 2),
        (["run", "--run-name", "a/b"], "no name for a run", 2),
        (["metrics", "no/such.log"], "there is no log", 2),
        (["config", "show", "--run-name", "never"], "01_setup", 2),
    ],
)
def test_wrong_usage_ends_before_anything_heavy_is_imported_with_one_message_and_its_exit_status(tmp_path, arguments, says, status):
    storage = [] if arguments[0] == "metrics" else ["--storage", str(tmp_path / "storage")]
    (broken := tmp_path / "broken").mkdir()
    for name in ("torch", "ray", "transformers", "mlflow"):
        (broken / f"{name}.py").write_text("raise SystemError('imported')")
    done = command(*arguments, *storage, env=os.environ | {"PYTHONPATH": str(broken)})
    assert done.returncode == status and not (tmp_path / "storage").exists()
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
    run.config_file.write_text("max_steps: 4\n")
    run.note(training={"status": "running"})
    before = sorted(run.folder.iterdir())
    monkeypatch.setattr(pipeline, "ENDING", 0.5)
    with FileLock(run.folder / "train.lock"), pytest.raises(KitError, match="worked on"):  # as the process that trains holds it
        pipeline.prepare_resume(run)
    assert sorted({*run.folder.iterdir()} - {run.folder / "train.lock"}) == before
    assert pipeline.prepare_resume(run)[1].endswith("starts again") and (run.folder / "train.failed-1.log").exists()


# a newcomer's slips


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--resume", "auto"], "--resume auto needs --run-name"),
        (["--resume", "auto", "--run-name", "frist-run"], "there is no run 'frist-run' to resume (did you mean 'first-run'?)"),
        (["-p", "max_steps"], "-p max_steps has no value"),
        (["--resume", "yes"], "'yes' is not one of 'auto', 'if-any'"),
    ],
)
def test_a_slip_in_run_is_wrong_usage_and_starts_nothing(run, words, says):
    before = sorted(run.storage.rglob("*"))
    done = CliRunner().invoke(app, ["run", "--storage", str(run.storage), *words])
    assert done.exit_code == 2 and says in done.stderr and sorted(run.storage.rglob("*")) == before
    assert "--resume auto" not in words or "first-run" in done.stderr.split("expected:")[1]


def test_an_empty_run_name_is_no_name():
    done = CliRunner().invoke(app, ["run", "--run-name", ""])
    assert done.exit_code == 2 and "'' is no name for a run" in done.stderr and "correct --run-name" in done.stderr


def test_of_two_commands_on_one_run_the_second_is_refused_and_nothing_of_the_first_is_overwritten_or_to_be_deleted(run):
    with pipeline.lock(run):
        before = {path: path.stat().st_mtime_ns for path in run.folder.rglob("*")}
        done = command("run", "--storage", str(run.storage), "--run-name", run.name)
        assert done.returncode == 1 and "is being worked on" in done.stderr and "rm -r" not in done.stderr
        assert {path: path.stat().st_mtime_ns for path in run.folder.rglob("*")} == before
    with pipeline.lock(run):
        pass


def test_a_key_that_no_template_has_is_put_to_llamafactory(run):
    run.note(model={"name": "m", "path": "/m", "template": "smollm2"}, dataset={"name": "d", "rows": 3})
    words = ["config", "show", "--storage", str(run.storage), "--run-name", run.name, "-p"]
    shown = CliRunner().invoke(app, [*words, "learning_rate=5e-6"])
    assert shown.exit_code == 0 and yaml.safe_load(shown.stdout)["learning_rate"] == 5e-6
    shown = CliRunner().invoke(app, [*words, 'overrides={"lora_alpha": 32}'])  # as kto run takes it
    assert shown.exit_code == 0 and yaml.safe_load(shown.stdout)["lora_alpha"] == 32
    assert "-p nosuch has no value" in CliRunner().invoke(app, [*words, "nosuch"]).stderr
    for slip, says in (("learning_rte=1", "did you mean 'learning_rate'"), ("learning_rate=[", "malformed YAML"), ("lora_rank=abc", "abc")):
        wrong = CliRunner().invoke(app, [*words, slip])
        assert wrong.exit_code == 2 and says in wrong.stderr and wrong.stdout == "", slip


@pytest.mark.parametrize("words", [
    ["serve", "--port", "99999"], ["serve", "--storage", "/nosuch"], ["runs", "--storage", "/nosuch"], ["runs", "--profile", "ray"],
    ["sweep"], ["sweep", "--name", "a/b", "-p", "max_steps=1"], ["sweep", "-p", "max_steps"], ["run", "--retries", "-1"], ["run", "-p", "max_steps="],
    ["metrics", "RUN", "--logging-steps", "0"], ["plot", "RUN", "-o", ""], ["plot", "RUN", "-o", "x.xyz"], ["plot", "RUN", "-o", "x.png"],
    ["plot", "RUN", "-o", "s3://b/x.png"], ["data", "check", "RUN", "--report", "s3://b/x"], ["data", "sample", "RUN", "--output", "gs://b/x.csv"],
    ["job", "fetch", "x", "--to", "s3://b"],
    ["compare", "RUN", "RUN"], ["compare", "RUN", "/nosuch"], ["checkpoints", ""], ["checkpoints", "x3://nosuch"], ["clean", "RUN", "--keep-last", "0"],
    ["evaluate", "RUN", "--checkpoint", ""], ["export", "RUN", "--checkpoint", "7"], ["export", "RUN", "--as", ""],
    ["export", "RUN", "--as", "adapter,nosuch"], ["config", "show", "--run-name", ""],
    ["job", "list", "--address", "nohttp"], ["job", "submit", "--storage", "relative"], ["job", "submit", "--profile", "local"],
    ["job", "submit", "--storage", "/s", "--run-name", "a/b"], ["job", "submit", "--storage", "/s", "--secret", "NO_SUCH"]])
def test_an_empty_unknown_or_too_large_value_is_wrong_usage_in_every_command(run, words, monkeypatch, tmp_path):
    monkeypatch.delenv("KTO_STORAGE", raising=False)
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, [str(run.folder) if word == "RUN" else word for word in words])
    assert done.exit_code == 2 and "rror: " in done.stderr and done.stdout == "", done.output
    assert [path.name for path in run.folder.iterdir()] == ["run.json"] and not {"s3:", "gs:"} & set(os.listdir())


def test_a_table_fits_the_terminal_and_json_has_everything(run, monkeypatch):
    rows = [{"name": "x" * 90, **{f"column{i}": 0.123456789 for i in range(9)}}]
    monkeypatch.setenv("COLUMNS", "80")
    lines = terminal.table(rows).splitlines()
    assert max(map(len, lines)) <= 80 and lines[-1] == "(column7, column8: with --json)"
    monkeypatch.setenv("COLUMNS", "30")
    assert max(map(len, terminal.table(rows).splitlines())) <= 30  # the names of what is left out too
    monkeypatch.delenv("COLUMNS")
    assert "x" * 90 in terminal.table(rows) and "column8" in terminal.table(rows)


def test_a_run_whose_export_failed_is_not_called_finished(run):
    run.note(training={"status": "finished"})
    assert compare.listing(run.storage)[0]["status"] == "finished"
    run.note(failed="06_export")
    (broken := run.storage / "broken").mkdir()
    (broken / "run.json").write_text("")
    assert compare.listing(run.storage)[-1] | {"run": "broken", "status": "run.json is broken"} == compare.listing(run.storage)[-1]
    assert compare.listing(run.storage)[0]["status"] == "06_export failed"


def test_a_run_without_checkpoints_and_a_folder_that_is_not_there_are_said_in_a_sentence(run):
    none = CliRunner().invoke(app, ["checkpoints", str(run.folder)])
    assert none.exit_code == 1 and "there is no checkpoint in" in none.stderr and none.stdout == ""
    away = CliRunner().invoke(app, ["checkpoints", str(run.folder / "away")])
    assert away.exit_code == 2 and "there is no folder" in away.stderr


@pytest.mark.slow
def test_ctrl_c_in_a_notebook_is_one_sentence_with_the_way_on_and_leaves_no_kernel(run, two_notebooks, tmp_path):
    import psutil

    two_notebooks("import time\nprint('here')\ntime.sleep(600)")
    code = "import sys; from pathlib import Path; from kto import cli, parameters; parameters.NOTEBOOKS = Path(sys.argv.pop(1)); cli.main()"
    words = [sys.executable, "-c", code, str(tmp_path / "nbs"), "run", "--storage", str(run.storage), "--run-name", run.name]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True)
    made, until = run.notebooks / "02_second.ipynb", time.monotonic() + 240
    while not (made.exists() and "here" in made.read_text()) and time.monotonic() < until:
        time.sleep(0.2)
    family = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 130 and "Traceback" not in said, said
    assert "interrupted" in said and f"--run-name {run.name} --resume auto" in said
    assert not psutil.wait_procs(family, timeout=60)[1] and run.record()["failed"] == "02_second"


@pytest.mark.slow
def test_an_executed_notebook_is_whole_wherever_it_is_copied_and_so_is_its_html(run, two_notebooks, tmp_path):
    from nbconvert import HTMLExporter

    two_notebooks("print(max_steps)")
    (tmp_path / "nbs" / "pictures").mkdir()
    (tmp_path / "nbs" / "pictures" / "two.png").write_bytes(b"\x89PNG pixels")
    book = nbformat.read(tmp_path / "nbs" / "01_first.ipynb", 4)
    book.cells.append(nbformat.v4.new_markdown_cell("![Words](pictures/two.png)"))
    nbformat.write(book, tmp_path / "nbs" / "01_first.ipynb")
    book.cells.append(new_code_cell("raise ValueError('also where a cell failed')"))
    nbformat.write(book, tmp_path / "nbs" / "01_first.ipynb")
    with pytest.raises(KitError, match="also where"):
        pipeline.execute(run, {}, lambda line: None)
    page, _ = HTMLExporter().from_filename(str(run.notebooks / "01_first.ipynb"))
    assert "data:image/png;base64,iVBORyBwaXhlbHM" in page and "pictures/two.png" not in page


def test_the_report_is_one_page_with_everything_in_it_and_no_markup_of_the_data(run):
    from kto import report

    run.figures.mkdir()
    (run.figures / "training.png").write_bytes(b"\x89PNG pixels")
    run.export.mkdir()
    (run.export / "before_after.html").write_text("<html><table><tr><td>a reply</td></tr></table></html>")
    run.config_file.write_text("learning_rate: 5.0e-6\ntemplate: <b>\n")
    run.note(versions={"ray": "2.48.0"}, dataset={"name": "d<i>", "rows": 3}, evaluation={"auc": 0.75})
    page = report.write(run, pipeline.summary(run)).read_text()
    assert all(part in page for part in ("0.75", "data:image/png;base64,iVBOR", "a reply", "learning_rate: 5.0e-6", "2.48.0", "d&lt;i&gt;"))
    assert "<b>" not in page and "None" not in page
