"""Feedback from elsewhere, kept once in a folder: a file is whole, and its sha256 as given, or it is not there."""

import hashlib
import os
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from ..errors import KitError
from .readers import SUFFIXES

BLOCK = 1 << 16
"""bytes written at once; a connection that breaks loses no more"""

TRIES = 4
"""attempts at a download; each goes on where the one before stopped"""


class _Broken(Exception):
    """A download that stopped before its end, or a server in trouble: worth another try."""


def fetch(address: str, downloads: Path, sha256: str | None = None, size: int | None = None) -> list[Path]:
    """The files behind an address (http, https; s3, gs and what else fsspec knows, there also a folder or a glob).

    What is in `downloads` already is not fetched again. A broken download goes on where it stopped, now or in the next
    run, where the server can, and restarts where not. `sha256` and `size` (bytes) are checked before a file gets its
    name. KitError says what the server answered and what to do.
    """
    protocol, _, _ = address.partition("://")
    if protocol in ("http", "https"):
        target = _target(address, unquote(urlsplit(address).path), downloads)
        return [_fetch_once(target, lambda part: _http(address, part, size), address, sha256, size)]
    filesystem, path = _filesystem(address)
    files = []
    for remote in _remote_files(filesystem, path, address):
        target = _target(f"{protocol}://{remote}?{urlsplit(address).query}", remote, downloads)
        files.append(_fetch_once(target, lambda part, remote=remote: _copy(filesystem, remote, part),
                                 address, sha256, size))
    return files


def fetch_hub(hub_id: str, downloads: Path) -> list[Path]:
    """A dataset of the Hugging Face hub as one Parquet file: `org/name`, `org/name:config`, `org/name:config@split`.

    The split is `train` where none is named. A private one wants HF_TOKEN in the environment.
    """
    name, _, split = hub_id.partition("@")
    name, _, config = name.partition(":")
    target = downloads / f"{re.sub(r'[^A-Za-z0-9_-]+', '_', hub_id)}.parquet"

    def fill(part: Path) -> None:
        import datasets

        try:
            datasets.load_dataset(name, config or None, split=split or "train").to_parquet(part)
        except OSError as error:
            if error.errno:
                raise
            raise _no_hub(hub_id, error) from None
        except Exception as error:  # the hub's client raises kinds of its own for each of many causes
            raise _no_hub(hub_id, error) from None

    return [_fetch_once(target, fill, hub_id, None, None)]


def _no_hub(hub_id: str, error: Exception) -> KitError:
    return KitError(f"the hub gave no dataset {hub_id!r}: {_words(error)}",
                    "org/name, org/name:config or org/name:config@split, and a connection to the hub",
                    "correct `dataset`; for a private or gated one set HF_TOKEN in the environment")


def _words(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__


def _target(address: str, path: str, downloads: Path) -> Path:
    """Where an address is kept: under its own name, in a folder named by a hash so that none takes another's place."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", Path(path).name)
    if not name.endswith(SUFFIXES):
        raise KitError(f"{address} names no file of a kind that can be read", f"an end in {', '.join(SUFFIXES)}",
                       "correct `dataset`, or download the file yourself and give its path")
    return downloads / hashlib.sha256(address.encode()).hexdigest()[:12] / name


def _fetch_once(target: Path, fill, origin: str, sha256: str | None, size: int | None) -> Path:
    """`target`, filled beside and renamed by whoever comes first; others wait for it."""
    from filelock import FileLock

    part = target.with_name(f".{target.name}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_name(f".{target.name}.lock")):
            if not target.exists():
                fill(part)
                _compare(part, origin, sha256, size)
                os.replace(part, target)
                part.with_suffix(".etag").unlink(missing_ok=True)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise KitError(f"could not download {origin} to {target.parent}: {error.strerror or error}",
                       "a writable folder with free space", "free some space or choose another `storage`") from None
    return target


def _compare(part: Path, origin: str, sha256: str | None, size: int | None) -> None:
    with part.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest() if sha256 else None
    there = part.stat().st_size
    if found != sha256 or (size is not None and there != size):
        part.unlink()
        raise KitError(f"{origin} is not what it should be: {there:,} bytes, sha256 {found}",
                       f"{f'{size:,}' if size else 'any number of'} bytes, sha256 {sha256}",
                       "try again; if it stays so the file was changed there: compare, then correct dataset_info.json")


def _http(address: str, part: Path, size: int | None) -> None:
    """Fill `part` from an address, going on behind what is there already."""
    import requests

    trouble = ""
    for _ in range(TRIES):
        try:
            return _http_once(address, part, size)
        except (_Broken, requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as error:
            trouble = str(error)
        except requests.RequestException as error:
            raise KitError(f"{address} is no address to download from: {error}", "http(s)://…",
                           "correct `dataset`") from None
    raise KitError(f"the download of {address} broke off {TRIES} times, last: {trouble}", "a connection that holds",
                   "run again: it goes on where it stopped")


def _http_once(address: str, part: Path, size: int | None) -> None:
    """One request for what is missing; `If-Range` makes the server start over where its file is another one now."""
    import requests

    mark = part.with_suffix(".etag")
    there = part.stat().st_size if part.exists() and mark.exists() else 0
    headers = {"Accept-Encoding": "identity"}  # compressed, lengths and ranges would mean something else
    if there:
        headers |= {"Range": f"bytes={there}-", "If-Range": mark.read_text()}
    with requests.get(address, headers=headers, stream=True, timeout=(10, 60)) as answer:
        if answer.status_code == 416:  # nothing is missing, or the file is shorter now: start over
            part.unlink()
            raise _Broken("the server has no such range")
        if answer.status_code >= 500:
            raise _Broken(f"{answer.status_code} {answer.reason}")
        if answer.status_code not in (200, 206):
            raise KitError(f"{address} answers {answer.status_code} {answer.reason}", "200 OK",
                           "correct the address; for a private one download the file yourself and give its path")
        there = there if answer.status_code == 206 else 0
        tag = answer.headers.get("ETag") or answer.headers.get("Last-Modified", "")
        mark.write_text(tag) if tag and not tag.startswith("W/") else mark.unlink(missing_ok=True)
        left = int(answer.headers["Content-Length"]) if "Content-Length" in answer.headers else None
        whole = there + left if left is not None else size
        with part.open("ab" if there else "wb") as file, _bar(part, whole, there) as bar:
            for block in answer.iter_content(BLOCK):
                bar.update(file.write(block))
        if whole is not None and part.stat().st_size < whole:
            raise _Broken(f"{part.stat().st_size:,} of {whole:,} bytes came")


def _bar(part: Path, total: int | None, done: int = 0):
    from tqdm import tqdm

    return tqdm(total=total, initial=done, unit="B", unit_scale=True, desc=part.name[1:-5], leave=False)


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
        raise KitError(f"{address} cannot be read: {_words(error)}", "an address this machine has access to",
                       "correct `dataset`, or the credentials in the environment") from None
    files = sorted(file for file in found if file.endswith(SUFFIXES))
    if not files:
        raise KitError(f"there is no data at {address}", f"files that end in {', '.join(SUFFIXES)}",
                       "correct `dataset`")
    return files


def _copy(filesystem, remote: str, part: Path) -> None:
    """Fill `part` from a store, from the start: stores retry by themselves, and a part may be of an older object."""
    try:
        size = filesystem.size(remote)
        with filesystem.open(remote, "rb") as source, part.open("wb") as file, _bar(part, size) as bar:
            while block := source.read(128 * BLOCK):
                bar.update(file.write(block))
    except OSError as error:
        if error.filename is None and error.errno:  # writing here failed, not reading there
            raise
        raise KitError(f"reading {remote} failed: {error}", "an object this machine has access to",
                       "try again") from None
    if size is not None and part.stat().st_size != size:
        raise KitError(f"{remote} broke off: {part.stat().st_size:,} of {size:,} bytes came", "the whole object",
                       "try again")
