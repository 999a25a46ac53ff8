"""Merge base and adapters with the stock `llamafactory-cli export`."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from . import files
from .chat_template import VOCABULARY
from .errors import KitError
from .evaluate import earlier_adapters
from .explain import explain
from .runs import Run


def merge_needs(run: Run) -> dict:
    """What a merge takes and what is free, in GB: `disk`, `disk_free`, `memory`, `memory_free`; `warnings` in words.

    The merged model is as large as the base (0 where no weights of it lie on this machine), which is held in memory once.
    """
    import psutil
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    base, size = files.base_model(run.config()), 0.0
    with contextlib.suppress(LocalEntryNotFoundError):
        folder = Path(base if Path(base).is_dir() else snapshot_download(base, local_files_only=True))
        size = sum(path.stat().st_size for path in folder.glob("*.safetensors")) / 1e9
    needs = {"disk": size, "disk_free": shutil.disk_usage(run.folder).free / 1e9,
             "memory": 1.3 * size + 0.8, "memory_free": psutil.virtual_memory().available / 1e9}
    warnings = [f"a merge needs about {needs[what]:.1f} GB of {what}, and {needs[what + '_free']:.1f} GB are free"
                for what in ("disk", "memory") if needs[what] > needs[what + "_free"]]
    return {**needs, "warnings": warnings}


def merge(run: Run, checkpoint: Path) -> Path:
    """The base with all adapters in it, in export/merged/. Returns that folder.

    What was asked for lies in export/merge.yaml, what the command printed in export/merge.log. The weights keep the
    base's dtype. A full or freeze tuning's checkpoint is exported the same way, there being nothing to merge. KitError
    with the decisive line of the log if it fails.
    """
    from safetensors import safe_open

    needs = merge_needs(run)
    if needs["disk"] > needs["disk_free"]:
        raise KitError(needs["warnings"][0], "room for a whole model", "free some space or choose another storage")
    asked, log, target = run.export / "merge.yaml", run.export / "merge.log", run.export / "merged"
    files.write(asked, files.dump_yaml(merge_config(run.config(), Path(checkpoint), target)))
    environment = {key: value for key, value in os.environ.items() if key not in ("USE_RAY", "FORCE_TORCHRUN")}
    with files.new_folder(target) as folder, open(log, "wb") as output:
        command = [sys.executable, "-m", "llamafactory.cli", "export", str(asked), f"export_dir={folder}"]
        code = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, env=environment).returncode
        if code != 0 or not (folder / "config.json").is_file():
            raise KitError(f"llamafactory-cli export ended with status {code}: {explain(log).line}", "a merged model",
                           f"the whole log is in {log}")
        # An embedding that was tied, and trained apart (additional_target), makes two matrices. transformers reads the first for both
        # where config.json still says that they are one.
        settings = files.read_json(folder / "config.json")
        names = {name for file in folder.glob("*.safetensors") for name in safe_open(file, "pt").keys()}
        if settings.get("tie_word_embeddings") and "lm_head.weight" in names:
            files.write(folder / "config.json", json.dumps(settings | {"tie_word_embeddings": False}, indent=2) + "\n")
    return target


def merge_config(config: dict, checkpoint: Path, target: Path) -> dict:
    """The keys for `llamafactory-cli export`, from the run's config. The base's own dtype is asked for by name: left to
    itself, LLaMA-Factory 0.9.3 turns a float32 model into bfloat16."""
    from transformers import AutoConfig

    base = str(config["model_name_or_path"])
    dtype = str(AutoConfig.from_pretrained(base).torch_dtype or "float32").removeprefix("torch.")
    what = {"model_name_or_path": str(checkpoint)}
    if (checkpoint / "adapter_config.json").is_file():
        what = {"model_name_or_path": base, "adapter_name_or_path": ",".join([*earlier_adapters(config), str(checkpoint)])}
    return what | {
        "template": config.get("template"), "finetuning_type": config.get("finetuning_type", "lora"),
        "infer_dtype": dtype, "trust_remote_code": False, "export_dir": str(target), "export_size": 5,
        "export_device": "cpu", "export_legacy_format": False,
    } | {key: config[key] for key in (*VOCABULARY, "default_system") if key in config}
