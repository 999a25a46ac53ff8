"""Log-probabilities of held-out rows, kept in a run's scores.json by what model and row are: each is computed once.

Notebook 6 and `kto evaluate` take what notebook 5 computed, and notebook 5 run again loads no model.
"""

import hashlib
import json
import math
from contextlib import suppress
from pathlib import Path

from . import files
from .encoding import Row
from .errors import KitError

NAME = "scores.json"
CHANGED_BY = ("resize_vocab", "add_tokens", "add_special_tokens", "seed")
"""Keys of a config that change a model when it is loaded."""
WHOLE, BLOCK, BLOCKS = 1 << 26, 1 << 16, 16
"""Files up to 64 MB are read whole; of a larger one so many blocks of so many bytes, evenly spread, stand for it."""


def logps(run, scorer, rows: list[Row], tuned: bool = True) -> list[float]:
    """`scorer.logps(rows, tuned)`; what the run has of them already is not computed again."""
    path, model = run.folder / NAME, identity(scorer, tuned)
    every: dict = {}
    with suppress(OSError, ValueError):  # none yet, or damaged: it is made again
        every = files.read_json(path)
    known = every.setdefault(model, {})
    keys = [hashlib.blake2b(json.dumps([row.prompt_ids, row.reply_ids]).encode(), digest_size=12).hexdigest() for row in rows]
    fresh = {key: row for key, row in zip(keys, rows, strict=True) if key not in known}
    found = dict(zip(fresh, scorer.logps(list(fresh.values()), tuned), strict=True)) if fresh else {}
    if finite := {key: value for key, value in found.items() if math.isfinite(value)}:
        known |= finite
        with suppress(KitError, OSError):  # a copy that can only be read is evaluated all the same
            files.write(path, json.dumps(every))
    return [known.get(key, found.get(key)) for key in keys]


def identity(scorer, tuned: bool) -> str:
    """What a log-probability depends on besides the row, as a hash: the weights in order, the arithmetic, what loading changes."""
    from .evaluate import earlier_adapters

    config = scorer.config
    parts = [str(config["model_name_or_path"]), *earlier_adapters(config)]
    if tuned:
        parts = [*parts, str(scorer.checkpoint)] if scorer.is_adapter else [str(scorer.checkpoint)]
    said = [fingerprint(part) for part in parts] + [str(config.get(key)) for key in CHANGED_BY]
    return hashlib.blake2b(json.dumps([*said, str(scorer.dtype), scorer.device]).encode(), digest_size=12).hexdigest()


def fingerprint(model: str) -> str:
    """A hash of a model's or adapter's files of weights and its config.json; of a hub id its cached revision's."""
    folder = Path(model).expanduser()
    if not folder.is_dir():
        from huggingface_hub import try_to_load_from_cache

        cached = [try_to_load_from_cache(model, name) for name in ("config.json", "adapter_config.json")]
        folder = next((Path(path).parent for path in cached if isinstance(path, str)), None)
        if folder is None:
            return model
    found, jsons = hashlib.blake2b(digest_size=16), ("config.json", "adapter_config.json")
    for path in sorted(path for pattern in (*jsons, "*model*.safetensors", "*model*.bin") for path in folder.glob(pattern)):
        size = path.stat().st_size
        found.update(f"{path.name} {size} ".encode())
        with open(path, "rb") as file:
            if size <= WHOLE:
                found.update(file.read())
            for place in range(BLOCKS) if size > WHOLE else ():
                file.seek(place * (size - BLOCK) // (BLOCKS - 1))
                found.update(file.read(BLOCK))
    return found.hexdigest()
