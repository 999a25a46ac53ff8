"""The registry of prepared data, dataset_info.json: written by one at a time, read by LLaMA-Factory on every node."""

import hashlib
import json
import os
import tempfile
from pathlib import Path

from .. import files
from ..errors import KitError

FILE = "dataset_info.json"

ENTRY = {
    "formatting": "sharegpt",
    "columns": {"messages": "messages", "kto_tag": "label", "tools": "tools"},
    "tags": {
        "role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant",
        "system_tag": "system", "observation_tag": "observation", "function_tag": "function_call",
    },
}
"""what LLaMA-Factory must be told of role/content records: without the tags every row is invalid"""


def entries(folder: Path) -> dict[str, dict]:
    """What the registry in `folder` holds; KitError where it is not JSON."""
    try:
        return json.loads((folder / FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise KitError(f"{folder / FILE} is broken: {error}", "a JSON object of datasets",
                       "mend it, or move it away; it is written anew") from None


def update(folder: Path, fresh: dict[str, dict]) -> None:
    """Enter `fresh` datasets, leaving others untouched; atomic, and safe where two do it at once."""
    from filelock import FileLock

    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f".{FILE}.lock", timeout=60):
        text = json.dumps({**entries(folder), **fresh}, indent=2, ensure_ascii=False)
        files.write(folder / FILE, text + "\n")


def write(folder: Path, name: str, parts: list[tuple[str, object]]) -> dict[str, str]:
    """Write each part's JSON lines to `<name>_<hash><suffix>.jsonl`, register them; name -> its file's sha256, in order.

    `parts`: (suffix, iterable of lines as bytes). The hash is of all parts' content: equal content has equal names, and
    nothing is ever overwritten by something else. A file is whole or not there.
    """
    entries(folder)  # a broken registry is better found before than after
    folder.mkdir(parents=True, exist_ok=True)
    digest, beside, own = hashlib.sha256(), [], [hashlib.sha256() for _ in parts]
    try:
        for (suffix, lines), its_own in zip(parts, own, strict=True):
            digest.update(suffix.encode())
            beside.append(_write_beside(folder, lines, digest, its_own))
        names = [f"{name}_{digest.hexdigest()[:8]}{suffix}" for suffix, _ in parts]
        for part, path in zip(names, beside, strict=True):
            os.replace(path, folder / f"{part}.jsonl")
    except OSError as error:
        raise KitError(f"could not write the dataset to {folder}: {error.strerror}",
                       "a writable folder with free space", "free some space or choose another storage") from None
    finally:
        for path in beside:
            path.unlink(missing_ok=True)
    update(folder, {part: {"file_name": f"{part}.jsonl", **ENTRY} for part in names})
    return {part: its_own.hexdigest() for part, its_own in zip(names, own, strict=True)}


def data_file(folder: Path, name: str) -> Path:
    """The file behind a registered name; KitError lists the names there are."""
    known = entries(folder)
    if name not in known:
        raise KitError(f"there is no dataset {name!r} in {folder / FILE}", f"one of {', '.join(known) or 'none yet'}",
                       "run 02_data, or correct the name")
    return folder / known[name]["file_name"]


def read(folder: Path, name: str) -> list[dict]:
    """The records of a registered dataset."""
    with data_file(folder, name).open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _write_beside(folder: Path, lines, *digests) -> Path:
    handle, beside = tempfile.mkstemp(dir=folder, prefix=".", suffix=".partial")
    try:
        with os.fdopen(handle, "wb", buffering=1 << 20) as file:
            for line in lines:
                file.write(line)
                for digest in digests:
                    digest.update(line)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(beside, 0o644)
    except BaseException:
        Path(beside).unlink(missing_ok=True)
        raise
    return Path(beside)
