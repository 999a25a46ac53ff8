"""Prove that the merged model equals what was trained: logits on real rows, and the tokenizer.

A merge adds B·A to the weights once instead of to every product, so the same sums are taken in another order, and the
results differ by rounding and by nothing else. How much rounding may be is in `TOLERANCE`; how much training changed
(adapter against base) is measured beside it, for a merge onto the wrong base differs that much or more.
"""

from pathlib import Path

from .chat_template import Row
from .errors import KitError
from .evaluate import Scorer
from .quiet import quietly

TOLERANCE = {"float32": (5e-3, 1e-6), "float16": (0.6, 2e-4), "bfloat16": (3.0, 8e-3)}
"""dtype -> (largest difference of logits, mean KL in nats a token) allowed between merged and adapter.

Measured on SmolLM2-135M with logits up to 40: 1.6e-4 and 1e-11 in float32 (24 bits of precision), 0.17 and 4e-5 in
float16 (11 bits), 1.0 and 2e-3 in bfloat16 (8 bits: the merged weights keep two to three digits, and so do the logits
themselves). Allowed is about three times that, more in float32, where a wrong merge is off by thousands of times.
"""


def prove(scorer: Scorer, other: Path, rows: list[Row]):
    """Exported against trained, and trained against the reference, over the reply tokens of `rows`: a table of two lines.

    `other`: the merged model, or an adapter that belongs on the plain base (`export.combine`). Columns: `pair`,
    `largest difference` of logits, `mean KL` (nats a token), `top-1 agreement` (share of tokens), `tokens`, `allowed
    difference`, `allowed KL`. KitError if the two differ by more than `TOLERANCE`, or if the merged tokenizer does not
    encode the rows as training's does.
    """
    import pandas

    exported = "adapter alone" if (other / "adapter_config.json").is_file() else "merged"
    if exported == "merged":
        same_tokens(scorer, other, rows)
    trained = [scorer.logits(row) for row in rows]
    contrast = difference((logits, scorer.logits(row, tuned=False)) for row, logits in zip(rows, trained, strict=True))
    base = scorer.config["model_name_or_path"]
    with scorer.set_aside():
        model = scorer.load(other) if exported == "merged" else scorer.adapted(scorer.load(base), other)
        same = difference((scorer.logits(row, model=model), logits) for row, logits in zip(rows, trained, strict=True))
        del model
    dtype, ours = str(scorer.dtype).removeprefix("torch."), "adapter" if scorer.is_adapter else "checkpoint"
    allowed = dict(zip(("allowed difference", "allowed KL"), TOLERANCE[dtype], strict=True))
    table = pandas.DataFrame([{"pair": f"{exported} against {ours}"} | same | allowed, {"pair": f"{ours} against base"} | contrast])
    if not (same["largest difference"] <= allowed["allowed difference"] and same["mean KL"] <= allowed["allowed KL"]):
        raise KitError(f"the {exported} model is not what was trained:\n{table.set_index('pair').T}",
                       f"differences within what is allowed in {dtype}",
                       f"another base model than {base}, or another checkpoint than {scorer.checkpoint}, was merged: "
                       "see export/merge.yaml, and merge again")
    return table


def verdict(table) -> str:
    """The table of `prove` in words: how much closer the merge is to what was trained than the base is."""
    kl, change = table["mean KL"]
    moved = f"merging moved the replies by a KL of {kl:.1e} nats a token, training by {change:.1e}"
    if change > 4 * kl:
        return f"{moved}: the merge is faithful"
    return f"{moved}: rounding hides what was trained; serve the adapter beside the base, or merge in float32"


def difference(pairs) -> dict:
    """How far two models' logits are apart, over all tokens of all rows.

    `pairs`: for each row (ours, theirs), float32 [tokens, vocabulary]; the KL is KL(theirs || ours).
    """
    import torch

    largest = kl = agreed = tokens = 0
    for ours, theirs in pairs:
        if ours.shape != theirs.shape:
            raise KitError(f"the vocabularies differ: {ours.shape[-1]} and {theirs.shape[-1]} entries",
                           "one vocabulary", "another base model was merged: see export/merge.yaml, and merge again")
        p, q = torch.log_softmax(theirs.double(), -1), torch.log_softmax(ours.double(), -1)
        largest = max(largest, float((ours - theirs).abs().max()))
        kl += float((p.exp() * (p - q)).sum())
        agreed += int((ours.argmax(-1) == theirs.argmax(-1)).sum())
        tokens += len(ours)
    return {"largest difference": largest, "mean KL": kl / tokens, "top-1 agreement": agreed / tokens, "tokens": tokens}


def same_tokens(scorer: Scorer, merged: Path, rows: list[Row]) -> None:
    """KitError unless the merged tokenizer has the end token and writes the rows' prompts as training's tokenizer does.

    A wrong `template` in the merge shows here: it replaces the end token, adds tokens or replaces the chat template.
    """
    with quietly():
        from transformers import AutoTokenizer

        ours = AutoTokenizer.from_pretrained(str(merged))
    theirs = scorer.tokenizer  # as LLaMA-Factory's template for this run set it
    pairs = {"the end token": (ours.eos_token, theirs.eos_token), "the number of tokens": (len(ours), len(theirs))}
    what = [f"{name} is {mine!r} instead of {other!r}" for name, (mine, other) in pairs.items() if mine != other]
    what += [f"the chat template writes {row.prompt[:40]!r} otherwise" for row in chats(rows)
             if chat_ids(ours, row) != chat_ids(theirs, row)][:1]
    if what:
        raise KitError(f"the merged tokenizer is not the one trained with: {'; '.join(what)}",
                       f"what the template {scorer.config.get('template')!r} makes of the base's tokenizer",
                       "see `template` in export/merge.yaml, and merge again")


def chats(rows: list[Row]) -> list[Row]:
    """The rows that any chat template can write: system, user and assistant turns only."""
    return [row for row in rows if {turn["role"] for turn in row.messages} <= {"system", "user", "assistant"}]


def chat_ids(tokenizer, row: Row) -> list[int]:
    """The prompt as a server would encode it: the tokenizer's chat template, ready for a reply."""
    return list(tokenizer.apply_chat_template(row.messages, add_generation_prompt=True))


def served_as_trained(scorer: Scorer, rows: list[Row]) -> tuple[int, int]:
    """(equal, all): for how many rows the chat template gives exactly the token ids that training had as the prompt.

    Of a prompt that training cut to cutoff_len, as many as it kept.
    """
    plain, cutoff, equal = chats(rows), scorer.encoder.arguments.cutoff_len, 0
    for row in plain:
        cut = len(row.prompt_ids) + len(row.reply_ids) >= cutoff
        equal += chat_ids(scorer.tokenizer, row)[: len(row.prompt_ids) if cut else None] == row.prompt_ids
    return equal, len(plain)
