"""Locate feedback: a named source, file, folder, glob, address, or hub id; returns local files."""

import glob
import hashlib
import json
import os
import re
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from urllib.parse import unquote, urlsplit

from helpers import files as written
from helpers.errors import KitError, closest
from helpers.profiles import ROOT

from .read import SUFFIXES

NAMED = ROOT / "dataset-configs" / "dataset_info.json"
"""the sources that go by a name; LLaMA-Factory's own registry format, with `url` and `sha256` for addresses"""

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
        return _named(dataset, entries[dataset], downloads)
    if "://" in dataset:
        files = _fetch(dataset, downloads)
        return Source(_name(files[0] if len(files) == 1 else Path(dataset)), dataset, tuple(files))
    for base in (Path.cwd(), ROOT):
        if dataset and (files := _local(base / Path(dataset).expanduser())):
            return Source(_name(Path(dataset)), dataset, tuple(files))
    if HUB_ID.fullmatch(dataset) and not (ROOT / dataset.split("/")[0]).exists() and not dataset.endswith(SUFFIXES):
        return Source(_name(Path(dataset)), dataset, (_fetch_hub(dataset, downloads),))
    raise KitError(f"there is no dataset {dataset!r}{closest(dataset, entries)}; looked for a file, a folder or a glob "
                   "here and in the project's folder",
                   f"one of the names {', '.join(entries)}; or a path, a glob, an address, or a hub id like 'org/name'",
                   "correct `dataset`")


def _named(name: str, entry: dict, downloads: Path) -> Source:
    """A source of dataset-configs/: the file there, else downloaded; either is what its sha256 says."""
    beside = NAMED.with_name(entry["file_name"])
    if beside.exists():
        _compare(beside, f"dataset-configs/{beside.name}", entry.get("sha256"))
        return Source(name, name, (beside,))
    try:
        return Source(name, name, tuple(_fetch(entry["url"], downloads, entry["sha256"])))
    except KitError as error:
        raise KitError(error.found, error.expected, f"{error.remedy}; where this machine has no way there, fetch "
                       f"{entry['url']} elsewhere and put it at dataset-configs/{beside.name}") from None


def _compare(file: Path, origin: str, sha256: str | None) -> None:
    if sha256 and (found := written.sha256(file)) != sha256:
        raise KitError(f"{origin} is not what it should be: sha256 {found}", f"sha256 {sha256}",
                       "fetch it again; if it stays so, it was changed there: compare, then correct dataset_info.json")


def _local(path: Path) -> list[Path]:
    """The data files at a path: itself, those in a folder and its folders, those a glob matches; empty for none."""
    if path.is_file():
        return [path.resolve()] if _is_data(path.name) else _refuse(path.name)
    if path.is_dir():
        files = [file.resolve() for file in sorted(path.rglob("*")) if file.is_file() and _is_data(file.name)
                 and not any(part.startswith(".") for part in file.relative_to(path).parts)]
        return files or _refuse(path.name)
    matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
    return [match.resolve() for match in matches if match.is_file() and _is_data(match.name)]


def _is_data(name: str) -> bool:
    return name.endswith(SUFFIXES) and name not in ASIDE


def _refuse(where: str):
    raise KitError(f"there is no data that can be read at {where}", f"files that end in {', '.join(SUFFIXES)}",
                   "correct `dataset`, or export the data as one of these")


def _name(path: Path) -> str:
    """A name for LLaMA-Factory's registry, where commas part names: letters, digits, '_' and '-'."""
    stem = path.name.split("*")[0]
    stem = next((stem.removesuffix(suffix) for suffix in sorted(SUFFIXES, key=len, reverse=True) if stem.endswith(suffix)), stem)
    return re.sub(r"[^A-Za-z0-9_-]+", "_", stem).strip("_")[:60] or "feedback"


def _fetch(address: str, downloads: Path, sha256: str | None = None) -> list[Path]:
    """The files behind an address: http, https; s3, gs and what else fsspec knows, there also a folder or a glob."""
    if address.startswith(("http://", "https://")):
        # a named source has a sha256, and an address that is not the reader's to correct
        remedy = "run again" if sha256 else ("correct the address, or run again; for a private one download the file yourself "
                                             "and give its path")
        wanted = {unquote(urlsplit(address).path): partial(_http, address, remedy)}
    else:
        try:
            filesystem, path = _filesystem(address)
            found = filesystem.glob(path) if "*" in path else filesystem.find(path)
        except Exception as error:  # each store has errors of its own
            raise KitError(f"{address} cannot be read: {error}", "http, https, s3, gs, or another protocol that fsspec knows",
                           "correct `dataset`, or the credentials in the environment") from None
        wanted = {remote: partial(filesystem.get_file, remote) for remote in sorted(found)}
    files = []
    for path, fill in wanted.items():
        if _is_data(Path(path).name):
            own = hashlib.sha256(f"{address} {path}".encode()).hexdigest()[:12]
            name = re.sub(r"[^A-Za-z0-9._-]+", "_", Path(path).name)
            files.append(_once(downloads / own / name, fill, address, sha256))
    return files or _refuse(address)


def _once(target: Path, fill, origin: str, sha256: str | None = None) -> Path:
    """`target`, filled beside and renamed by whoever comes first; others wait for it. What is there already stays."""
    from filelock import FileLock

    part = target.with_name(f".{target.name}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_name(f".{target.name}.lock")):
            if not target.exists():
                fill(str(part))
                _compare(part, origin, sha256)
                os.replace(part, target)
    except OSError as error:
        raise KitError(f"could not download {origin} to {target.parent}: {error.strerror or error}",
                       "access to it, and a writable folder with free space",
                       "check the credentials in the environment and the disk, then try again") from None
    finally:
        part.unlink(missing_ok=True)
    return target


def _http(address: str, remedy: str, part: str) -> None:
    """Fill `part` from an address; a connection that breaks, or a server in trouble, is tried again from the start."""
    import requests
    from tqdm import tqdm

    for _ in range(TRIES):
        try:
            with requests.get(address, headers={"Accept-Encoding": "identity"}, stream=True, timeout=(10, 60)) as answer:
                answer.raise_for_status()
                with open(part, "wb") as file:
                    for block in tqdm(answer.iter_content(1 << 20), desc=address.rpartition("/")[2], unit=" MB", leave=False):
                        file.write(block)
            return
        except requests.RequestException as error:
            trouble = error
            if error.response is not None and error.response.status_code < 500:
                break
    trouble = getattr(next(iter(trouble.args), None), "reason", trouble)  # without requests' and urllib3's own repetitions
    raise KitError(f"{address} could not be downloaded: {trouble}", "an address that answers, and a connection that holds", remedy)


def _fetch_hub(hub_id: str, downloads: Path) -> Path:
    """A dataset of the Hugging Face hub as one Parquet file: `org/name`, `org/name:config`, `org/name:config@split` (train)."""
    name, _, split = hub_id.partition("@")
    name, _, config = name.partition(":")

    def fill(part: str) -> None:
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

        scheme, _, path = address.partition("://")
        if scheme == "s3" and (os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")):
            return ArrowFSWrapper(written.bucket_filesystem(scheme)), path  # which minds an endpoint of one's own
        filesystem, path = FileSystem.from_uri(address.replace("gcs://", "gs://"))
        return ArrowFSWrapper(filesystem), path
