"""Read and write files: atomic writes, YAML, JSON, hashes, buckets."""

import contextlib
import hashlib
import json
import os
import re
import shutil
from datetime import timedelta
from pathlib import Path

import yaml

from .errors import KitError
from .secrets import mask

BUCKETS = ("s3", "gs", "gcs")


class Loader(yaml.SafeLoader):
    """For it 5e-06 is a number, as for JSON and for people (YAML 1.1 wants 5.0e-06)."""


class Dumper(yaml.SafeDumper):
    """It quotes the text "5e-06", so that it stays a text."""


yaml.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?\d[\d_]*(?:\.[\d_]*)?[eE][-+]?\d+$"),
                           list("-+0123456789"), Loader, Dumper)


def parse_yaml(text: str):
    """What a YAML text says. yaml.YAMLError where it is malformed."""
    return yaml.load(text, Loader)  # noqa: S506, a SafeLoader


def read_yaml(path: Path) -> dict:
    """A YAML mapping, safely loaded. KitError names the line where it is malformed."""
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise KitError(f"cannot read {path}: {error}", "a YAML file", "correct the path") from None
    except yaml.YAMLError as error:
        raise KitError(f"{path.name} is malformed YAML: {error}", "key: value lines", f"correct {path}") from None
    if not isinstance(content, dict):
        what = "is empty" if content is None else f"holds a {type(content).__name__}"
        raise KitError(f"{path.name} {what}", "key: value lines", f"correct {path}")
    return content


def dump_yaml(content) -> str:
    """`content` as YAML, keys in their order."""
    return yaml.dump(content, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=120)


def read_json(path: Path) -> dict:
    """A JSON object. KitError where it is malformed, OSError where it cannot be read."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise KitError(f"{path} is broken: {error}", "a JSON object", "correct it, or restore it from a copy") from None
    if not isinstance(content, dict):
        raise KitError(f"{path} holds a {type(content).__name__}", "a JSON object", "correct it, or restore it from a copy")
    return content


def write(path: Path, text: str) -> Path:
    """Write atomically: `path` holds the old text or the new, never half of one. Secrets are masked. KitError on a full disk."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(beside, "w", encoding="utf-8") as file:
            file.write(mask(text))
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise _unwritable(path, error) from error
    return path


@contextlib.contextmanager
def new_folder(target: Path):
    """A fresh folder that takes the place of `target` when the `with` block ends well, and is removed when it does not."""
    beside = target.with_name(f".{target.name}.partial")
    try:
        shutil.rmtree(beside, ignore_errors=True)  # of a process that was killed
        beside.mkdir(parents=True)
        yield beside
        for file in beside.rglob("*"):
            if file.is_file():
                file.chmod(0o644)  # safetensors writes 0600, which no server under another account can read
        shutil.rmtree(target, ignore_errors=True)
        os.replace(beside, target)
    except OSError as error:
        raise _unwritable(target, error) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def open_folder(where) -> tuple:
    """(fsspec file system, prefix of its addresses, path) of a folder on disk or in a bucket. KitError if there is none.

    Credentials, region and endpoint of a bucket come from the environment, as for LLaMA-Factory.
    """
    import fsspec
    from fsspec.implementations.arrow import ArrowFSWrapper

    scheme, _, folder = str(where).rpartition("://")
    if scheme in BUCKETS:
        disk, prefix, folder = ArrowFSWrapper(bucket_filesystem(scheme, 5)), f"{scheme}://", folder.rstrip("/")
    else:
        disk, prefix, folder = fsspec.filesystem("file"), "", str(Path(folder).expanduser().resolve())
    no_bucket = scheme in BUCKETS and folder[:1] in ("", "/")
    if scheme not in ("", "file", *BUCKETS) or no_bucket or not disk.isdir(folder):
        raise KitError(f"there is no folder {where}", f"a run's folder, a trial or a checkpoint, on disk or {', '.join(BUCKETS)}://…",
                       "correct the path; for a bucket, set AWS_PROFILE, AWS_REGION or AWS_ENDPOINT_URL")
    return disk, prefix, folder


def bucket_filesystem(scheme: str, patience: float | None = None):
    """pyarrow's file system for `s3`, `gs` or `gcs`, as LLaMA-Factory makes it, at the environment's S3 endpoint.

    `patience`: seconds that gs is asked again where nothing answers (by default a quarter of an hour, as a training should).

    The endpoint is passed on here because pyarrow 23's constructors ignore it (https://github.com/apache/arrow/issues/49643).
    """
    from pyarrow import fs

    if scheme == "s3":
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        return fs.S3FileSystem(endpoint_override=endpoint or None)
    return fs.GcsFileSystem(retry_time_limit=patience and timedelta(seconds=patience))


def from_hub(name: str, file: str = "config.json") -> tuple[int, str]:
    """(HTTP status, body) of a small file of the hub's `name`, with the environment's token; (0, the error) without an answer."""
    import requests  # drops the token where it is sent on to another host

    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    headers = {"Authorization": f"Bearer {os.environ['HF_TOKEN']}"} if os.environ.get("HF_TOKEN") else {}
    try:
        answer = requests.get(f"{endpoint}/{name}/resolve/main/{file}", timeout=5, headers=headers)
        return answer.status_code, answer.text
    except (requests.RequestException, ValueError) as error:
        return 0, type(error).__name__


def is_hub_id(name: str) -> bool:
    """Whether `name` has the form of a Hugging Face hub id, `org/name`, and not of a path."""
    return name.count("/") == 1 and name[0] not in "./~"


def base_model(config: dict) -> str:
    """The base model of a run's config: a hub id or a folder. KitError where that folder is not on this machine."""
    name = str(config["model_name_or_path"])
    if os.path.isabs(name) and not os.path.isdir(name):
        raise KitError(f"the run's base model is not on this machine: there is no folder {name}", "what the run was trained from",
                       f"copy it there from the storage of the run, or, for a model from a package, run 01_setup with "
                       f"the storage {Path(name).parent.parent}")
    return name


@contextlib.contextmanager
def hub_or_cache(name: str, file: str = "config.json"):
    """Where the hub does not answer, its libraries take `name` from their cache at once; they would try for half a minute."""
    from huggingface_hub import constants, utils

    if os.path.isdir(name) or from_hub(name, file)[0]:
        yield
        return
    offline, variable = constants.HF_HUB_OFFLINE, os.environ.get("HF_HUB_OFFLINE")
    constants.HF_HUB_OFFLINE, os.environ["HF_HUB_OFFLINE"] = True, "1"  # the latter for processes started in between
    getattr(utils, "reset_sessions", getattr(utils, "close_session", lambda: None))()  # of huggingface_hub 0 and 1
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = offline
        if variable is None:
            del os.environ["HF_HUB_OFFLINE"]
        else:
            os.environ["HF_HUB_OFFLINE"] = variable


def _unwritable(path: Path, error: OSError) -> KitError:
    return KitError(f"could not write {path}: {error.strerror or error}", "a writable folder with free space",
                    "free some space or choose another storage")


def registry(folder: Path) -> dict[str, dict]:
    """The prepared datasets in a folder, as its dataset_info.json names them; KitError where that is not JSON."""
    try:
        return read_json(folder / "dataset_info.json")
    except (FileNotFoundError, NotADirectoryError):
        return {}


def listed(value: str | list[str] | None) -> list[str]:
    """The names in a config's key that LLaMA-Factory takes as a list or as one text with commas."""
    return [name.strip() for name in value.split(",")] if value and isinstance(value, str) else list(value or [])


def data_file(folder: Path, name: str) -> Path:
    """The file behind a prepared dataset's name; KitError lists the names there are."""
    known = registry(folder)
    if name not in known:
        raise KitError(f"there is no dataset {name!r} in {folder / 'dataset_info.json'}", f"one of {', '.join(known) or 'none yet'}",
                       f"run 02_data, or correct the name; of a run that was copied here, copy its storage's {folder.name}/ too")
    return folder / known[name]["file_name"]
