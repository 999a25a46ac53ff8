"""Exceptions as logs print them: Python's tracebacks, IPython's and rich's, chains, groups, and inside Ray's wrappers."""

import re

EXCEPTION = re.compile(r"((?:[A-Za-z_]\w*\.)*[A-Za-z_]\w*)(\(\w+\))?(?:: .*|:?\s*)$")
FRAME = re.compile(  # Python's, IPython's and rich's
    r"(?P<margin>\s*(?:\| *)?)File \"(?P<a>[^\"]+)\", line (?P<b>\d+)(?:, in (?P<c>.+))?"
    r"|(?:File )?(?P<d>(?<=File )\S+?|Cell In\[\d+\])(?::|, line )(?P<e>\d+)(?:,? in (?P<f>[\w.]+))?"
    r"|[│|] (?P<g>/\S+\.py):(?P<h>\d+) in (?P<i>\w+)")
OF_A_GROUP = re.compile(r" {4,}\| |\s+\+-")  # one of the exceptions in an ExceptionGroup
TOLD_OF = re.compile(r"\[Rank (\d+)[\d, ]*(?: Error Snippet)?\]:?$|\s+rank +: (\d+) \(local_rank|-- Process (\d+) terminated with")
CHAINED = ("The above exception was the direct cause", "During handling of the above exception")
WRAPPERS = re.compile(
    r"RayTaskError|TrainingFailedError|ChildFailedError|WorkerGroupError|ControllerError|RayTrainError|UserException"
    r"|TuneError|Process(?:Raised|Exited)Exception|CalledProcessError|SystemExit|RuntimeEnvSetupError"
    r"|exception causes must derive from BaseException"  # Ray's own slip over an error that is no exception of a worker
    r"|Caught \w+ in (?:DataLoader worker|replica)")


class Trouble:
    """A failure in the log: an exception chain of one worker, or one line. `errors`: (its line, where it was raised)."""

    def __init__(self, at: int, teller: str | None, line: str = "", windows: int = 0):
        self.at, self.teller, self.worker, self.windows = at, teller, teller, windows
        self.before: list[str] = []  # lines that belong to it
        self.errors = [(line, "")] if line else []
        self.frame, self.inside, self.chained, self.over, self.doubtful, self.margin = "", False, False, False, False, 0
        self.more: list[str] = []  # the rest of the last message
        self.members: list[str] = []  # of an ExceptionGroup

    def chain(self) -> list[tuple[str, str]]:
        """The errors in time, without wrappers where there are others."""
        return [error for error in self.errors if not WRAPPERS.search(error[0][:90])] or self.errors

    def add(self, text: str) -> bool:
        """Take a line that belongs to the traceback; False where it does not."""
        if (frame := FRAME.match(text)) and not (self.errors and OF_A_GROUP.match(text)):
            file, line, function = (frame[a] or frame[b] or frame[c] for a, b, c in ("adg", "beh", "cfi"))
            self.frame, self.inside = f"{file}:{line}" + (f", in {function}" if function else ""), True
            self.margin = max(0, len(frame["margin"] or "") - 2)
        elif self.inside and (found := exception(text, self.margin)):
            self.errors.append((text.strip(" |"), self.frame))
            # Ray puts the worker's own traceback inside the message of its wrapper: there frames go on.
            self.frame, self.inside, self.chained, self.over, self.more = "", bool(found[2]), False, False, []
            if told := re.search(r"\(pid=(\d+), ip=([\w.:-]+)", text):
                self.worker = f"{told[2]}:{told[1]}"
        elif self.errors and OF_A_GROUP.match(text):
            self.members += [text.strip(" |")] if exception(text, text.rfind("| ") + 2) else []
        elif text.startswith(CHAINED):
            self.chained = True
        elif self.errors and self.errors[-1][0].endswith(":") and not self.inside and not self.over:
            self.errors[-1] = f"{self.errors[-1][0]} {text.strip()}", self.errors[-1][1]  # a message that begins below
        elif self.inside or self.chained or self.over or len(self.more) == 3 or text[0] in "[{(*0123":
            return self.inside or self.chained
        else:
            self.more.append(text.strip())
        return True


def exception(text: str, margin: int) -> re.Match | None:
    """The name of an exception at the start of a traceback's last line, behind `margin` characters of frame."""
    found = EXCEPTION.match(text, margin) if not text[:margin].strip(" |") else None
    return found if found and ("." in found[1] or found[1][0].isupper()) else None
