"""The lines of a training's log: whose each is, and of a large log those that matter to its explanation."""

import re
from collections.abc import Iterator
from pathlib import Path

COLOUR = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
STAMP = r"\d{4}-\d\d-\d\d[T ][\d:.,]+(?:Z|[+-]\d\d:?\d\d)? "  # a container's log begins with it
PREFIX = re.compile(rf"(?:{STAMP} *)?(?:\(\w+ pid=(\d{{1,18}})(?:, ip=([\w.:-]+))?[^)]*\)|\[((?:rank|default)\d+)\]:) ?"
                    rf"|(?={STAMP})\S+T\S+ ")
BEFORE_ALL = [re.compile(begin) for begin in (  # what schedulers put before every line: kubelet, docker compose, mpirun, srun, pdsh
    rf"\[?{STAMP[:-1]}\]? (?:std(?:out|err) [FP] )?", r"([\w.-]+) +\| ", r"\[\d+,(\d+)\]<std\w+>: ?", r"([\w.-]+): ")]
BYSTANDER = "(PlacementGroupCleaner pid="
"""A helper of Ray Train V2 in Ray 2.60: it prints a traceback when the training has ended, well or not."""
CHUNK, MOST, TAIL = 1 << 20, 4 << 20, 2 << 20
"""Bytes: of a log beyond MOST only its last TAIL is read, and the chunks in which a sign of trouble or of a start stands."""
SIGNS = (b"Traceback (most", b"Fatal Python", b" died", b"SIG", b"illed", b"oom", b"what():", b"Watchdog caught", b"exitcode",
         b"rror: ", b"marked dead", b"No space left", b"Started ", b"Connected to Ray", b"No available node", b"not started",
         b"command not found", b"DUE TO TIME", b"aylet is term", b"node has", b"return code", b"CANCELLED", b"low on resource")


def split(line: str) -> tuple[str | None, str]:
    """A line's worker (None: not said) and its text, without colours, a container's time, Ray's or torchrun's prefix."""
    text = COLOUR.sub("", line) if "\x1b" in line else line
    prefix = PREFIX.match(text)
    if not prefix:
        return None, text
    pid, ip, rank = prefix.groups()
    return rank or (f"{ip}:{pid}" if ip else pid), text[prefix.end() :]


def is_text(log: Path) -> bool:
    """Whether the file is text in UTF-8, slips aside: no picture, no archive, no UTF-16."""
    with open(log, "rb") as file:
        head = file.read(1 << 14).decode("utf-8", "replace")
    return head.count("\0") + head.count("\ufffd") <= len(head) / 8


def before_all(lines: list[str]) -> re.Pattern | None:
    """What every line of a log begins with, though its program did not print it; its group, if it has one, is whose the line is."""
    lines = [line for line in lines if line.strip()]
    return next((begin for begin in BEFORE_ALL if len(lines) > 3 and all(map(begin.match, lines))), None)


def that_matter(log: Path) -> Iterator[tuple[str | None, str]]:
    """The log's lines, each with its teller where all lines begin with one; of a large log those of the chunks that matter."""
    size, kept = log.stat().st_size, 0
    with open(log, "rb") as file:
        begin = before_all(file.read(1 << 16).decode("utf-8", "replace").split("\n")[:-1])
        file.seek(0)
        while chunk := file.read(CHUNK) + file.readline():
            if size > MOST and file.tell() < size - TAIL:
                if kept > MOST or not any(sign in chunk for sign in SIGNS):
                    continue
                kept += len(chunk)
            for line in chunk.decode("utf-8", "replace").split("\n"):
                if BYSTANDER in line:
                    continue
                found = begin and begin.match(line)
                yield (found[1] if begin.groups else None, line[found.end():]) if found else (None, line)
