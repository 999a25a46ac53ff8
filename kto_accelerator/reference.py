"""Reference log-probabilities on disk, shared by runs, sweeps and resumes: they depend on base model and row alone.

`FOLDER/<identity>/identity.json` says of which model they are, `*.bin` beside it hold 20 bytes a row: 16 of its key (trainer.key_of:
its tokens and labels), a float32. A file is named by its content's hash, so it is whole or not used, and any number of
runs may write at once.
"""

import hashlib
import json
import os
from pathlib import Path

import numpy as np

RECORD = np.dtype([("key", "S16"), ("value", "<f4")])
FORMAT = 1


def identity_of(model, args, template: str) -> dict:
    """What the reference depends on besides a row: the base's weights, its config, the arithmetic, the template's name.

    The weights are taken as they lie in memory, after quantising and after a start adapter was merged into them.
    """
    import torch

    base = model.get_base_model()
    config = {key: str(value) for key, value in base.config.to_dict().items() if key not in ("_name_or_path", "use_cache")}
    return {"format": FORMAT, "weights": fingerprint(model), "config": config, "template": template, "bf16": args.bf16,
            "fp16": args.fp16, "attention": base.config._attn_implementation, "device": args.device.type,
            "torch": torch.__version__}


def fingerprint(model) -> str:
    """A hash of all weights but the adapter's: exact sums of their bits along rows and columns, made where they lie.

    16 GB take a fraction of a second on a GPU. A hash of the files would miss a merged adapter; one of shapes, a fine-tuned model.
    """
    import torch

    found = hashlib.blake2b(digest_size=16)
    for name, weight in model.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            continue
        bits = weight.detach().contiguous().view(-1).view(torch.uint8 if weight.element_size() == 1 else
                                                          torch.int16 if weight.element_size() == 2 else torch.int32)
        bits = bits.view(weight.shape[0], -1) if weight.dim() > 1 else bits.view(1, -1)
        found.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        for part in (bits.sum(0, dtype=torch.int64), bits.sum(1, dtype=torch.int64)):
            found.update(part.cpu().numpy().tobytes())
        if state := getattr(weight, "quant_state", None):  # 4-bit weights: their scales
            found.update(state.absmax.detach().cpu().numpy().tobytes())
    return found.hexdigest()


class Store:
    """The log-probabilities of one reference model in `folder`."""

    def __init__(self, folder: str | Path, identity: dict):
        text = json.dumps(identity, indent=1, sort_keys=True, default=str)
        self.folder = Path(folder) / hashlib.blake2b(text.encode(), digest_size=12).hexdigest()
        self.folder.mkdir(parents=True, exist_ok=True)
        _write(self.folder / "identity.json", text.encode())

    def read(self) -> tuple[list[bytes], np.ndarray]:
        """Keys and float32 values of all whole files; a damaged file is passed over and its rows are computed again."""
        parts = [np.zeros(0, RECORD)]
        for path in sorted(self.folder.glob("*.bin")):
            content = path.read_bytes()
            if path.stem == _name(content):
                parts.append(np.frombuffer(content, RECORD))
        records = np.concatenate(parts)
        keys, places = np.unique(records["key"], return_index=True)
        return [bytes(key).ljust(16, b"\0") for key in keys], records["value"][places].copy()

    def write(self, keys: list[bytes], values: np.ndarray) -> None:
        """Add rows, in one new file."""
        if keys:
            records = np.empty(len(keys), RECORD)
            records["key"], records["value"] = keys, values
            _write(self.folder / f"{_name(records.tobytes())}.bin", records.tobytes())


def _name(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _write(path: Path, content: bytes) -> None:
    """Beside it, then renamed: nobody reads half a file."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
    beside.write_bytes(content)
    beside.replace(path)
