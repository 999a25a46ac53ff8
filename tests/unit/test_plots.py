"""What the figures draw, read off their artists: data, labels, alt text. Never pixels."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from helpers import figures, metrics, plots
from helpers.errors import KitError

FIXTURES = Path(__file__).parent.parent / "fixtures"


@pytest.fixture(scope="module")
def demo():
    """A recorded run of 30 steps, a window every 2; the one of step 10 had no rejected row."""
    return metrics.table(FIXTURES / "demo-two-workers.log")


@pytest.fixture(scope="module")
def reference():
    return metrics.table(FIXTURES / "reference.log")


def with_held_out(table, steps=(10, 20, 30)):
    rows = table[table["step"].isin(steps)].assign(split="eval", **{"rewards/chosen": [0.1, 0.2, 0.3]})
    return pd.concat([table, rows]).sort_values("step", kind="stable").reset_index(drop=True)


def long_table(windows: int = 1000):
    noise = np.random.default_rng(0).normal(0, 0.1, windows)
    columns = dict.fromkeys(("loss", "rewards/chosen", "rewards/rejected", "rewards/margins", "kl_mean"), noise)
    return pd.DataFrame({"step": np.arange(1, windows + 1), "split": "train", **columns})


def lines(axes) -> dict:
    """Label -> line, of the lines that a legend would name."""
    return {line.get_label(): line for line in axes.get_lines() if not line.get_label().startswith("_")}


def test_the_four_panels_are_loss_rewards_margin_and_kl(demo):
    figure = plots.training(demo)
    assert [axes.get_title() for axes in figure.axes] == [
        "Loss", "Implied rewards", "Margin: chosen − rejected reward", "KL estimate, mean per micro-batch"]
    assert [list(lines(axes)) for axes in figure.axes] == [["loss"], ["chosen", "rejected"], ["margin"], ["KL"]]


def test_held_out_accuracy_is_a_fifth_panel_where_it_was_logged_and_several_sets_are_told_apart(demo):
    held = with_held_out(demo)
    one = held["split"] == "eval"
    held.loc[one, "rewards/auc"] = [0.5, 0.7, 0.8]
    other = held[one].assign(split="eval_before", **{"rewards/auc": 0.6})
    figure = plots.training(pd.concat([held, other]))
    axes = figure.axes[4]
    assert "area under the ROC curve" in axes.get_title() and not figure.axes[5].axison
    drawn = lines(axes)
    assert drawn["area, held out"].get_ydata().tolist() == [0.5, 0.7, 0.8] and "area, held out (before)" in drawn
    assert {"chosen, held out", "chosen, held out (before)"} <= lines(figure.axes[1]).keys()
    assert drawn["area, held out"].get_marker() != drawn["area, held out (before)"].get_marker()
    assert len(plots.compare({"a": held, "b": demo}).axes) == 6 and len(plots.training(with_held_out(demo)).axes) == 4


def test_axes_name_their_units(demo):
    loss, rewards, margin, kl = plots.training(demo).axes
    assert {axes.get_xlabel() for axes in (loss, rewards, margin, kl)} == {"optimiser step"}
    assert "β × nats a reply" in rewards.get_ylabel() and "β × nats a reply" in margin.get_ylabel()
    assert "nats a reply" in kl.get_ylabel() and "β" not in kl.get_ylabel()


@pytest.mark.parametrize("panel, label, column", [
    (1, "chosen", "rewards/chosen"), (1, "rejected", "rewards/rejected"),
    (2, "margin", "rewards/margins"), (3, "KL", "kl_mean")])
def test_what_is_drawn_is_what_the_table_says(demo, panel, label, column):
    line = lines(plots.training(demo).axes[panel])[label]
    assert list(line.get_xdata()) == list(demo["step"])
    np.testing.assert_array_equal(line.get_ydata(), demo[column])


def test_kl_is_drawn_per_micro_batch_and_not_as_the_logged_sum(reference):
    drawn = lines(plots.training(reference).axes[3])["KL"].get_ydata()
    assert drawn[0] == pytest.approx(0.3308525085449219 / (5 * 2))


def test_the_loss_is_drawn_as_corrected_for_short_groups(reference):
    drawn = lines(plots.training(reference).axes[0])["loss"].get_ydata()
    assert reference["loss"].min() == 0.4234 and min(drawn) > 0.46


def test_a_window_without_rejected_rows_is_a_gap_and_is_said(demo):
    rewards = plots.training(demo).axes[1]
    assert np.isnan(lines(rewards)["rejected"].get_ydata()[4])
    assert [text.get_text() for text in rewards.texts] == ["1 of 15 windows lack chosen or rejected rows"]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_loss_that_is_no_number_is_said_on_its_panel(value):
    table = long_table(20)
    table.loc[5, "loss"] = value
    loss, rewards, *_ = plots.training(table).axes
    assert [text.get_text() for text in loss.texts] == ["not a finite number in 1 of 20 windows"]
    assert np.isfinite(loss.get_ylim()).all() and not rewards.texts


def test_a_run_that_is_nan_from_the_start_can_still_be_drawn():
    table = long_table(5).assign(loss=np.nan, kl_mean=np.nan)
    assert "not a finite number in 5 of 5" in plots.training(table).axes[0].texts[0].get_text()


def test_checkpoints_are_marked_in_every_panel(demo):
    for axes in plots.training(demo, {20, 10}).axes:
        marks = [line for line in axes.get_lines() if line.get_label().endswith("checkpoint")]
        assert list(marks[0].get_xdata()) == [10, 20]


def test_held_out_values_are_drawn_over_the_training_curves(demo):
    line = lines(plots.training(with_held_out(demo)).axes[1])["chosen, held out"]
    assert list(line.get_xdata()) == [10, 20, 30] and list(line.get_ydata()) == [0.1, 0.2, 0.3]
    assert line.get_markerfacecolor() == "white"


def test_the_evaluations_of_a_real_run_are_drawn_at_their_steps():
    table = metrics.table(FIXTURES / "evaluated-two-workers.log")
    held_out = table[table["split"] == "eval"]
    for axes, columns in zip(plots.training(table).axes, ("loss", "rewards/chosen", "rewards/margins", "kl_mean"),
                             strict=True):
        line = next(line for name, line in lines(axes).items() if name.endswith("held out"))
        assert list(line.get_xdata()) == [3, 6, 9, 12] and list(line.get_ydata()) == list(held_out[columns])


def test_chosen_and_rejected_differ_in_more_than_colour(demo):
    chosen, rejected = lines(plots.training(demo).axes[1]).values()
    assert chosen.get_linestyle() != rejected.get_linestyle() and chosen.get_marker() != rejected.get_marker()


def test_rewards_carry_a_band_of_their_noise_where_the_rows_are_known(demo):
    with_rows = plots.training(demo).axes
    without = plots.training(demo.drop(columns=["rows"])).axes
    assert [len(axes.collections) for axes in with_rows] == [0, 2, 1, 0]
    assert [len(axes.collections) for axes in without] == [0, 0, 0, 0]


def test_a_long_run_is_drawn_as_a_running_mean_over_faint_points():
    axes = plots.training(long_table()).axes[0]
    faint, mean = (line for line in axes.get_lines() if "loss" in line.get_label() or line.get_label() == "_points")
    assert faint.get_alpha() < 0.5 and len(faint.get_xdata()) == 1000
    assert mean.get_label() == "loss, mean of 40" and mean.get_xdata()[-1] == 1000


def test_a_comparison_names_each_run_once_and_keeps_its_colour(demo, reference):
    figure = plots.compare({"short": demo, "long": with_held_out(reference, (10, 20, 30))})
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["short", "long"]
    colours = {name: {line.get_color() for axes in figure.axes for label, line in lines(axes).items()
                      if label.startswith(name)} for name in ("short", "long")}
    assert len(colours["short"]) == len(colours["long"]) == 1 and colours["short"] != colours["long"]
    style = [text.get_text() for text in figure.axes[1].get_legend().get_texts()]
    assert style == ["chosen", "rejected", "held out", "± 2 standard errors"]


def test_a_comparison_draws_every_runs_own_steps(demo, reference):
    margin = lines(plots.compare({"short": demo, "long": reference}).axes[2])
    assert margin["short"].get_xdata()[-1] == 30 and margin["long"].get_xdata()[-1] == 110


def test_nothing_to_draw_is_an_error_in_words(demo):
    with pytest.raises(KitError, match="no logged metrics"):
        plots.training(demo.iloc[:0])


@pytest.mark.parametrize("name", ["a.png", "deeper/b.svg", "c.pdf"])
def test_a_figure_is_saved_with_its_folder(demo, tmp_path, name):
    path = plots.save(plots.training(demo), tmp_path / "figures" / name)
    assert path == tmp_path / "figures" / name and path.stat().st_size > 5000


@pytest.mark.parametrize("name", ["a.nonsense", "taken/a.png"])
def test_a_figure_that_cannot_be_saved_is_an_error_in_words(demo, tmp_path, name):
    (tmp_path / "taken").write_text("a file, not a folder")
    with pytest.raises(KitError, match="could not save the figure"):
        plots.save(plots.training(demo), tmp_path / name)


def test_importing_the_rooms_brings_in_no_heavy_library():
    code = "import sys, json, helpers.plots, helpers.figures, helpers.live; print(json.dumps(list(sys.modules)))"
    loaded = json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert not {"matplotlib", "pandas", "numpy", "IPython", "torch", "tqdm"} & set(loaded)


def test_drawing_leaves_pyplot_alone(demo):
    before = "matplotlib.pyplot" in sys.modules
    plots.compare({"a": demo})
    assert ("matplotlib.pyplot" in sys.modules) == before


def test_a_shown_figure_is_a_png_with_alt_text_and_its_words_are_printed(demo, monkeypatch, capsys):
    """Without HTML, which VS Code hides in a folder that is not trusted; printed, as JupyterLab 4 ignores the alt text."""
    import IPython
    import IPython.display

    shown = []
    monkeypatch.setattr(IPython, "get_ipython", lambda: True)
    monkeypatch.setattr(IPython.display, "display", lambda data, metadata, raw: shown.append((data, metadata)))
    plots.show(plots.training(demo), 'loss falls; "margin" rises')
    (data, metadata), = shown
    assert data["image/png"].startswith("iVBOR") and metadata["image/png"] == {"alt": 'loss falls; "margin" rises', "width": 1000}
    assert set(data) == {"image/png", "text/plain"}
    assert capsys.readouterr().out == 'loss falls; "margin" rises\n'


def test_outside_a_notebook_nothing_is_shown(demo, capsys):
    plots.show(plots.training(demo), "words")
    assert capsys.readouterr().out == ""


def test_held_out_figures_by_step_are_drawn_with_their_intervals_and_the_chosen_one():
    made = pd.DataFrame({"step": [8, 16], "auc": [0.8, 0.9], "auc_low": [0.7, 0.85], "auc_high": [0.9, 0.95],
                         "margin": [0.9, 1.7], "margin_low": [0.5, 1.0], "margin_high": [1.2, 2.0]})
    figure = figures.held_out(made, 8)
    for axes, name in zip(figure.axes, ("auc", "margin"), strict=True):
        (low, high), = [[part.vertices[:, 1] for part in bars.get_paths()] for bars in axes.collections][:1]
        assert list(low) == pytest.approx(list(made.loc[0, [f"{name}_low", f"{name}_high"]]))
        assert list(high) == pytest.approx(list(made.loc[1, [f"{name}_low", f"{name}_high"]]))
        star = next(line for line in axes.get_lines() if line.get_marker() == "*")
        assert list(star.get_xdata()) == [8]
    assert "area under the curve" in figure.axes[0].get_title() and "nats" in figure.axes[1].get_title()
