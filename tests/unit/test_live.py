"""The live view: what it knows after a recorded log, how often it draws, and what it leaves in a notebook."""

import io
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from helpers import logs, metrics
from helpers.errors import KitError
from helpers.logs import Event
from helpers.plots import live, livehtml

DEMO = Path(__file__).parent.parent / "fixtures" / "demo-two-workers.log"


@pytest.fixture(scope="module")
def events():
    return list(logs.parse_file(DEMO))


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until told: `clock[0] += 1`."""
    now = [1000.0]
    monkeypatch.setattr(live.time, "monotonic", lambda: now[0])
    return now


def state_at(events, step: int) -> live.State:
    """What is known when the window that ends with `step` was just logged."""
    state = live.State()
    for event in events:
        state.fold(event)
        if event.kind == "metrics" and state.step >= step:
            break
    return state


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Page(HTMLParser):
    """Checks that every tag that opens is closed, and keeps the labels of the pictures."""

    def __init__(self, html: str):
        super().__init__()
        self.open, self.labels, self.words = [], [], ""
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.open.append(tag)
        self.labels += [value for name, value in attributes if name == "aria-label"]

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words += data


def test_the_numbers_are_those_of_the_log(events):
    shown = state_at(events, 16).numbers()
    assert shown["phase"] == "training" and shown["step"] == "16/30 (53 %)" and shown["learning rate"] == "0.000117"
    assert (shown["loss"], shown["chosen"], shown["rejected"], shown["margin"]) == ("0.466", "0.225", "0.0293", "0.196")
    assert shown["KL"] == "0.461" and shown["rows/s"] == "0.749" and shown["left"]


def test_the_live_curves_are_those_of_the_final_table(events):
    state, table = state_at(events, 30), metrics.table(events)
    for column in ("loss", "rewards/chosen", "rewards/rejected", "rewards/margins", "kl_mean"):
        source = table["loss_mean"] if column == "loss" else table[column]
        expected = {step: value for step, value in zip(table["step"], source, strict=True) if value == value}
        assert dict(state.curves[column]) == pytest.approx(expected), column


def test_a_short_last_group_of_an_epoch_is_reckoned_with():
    events, state = list(logs.parse_file(DEMO.with_name("reference.log"))), live.State()
    for event in [Event("config", {"logging_steps": 5}), *events]:  # that log does not say
        state.fold(event)
    table = metrics.table(events)
    assert [value for _, value in state.curves["kl_mean"]] == pytest.approx(list(table["kl_mean"]))
    assert [value for _, value in state.curves["loss"]] == pytest.approx(list(table["loss_mean"]))


def test_checkpoints_are_known_by_their_steps(events):
    assert state_at(events, 30).checkpoints[:2] == [10, 20]


def test_evaluations_are_kept_apart_with_kl_a_batch():
    state = live.State(total_steps=10)
    state.fold(Event("progress", {"task": "training", "done": 5, "total": 10, "elapsed": 5.0, "remaining": 5.0}))
    state.fold(Event("progress", {"task": "evaluating", "done": 4, "total": 4, "elapsed": 1.0, "remaining": 0.0}))
    state.fold(Event("eval", {"eval_loss": 0.4, "eval_rewards/margins": 0.2, "kl": 2.0}))
    assert state.held_out == {"loss": [(5, 0.4)], "rewards/margins": [(5, 0.2)], "kl_mean": [(5, 0.5)]}
    assert not state.curves and state.step == 5


def test_tokens_a_second_are_shown_where_the_log_counts_tokens():
    state = live.State(10)
    state.fold(Event("progress", {"task": "training", "done": 5, "total": 10, "elapsed": 10.0, "remaining": 10.0}))
    assert "tokens/s" not in state.numbers()
    state.fold(Event("metrics", {"loss": 0.5, "num_input_tokens_seen": 5000}))
    assert state.numbers()["tokens/s"] == "500"


def test_rows_a_second_of_a_resumed_run_leave_out_what_was_done_before():
    state = live.State()
    state.fold(Event("config", {"total_train_batch_size": 8, "resumed_from": 20}))
    state.fold(Event("progress", {"task": "training", "done": 30, "total": 40, "elapsed": 10.0, "remaining": None}))
    assert state.numbers()["rows/s"] == "8" and "left" not in state.numbers()


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), "what"])
def test_a_value_that_is_no_number_breaks_nothing(loss):
    state = live.State(10)
    state.fold(Event("config", {"gradient_accumulation_steps": 2}))
    state.fold(Event("progress", {"task": "training", "done": 2, "total": 10, "elapsed": None, "remaining": None}))
    state.fold(Event("metrics", {"loss": loss}))
    state.fold(Event("metrics", {}))
    assert not state.curves["loss"] and state.line() and Page(livehtml.page(state)).open == []


@pytest.mark.parametrize("step", [2, 10, 30])
def test_the_card_is_whole_and_labels_every_panel(events, step):
    page = Page(livehtml.page(state_at(events, step)))
    assert page.open == [] and len(page.labels) == 4
    assert page.labels[0].startswith("Loss: loss 0.") and "chosen" in page.labels[1]


def test_the_card_of_a_run_that_has_not_started_is_whole():
    page = Page(livehtml.page(live.State()))
    assert page.open == [] and page.labels[0] == "Loss: nothing yet" and "starting" in page.words


def test_the_card_marks_checkpoints_on_the_bar_and_in_the_panels(events):
    state = state_at(events, 30)
    html = livehtml.page(state)
    assert html.count("stroke-dasharray=\"2 3\"") == 4 * len(state.checkpoints)
    assert html.count("left:33.33%") == html.count("left:66.67%") == 1


def test_what_a_log_says_cannot_break_out_of_the_card(events):
    state = state_at(events, 10)
    state.fold(Event("warning", {"text": "<script>alert(1)</script>"}))
    assert "<script>" not in livehtml.page(state) and "alert(1)" in Page(livehtml.page(state)).words


def test_ten_thousand_points_stay_small_and_keep_their_extremes():
    state = live.State(10_000, micro_batches=1)
    for step in range(1, 10_001):
        state.step = step
        state.fold(Event("metrics", {"loss": 0.5 + (step == 5000), "kl": 0.1, "rewards/chosen": 1.0}))
    means, outline = livehtml.bucketed(state.curves["loss"])
    assert len(means) <= livehtml.BUCKETS and max(value for _, value in outline) == 1.5
    assert len(livehtml.page(state)) < 60_000


@pytest.mark.parametrize("low, high", [(0, 1), (-0.03, 0.41), (0, 1e-7), (-5e6, 5e6), (0.4999, 0.5001)])
def test_ticks_are_few_round_and_within(low, high):
    ticks = livehtml.ticks(low, high)
    assert 2 <= len(ticks) <= 8 and all(low - 1e-12 <= tick <= high + 1e-12 for tick in ticks)
    assert all(re.fullmatch(r"-?[0-9.]+(e[-+]\d+)?", f"{tick:.4g}") for tick in ticks)


def test_it_redraws_at_most_twice_a_second_and_only_if_something_changed(clock, capsys):
    view = live.LiveView(100, mode="quiet")
    drawn = []
    view._show = lambda: drawn.append(clock[0])
    for place in range(100):
        clock[0] += 0.1
        view.feed([Event("progress", {"task": "training", "done": place, "total": 100})])
    assert 18 <= len(drawn) <= 20
    clock[0] += 10
    view.feed([])
    held_back = len(drawn)
    clock[0] += 10
    view.feed([])
    assert len(drawn) == held_back


def test_quiet_prints_each_tenth_of_the_steps(events, clock, capsys):
    view = live.LiveView(mode="quiet")
    for event in events:
        clock[0] += 0.6
        view.feed([event])
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "starting" and sum(line.startswith("step ") for line in said) <= 25
    tenths = {int(re.search(r"step (\d+)/30", line)[1]) // 3 for line in said if line.startswith("step")}
    assert tenths >= set(range(1, 11))


def test_quiet_prints_again_after_thirty_seconds_on_a_slow_run(clock, capsys):
    view = live.LiveView(1000, mode="quiet")
    for step in range(1, 61):
        clock[0] += 1
        view.feed([Event("progress", {"task": "training", "done": step, "total": 1000})])
    said = [line.split(":")[0] for line in capsys.readouterr().err.splitlines()]
    assert said == ["starting", "step 30/1000 (3 %)", "step 60/1000 (6 %)"]


def test_a_terminal_gets_one_line_on_stderr_and_the_words_on_stdout(events, clock, monkeypatch, capsys):
    screen = Terminal()
    monkeypatch.setattr(live.sys, "stderr", screen)
    view = live.LiveView(mode="terminal")
    for event in events:
        clock[0] += 1
        view.feed([event])
    view.close(metrics.table(events))
    assert "step 30/30 (100 %)" in screen.getvalue() and screen.getvalue().count("\n") <= 1
    assert capsys.readouterr().out == metrics.summary(metrics.table(events)) + "\n"


def test_a_stderr_that_is_no_terminal_gets_lines(events, capsys):
    live.LiveView(mode="terminal").feed(events)
    assert "\r" not in capsys.readouterr().err


@pytest.mark.parametrize("setting, kernel, mode", [
    ("off", True, "quiet"), ("off", False, "quiet"), ("", True, "notebook"), ("", False, "terminal")])
def test_the_mode_follows_the_environment(monkeypatch, setting, kernel, mode):
    monkeypatch.setenv("KTO_LIVE", setting)
    assert live.chosen_mode(kernel) == mode


def test_a_fault_of_the_view_does_not_end_the_training_and_is_said_once(clock, capsys):
    view = live.LiveView(10, mode="quiet")
    for _ in range(2):
        view.feed([Event("progress", {"nonsense": True})])
    said = capsys.readouterr().err.splitlines()
    assert said == ["starting", "the live view missed something: KeyError('task')"]


def test_an_unknown_mode_is_an_error_that_lists_the_valid_ones():
    with pytest.raises(KitError, match="did you mean 'notebook'"):
        live.LiveView(mode="notebok")


def test_a_run_without_metrics_ends_in_words(capsys):
    live.LiveView(mode="quiet").close(None)
    assert "nothing to draw" in capsys.readouterr().out


@pytest.mark.parametrize("seconds, words", [(None, ""), (8, "8 s"), (200, "3 min 20 s"), (7300, "2 h 1 min")])
def test_durations_read_as_people_say_them(seconds, words):
    assert live.duration(seconds) == words


@pytest.mark.slow
def test_a_notebook_keeps_the_full_bar_or_the_picture_and_the_words_and_nothing_else():
    """In a real kernel, both ways: the live display, and KTO_LIVE=off."""
    import nbformat
    from nbclient import NotebookClient

    cell = f"""import os, time
    from helpers import logs, metrics
    from helpers.plots import live
    os.environ["KTO_LIVE"] = "MODE"
    live.EVERY = 0.0
    events = list(logs.parse_file({str(DEMO)!r}))
    view = live.LiveView()
    for place in range(0, len(events), 20):
        view.feed(events[place : place + 20])
    view.close(metrics.table(events))""".replace("\n    ", "\n")
    cells = [nbformat.v4.new_code_cell(cell.replace("MODE", mode)) for mode in ("", "off")]
    notebook = nbformat.v4.new_notebook(cells=cells)
    NotebookClient(notebook, timeout=120).execute()
    words = metrics.summary(metrics.table(DEMO))
    (card, said), (picture, said_too) = (ran.outputs for ran in notebook.cells)
    assert 'aria-valuenow="100"' in card.data["text/html"] and "finished" in card.data["text/html"]
    assert picture.output_type == "display_data" and set(picture.data) == {"image/png", "text/html", "text/plain"}
    assert picture.metadata["image/png"]["alt"].startswith("Loss: loss from")
    assert said.name == said_too.name == "stdout" and said.text == said_too.text == words + "\n"
