"""Folders on a local disk or in a bucket, behind two calls: everything below a folder, and a few bytes of a file.

Checkpoints are judged from file sizes and headers alone, so these two calls are all that is needed, and a run in s3 or
gs is looked at as one on disk is. Buckets go through pyarrow.fs, as in LLaMA-Factory's `ray_storage_filesystem`.
"""

import os
from pathlib import Path
from typing import NamedTuple

from ..errors import KitError

BUCKETS = ("s3", "gs", "gcs")
SKIPPED = {"notebooks", "figures", "export", "fetched", "mlartifacts", "models", "datasets"}
"""Folders of a run that hold no checkpoints of its own."""


class Entry(NamedTuple):
    """One file: its size in bytes and when it was last changed (seconds since 1970, UTC)."""

    size: int
    time: float


Tree = dict[str, dict[str, Entry]]
"""folder -> its files by name (empty for a folder without files). Folders are full paths of the store."""


class LocalStore:
    """A folder on this machine's disk or on a mount."""

    def __init__(self, root: Path):
        self.root = str(root)

    def tree(self, depth: int = 8) -> Tree:
        """Every folder below the root with its files; hidden folders and those in `SKIPPED` are left out."""
        found: Tree = {}
        waiting = [(self.root, 0)]
        while waiting:
            folder, level = waiting.pop()
            files = found[folder] = {}
            try:
                entries = list(os.scandir(folder))
            except OSError:
                continue  # gone since it was listed (a save being rotated away), or not ours to read
            for entry in entries:
                if entry.is_dir():
                    if level < depth and entry.name[0] != "." and entry.name not in SKIPPED:
                        waiting.append((f"{folder}/{entry.name}", level + 1))
                elif entry.is_file():
                    stat = entry.stat()
                    files[entry.name] = Entry(stat.st_size, stat.st_mtime)
        return found

    def read(self, path: str, start: int = 0, length: int = -1) -> bytes:
        """Up to `length` bytes of a file from the byte `start`; all that follow where `length` is -1."""
        handle = os.open(path, os.O_RDONLY)
        try:
            return os.pread(handle, os.fstat(handle).st_size if length < 0 else length, start)
        finally:
            os.close(handle)

    def address(self, folder: str) -> Path:
        return Path(folder)


class ArrowStore:
    """A folder in a pyarrow file system: `s3`, `gs`, or any other that is handed in."""

    def __init__(self, filesystem, root: str, prefix: str = ""):
        self.filesystem, self.root, self.prefix = filesystem, root.rstrip("/"), prefix

    def tree(self, depth: int = 8) -> Tree:
        """As LocalStore.tree, from one recursive listing (1,000 names a request)."""
        from pyarrow import fs

        found: Tree = {self.root: {}}
        try:
            infos = self.filesystem.get_file_info(fs.FileSelector(self.root, recursive=True))
        except OSError as error:
            raise KitError(f"cannot list {self.root}: {error}", "a bucket or folder that these credentials may list",
                           "correct the path, or set AWS_PROFILE, AWS_REGION or AWS_ENDPOINT_URL") from None
        for info in infos:
            parts = info.path[len(self.root) + 1 :].split("/")
            if len(parts) - 1 > depth or any(p.startswith(".") or p in SKIPPED for p in parts[:-1]):
                continue
            folder, _, name = info.path.rpartition("/")
            if info.type == fs.FileType.File:
                found.setdefault(folder, {})[name] = Entry(info.size, info.mtime.timestamp() if info.mtime else 0.0)
            else:
                found.setdefault(info.path, {})
        return found

    def read(self, path: str, start: int = 0, length: int = -1) -> bytes:
        """As LocalStore.read; in a bucket a range request."""
        with self.filesystem.open_input_file(path) as file:
            rest = max(0, file.size() - start)
            return file.read_at(rest if length < 0 else min(length, rest), start)

    def address(self, folder: str) -> str:
        return self.prefix + folder


def open_store(where, filesystem=None) -> LocalStore | ArrowStore:
    """The store for a path, an address such as `s3://bucket/runs/first-run`, or a path inside a pyarrow `filesystem`.

    Credentials, region and endpoint come from the environment (AWS_PROFILE, AWS_REGION, AWS_ENDPOINT_URL, …), as for
    LLaMA-Factory, which makes its file system by the same call. KitError for an address of another kind, or where there
    is no folder.
    """
    text = str(where)
    scheme, found, rest = text.partition("://")
    if filesystem is not None:
        return ArrowStore(filesystem, rest if found else text)
    if found and scheme not in (*BUCKETS, "file"):
        raise KitError(f"{text} is no place that can be looked into", f"a folder, or {', '.join(BUCKETS)}://…")
    if found and scheme in BUCKETS:
        return ArrowStore(bucket_filesystem(scheme), rest, f"{scheme}://")
    path = Path(rest if found else text).expanduser().resolve()
    if not path.is_dir():
        raise KitError(f"there is no folder {text}", "a run's folder, a trial or a checkpoint", "correct the path")
    return LocalStore(path)


def bucket_filesystem(scheme: str):
    """pyarrow's file system for `s3`, `gs` or `gcs`, made as LLaMA-Factory makes it, at another endpoint if one is set.

    AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL and STORAGE_EMULATOR_HOST are passed on here because the bare constructors
    ignore them (https://github.com/apache/arrow/issues/49643, open in pyarrow 23).
    """
    from pyarrow import fs

    names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL") if scheme == "s3" else ("STORAGE_EMULATOR_HOST",)
    endpoint = next((os.environ[name] for name in names if os.environ.get(name)), "")
    if scheme == "s3":
        return fs.S3FileSystem(endpoint_override=endpoint or None)
    if not endpoint:
        return fs.GcsFileSystem()
    protocol, _, host = endpoint.rpartition("://")
    return fs.GcsFileSystem(anonymous=True, scheme=protocol or "http", endpoint_override=host)
