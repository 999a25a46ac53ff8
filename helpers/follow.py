"""Following a training to its end: what comes out of it goes to the live view, to MLflow and to the watchdog."""

import time

from . import launch, metrics, watchdog
from .errors import KitError
from .logs import Event

QUICK = 0.05
"""Seconds that a look may take."""


class Watch:
    """The watchdog on a live stream: diagnoses every `every` seconds at most, and says each kind of trouble once.

    A long run's table takes longer to look at: where a look took more than QUICK, the next one waits longer in proportion, so that
    looking takes half a per cent of one core at most.

    `patience`: seconds without any event before that is a finding; also at the start, where workers may never come.
    """

    def __init__(self, beta: float = 0.1, patience: float = 600.0, every: float = 10.0):
        self.beta, self.patience, self.every = beta, patience, every
        self.logging_steps = None
        self.events: list[Event] = []
        self.said: set[str] = set()
        self.moved = time.monotonic()
        self.look = self.moved + every
        self.training = False

    def feed(self, events: list[Event]) -> list[watchdog.Finding]:
        """What these events show that was not said before; usually nothing."""
        self.events += [event for event in events if event.kind in ("metrics", "eval", "config")]
        now = time.monotonic()
        if events:
            self.moved = now
            self.training |= any(event.kind == "metrics" for event in events)
        if now < self.look:
            return []
        table = metrics.table(list(self.events), self.logging_steps) if self.training else metrics.table([], logging_steps=1)
        found = watchdog.diagnose(table, now - self.moved, False, self.beta, self.patience)
        self.look = now + self.every * max(1.0, (time.monotonic() - now) / QUICK)
        return self.new(found)

    def new(self, findings: list[watchdog.Finding]) -> list[watchdog.Finding]:
        """Those whose kind was not said before."""
        fresh = [finding for finding in findings if finding.kind not in self.said]
        self.said |= {finding.kind for finding in fresh}
        return fresh


def follow(training: launch.Training, view, tracker=None, stop_when_ill: bool = False, patience: float = 600.0):
    """Follow `training` to its end and return its metrics table, every launch of the run as one.

    `view` gets the events and what the watchdog finds (as warnings); `tracker` (tracking.Tracker) the events. With
    `stop_when_ill` the first finding ends the training. Raises KitError that explains a failure, or says why it was stopped.
    """
    config = launch.config_of(training.run) if training.run.config_file.exists() else {}
    watch = Watch(config.get("pref_beta", 0.1), patience)
    watch.logging_steps = config.get("logging_steps")
    for events in training.events():
        view.feed(events)
        if tracker:
            tracker.feed(events)
        for finding in watch.feed(events):
            view.feed([Event("warning", {"text": str(finding)})])
            if stop_when_ill:
                training.stop()
                raise KitError(f"stopped by the watchdog: {finding}", "", f"the log is in {training.run.log_file}")
    training.check()
    table = metrics.joined(training.run.log_file, config.get("logging_steps"))
    for finding in watch.new(watchdog.diagnose(table, finished=True, beta=watch.beta)):
        view.feed([Event("warning", {"text": str(finding)})])
    return table
