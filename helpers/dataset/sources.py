"""Where feedback comes from: a named source, a file, a folder, a glob, an address, or a Hugging Face hub id."""

import glob
import json
import os
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ..errors import KitError, closest
from ..profiles import ROOT
from .readers import SUFFIXES

NAMED = ROOT / "dataset-configs" / "dataset_info.json"
"""the sources that go by a name; LLaMA-Factory's own registry format, with `url`, `bytes` and `sha256` for addresses"""

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)?(@[\w.-]+)?")


@dataclass(frozen=True)
class Source:
    """Feedback on this machine: a short `name`, the `origin` it was asked for as, and its `files`, in order."""

    name: str
    origin: str
    files: tuple[Path, ...]

    @cached_property
    def names(self) -> list[str]:
        """What the files go by in messages: their names, or paths where two have the same name."""
        if len({file.name for file in self.files}) == len(self.files):
            return [file.name for file in self.files]
        above = os.path.commonpath([file.parent for file in self.files])
        return [str(file.relative_to(above)) for file in self.files]


def named() -> dict[str, dict]:
    """The named sources of dataset-configs/dataset_info.json."""
    return json.loads(NAMED.read_text())


def find(dataset: str, downloads: Path) -> Source:
    """The source that `dataset` means; what is elsewhere is downloaded into `downloads` first.

    In this order: a name in dataset-configs/, an address (http, https, s3, gs, …), a path or a glob (as given, then
    relative to the project's folder), a hub id such as `org/name` (see `downloads.fetch_hub`). KitError says what was
    looked for.
    """
    entries = named()
    if dataset in entries:
        return _named(dataset, entries[dataset], downloads)
    if "://" in dataset:
        from .downloads import fetch

        files = fetch(dataset, downloads)
        return Source(_name(files[0] if len(files) == 1 else Path(dataset)), dataset, tuple(files))
    for base in (Path.cwd(), ROOT):
        files = _local(base / Path(dataset).expanduser())
        if files:
            return Source(_name(Path(dataset)), dataset, tuple(files))
    if HUB_ID.fullmatch(dataset) and not (ROOT / dataset.split("/")[0]).exists() and not dataset.endswith(SUFFIXES):
        from .downloads import fetch_hub

        return Source(_name(Path(dataset)), dataset, tuple(fetch_hub(dataset, downloads)))
    raise KitError(f"there is no dataset {dataset!r}{closest(dataset, entries)}; looked for a file, a folder or a glob "
                   "here and in the project's folder",
                   f"one of the names {', '.join(entries)}; or a path, a glob, an address, or a hub id like 'org/name'",
                   "correct `dataset`")


def _named(name: str, entry: dict, downloads: Path) -> Source:
    beside = NAMED.with_name(entry["file_name"])
    if beside.exists():
        return Source(name, name, (beside,))
    if "url" not in entry:
        raise KitError(f"the named source {name!r} lacks its file {entry['file_name']}", f"it beside {NAMED.name}",
                       "restore dataset-configs/ from the repository")
    from .downloads import fetch

    return Source(name, name, tuple(fetch(entry["url"], downloads, entry.get("sha256"), entry.get("bytes"))))


def _local(path: Path) -> list[Path]:
    """The data files at a path: itself, those in a folder and its folders, those a glob matches; empty for none."""
    if path.is_file():
        if path.suffix not in SUFFIXES:
            raise KitError(f"{path.name} is of no kind that can be read", f"a file that ends in {', '.join(SUFFIXES)}",
                           "export it as one of these, or rename it")
        return [path.resolve()]
    if path.is_dir():
        files = [p for p in sorted(path.rglob("*")) if p.suffix in SUFFIXES and p.is_file() and not _aside(p, path)]
        if not files:
            raise KitError(f"the folder {path.name} has no data in it", f"files that end in {', '.join(SUFFIXES)}",
                           "correct `dataset`")
        return [file.resolve() for file in files]
    matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
    return [match.resolve() for match in matches if match.is_file() and match.suffix in SUFFIXES]


def _aside(file: Path, folder: Path) -> bool:
    """Hidden files and registries lie among data without being data."""
    return file.name == "dataset_info.json" or any(part.startswith(".") for part in file.relative_to(folder).parts)


def _name(path: Path) -> str:
    """A name for LLaMA-Factory's registry, where commas part names: letters, digits, '_' and '-'."""
    stem = path.name.split("*")[0].removesuffix(path.suffix) if path.suffix in SUFFIXES else path.name.split("*")[0]
    return re.sub(r"[^A-Za-z0-9_-]+", "_", stem).strip("_")[:60] or "feedback"
