"""Rows dealt out to workers by length: the same rows in every step, no worker waiting long for another."""

import random
import statistics
import types

import pytest
from accelerate.data_loader import BatchSamplerShard, skip_first_batches
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

from kto_accelerator import dealing

LENGTHS = [random.Random(seed).randint(20, 1024) for seed in range(203)]
COSTS = [(own + random.Random(own).randint(10, 900), own) for own in LENGTHS]  # forward with the mismatched row's reply, then backward


def steps(workers: int, dealt: bool, batch: int = 8) -> list[list[list[int]]]:
    """The rows of every step, a list a worker, as accelerate deals them out."""

    def shard(index):
        sampler = BatchSampler(SequentialSampler(COSTS), batch, drop_last=False)
        return BatchSamplerShard(dealing.Dealt(sampler, workers, COSTS) if dealt else sampler, workers, index)

    shards = [shard(index) for index in range(workers)]
    assert len({len(shard) for shard in shards}) == 1
    return [list(step) for step in zip(*shards, strict=True)]


def waiting(dealing_out: list) -> float:
    """The share of the workers' time that is spent waiting for the slowest of each part of a step, if a row takes what it costs."""
    loads = [[[sum(COSTS[row][part] for row in rows) for rows in step] for part in (0, 1)] for step in dealing_out]
    return 1 - sum(sum(part) / len(part) for step in loads for part in step) / sum(max(part) for step in loads for part in step)


@pytest.mark.parametrize("workers", [2, 3, 8])
def test_every_step_has_the_same_rows_as_before_and_workers_wait_a_tenth_as_long(workers):
    before, after = steps(workers, dealt=False), steps(workers, dealt=True)
    assert [sorted(sum(step, [])) for step in after[:-1]] == [sorted(sum(step, [])) for step in before[:-1]]
    assert set(sum(sum(after, []), [])) == set(range(len(COSTS)))  # the last step is filled up with rows of the first
    assert all(len(rows) == 8 for step in after[:-1] for rows in step)
    assert waiting(after[:-1]) < 0.1 * waiting(before[:-1]) and waiting(before[:-1]) > 0.05


def test_no_worker_always_gets_the_longest_row():
    longest = [max(range(2), key=lambda worker, step=step: max(COSTS[row] for row in step[worker])) for step in steps(2, True)]
    assert 0.3 < statistics.fmean(longest) < 0.7


def test_a_resumed_epoch_goes_on_with_the_rows_that_were_next():
    sampler = BatchSampler(SequentialSampler(COSTS), 8, drop_last=False)
    loader = DataLoader(LENGTHS, batch_sampler=BatchSamplerShard(dealing.Dealt(sampler, 2, COSTS), 2, 1))
    assert [b.tolist() for b in skip_first_batches(loader, 5)] == [b.tolist() for b in loader][5:]


def test_one_worker_keeps_its_order_and_costs_are_tokens_forward_backward_and_what_is_computed_of_the_mismatched_row():
    from accelerate.data_loader import DataLoaderShard
    from datasets import Dataset

    rows = Dataset.from_dict({"labels": [[-100] * 3 + [1] * 2, [1]], "kl_labels": [[-100, 1], [-100, -100, 1]]})
    last = rows.select([1])
    for some, shared, costs in ((rows, False, [[7, 5], [4, 1]]), (rows, True, [[6, 5], [2, 1]]), (last, False, [[4, 1]]), (last, True, [[2, 1]])):
        shard = BatchSamplerShard(BatchSampler(SequentialSampler(some), 1, drop_last=False), 2, 0)
        dealt = dealing.deal_evenly(types.SimpleNamespace(batch_sampler=shard), some, 2, shared)
        assert dealt.batch_sampler.batch_sampler.costs.tolist() == costs
    loader = DataLoaderShard(rows, batch_size=1)
    assert dealing.deal_evenly(loader, rows, 1, True) is loader and not isinstance(loader.batch_sampler, dealing.Dealt)
