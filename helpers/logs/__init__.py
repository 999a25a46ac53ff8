"""A training's log, as bytes, into events: metrics, progress, phases, checkpoints, warnings, failures.

Reads what LLaMA-Factory, transformers and Ray Train write, with or without Ray's `(RayTrainWorker pid=…)` prefixes,
colour codes and carriage returns, in pieces of any size. It never raises, whatever the bytes are; what it does not
know it passes over. Lines are sorted out by cheap searches, because nearly all of them (model configurations,
samples) mean nothing here.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from . import loglines as lines
from .loglines import Event

LONGEST = 1 << 20
"""Bytes of an unfinished line that are kept; what it has beyond is dropped, so that memory stays flat."""

AS_EVENT = partial(tuple.__new__, Event)
"""Event._make, four times as fast."""


class Parser:
    """Bytes in, events out. `feed` takes pieces cut anywhere; `close` gives what an unfinished last line holds."""

    def __init__(self):
        self._rest = b""
        self._head = b""  # how the line began that the last piece left unfinished at a carriage return
        self._text, self._place, self._start = b"", 0, 0  # the piece being read, the place in it, where its line starts
        self._out: list[tuple] = []  # events to be
        self._pids: dict[bytes, int | None] = {}  # how a line begins -> its worker
        self._run, self._mark, self._trainer = 0, -1, None
        self._start_run()

    def _start_run(self) -> None:
        self._phase, self._total, self._step = "", None, 0
        self._bars: dict[str, tuple] = {}  # a bar's title -> how far it was
        self._traceback = self._ended = False
        self._said: set = set()

    def feed(self, data: bytes | str) -> list[Event]:
        """The events of every line that `data` completes. A carriage return ends a line like a newline does."""
        if isinstance(data, str):
            data = data.encode("utf-8", "replace")
        if len(self._rest) >= LONGEST:  # an endless line: the rest of it is dropped
            ends = [place for place in (data.find(b"\n"), data.find(b"\r")) if place >= 0]
            data = data[min(ends) :] if ends else b""
        if data:
            data = self._rest + data
            end = max(data.rfind(b"\n"), data.rfind(b"\r")) + 1
            self._rest = data[end : end + LONGEST]
            if end:
                self._block(data[:end])
        events, self._out = [*map(AS_EVENT, self._out)], []
        return events

    def close(self) -> list[Event]:
        """The events of a last line without an end."""
        return self.feed(b"\n") if self._rest else []

    def _block(self, block: bytes) -> None:
        """Whole lines: what is known of what begins in them, and before each of those the last progress bar."""
        self._text, told, returns = block, -1, b"\r" in block
        for place, start, end, bar in lines.places(block):
            reader = READERS.get(block[place : place + 6])
            if not reader and block.startswith(b"rror", place):
                reader = Parser._trouble
            if reader:
                if bar > told:
                    told = bar
                    self._progress(block, bar)
                self._place, self._start = place, start
                said = block[place:end]
                reader(self, said.split(b"\r", 1)[0] if returns and b"\r" in said else said)
        if bar > told:
            self._progress(block, bar)
        if block.endswith(b"\n"):
            self._head = b""
        elif b"\n" in block or not self._head:
            self._head = block[block.rfind(b"\n") + 1 :][:40]

    def _pid(self) -> int | None:
        """The worker whose line is being read: Ray's prefix stands where the line began, maybe in an earlier piece."""
        head = self._text[self._start : self._start + 40] if self._start or not self._head else self._head
        try:
            return self._pids[head]
        except KeyError:
            if len(self._pids) > 1000:
                self._pids.clear()
            return self._pids.setdefault(head, int(found[1]) if (found := lines.PID.match(head)) else None)

    def _emit(self, kind: str, data: dict, said: bytes = b"") -> None:
        repeated = lines.REPEATED.search(said) if b" [repeated " in said else None
        self._out.append((kind, data, self._pid(), self._run, int(repeated[1]) + 1 if repeated else 1))

    def _enter(self, phase: str) -> None:
        if phase != self._phase:
            self._phase = phase
            self._emit("phase", {"phase": phase})

    def _begin(self, mark: int, phase: str) -> None:
        """A sign of a run's start: 1 Ray, 2 its table, 3 its workers, 4 the training. One that goes back: a new run."""
        trainer = self._pid()
        other_node = mark == self._mark == 4 and trainer != self._trainer and not self._ended
        if mark <= self._mark and not other_node:
            self._run += 1
            self._start_run()
        self._mark, self._trainer = mark, trainer
        self._enter(phase)

    def _progress(self, block: bytes, place: int) -> None:
        """The last progress bar before something else; those that it overtook are of no use to anybody."""
        bar = lines.BAR.match(block, place)
        if not bar:
            return
        done, total, elapsed, remaining = bar.groups()
        done, total, title, start = int(done), int(total), "", place - 3
        if place < 4 or block[place - 4] != 10:  # the number is three wide: the trainer's own bar starts a line
            title, start = lines.title(block, place), block.rfind(b"\n", 0, place) + 1
        if not title:
            self._total = self._total or total
            aside = total != self._total or (self._phase == "evaluating" and done < self._step)
            title = "evaluating" if aside else "training"
        if self._bars.get(title) == (done, total):
            return
        if len(self._bars) > 100:
            self._bars.clear()
        self._bars[title] = (done, total)
        self._start = start
        if title == "training":
            self._step = done
            self._enter("training")
        elapsed, remaining = lines.seconds(elapsed), lines.seconds(remaining)
        data = {"task": title, "done": done, "total": total, "elapsed": elapsed, "remaining": remaining}
        self._emit("progress", data)

    def _record(self, said: bytes) -> None:
        end = said.find(b"}") + 1
        whole = end and said.find(b"{'", 1, end) < 0  # else cut off, and another begins within it
        data = lines.record(said[:end]) if whole else {}
        if "train_loss" in data:
            self._ended = True
            self._emit("summary", data)
        elif "loss" in data and ("learning_rate" in data or "epoch" in data):
            self._emit("metrics", data, said)

    def _evaluation(self, said: bytes) -> None:
        data = lines.record(said[: said.find(b"}") + 1])
        if any(key.startswith("eval_") and key.endswith("loss") for key in data):
            self._emit("eval", data, said)
            self._enter("training" if self._mark == 4 and not self._ended else "evaluated")

    def _number(self, said: bytes) -> None:
        for start, name in lines.NUMBERS.items():
            if said.startswith(start):
                value = lines.number(said[len(start) :].split(b" ")[0].strip(b" .").decode("utf-8", "replace"))
                if isinstance(value, int):
                    self._total = value if name == "total_steps" else self._total
                    aside = name == "num_examples" and self._phase == "evaluating"
                    self._emit("config", {"eval_examples" if aside else name: value})

    def _fact(self, said: bytes) -> None:
        if row := lines.ROW.match(said.decode("utf-8", "replace")):
            self._emit("config", {row[1]: lines.number(row[2])})
        elif rank0 := lines.RANK0.search(said):
            self._emit("config", {"rank0_pid": int(rank0[1])})
        elif world := lines.WORLD.match(said):
            self._emit("config", {"world_size": int(world[1])})
        elif counts := lines.PARAMETERS.match(said):
            trainable, every = (lines.number(count.decode()) for count in counts.groups())
            self._emit("config", {"trainable_params": trainable, "all_params": every})

    def _stage(self, said: bytes) -> None:
        for start, mark, phase in STAGES.get(said[:6], ()):
            if said.startswith(start):
                self._bars.pop("evaluating", None)
                self._begin(mark, phase) if mark else self._enter(phase)

    def _driver(self, said: bytes) -> None:
        if said.startswith(b"Training saved a checkpoint"):
            self._reported(said)
        elif said.startswith(b"Training completed after"):
            self._ended = True
            self._enter("finished")
        elif said.startswith(b"Training errored"):
            self._fail("training errored", said)
        else:
            self._stage(said)

    def _saving(self, said: bytes) -> None:
        if found := lines.SAVING.match(said):
            self._enter("saving")
            path = found[1].decode("utf-8", "replace")
            self._emit("checkpoint", {"state": "saving", "step": int(found[2]), "path": path})

    def _reported(self, said: bytes) -> None:
        path = said.partition(b"path=")[2].partition(b")")[0] or said.partition(b" at: (")[2].partition(b")")[2].strip()
        if path and self._new(path):
            self._emit("checkpoint", {"state": "reported", "path": path.decode("utf-8", "replace")}, said)

    def _trouble(self, said: bytes) -> None:
        """A line that may hold an exception (only after a traceback: a sample of the data is none) or a fatal word."""
        if said.startswith(b"Traceback (most recent call last)"):
            self._traceback = True
            return
        block, place = self._text, self._place
        line = lines.PREFIX.sub(b"", block[lines.start(block, place) : place] + said, count=1)[:2000]
        line = lines.RANK.sub(b"", lines.ANSI.sub(b"", line)).strip()
        exception = lines.EXCEPTION.match(line) if self._traceback else None
        fatal = next((what for word, what in lines.FATAL.items() if word in line), None)
        if exception or fatal:
            self._fail(fatal or exception[1].decode("utf-8", "replace"), line)
        elif b"arning:" in line:
            self._warning(line)

    def _fail(self, what: str, text: bytes) -> None:
        if self._new(lines.plain(text)):
            self._emit("failure", {"what": what, "text": text.decode("utf-8", "replace")}, text)

    def _warning(self, said: bytes) -> None:
        text = lines.ANSI.sub(b"", said[:2000]).strip()
        if not any(word in text for word in lines.QUIET) and self._new(lines.plain(text)):
            self._emit("warning", {"text": lines.HEADING.sub(b"", text).decode("utf-8", "replace")}, text)

    def _new(self, said: bytes) -> bool:
        """Whether this was not said before in this run."""
        if len(self._said) > 1000:
            self._said.clear()
        known = said in self._said
        self._said.add(said)
        return not known


STAGES = {
    key: [(start, *stage) for start, stage in lines.STAGES.items() if start.startswith(key)] for key in lines.KEYS
}
READERS = {key: getattr(Parser, f"_{name}") for key, name in lines.KEYS.items()}


def parse_file(path: str | Path, piece: int = 1 << 17) -> Iterator[Event]:
    """The events of a whole log, read in pieces of `piece` bytes: memory does not grow with the file."""
    parser = Parser()
    with open(path, "rb") as file:
        while data := file.read(piece):
            yield from parser.feed(data)
    yield from parser.close()


def parse_line(line: bytes | str) -> Event | None:
    """The first event of one line by itself, or None. What depends on earlier lines (runs, phases) needs a `Parser`."""
    parser = Parser()
    events = parser.feed(line) + parser.close()
    return events[0] if events else None
