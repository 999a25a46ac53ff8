"""Which worker trains on which rows of a step, for the accelerator: each gets about as many tokens as the others.

Workers wait for the slowest at the end of a step. Without padding a step takes as long as its rows are, so rows dealt out
blindly cost two GPUs some 6 % of their speed, eight more. The rows of a step stay the same, and with them loss and gradient:
every worker counts equally many rows, and their means are averaged.
"""


class Dealt:
    """A batch sampler in front of `sampler`: of every `workers` batches in succession, the same rows dealt out by `costs`.

    `costs`: what each row of the dataset costs, in any unit. What is left over at the end of an epoch stays as it is.
    """

    def __init__(self, sampler, workers: int, costs: list[int]):
        self.inner, self.workers, self.costs = sampler, workers, costs
        self.sampler, self.batch_size, self.drop_last = sampler.sampler, sampler.batch_size, sampler.drop_last

    def __len__(self) -> int:
        return len(self.inner)

    def __iter__(self):
        window, turn = [], 0
        for batch in self.inner:
            window.append(batch)
            if len(window) == self.workers and len(batch) == self.batch_size:
                yield from self.deal([row for batch in window for row in batch], turn)
                window, turn = [], turn + 1
        yield from window

    def deal(self, rows: list[int], turn: int) -> list[list[int]]:
        """`rows` in one batch a worker: the dearest first, each to who has the least so far and still has room.

        `turn` moves on who begins: worker 0, whose figures are logged, would always get the dearest row.
        """
        batches: list[list[int]] = [[] for _ in range(self.workers)]
        load = [0] * self.workers
        for row in sorted(rows, key=lambda row: -self.costs[row]):
            least = min((worker for worker in range(self.workers) if len(batches[worker]) < self.batch_size), key=load.__getitem__)
            batches[least].append(row)
            load[least] += self.costs[row]
        start = turn % self.workers
        return batches[start:] + batches[:start]


def lengths_of(dataset, prefix: str = "", replies: bool = False) -> list[int]:
    """Tokens of each row of LLaMA-Factory's KTO dataset; of its mismatched rows with `kl_`; of their replies only with `replies`."""
    import numpy as np

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

    A row of LLaMA-Factory's KTO dataset costs the tokens that are computed for it: forward, backward, and the mismatched row, of
    which only the reply is computed where it shares its prompt (`shared`).
    """
    from accelerate.data_loader import BatchSamplerShard

    shard = loader.batch_sampler
    if workers > 1 and isinstance(shard, BatchSamplerShard) and not shard.split_batches:
        costs = [2 * row + other for row, other in zip(lengths_of(dataset), lengths_of(dataset, "kl_", shared), strict=True)]
        shard.batch_sampler = Dealt(shard.batch_sampler, workers, costs)
    return loader
