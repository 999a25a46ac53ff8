"""What single lines of a training's log look like, and the events that `logs` makes of them.

From LLaMA-Factory 0.9.3, transformers 4.52.4, tqdm and Ray 2.48. Every pattern takes time linear in what it is given.
"""

import re
from collections.abc import Iterator
from functools import cache, lru_cache
from typing import NamedTuple

import orjson

ANSI = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]")
PID = re.compile(rb"(?:\x1b\[36m)?\(\w+ pid=(\d{1,18})")
PREFIX = re.compile(rb"^(?:\x1b\[36m)?\(\w+[^)\n]{0,80}\)(?:\x1b\[0m)? ")
REPEATED = re.compile(rb" \[repeated (\d{1,9})x across cluster\].*")
STAMP = re.compile(rb"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(?:,\d+)?\s*")
RANK = re.compile(rb"^\[rank\d+\]:\s*")
HEADING = re.compile(rb"^(?:\[WARNING\|[^>\n]*>> |WARNING \S+ -- )")
PAIR = re.compile(r"'([^']+)': (?:'([^']*)'|([^,{}']+))")
BAR = re.compile(rb"%\|[^|\r\n]*\| (\d{1,15})/(\d{1,15}) \[([\d:]{1,20})<([\d:?]{1,20})")
ROW = re.compile("│ train_loop_config/(?:args/)?(\\S++) ++(\\S.*?) ++│")
RANK0 = re.compile(rb"pid=(\d{1,18})\) world_rank=0\b")
WORLD = re.compile(rb"Process rank: \d+, world size: (\d{1,9})")
PARAMETERS = re.compile(rb"trainable params: ([\d,]{1,30}) \|\| all params: ([\d,]{1,30})")
SAVING = re.compile(rb"Saving model checkpoint to (\S.*checkpoint-(\d{1,18}))\s*$")
EXCEPTION = re.compile(rb"(?:[\w.]+\.)?(\w*(?:Error|Exception|Interrupt))(?:\(\w+\))?(?:: |:?\s*$)")
NUMBERS = {
    b"  Num examples = ": "num_examples", b"  Instantaneous batch size per device = ": "per_device_train_batch_size",
    b"  Gradient Accumulation steps = ": "gradient_accumulation_steps", b"  Total optimization steps = ": "total_steps",
    b"  Total train batch size (w. parallel, distributed & accumulation) = ": "total_train_batch_size",
    b"  Continuing training from global step ": "resumed_from", b"  Batch size = ": "eval_batch_size",
}
"""The trainer's own lines with a number -> the fact's name."""
FATAL = {
    b"OutOfMemoryError": "out of memory", b"out of memory": "out of memory", b"No space left on device": "disk full",
    b"SIGKILL": "killed", b"SIGSEGV": "crashed", b"worker died": "worker died", b"ActorDiedError": "worker died",
    b"ActorUnavailableError": "worker died", b"Watchdog caught collective operation timeout": "communication time-out",
    b"gated repo": "gated model", b"No available node types": "not enough resources",
}
"""Words that end a training wherever they stand -> what happened."""
STAGES = {
    b"Started a local Ray instance": (1, "starting"), b"Connected to Ray cluster": (1, "starting"),
    b"Training started with configuration": (2, "starting"), b"Started distributed worker processes": (3, "starting"),
    b"***** Running training": (4, "training"), b"***** Running Evaluation": (0, "evaluating"),
    b"Loading dataset ": (0, "loading data"), b"Running tokenizer on": (0, "tokenizing"),
    b"loading weights file ": (0, "loading model"), b"Convert model dtype to": (0, "exporting"),
}
"""How a line starts -> (which sign of a run's start it is, in their order, or 0; the phase that it begins)."""
KEYS = {
    **dict.fromkeys((b"  Num ", b"  Inst", b"  Tota", b"  Grad", b"  Cont", b"  Batc"), "number"),
    **dict.fromkeys(("│ tr".encode(), b"- (nod", b"Proces", b"traina"), "fact"),
    **dict.fromkeys((b"***** ", b"Starte", b"Connec", b"Loadin", b"Runnin", b"loadin", b"Conver"), "stage"),
    **dict.fromkeys((b"{'loss", b"{'trai"), "record"), b"{'eval": "evaluation",
    **dict.fromkeys((b"[WARNI", b"WARNIN", b"Warnin"), "warning"),
    **dict.fromkeys((b"Traceb", b"Except", b"Keyboa", b"UserWa", b"A work", b"*** SI"), "trouble"),
    **dict.fromkeys((b"Access", b"Cannot", b"You ar"), "trouble"),
    b"Traini": "driver", b"Saving": "saving", b"Checkp": "reported",
}
"""The first six bytes of what a line says -> the method of `logs.Parser` that reads it."""
QUIET = (
    b"real_accelerator", b"enable mixed precision", b"Version checking has been disabled", b"No metric ", b"socket.cpp",
    b"Previous trainer log", b"Ray deduplicates logs", b"FutureWarning", b"DeprecationWarning", b"SyntaxWarning",
    b"barrier(): using the device",
)
"""Warnings of the stack that are no news to anybody."""


class Event(NamedTuple):
    """One thing that a log line said.

    `kind` and what `data` holds:
      metrics   a logged training window: loss, grad_norm, learning_rate, rewards/…, logps/…, kl, epoch
      eval      an evaluation: the same with the prefix eval_, and kl without one
      summary   the end of the training: train_runtime (s), train_loss, …
      config    facts under LLaMA-Factory's names, from Ray's table and the trainer's own lines
      progress  task (training, evaluating, or the bar's own title), done, total, elapsed and remaining (s or None);
                of bars between two other events, or in one piece, only the last
      phase     phase: starting, loading data, tokenizing, loading model, training, evaluating, saving, exporting,
                evaluated (after the training) or finished
      checkpoint  state (saving: the trainer begins; reported: Ray Train has it), path, and for saving the step
      warning   text
      failure   what (the exception's name or a short word), text
    `pid`: the worker's process, None for the driver. `run`: which run of the file, from 0. `repeated`: this line, and
    those like it that Ray left out (`[repeated 3x across cluster]`).
    """

    kind: str
    data: dict
    pid: int | None = None
    run: int = 0
    repeated: int = 1


NUMERIC = frozenset("0123456789+-.,nNiI")
"""How a number can begin, nan and inf among them."""


def number(text: str):
    """`text` as int, float (nan and inf too), bool, or itself."""
    if text[:1] in NUMERIC:
        plain = text.replace(",", "") if "," in text else text
        for kind in (int, float) if plain.lstrip("+-").isdecimal() else (float,):  # a refusal costs more than a number
            try:
                return kind(plain)
            except ValueError:
                pass
    return {"True": True, "False": False}.get(text, text)


@lru_cache(4096)
def seconds(clock: bytes) -> float | None:
    """tqdm's `1:02:03` or `02:03` in seconds; None for `?`."""
    total = 0.0
    try:
        for part in clock.split(b":"):
            total = total * 60 + int(part)
    except ValueError:
        return None
    return total


def record(text: bytes) -> dict:
    """A printed Python dict of plain values, nan and inf included (which `ast.literal_eval` refuses)."""
    try:
        return orjson.loads(text.replace(b"'", b'"'))
    except ValueError:
        found = PAIR.findall(text.decode("utf-8", "replace"))
        return {key: quoted or number(bare.strip()) for key, quoted, bare in found}


def plain(text: bytes) -> bytes:
    """`text` without its time and Ray's remark on repeats: what makes it the same as another line."""
    return REPEATED.sub(b"", STAMP.sub(b"", text))


def start(block: bytes, place: int) -> int:
    """Where the text begins that `place` is in: after the newline or carriage return before it."""
    line = block.rfind(b"\n", 0, place) + 1
    return max(line, block.rfind(b"\r", line, place) + 1)


def title(block: bytes, place: int) -> str:
    """What stands before the progress bar with its `%|` at `place`: "" for the trainer's own."""
    if block[place - 4 : place - 3] in (b"\r", b"\n"):  # the number is three wide: without a title it starts a line
        return ""
    before = PREFIX.sub(b"", block[max(start(block, place), place - 200) : place])
    return before.strip(b" 0123456789:").decode("utf-8", "replace")


SIX, HASH = 2**48 - 1, 0x9E3779B97F4A7C15


@cache
def _known():
    """Which hashes belong to keys: a key's six bytes as a number, times HASH, its upper 16 of 64 bits."""
    import numpy as np

    known = np.zeros(1 << 16, bool)
    known[[(int.from_bytes(key, "little") * HASH % 2**64) >> 48 for key in KEYS]] = True
    return known


def places(block: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Where in `block` something known may begin: a few hundred of 100,000 bytes, found by numpy in a few passes.

    A place is one where a key stands at a line's start or after Ray's prefix, `>> `, `-- `, a colon or a tab, or that
    is an opening brace; and wherever an error is named (`rror`). Each with its line's start and end, and with the last
    progress bar (its `%|`) before it, or -1; at last the block's end by itself.
    """
    import numpy as np

    padded = block + bytes(8)  # so that eight bytes can be read anywhere
    array = np.frombuffer(padded, np.uint8)
    before, ends = array[1:-1], array[:-2]
    begins = np.ones(len(array), bool)
    begins[1:] = (array[1:] == 123) | (array[:-1] - np.uint8(9) < 5)  # a brace; after a tab, a newline, a carriage return
    begins[2:] |= (before == 32) & ((ends == 109) | (ends & 251 == 58) | (ends & 251 == 41))  # a space after m>:-)
    at = np.flatnonzero(begins[: len(block)])
    words = np.ndarray((len(block),), "<u8", buffer=padded, strides=(1,))[at] & SIX
    found = [np.array([len(block)]), at[_known()[words * np.uint64(HASH) >> np.uint64(48)]]]
    rr = np.flatnonzero((before == 114) & (ends == 114))
    found.append(rr[(array[rr + 2] == 111) & (array[rr + 3] == 114)])  # "rror"
    at = np.sort(np.concatenate(found))
    lines = np.concatenate(([-1], np.flatnonzero(array == 10), [len(block)]))
    percent = np.flatnonzero(array[:-1] == 37)
    bars = np.concatenate(([-1], percent[array[percent + 1] == 124]))
    line = np.searchsorted(lines, at)
    before = bars[np.searchsorted(bars, at) - 1]
    return zip(at.tolist(), (lines[line - 1] + 1).tolist(), lines[line].tolist(), before.tolist(), strict=True)
