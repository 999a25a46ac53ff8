"""Profiles: where a run is stored and what it runs on, as plain YAML. To add your own, write a file with the same keys."""

import os
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ValidationError, field_validator

from . import files, secrets
from .errors import KitError, closest

ROOT = Path(__file__).resolve().parent.parent
"""The project's folder: relative paths in a profile are relative to it."""


class Profile(BaseModel, extra="forbid"):
    """One entry of profiles.yaml."""

    name: str
    storage: str = ""  # default folder for runs
    train_config: str | dict[int | Literal["unknown"], str]  # file in train-configs/; or one by a GPU's GiB (`config_for`)
    model_name_or_path: str
    template: str  # the model's chat template
    dataset: str
    ray_address: str = "auto"  # `local` starts an own Ray instance; `auto` or host:port joins one
    gpu: bool = True  # whether workers get GPUs
    overrides: dict = {}  # LLaMA-Factory keys
    worker_packages: str = ""  # requirements file, installed by Ray for a cluster's workers; empty: what their image has
    job_variables: list[str] = []  # one of them set in the environment: this is a job, on a cluster of its own
    job_storage: str = ""  # a job's default
    workspace_storage: str = ""  # another cluster's, refused in a job

    @field_validator("train_config")
    @classmethod
    def _says_what_is_taken_without_a_gpu(cls, value):
        if isinstance(value, dict) and "unknown" not in value:
            raise ValueError("files by GiB lack one for the time when no GPU is known: `unknown: kto_lora.yaml`")
        return value

    @property
    def train_configs(self) -> list[str]:
        """Every train config that `config_for` may name."""
        return [self.train_config] if isinstance(self.train_config, str) else list(self.train_config.values())

    def config_for(self, gpu: tuple[str, float] | None) -> tuple[str, str]:
        """(the train config for the smallest GPU that is to train: (name, GiB), or None: not known; why that one)."""
        if isinstance(self.train_config, str):
            return self.train_config, "the profile's"
        sizes = {least: name for least, name in self.train_config.items() if least != "unknown"}
        if gpu and (fit := [least for least in sizes if least <= gpu[1]]):
            return sizes[max(fit)], f"for the smallest GPU: {gpu[0]}, {gpu[1]:.0f} GiB; train_config= chooses another"
        why = f"no config is for {gpu[1]:.0f} GiB" if gpu else "no GPU was found, so their size is not known"
        sizes = sorted(sizes.items(), reverse=True)
        choices = ", ".join(f"{name} from {least} GiB" if least else f"{name} below" for least, name in sizes)
        return self.train_config["unknown"], f"{why}; train_config= chooses another: {choices}"


def known() -> dict[str, dict]:
    """The profiles that come with the project, by name, as plain data."""
    return files.read_yaml(Path(__file__).with_name("profiles.yaml"))


def load(profile: str) -> Profile:
    """The profile of that name, or the one in the YAML file at that path. KitError names what is wrong with it."""
    secrets.load()  # every notebook and command comes through here
    entries = known()
    if profile in entries:
        return Profile(name=profile, **entries[profile])
    if not profile.endswith((".yaml", ".yml")):
        raise KitError(f"there is no profile {profile!r}{closest(profile, entries)}",
                       f"one of {', '.join(entries)}, or the path of a YAML file with a profile's keys", "correct `profile`")
    try:
        return Profile(**{"name": profile, **files.read_yaml(ROOT / Path(profile).expanduser())})  # a name that `load` knows again
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        raise KitError(f"{profile} is not a profile: {wrong}", f"the keys {', '.join(Profile.model_fields)}",
                       "compare with helpers/profiles.yaml") from None


def storage_for(profile: Profile, storage: str = "") -> Path:
    """The folder that holds runs: `storage` if given, else $KTO_STORAGE, else the profile's own. Absolute.

    A relative path is relative to the project's folder, so that notebooks and terminal agree.
    """
    in_job = any(os.environ.get(name) for name in profile.job_variables)
    chosen = storage or os.environ.get("KTO_STORAGE") or (profile.job_storage if in_job else profile.storage)
    if not chosen:
        raise KitError(f"the profile {profile.name!r} has no storage of its own",
                       "a folder that every node of the cluster sees", "set `storage`, or KTO_STORAGE in the environment")
    if "://" in chosen:
        raise KitError(f"the storage {chosen} is an address", "a folder that every node sees; a bucket may be mounted as one",
                       "for checkpoints alone in a bucket, set ray_storage_filesystem and ray_storage_path in `overrides`")
    folder = (ROOT / Path(chosen).expanduser()).resolve()
    if in_job and profile.workspace_storage and folder.is_relative_to(profile.workspace_storage):
        raise KitError(f"this is a job, and {folder} belongs to the workspace's own cluster: the job's nodes see another, empty one",
                       f"storage that outlives clusters, such as {profile.job_storage}",
                       "set `storage` to a folder in /mnt/user_storage (yours) or /mnt/shared_storage (everyone's)")
    return folder
