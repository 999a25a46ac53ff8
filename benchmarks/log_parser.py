"""How fast the log parser is on one core, and whether its memory stays flat.

Real logs, made as long as asked for in two ways: `runs`, the whole log over and over, and `long`, its start once and
then its training part over and over, as a long training writes it.

    python benchmarks/log_parser.py                 # 20 MB of each recorded log
    python benchmarks/log_parser.py --megabytes 1000 --log tests/fixtures/reference.log
"""

import argparse
import resource
import tempfile
import time
from collections import Counter, deque
from pathlib import Path

from helpers import logs

FIXTURES = Path(__file__).resolve().parent.parent / "tests" / "fixtures"


def peak() -> float:
    """The process's largest resident memory so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(log: Path, megabytes: int, how: str, passes: int) -> None:
    """Write `log` over and over into a file of that size, parse it, and print MB/s, events and memory."""
    text = log.read_bytes()
    start, end = (text.rfind(b"\n", 0, place) + 1 for place in (text.find(b"{'loss'"), text.rfind(b"{'loss'")))
    with tempfile.NamedTemporaryFile() as file:
        file.write(text[:start])
        while file.tell() < megabytes * 1_000_000:
            file.write(text[start:end] if how == "long" else text[start:] + text[:start])
        file.flush()
        deque(logs.parse_file(log), maxlen=0)  # everything imported and compiled
        size, before, took = file.tell() / 1e6, peak(), float("inf")
        for _ in range(passes):
            start = time.process_time()
            deque(logs.parse_file(file.name), maxlen=0)
            took = min(took, time.process_time() - start)
        after, kinds = peak(), Counter(event.kind for event in logs.parse_file(file.name))
    print(f"{log.stem:18} {how} {size:6.0f} MB in {took:6.2f} s = {size / took:4.0f} MB/s; "
          f"{sum(kinds.values()):,} events ({kinds['metrics']:,} metrics); "
          f"peak memory {before:.0f} MB before, {after:.0f} MB after")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=20)
    parser.add_argument("--passes", type=int, default=3, help="the fastest of so many counts: other work disturbs")
    parser.add_argument("--log", type=Path, action="append", help="a log to repeat (may be given again)")
    chosen = parser.parse_args()
    for path in chosen.log or sorted(FIXTURES.glob("*.log")):
        for way in ("runs", "long"):
            measure(path, chosen.megabytes, way, chosen.passes)
