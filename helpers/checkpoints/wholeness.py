"""Whether one checkpoint is whole, from file sizes and headers: no weights are read, no pickle is ever loaded.

A save that was killed leaves a folder that looks like a checkpoint. Each file format says by itself where it should
end: safetensors in its header (8 bytes of length, then JSON with every tensor's range), torch's zip files by the
directory that is written last, and trainer_state.json by its closing brace.
"""

import json
import re
from functools import lru_cache

WEIGHTS = ("adapter_model.safetensors", "model.safetensors")
INDEX = "model.safetensors.index.json"
PICKLED = ("adapter_model.bin", "pytorch_model.bin")
STATE = "trainer_state.json"
RNG = re.compile(r"rng_state(?:_(\d+))?\.pth")
START = 1 << 16
"""Bytes of a safetensors file that are read at first: the header of an adapter fits in."""
TAIL = 1 << 16
"""Bytes at the end of a trainer_state.json that are read; the history in a longer one is not read to its beginning."""
HEAD = re.compile(r'^  "(epoch|global_step)": ([-+.\deE]+)', re.MULTILINE)
ENTRY = "\n    {"
"""How an entry of the log history begins in a trainer_state.json, as transformers indents it."""


_seen: dict[int, tuple[bytes, int]] = {}
"""Length of a header -> the last header of that length and its tensors' bytes: those of one run are all the same."""


def data_bytes(header: bytes) -> int:
    """Bytes of tensor data that a safetensors header (its JSON) promises; ValueError if it is none."""
    try:
        tensors = {name: tensor for name, tensor in json.loads(header).items() if name != "__metadata__"}
        return max(tensor["data_offsets"][1] for tensor in tensors.values())
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError("its header is not readable") from error


def safetensors_fault(read, path: str, size: int) -> str:
    """What is wrong with a safetensors file of `size` bytes, or an empty string. `read` is a store's."""
    start = read(path, 0, min(size, START))
    length = int.from_bytes(start[:8], "little")
    if len(start) < 8 or not 2 <= length <= 100_000_000:  # the library's own limit
        return "unreadable: no safetensors header"
    if length + 8 > size:
        return "cut off inside its header"
    known, data = _seen.get(length, (b"", 0))
    if not known or not start.startswith(known, 8):
        header = start[8 : 8 + length]
        header += read(path, len(start), length - len(header)) if len(header) < length else b""
        try:
            data = data_bytes(header)
        except ValueError as error:
            return f"unreadable: {error}"
        _seen[length] = header, data
    expected = 8 + length + data
    if size > expected:
        return f"longer than its header says: {size:,} of {expected:,} bytes"
    return f"cut off: {size:,} of {expected:,} bytes" if size < expected else ""


def zip_fault(read, path: str, size: int) -> str:
    """What is wrong with a file of torch.save, or an empty string: its zip directory ends it and is written last."""
    end = read(path, size - 22, 22) if size > 22 else b""
    return "" if end[:4] == b"PK\x05\x06" else f"cut off at {size:,} bytes"


def read_state(read, path: str, size: int) -> dict:
    """`global_step`, `epoch`, `max_steps`, … of a trainer_state.json; ValueError if it is cut off or no such thing.

    The history grows with the run, so only its end is parsed: `log_history` holds the last two windows of the training
    and what follows them, and the last evaluation of the final `TAIL` bytes.
    """
    text = read(path, max(0, size - TAIL), min(size, TAIL)).decode(errors="replace")
    last = text.rfind(ENTRY, 0, max(0, text.rfind('"loss"')))
    second = text.rfind(ENTRY, 0, max(0, text.rfind('"loss"', 0, max(0, last))))
    if second < 0:  # a short history, or one written otherwise
        return _checked(json.loads(text if size <= TAIL else read(path, 0, size)))
    state = json.loads('{"log_history": [' + text[second:])
    head = text[:1024] if size <= TAIL else read(path, 0, 1024).decode()
    state |= {key: (int if value.isdecimal() else float)(value) for key, value in HEAD.findall(head)}
    evaluated = text.rfind(ENTRY, 0, max(0, text.rfind('"eval_loss"')))
    if 0 <= evaluated < second:
        state["log_history"].insert(0, json.JSONDecoder().raw_decode(text, evaluated + len(ENTRY) - 1)[0])
    return _checked(state)


def _checked(state) -> dict:
    if not isinstance(state, dict) or not isinstance(state.get("global_step"), int):
        raise ValueError("no global_step")
    return state


def weights_fault(read, folder: str, files: dict) -> str:
    """Why the weights of a checkpoint cannot be used, or an empty string. `files`: name -> Entry."""
    names = [name for name in WEIGHTS if name in files]
    if not names and INDEX in files:
        try:
            names = sorted(set(json.loads(read(f"{folder}/{INDEX}", 0, -1))["weight_map"].values()))
        except (ValueError, KeyError, AttributeError):
            return f"{INDEX} is unreadable"
    if not names:
        pickled = next((name for name in PICKLED if name in files), "")
        return f"its weights are a pickle ({pickled}), which is never loaded here" if pickled else "no weights"
    for name in names:
        if name not in files:
            return f"{name} is missing"
        fault = safetensors_fault(read, f"{folder}/{name}", files[name].size)
        if fault:
            return f"{name} is {fault}"
    config = files.get("adapter_config.json")
    return "adapter_config.json is missing" if names[0] == WEIGHTS[0] and not (config and config.size) else ""


def resume_fault(read, folder: str, files: dict, subfolders: dict[str, dict], world_size: int | None) -> str:
    """Why a training could not go on exactly from a checkpoint with sound weights, or an empty string.

    `subfolders`: name -> its files; DeepSpeed (`global_step*`) and FSDP (`optimizer_*`) keep optimiser states there.
    `world_size`: the run's number of workers, where known; each keeps one random state.
    """
    if STATE not in files:
        return f"no {STATE}: the save was interrupted, or is still going on"
    sharded = {name: inside for name, inside in subfolders.items() if name.startswith(("optimizer", "global_step"))}
    if not any(sharded.values()) and not {"optimizer.pt", "optimizer.bin"} & files.keys():
        return "no optimiser"
    if "scheduler.pt" not in files and not any(name.startswith("global_step") for name in sharded):
        return "no scheduler"  # DeepSpeed may keep its own inside
    for place, inside in (("", files), *((f"{name}/", inside) for name, inside in sharded.items())):
        for name, entry in inside.items():
            if name.endswith((".pt", ".pth")) or name == "optimizer.bin":
                fault = zip_fault(read, f"{folder}/{place}{name}", entry.size)
                if fault:
                    return f"{place}{name} is {fault}"
    return _workers_fault(files, world_size)


def _workers_fault(files, world_size: int | None) -> str:
    """What is wrong with the random states, of which each worker saves one."""
    ranks = _ranks(tuple(files))
    if not ranks:
        return "no random state"
    saved = max(ranks) + 1
    missing = set(range(saved)) - set(ranks)
    if missing:
        return f"no random state of worker {min(missing)}"
    if world_size and saved != world_size:
        return f"other world size: random states of {saved}, but the run has {world_size} workers"
    return ""


def workers(files) -> int:
    """The world size that a checkpoint was saved with, from its random states, one a worker; 0 where there is none."""
    return max(_ranks(tuple(files)), default=-1) + 1


@lru_cache(maxsize=64)
def _ranks(names: tuple[str, ...]) -> list[int]:
    """The workers whose random states are there; a single worker's is called `rng_state.pth`."""
    return [int(match.group(1) or 0) for name in names if (match := RNG.fullmatch(name))]
