"""Explain a failed training run from its log: the decisive line, where it came from, the cause and the fix if known.

The first failure in time decides: of a worker's exceptions the root of the chain. Warnings and samples of the data are never causes.
"""

import re
from collections import deque
from pathlib import Path
from typing import NamedTuple

from . import causes, logs

EXCEPTION = re.compile(r"((?:[A-Za-z_]\w*\.)*[A-Za-z_]\w*)(\(\w+\))?(?:: .*|:?\s*)$")
FRAME = re.compile(  # Python's, IPython's and rich's
    r"(?P<margin>\s*(?:\| *)?)File \"(?P<a>[^\"]+)\", line (?P<b>\d+)(?:, in (?P<c>.+))?"
    r"|(?:File )?(?P<d>(?<=File )\S+?|Cell In\[\d+\])(?::|, line )(?P<e>\d+)(?:,? in (?P<f>[\w.]+))?"
    r"|[│|] (?P<g>\S+\.py):(?P<h>\d+) in (?P<i>\w+)")
OF_A_GROUP = re.compile(r" {4,}\| |\s+\+-")  # one of the exceptions in an ExceptionGroup
TOLD_OF = re.compile(r"\[Rank (\d+)[\d, ]*(?: Error Snippet)?\]:?$|\s+rank +: (\d+) \(local_rank|-- Process (\d+) terminated with")
CHAINED = ("The above exception was the direct cause", "During handling of the above exception")
WRAPPERS = re.compile(
    r"RayTaskError|TrainingFailedError|ChildFailedError|WorkerGroupError|ControllerError|RayTrainError|UserException"
    r"|TuneError|Process(?:Raised|Exited)Exception|DatasetGenerationError|CalledProcessError|CancelledError|PapermillExecutionError|RuntimeEnvSetupError"
    r"|OSError: Failed to load (?:tokenizer|processor)|RuntimeError: Failed to import|Caught \w+ in (?:DataLoader worker|replica)"
    r"|exception causes must derive from BaseException")  # Ray's own slip over an error that is no exception of a worker


class Explanation(NamedTuple):
    """`name` of the cause, or of the exception; the `line` that decided; `where` it was raised (file:line, function; worker);
    `around`: lines before it that belong to it, and what it led to; `why` and `fix` where the cause is known."""

    name: str
    line: str = ""
    where: str = ""
    around: tuple[str, ...] = ()
    why: str = ""
    fix: str = ""
    failed: bool = True

    def __str__(self) -> str:
        rows = [("at:", self.where), *(("", line) for line in self.around), ("why:", self.why), ("fix:", self.fix)]
        first = f"{self.name}: {self.line}" if not self.line.startswith(self.name) else self.line
        return "\n".join([first, *(f"  {title:<9} {text}" for title, text in rows if text)])


class Trouble:
    """A failure in the log: one worker's chain of exceptions, or a line. `errors`: (line, where it was raised, more of its message)."""

    def __init__(self, at: int, teller: str | None, line: str = "", windows: int = 0):
        self.at, self.teller, self.worker, self.windows = at, teller, teller, windows
        self.before, self.more, self.members = [], [], []  # lines before it; the rest of its last message; exceptions of a group
        self.errors = [(line, "", self.more)] if line else []
        self.frame, self.inside, self.chained, self.over, self.doubtful, self.margin = "", False, False, False, False, 0

    def chain(self) -> list[tuple[str, str, list[str]]]:
        """The errors in time, without wrappers where there are others."""
        return [error for error in self.errors if not WRAPPERS.search(error[0][:90])] or self.errors

    def rank(self) -> int:
        """0 an exception or a death, 1 a peer that is gone, a mere word, or a warning's, 2 a wrapper."""
        chain = self.chain()
        first = chain[0][0]
        lost_peer = causes.LOST_PEER.search(first) and len(chain) < 3  # a server that refuses makes a longer chain
        word = not chain[0][1] and causes.SPOKEN.search(first) and not causes.DEATH.search(first)
        return 2 if WRAPPERS.search(first[:90]) else 1 if self.doubtful or lost_peer or word else 0

    def add(self, text: str) -> bool:
        """Take a line that belongs to the traceback; False where it does not."""
        wrapped = "Error: " in text and self.errors and WRAPPERS.search(self.errors[-1][0][:90])  # its message names the error
        if (frame := FRAME.match(text)) and not (self.errors and OF_A_GROUP.match(text)):
            file, line, function = (frame[a] or frame[b] or frame[c] for a, b, c in ("adg", "beh", "cfi"))
            self.frame, self.inside = f"{file}:{line}" + (f", in {function}" if function else ""), True
            self.margin = max(0, len(frame["margin"] or "") - 2)
        elif (self.inside or wrapped) and (found := exception(text, self.margin)):
            self.more = []
            self.errors.append((text.strip(" |"), self.frame, self.more))
            # Ray puts the worker's own traceback inside the message of its wrapper: there frames go on.
            self.frame, self.inside, self.chained, self.over = "", bool(found[2]), False, False
            if told := re.search(r"\(pid=(\d+), ip=([\w.:-]+)", text):
                self.worker = f"{told[2]}:{told[1]}"
        elif self.errors and OF_A_GROUP.match(text):
            self.members += [text.strip(" |")] if exception(text, text.rfind("| ") + 2) else []
        elif text.startswith(CHAINED):
            self.chained = True
        elif self.errors and self.errors[-1][0].endswith(":") and not self.inside and not self.chained:
            self.errors[-1] = f"{self.errors[-1][0]} {text.strip()}", *self.errors[-1][1:]  # a message that begins below
        elif self.inside or self.chained or (len(self.more) == 3 and self.more[2][-1] != ":") or text[0] in "[{(*0123":
            return self.inside or self.chained
        elif self.more and self.more[-1].endswith(":"):
            self.more[-1] += f" {text.strip()}"
        else:
            self.more.append(causes.GUESSES.sub("", text.strip()))
        return True


def exception(text: str, margin: int) -> re.Match | None:
    """The name of an exception at the start of a traceback's last line, behind `margin` characters of frame."""
    found = EXCEPTION.match(text, margin) if not text[:margin].strip(" |") else None
    return found if found and ("." in found[1] or found[1][0].isupper()) else None


class Reader:
    """A log line by line: `troubles` of the last launch, those of `earlier` ones, and how far the training came."""

    def __init__(self):
        self.troubles, self.earlier, self.open, self.samples = [], [], {}, {}
        self.recent: dict[str | None, deque] = {}  # each worker's last lines
        self.progressed: dict[str | None, int] = {}  # worker -> the line of its last window
        self.finished = self.windows = -1
        self.at, self.count, self.waiting, self.stopped, self.last, self.bare = 0, 0, "", "", "", (-99, "")
        self.told, self.head = None, re.compile("(?!)")  # of whom a report's next traceback is; what a logger puts before its lines

    def take(self, worker: str | None, text: str) -> None:
        if (place := text.find("Traceback (most recent")) > 0 and re.search(r"\d", text[:place]):
            self.head = re.compile("^" + re.sub(r"\d+", r"\\d+", re.escape(text[:place])))
        text = self.head.sub("", re.sub(r"^(?:  \| )+(?= +[|+])", "", text[:4000]))  # Ray puts a group of exceptions into its own
        self.at += 1
        trouble = self.open.get(worker)
        if not text.strip() and trouble:
            trouble.over = True  # a message ends at an empty line; where it had one in it, the chain goes on all the same
        if trouble and trouble.over and not (trouble.inside or trouble.chained or text.startswith(CHAINED)):
            trouble = None
        if not text.strip() or text.endswith(("it]", "/s]")) or self.is_sample(worker, text):  # nothing, a bar, the data
            return
        recent = self.recent.setdefault(worker, deque(maxlen=6))
        if told := TOLD_OF.match(text):
            self.told = f"rank{told[1] or told[2] or told[3]}"
        begins = "Traceback (most recent call last)" in text or (FRAME.match(text) and not trouble)
        if begins and not (trouble and trouble.errors and OF_A_GROUP.match(text)):
            if not (trouble and trouble.chained):
                trouble = Trouble(self.at, worker, windows=self.count)
                trouble.before = [line for line in recent if causes.ASIDE.search(line) and not causes.NO_CAUSE.search(line)][-2:]
                trouble.doubtful = bool(recent and causes.NO_CAUSE.search(recent[-1]))
                trouble.worker, self.told = worker or self.told, None
                self.open[worker] = trouble
                self.troubles.append(trouble)
            trouble.add(text)
        elif not (trouble and trouble.add(text)):
            if trouble:
                trouble.over = True
            recent.append(text)
            self.mark(worker, text)
        self.last = text if "%|" not in text and re.search(r"\w{3}", text) else self.last

    def is_sample(self, worker: str | None, text: str) -> bool:
        """Whether this is text of the data: LLaMA-Factory prints a row as `inputs:`, `label_ids:`, and the reply again as `labels:`."""
        state = self.samples.setdefault(worker, [0, set()])  # how many lines more are the row's; its lines
        if begins := re.fullmatch(r"(?:chosen_|rejected_)?(inputs|label_ids|labels):", text):
            state[0] = {"inputs": 2000, "labels": 1}.get(begins[1], 0)  # a reply may begin within a line of the row
        elif state[0] and not re.match(r"\[INFO\||\{'loss'", text):
            state[0] -= 1
            state[1].add(text)
        return bool(begins) or text in state[1]

    def mark(self, worker: str | None, text: str) -> None:
        """What a line outside tracebacks says: a start, progress, the end, waiting, a death, an error."""
        if re.match(r"(?:\w+\.)*\w+(?:Error|Exception|Interrupt): ", text):
            self.bare = self.at, text.strip()
        if causes.START.search(text):
            self.earlier = [trouble for trouble in self.troubles if trouble.errors] or self.earlier
            self.troubles, self.finished, self.waiting, self.stopped = [], -1, "", ""
        if causes.FINISHED.search(text):
            self.finished = self.progressed[worker] = self.at
        elif "{'loss'" in text and "metrics=" not in text:
            self.windows = self.progressed[worker] = self.at
            self.count, self.waiting = self.count + 1, ""
        elif causes.WAITING.search(text):
            self.waiting = text
        elif causes.STOPPED.search(text):
            self.stopped = self.stopped or text
        elif self.finished < 0 and (told := causes.REPORT.search(text)):
            # torchrun's and DeepSpeed's reports count where the process had no words of its own.
            teller = f"rank{told[2]}" if told[2] else None
            if told[1] or not any(trouble.teller in (teller, None) for trouble in self.troubles):
                self.troubles.append(Trouble(self.at, teller, text.strip(), self.count))
        elif self.finished < 0 and not causes.NO_CAUSE.search(text) and (causes.DEATH.search(text) or causes.SPOKEN.search(text)):
            self.troubles.append(Trouble(self.at, worker, causes.GUESSES.sub("", text.strip()), self.count))

    def lasting(self) -> list[Trouble]:
        """What ended the launch: no failure that the training survived for windows, and none before a good end."""
        return [trouble for trouble in self.troubles if trouble.errors and self.count - trouble.windows < 5
                and not (trouble.doubtful and self.finished > 0)
                and trouble.at > max(self.finished, self.progressed.get(trouble.teller, -1))]


def explain(log: Path | str) -> Explanation:
    """What ended the training of this log, within seconds also for 100 MB."""
    log, reader = Path(log), Reader()
    for worker, text in logs.that_matter(log):
        reader.take(worker, text)
    troubles = reader.lasting()
    if not troubles and reader.finished > 0:
        return Explanation("nothing failed", "the training came to its end", failed=False)
    if not troubles and not reader.waiting:  # the launch before, or an error's last line where the log was cut
        troubles = [trouble for trouble in reader.earlier if trouble.at > reader.windows]
        if not troubles and reader.at - reader.bare[0] < 30:
            troubles = [Trouble(reader.bare[0], None, reader.bare[1])]
    if not troubles:
        return _without_error(reader)
    decisive = min(troubles, key=lambda trouble: (trouble.rank(), trouble.at))

    # The cause is looked for in this failure's own words; the reason of a death is told by others, later.
    chain = decisive.chain()
    texts, told = [f"{error} at {place}" for error, place, _ in chain] + decisive.before, []
    cause = causes.cause_of(texts)
    unsaid = causes.DEATH.search(chain[0][0]) and (not cause or cause.name.startswith(("a worker", "a process")))
    if unsaid or causes.LOST_PEER.search(chain[0][0]):  # workers print on for a while when their node's raylet is gone
        words = [(other.at, error) for other in reader.troubles for error, *_ in other.errors]
        told = [error for at, error in words if causes.RAYLET_GONE.search(error)
                or unsaid and at > decisive.at and causes.DEATH.search(error)]
        cause = causes.cause_of(texts + told + [line for *_, more in chain for line in more])
    at = max((at for at in range(len(chain)) if cause and re.search(cause.pattern, texts[at])), default=0)
    around = [f"before: {text}" for text in decisive.before]
    around += [f"with: {text}" for text in (decisive.members + told + chain[at][2])[:2]]
    around += [f"from: {chain[0][0]}"] * (at > 0) + [f"then: {chain[-1][0]}"] * (chain[-1][0] not in chain[at][0])
    place = next((place for _, place, _ in chain[at:] if place), "")  # Ray leaves frames out
    where = ", ".join(filter(None, [place, f"worker {decisive.worker}" if decisive.worker else ""]))
    name = cause.name if cause else re.match(r"[\w.]*", chain[at][0])[0] or "the training failed"
    return Explanation(name, chain[at][0][:300], where, tuple(line[:220] for line in around), *(cause[2:] if cause else ()))


def _without_error(reader: Reader) -> Explanation:
    last, reached = reader.last.strip()[:300], f"{'after the last' if reader.windows > 0 else 'before the first'} logged window"
    if reader.waiting:
        return Explanation("the training waits for resources", reader.waiting[:300], "", (),
                           "the cluster has not, or not yet, the CPUs, GPUs or nodes that the workers ask for",
                           "compare `ray status` with ray_num_workers and resources_per_worker")
    if not last:
        return Explanation("nothing was printed", "the log is empty")
    if reader.troubles and reader.troubles[-1].frame:
        return Explanation("the log ends inside a traceback", last, reader.troubles[-1].frame, (),
                           "the log was cut here, or is still being written", "look for its end where it was written")
    if causes.QUESTION.search(reader.last):
        return Explanation("the training waits for an answer", last, "", (), "a library asks at a terminal, and nobody is there",
                           "report_to: none, or a key in its environment")
    if reader.stopped:
        return Explanation("stopped from outside", reader.stopped[:300], reached, (), "a time limit or `kill`", causes.GO_ON)
    return Explanation("the log ends without an error", last, reached, (),
                       "it still runs, or was killed from outside: for memory, with its node or terminal; or the log's disk is full",
                       "if no process of it lives: the exit status (137: killed), `dmesg | grep oom`, its node's log")
