"""Which worker trains on which rows of a step, for the accelerator: workers are to wait as little as can be for each other.

They wait twice in a step: for all workers' KL after the passes forward, for the gradients after the pass backward. Without padding
both take as long as the rows are. Dealt out blindly, the demo's rows would cost two GPUs a tenth of their speed; equal sums over
the whole step 3 %, eight GPUs 7 %; equal in both parts under 1 %. The rows of a step stay the same, and with them loss and
gradient: every worker counts equally many rows, and their means are averaged.
"""

import numpy as np


class Dealt:
    """A batch sampler in front of `sampler`: of every `workers` batches in succession, the same rows dealt out by `costs`.

    `costs`: (rows, 2), what each row of the dataset costs before and after the KL is known, in any unit. What is left over at the end
    of an epoch stays as it is.
    """

    def __init__(self, sampler, workers: int, costs):
        self.inner, self.workers, self.costs = sampler, workers, np.asarray(costs)
        self.sampler, self.batch_size, self.drop_last = sampler.sampler, sampler.batch_size, sampler.drop_last

    def __len__(self) -> int:
        return len(self.inner)

    def __iter__(self):
        window, turn = [], 0
        for batch in self.inner:
            window.append(batch)
            if len(window) == self.workers and len(batch) == self.batch_size:
                # Another worker begins every time: worker 0, whose figures are logged, would always get the dearest row.
                yield from np.roll(self.deal(np.concatenate(window)), turn, axis=0).tolist()
                window, turn = [], turn + 1
        yield from window

    def deal(self, rows: np.ndarray) -> np.ndarray:
        """`rows` as (workers, batch_size): sorted by cost and dealt out in turn, every second time round in reverse, then exchanged."""
        dearest = rows[np.argsort(-self.costs[rows].sum(1), kind="stable")].reshape(self.batch_size, self.workers)
        dearest[1::2] = dearest[1::2, ::-1]
        return exchanged(dearest.T.copy(), self.costs)


def exchanged(batches: np.ndarray, costs: np.ndarray) -> np.ndarray:
    """`batches` after the exchanges of two workers' rows, the best first, that make the two longest waits together shorter.

    Takes the CPU 0.1 ms a step for 2 workers of 8 rows, 4 ms for 8, 34 for 32, beside a step's hundreds.
    """
    while True:
        each = costs[batches]  # (workers, rows, 2)
        loads = each.sum(1)
        shortest, best = loads.max(0).sum(), None
        for one in set(loads.argmax(0).tolist()):  # the slowest worker of each part
            for other in set(range(len(batches))) - {one}:
                rest = np.delete(loads, [one, other], 0).max(0, initial=0)
                moved = each[other][None, :] - each[one][:, None]  # by each pair of their rows
                step = np.maximum(np.maximum(loads[one] + moved, loads[other] - moved), rest).sum(-1)
                if step.min() < shortest:
                    row, another = np.unravel_index(step.argmin(), step.shape)
                    shortest, best = step.min(), ((one, row), (other, another))
        if best is None:
            return batches
        here, there = best
        batches[here], batches[there] = batches[there], batches[here]


def lengths_of(dataset, prefix: str = "", replies: bool = False) -> list[int]:
    """Tokens of each row of LLaMA-Factory's KTO dataset; of its mismatched rows with `kl_`; of their replies only with `replies`."""
    column, found = f"{prefix}labels", []
    for chunk in dataset.select_columns(column).with_format("arrow")[:][column].chunks:
        counts = chunk.value_lengths().to_numpy()
        if replies:
            rows = np.repeat(np.arange(len(counts)), counts)  # of each token
            counts = np.bincount(rows[chunk.flatten().to_numpy() != -100], minlength=len(counts))  # -100: not of the reply
        found += counts.tolist()
    return found


def deal_evenly(loader, dataset, workers: int, shared: bool):
    """Make accelerate's `loader`, which deals batches out in turn, deal by cost. With one worker it is left as it is.

    A row of LLaMA-Factory's KTO dataset costs the tokens that are computed for it: its own and the mismatched row's forward, of which
    only the reply is computed where it shares its prompt (`shared`); then its own backward.
    """
    from accelerate.data_loader import BatchSamplerShard

    shard = loader.batch_sampler
    if workers > 1 and isinstance(shard, BatchSamplerShard) and not shard.split_batches:
        rows, others = np.array(lengths_of(dataset)), np.array(lengths_of(dataset, "kl_", shared))
        shard.batch_sampler = Dealt(shard.batch_sampler, workers, np.stack([rows + others, rows], axis=1))
    return loader
