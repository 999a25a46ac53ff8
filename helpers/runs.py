"""A run is one folder with all its state; the notebooks share state only through it."""

import json
import os
import re
import sys
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath

from . import files
from .errors import KitError
from .profiles import Profile, load, storage_for

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
LONGEST = 38
"""Characters of a temp folder's name, beyond which the paths of Ray's sockets in it exceed Linux' 107."""
CACHES = {"XDG_CACHE_HOME": "", "HF_HOME": "huggingface", "MPLCONFIGDIR": "matplotlib", "TRITON_CACHE_DIR": "triton",
          "TORCHINDUCTOR_CACHE_DIR": "inductor", "IPYTHONDIR": "ipython", "JUPYTER_RUNTIME_DIR": "jupyter"}
"""Where libraries keep what they would put into the home, and its folder in the storage's `.cache`."""


@dataclass
class Run:
    """A run's places on disk. Nothing is created by making one of these."""

    profile: Profile
    storage: Path
    name: str

    def __post_init__(self):
        self.folder = self.storage / self.name
        self.config_file = self.folder / "config.yaml"  # the resolved configuration, exactly what is launched
        self.resume_file = self.folder / "resume.yaml"  # what 05_checkpoints writes to resume a run; gone once it was launched
        self.record_file = self.folder / "run.json"  # when, where, which versions, which data, how it ended
        self.log_file = self.folder / "train.log"  # the raw log stream of the training, byte for byte
        self.metrics_file = self.folder / "metrics.jsonl"  # one JSON record a logged window, in KTO's units
        self.output_dir = self.folder / "output"  # LLaMA-Factory's
        self.figures, self.export, self.notebooks = (self.folder / name for name in ("figures", "export", "notebooks"))
        # Shared by the runs of a storage: prepared data with its registry, dataset_info.json, and local base models.
        self.datasets, self.models = self.storage / "datasets", self.storage / "models"

    @property
    def trained(self) -> bool:
        """Whether a training was ever launched in this folder."""
        return self.log_file.exists()

    def record(self) -> dict:
        """The content of run.json, with paths in the run's current folder."""
        held = files.read_json(self.record_file) if self.record_file.exists() else {}
        with suppress(KitError):  # a config.yaml that cannot be read is its reader's finding
            held = self.relocated(held)
        return held

    def note(self, **facts) -> dict:
        """Merge `facts` into run.json (atomically) and return the whole record."""
        record = {**self.record(), **facts}
        files.write(self.record_file, json.dumps(record, indent=2, ensure_ascii=False) + "\n")
        return record

    def config(self) -> dict:
        """The run's config.yaml, with paths in the run's current folder (`relocated`). KitError if it is missing or malformed."""
        return self.relocated(files.read_yaml(self.config_file))

    def relocated(self, content):
        """`content` (a config or run.json) of a run that was moved or copied: paths below its former storage are below this one.

        Where its folder was is read off its config.yaml: `output_dir` is `<folder>/output`. The folder may have a new name.
        """
        config = files.read_yaml(self.config_file) if self.config_file.exists() else {}
        output = PurePosixPath(str(config.get("output_dir") or ""))
        before = output.parent
        if not output.is_absolute() or output.name != self.output_dir.name or before == PurePosixPath(self.folder):
            return content
        here = str(self.storage)  # what is below it already was written since
        places = {here: here, str(before): str(self.folder), str(before.parent): here}
        start = re.compile(f"(^|(?<=,))({'|'.join(map(re.escape, places))})(?=[/,]|$)")  # adapters are a list in one text

        def moved(value):
            if isinstance(value, dict):
                renamed = {"ray_run_name": self.name} if value.get("ray_run_name") == before.name else {}
                return {key: moved(inner) for key, inner in value.items()} | renamed
            if isinstance(value, list):
                return [moved(inner) for inner in value]
            return start.sub(lambda found: places[found[2]], value) if isinstance(value, str) else value

        return moved(content)

    def show(self, path: Path | str) -> str:
        """`path` as it may appear in a notebook: relative to the storage's parent, so no machine's own path is kept."""
        return str(path).removeprefix(f"{self.storage.parent}/")


def refuse_name(name: str, of: str, remedy: str) -> None:
    """KitError if files and folders cannot bear that name everywhere."""
    if not NAME.fullmatch(name):
        raise KitError(f"{name!r} is no name for {of}", "letters, digits, '.', '_' and '-', at most 100", remedy)


def locate(profile: str, storage: str, run_name: str) -> Run:
    """The run of that name, whether or not it exists. KitError for a wrong profile, storage or name."""
    refuse_name(run_name, "a run", "correct `run_name`")
    loaded = load(profile)
    return Run(loaded, storage_for(loaded, storage), run_name)


def settle(storage: Path) -> list[str]:
    """Where the home cannot be written or the temp folder's name is too long, set others in this process's environment, for us
    and for what we start. A sentence for each that is new."""
    said = []
    home, cache = Path(os.environ.get("HOME") or "/nonexistent"), storage / ".cache"
    if not os.access(home, os.W_OK) and not CACHES.keys() <= os.environ.keys():
        said.append(f"the home folder {home} {'cannot be written' if home.is_dir() else 'does not exist'}: caches go to {cache}")
        with suppress(OSError):  # a storage that cannot be written is somebody else's finding
            cache.mkdir(parents=True, exist_ok=True)
        for name, folder in CACHES.items():
            os.environ.setdefault(name, str(cache / folder))
    temp = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    if len(temp) > LONGEST:
        os.environ["RAY_TMPDIR"] = "/tmp"
        said.append(f"the temp folder's name {temp} is too long for Ray's sockets: Ray's files go to /tmp/ray")
    return said


def default_name(profile: str) -> str:
    """A run's name where none is given: the profile's and the time."""
    return f"{Path(profile).stem}-{datetime.now(UTC):%Y%m%d-%H%M%S}"


def start(profile: str, storage: str, run_name: str) -> Run:
    """Make the run's folder and run.json, or take up one that was never launched. A trained run is left alone: KitError."""
    run = locate(profile, storage, run_name)
    for line in settle(run.storage):
        print(line, file=sys.stderr)
    refuse_if_trained(run)
    run.note(run_name=run_name, profile=run.profile.name, created=run.record().get("created", now()))
    return run


def refuse_if_trained(run: Run) -> None:
    """KitError if a training was launched in this folder: its files are not touched again."""
    if run.trained:
        ended = run.record().get("training", {}).get("status", "unknown")
        raise KitError(f"the run name {run.name!r} is in use: a training was launched in {run.folder} (status: {ended})",
                       "a name not used yet in this storage",
                       "choose another run_name, or go on with 05_checkpoints (in a terminal: --resume auto)")


def open_run(profile: str, storage: str, run_name: str, needs: str = "run.json", made_by: str = "01_setup") -> Run:
    """An existing run that has the file `needs` (made by the notebook `made_by`); KitError says which notebook to run."""
    run = locate(profile, storage, run_name)
    settle(run.storage)
    if not (run.folder / needs).exists():
        there = sorted(p.parent.name for p in run.storage.glob("*/run.json"))
        raise KitError(f"the run {run_name!r} has no {needs} (looked in {run.folder})",
                       f"what {made_by} makes; runs in this storage: {', '.join(there) or 'none'}",
                       f"run {made_by} with the same profile, storage and run_name, or correct run_name")
    return run


def of_folder(folder: Path) -> Run:
    """The run of this folder, from its run.json. KitError if there is none."""
    folder = Path(folder).resolve()
    if not (folder / "run.json").is_file():
        raise KitError(f"{folder} is no run's folder: no run.json there", "a folder in a storage", "correct the path")
    settle(folder.parent)
    return locate(files.read_json(folder / "run.json").get("profile", ""), str(folder.parent), folder.name)


def now() -> str:
    """The time as written in run.json: UTC, seconds, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")
