"""The table of logged windows: steps, KTO's units, counts, noise, and agreement with the trainer's own record."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import logs, metrics, watchdog
from helpers.errors import KitError
from helpers.schedule import Schedule

FIXTURES = Path(__file__).parent.parent / "fixtures"
OTHERS = FIXTURES / "logs_of_others"
REFERENCE, DEMO = FIXTURES / "reference.log", FIXTURES / "demo-two-workers.log"


def window(loss=0.5, epoch=0.1, **more) -> str:
    return str({"loss": loss, "grad_norm": 1.0, "learning_rate": 1e-5, "kl": 0.0, "epoch": epoch, **more}) + "\n"


def events(text: str) -> list:
    parser = logs.Parser()
    return parser.feed(text.encode()) + parser.feed(b"\n")


def started(examples=300, batch=1, accumulation=2, total=8, steps=114) -> str:
    return (f"x >> ***** Running training *****\nx >>   Num examples = {examples:,}\n"
            f"x >>   Instantaneous batch size per device = {batch}\n"
            f"x >>   Total train batch size (w. parallel, distributed & accumulation) = {total}\n"
            f"x >>   Gradient Accumulation steps = {accumulation}\nx >>   Total optimization steps = {steps}\n")


def test_every_window_of_the_reference_is_at_its_step():
    table = metrics.table(REFERENCE)
    assert table["step"].tolist() == list(range(5, 111, 5))
    assert table.attrs["logging_steps_from"] == "log"  # its table is cut off, so epochs and bars say it
    assert table.iloc[0]["rewards/margins"] == 0.12270035488264902
    assert table.iloc[-1]["kl"] == 1.4368000030517578


def test_logging_steps_come_from_rays_table_where_it_is_whole():
    for name, steps in (("demo-two-workers", 2), ("cpu-two-workers", 1), ("h200-two-workers", 2),
                        ("gpu-lora-stock", 2), ("gpu-full-zero3", 5)):
        table = metrics.table(FIXTURES / f"{name}.log")
        assert (table.attrs["logging_steps"], table.attrs["logging_steps_from"]) == (steps, "config")
        assert table["step"].tolist() == list(range(steps, steps * len(table) + 1, steps))


def test_the_stream_reconciles_with_the_trainers_own_record():
    table = metrics.table(DEMO)
    for step, values in ((20, 97), (30, 147)):
        differences = metrics.reconcile(table, FIXTURES / f"demo-trainer-state-{step}.json")
        assert differences.empty and differences.attrs["compared"] == values


def test_a_log_from_a_bare_shell_with_evaluations_reconciles_too():
    table = metrics.table(FIXTURES / "bare-with-evaluations.log")
    assert table.attrs["logging_steps_from"] == "log"
    assert table[["step", "split"]].values.tolist() == [
        [2, "train"], [3, "eval"], [4, "train"], [6, "train"], [6, "eval"]]
    assert table["micro_batches"].tolist() == [4, 3, 3, 3, 3] and table["rows"].tolist() == [8, 5, 6, 6, 5]
    differences = metrics.reconcile(table, FIXTURES / "bare-trainer-state-6.json")
    assert differences.empty and differences.attrs["compared"] == 3 * 10 + 2 * 8


def test_a_run_on_two_workers_that_was_evaluated_meanwhile_reconciles_too():
    """12 steps of the local profile with eval_steps 3: 22 rows held out, 12 of them on rank 0."""
    table = metrics.table(FIXTURES / "evaluated-two-workers.log")
    held_out = table[table["split"] == "eval"]
    assert held_out["step"].tolist() == [3, 6, 9, 12] and held_out["rows"].tolist() == [12] * 4
    assert held_out["rewards/margins"].is_monotonic_increasing and held_out["loss"].is_monotonic_decreasing
    differences = metrics.reconcile(table, FIXTURES / "evaluated-trainer-state-12.json")
    assert differences.empty and differences.attrs["compared"] == 6 * 10 + 4 * 8


def test_reconciling_names_every_difference():
    table = metrics.table(DEMO)
    table.loc[table["step"] == 4, "kl"] += 0.25
    table = table[table["step"] != 6]
    differences = metrics.reconcile(table, FIXTURES / "demo-trainer-state-20.json")
    assert differences[differences["step"] == 4][["key", "difference"]].values.tolist() == [["kl", 0.25]]
    assert len(differences[differences["step"] == 6]) == 10 and differences["difference"].isna().sum() == 10


def test_a_record_that_cannot_be_read_is_a_readable_error(tmp_path):
    (tmp_path / "trainer_state.json").write_text("{")
    for path in (tmp_path / "trainer_state.json", tmp_path / "none.json"):
        with pytest.raises(KitError, match="cannot read"):
            metrics.reconcile(metrics.table(DEMO), path)


def test_kl_is_divided_by_micro_batches():
    table = metrics.table(REFERENCE).set_index("step")
    assert table.loc[5, "kl_mean"] == table.loc[5, "kl"] / 10  # 5 steps of 2 micro-batches; not by the 4 workers
    assert table.loc[40, "kl_mean"] == table.loc[40, "kl"] / 9  # step 38 has one micro-batch: 75 = 37·2 + 1
    assert table.loc[80, "micro_batches"] == 9


def test_the_losss_dip_at_an_epochs_end_is_the_short_group_and_loss_mean_has_none():
    table = metrics.table(REFERENCE).set_index("step")
    assert table["loss"].nsmallest(2).index.tolist() == [80, 40]
    assert table.loc[40, "loss_mean"] == pytest.approx(0.4468 * 10 / 9)
    assert table.loc[40, "loss_mean"] > table["loss"].median()
    assert table.loc[45, "loss_mean"] == table.loc[45, "loss"]


def test_the_schedule_counts_as_the_trainer_does():
    reference = Schedule(examples=300, batch=1, accumulation=2, world=4)
    assert (reference.batches, reference.updates) == (75, 38)
    assert [reference.micro_batches(step) for step in (1, 37, 38, 39, 76)] == [2, 74, 75, 77, 150]
    assert all(reference.at(step, epoch) for step, epoch in ((5, 0.13), (5, 0.1333), (38, 1.0), (40, 1.05), (114, 3.0)))
    assert not reference.at(5, 0.14) and reference.step_of(1.05, 38) == 40 and reference.step_of(7.123, 0) is None
    alone = Schedule(examples=10, batch=4, accumulation=1, world=1)
    assert [alone.rows(step) for step in (1, 3, 4)] == [4, 10, 14]  # a single worker's last batch is short
    assert Schedule(examples=10, batch=4, accumulation=1, world=2).rows(2) == 8  # several workers' is filled up


def test_a_log_that_does_not_say_its_steps_is_refused_by_name():
    with pytest.raises(KitError, match="nothing in this log says which steps its 2 training lines are of.*(?s:.*)--logging-steps"):
        metrics.table(events(window() + window(0.4)))


def test_epochs_that_fit_several_spacings_are_refused_where_no_bar_tells_them():
    early = started(examples=1_234_567, steps=77_160) + "".join(window(loss=0.5 + place, epoch=0.0) for place in range(6))
    with pytest.raises(KitError, match="nothing in this log says which steps"):
        metrics.table(events(early))
    assert metrics.table(events(early), 10)["step"].tolist() == [10, 20, 30, 40, 50, 60]


@pytest.mark.parametrize("begin", ["2026-11-26T17:00:00.1Z stderr F ", "Nov 26 17:00:00 gpu-1 python[4711]: ", "trainer-1  | ", "17:00:00 ",
                                   "2026-11-26 17:00:00.928 | INFO     | __main__:run:30 - ", "\x1b]0;training\x07"])
@pytest.mark.parametrize("name", ["trl-kto", "reference"])
def test_what_stands_before_every_line_changes_nothing(tmp_path, name, begin):
    log = FIXTURES / f"{name}.log"
    (tmp_path / "train.log").write_text("".join(begin + line for line in log.read_text().splitlines(keepends=True)))
    pd.testing.assert_frame_equal(metrics.table(tmp_path / "train.log"), metrics.table(log))


def test_the_title_of_a_bar_is_no_beginning_of_every_line(tmp_path):
    titled = "".join(f"Map: {done:3}%|█   | {done}/100 [00:01<00:01,  9.99 examples/s]\n" for done in range(100))
    bars = "".join(f" {done:3}%|█   | {done}/114 [00:01<00:01,  1.00s/it]\n" + window(epoch=round(done / 37.5, 2)) for done in (5, 10))
    (tmp_path / "train.log").write_text(titled + started() + bars)
    assert metrics.table(tmp_path / "train.log")["step"].tolist() == [5, 10]


def test_a_line_that_kubelet_cut_in_two_is_joined(tmp_path):
    line = window(epoch=0.67).rstrip()
    parts = [*started().splitlines(), line[:20], line[20:]]
    marks = ["F"] * (len(parts) - 2) + ["P", "F"]
    (tmp_path / "train.log").write_text("".join(f"2026-11-26T17:00:00.1Z stderr {mark} {part}\n" for mark, part in zip(marks, parts, strict=True)))
    table = metrics.table(tmp_path / "train.log", 25)
    assert (table["step"].tolist(), table["grad_norm"].tolist()) == ([25], [1.0])


def test_what_the_log_does_not_say_is_not_claimed():
    table = metrics.table(events(window() + window(0.4)), logging_steps=1)
    assert table["step"].tolist() == [1, 2] and table.attrs["logging_steps_from"] == "argument"
    assert table["kl_mean"].isna().all() and table["rows"].isna().all()
    assert "neither LLaMA-Factory nor TRL" in metrics.summary(table)


def test_epochs_that_do_not_fit_the_schedule_are_told():
    table = metrics.table(events(started() + "".join(window(epoch=epoch) for epoch in (0.5, 1.0, 1.5))), logging_steps=5)
    assert table["step"].tolist() == [5, 10, 15] and "do not fit" in table.attrs["notes"][0]


def test_a_line_that_got_lost_does_not_shift_the_others():
    lines = [window(epoch=round(step * 2 / 75, 2)) for step in (5, 10, 15, 25, 30)]  # 20 is missing
    table = metrics.table(events(started() + "".join(lines)), logging_steps=5)
    assert table["step"].tolist() == [5, 10, 15, 25, 30]
    assert table["micro_batches"].tolist() == [10] * 5


def test_a_resumed_run_begins_where_it_was_resumed():
    text = started() + "x >>   Continuing training from global step 7\n" + window(epoch=0.27) + window(epoch=0.4)
    table = metrics.table(events(text), logging_steps=5)
    assert table["step"].tolist() == [10, 15]
    assert table["micro_batches"].tolist() == [6, 10]  # steps 8, 9, 10; then 11 to 15


def test_a_resumed_run_reconciles_from_where_it_was_resumed(tmp_path):
    state = json.loads((FIXTURES / "demo-trainer-state-30.json").read_text())
    text = DEMO.read_text().replace("Total optimization steps = 30", "Continuing training from global step 10")
    parser = logs.Parser()
    kept = [e for e in parser.feed(text.encode()) if e.kind != "metrics" or e.data["epoch"] > 0.29]
    differences = metrics.reconcile(metrics.table(kept), FIXTURES / "demo-trainer-state-30.json")
    assert differences.empty
    assert differences.attrs["compared"] == 147 - 47 and state["global_step"] == 30


def test_logging_first_step_adds_a_window_of_one_step():
    text = "│ train_loop_config/args/logging_first_step    True │\n│ train_loop_config/args/logging_steps    4 │\n"
    text += started() + "".join(window(epoch=round(step * 2 / 75, 2)) for step in (1, 4, 8))
    table = metrics.table(events(text))
    assert table["step"].tolist() == [1, 4, 8] and table["micro_batches"].tolist() == [2, 6, 8]


def test_logging_steps_below_one_are_a_share_of_all_steps():
    text = "│ train_loop_config/args/logging_steps    0.1 │\n" + started(steps=114) + window(epoch=round(24 / 75, 2))
    assert metrics.table(events(text))["step"].tolist() == [12]


def test_missing_keys_are_missing_and_nan_stays_nan():
    table = metrics.table(events("{'loss': nan, 'grad_norm': inf, 'learning_rate': 1e-05, 'kl': nan, 'epoch': 0.1}\n"), 1)
    assert math.isnan(table.loc[0, "loss"]) and table.loc[0, "grad_norm"] == math.inf
    assert math.isnan(table.loc[0, "rewards/chosen"])


def test_evaluations_are_rows_of_their_own():
    text = ("│ train_loop_config/args/eval_steps    10 │\n" + started() + window(epoch=0.13) + window(epoch=0.27)
            + "***** Running Evaluation *****\n  Num examples = 70\n  Batch size = 2\n"
            + str({"eval_loss": 0.49, "eval_runtime": 3.0, "eval_rewards/chosen": 0.2, "eval_rewards/rejected": -0.1,
                   "eval_rewards/margins": 0.3, "kl": 1.8, "epoch": 0.27}) + "\n" + window(epoch=0.4))
    table = metrics.table(events(text), logging_steps=5)
    assert table["split"].tolist() == ["train", "train", "eval", "train"]
    held_out = table[table["split"] == "eval"].iloc[0]
    assert (held_out["step"], held_out["loss"], held_out["rewards/margins"]) == (10, 0.49, 0.3)
    assert held_out["micro_batches"] == 9 and held_out["kl_mean"] == 0.2  # ceil(70 / (2 rows · 4 workers))


def test_the_last_of_several_runs_is_meant():
    table = metrics.table(events(REFERENCE.read_text() + DEMO.read_text()))
    assert table.attrs["runs"] == 2 and len(table) == 15


def test_a_second_node_that_prints_too_is_not_counted_twice():
    nodes = ["(RayTrainWorker pid=11, ip=10.0.0.1) ", "(RayTrainWorker pid=22, ip=10.0.0.2) "]
    assert len(metrics.table(events("".join(node + window() for node in nodes)), 1)) == 1


def test_an_empty_log_is_an_empty_table():
    table = metrics.table(events(""))
    assert table.empty and list(table.columns) == metrics.COLUMNS
    assert metrics.summary(table) == "No training window was logged yet."


def test_a_table_survives_its_file(tmp_path):
    def read(table):
        lines = metrics.write_jsonl(table, tmp_path / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line, parse_constant=lambda word: pytest.fail(f"{word} is not JSON")) for line in lines]

    for name in ("reference", "cpu-two-workers"):
        table = metrics.table(FIXTURES / f"{name}.log")
        pd.testing.assert_frame_equal(pd.DataFrame(read(table)).astype(table.dtypes), table, check_exact=True)
    strange = read(metrics.table(events(window(loss=math.inf) + window(loss=math.nan)), 1))
    assert [line["loss"] for line in strange] == ["inf", None]


def test_the_noise_band_is_the_standard_error_where_its_assumptions_hold():
    random, spread = np.random.default_rng(1), 0.8
    table = pd.DataFrame({
        "step": range(400), "split": "train", "rows": 10.0,
        "rewards/chosen": random.normal(0.3, spread / 5**0.5, 400), "rewards/rejected": random.normal(-0.3, spread / 5**0.5, 400),
    })
    band = metrics.band(table)
    assert band["rewards/chosen"].mean() == pytest.approx(spread / 5**0.5, rel=0.1)
    assert band["rewards/margins"].mean() == pytest.approx(spread * (2 / 5) ** 0.5, rel=0.1)


def test_the_summary_tells_a_preference_from_chance():
    assert "accepted rows are preferred" in metrics.summary(metrics.table(REFERENCE))
    assert "within chance" in metrics.summary(metrics.table(FIXTURES / "h200-two-workers.log"))
    assert "nan" not in metrics.summary(metrics.table(FIXTURES / "cpu-two-workers.log"))


ODD = st.integers(-2, 40) | st.floats() | st.text(max_size=5) | st.booleans()
FACTS = ["num_examples", "per_device_train_batch_size", "gradient_accumulation_steps", "total_train_batch_size",
         "world_size", "logging_steps", "logging_first_step", "total_steps", "resumed_from", "eval_steps",
         "eval_batch_size", "eval_examples", "logging_strategy"]
NAMES = st.sampled_from([*metrics.LOGGED, "epoch", "eval_loss", "eval_rewards/chosen"])
KINDS, RUNS = st.sampled_from(["metrics", "eval"]), st.integers(0, 2)
EVENT = (st.builds(logs.Event, KINDS, st.dictionaries(NAMES, ODD), st.none(), RUNS)
         | st.builds(logs.Event, st.just("config"), st.dictionaries(st.sampled_from(FACTS), ODD)))


@settings(max_examples=200, deadline=None)
@given(st.lists(EVENT, max_size=12))
def test_any_log_whatever_its_facts_is_a_table_or_refused(odd):
    try:
        table = metrics.table(odd)
    except KitError:
        table = metrics.table(odd, logging_steps=1)
    assert list(table.columns) == metrics.COLUMNS and table["step"].is_monotonic_increasing
    metrics.summary(table)
    metrics.band(table)
    watchdog.diagnose(table, finished=True)


def test_an_evaluation_is_placed_by_its_epoch_where_the_bar_lagged_behind():
    facts = {"num_examples": 24, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "logging_steps": 2}
    events = [
        logs.Event("config", facts),
        logs.Event("progress", {"task": "training", "done": 2, "total": 6}),
        logs.Event("metrics", {"loss": 0.5, "kl": 0.0, "epoch": 0.33}),
        logs.Event("eval", {"eval_loss": 0.4, "kl": 0.0, "epoch": 0.5}),
        logs.Event("metrics", {"loss": 0.4, "kl": 0.0, "epoch": 0.67}),
    ]
    table = metrics.table(events)
    assert table[table["split"] == "eval"]["step"].tolist() == [3]


def test_the_launches_of_a_run_are_one_curve_in_which_the_later_counts(tmp_path):
    bar = "\r  1%|1         | {}/114 [00:01<00:09,  1.00it/s]\n"
    first = started() + "".join(bar.format(step) + window(loss=step / 100, epoch=step / 50) for step in (1, 2, 3))
    killed_early = "x >> loading file tokenizer.json\n" + started()
    going_on = "x >>   Continuing training from global step 2\n"
    second = started() + going_on + bar.format(3) + window(loss=0.5, epoch=0.06)
    log = tmp_path / "train.log"
    log.write_text(first + killed_early + killed_early + second)
    table = metrics.table(log, 1)
    assert table["step"].tolist() == [1, 2, 3] and table["loss"].tolist() == [0.01, 0.02, 0.5]


def test_two_nodes_whose_workers_share_a_pid_give_the_same_table_as_with_others():
    same, other = metrics.table(OTHERS / "same_pid.log"), metrics.table(OTHERS / "control_other_pid.log")
    assert same["step"].tolist() == [2, 4, 6, 8, 10, 12] and same["rewards/chosen"].notna().all()
    pd.testing.assert_frame_equal(same, other)


def test_worker_0_is_the_one_that_ray_names_also_where_another_speaks_first():
    losses, whole = window(), window(**{"rewards/chosen": 0.5})
    node = "(RayTrainWorker pid=7, ip=10.0.0.2) "
    for named, here in (("- (node_id=ab, ip=10.0.0.1, pid=7) world_rank=0, local_rank=0", "(RayTrainWorker pid=7) "),
                        ("- (ip=10.0.0.1, pid=7) world_rank=0, local_rank=0", "(RayTrainWorker pid=7, ip=10.0.0.1) "), ("", "(A pid=1) ")):
        table = metrics.table(events(f"(TrainController pid=3) {named}\n{node}{losses}{here}{whole}"), 1)
        assert table["rewards/chosen"].tolist() == [0.5]


@pytest.mark.parametrize("begin", ["", "[default0]:", "0: "])
def test_two_nodes_whose_lines_cannot_be_told_apart_give_each_window_once(begin):
    """torchrun under srun, or pods in one file: the second node's first worker prints the window too, without rewards."""
    bare = re.sub(r"(?m)^(?:\x1b\[\d+m)?\(\w+ pid=[^)]*\)(?:\x1b\[0m)? ?", begin, (OTHERS / "same_pid.log").read_text())
    for text in (bare, re.sub(r"(\{'loss'.*kl.*\})", r"\1\n\1", bare)):  # TRL's windows are whole on both nodes
        table = metrics.table(events(text))
        assert table["step"].tolist() == [2, 4, 6, 8, 10, 12] and table["rewards/chosen"].notna().all()


def test_a_log_without_its_head_has_its_steps_from_the_bars_where_they_fit_and_is_refused_where_not():
    text = REFERENCE.read_text()
    text = text[[found.start() for found in re.finditer(r"\{'loss'", text)][3] + 50 :]
    table = metrics.table(events(text))
    assert table["step"].tolist() == list(range(25, 111, 5)) and "progress bars" in table.attrs["notes"][0]
    assert metrics.table(events(text), 5)["step"].tolist() == list(range(25, 111, 5))
    late = "\r 96%|#  | 110/114 [02:46<00:09,  1.54s/it]\n" + "".join(window(epoch=epoch) for epoch in (0.4, 0.5, 0.6))
    with pytest.raises(KitError, match="nothing in this log says"):
        metrics.table(events(late))  # a buffer came after the bars
    assert metrics.table(events(late), 5)["step"].tolist() == [5, 10, 15]


def test_transformers_5_gives_the_steps_and_to_four_digits_the_values_of_version_4():
    four, five = metrics.table(OTHERS / "control_0_9_3.log"), metrics.table(OTHERS / "llamafactory_0_9_5.log")
    assert four["step"].tolist() == five["step"].tolist() == [5, 10, 15, 20]
    assert five["rewards/chosen"].tolist() == [float(f"{value:.4g}") for value in four["rewards/chosen"]]
    assert five["kl_mean"].tolist() == pytest.approx(four["kl_mean"].tolist(), rel=1e-3)
    assert (four.attrs["digits"], five.attrs["digits"]) == (17, 4)


def test_the_four_digits_of_transformers_5_reconcile_with_the_record_of_all_of_them(tmp_path):
    state = json.loads((FIXTURES / "demo-trainer-state-30.json").read_text())
    text = DEMO.read_text()
    for record in state["log_history"]:
        if "loss" in record:
            short = {key: f"{record[key]:.4g}" for key in sorted(record, key=lambda key: key != "loss") if key != "step"}
            old = next(line for line in text.splitlines() if f"'epoch': {round(record['epoch'], 2)}}}" in line and "'loss'" in line)
            text = text.replace(old, str(short))
    differences = metrics.reconcile(metrics.table(events(text)), FIXTURES / "demo-trainer-state-30.json")
    assert differences.empty and differences.attrs["compared"] == 147


def test_a_short_last_group_is_divided_by_its_own_size_from_transformers_4_54_on():
    text = REFERENCE.read_text()
    new = metrics.table(events('  "transformers_version": "4.57.1",\n' + text)).set_index("step")
    assert new.loc[40, "loss_mean"] == new.loc[40, "loss"] and new.loc[40, "kl_mean"] == new.loc[40, "kl"] / 9


def test_the_web_uis_second_line_of_a_window_is_dropped():
    short = "[INFO|2026-05-02 18:40:11] llamafactory.train.callbacks:143 >> {'loss': 0.5000, 'learning_rate': 1.0000e-05, 'epoch': 0.13}"
    whole = window(0.5, 0.13, **{"rewards/chosen": -0.25}).strip()
    for text in (f"{short}\n{whole}\n" * 3, f"{whole}\n{short}\n" * 3):
        text = "".join(line.replace("0.13", f"{0.13 + at // 2:.2f}") + "\n" for at, line in enumerate(text.splitlines()))
        assert metrics.table(events(text), 1)["rewards/chosen"].tolist() == [-0.25] * 3
    alone = metrics.table(events("".join(short.replace("0.13", f"0.{k}3") + "\n" for k in range(3))), 1)
    assert alone["epoch"].tolist() == [0.03, 0.13, 0.23]


def test_several_held_out_sets_are_told_apart():
    """LLaMA-Factory 0.9.3, eval_on_each_dataset, sets of 5 and 10 rows, every two steps."""
    table = metrics.table(FIXTURES / "several-held-out-sets.log")
    assert table[["step", "split"]].values.tolist() == [
        [1, "train"], [2, "train"], [2, "eval_held"], [2, "eval_train"], [3, "train"], [4, "train"], [4, "eval_held"], [4, "eval_train"]]
    held, other = (table[table["split"] == split].iloc[0] for split in ("eval_held", "eval_train"))
    assert (held["loss"], other["loss"]) == (0.5070651769638062, 0.4123835563659668)
    assert (held["rewards/margins"], other["rewards/margins"]) == (-0.07606988400220871, 0.726839005947113)
    assert (held["rows"], other["rows"]) == (5, 10) and (held["micro_batches"], other["micro_batches"]) == (1, 2)
    assert "held out (held), step 4" in metrics.summary(table)


def test_ray_train_v2_is_read_like_v1():
    """Recorded on Ray 2.48 with RAY_TRAIN_V2_ENABLED=1; the report lines of later versions are in test_logs."""
    table = metrics.table(FIXTURES / "ray-train-v2.log")
    assert table["step"].tolist() == [1, 2, 3, 4] and table["rows"].tolist() == [4, 2, 4, 2]
    reports = (FIXTURES / "ray-train-v2.log").read_text().replace(
        "{'loss'", "Reporting training result 1: TrainingReport(metrics={'loss': 0.5, 'epoch': 0.1})\n(RayTrainWorker pid=18051) {'loss'")
    assert len(metrics.table(events(reports))) == 4


@pytest.mark.parametrize(("version", "reports"), [("v1", 0), ("v2", 6)])
def test_the_launchers_curves_are_one_record_a_window_however_many_workers_report_it(version, reports):
    """helpers.trainer with two workers, 60 steps and 3 saves: Ray 2.48 on Train V1, Ray 2.60 on Train V2 (each worker prints each report)."""
    log = FIXTURES / f"launcher-{version}-two-workers.log"
    text, table = log.read_text(), metrics.table(log)
    assert len(set(re.findall(r"RayTrainWorker pid=(\d+)", text))) == 2 and text.count("Reporting training result") == reports
    assert table["step"].tolist() == list(range(2, 61, 2)) and table.attrs["runs"] == 1
    differences = metrics.reconcile(table, FIXTURES / f"launcher-{version}-trainer-state-60.json")
    assert differences.empty and differences.attrs["compared"] >= 300


def test_a_log_of_trl_has_means_over_all_workers():
    """TRL 0.9.6's KTOTrainer, one process: kl is a mean and its evaluation has the prefix."""
    table = metrics.table(FIXTURES / "trl-kto.log")
    assert table.attrs["written_by"] == "trl" and table.attrs["rows of"] == "all workers"
    train = table[table["split"] == "train"]
    assert train["step"].tolist() == [2, 4, 6] and train["kl_mean"].equals(train["kl"])
    held = table[table["split"] == "eval"]
    assert held["step"].tolist() == [3, 6] and held["kl"].notna().all() and held["rewards/margins"].notna().all()


def test_metrics_of_all_workers_are_said_to_be_that_and_their_band_is_narrower():
    text = DEMO.read_text()
    alone, together = metrics.table(events(text)), metrics.table(events("[kto] metrics of all 2 workers\n" + text))
    assert (alone.attrs["rows of"], together.attrs["rows of"]) == ("worker 0", "all workers")
    assert together["rows"].tolist() == (2 * alone["rows"]).tolist() and together["kl_mean"].equals(alone["kl_mean"])
    rows = np.random.default_rng(2).normal(0.3, 0.8, (400, 2, 5))  # windows, workers, rows of a label
    means = {1: rows[:, 0].mean(axis=1), 2: rows.mean(axis=(1, 2))}
    bands = [metrics.band(pd.DataFrame({"step": range(400), "split": "train", "rows": 10.0 * workers, "rewards/chosen": mean,
                                        "rewards/rejected": mean}))["rewards/chosen"].mean() for workers, mean in means.items()]
    assert bands[1] / bands[0] == pytest.approx(0.5**0.5, rel=0.1)


def test_a_torchrun_log_without_ray_is_read():
    table = metrics.table(FIXTURES / "torchrun-two-workers.log")
    assert table["step"].tolist() == [1, 2, 3, 4] and table["rows"].tolist() == [4, 2, 4, 2]


def test_workers_that_were_replaced_go_on_with_the_facts_said_at_the_launch(tmp_path):
    ray, group = "INFO worker.py:1927 -- Started a local Ray instance.\n", "(TrainController pid=1) Started training worker group of size 2: \n"
    again = group + started(steps=8) + "x >>   Continuing training from global step 4\n" + window(epoch=0.16) + window(epoch=0.21)
    log = tmp_path / "train.log"
    log.write_text(ray + "[kto] logging_steps: 2\n" + group + started(steps=8) + window(epoch=0.05) + window(epoch=0.11) + again)
    table = metrics.table(log)
    assert table["step"].tolist() == [2, 4, 6, 8] and table.attrs["logging_steps_from"] == "config"
    log.write_text(log.read_text() + ray + group + window(epoch=0.05))  # another launch says its own
    with pytest.raises(KitError, match="nothing in this log says"):
        metrics.table(log)
