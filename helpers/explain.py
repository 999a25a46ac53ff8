"""A failed training explained by its log: the line that decided, where it came from; for known causes why, and what to do.

The first failure in time decides: of a worker's exceptions the root of the chain, through the wrappers of Ray, torchrun and
`raise … from`. Warnings and samples of the data are never causes. A log without an error is said to be that.
"""

import re
import shutil
from collections import deque
from pathlib import Path
from typing import NamedTuple

from . import logs
from .causes import GO_ON, cause_of
from .tracebacks import FRAME, OF_A_GROUP, TOLD_OF, WRAPPERS, Trouble

DEATH = re.compile(  # how others report a process that could print nothing more
    r"A worker died or was killed|actor (?:is dead|died)|ActorDiedError|ActorUnavailableError|WorkerCrashedError"
    r"|^Fatal Python error|(?:^|: +\d+ )(?:Killed|Segmentation fault|Bus error|Aborted)\b|^zsh: (?:killed|segm|abort|bus)"
    r"|SIG(?:SEGV|BUS|ABRT|KILL|FPE|ILL) received|is killed by signal|(?:exitcode\s*:|return code =) -(?!15\b)\d+"
    r"|[Oo]ut of memory: Killed|oom[-_]kill|OOMKilled|memory pressure"
    r"|running low on memory|exit code 137|marked dead|[Rr]aylet.*(?:died|terminated)|node has died|NodeDiedError"
    r"|memory allocation of \d+ bytes failed|terminate called after|what\(\): |DUE TO TIME LIMIT"
    r"|Watchdog caught collective operation timeout|watchdog got stuck|low on resource|terminated abruptly|abruptly died"
    r"|Failed to connect to GCS")
SPOKEN = re.compile(  # errors that programs print without a traceback
    r"command not found|: No module named |can't open file|^\S+: error: |^ *ERROR: |^Error: |^[\w./-]+: .*: "
    r"(?:Permission denied|No such file or directory|No space left on device|Read-only file system|Killed)$")
RAYLET_GONE = re.compile(r"Raylet is terminated|marked dead|node has (?:died|crashed)")
LOST_PEER = re.compile(
    r"Connection (?:closed|reset|refused)|Broken pipe|remote process exited|Timed out waiting|Socket Timeout|NCCL error"
    r"|closed by peer|DistBackendError|DistNetworkError|heartbeat\b|Application timeout|ncclRemoteError")
WAITING = re.compile(
    r"No available node types|has not started in the last|insufficient cluster resources|cannot be scheduled right now"
    r"|Waiting for .*(?:resources|nodes|workers)|client socket has timed out|failed to connect.*retrying")
QUESTION = re.compile(r"(?:choice|key|[Pp]assword|token|\[[Yy]/[Nn]\])[^:?]*[:?]? *$")
STOPPED = re.compile(r"SIGTERM received|[Rr]eceived SIGTERM|being preempted|^Terminated$")
REPORT = re.compile(r"(?:failed \(exitcode:|exits with return code =) (-?)(?!0)\d+(?:\) local_rank: (\d+))?")
START = re.compile(
    r"Started (?:a local Ray instance|distributed worker processes|training worker group of)|Connected to Ray cluster")
FINISHED = re.compile(r"\{'train_runtime'|Training completed after|\*\*\*\*\* train metrics|RUNNING -> FINISHED")
NO_CAUSE = re.compile(r"WARN|[Ww]arning:|^\[W\d|Exception ignored|Logging error|DEBUG|\bretry(?:ing)?\b|: ignored")
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


class Reader:
    """A log line by line: `troubles` of the last launch, those of `earlier` ones, and how far the training came."""

    def __init__(self):
        self.troubles, self.earlier, self.open, self.samples = [], [], {}, {}
        self.recent: dict[str | None, deque] = {}  # each worker's last lines
        self.progressed: dict[str | None, int] = {}  # worker -> the line of its last window
        self.finished = self.windows = -1
        self.at, self.count, self.waiting, self.stopped, self.last, self.bare = 0, 0, "", "", "", (-99, "")
        self.told = None  # of which worker the next traceback is, where a report says so

    def take(self, line: str, teller: str | None = None) -> None:
        worker, text = logs.split(line.rstrip("\r").rpartition("\r")[2])
        worker = worker or teller
        self.at += 1
        trouble = self.open.get(worker)
        if not text.strip() and trouble:
            trouble.over = True  # a message ends at an empty line
        if not text.strip() or text.endswith(("it]", "/s]")) or self.is_sample(worker, text):  # nothing, a bar, the data
            return
        recent = self.recent.setdefault(worker, deque(maxlen=6))
        if told := TOLD_OF.match(text):
            self.told = f"rank{told[1] or told[2] or told[3]}"
        begins = "Traceback (most recent call last)" in text or (FRAME.match(text) and not trouble)
        if begins and not (trouble and trouble.errors and OF_A_GROUP.match(text)):
            if not (trouble and trouble.chained):
                trouble = Trouble(self.at, worker, windows=self.count)
                trouble.before = [line for line in recent if ASIDE.search(line) and not NO_CAUSE.search(line)][-2:]
                trouble.doubtful = bool(recent and NO_CAUSE.search(recent[-1]))
                trouble.worker, self.told = worker or self.told, None
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
        elif STOPPED.search(text):
            self.stopped = self.stopped or text
        elif self.finished < 0 and (told := REPORT.search(text)):
            # torchrun's and DeepSpeed's reports count where the process had no words of its own.
            teller = f"rank{told[2]}" if told[2] else None
            if told[1] or not any(trouble.teller in (teller, None) for trouble in self.troubles):
                self.troubles.append(Trouble(self.at, teller, text.strip(), self.count))
        elif self.finished < 0 and not NO_CAUSE.search(text) and (DEATH.search(text) or SPOKEN.search(text)):
            self.troubles.append(Trouble(self.at, worker, GUESSES.sub("", text.strip()), self.count))

    def lasting(self) -> list[Trouble]:
        """What ended the launch: no failure that the training survived for windows, and none before a good end."""
        return [trouble for trouble in self.troubles if trouble.errors and self.count - trouble.windows < 5
                and trouble.at > max(self.finished, self.progressed.get(trouble.teller, -1))]


def rank(trouble: Trouble) -> int:
    """0 an exception or a death, 1 a peer that is gone, or a mere word, 2 a wrapper, 3 a warning's."""
    chain = trouble.chain()
    first = chain[0][0]
    lost_peer = LOST_PEER.search(first) and len(chain) < 3  # a server that refuses makes a longer chain
    word = not trouble.frame and SPOKEN.search(first) and not DEATH.search(first)
    return 3 if trouble.doubtful else 2 if WRAPPERS.search(first[:90]) else 1 if lost_peer or word else 0


def explain(log: Path | str) -> Explanation:
    """What ended the training of this log, within seconds also for 100 MB."""
    log, reader = Path(log), Reader()
    for teller, line in logs.that_matter(log):
        reader.take(line[:4000], teller)
    troubles = reader.lasting()
    if not troubles and reader.finished > 0:
        return Explanation("nothing failed", "the training came to its end", failed=False)
    if not troubles and not reader.waiting:  # the launch before, or an error's last line where the log was cut
        troubles = [trouble for trouble in reader.earlier if trouble.at > reader.windows]
        if not troubles and reader.at - reader.bare[0] < 30:
            troubles = [Trouble(reader.bare[0], None, reader.bare[1])]
    if not troubles:
        return _without_error(reader, log)
    decisive = min(troubles, key=lambda trouble: (rank(trouble), trouble.at))

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
    more = decisive.members + (decisive.more if at == len(chain) - 1 else [])
    around += [f"with: {text}" for text in more[:2]]
    around += [f"from: {chain[0][0]}"] * (at > 0) + [f"then: {chain[-1][0]}"] * (chain[-1][0] not in chain[at][0])
    place = next((place for _, place in chain[at:] if place), "")  # Ray leaves frames out
    where = ", ".join(filter(None, [place, f"worker {decisive.worker}" if decisive.worker else ""]))
    name = cause.name if cause else re.match(r"[\w.]*", chain[at][0])[0] or "the training failed"
    return Explanation(name, chain[at][0][:300], where, tuple(line[:220] for line in around), *(cause[2:] if cause else ()))


def _without_error(reader: Reader, log: Path) -> Explanation:
    if shutil.disk_usage(log.parent).free < 1 << 20:
        return Explanation("the disk is full", f"{log.parent} has no space left: the log may lack its last words",
                           fix="free space, or another `storage`")
    if reader.waiting:
        return Explanation("the training waits for resources", reader.waiting[:300], "", (),
                           "the cluster has not, or not yet, the CPUs, GPUs or nodes that the workers ask for",
                           "compare `ray status` with ray_num_workers and resources_per_worker")
    if not reader.last:
        return Explanation("nothing was printed", "the log is empty")
    if reader.troubles and reader.troubles[-1].frame:
        return Explanation("the log ends inside a traceback", reader.last.strip()[:300], reader.troubles[-1].frame, (),
                           "the log was cut here, or is still being written", "look for its end where it was written")
    if QUESTION.search(reader.last):
        return Explanation("the training waits for an answer", reader.last.strip()[:300], "", (),
                           "a library asks at a terminal, and nobody is there", "report_to: none, or a key in its environment")
    reached = "after the last logged window" if reader.windows > 0 else "before the first logged window"
    if reader.stopped:
        return Explanation("stopped from outside", reader.stopped[:300], reached, (), "a time limit or `kill`", GO_ON)
    return Explanation("the log ends without an error", reader.last.strip()[:300], reached, (),
                       "it still runs, or was killed from outside: for memory, with its node, with its terminal",
                       "if no process of it lives: the exit status (137: killed), `dmesg | grep oom`, its node's log")
