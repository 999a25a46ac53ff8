"""Following a training run: the log is recorded from a real one, the process that prints it is a stand-in."""

import time
from pathlib import Path

import pytest
import yaml

from helpers import live, logs, metrics
from helpers.errors import Finding, KitError
from helpers.logs import Event

LOGS = Path(__file__).parents[1] / "fixtures"
DEMO = LOGS / "demo-two-workers.log"


class Replayed:
    """A training that writes a recorded log: what `live.follow` asks of a launch.Training, with no process behind it."""

    def __init__(self, run, log, pause=0.0, looks=4):
        self.run, self.pause, self.stopped, self.looks = run, pause, False, looks
        run.log_file.write_bytes(log.read_bytes() if log else b"")

    def events(self):
        every = list(logs.parse_file(self.run.log_file))
        size = max(1, len(every) // self.looks)
        for place in range(0, len(every) or 1, size):
            time.sleep(self.pause)
            yield every[place : place + size]
        for _ in range(3):
            time.sleep(self.pause)
            yield []

    def stop(self):
        self.stopped = True

    def check(self):
        return self


class Tracker:
    def __init__(self):
        self.tables = []

    def send(self, table):
        self.tables.append(len(table))


@pytest.fixture
def replay(run, monkeypatch):
    monkeypatch.setattr(live, "LOOK", 0.0)
    monkeypatch.setattr(live, "SHARE", 1e9)
    run.config_file.write_text(yaml.safe_dump({"logging_steps": 2, "max_steps": 30}))
    return lambda log, **options: Replayed(run, log, **options)


def test_a_healthy_training_is_followed_to_its_table_and_its_summary(replay, capsys):
    tracker = Tracker()
    table = live.follow(replay(DEMO), tracker)
    assert list(table["step"]) == list(range(2, 31, 2))
    assert tracker.tables == sorted(set(tracker.tables)) and tracker.tables[-1] == 15  # sent only when it has grown
    said = capsys.readouterr()
    assert said.out == metrics.summary(table) + "\n" and "step 30 of 30" in said.err


def test_lines_say_step_loss_margin_and_kl_as_the_table_has_them(replay, capsys):
    table = live.follow(replay(DEMO))
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("finished, step 30 of 30") and f"loss {table['loss'].iloc[-1]:.3g}" in last
    assert f"margin {table['rewards/margins'].iloc[-1]:.3g}" in last and f"KL {table['kl_mean'].iloc[-1]:.3g}" in last


def test_a_problem_is_said_once_and_training_goes_on(replay, capsys):
    live.follow(replay(sorted((LOGS / "ill").glob("*.log"))[-1], looks=8))
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("[")]
    assert lines and len({line.split(":")[0] for line in lines}) == len(lines)


def test_asked_to_it_stops_at_the_first_problem_and_says_why(replay):
    training = replay(sorted((LOGS / "ill").glob("*.log"))[-1])
    with pytest.raises(KitError, match="stopped by the watchdog") as error:
        live.follow(training, stop_on_problem=True)
    assert training.stopped and "fix:" in str(error.value)


def test_workers_that_never_come_are_noticed(replay):
    with pytest.raises(KitError, match="stopped by the watchdog.*"):
        live.follow(replay(None, pause=0.1), stop_on_problem=True, patience=0.15)


def test_looking_at_a_long_run_stays_a_small_part_of_the_time(replay, monkeypatch):
    looks, stock = [], metrics.table
    monkeypatch.setattr(live, "SHARE", 0.25)
    monkeypatch.setattr(live.metrics, "table", lambda *given, **named: (looks.append(1), time.sleep(0.1), stock(*given, **named))[2])
    began = time.monotonic()
    live.follow(replay(DEMO, pause=0.05, looks=30))
    assert len(looks) < 2 + (time.monotonic() - began) / 0.3


def test_a_run_without_metrics_ends_in_words(replay, capsys):
    live.follow(replay(None))
    assert "nothing to draw" in capsys.readouterr().out


def test_checkpoints_are_known_by_their_steps():
    view = live.View(30)
    view.take(logs.parse_file(DEMO))
    assert sorted(view.checkpoints)[:2] == [10, 20] and view.done == view.total == 30


def test_printed_lines_come_at_each_tenth_and_after_thirty_seconds(monkeypatch, capsys):
    now = [1000.0]
    monkeypatch.setattr(live.time, "monotonic", lambda: now[0])
    view, empty = live.View(1000), metrics.table([], logging_steps=1)
    for step in range(1, 201):
        now[0] += 1
        view.take([Event("progress", {"task": "training", "done": step, "total": 1000})])
        view.show(empty)
    steps = [int(line.split()[2]) for line in capsys.readouterr().err.splitlines()]
    assert {1, 100, 200} <= set(steps) and len(steps) < 12


def test_what_a_finding_says_cannot_break_out_of_the_card(monkeypatch):
    import IPython.display

    shown = []
    view = live.View(10)
    view.kernel = view.watched = True
    monkeypatch.setattr(IPython.display, "display", lambda data, **how: shown.append(data["text/html"]))
    view.show(metrics.table([], logging_steps=1), [Finding("WARN", "<script>alert(1)</script>")])
    assert "<script>" not in shown[0] and "alert(1)" in shown[0]


@pytest.mark.slow
def test_a_notebook_keeps_the_bar_with_words_one_figure_and_the_summary_and_nothing_else(tmp_path):
    """In a real kernel, both ways: watched, and with KTO_LIVE=off."""
    import nbformat
    from nbclient import NotebookClient

    cell = f"""import os, sys
    from pathlib import Path
    sys.path.insert(0, {str(Path(__file__).parent)!r})
    from helpers import live, runs
    from test_live import DEMO, Replayed
    os.environ["KTO_LIVE"] = "MODE"
    live.LOOK, live.SHARE = 0.0, 1e9
    run = runs.locate("local", {str(tmp_path)!r}, "watched")
    run.folder.mkdir(exist_ok=True)
    run.config_file.write_text("logging_steps: 2")
    table = live.follow(Replayed(run, DEMO))""".replace("\n    ", "\n")
    cells = [nbformat.v4.new_code_cell(cell.replace("MODE", mode)) for mode in ("", "off")]
    notebook = nbformat.v4.new_notebook(cells=cells)
    NotebookClient(notebook, timeout=480).execute()
    for ran in notebook.cells:
        card, figure, said = ran.outputs
        assert card.output_type == figure.output_type == "display_data" and 'value="30" max="30"' in card.data["text/html"]
        assert "finished, step 30 of 30" in card.data["text/html"] and "<img" not in card.data["text/html"]
        assert card.data["text/plain"].startswith("finished, step 30 of 30")
        assert "image/png" in figure.data and "text/html" not in figure.data
        assert "finished, step 30 of 30" in figure.metadata["image/png"]["alt"]
        assert said.name == "stdout" and said.text == metrics.summary(metrics.table(DEMO, 2)) + "\n"
