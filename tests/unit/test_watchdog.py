"""The watchdog against logs of real runs, ill and healthy, and against made-up tables where no run was to be had.

tests/fixtures/ill/: LLaMA-Factory 0.9.3 on a random Llama of two layers, 40 steps, with learning rates of 1e30 (nan),
1e6 (gradients gone), 1 (KL) and 1e-9 (flat margin). Made up: both rewards far below zero, one label, a loss of 0
without nan, no progress.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from helpers import metrics, watchdog

FIXTURES = Path(__file__).parent.parent / "fixtures"


def ill(name: str) -> pd.DataFrame:
    return metrics.table(FIXTURES / "ill" / f"{name}.log", logging_steps=2)


def made_up(**columns) -> pd.DataFrame:
    """A healthy table of twelve windows, with some columns replaced."""
    steps = np.arange(12)
    healthy = {"loss": 0.5 - 0.01 * steps, "grad_norm": 1.0, "rewards/chosen": 0.1 * steps, "kl": 0.2, "kl_mean": 0.1,
               "rewards/rejected": -0.1 * steps, "rewards/margins": 0.2 * steps, "rows": 10.0, "micro_batches": 2.0}
    table = pd.DataFrame({"step": 2 * steps + 2, "split": "train", **healthy}, columns=metrics.COLUMNS)
    return table.assign(**columns)


def kinds(table, **more) -> list[str]:
    return [finding.kind for finding in watchdog.diagnose(table, **more)]


@pytest.mark.parametrize("name", ["reference", "demo-two-workers", "gpu-lora-stock", "gpu-qlora-accelerated"])
def test_a_healthy_run_has_no_finding_at_any_moment(name):
    table = metrics.table(FIXTURES / f"{name}.log")
    for windows in range(len(table) + 1):
        assert watchdog.diagnose(table.head(windows), last_progress_age=30) == []
    assert watchdog.diagnose(table, finished=True) == []


def test_nan_is_seen_in_its_first_window():
    (first,) = watchdog.diagnose(ill("nan").head(1))
    assert (first.kind, first.step) == ("nan", 2) and "learning_rate" in first.remedy
    assert kinds(ill("nan"), finished=True) == ["nan", "loss zero"]


def test_a_loss_of_exactly_zero_counts_from_the_third_window_on():
    loss = np.full(12, 0.4)
    loss[-2:] = 0
    assert kinds(made_up(loss=loss)) == []
    loss[-3:] = 0
    (finding,) = watchdog.diagnose(made_up(loss=loss))
    assert (finding.kind, finding.step) == ("loss zero", 20)


def test_gradients_that_are_gone_are_saturation():
    (finding, *_) = watchdog.diagnose(ill("gradients-gone"))
    assert (finding.kind, finding.step) == ("saturation", 2)


def test_both_rewards_far_below_zero_without_kl_are_saturation():
    (finding,) = watchdog.diagnose(made_up(**{"rewards/chosen": -40.0, "rewards/rejected": -42.0, "kl": 0.0,
                                              "kl_mean": 0.0, "grad_norm": 0.01}))
    assert finding.kind == "saturation" and "both rewards" in finding.found


def test_an_exploding_kl_is_seen_while_it_lasts():
    table = ill("kl-exploding")
    (finding,) = watchdog.diagnose(table)
    assert finding.kind == "kl" and "pref_beta" in finding.remedy
    assert kinds(table.head(5)) == []
    assert kinds(table, beta=0.01) == []


def test_a_full_tuning_at_an_adapters_learning_rate_is_seen_to_run_away():
    table = metrics.table(FIXTURES / "gpu-full-zero3.log")  # 1e-4, on an H200: a margin of 37 ± 109 after 30 steps
    assert kinds(table[table["step"] <= 10]) == [] and kinds(table, finished=True) == ["kl"]


def test_a_flat_margin_is_told_only_at_the_end():
    assert kinds(ill("margin-flat")) == []
    (finding,) = watchdog.diagnose(ill("margin-flat"), finished=True)
    assert finding.kind == "flat margin" and finding.remedy.startswith("learning_rate up")


def test_a_label_that_never_comes_is_told():
    nothing = {"rewards/rejected": np.nan, "rewards/margins": np.nan}
    assert kinds(made_up(**nothing), finished=True) == ["one label"]
    assert kinds(made_up(**nothing).head(9)) == []


def test_no_progress_is_told_after_the_time_that_was_set():
    table = made_up()
    assert kinds(table, last_progress_age=599) == [] and kinds(table, last_progress_age=601) == ["no progress"]
    assert kinds(table, last_progress_age=60, patience=50) == ["no progress"]
    assert kinds(table, last_progress_age=9999, finished=True) == []
    (finding,) = watchdog.diagnose(table.head(0), last_progress_age=700)
    assert finding.step == 0 and "never started" in finding.why


def test_a_finding_reads_as_three_lines():
    (finding,) = watchdog.diagnose(ill("nan").head(1))
    assert [line.strip().split(" ")[0] for line in str(finding).splitlines()] == ["[FAIL]", "why:", "fix:"]
