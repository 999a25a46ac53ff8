"""How long the live view takes: a redraw of its card, an event taken in, and the still figure at the end.

python benchmarks/live_view.py [POINTS]        (default: 10000; the bound is 50 ms a redraw)
"""

import json
import random
import statistics
import sys
import time

from helpers.logs import Event
from helpers.plots.live import State
from helpers.plots.livehtml import page


def window(step: int, of: int) -> Event:
    """A logged window of a training that goes well, with noise."""
    at, noise = step / of, random.gauss(0, 0.3)
    rewards = {"rewards/chosen": at + noise, "rewards/rejected": noise - 2 * at, "rewards/margins": 3 * at}
    return Event("metrics", {"loss": 0.5 - 0.3 * at, "kl": abs(noise), "learning_rate": 1e-6, **rewards})


def milliseconds(work) -> float:
    began = time.perf_counter()
    work()
    return 1000 * (time.perf_counter() - began)


def main(points: int) -> None:
    random.seed(0)
    state = State(points)
    state.fold(Event("config", {"gradient_accumulation_steps": 2, "logging_steps": 1, "total_train_batch_size": 8}))
    events = [window(step, points) for step in range(1, points + 1)]
    events += [Event("checkpoint", {"step": points * tenth // 10}) for tenth in range(1, 11)]
    fed = milliseconds(lambda: [state.fold(event) for event in events])
    redraws = [milliseconds(lambda: json.dumps(page(state))) for _ in range(50)]
    print(f"points a curve:   {points}")
    print(f"event taken in:   {1000 * fed / len(events):.1f} µs")
    print(f"redraw, median:   {statistics.median(redraws):.1f} ms")
    print(f"redraw, longest:  {max(redraws):.1f} ms of 50 redraws")
    print(f"card:             {len(page(state)) / 1000:.0f} kB")
    still(points)


def still(points: int) -> None:
    """The figure that takes the card's place at the end, matplotlib's import apart."""
    import pandas as pd

    from helpers import plots
    from helpers.plots import pictures

    steps = range(1, points + 1)
    table = pd.DataFrame([{"step": step, "kl_mean": 0.1, **window(step, points).data} for step in steps])
    table["split"] = "train"
    plots.training(table)
    print(f"still figure:     {milliseconds(lambda: pictures.bundle(plots.training(table))):.0f} ms, once")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000)
