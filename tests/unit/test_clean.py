"""What is removed is planned, shown and asked for; what is in use, or the last complete one, never goes."""

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from helpers import checkpoints, keep, runs
from helpers.errors import KitError
from kto.cli import app

FIXTURE = Path(__file__).parents[1] / "fixtures" / "trial"
TRIAL = "TorchTrainer_8f6d0_00000_0_2026-11-23_00-55-21"


@pytest.fixture
def trained(run):
    """A run of three saves, each kept by Ray and in output/."""
    shutil.copytree(FIXTURE, run.folder, dirs_exist_ok=True)
    for index, step in enumerate((10, 20, 30)):
        saved = run.folder / TRIAL / f"checkpoint_{index:06d}" / "checkpoint"
        shutil.copytree(saved, run.output_dir / f"checkpoint-{step}")
    return run


def folder_of(item):
    return item.path.parent.name if item.path.name == "checkpoint" else item.path.name


def kept(run, **options):
    return [room_name(one) for one in keep.plan(run, **options) if one.keep]


def room_name(verdict):
    return folder_of(verdict.checkpoint)


def test_the_last_and_the_best_stay_once_each(trained):
    assert kept(trained, last=1) == ["checkpoint_000002"]
    assert kept(trained, last=2) == ["checkpoint_000001", "checkpoint_000002"]
    assert kept(trained, last=1, metric="rewards/margins", higher_is_better=False) == [
        "checkpoint_000001", "checkpoint_000002"]


def test_a_plan_removes_nothing(trained):
    before = sorted(trained.folder.rglob("*"))
    keep.plan(trained, last=1)
    assert sorted(trained.folder.rglob("*")) == before


def going(verdicts):
    return [one.checkpoint for one in verdicts if not one.keep]


def test_what_is_removed_is_gone_whole_and_its_bytes_are_told(trained):
    gone = going(keep.plan(trained, last=1))
    assert keep.remove(trained, gone) == sum(item.bytes for item in gone) > 0
    left = checkpoints.find(trained)
    assert [folder_of(item) for item in left] == ["checkpoint_000002"] and left[0].complete


def test_a_checkpoint_that_the_runs_files_name_stays(trained):
    trained.note(checkpoint={"best": f"{TRIAL}/checkpoint_000000/checkpoint"})
    (trained.folder / "resume.yaml").write_text(f"resume_from_checkpoint: {trained.output_dir}/checkpoint-20\n")
    assert kept(trained, last=1) == ["checkpoint_000000", "checkpoint-20", "checkpoint_000002"]


def test_a_checkpoint_that_another_run_started_from_stays(trained):
    later = runs.start("local", str(trained.storage), "second")
    first = trained.output_dir / "checkpoint-10"
    later.config_file.write_text(f"create_new_adapter: true\nadapter_name_or_path: org/sft,{first}\n")
    assert [one.why for one in keep.plan(trained, last=1) if one.checkpoint.path == first] == ["named in second's config.yaml"]


def test_one_that_came_into_use_after_the_plan_stays(trained):
    verdicts = keep.plan(trained, last=1)
    trained.note(export={"from": f"{TRIAL}/checkpoint_000000/checkpoint"})
    with pytest.raises(KitError, match="in use"):
        keep.remove(trained, going(verdicts))
    assert len(checkpoints.find(trained)) == 6


def test_the_only_complete_one_stays_however_old(trained):
    shutil.rmtree(trained.output_dir)
    for index in (1, 2):
        (trained.folder / TRIAL / f"checkpoint_{index:06d}" / "checkpoint" / "optimizer.pt").unlink()
    assert "checkpoint_000000" in kept(trained, last=1)


def test_the_only_complete_one_stays_if_the_planned_one_broke_meanwhile(trained):
    shutil.rmtree(trained.output_dir)
    verdicts = keep.plan(trained, last=1)
    (trained.folder / TRIAL / "checkpoint_000002" / "checkpoint" / "optimizer.pt").unlink()
    with pytest.raises(KitError, match="no complete one would be left"):
        keep.remove(trained, going(verdicts))


def test_nothing_is_given_up_while_no_checkpoint_is_complete(trained):
    for state in trained.folder.rglob("scheduler.pt"):
        state.unlink()
    assert len(kept(trained, last=1)) == 6


def test_a_running_trainings_newest_saves_stay(trained):
    (trained.folder / TRIAL / "checkpoint_000003" / "checkpoint").mkdir(parents=True)
    trained.note(training={"status": "running"})
    assert kept(trained, last=1) == ["checkpoint_000002", "checkpoint-30", "checkpoint_000003"]
    trained.note(training={"status": "finished"})
    assert kept(trained, last=1) == ["checkpoint_000002"]


def test_a_metric_that_no_checkpoint_has_is_refused_by_name_and_the_usual_one_may_be_missing(trained):
    with pytest.raises(KitError, match="no checkpoint has the metric 'rewards/margin'"):
        keep.plan(trained, metric="rewards/margin")
    for state in trained.folder.rglob("trainer_state.json"):
        state.write_text(state.read_text().replace("rewards/margins", "rewards/other"))
    assert len(kept(trained, last=1)) == 1


def test_keeping_none_is_refused(trained):
    with pytest.raises(KitError, match="1 or more"):
        keep.plan(trained, last=0)


def test_a_folder_renamed_by_hand_stays(trained):
    shutil.move(trained.output_dir / "checkpoint-10", trained.output_dir / "precious")
    assert "precious" in kept(trained, last=1)


def test_the_plan_says_what_it_frees(trained):
    text = keep.shown(trained, keep.plan(trained, last=1))
    assert text.splitlines()[-1].startswith("frees 0.2 MB")
    assert "step 30 is kept in " + TRIAL in text and str(trained.folder) not in text


def test_run_json_without_checkpoints_names_none(trained):
    assert json.loads(trained.record_file.read_text())
    assert not [one.why for one in keep.plan(trained) if "named in" in one.why]


@pytest.mark.parametrize(("answer", "left"), [("yes", 1), ("no", 6), ("", 6), ("y", 6), ("yep", 6), (None, 6)])
def test_the_terminal_shows_asks_and_removes_on_yes_only(trained, answer, left):
    done = CliRunner().invoke(app, ["clean", str(trained.folder), "--keep-last", "1"], input="" if answer is None else f"{answer}\n")
    assert done.exit_code == 0 and "remove output/checkpoint-10" in done.output and "keep   " + TRIAL in done.output
    assert len(checkpoints.find(trained)) == left
