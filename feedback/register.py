"""Split, shuffle and register datasets where LLaMA-Factory finds them by name."""

import hashlib
import json
import os
import tempfile
from pathlib import Path

import numpy as np

from helpers import files
from helpers.errors import KitError, refuse_out_of_range

FILE = "dataset_info.json"

ENTRY = {
    "formatting": "sharegpt",
    "columns": {"messages": "messages", "kto_tag": "label", "tools": "tools"},
    "tags": {
        "role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant",
        "system_tag": "system", "observation_tag": "observation", "function_tag": "function_call",
    },
}
"""LLaMA-Factory needs these tags for role/content records; without them every row is invalid"""

BATCH = 1000
"""rows that LLaMA-Factory maps at once, rotating replies by one inside them (its `preprocessing_batch_size`)"""


def split(checked, heldout: float = 0.2, seed: int = 42, again: np.ndarray = ()) -> np.ndarray:
    """Which rows of a `check.Checked` are held out, as bools: `heldout` of the *prompts* (0: nothing), none of them on both sides.

    Prompts that were only accepted, only rejected, or both are drawn from alike, so both sides have both labels; KitError where
    there are too few for that. Prompts `again` (hashes, `check.prompts_in`), which an earlier round held out, are held out in any case.
    """
    refuse_out_of_range(seed=seed, heldout=heldout)
    known = np.isin(checked.prompts, again)
    if known.any() and len(np.unique(checked.labels[~known])) < 2:
        raise KitError(f"{known.sum():,} of {len(known):,} rows have prompts that an earlier round held out, and stay held out: "
                       "the rest has not both labels", "rows of both labels to train on",
                       "add rows with other prompts (kto data sample takes replies to those that were trained on)")
    if not heldout:
        return known
    prompts, first, of_row = np.unique(checked.prompts, return_index=True, return_inverse=True)
    patterns = np.zeros(len(prompts), dtype=np.uint8)  # 1: only accepted, 2: only rejected, 3: both
    np.bitwise_or.at(patterns, of_row, np.where(checked.labels, 1, 2).astype(np.uint8))
    chosen, generator, seen = np.isin(prompts, again), np.random.default_rng(seed), 0
    patterns[chosen] = 0
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
    before = np.roll(prompts, 1)
    starts = np.arange(0, len(prompts), BATCH)
    before[starts] = prompts[np.minimum(starts + BATCH, len(prompts)) - 1]
    return np.flatnonzero(before == prompts)


def register(checked, heldout: np.ndarray, datasets: Path, seed: int = 42, name: str = "") -> dict:
    """Write both parts, each shuffled, into the folder `datasets` and enter them in its dataset_info.json.

    Names are `name` (or the source's) and a part of the content's hash, so runs with other splits keep theirs. Returns what
    run.json is to know; `sha256` is the source's, `train_sha256` that of the file that is trained on.
    """
    sides = np.flatnonzero(~heldout), np.flatnonzero(heldout)
    train, rest = (indices[shuffled(checked.prompts[indices], seed)] for indices in sides)
    parts = [("", checked.lines(train))] + ([("_heldout", checked.lines(rest))] if len(rest) else [])
    written = write(datasets, name or checked.source.name, parts)
    names = list(written)
    return {
        "name": names[0], "heldout_name": names[1] if len(rest) else "",
        "source": checked.source.origin, "sha256": checked.sha256, "train_sha256": written[names[0]],
        "shape": checked.shape.name, "scale": checked.shape.scale.words, "unused": checked.unused,
        "rows_in": checked.ledger.rows_in, "unvoted": checked.ledger.unvoted,
        "refused": checked.ledger.refused, "noted": checked.ledger.noted,
        **count(checked, train), **{f"heldout_{key}": value for key, value in count(checked, rest).items()},
        "neighbours_left": len(clashes(checked.prompts[train])), "seed": seed,
    }


def write(folder: Path, name: str, parts: list[tuple[str, list[bytes]]]) -> dict[str, str]:
    """Write each part's JSON lines to `<name>_<hash><suffix>.jsonl`, register them; name -> its file's sha256, in order.

    `parts`: (suffix, lines). The hash is of all parts' content: equal content has equal names, and nothing is ever
    overwritten by something else. A file is whole or not there.
    """
    files.registry(folder)  # a broken registry is better found before than after
    digest = hashlib.sha256()
    for suffix, lines in parts:
        for piece in (suffix.encode(), *lines):
            digest.update(piece)
    names = [f"{name}_{digest.hexdigest()[:8]}{suffix}" for suffix, _ in parts]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".", suffix=".partial") as beside:
            for part, (_, lines) in zip(names, parts, strict=True):
                with open(f"{beside}/{part}.jsonl", "wb") as file:
                    file.writelines(lines)
                    file.flush()
                    os.fsync(file.fileno())
            for part in names:
                os.replace(f"{beside}/{part}.jsonl", folder / f"{part}.jsonl")
    except OSError as error:
        raise KitError(f"could not write the dataset to {folder}: {error.strerror}",
                       "a writable folder with free space", "free some space or choose another storage") from None
    update(folder, {part: {"file_name": f"{part}.jsonl", **ENTRY} for part in names})
    return {part: files.sha256(folder / f"{part}.jsonl") for part in names}


def update(folder: Path, fresh: dict[str, dict]) -> None:
    """Enter `fresh` datasets, leaving others untouched; safe where two do it at once."""
    from filelock import FileLock

    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f".{FILE}.lock", timeout=60):
        files.write(folder / FILE, json.dumps(files.registry(folder) | fresh, indent=2, ensure_ascii=False) + "\n")


def count(checked, which: np.ndarray) -> dict[str, int]:
    """How many rows, prompts, accepted and rejected replies there are among the rows `which` (a mask, or indices)."""
    labels = checked.labels[which]
    return {"rows": len(labels), "prompts": len(np.unique(checked.prompts[which])), "accepted": int(labels.sum()),
            "rejected": int((~labels).sum())}
