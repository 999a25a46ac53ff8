"""Loss weights that suit the labels, lengths, and what the cutoff truncates."""

import contextlib
import math
import os
import warnings
from typing import TYPE_CHECKING

import numpy as np

from helpers import files
from helpers.errors import KitError, refuse_out_of_range

from .register import count

if TYPE_CHECKING:
    from .check import Checked

HIGHEST = 4 / 3
"""λ_D·n_D / (λ_U·n_U) should lie from 1 to this (Ethayarajh et al., 2024, section 4.2; 3/2 in the later text)"""

MEASURED = 5000
"""rows whose tokens are counted; of a larger dataset a seeded sample of so many"""


def weights(accepted: int, rejected: int) -> dict[str, float]:
    """LLaMA-Factory's `kto_chosen_weight` (λ_D) and `kto_rejected_weight` (λ_U) for so many rows of each label, both above 0.

    The smallest change to one of the two that brings λ_D·n_D / (λ_U·n_U) between 1 and 4/3, rounded up to hundredths so that the
    bound holds: 200 accepted and 800 rejected give λ_D = 4.
    """
    share = accepted / rejected
    chosen, rejected = (math.ceil(round(max(1.0, weight) * 100, 6)) / 100 for weight in (1 / share, share / HIGHEST))
    return {"kto_chosen_weight": chosen, "kto_rejected_weight": rejected}


def balance(accepted: int, rejected: int, kto_chosen_weight: float = 1.0, kto_rejected_weight: float = 1.0) -> float:
    """λ_D·n_D / (λ_U·n_U), without unit: 1 to 4/3 is balanced."""
    return kto_chosen_weight * accepted / (kto_rejected_weight * rejected)


def counts(checked: "Checked", heldout: np.ndarray):
    """A table of two rows, training and held out: rows, prompts, accepted, rejected, share with several turns."""
    import pandas as pd

    return pd.DataFrame({name: count(checked, mask) | {"several turns": int((checked.turns[mask] > 1).sum())}
                         for name, mask in (("training", ~heldout), ("held out", heldout))}).T


def turns(checked: "Checked") -> dict[int, int]:
    """How many rows have how many turns of question and reply."""
    found, rows = np.unique(checked.turns, return_counts=True)
    return dict(zip(found.tolist(), rows.tolist(), strict=True))


def token_lengths(checked: "Checked", model_name_or_path: str, cutoff_len: int, seed: int = 42):
    """One row a record (or a sample of `MEASURED`): label, prompt, reply, total and kept_reply (see `cut`), in tokens.

    Counted with the model's own tokenizer and chat template, control tokens included (LLaMA-Factory's template may differ by a
    few), or without a template the bare texts; the table's `attrs["how"]` says which it was.
    """
    import pandas as pd

    refuse_out_of_range(cutoff_len=cutoff_len, seed=seed)
    tokenizer = _tokenizer(model_name_or_path)
    indices = np.arange(len(checked.labels))
    if len(indices) > MEASURED:
        indices = np.sort(np.random.default_rng(seed).choice(indices, MEASURED, replace=False))
    texts = [_texts(tokenizer, row["messages"]) for row in checked.rows(indices)]
    both = [[prompt for prompt, _ in texts], [prompt + reply for prompt, reply in texts]]
    prompt, total = (np.array([len(ids) for ids in tokenizer(side, add_special_tokens=False, verbose=False)["input_ids"]])
                     for side in both)
    reply = np.maximum(total - prompt, 0)
    kept = [cut(p, r, cutoff_len)[1] for p, r in zip(prompt, reply, strict=True)]
    table = pd.DataFrame({"label": checked.labels[indices], "prompt": prompt, "reply": reply, "total": prompt + reply,
                          "kept_reply": kept}, index=indices)
    table.attrs["how"] = "the model's chat template" if tokenizer.chat_template else "bare texts: no chat template"
    return table


def cut(prompt: int, reply: int, cutoff_len: int) -> tuple[int, int]:
    """Tokens of prompt and reply that LLaMA-Factory 0.9.3 keeps (`infer_seqlen` in data/processor/processor_utils.py).

    A reply shorter than half the cutoff is kept whole; else a prompt that is; else both shrink in proportion.
    """
    if reply * 2 < cutoff_len:
        most = cutoff_len
    elif prompt * 2 < cutoff_len:
        most = cutoff_len - prompt
    else:
        most = int(cutoff_len * (reply / (prompt + reply)))
    kept = min(most, reply)
    return min(max(cutoff_len - kept, 0), prompt), kept


def note_cutoff(checked: "Checked", lengths, cutoff_len: int) -> dict:
    """Enter the measured rows over the cutoff into the ledger.

    Returns `cutoff_len`, `share_over` (of the rows), `mean_reply_lost` (share of their reply that those lose), `longest` and, once
    cut, `mean_tokens` (tokens a row).
    """
    over = lengths[lengths["total"] > cutoff_len]
    lost = 1 - over["kept_reply"] / over["reply"].clip(lower=1)
    checked.ledger.note("over the cutoff", (
        (checked.where[row.Index], f"{row.total:,} tokens, keeps {row.kept_reply:,} of {row.reply:,} of its reply")
        for row in over.itertuples()))
    checked.ledger.save()
    return {"cutoff_len": cutoff_len, "share_over": round(len(over) / max(len(lengths), 1), 4),
            "mean_reply_lost": round(float(lost.mean()), 4) if len(over) else 0.0,
            "longest": int(lengths["total"].max()),
            "mean_tokens": round(float(lengths["total"].clip(upper=cutoff_len).mean()), 1)}


def _tokenizer(model_name_or_path: str):
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")  # said outright, nothing is printed when Ray forks later
    warnings.filterwarnings("ignore", message="IProgress not found")  # tqdm, where ipywidgets is not installed
    from transformers import AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    try:
        with files.hub_or_cache(model_name_or_path):
            return AutoTokenizer.from_pretrained(model_name_or_path)
    except (OSError, ValueError) as error:
        raise KitError(f"there is no tokenizer in {model_name_or_path!r}: {str(error).splitlines()[0]}",
                       "a model's folder, or a hub id that this machine reaches and may read",
                       "correct model_name_or_path in 01_setup, or see to the network and HF_TOKEN") from None


def _texts(tokenizer, messages: list[dict]) -> tuple[str, str]:
    """Prompt and reply as the template renders them; tool turns go by the names that chat templates know."""
    names = {"observation": "tool", "function_call": "assistant"}
    chat = [{**turn, "role": names.get(turn["role"], turn["role"])} for turn in messages]
    if tokenizer.chat_template:
        with contextlib.suppress(Exception):  # templates raise what they like on roles they do not know
            prompt = tokenizer.apply_chat_template(chat[:-1], tokenize=False, add_generation_prompt=True)
            whole = tokenizer.apply_chat_template(chat, tokenize=False)
            return prompt, whole[len(prompt) :] if whole.startswith(prompt) else chat[-1]["content"]
    return "\n".join(turn["content"] for turn in chat[:-1]), chat[-1]["content"]
