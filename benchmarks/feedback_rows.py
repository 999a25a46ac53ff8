"""How fast feedback becomes a registered dataset: rows/s, seconds of CPU and peak memory.

    python benchmarks/feedback_rows.py --rows 1000000            # about 2 GB of JSONL, made once in --folder
"""

import argparse
import json
import random
import resource
import time
from pathlib import Path

WORDS = ("the a quick brown fox jumps over lazy dog because nobody asked where river mountain plant garlic autumn "
         "Übung reply short answer question model").split()


def make(path: Path, rows: int) -> Path:
    """Made-up feedback: mostly single turns, 60/40, two prompts alike in a row, one row in 500 broken."""
    generator = random.Random(0)
    texts = [" ".join(generator.choices(WORDS, k=400)) for _ in range(500)]
    with path.open("w", encoding="utf-8") as file:
        for number in range(rows):
            turns = []
            for turn in range(generator.choice((1, 1, 1, 2))):
                asked = number // 2 if turn == 0 else number
                question = f"{asked} {generator.choice(texts)[: generator.randint(100, 900)]}"
                reply = f"{generator.random()} {generator.choice(texts)[: generator.randint(100, 1900)]}"
                turns += [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]
            if number % 1000 == 7:
                turns[-1]["content"] = ""
            label = None if number % 1000 == 9 else generator.random() < 0.6
            file.write(json.dumps({"messages": turns, "label": label}, ensure_ascii=False) + "\n")
    return path


def main() -> None:
    from feedback import check

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/kto-benchmark"), help="where the data are made")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    path = options.folder / f"feedback_{options.rows}.jsonl"
    if not path.exists():
        make(path, options.rows)
    begun, cpu = time.perf_counter(), time.process_time()
    facts = check.prepare(str(path), options.folder / "prepared")
    seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"{options.rows:,} records, {path.stat().st_size / 1e9:.2f} GB: {options.rows / seconds:,.0f} rows/s, {seconds:.1f} s "
          f"({cpu:.1f} s of CPU), peak memory {peak:.2f} GB; {facts['rows'] + facts['heldout_rows']:,} rows out")


if __name__ == "__main__":
    main()
