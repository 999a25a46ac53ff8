"""A training's log, line by line, into events: metrics, evaluations, facts, progress, phases, checkpoints.

Reads what LLaMA-Factory 0.9.3 to 0.9.5, transformers 4 and 5, TRL, DeepSpeed, torchrun and Ray Train V1 and V2 print, with or without
Ray's `(RayTrainWorker pid=…)` prefixes, colours and carriage returns. Never raises, whatever a line says; what it does not know it
passes over.
"""

import codecs
import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from . import loglines

LONGEST = 1 << 20
"""Characters of an unfinished line that are kept, so that memory stays flat."""
LINE = re.compile(r"\n|(?<=\r)")
RECORD = re.compile(r"(?<![=\w])\{'(?:loss|eval_|train_)[^{}]*\}")  # `metrics={'loss': …` is Ray's repetition of one
CUT = re.compile(r"(?<![=\w])\{'(?:loss|eval_|train_)[^{}]*$")
PAIR = re.compile(r"'([^']+)':\s*(?:'([^']*)'|([^,{}']+))")
SHORT = {"loss", "learning_rate", "epoch", "reward", "accuracy", "throughput"}  # LLaMA-Factory's web UI prints these
BAR = re.compile(r"(?:^|[^0-9])(\d{1,3})%\|[^|]*\| (\d{1,15})/(\d{1,15}) \[([\d:]+)<([\d:?]+)")
FACT = re.compile(r"│ train_loop_config/(?:args/)?(\S+) +(\S.*?) +│")
OUR_FACT = re.compile(r"(\w+)\"?(?:=|: )\"?([^\s,;\"}]+)")  # after `[kto] `, from helpers.trainer
COUNT = re.compile(r"  ([A-Z][^=]{4,80}) = ([\d,]{1,30})\s*$| (Continuing training from global step) (\d{1,18})\s*$")
COUNTS = {
    "Num examples": "num_examples", "Instantaneous batch size per device": "per_device_train_batch_size",
    "Gradient Accumulation steps": "gradient_accumulation_steps", "Total optimization steps": "total_steps",
    "Total train batch size (w. parallel, distributed & accumulation)": "total_train_batch_size",
    "Continuing training from global step": "resumed_from", "Batch size": "eval_batch_size",
}
WORDS = re.compile(r"ip=(?P<rank0>[\w.:-]+, pid=\d{1,18})\) world_rank=0\b"
                   r"|\[kto\] metrics of all (?P<metrics_of_workers>\d{1,9}) workers"
                   r"|(?:Process rank: \d+, world size: |Started training worker group of size )(?P<world_size>\d{1,9})"
                   r"|trainable params: (?P<trainable_params>[\d,]{1,30}) \|\| all params: (?P<all_params>[\d,]{1,30})"
                   r"|\"transformers_version\": \"(?P<transformers_version>[\d.]+)"
                   r"|(?P<written_by>llamafactory|trl(?=[/.]trainer)|KTOTrainer)")
SAVING = re.compile(r"Saving model checkpoint to (\S.*checkpoint-(\d{1,18}))\s*$")
PHASES = {
    "Started a local Ray instance": (1, "starting"), "Connected to Ray cluster": (1, "starting"),
    "Training started with configuration": (2, "starting"), "Started distributed worker processes": (3, "starting"),
    "Started training worker group of size": (3, "starting"),
    "***** Running training": (4, "training"), "***** Running Evaluation": (0, "evaluating"),
    "Loading dataset ": (0, "loading data"), "Running tokenizer on": (0, "tokenizing"),
    "loading weights file ": (0, "loading model"), "Saving model checkpoint to": (0, "saving"),
    "Convert model dtype to": (0, "exporting"), "Training completed after": (0, "finished"),
    "***** train metrics": (0, "finished"),
}
"""Words of a line -> (the order of the signs of a launch's start, or 0; the phase that begins)."""
PHASE = re.compile("|".join(map(re.escape, PHASES)))
FACTS = re.compile(r"world|\[kto\]|trainable|llamafactory|trl|KTOTrainer|transformers_v")
CLUES = re.compile(rf"%\||\{{'| = |│ train| Continuing|{FACTS.pattern}|{PHASE.pattern}")
"""A line without any of them says nothing that is read here."""


class Event(NamedTuple):
    """One thing that a log line said.

    `kind` and `data`: metrics, eval, summary (the printed dict) · config (facts, most under LLaMA-Factory's names) · progress (task,
    done, total, elapsed, remaining: seconds or None) · phase (phase) · checkpoint (step, path).
    `worker`: its node's address and its process, "10.0.0.2:4171"; without the address on the driver's own node; "rank1" under
    torchrun; None where the line does not say. `run`: which launch of the file, from 0.
    """

    kind: str
    data: dict
    worker: str | None = None
    run: int = 0


class Parser:
    """Pieces of a log in, events out; a piece may end anywhere."""

    def __init__(self):
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.rest = self.cut = ""
        self.run, self.mark, self.trainer, self.worker, self.config = -1, 0, None, None, {}
        self.begin()

    def begin(self) -> None:
        """Another launch begins in the same file."""
        self.run += 1
        self.phase, self.total, self.bars, self.ended, self.said, self.finished = "", None, {}, False, set(), set()
        self.short, self.whole = None, {}  # the web UI's record that waits for the whole one; the last whole one

    def feed(self, data: bytes | str) -> list[Event]:
        """The events of every line that `data` completes; a carriage return ends a line as a newline does."""
        data = data.encode("utf-8", "replace") if isinstance(data, str) else data
        *lines, self.rest = LINE.split(self.rest[-LONGEST:] + self.decoder.decode(data))
        return [event for line in lines for event in self.line(line)]

    def close(self) -> list[Event]:
        """The events of a last line without an end."""
        waiting, self.short = self.feed(b"\n"), self.short
        return waiting + ([self.short] if self.short else [])

    def line(self, line: str) -> Iterator[Event]:
        worker, text = loglines.split(line[:20_000])
        worker = worker or self.worker  # what follows a carriage return is the same worker's
        self.worker = worker if line.endswith("\r") else None
        if not self.cut and not CLUES.search(text):
            return
        for kind, data in self.read(self.joined(text), worker):
            if kind == "metrics":
                # The web UI's short record waits for what comes next, and goes if that is the whole of it.
                if self.short and not same(self.short.data, data):
                    yield self.short
                self.short = None
                if data.keys() <= SHORT:
                    self.short = None if same(data, self.whole) else Event(kind, data, worker, self.run)
                    continue
                self.whole = data
            yield Event(kind, data, worker, self.run)

    def joined(self, text: str) -> str:
        """`text`, or the record that it ends: a terminal or an editor may have broken it over several lines."""
        if self.cut and text[:1] not in ("{", "[", "("):
            whole = self.cut + text
            if RECORD.match(whole):
                text = whole
            self.cut = whole if len(whole) < 5000 and CUT.match(whole) else ""
        else:
            found = CUT.search(text) if "{'" in text else None
            self.cut = found[0] if found and not text.endswith("\r") else ""
        return text

    def read(self, text: str, worker: str | None) -> Iterator[tuple[str, dict]]:
        """(kind, data) of what one line says."""
        if bar := BAR.search(text) if "%|" in text else None:
            title = text[: bar.start(1)].strip(" :")
            yield from self.progress(title, *bar.groups()[1:])
            if not title and len(text) - bar.end() < 25:  # its end, `,  1.54s/it]`, and nothing else
                return
        for record in RECORD.findall(text) if "{'" in text else ():
            data = {key: number(quoted or bare) for key, quoted, bare in PAIR.findall(record)}
            evaluation = any(key.startswith("eval_") and key.endswith("loss") for key in data)
            kind = "summary" if "train_loss" in data else "eval" if evaluation else "metrics"
            if kind == "metrics" and worker in self.finished:
                self.begin()  # a second training in the file, of a program that prints no sign of its start
            if kind != "metrics" or ("loss" in data and ("learning_rate" in data or "epoch" in data)):
                yield kind, data
            if kind == "eval":
                yield from self.enter(0, "evaluated" if self.ended else "training")
            if kind == "summary":
                self.ended = True
                self.finished.add(worker)
        if start := PHASE.search(text):
            yield from self.enter(*PHASES[start[0]], worker)
        if saving := SAVING.search(text):
            yield "checkpoint", {"step": int(saving[2]), "path": saving[1]}
        elif facts := FACT.findall(text) or ("[kto] " in text and OUR_FACT.findall(text.partition("[kto] ")[2])):
            facts = {name: number(value) for name, value in facts}
            self.config = {**self.config, **facts}
            yield "config", facts
        elif (count := COUNT.search(text)) and (name := COUNTS.get(count[1] or count[3])):
            held_out = name == "num_examples" and self.phase == "evaluating"
            value = int((count[2] or count[4]).replace(",", ""))
            self.total = value if name == "total_steps" else self.total
            yield "config", {"eval_examples" if held_out else name: value}
        for words in WORDS.finditer(text) if FACTS.search(text) else ():
            facts = {name: number(value) for name, value in words.groupdict().items() if value}
            if not (facts.keys() <= {"written_by", "transformers_version"} and words[0] in self.said):
                self.said.add(words[0])
                yield "config", facts

    def progress(self, title: str, done: str, total: str, elapsed: str, remaining: str) -> Iterator[tuple[str, dict]]:
        done, total = int(done), int(total)
        if not title:
            self.total = self.total or total
            title = "training" if total == self.total and self.phase != "evaluating" else "evaluating"
        if self.bars.get(title) == (done, total) or len(self.bars) > 1000:
            return
        self.bars[title] = done, total
        if title == "training":
            yield from self.enter(0, "training")
        yield "progress", {"task": title, "done": done, "total": total,
                           "elapsed": seconds(elapsed), "remaining": seconds(remaining)}

    def enter(self, mark: int, phase: str, worker: str | None = None) -> Iterator[tuple[str, dict]]:
        """A new phase. `mark`: the order of the signs of a launch's start; one that does not come later begins another launch."""
        if mark:
            another_worker = mark == self.mark == 4 and worker != self.trainer and not self.ended
            again = mark <= self.mark and not another_worker
            if again:
                self.begin()
            self.mark, self.trainer = mark, worker
            self.config = self.config if mark > 2 else {}
            if again and self.config:
                yield "config", self.config  # said once, before workers were lost and replaced
        self.ended |= phase == "finished"
        if phase != self.phase:
            self.phase = phase
            yield "phase", {"phase": phase}


def same(short: dict, whole: dict) -> bool:
    """Whether a short record, with four digits, is of the same window as a whole one."""
    try:
        return all(math.isclose(short[key], whole[key], rel_tol=1e-3, abs_tol=6e-3 if key == "epoch" else 1e-4)
                   or short[key] != short[key] for key in ("loss", "epoch"))
    except (KeyError, TypeError):
        return False


def number(text: str):
    """`text` as int, float (nan and inf too), bool, or itself."""
    text = text.strip()
    for kind in (int, float):
        try:
            return kind(text.replace(",", ""))
        except ValueError:
            pass
    return {"True": True, "False": False}.get(text, text)


def seconds(clock: str) -> float | None:
    """tqdm's `1:02:03` or `02:03` in seconds; None for `?`."""
    try:
        return sum(int(part) * 60.0**place for place, part in enumerate(reversed(clock.split(":"))))
    except ValueError:
        return None


def parse_file(path: Path | str) -> Iterable[Event]:
    """The events of a whole log. What a terminal of fixed width has broken over several lines is joined again."""
    parser = Parser()
    with open(path, "rb") as file:
        lines = file.read(1 << 18).decode("utf-8", "replace").replace("\r\n", "\n").split("\n")[:-1] or [""]
        file.seek(0)
        width, cut = max(map(len, lines)), {len(line) for line in lines if CUT.search(line)}
        if cut and max(cut) == width and min(cut) > width - 3 and width < 1000:
            begins = r"\(\w+ pid=|\[\w+[]|]|\{'|\d{4}-\d\d|\*\*\*|│|╭|╰| *\d+%\|"
            text = file.read().decode("utf-8", "replace").replace("\r\n", "\n")
            yield from parser.feed(re.sub(rf"(?m)^(.{{{width}}})\n(?!{begins})", r"\1", text))
        while data := file.read(1 << 20):
            yield from parser.feed(data)
    yield from parser.close()
