"""Checkpoints are found in every layout, judged by what is in them, and chosen for a reason that is said."""

import json
import math
import os
import shutil
from pathlib import Path

import pytest

from helpers import checkpoints, choose, runs
from helpers.errors import KitError

FIXTURE = Path(__file__).parents[1] / "fixtures" / "trial"
"""A real trial of Ray Train V1 (LLaMA-Factory 0.9.3, two CPU workers, 30 steps), its tensors cut down."""
TRIAL = "TorchTrainer_8f6d0_00000_0_2026-11-23_00-55-21"


@pytest.fixture
def run_folder(tmp_path):
    """A run as LLaMA-Factory and Ray leave it: the trial, output/checkpoint-N, and the final save in output/ itself."""
    folder = tmp_path / "first-run"
    shutil.copytree(FIXTURE / TRIAL, folder / TRIAL)
    for index, step in enumerate((10, 20, 30)):
        saved = folder / TRIAL / f"checkpoint_{index:06d}" / "checkpoint"
        shutil.copytree(saved, folder / "output" / f"checkpoint-{step}")
    for name in ("adapter_model.safetensors", "adapter_config.json", "trainer_state.json"):
        shutil.copy(folder / "output" / "checkpoint-30" / name, folder / "output" / name)
    return folder


@pytest.fixture
def third(run_folder):
    """The folder of Ray's third save, of step 30."""
    return run_folder / TRIAL / "checkpoint_000002" / "checkpoint"


def ray(found):
    return [item for item in found if item.layout == "Ray Train"]


def edit_state(folder: Path, **changes):
    """Set keys of a trainer_state.json; `log_history` entries of the last window by `window={...}` (None removes)."""
    state = json.loads((folder / "trainer_state.json").read_text())
    for key, value in changes.pop("window", {}).items():
        state["log_history"][-1].pop(key, None)
        state["log_history"][-1] |= {} if value is None else {key: value}
    (folder / "trainer_state.json").write_text(json.dumps(state | changes, indent=2, sort_keys=True))


def test_every_save_of_a_run_is_found_with_its_step_and_epoch(run_folder):
    found = checkpoints.find(run_folder)
    assert [(item.step, item.layout) for item in found] == [
        (step, layout) for step in (10, 20, 30) for layout in ("Ray Train", "output_dir")]
    assert [round(item.epoch, 2) for item in ray(found)] == [0.29, 0.57, 0.86]
    assert all(item.complete and item.why == "complete" and item.workers == 2 for item in found)
    assert {item.planned_steps for item in found} == {30}


def test_the_final_weights_in_output_dir_are_no_checkpoint(run_folder):
    assert (run_folder / "output" / "trainer_state.json").exists()
    assert len(checkpoints.find(run_folder / "output")) == 3


def test_ray_numbers_saves_not_steps(run_folder):
    shutil.rmtree(run_folder / TRIAL / "checkpoint_000001")
    assert [item.step for item in ray(checkpoints.find(run_folder))] == [10, 30]


def test_figures_are_those_of_the_last_window_before_the_save(run_folder):
    last = ray(checkpoints.find(run_folder))[-1]
    logged = json.loads((Path(last.path) / "trainer_state.json").read_text())["log_history"][-1]
    assert (last.metrics["loss"], last.metrics["rewards/margins"]) == (logged["loss"], logged["rewards/margins"])


def test_kl_is_divided_by_accumulation_and_the_windows_steps(run_folder, third):
    edit_state(third, window={"kl": 3.0})
    assert ray(checkpoints.find(run_folder))[-1].metrics["kl_mean"] == 3.0 / (1 * 2)  # accumulation 1, a window of 2 steps
    params = run_folder / TRIAL / "params.json"
    launched = json.loads(params.read_text())
    launched["train_loop_config"]["args"]["gradient_accumulation_steps"] = 4
    params.write_text(json.dumps(launched))
    assert ray(checkpoints.find(run_folder))[-1].metrics["kl_mean"] == 3.0 / (4 * 2)


def test_kl_is_missing_where_the_accumulation_is_not_known(run_folder, tmp_path):
    alone = shutil.copytree(run_folder / "output" / "checkpoint-20", tmp_path / "elsewhere" / "checkpoint-20")
    item, = checkpoints.find(alone)
    assert "kl_mean" not in item.metrics and item.metrics["kl"] >= 0


@pytest.mark.parametrize("below", [TRIAL, f"{TRIAL}/checkpoint_000001", f"{TRIAL}/checkpoint_000001/checkpoint",
                                   "output/checkpoint-20", ""])
def test_any_folder_of_a_run_may_be_searched(run_folder, below):
    found = checkpoints.find(run_folder / below)
    assert 20 in [item.step for item in found] and all(item.complete for item in found)


def test_ray_train_v2_layout_is_found_and_numbered_by_step(run_folder, tmp_path):
    for index, time in ((1, "2026-11-23_00-59-40.481518"), (0, "2026-11-23_00-58-02.905514")):
        shutil.copytree(run_folder / TRIAL / f"checkpoint_{index:06d}", tmp_path / "v2" / f"checkpoint_{time}")
    (tmp_path / "v2" / "checkpoint_manager_snapshot.json").write_text("{}")
    found = checkpoints.find(tmp_path / "v2")
    assert {item.layout for item in found} == {"Ray Train V2"}
    assert [item.step for item in found] == [10, 20]


def test_several_trials_of_a_run_are_told_apart(run_folder):
    later = TRIAL.replace("8f6d0", "a1b2c").replace("00-55", "02-10")
    shutil.copytree(run_folder / TRIAL, run_folder / later)
    assert {item.trial for item in ray(checkpoints.find(run_folder))} == {TRIAL, later}


def test_an_experiment_synced_elsewhere_and_renamed_is_found(run_folder, tmp_path):
    synced = tmp_path / "mnt" / "backup" / "2026" / "experiment"
    shutil.copytree(run_folder, synced)
    shutil.move(synced / "output" / "checkpoint-20", synced / "output" / "keep-me")
    found = checkpoints.find(tmp_path / "mnt")
    assert len(found) == 6 and [item.step for item in found if item.layout == "renamed"] == [20]


def test_sorting_is_numeric(run_folder):
    state = run_folder / "output"
    for step in (9, 100):
        shutil.copytree(state / "checkpoint-10", state / f"checkpoint-{step}")
        edit_state(state / f"checkpoint-{step}", global_step=step)
    assert [item.step for item in checkpoints.find(state)] == [9, 10, 20, 30, 100]


def test_a_run_is_looked_for_where_its_config_keeps_its_trials(run_folder, tmp_path):
    config = {"ray_storage_path": str(tmp_path), "ray_run_name": "first-run", "output_dir": str(tmp_path / "nowhere")}
    other = tmp_path / "storage" / "moved"
    other.mkdir(parents=True)
    (other / "config.yaml").write_text(json.dumps(config))
    run = runs.locate("local", str(tmp_path / "storage"), "moved")
    assert len(checkpoints.find(run)) == 6


def test_nothing_found_is_an_empty_list_and_no_folder_an_error(tmp_path):
    assert checkpoints.find(tmp_path) == []
    assert choose.table([]).empty
    with pytest.raises(KitError, match="there is no folder"):
        checkpoints.find(tmp_path / "missing")


# --- complete or not


def test_weights_cut_anywhere_are_never_usable(run_folder, third):
    whole = (third / "adapter_model.safetensors").read_bytes()
    for length in range(len(whole)):
        (third / "adapter_model.safetensors").write_bytes(whole[:length])
        item = ray(checkpoints.find(third.parent))[-1]
        assert not item.usable and not item.complete, f"cut to {length} of {len(whole)} bytes"


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state_1.pth", "trainer_state.json"])
def test_a_file_for_resuming_cut_anywhere_is_never_complete(third, name):
    whole = (third / name).read_bytes().rstrip()
    for length in sorted({*range(0, len(whole), 97), len(whole) - 1}):
        (third / name).write_bytes(whole[:length])
        item, = checkpoints.find(third.parent)
        assert item.usable and not item.complete and name in item.why, f"cut to {length} bytes: {item.why}"


@pytest.mark.parametrize("missing, why", [
    ("adapter_model.safetensors", "no weights"),
    ("adapter_config.json", "adapter_config.json is missing"),
    ("optimizer.pt", "no optimiser"),
    ("scheduler.pt", "no scheduler"),
    ("trainer_state.json", "no trainer_state.json: the save was interrupted, or is still going on"),
    ("rng_state_0.pth", "no random state of worker 0"),
    ("rng_state_1.pth", "other world size: random states of 1, but the run has 2 workers"),
])
def test_every_missing_file_is_named(run_folder, third, missing, why):
    (third / missing).unlink()
    assert ray(checkpoints.find(run_folder))[-1].why == why


def test_a_copy_that_was_cut_before_its_adapter_config_is_not_whole(third):
    (third / "adapter_config.json").write_bytes(b"")
    assert checkpoints.find(third)[0].why == "adapter_config.json is missing"


def test_rubbish_in_place_of_weights_is_unreadable(run_folder, third):
    (third / "adapter_model.safetensors").write_bytes(os.urandom(4096))
    assert "unreadable" in ray(checkpoints.find(run_folder))[-1].why


def test_an_empty_checkpoint_folder_is_listed_as_incomplete(run_folder):
    (run_folder / TRIAL / "checkpoint_000003").mkdir()
    empty = ray(checkpoints.find(run_folder))[-1]
    assert (empty.step, empty.bytes, empty.why) == (None, 0, "no weights")


def test_another_world_size_than_the_config_says_is_incomplete(run_folder):
    (run_folder / "config.yaml").write_text("ray_num_workers: 4\n")
    assert {item.why for item in checkpoints.find(run_folder)} == {
        "other world size: random states of 2, but the run has 4 workers"}


def test_sharded_weights_need_every_shard(tmp_path, third):
    folder = tmp_path / "checkpoint-5"
    shutil.copytree(third, folder)
    shutil.move(folder / "adapter_model.safetensors", folder / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert checkpoints.find(folder)[0].why == "model-00002-of-00002.safetensors is missing"
    shutil.copy(folder / "model-00001-of-00002.safetensors", folder / "model-00002-of-00002.safetensors")
    assert checkpoints.find(folder)[0].complete


def test_deepspeed_keeps_its_optimiser_in_a_subfolder(third, tmp_path):
    folder = shutil.copytree(third, tmp_path / "checkpoint-30")
    (folder / "global_step30").mkdir()
    shard = folder / "global_step30" / "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt"
    shutil.move(folder / "optimizer.pt", shard)
    (folder / "scheduler.pt").unlink()
    assert checkpoints.find(folder)[0].complete
    shard.write_bytes(shard.read_bytes()[:-1])
    assert checkpoints.find(folder)[0].why.startswith("global_step30/bf16_zero_pp_rank_0")


def test_no_pickle_is_loaded(run_folder, monkeypatch):
    import pickle

    def refuse(*_, **__):
        raise AssertionError("a pickle was loaded")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    assert len(checkpoints.find(run_folder)) == 6


def test_pickled_weights_are_not_looked_into(run_folder, third):
    shutil.move(third / "adapter_model.safetensors", third / "adapter_model.bin")
    assert "a pickle (adapter_model.bin)" in ray(checkpoints.find(run_folder))[-1].why


def test_an_evaluation_before_the_last_windows_is_not_lost(third):
    state = json.loads((third / "trainer_state.json").read_text())
    state["log_history"].insert(4, {"eval_loss": 0.4, "eval_rewards/margins": 0.7, "kl": 3.0, "step": 8})
    edit_state(third, log_history=state["log_history"])
    item, = checkpoints.find(third.parent)
    assert (item.metrics["eval_rewards/margins"], item.step, item.metrics["loss"]) == (0.7, 30, state["log_history"][-1]["loss"])


def test_several_held_out_sets_are_columns_of_their_own(third):
    """As transformers records them: one entry a set, whose rewards LLaMA-Factory logs without the set's name."""
    state = json.loads((third / "trainer_state.json").read_text())
    history = [{"eval_first_loss": 0.4, "eval_rewards/margins": 0.7, "eval_rewards/auc": 0.8, "kl": 3.0, "step": 8},
               {"eval_second_loss": 0.5, "eval_rewards/margins": 0.1, "kl": 2.0, "step": 8}]
    edit_state(third, log_history=[*state["log_history"], *history])
    found = checkpoints.find(third.parent)
    line = choose.table(found).iloc[0]
    assert (line["eval_first_loss"], line["eval_first_rewards/margins"], line["eval_first_rewards/auc"]) == (0.4, 0.7, 0.8)
    assert (line["eval_second_loss"], line["eval_second_rewards/margins"]) == (0.5, 0.1)
    assert choose.best(found, "eval_second_rewards/margins")[1].startswith("eval_second_rewards/margins 0.1")


def test_a_state_written_without_indentation_is_read_too(third):
    state = json.loads((third / "trainer_state.json").read_text())
    (third / "trainer_state.json").write_text(json.dumps(state))
    item, = checkpoints.find(third.parent)
    assert (item.step, item.metrics["loss"], item.complete) == (30, state["log_history"][-1]["loss"], True)


def test_a_long_history_is_read(run_folder, third):
    state = json.loads((third / "trainer_state.json").read_text())
    window = state["log_history"][-1]
    history = [window | {"step": step, "kl": 8.0} for step in range(5, 5001, 5)]
    edit_state(third, global_step=5000, epoch=2.5, max_steps=6000, log_history=history)
    item = ray(checkpoints.find(run_folder))[-1]
    assert (item.step, item.epoch, item.planned_steps, item.metrics["loss"]) == (5000, 2.5, 6000, window["loss"])
    assert item.metrics["kl_mean"] == 8.0 / 5
    text = (third / "trainer_state.json").read_text().rstrip()
    (third / "trainer_state.json").write_text(text[:-1])
    assert ray(checkpoints.find(run_folder))[-1].why == "trainer_state.json is unreadable or cut off"


# --- choosing


def test_latest_is_the_highest_complete_step_and_says_what_it_passed_over(run_folder, third):
    (third / "optimizer.pt").unlink()
    (run_folder / "output" / "checkpoint-30" / "trainer_state.json").unlink()
    chosen, why = choose.latest(checkpoints.find(run_folder))
    assert (chosen.step, chosen.layout) == (20, "Ray Train")
    assert "checkpoint_000002 (no optimiser)" in why and "checkpoint-30 (no trainer_state.json" in why


def test_best_is_by_the_metric_and_its_direction(run_folder):
    found = checkpoints.find(run_folder)
    assert choose.best(found)[0].step == 30
    assert choose.best(found, "rewards/margins", higher_is_better=False)[0].step == 20
    assert choose.best(found, "loss", higher_is_better=False)[0].step == 30
    assert "rewards/margins 0.5658 at step 30 is the highest" in choose.best(found)[1]


def test_a_checkpoint_without_the_metric_is_passed_over_and_named(run_folder):
    _, why = choose.best(checkpoints.find(run_folder))
    assert why.endswith("passed over, for the window before it has no such figure: 10")


def test_of_equal_figures_the_earlier_step_wins_and_ray_keeps_it(run_folder):
    for folder in run_folder.rglob("trainer_state.json"):
        edit_state(folder.parent, window={"rewards/margins": 0.25})
    chosen, _ = choose.best(checkpoints.find(run_folder))
    assert (chosen.step, chosen.layout) == (10, "Ray Train")


def test_nan_is_never_the_best(run_folder):
    for folder in run_folder.rglob("trainer_state.json"):
        if folder.parent.name != "checkpoint-10" and "000000" not in str(folder):
            edit_state(folder.parent, window={"loss": math.nan})
    assert choose.best(checkpoints.find(run_folder), "loss", False)[0].step == 10


def test_best_needs_weights_but_no_optimiser(run_folder, third):
    (third / "optimizer.pt").unlink()
    shutil.rmtree(run_folder / "output")
    assert choose.best(checkpoints.find(run_folder))[0].step == 30


def test_an_unknown_metric_is_an_error_that_names_the_closest(run_folder):
    with pytest.raises(KitError, match=r"did you mean 'rewards/margins'\?"):
        choose.best(checkpoints.find(run_folder), "rewards/margin")


def test_by_step_takes_that_step_or_names_the_steps_there_are(run_folder):
    found = checkpoints.find(run_folder)
    assert choose.by_step(found, 20)[0].step == 20
    with pytest.raises(KitError, match="one of the steps 10, 20, 30"):
        choose.by_step(found, 25)


def test_choosing_from_nothing_is_an_error():
    for take in (choose.latest, choose.best, lambda found: choose.by_step(found, 1)):
        with pytest.raises(KitError):
            take([])


def test_held_out_figures_are_shown_and_can_choose(run_folder):
    for value, step in ((0.3, 10), (0.9, 20), (0.1, 30)):
        folder = run_folder / "output" / f"checkpoint-{step}"
        history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
        history.append({"eval_loss": 0.4, "eval_rewards/margins": value, "kl": 3.0, "step": step})
        edit_state(folder, log_history=history)
    found = checkpoints.find(run_folder / "output")
    assert choose.table(found)["eval_rewards/margins"].tolist() == [0.3, 0.9, 0.1]
    assert choose.best(found, "eval_rewards/margins")[0].step == 20


def test_the_table_has_a_row_a_checkpoint_with_paths_below_the_run(run_folder):
    table = choose.table(checkpoints.find(run_folder), relative_to=run_folder)
    assert table["path"][0] == f"{TRIAL}/checkpoint_000000/checkpoint"
    assert list(table.columns) == ["step", "epoch", "time", "MB", "loss", "margin", "kl", "complete", "why",
                                   "kept by", "trial", "path"]
    assert str(run_folder) not in choose.tree(checkpoints.find(run_folder), run_folder)


# --- held-out figures of every checkpoint


def scores(**columns):
    import pandas as pd

    made = {"step": [10, 20, 30], "auc": [0.70, 0.88, 0.90], "worse_low": [0.1, -0.02, 0.0], "worse_high": [0.3, 0.06, 0.0]}
    return pd.DataFrame(made | columns).assign(auc_low=lambda table: table["auc"] - 0.05, auc_high=lambda table: table["auc"] + 0.05)


def test_the_earliest_that_is_not_clearly_worse_on_held_out_rows_is_the_best(run_folder):
    found = checkpoints.find(run_folder)
    chosen, why = choose.best(found, "held-out", scores=scores())
    assert (chosen.step, chosen.layout) == (20, "Ray Train")
    assert "not clearly worse than the highest, 0.900 at step 30" in why
    assert choose.best(found, "held-out", scores=scores(worse_low=[0.1, 0.01, 0.0]))[0].step == 30
    assert choose.best(found, "held-out", scores=scores(worse_low=[-0.1, 0.01, 0.0]))[0].step == 10


def test_the_training_windows_margin_decides_only_where_the_metric_says_so(run_folder):
    found = checkpoints.find(run_folder)
    assert choose.best(found, "rewards/margins", scores=scores())[0].step == 30


def test_a_single_scored_checkpoint_is_the_best(run_folder):
    chosen, _ = choose.best(checkpoints.find(run_folder), "held-out", scores=scores().iloc[:1])
    assert chosen.step == 10
