"""Use your own LLaMA-Factory YAML as `train_config`: overridden keys, missing keys, placeholders."""

import json
import re
from pathlib import Path

from . import files
from .errors import KitError
from .profiles import ROOT

TEMPLATES = ROOT / "train-configs"
DEFAULTS = {"stage": "kto", "do_train": True, "finetuning_type": "lora", "report_to": "none", "overwrite_output_dir": True,
            "ray_num_workers": 1}
CLUSTER = ("ray_num_workers", "resources_per_worker", "ray_init_kwargs", "placement_strategy", "ddp_timeout", "logging_steps",
           "save_steps")
"""Keys that, left out, are those of the profile's own template."""
PLACEHOLDER = re.compile(r'<[A-Za-z][^<>|"]*>|\$\{[^}]*\}')
MEANT = ("add_tokens", "add_special_tokens", "default_system")
"""Keys whose text may hold what looks like a placeholder."""


def available() -> list[str]:
    """The templates' file names."""
    return sorted(path.name for path in TEMPLATES.glob("*.yaml"))


def path_of(name: str) -> Path:
    """The file that `train_config` names: in train-configs/, or at that path. KitError lists what there is."""
    for path in (TEMPLATES / name, Path(name).expanduser()):
        if path.is_file():
            return path.resolve()
    raise KitError(f"there is no template {name!r}", f"a path, or one of {', '.join(available())}", "correct `train_config`")


def taken(config: dict, facts: dict, heldout: str | None, usual: dict, gpu: bool) -> tuple[dict, list[str]]:
    """(the reader's `config` as it is trained in a run, a line for each key that was overruled or filled in).

    `facts`: what the run decides; `heldout`: its rows to evaluate on; `usual`: the profile's own config, which fills in CLUSTER; `gpu`:
    whether workers have one. KitError where it trains anything but KTO.
    """
    if config.get("stage", "kto") != "kto":
        raise KitError(f"the config's stage is {config['stage']}", "stage: kto: feedback of single replies is what there is here",
                       "take a KTO config")
    usual = DEFAULTS | {key: value for key, value in usual.items() if key in CLUSTER}
    filled = {key: value for key, value in usual.items() if key not in config}
    ours = dict(facts)
    if "eval_dataset" in config:
        ours["eval_dataset"] = heldout
    if config.get("ray_storage_path") and config.get("ray_storage_filesystem"):  # a bucket, which stands
        del ours["ray_storage_path"]
    if not gpu:
        ours |= {key: False for key in ("bf16", "fp16", "pure_bf16") if config.get(key)}
    said = [f"{key}: {value} (yours: {config[key]})" for key, value in ours.items() if key in config and config[key] != value]
    said += [f"{key}: {value} (you left it out)" for key, value in filled.items()]
    return filled | config | ours, said


def deepspeed(name: str, config_file: Path) -> dict:
    """The content of a DeepSpeed file that a config names: beside that config or above it, or in train-configs/."""
    for folder in (*config_file.parents, TEMPLATES):
        if (path := folder / Path(name).expanduser()).is_file():
            return files.read_yaml(path)
    raise KitError(f"deepspeed: there is no file {name}", f"one beside {config_file.name}, or in train-configs/", "correct `deepspeed`")


def refuse_unfinished(config: dict) -> None:
    """KitError for placeholders left in a config, and for a bucket as `ray_storage_path` without its filesystem key."""
    found = [f"{key}: {text}" for key, value in config.items() if key not in MEANT
             for text in PLACEHOLDER.findall(json.dumps(value, default=str))
             if not (key == "ray_init_kwargs" and text.startswith("$"))]  # Ray itself fills those in
    if found:
        raise KitError(f"the config has placeholders left in it: {'; '.join(found)}", "values", "fill them in, or take the keys out")
    scheme, slashes, bucket = str(config.get("ray_storage_path")).partition("://")
    if slashes:
        raise KitError(f"ray_storage_path is {scheme}://{bucket}: Ray would take it for a folder of that name",
                       "the filesystem by name, and the path without it",
                       f"ray_storage_filesystem: {scheme} and ray_storage_path: {bucket}")
