"""Log-probabilities of held-out rows (each computed once), implied rewards, area under ROC with intervals."""

import hashlib
import json
from contextlib import suppress
from pathlib import Path

from . import files
from .chat_template import VOCABULARY, Row
from .errors import KitError

NAME = "scores.json"
BLOCK, BLOCKS = 1 << 20, 64
"""Of a file of weights 64 blocks of 1 MB, evenly spread, are read to tell it from another: a file of up to 64 MB as a whole."""
RESAMPLES = 1000


def logps(run, scorer, rows: list[Row], tuned: bool = True) -> list[float]:
    """`scorer.logps(rows, tuned)`; what the run's scores.json has of them already is not computed again.

    So notebook 6 and `kto evaluate` take what notebook 5 computed, and notebook 5 run again loads no model.
    """
    path, model = run.folder / NAME, identity(scorer, tuned)
    every: dict = {}
    with suppress(OSError, KitError):  # none yet, or damaged: it is made again
        every = files.read_json(path)
    known = every.setdefault(model, {})
    keys = [_hash([row.prompt_ids, row.reply_ids]) for row in rows]
    if fresh := {key: row for key, row in zip(keys, rows, strict=True) if key not in known}:
        known |= zip(fresh, scorer.logps(list(fresh.values()), tuned), strict=True)
        with suppress(KitError):  # a copy that can only be read is evaluated all the same
            files.write(path, json.dumps(every))
    return [known[key] for key in keys]


def _hash(content) -> str:
    return hashlib.blake2b(json.dumps(content).encode(), digest_size=12).hexdigest()


def identity(scorer, tuned: bool) -> str:
    """What a log-probability depends on besides the row, as a hash: the weights in order, the arithmetic, what loading changes."""
    config = scorer.config
    parts = [str(config["model_name_or_path"]), *scorer.earlier] if scorer.is_adapter or not tuned else []
    parts += [str(scorer.checkpoint)] if tuned else []
    changes = [str(config.get(key)) for key in (*VOCABULARY, "seed")]  # what loading changes
    return _hash([*map(fingerprint, parts), *changes, str(scorer.dtype), scorer.device])


def fingerprint(model: str) -> str:
    """A hash of a model's or adapter's files of weights and its config.json; of a hub id its cached revision's."""
    folder = Path(model).expanduser()
    if not folder.is_dir():
        from huggingface_hub import try_to_load_from_cache

        cached = [try_to_load_from_cache(model, name) for name in ("config.json", "adapter_config.json")]
        folder = next((Path(path).parent for path in cached if isinstance(path, str)), None)
        if folder is None:
            return model
    found = hashlib.blake2b(digest_size=16)
    patterns = ("config.json", "adapter_config.json", "*model*.safetensors", "*model*.bin")
    for path in sorted(path for pattern in patterns for path in folder.glob(pattern)):
        size = path.stat().st_size
        found.update(f"{path.name} {size} ".encode())
        with open(path, "rb") as file:
            for place in range(BLOCKS):
                file.seek(place * max(0, size - BLOCK) // (BLOCKS - 1))
                found.update(file.read(BLOCK))
    return found.hexdigest()


def rewards(rows: list[Row], policy: list[float], reference: list[float], config: dict):
    """A DataFrame, one line a row: label, reward, logp_policy, logp_reference, tokens (of the reply), prompt, reply.

    `reward` = beta * (logp_policy - logp_reference), the implied reward of KTO (Ethayarajh et al. 2024, after
    Rafailov et al. 2023), beta being the config's pref_beta; log-probabilities in nats, summed over the reply.
    """
    import pandas

    beta = float(config.get("pref_beta", 0.1))  # LLaMA-Factory's default
    return pandas.DataFrame({
        "label": [row.label for row in rows],
        "reward": [beta * (p - r) for p, r in zip(policy, reference, strict=True)],
        "logp_policy": policy, "logp_reference": reference,
        "tokens": [len(row.reply_ids) for row in rows],
        "prompt": [row.prompt for row in rows], "reply": [row.reply for row in rows],
    })


def bootstrap(columns: list, label, prompts):
    """(point [columns, 2], resampled [RESAMPLES, columns, 2]): area under the ROC curve and margin of each column of values.

    A resample draws prompts with replacement (rows of one prompt are not independent), so a row has a whole number as
    its weight; all columns see the same resamples, so that differences between them are paired. The area is Mann and
    Whitney's statistic (1947); a resample without one of the labels has nan. KitError if a label is missing or a value
    is not finite.
    """
    import numpy

    label = numpy.asarray(label, bool)
    columns = [numpy.asarray(column, float) for column in columns]
    if label.all() or not label.any():
        raise KitError(f"{label.sum()} accepted and {(~label).sum()} rejected rows are held out", "at least one of each",
                       "hold out a larger share in 02_data")
    if wrong := sum(int((~numpy.isfinite(column)).sum()) for column in columns):
        raise KitError(f"{wrong} of {sum(map(len, columns))} values are not finite", "finite numbers",
                       "the training diverged: take an earlier checkpoint, or a lower learning_rate")
    ranked = [numpy.unique(column, return_inverse=True) for column in columns]  # sorted once

    def figures(weights) -> list[tuple[float, float]]:
        found = []
        for values, place in ranked:
            good, bad = (numpy.bincount(place, weights * side, len(values)) for side in (label, ~label))
            accepted, rejected = good.sum(), bad.sum()
            pairs_in_order = good @ (bad.cumsum() - bad / 2)  # equal values count half
            found.append((pairs_in_order / (accepted * rejected), good @ values / accepted - bad @ values / rejected))
        return found

    draw, (_, group) = numpy.random.default_rng(0), numpy.unique(numpy.asarray(prompts), return_inverse=True)
    groups = group.max() + 1
    times = (numpy.bincount(draw.integers(groups, size=groups), minlength=groups) for _ in range(RESAMPLES))
    with numpy.errstate(invalid="ignore"):
        return numpy.array(figures(numpy.ones(len(label)))), numpy.array([figures(often[group]) for often in times])


def interval(values) -> list:
    """[low, high] of the middle 95 % of resampled values, over the first axis; resamples without one of the labels are left out."""
    import numpy

    return numpy.nanpercentile(values, [2.5, 97.5], axis=0).round(6).tolist()


def accuracy(table, column: str = "reward") -> dict:
    """How well `column` of `table` (with `label` and `prompt`, as `rewards` makes it) tells accepted from rejected rows.

    Returns `auc` (area under the ROC curve; 0.5 is chance), `margin` (mean accepted - mean rejected), `auc_interval`
    and `margin_interval` (95 %, bootstrap over prompts), `accepted`, `rejected`. KitError as for `bootstrap`.
    """
    found, accepted = against_best([table[column]], table["label"], table["prompt"]).iloc[0].to_dict(), int(table["label"].sum())
    return {"auc": found["auc"], "auc_interval": [found["auc_low"], found["auc_high"]],
            "margin": found["margin"], "margin_interval": [found["margin_low"], found["margin_high"]],
            "accepted": accepted, "rejected": len(table) - accepted}


def against_best(columns: list, label, prompts):
    """A DataFrame, one line a column: auc, margin and their intervals (`auc_low`, …), and `worse_low`, `worse_high`: how much
    smaller its area is than the largest one, a paired difference."""
    import pandas

    point, drawn = bootstrap(columns, label, prompts)
    table = {}
    for place, name in enumerate(("auc", "margin")):
        table[name] = point[:, place]
        table[f"{name}_low"], table[f"{name}_high"] = interval(drawn[:, :, place])
    best = point[:, 0].argmax()
    table["worse_low"], table["worse_high"] = interval(drawn[:, [best], 0] - drawn[:, :, 0])
    return pandas.DataFrame(table)
