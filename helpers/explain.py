"""A failed training explained by its log: the line that decided, where it came from; for known causes why, and what to do.

The first failure in time decides: of a worker's exceptions the root of the chain, through the wrappers of Ray, torchrun and
`raise … from`. Warnings and samples of the data are never causes. A log without an error is said to be that.
"""

import re
import shutil
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from . import logs
from .causes import GO_ON, cause_of

CHUNK, MOST, TAIL = 1 << 20, 4 << 20, 2 << 20
"""Bytes: of a log beyond MOST only its last TAIL is read, and the chunks in which a sign of trouble or of a start stands."""
SIGNS = (b"Traceback (most", b"Fatal Python", b" died", b"SIG", b"illed", b"oom", b"what():", b"Watchdog caught", b"exitcode",
         b"rror: ", b"marked dead", b"No space left", b"Started ", b"Connected to Ray", b"No available node", b"not started",
         b"command not found", b"DUE TO TIME", b"aylet is term", b"node has")
EXCEPTION = re.compile(r"(?:\s*\| )?((?:[A-Za-z_]\w*\.)*[A-Za-z_]\w*)(\(\w+\))?(?:: .*|:?\s*)$")
FRAME = re.compile(  # Python's, IPython's and rich's
    r"\s*(?:\| *)?File \"(?P<a>[^\"]+)\", line (?P<b>\d+)(?:, in (?P<c>.+))?"
    r"|File (?P<d>/\S+?):(?P<e>\d+),? in (?P<f>\w+)|[│|] (?P<g>/\S+\.py):(?P<h>\d+) in (?P<i>\w+)")
CHAINED = ("The above exception was the direct cause", "During handling of the above exception")
WRAPPERS = re.compile(
    r"RayTaskError|TrainingFailedError|ChildFailedError|WorkerGroupError|ControllerError|RayTrainError|UserException"
    r"|TuneError|CalledProcessError|SystemExit|RuntimeEnvSetupError|Caught \w+ in (?:DataLoader worker|replica)")
DEATH = re.compile(  # how others report a process that could print nothing more
    r"A worker died or was killed|actor (?:is dead|died)|ActorDiedError|ActorUnavailableError|WorkerCrashedError"
    r"|^Fatal Python error|(?:^|: +\d+ )(?:Killed|Segmentation fault|Bus error|Aborted)\b"
    r"|SIG(?:SEGV|BUS|ABRT|KILL|FPE|ILL) received|is killed by signal|exitcode\s*: -(?!15\b)\d+"
    r"|[Oo]ut of memory: Killed|oom[-_]kill|OOMKilled|memory pressure"
    r"|running low on memory|exit code 137|marked dead|[Rr]aylet.*(?:died|terminated)|node has died|NodeDiedError"
    r"|memory allocation of \d+ bytes failed|terminate called after|what\(\): |DUE TO TIME LIMIT"
    r"|Watchdog caught collective operation timeout")
SPOKEN = re.compile(  # errors that programs print without a traceback
    r"command not found|: No module named |can't open file|^\S+: error: |^ERROR: |^Error: |^[\w./-]+: .*: "
    r"(?:Permission denied|No such file or directory|No space left on device|Read-only file system|Killed)$")
RAYLET_GONE = re.compile(r"Raylet is terminated|marked dead|node has (?:died|crashed)")
LOST_PEER = re.compile(
    r"Connection (?:closed|reset|refused)|Broken pipe|remote process exited|Timed out waiting|Socket Timeout|NCCL error"
    r"|closed by peer|DistBackendError|DistNetworkError|heartbeat\b|Application timeout|ncclRemoteError")
WAITING = re.compile(
    r"No available node types|has not started in the last|insufficient cluster resources|cannot be scheduled right now"
    r"|Waiting for .*(?:resources|nodes|workers)|client socket has timed out|failed to connect.*retrying")
START = re.compile(
    r"Started (?:a local Ray instance|distributed worker processes|training worker group of)|Connected to Ray cluster")
FINISHED = re.compile(r"\{'train_runtime'|Training completed after|\*\*\*\*\* train metrics|RUNNING -> FINISHED")
NO_CAUSE = re.compile(r"WARN|[Ww]arning:|^\[W\d|Exception ignored|Logging error|DEBUG|\bretry(?:ing)?\b")
ASIDE = re.compile(r"Assertion .* failed|\bERROR\b(?!.* tun\w+\.py)|CUDA error|FATAL")  # belongs to what follows
GUESSES = re.compile(r" (?:There are some potential root causes|Possible reasons include|This can happen when).*")  # Ray's lists


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
    """A failure in the log: an exception chain of one worker, or one line. `errors`: (its line, where it was raised)."""

    def __init__(self, at: int, teller: str | None, before: list[str], line: str = "", windows: int = 0):
        self.at, self.teller, self.worker, self.before, self.windows = at, teller, teller, before, windows
        self.errors = [(line, "")] if line else []
        self.frame, self.inside, self.chained, self.over, self.doubtful = "", False, False, False, False
        self.more: list[str] = []  # the rest of the last message

    def chain(self) -> list[tuple[str, str]]:
        """The errors in time, without wrappers where there are others."""
        return [error for error in self.errors if not WRAPPERS.search(error[0][:90])] or self.errors

    def rank(self) -> int:
        """0 an exception or a death, 1 a peer that is gone, or a mere word, 2 a wrapper, 3 a warning's."""
        first = self.chain()[0][0]
        lost_peer = LOST_PEER.search(first) and len(self.chain()) < 3  # a server that refuses makes a longer chain
        word = not self.frame and SPOKEN.search(first) and not DEATH.search(first)
        return 3 if self.doubtful else 2 if WRAPPERS.search(first[:90]) else 1 if lost_peer or word else 0

    def add(self, text: str) -> bool:
        """Take a line that belongs to the traceback; False where it does not."""
        if frame := FRAME.match(text):
            file, line, function = (frame[a] or frame[b] or frame[c] for a, b, c in ("adg", "beh", "cfi"))
            self.frame, self.inside = f"{file}:{line}" + (f", in {function}" if function else ""), True
        elif self.inside and (found := EXCEPTION.match(text)) and ("." in found[1] or found[1][0].isupper()):
            self.errors.append((text.strip(" |"), self.frame))
            # Ray puts the worker's own traceback inside the message of its wrapper: there frames go on.
            self.frame, self.inside, self.chained, self.over, self.more = "", bool(found[2]), False, False, []
            if told := re.search(r"\(pid=(\d+), ip=([\w.:-]+)", text):
                self.worker = f"{told[2]}:{told[1]}"
        elif text.startswith(CHAINED):
            self.chained = True
        elif self.errors and self.errors[-1][0].endswith(":") and not self.inside and not self.over:
            self.errors[-1] = f"{self.errors[-1][0]} {text.strip()}", self.errors[-1][1]  # a message that begins below
        elif self.inside or self.chained or self.over or len(self.more) == 3 or text[0] in "[{(*0123":
            return self.inside or self.chained
        else:
            self.more.append(text.strip())
        return True


class Reader:
    """A log line by line: `troubles` of the last launch, those of `earlier` ones, and how far the training came."""

    def __init__(self):
        self.troubles, self.earlier, self.open, self.samples = [], [], {}, {}
        self.recent: dict[str | None, deque] = {}  # each worker's last lines
        self.progressed: dict[str | None, int] = {}  # worker -> the line of its last window
        self.finished = self.windows = -1
        self.at, self.count, self.waiting, self.stopped, self.last, self.bare = 0, 0, "", "", "", (-99, "")

    def take(self, line: str) -> None:
        worker, text = logs.split(line.rstrip("\r").rpartition("\r")[2])
        self.at += 1
        trouble = self.open.get(worker)
        if not text.strip() and trouble:
            trouble.over = True  # a message ends at an empty line
        if not text.strip() or text.endswith(("it]", "/s]")) or self.is_sample(worker, text):  # nothing, a bar, the data
            return
        recent = self.recent.setdefault(worker, deque(maxlen=6))
        if "Traceback (most recent call last)" in text or (FRAME.match(text) and not trouble):
            if not (trouble and trouble.chained):
                trouble = Trouble(self.at, worker, [line for line in recent if ASIDE.search(line)][-2:], "", self.count)
                trouble.doubtful = bool(recent and NO_CAUSE.search(recent[-1]))
                self.open[worker] = trouble
                self.troubles.append(trouble)
            trouble.add(text)
        elif not (trouble and trouble.add(text)):
            self.open.pop(worker, None)
            recent.append(text)
            self.mark(worker, text)
        self.last = text if "%|" not in text and re.search(r"\w{3}", text) else self.last

    def is_sample(self, worker: str | None, text: str) -> bool:
        """Whether this is text of the data: LLaMA-Factory prints a row as `inputs:`, `label_ids:`, and again as `labels:`."""
        state = self.samples.setdefault(worker, [False, set()])
        if re.fullmatch(r"(?:chosen_|rejected_)?(?:inputs|label_ids):", text):
            state[0] = text.endswith("inputs:")
        elif state[0]:
            state[1].add(text)
            state[0] = len(state[1]) < 2000 and not re.match(r"\[INFO\||\{'loss'", text)
        return state[0] or text in state[1] or text.endswith("label_ids:")

    def mark(self, worker: str | None, text: str) -> None:
        """What a line outside tracebacks says: a start, progress, the end, waiting, a death, an error."""
        if re.match(r"(?:\w+\.)*\w+(?:Error|Exception|Interrupt): ", text):
            self.bare = self.at, text.strip()
        if START.search(text):
            self.earlier = [trouble for trouble in self.troubles if trouble.errors] or self.earlier
            self.troubles, self.finished, self.waiting = [], -1, ""
        if FINISHED.search(text):
            self.finished = self.progressed[worker] = self.at
        elif "{'loss'" in text and "metrics=" not in text:
            self.windows = self.progressed[worker] = self.at
            self.count, self.waiting = self.count + 1, ""
        elif WAITING.search(text):
            self.waiting = text
        elif "SIGTERM received" in text:
            self.stopped = self.stopped or text
        elif self.finished < 0 and (told := re.search(r"failed \(exitcode: (-?)\d+\) local_rank: (\d+)", text)):
            # torchrun's report counts where the process had no words of its own.
            if told[1] or not any(trouble.teller in (f"rank{told[2]}", None) for trouble in self.troubles):
                self.troubles.append(Trouble(self.at, f"rank{told[2]}", [], text.strip(), self.count))
        elif self.finished < 0 and not NO_CAUSE.search(text) and (DEATH.search(text) or SPOKEN.search(text)):
            self.troubles.append(Trouble(self.at, worker, [], GUESSES.sub("", text.strip()), self.count))

    def lasting(self) -> list[Trouble]:
        """What ended the launch: no failure that the training survived for windows, and none before a good end."""
        return [trouble for trouble in self.troubles if trouble.errors and self.count - trouble.windows < 5
                and trouble.at > max(self.finished, self.progressed.get(trouble.teller, -1))]


def explain(log: Path | str) -> Explanation:
    """What ended the training of this log, within seconds also for 100 MB."""
    log, reader = Path(log), Reader()
    for line in _lines(log):
        reader.take(line[:4000])
    troubles = reader.lasting()
    if not troubles and reader.finished > 0:
        return Explanation("nothing failed", "the training came to its end", failed=False)
    if not troubles and not reader.waiting:  # the launch before, or an error's last line where the log was cut
        troubles = [trouble for trouble in reader.earlier if trouble.at > reader.windows]
        if not troubles and reader.at - reader.bare[0] < 30:
            troubles = [Trouble(reader.bare[0], None, [], reader.bare[1])]
    if not troubles:
        return _without_error(reader, log)
    decisive = min(troubles, key=lambda trouble: (trouble.rank(), trouble.at))

    # The cause is looked for in this failure's own words; the reason of a death is told by others, later.
    chain = decisive.chain()
    texts = [f"{error} at {place}" for error, place in chain] + decisive.before
    cause = cause_of(texts)
    unsaid = DEATH.search(chain[0][0]) and (not cause or cause.name.startswith("a worker"))
    if unsaid or LOST_PEER.search(chain[0][0]):  # workers print on for a while when their node's raylet is gone
        words = [(other.at, error) for other in reader.troubles for error, _ in other.errors]
        decisive.more = [error for at, error in words if RAYLET_GONE.search(error)
                         or unsaid and at > decisive.at and DEATH.search(error)] + decisive.more
        cause = cause_of(texts + decisive.more)
    at = max((at for at in range(len(chain)) if cause and re.search(cause.pattern, texts[at])), default=0)
    around = [f"before: {text}" for text in decisive.before]
    around += [f"with: {text}" for text in decisive.more[:2]] if at == len(chain) - 1 else []
    around += [f"from: {chain[0][0]}"] * (at > 0) + [f"then: {chain[-1][0]}"] * (at < len(chain) - 1)
    place = next((place for _, place in chain[at:] if place), "")  # Ray leaves frames out
    where = ", ".join(filter(None, [place, f"worker {decisive.worker}" if decisive.worker else ""]))
    name = cause.name if cause else re.match(r"[\w.]*", chain[at][0])[0] or "the training failed"
    return Explanation(name, chain[at][0][:300], where, tuple(line[:220] for line in around), *(cause[2:] if cause else ()))


def _without_error(reader: Reader, log: Path) -> Explanation:
    if shutil.disk_usage(log.parent).free < CHUNK:
        return Explanation("the disk is full", f"{log.parent} has no space left: the log may lack its last words",
                           fix="free space, or another `storage`")
    if reader.waiting:
        return Explanation("the training waits for resources", reader.waiting[:300], "", (),
                           "the cluster has not, or not yet, the CPUs, GPUs or nodes that the workers ask for",
                           "compare `ray status` with ray_num_workers and resources_per_worker")
    if not reader.last:
        return Explanation("nothing was printed", "the log is empty")
    reached = "after the last logged window" if reader.windows > 0 else "before the first logged window"
    if reader.stopped:
        return Explanation("stopped from outside", reader.stopped[:300], reached, (), "a time limit or `kill`", GO_ON)
    return Explanation("the log ends without an error", reader.last.strip()[:300], reached, (),
                       "it still runs, or was killed from outside: for memory, with its node, with its terminal",
                       "if no process of it lives: the exit status (137: killed), `dmesg | grep oom`, its node's log")


def _lines(log: Path) -> Iterator[str]:
    """The log's lines; of a large one those of the chunks that matter."""
    size, kept = log.stat().st_size, 0
    with open(log, "rb") as file:
        while chunk := file.read(CHUNK) + file.readline():
            if size > MOST and file.tell() < size - TAIL:
                if kept > MOST or not any(sign in chunk for sign in SIGNS):
                    continue
                kept += len(chunk)
            yield from chunk.decode("utf-8", "replace").split("\n")
