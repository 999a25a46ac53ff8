"""Watching a training: one display that updates in place in a notebook or a terminal, or a printed line now and then.

`feed` takes the events of helpers.logs as they come and redraws at most twice a second, and only if something changed,
so that watching costs the training next to nothing.
"""

import math
import os
import sys
import time
from collections import defaultdict

from ..errors import KitError, closest
from ..schedule import from_facts, steps_of

MODES = ("auto", "notebook", "quiet", "terminal")
EVERY, PRINT_EVERY = 0.5, 30.0
"""Seconds between redraws, and between printed lines in the quiet mode; each tenth of the steps prints one as well."""


class State:
    """What is known of a training so far: the newest values and the curves. `fold` takes an event in."""

    def __init__(self, total_steps: int | None = None, micro_batches: int | None = None):
        self.phase, self.step, self.total = "starting", 0, total_steps if (total_steps or 0) > 0 else None
        self.elapsed, self.left, self.evaluating = 0.0, None, None
        self.facts = {"gradient_accumulation_steps": micro_batches} if micro_batches else {}
        self.curves, self.held_out = defaultdict(list), defaultdict(list)  # column -> [(step, value), …]
        self.newest: dict[str, float] = {}
        self.checkpoints: list[int] = []
        self.warning = self.failure = ""
        self._window_began = 0

    def fold(self, event) -> None:
        """Take one event in. Kinds without a method here mean nothing to a view and are passed over."""
        if method := getattr(self, f"_{event.kind}", None):
            method(event.data)

    def _config(self, data: dict) -> None:
        self.facts.update(data)
        self.total = data.get("total_steps", self.total)
        self._window_began = data.get("resumed_from", self._window_began)

    def _phase(self, data: dict) -> None:
        self.phase = data["phase"]

    def _progress(self, data: dict) -> None:
        if data["task"] == "evaluating":
            self.evaluating = data["total"]
        elif data["task"] == "training":
            self.step, self.total = data["done"], data["total"]
            self.elapsed, self.left = data.get("elapsed") or 0.0, data.get("remaining")

    def _metrics(self, data: dict) -> None:
        data, plan, began, step = numeric(data), from_facts(self.facts), self._window_began, self.step
        every = self.facts.get("logging_steps")
        if isinstance(every, int) and every > 0:  # else the bar tells, which may be off by a few
            step = steps_of([data.get("epoch", math.nan)], plan, every, {**self.facts, "resumed_from": began})[0]
        if "gradient_accumulation_steps" in self.facts and step > began:  # as helpers.metrics.table has it
            micro_batches = plan.micro_batches(step) - plan.micro_batches(began)
            data["kl_mean"] = data.get("kl", math.nan) / micro_batches
            data["loss"] = data.get("loss", math.nan) * (step - began) * plan.accumulation / micro_batches
        self.step, self._window_began = max(self.step, step), step
        self.newest.update(data)
        self._append(self.curves, step, data)

    def _eval(self, data: dict) -> None:
        data = {key.removeprefix("eval_"): value for key, value in numeric(data).items()}
        if "kl" in data and self.evaluating:
            data["kl_mean"] = data["kl"] / self.evaluating
        self._append(self.held_out, self.step, data)

    def _append(self, curves, step: int, data: dict) -> None:
        for column in ("loss", "rewards/chosen", "rewards/rejected", "rewards/margins", "kl_mean"):
            if math.isfinite(data.get(column, math.nan)):
                curves[column].append((step, data[column]))

    def _checkpoint(self, data: dict) -> None:
        if "step" in data:  # Ray's own report of the same checkpoint names no step
            self.checkpoints = sorted({*self.checkpoints, data["step"]})

    def _warning(self, data: dict) -> None:
        self.warning = data.get("text", "")

    def _failure(self, data: dict) -> None:
        self.failure = data.get("text") or data.get("what", "")

    def numbers(self) -> dict[str, str]:
        """Name -> value, both as a reader sees them; what is not known yet is left out."""
        share = f" ({100 * self.step // self.total} %)" if self.total else ""
        shown = {"phase": self.phase, "step": f"{self.step}/{self.total or '?'}{share}", "left": duration(self.left)}
        for name, key in (("loss", "loss"), ("chosen", "rewards/chosen"), ("rejected", "rewards/rejected"),
                          ("margin", "rewards/margins"), ("KL", "kl_mean"), ("learning rate", "learning_rate")):
            shown[name] = f"{self.newest[key]:.3g}" if key in self.newest else ""
        rows = (self.step - self.facts.get("resumed_from", 0)) * self.facts.get("total_train_batch_size", 0)
        shown["rows/s"] = f"{rows / self.elapsed:.3g}" if rows > 0 and self.elapsed else ""
        tokens = self.newest.get("num_input_tokens_seen")
        shown["tokens/s"] = f"{tokens / self.elapsed:.3g}" if tokens and self.elapsed else ""
        return {name: value for name, value in shown.items() if value}

    def line(self) -> str:
        """The numbers in one line of text."""
        shown = self.numbers()
        if not self.newest and not self.step:
            return shown["phase"]
        parts = [f"{name} {shown[name]}" for name in ("loss", "chosen", "rejected", "margin", "KL") if name in shown]
        left = f", {shown['left']} left" if "left" in shown else ""
        return f"step {shown['step']}{left}: {', '.join(parts) or shown['phase']}"


class LiveView:
    """A training watched.

    `mode`: "notebook" (one display updated in place), "quiet" (a printed line at each phase, tenth of the steps, or
    30 s), "terminal" (one line on stderr), or "auto": quiet where the environment says KTO_LIVE=off, a notebook where
    there is an IPython kernel, else a terminal. `total_steps` and `micro_batches` (gradient_accumulation_steps) are for
    logs that do not say.
    """

    def __init__(self, total_steps: int | None = None, mode: str = "auto", micro_batches: int | None = None):
        if mode not in MODES:
            raise KitError(f"there is no mode {mode!r}{closest(mode, MODES)}", f"one of {', '.join(MODES)}",
                           "correct `mode`")
        self.state = State(total_steps, micro_batches)
        self.kernel = in_kernel()
        self.mode = chosen_mode(self.kernel) if mode == "auto" else mode
        self.mode = "terminal" if self.mode == "notebook" and not self.kernel else self.mode
        self._show = {"notebook": self._show_html, "quiet": self._show_line, "terminal": self._show_bar}[self.mode]
        self._changed, self._drawn, self._handle = True, -math.inf, None
        self._printed, self._said, self._faulty = -math.inf, None, False
        self.feed(())

    def feed(self, events) -> None:
        """Take events in and redraw if it is time. Feed empty lists too, so that a change held back is shown.

        Raises nothing: a fault of the view must not end the training that it watches. It is said once, on stderr.
        """
        try:
            for event in events:
                self._changed = True
                self.state.fold(event)
            if self._changed and time.monotonic() - self._drawn >= EVERY:
                self._drawn, self._changed = time.monotonic(), False
                self._show()
        except Exception as error:
            if not self._faulty:
                print(f"the live view missed something: {error!r}", file=sys.stderr)
            self._faulty = True

    def close(self, table) -> None:
        """The end: what was watched as it ended, and below it the figure in words.

        The live display stays, its bar full. In a notebook that nobody watched (the quiet mode) the still figure of `table`
        (helpers.metrics.table) takes the printed lines' place. Outside a notebook the words alone are printed.
        """
        from .. import metrics, plots

        empty = table is None or not len(table)
        words = "No metrics were logged, so there is nothing to draw." if empty else metrics.summary(table)
        if self.mode == "terminal":
            self._show()
            if self._handle is not None:
                self._handle.close()
        elif self.mode == "notebook":
            self.state.phase = "failed" if self.state.failure else "finished"
            self._show()
        elif self.kernel:
            self._show_picture(None if empty else plots.training(table, self.state.checkpoints))
        print(words, flush=True)

    def _show_picture(self, picture) -> None:
        from IPython.display import clear_output, display

        clear_output(wait=True)
        if picture is not None:
            display(picture)

    def _show_html(self) -> None:
        from IPython.display import HTML, display

        from .livehtml import page

        card = HTML(page(self.state))
        if self._handle is None:
            self._handle = display(card, display_id=True)
        else:
            self._handle.update(card)

    def _show_line(self) -> None:
        state, now = self.state, time.monotonic()
        place = (state.phase, 10 * state.step // state.total if state.total else 0)
        if place != self._said or (now - self._printed >= PRINT_EVERY and state.step):
            self._said, self._printed = place, now
            print(state.line(), file=sys.stdout if self.kernel else sys.stderr, flush=True)

    def _show_bar(self) -> None:
        if not sys.stderr.isatty():
            self._show_line()
            return
        if self._handle is None:
            from tqdm import tqdm

            self._handle = tqdm(total=self.state.total, file=sys.stderr, bar_format="{bar:20} {desc}",
                                dynamic_ncols=True)
        self._handle.total, self._handle.n = self.state.total, self.state.step
        self._handle.set_description_str(self.state.line())


def in_kernel() -> bool:
    """Whether this is an IPython kernel, which a notebook's front end, papermill and nbval all are."""
    ipython = sys.modules.get("IPython")
    return getattr(ipython.get_ipython(), "kernel", None) is not None if ipython else False


def chosen_mode(kernel: bool) -> str:
    """What "auto" means here."""
    if os.environ.get("KTO_LIVE", "").lower() in ("off", "0", "quiet"):
        return "quiet"
    return "notebook" if kernel else "terminal"


def numeric(data: dict) -> dict[str, float]:
    """The items that are numbers, nan and inf included."""
    return {key: value for key, value in data.items() if isinstance(value, int | float)}


def duration(seconds: float | None) -> str:
    """`3 min 20 s`; empty for None."""
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
