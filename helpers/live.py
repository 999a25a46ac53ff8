"""Follow a training run to its end: one loop updates table, plot, MLflow and watchdog."""

import html
import os
import sys
import time
from contextlib import suppress
from datetime import timedelta

from . import metrics, plots, rates, watchdog
from .errors import KitError

LOOK, SAY, SHARE = 5.0, 30.0, 0.005
"""Seconds between looks at new windows, and between printed lines; the share of a core that looking at a long run may take."""
NUMBERS = {"loss": "loss", "rewards/chosen": "chosen", "rewards/rejected": "rejected", "rewards/margins": "margin",
           "kl_mean": "KL"}
STEPS, SECONDS = 10, 3.0
"""Of steps that are measured at least: how many, and for how long."""


def follow(training, tracker=None, stop_on_problem: bool = False, patience: float = 600.0):
    """Show `training` (launch.Training) until it ends and return its metrics table, every launch of the run as one.

    `tracker`: gets the table whenever it has grown; `stop_on_problem`: the first finding ends the training; `patience`: seconds
    without progress before that is a finding. KitError that explains a failure.
    """
    config = training.run.config() if training.run.config_file.exists() else {}
    beta, every = config.get("pref_beta", 0.1), config.get("logging_steps")
    view, table, kept = View(config.get("max_steps"), training.run.record().get("estimate")), metrics.table([], logging_steps=1), []
    changed = time.monotonic()
    look = changed + LOOK
    for events in training.events():
        now = time.monotonic()
        changed = now if events else changed
        kept += [event for event in events if event.kind in ("metrics", "eval", "config")]
        known = view.pace.measured
        view.take(events)
        if view.pace.measured and not known:
            with suppress(KitError):  # a full disk is not the display's to tell
                training.run.note(measured=view.pace.measured)
        if now < look:
            continue
        grown = view.windows > len(table)
        table = metrics.table(list(kept), every) if grown else table
        findings = watchdog.diagnose(table, now - changed, beta=beta, patience=patience)
        view.show(table, findings, grown)
        if tracker and grown:
            tracker.send(table)
        if findings and stop_on_problem:
            training.stop()
            raise KitError(f"stopped by the watchdog: {findings[0]}", "", f"the log is in {training.run.log_file}")
        look = time.monotonic() + max(LOOK, (time.monotonic() - now) / SHARE if grown else 0)
    training.check()
    table = metrics.table(training.run.log_file, every)
    view.phase = "finished"
    view.show(table, watchdog.diagnose(table, finished=True, beta=beta), last=True)
    print(metrics.summary(table) if len(table) else "No metrics were logged, so there is nothing to draw.", flush=True)
    return table


class View:
    """In a notebook two displays, updated in place: progress with the newest numbers, and the curves; elsewhere printed lines.

    A notebook that nobody watches (papermill and nbval set KTO_LIVE=off) gets printed lines, and the figure at the end.
    """

    def __init__(self, total_steps: int | None = None, estimate: dict | None = None):
        self.pace = Pace(estimate)
        self.done, self.total, self.left, self.phase = 0, total_steps, None, "starting"
        self.windows, self.checkpoints, self.shown, self.id = 0, set(), set(), os.urandom(8).hex()
        self.said, self.said_at, self.place = set(), -SAY, None
        ipython = sys.modules.get("IPython")  # a kernel is what a notebook's front end, papermill and nbval all have
        self.kernel = bool(ipython) and getattr(ipython.get_ipython(), "kernel", None) is not None
        self.watched = self.kernel and os.environ.get("KTO_LIVE", "").lower() not in ("off", "0", "quiet")

    def take(self, events) -> None:
        """What the events say of progress."""
        for event in events:
            self.pace.take(event)
            if event.kind == "progress":
                self.done, self.total, self.left = event.data["done"], event.data["total"], event.data.get("remaining")
            elif event.kind == "phase":
                self.phase = event.data["phase"]
            elif event.kind == "checkpoint":
                self.checkpoints.add(event.data["step"])
            self.windows += event.kind in ("metrics", "eval")

    def show(self, table, findings=(), grown: bool = True, last: bool = False) -> None:
        """The displays brought up to date; the figure is drawn again where the table has `grown`."""
        words = self.line(table)
        if self.watched or last and self.kernel:
            from IPython.display import display

            percent = round(100 * self.done / (self.total or 1))
            bar = (f'<progress role="progressbar" aria-valuenow="{percent}" aria-label="steps done" value="{self.done}" '
                   f'max="{self.total or 1}" style="width:100%"></progress>')
            trouble = "".join(f'<p style="color:#D55E00">{html.escape(str(finding))}</p>' for finding in findings)
            card = {"text/html": f"{bar}<p>{html.escape(words)}</p>{trouble}", "text/plain": "\n".join([words, *map(str, findings)])}
            displays = {"progress": (card, {})}
            if len(table) and (last or grown):
                displays["curves"] = plots.image(plots.training(table, self.checkpoints), f"Training curves. {words}", dpi=100)
            for name, (data, metadata) in displays.items():  # the first clears the printed lines of a notebook that nobody watched
                display(data, metadata=metadata, raw=True, clear=not self.shown, display_id=self.id + name, update=name in self.shown)
                self.shown.add(name)
            return
        new = [finding for finding in findings if finding.kind not in self.said]
        self.said.update(finding.kind for finding in new)
        tenth = (self.phase, 10 * self.done // (self.total or 1))
        if new or tenth != self.place or time.monotonic() - self.said_at > SAY:
            self.place, self.said_at = tenth, time.monotonic()
            print(words, *new, sep="\n", file=sys.stdout if self.kernel else sys.stderr, flush=True)

    def line(self, table) -> str:
        """The training's progress, in one line."""
        last = table.iloc[-1] if len(table) else {}
        numbers = [f"{name} {last[key]:.3g}" for key, name in NUMBERS.items() if key in last and last[key] == last[key]]
        left = f", {timedelta(seconds=round(self.left))} left" if self.left else ""
        pace = rates.corrected(self.pace.measured, self.pace.estimate)
        return (f"{self.phase}, step {self.done} of {self.total or '?'}{left}" + (f": {', '.join(numbers)}" if numbers else "")
                + (f"; {pace}" if pace else ""))


class Pace:
    """Measure seconds a step over the launch's first ten steps after its first one, without evaluations, saves and restarts."""

    def __init__(self, estimate: dict | None = None):
        self.estimate, self.measured = estimate, None  # as in run.json: rates.estimate; {"seconds" a step, "minutes" of all "steps"}
        self.last, self.steps, self.seconds = None, 0, 0.0

    def take(self, event) -> None:
        if event.kind == "phase" and event.data["phase"] != "training":
            self.last = None  # the time from here to the next step is not a step's
        if event.kind != "progress" or self.measured:
            return
        done, now = event.data["done"], time.monotonic()
        if self.last and done > self.last[0]:
            self.steps, self.seconds = self.steps + done - self.last[0], self.seconds + now - self.last[1]
        self.last = (done, now) if done else None  # before the first step the model is loaded, or earlier steps are skipped
        if self.steps >= STEPS and self.seconds >= SECONDS:
            each, total = self.seconds / self.steps, event.data["total"]
            minutes = each * total / 60
            if self.estimate and self.estimate["steps"] == total:  # else it was extended by notebook 5
                # The estimate knows that later epochs are faster; a launch's first steps are as slow as the first epoch's.
                minutes = self.estimate["minutes"] * each / self.estimate["first"]
            self.measured = {"seconds": round(each, 3), "minutes": round(minutes, 2), "steps": total}
