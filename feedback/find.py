"""Where feedback comes from: a named source, a file, a folder, a glob, an address, or a Hugging Face hub id. Local files come out."""

import glob
import hashlib
import json
import os
import re
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from urllib.parse import unquote, urlsplit

from helpers import files as written
from helpers.errors import KitError, closest
from helpers.profiles import ROOT

from .read import SUFFIXES

NAMED = ROOT / "dataset-configs" / "dataset_info.json"
"""the sources that go by a name; LLaMA-Factory's own registry format, with `url`, `bytes` and `sha256` for addresses"""

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)?(@[\w.-]+)?")
TRIES = 4
ASIDE = {"dataset_info.json", "dataset_dict.json", "state.json"}
"""files among data without being data: a registry, and what `datasets.save_to_disk` writes beside its Arrow files"""


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


def find(dataset: str, downloads: Path) -> Source:
    """The source that `dataset` means; what is elsewhere is downloaded into `downloads` first.

    In this order: a name in dataset-configs/, an address (http, https, s3, gs, …), a path or a glob (as given, then
    relative to the project's folder), a hub id such as `org/name`. KitError says what was looked for.
    """
    entries = json.loads(NAMED.read_text())
    if dataset in entries:
        entry, beside = entries[dataset], NAMED.with_name(entries[dataset]["file_name"])
        if not beside.exists() and "url" not in entry:
            raise KitError(f"the named source {dataset!r} lacks its file {entry['file_name']}", f"it beside {NAMED.name}",
                           "restore dataset-configs/ from the repository")
        if beside.exists():
            if "sha256" in entry and (found := written.sha256(beside)) != entry["sha256"]:
                raise KitError(f"dataset-configs/{beside.name} is not what it should be: sha256 {found}", f"sha256 {entry['sha256']}",
                               "fetch it again, or remove it and it is downloaded")
            return Source(dataset, dataset, (beside,))
        try:
            return Source(dataset, dataset, tuple(_fetch(entry["url"], downloads, entry.get("sha256"), entry.get("bytes"))))
        except KitError as error:
            raise KitError(error.found, error.expected, f"{error.remedy}; where this machine has no way there, fetch "
                           f"{entry['url']} elsewhere and put it at dataset-configs/{beside.name}") from None
    if "://" in dataset:
        files = _fetch(dataset, downloads)
        return Source(_name(files[0] if len(files) == 1 else Path(dataset)), dataset, tuple(files))
    for base in (Path.cwd(), ROOT):
        if files := _local(base / Path(dataset).expanduser()):
            return Source(_name(Path(dataset)), dataset, tuple(files))
    if HUB_ID.fullmatch(dataset) and not (ROOT / dataset.split("/")[0]).exists() and not dataset.endswith(SUFFIXES):
        return Source(_name(Path(dataset)), dataset, (_fetch_hub(dataset, downloads),))
    raise KitError(f"there is no dataset {dataset!r}{closest(dataset, entries)}; looked for a file, a folder or a glob "
                   "here and in the project's folder",
                   f"one of the names {', '.join(entries)}; or a path, a glob, an address, or a hub id like 'org/name'",
                   "correct `dataset`")


def _local(path: Path) -> list[Path]:
    """The data files at a path: itself, those in a folder and its folders, those a glob matches; empty for none."""
    if path.is_file():
        if not path.name.endswith(SUFFIXES):
            raise KitError(f"{path.name} is of no kind that can be read", f"a file that ends in {', '.join(SUFFIXES)}",
                           "export it as one of these, or rename it")
        return [path.resolve()]
    if path.is_dir():
        files = [file.resolve() for file in sorted(path.rglob("*")) if file.is_file() and file.name.endswith(SUFFIXES)
                 and file.name not in ASIDE and not any(part.startswith(".") for part in file.relative_to(path).parts)]
        if not files:
            raise KitError(f"the folder {path.name} has no data in it", f"files that end in {', '.join(SUFFIXES)}",
                           "correct `dataset`")
        return files
    matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
    return [match.resolve() for match in matches if match.is_file() and match.name.endswith(SUFFIXES)]


def _name(path: Path) -> str:
    """A name for LLaMA-Factory's registry, where commas part names: letters, digits, '_' and '-'."""
    stem = path.name.split("*")[0]
    stem = next((stem.removesuffix(suffix) for suffix in sorted(SUFFIXES, key=len, reverse=True) if stem.endswith(suffix)), stem)
    return re.sub(r"[^A-Za-z0-9_-]+", "_", stem).strip("_")[:60] or "feedback"


def _fetch(address: str, downloads: Path, sha256: str | None = None, size: int | None = None) -> list[Path]:
    """The files behind an address: http, https; s3, gs and what else fsspec knows, there also a folder or a glob.

    Downloads are atomic, and what is there already is not fetched again. `sha256` and `size` (bytes) are checked.
    """
    protocol, _, _ = address.partition("://")
    if protocol in ("http", "https"):
        wanted = [(unquote(urlsplit(address).path), lambda part: _http(address, part, size))]
    else:
        filesystem, path = _filesystem(address)
        wanted = [(remote, lambda part, remote=remote: filesystem.get_file(remote, str(part)))
                  for remote in _remote_files(filesystem, path, address)]
    files = []
    for path, fill in wanted:
        name = re.sub(r"[^A-Za-z0-9._-]+", "_", Path(path).name)
        if not name.endswith(SUFFIXES):
            raise KitError(f"{address} names no file of a kind that can be read", f"an end in {', '.join(SUFFIXES)}",
                           "correct `dataset`, or download the file yourself and give its path")
        own = hashlib.sha256(f"{address} {path}".encode()).hexdigest()[:12]
        files.append(_once(downloads / own / name, fill, address, sha256, size))
    return files


def _once(target: Path, fill, origin: str, sha256: str | None = None, size: int | None = None) -> Path:
    """`target`, filled beside and renamed by whoever comes first; others wait for it."""
    from filelock import FileLock

    part = target.with_name(f".{target.name}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_name(f".{target.name}.lock")):
            if not target.exists():
                fill(part)
                found, there = written.sha256(part) if sha256 else None, part.stat().st_size
                if found != sha256 or (size is not None and there != size):
                    raise KitError(f"{origin} is not what it should be: {there:,} bytes, sha256 {found}",
                                   f"{f'{size:,}' if size else 'any number of'} bytes, sha256 {sha256}", "try again; if it "
                                   "stays so the file was changed there: compare, then correct dataset_info.json")
                os.replace(part, target)
    except OSError as error:
        raise KitError(f"could not download {origin} to {target.parent}: {error.strerror or error}",
                       "access to it, and a writable folder with free space",
                       "check the credentials in the environment and the disk, then try again") from None
    finally:
        part.unlink(missing_ok=True)
    return target


def _http(address: str, part: Path, size: int | None) -> None:
    """Fill `part` from an address; a connection that breaks is tried again from the start."""
    import requests
    from tqdm import tqdm

    trouble = ""
    for _ in range(TRIES):
        try:
            with requests.get(address, headers={"Accept-Encoding": "identity"}, stream=True, timeout=(10, 60)) as answer:
                if answer.status_code >= 500:
                    trouble = f"{answer.status_code} {answer.reason}"
                    continue
                if answer.status_code != 200:
                    raise KitError(f"{address} answers {answer.status_code} {answer.reason}", "200 OK",
                                   "correct the address; for a private one download the file yourself and give its path")
                whole = int(answer.headers.get("Content-Length", size or 0))
                with part.open("wb") as file, tqdm.wrapattr(file, "write", total=whole, desc=part.name[1:-5], leave=False) as bar:
                    shutil.copyfileobj(answer.raw, bar, 1 << 20)
                if whole and part.stat().st_size < whole:
                    raise requests.ConnectionError(f"{part.stat().st_size:,} of {whole:,} bytes came")
                return
        except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as error:
            trouble = str(error)
        except requests.RequestException as error:
            raise KitError(f"{address} is no address to download from: {error}", "http(s)://…", "correct `dataset`") from None
        except Exception as error:  # urllib3's own, from the raw stream
            if isinstance(error, KitError | OSError):
                raise
            trouble = str(error)
    raise KitError(f"the download of {address} broke off {TRIES} times, last: {trouble}", "a connection that holds", "run again")


def _fetch_hub(hub_id: str, downloads: Path) -> Path:
    """A dataset of the Hugging Face hub as one Parquet file: `org/name`, `org/name:config`, `org/name:config@split` (train)."""
    name, _, split = hub_id.partition("@")
    name, _, config = name.partition(":")

    def fill(part: Path) -> None:
        import datasets
        from huggingface_hub.utils import logging

        logging.set_verbosity_error()  # without a network it tells each of its five tries in raw lines
        try:
            with written.hub_or_cache(f"datasets/{name}", "README.md"):
                datasets.load_dataset(name, config or None, split=split or "train").to_parquet(part)
        except Exception as error:  # the hub's client raises kinds of its own for each of many causes
            if isinstance(error, OSError) and error.errno:
                raise
            words = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise KitError(f"the hub gave no dataset {hub_id!r}: {words}",
                           "org/name, org/name:config or org/name:config@split, and a connection to the hub",
                           "correct `dataset`; for a private or gated one set HF_TOKEN in the environment") from None

    return _once(downloads / f"{re.sub(r'[^A-Za-z0-9_-]+', '_', hub_id)}.parquet", fill, hub_id)


def _filesystem(address: str):
    """fsspec's file system for an address and the path there; for s3 and gs pyarrow's, without s3fs or gcsfs."""
    import fsspec

    try:
        return fsspec.core.url_to_fs(address)
    except ImportError:
        from fsspec.implementations.arrow import ArrowFSWrapper
        from pyarrow.fs import FileSystem

        filesystem, path = FileSystem.from_uri(address.replace("gcs://", "gs://"))
        return ArrowFSWrapper(filesystem), path
    except ValueError as error:
        raise KitError(f"{address}: {error}", "http, https, s3, gs, or another protocol that fsspec knows",
                       "correct `dataset`") from None


def _remote_files(filesystem, path: str, address: str) -> list[str]:
    try:
        if "*" in path:
            found = filesystem.glob(path)
        else:
            found = filesystem.find(path) if filesystem.isdir(path) else [path] if filesystem.exists(path) else []
    except Exception as error:  # each store has errors of its own
        raise KitError(f"{address} cannot be read: {error}", "an address this machine has access to",
                       "correct `dataset`, or the credentials in the environment") from None
    files = sorted(file for file in found if file.endswith(SUFFIXES) and Path(file).name not in ASIDE)
    if not files:
        raise KitError(f"there is no data at {address}", f"files that end in {', '.join(SUFFIXES)}", "correct `dataset`")
    return files
