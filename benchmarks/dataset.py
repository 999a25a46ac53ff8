"""How fast feedback becomes a registered dataset, on one process and on Ray Data: rows/s and peak memory of both.

    python benchmarks/dataset.py --rows 1000000            # about 2 GB of JSONL, made once in --folder

Each engine runs in a process of its own; memory is the sum of what all its processes hold privately and resident (USS),
without Ray's object store, which is shared memory. On two cores it printed:

    1,000,000 records, 2.04 GB, 2 cores
     local:    13,695 rows/s    73.0 s (and  0.0 s to start), 69 s of CPU, peak memory 0.30 GB
       ray:     9,369 rows/s   106.7 s (and 13.2 s to start), 138 s of CPU, peak memory 1.44 GB
    same dataset from all: True

So one process does it on two cores, and Ray where there are more (helpers/dataset/convert.py, `choose_engine`).
"""

import argparse
import json
import multiprocessing
import os
import random
import threading
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


def work(path: Path, folder: Path, engine: str, answer) -> None:
    """Prepare the dataset whole; the seconds of starting Ray are told apart."""
    from helpers import dataset, doctor, profiles

    begun = time.perf_counter()
    if engine == "ray":
        with doctor.ray_cluster(profiles.load("local"), num_cpus=os.cpu_count()):
            started = time.perf_counter()
            facts = dataset.prepare(str(path), folder / engine, engine=engine)
            ended = time.perf_counter()
    else:
        started, facts, ended = begun, dataset.prepare(str(path), folder / engine, engine=engine), time.perf_counter()
    answer.put({"start": started - begun, "seconds": ended - started, "facts": facts})


def measure(path: Path, folder: Path, engine: str) -> dict:
    """Run `work` in a process of its own; returns its answer, and of it and its children peak GB and CPU seconds."""
    context = multiprocessing.get_context("spawn")
    answer = context.Queue()
    process = context.Process(target=work, args=(path, folder, engine, answer))
    process.start()
    seen, done = {"peak": 0.0, "cpu": {}}, threading.Event()
    watcher = threading.Thread(target=_watch, args=(process.pid, seen, done))
    watcher.start()
    try:
        return answer.get() | {"peak": seen["peak"], "cpu": sum(seen["cpu"].values())}
    finally:
        process.join()
        done.set()
        watcher.join()


def _watch(pid: int, seen: dict, done: threading.Event) -> None:
    import psutil

    while not done.wait(0.5):
        total = 0
        try:
            processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
        except psutil.NoSuchProcess:
            return
        for process in processes:
            try:
                total += process.memory_full_info().uss
                seen["cpu"][process.pid] = sum(process.cpu_times()[:2])
            except psutil.Error:
                continue
        seen["peak"] = max(seen["peak"], total / 1e9)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/kto-benchmark"), help="where the data are made")
    parser.add_argument("--engines", nargs="+", default=["local", "ray"], choices=["local", "ray"])
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    path = options.folder / f"feedback_{options.rows}.jsonl"
    if not path.exists():
        make(path, options.rows)
    print(f"{options.rows:,} records, {path.stat().st_size / 1e9:.2f} GB, {os.cpu_count()} cores")
    facts = {}
    for engine in options.engines:
        found = measure(path, options.folder, engine)
        facts[engine] = found["facts"]
        print(f"{engine:>6}: {options.rows / found['seconds']:>9,.0f} rows/s  {found['seconds']:6.1f} s (and "
              f"{found['start']:4.1f} s to start), {found['cpu']:.0f} s of CPU, peak memory {found['peak']:.2f} GB",
              flush=True)
    print("same dataset from all:", len({each["name"] for each in facts.values()}) == 1)


if __name__ == "__main__":
    main()
