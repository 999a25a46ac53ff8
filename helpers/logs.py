"""Parse a training log line by line into events: metrics, facts, progress, phases, checkpoints.

Reads what LLaMA-Factory 0.9.3 to 0.9.5, transformers 4 and 5, TRL, DeepSpeed, torchrun and Ray Train V1 and V2 print, with or without
Ray's `(RayTrainWorker pid=…)` prefixes, colours and carriage returns. Never raises; what it does not know it passes over.
"""

import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

COLOUR = re.compile(r"\x1b(?:\[[0-9;?]*[A-Za-z]|\][^\x07]*\x07)")  # and a terminal's title
STAMP = r"(?:\d{4}-\d\d-\d\d[T ]|[A-Z][a-z]{2} [ \d]\d )?\d\d:\d\d:[\d.,]+(?:Z|[+-]\d\d:?\d\d)? "  # a container's log begins with it
PREFIX = re.compile(rf"(?:{STAMP} *)?(?:\([\w-]+,? (?:rank=\d+, )?pid=(\d{{1,18}})(?:, ip=([\w.:-]+))?[^)]*\)"
                    rf"|(?:\[default\d+\]:)?\[((?:rank|default)\d+)\]:) ?|(?={STAMP})\S+T\S+ ")
BEFORE_ALL = [re.compile(begin) for begin in (  # before every line: kubelet, journald, loguru, kubectl, docker compose, mpirun, srun
    rf"\[?{STAMP[:-1]}\]? (?:std(?:out|err) [FP] |[\w.-]+ [\w./-]+\[\d+\]: |\| \w+ +\| \S+ - |- (?:\S+ - )?[A-Z]+ - )?",
    r"\[pod/([\w./-]+)\] ", r"([\w.-]+) +\| ", r"\[\d+,(?:mpirank:)?(\d+)[^\]]*\]<std\w+>: ?", r"([\w.-]+): ")]
CHUNK, MOST, TAIL = 1 << 20, 4 << 20, 2 << 20
"""Bytes: of a log larger than MOST, only the last TAIL is explained, and the chunks that contain a sign of trouble or of a start."""
SIGNS = (b"Traceback (most|Fatal Python| died|SIG|illed|oom|what():|Watchdog caught|exitcode|rror: |marked dead|No space left|Started "
         b"|Connected to Ray|No available node|not started|command not found|DUE TO TIME|aylet is term|node has|return code|CANCELLED"
         b"|low on resource").split(b"|")
LONGEST = 1 << 20  # bytes of an unfinished line that are kept, so that memory stays flat
LINE = re.compile(rb"\n|(?<=\r)")
RECORD = re.compile(r"(?<![=\w])\{'(?:loss|eval_|train_)[^{}]*\}")  # `metrics={'loss': …` is Ray's repetition of one
CUT = re.compile(r"(?<![=\w])\{'(?:loss|eval_|train_)[^{}]*$")
BROKEN = re.compile(r"(?<![=\w])\{'(?:loss|eval_|train_)[^{}\n]*(?:\n(?=[ '\d.ni-])[^{}\n]*){1,9}\}")  # by an editor, between words
PAIR = re.compile(r"'([^']+)':\s*(?:'([^']*)'|(?:[\w.]+\()?([^,{}'()]+))")  # also `np.float64(0.5)`, `tensor(0.5, device='cuda:0')`
BAR = re.compile(r"(?:^|[^0-9])(\d{1,3})%\|[^|]*\| (\d{1,15})/(\d{1,15}) \[[\d:]+<(\d{1,9}(?::\d\d)+|\?)")
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
CLUES = re.compile(rf"%\||\{{'| = |│ train| Continuing|{FACTS.pattern}|{PHASE.pattern}")  # without any a line says nothing that is read


class Event(NamedTuple):
    """One thing that a log line said.

    `kind` and `data`: metrics, eval, summary (the printed dict) · config (facts, most under LLaMA-Factory's names) · progress of the
    training (done, total, remaining: seconds or None) · phase (phase) · checkpoint (step, path).
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
        self.rest, self.before = b"", None
        self.run, self.mark, self.trainer, self.worker, self.config = -1, 0, None, None, {}
        self.begin()

    def begin(self) -> None:
        """Another launch begins in the same file."""
        self.run += 1
        self.phase, self.total, self.done, self.ended, self.finished = "", None, None, False, set()

    def feed(self, data: bytes) -> list[Event]:
        """The events of every line that `data` completes; a carriage return ends a line as a newline does."""
        *lines, self.rest = LINE.split(self.rest[-LONGEST:] + data)
        events = []
        for line in lines:
            worker, text = split(line[:40_000].decode("utf-8", "replace"), self.before)
            worker = worker or self.worker  # what follows a carriage return is the same worker's
            self.worker = worker if line.endswith(b"\r") else None
            if CLUES.search(text):
                events += [Event(kind, said, worker, self.run) for kind, said in self.read(text, worker)]
        return events

    def read(self, text: str, worker: str | None) -> Iterator[tuple[str, dict]]:
        """(kind, data) of what one line says."""
        bar = BAR.search(text) if "%|" in text else None
        if bar and not text[: bar.start(1)].strip(" :"):  # one with a title is not the trainer's
            yield from self.progress(int(bar[2]), int(bar[3]), bar[4])
            if len(text) - bar.end() < 25:  # its end, `,  1.54s/it]`, and nothing else
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
                yield from self.enter(0, "training")
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
            yield "config", {name: number(value) for name, value in words.groupdict().items() if value}

    def progress(self, done: int, total: int, remaining: str) -> Iterator[tuple[str, dict]]:
        self.total = self.total or total
        if total != self.total or done == self.done or self.phase == "evaluating":
            return
        self.done = done
        yield from self.enter(0, "training")
        parts = reversed(remaining.split(":"))  # tqdm's `1:02:03` or `02:03`; `?` at the start
        left = None if remaining == "?" else sum(int(part) * 60.0**place for place, part in enumerate(parts))
        yield "progress", {"done": done, "total": total, "remaining": left}

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


def number(text: str):
    """`text` as int, float (nan and inf too), bool, or itself."""
    text = text.strip()
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text.replace(",", ""))
    return {"True": True, "False": False}.get(text, text)


def split(line: str, before: re.Pattern | None = None) -> tuple[str | None, str]:
    """A line's worker (None: not said) and its text as a screen shows it, without `before`, colours, Ray's or torchrun's prefix."""
    begin = before.match(line) if before else None
    text = line[begin.end() if begin else 0 :].rstrip("\r").rpartition("\r")[2]
    text = COLOUR.sub("", text) if "\x1b" in text else text
    teller = begin[1] if begin and before.groups else None
    if prefix := PREFIX.match(text):
        pid, ip, rank = prefix.groups()
        teller, text = rank or (f"{ip}:{pid}" if ip else pid) or teller, text[prefix.end() :]
    return teller, text


def before_all(lines: list[str]) -> re.Pattern | None:
    """What a scheduler, a container or a logger puts before its lines, if most of the log's first lines have it."""
    some = [line for line in lines[:500] if line.strip() and "%|" not in line]  # a bar's title is no such beginning
    return next((begin for begin in BEFORE_ALL if len(some) > 3 and sum(map(bool, map(begin.match, some))) > 0.8 * len(some)), None)


def parse_file(path: Path | str) -> Iterator[Event]:
    """The events of a whole log. What a terminal or an editor has broken over several lines is joined again."""
    parser, width = Parser(), 0
    with open(path, "rb") as file:
        while data := file.read(CHUNK) + file.readline():
            text = data.decode("utf-8", "replace").replace("\r\n", "\n")
            text = re.sub(r"(?m)^(\S+ std(?:out|err) )P (.*)\n\S+ std\w+ [FP] ", r"\1F \2", text)  # kubelet cuts lines at 16 kB
            if file.tell() == len(data):  # the first piece: records that all end at the longest line's width were wrapped there
                lines = text.split("\n")
                parser.before = before_all(lines)
                longest, torn = max(map(len, lines)), {len(line) for line in lines if CUT.search(line)}
                width = longest if torn and longest - 3 < min(torn) and max(torn) == longest < 1000 else 0
            if width:
                begins = r"\(\w+ pid=|\[\w+[]|]|\{'|\d{4}-\d\d|\*\*\*|│|╭|╰| *\d+%\|"
                text = re.sub(rf"(?m)^(.{{{width}}})\n(?!{begins})", r"\1", text)
            text = BROKEN.sub(lambda record: record[0].replace("\n", ""), text)
            yield from parser.feed(text.encode())
    yield from parser.feed(b"\n")


def that_matter(log: Path) -> Iterator[tuple[str | None, str]]:
    """The log's lines as `split` gives them; of a large log those of the chunks that matter."""
    size, kept, before = log.stat().st_size, 0, None
    with open(log, "rb") as file:
        while chunk := file.read(CHUNK) + file.readline():
            lines = chunk.decode("utf-8", "replace").split("\n")
            before = before_all(lines) if file.tell() == len(chunk) else before
            if size > MOST and file.tell() < size - TAIL:
                if kept > MOST or not any(sign in chunk for sign in SIGNS):
                    continue
                kept += len(chunk)
            for line in lines:
                if "(PlacementGroupCleaner pid=" not in line:  # of Ray 2.60: prints a traceback after every training
                    yield split(line, before)
