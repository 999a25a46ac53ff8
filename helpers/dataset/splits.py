"""Which rows are held out, and the order of rows: both seeded, both by prompt."""

import numpy as np

from ..errors import KitError

BATCH = 1000
"""rows that LLaMA-Factory maps at once, rotating replies by one inside them (its `preprocessing_batch_size`)"""


def split(checked, heldout: float = 0.2, seed: int = 42) -> np.ndarray:
    """Which rows of a `dataset.Checked` are held out, as bools: `heldout` of the *prompts*, none of them on both sides.

    Prompts that were only accepted, only rejected, or both are drawn from alike, so both sides have both labels;
    KitError where there are too few prompts for that. `heldout` 0 holds nothing out.
    """
    if not 0 <= heldout < 1:
        raise KitError(f"heldout is {heldout}", "a share of the prompts, from 0 to below 1", "correct `heldout`")
    if not heldout:
        return np.zeros(len(checked.labels), dtype=bool)
    prompts, first, of_row = np.unique(checked.prompts, return_index=True, return_inverse=True)
    patterns = np.zeros(len(prompts), dtype=np.uint8)
    np.bitwise_or.at(patterns, of_row, np.where(checked.labels, 1, 2).astype(np.uint8))
    chosen, generator, seen = np.zeros(len(prompts), dtype=bool), np.random.default_rng(seed), 0
    for pattern in (1, 2, 3):
        those = np.flatnonzero(patterns == pattern)
        those = generator.permutation(those[np.argsort(first[those])])  # hashes' order means nothing, the file's does
        take = round(heldout * (seen + len(those))) - round(heldout * seen)
        seen += len(those)
        if len(those) > 1:
            take = min(max(take, 1), len(those) - 1)
        chosen[those[:take]] = True
    mask = chosen[of_row]
    if any(len(np.unique(checked.labels[side])) < 2 for side in (mask, ~mask)):
        raise KitError(f"{len(prompts)} prompts are too few to hold some out with both labels on both sides",
                       "two prompts or more of each label", "add rows, or set `heldout` to 0")
    return mask


def shuffled(prompts: np.ndarray, seed: int = 42) -> np.ndarray:
    """A seeded random order of rows in which neighbours share no prompt, where that is possible (see `clashes`)."""
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(prompts))
    for _ in range(100):
        clashing = clashes(prompts[order])
        if not len(clashing):
            break
        for place, other in zip(clashing, generator.integers(len(order), size=len(clashing)), strict=True):
            order[place], order[other] = order[other], order[place]
    return order


def clashes(prompts: np.ndarray) -> np.ndarray:
    """Places whose row follows one of the same prompt, the first of each 1,000 following their last.

    LLaMA-Factory 0.9.3 (data/processor/feedback.py) pairs each prompt with the reply of the row before it to estimate
    KTO's reference point; such a pair is meant to be mismatched.
    """
    if len(prompts) < 2:
        return np.array([], dtype=int)
    before = np.roll(prompts, 1)
    starts = np.arange(0, len(prompts), BATCH)
    before[starts] = prompts[np.minimum(starts + BATCH, len(prompts)) - 1]
    return np.flatnonzero(before == prompts)
