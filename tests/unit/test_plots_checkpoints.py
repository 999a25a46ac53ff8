"""The timeline of saves: what is drawn, and what a failure costs, computed apart from the drawing."""

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

from helpers import figures

START = datetime(2026, 11, 23, 1, 0, tzinfo=UTC)


def save(step, complete=True, trial="TorchTrainer_a_00000_0", seconds=None, layout="Ray Train"):
    return SimpleNamespace(step=step, complete=complete, trial=trial, layout=layout,
                           time=START + timedelta(seconds=60 + 9 * step if seconds is None else seconds))


def test_a_failure_costs_the_steps_since_the_last_complete_save():
    steps, minutes = figures.cost([save(10), save(20, complete=False), save(30)], 40, 6.0, 60.0)
    assert steps == [0, 10, 10, 30, 30, 40]
    assert minutes == [1.0, 2.0, 1.0, 3.0, 1.0, 2.0]


def test_without_any_save_a_failure_costs_everything():
    assert figures.cost([], 30, 60.0, 0.0) == ([0, 30], [0.0, 30.0])


def test_pace_and_start_up_follow_from_the_times_of_the_saves():
    saves = [save(10), save(20), save(30), save(30, trial="output", layout="output_dir")]
    assert figures.timing(saves, START.isoformat()) == (9.0, 60.0)


def test_with_one_save_all_of_the_time_is_in_the_steps():
    assert figures.timing([save(10)], START.isoformat()) == (15.0, 0.0)


def test_of_several_trials_the_newest_gives_the_pace():
    later = [save(40, trial="TorchTrainer_b", seconds=5000), save(50, trial="TorchTrainer_b", seconds=5040)]
    assert figures.timing([save(10), save(20), *later], START.isoformat())[0] == 4.0


def test_the_timeline_says_its_worst_case_and_draws_a_row_a_trial():
    saves = [save(10), save(20, complete=False), save(30, trial="output", layout="output_dir")]
    figure = figures.timeline(saves, 40, 6.0, 60.0, chosen=saves[0], title="first-run")
    above, below = figure.axes
    assert [label.get_text() for label in above.get_yticklabels()] == ["TorchTrainer_a", "output"]
    assert below.get_title() == "What a failure costs: 3.0 minutes at worst"
    assert {text.get_text() for text in above.get_legend().get_texts()} == {"complete", "not complete", "chosen"}
    assert figure.get_suptitle() == "first-run"
