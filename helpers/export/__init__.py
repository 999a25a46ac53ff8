"""What a run leaves for serving: the adapter alone, and the merged model.

Everything is made beside its place and renamed into it, so nothing half-made ever stands under a final name.
"""

import contextlib
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from .. import checkpoints, files
from ..checkpoints import stores
from ..errors import KitError
from ..runs import Run

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")

PUBLIC = {"smollm2-135m-instruct": "HuggingFaceTB/SmolLM2-135M-Instruct"}
"""Packaged models (helpers.models.PACKAGED) by the name they are published under."""


def choose(run: Run, checkpoint: str = "best") -> tuple[Path, int | None, str]:
    """(folder, step, why) of a checkpoint of `run`: `best`, `latest`, a step's number, or a path."""
    folder = Path(checkpoint).expanduser()
    if checkpoint not in ("best", "latest") and not checkpoint.isdigit():
        if not any((folder / name).is_file() for name in ("adapter_config.json", "config.json")):
            raise KitError(f"{checkpoint!r} is no checkpoint",
                           "best, latest, a step's number, or a checkpoint's folder", "correct `checkpoint`")
        return folder.resolve(), None, "its path was given"
    found = checkpoints.find(run)
    if checkpoint.isdigit():
        item, why = checkpoints.by_step(found, int(checkpoint))
    else:
        item, why = {"best": checkpoints.best, "latest": checkpoints.latest}[checkpoint](found)
    return item.path if isinstance(item.path, Path) else fetched(run, item.path), item.step, why


def fetched(run: Run, address: str) -> Path:
    """A checkpoint out of a bucket, copied into export/checkpoint/; what resumes a training is left there."""
    from pyarrow import fs

    scheme, _, folder = address.partition("://")
    store, target = stores.bucket_filesystem(scheme), run.export / "checkpoint"
    with in_place(target) as beside:
        for info in store.get_file_info(fs.FileSelector(folder)):
            if info.is_file and not info.base_name.endswith((".pt", ".pth", ".bin")):
                fs.copy_files(info.path, str(beside / info.base_name), source_filesystem=store,
                              destination_filesystem=fs.LocalFileSystem())
    return target


def config_of(run: Run) -> dict:
    """config.yaml of the run, as launched."""
    return files.read_yaml(run.config_file)


@contextlib.contextmanager
def in_place(target: Path):
    """A fresh folder beside `target`, renamed to it when the `with` block ends well and removed when it does not.

    What stood there before goes only after the new folder is whole.
    """
    beside, old = (target.with_name(f".{target.name}.{os.getpid()}.{end}") for end in ("partial", "old"))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        tidy(target)
        beside.mkdir()
        yield beside
        if target.exists():
            os.replace(target, old)
        os.replace(beside, target)
    except OSError as error:
        raise KitError(f"could not write {target}: {error.strerror or error}", "a writable folder with free space",
                       "free some space or choose another storage") from error
    finally:
        tidy(target, os.getpid())


def tidy(target: Path, mine: int = 0) -> None:
    """Remove what `in_place` left beside `target` in process `mine` or in one that was killed; put an old one back."""
    import psutil

    for left in target.parent.glob(f".{target.name}.*"):
        pid, end = left.name.rsplit(".", 2)[1:]
        if left.name != f".{target.name}.{pid}.{end}" or end not in ("partial", "old") or not pid.isdigit():
            continue
        if int(pid) == mine or not psutil.pid_exists(int(pid)):
            if end == "old" and not target.exists():
                os.replace(left, target)
            else:
                shutil.rmtree(left, ignore_errors=True)


def adapter(run: Run, checkpoint: Path) -> Path:
    """The adapter alone, in export/adapter/<run name>/: what vLLM and Ray Serve LLM load beside other adapters.

    The base model's name in adapter_config.json becomes its public one. Returns the folder. KitError if the checkpoint
    is no LoRA adapter, or one of a kind that cannot be served beside others.
    """
    source = Path(checkpoint)
    missing = [name for name in ADAPTER_FILES if not (source / name).is_file()]
    if missing:
        raise KitError(f"{source} has no {' and no '.join(missing)}", "a complete LoRA checkpoint",
                       "choose another checkpoint; a full or freeze tuning has no adapter, only a merged model")
    settings = json.loads((source / "adapter_config.json").read_text())
    beyond = {key: settings.get(key) for key in ("use_dora", "modules_to_save", "trainable_token_indices", "bias")}
    unservable = [f"{key}: {value}" for key, value in beyond.items() if value not in (None, False, "none")]
    if unservable:
        raise KitError(f"this adapter cannot be served beside others: {', '.join(unservable)}",
                       "plain LoRA: vLLM loads the A and B matrices and nothing else", "serve the merged model")
    settings |= {"base_model_name_or_path": public_name(run), "inference_mode": True}
    target = run.export / "adapter" / run.name
    with in_place(target) as folder:
        shutil.copyfile(source / "adapter_model.safetensors", folder / "adapter_model.safetensors")
        files.write(folder / "adapter_config.json", json.dumps(settings, indent=2) + "\n")
    return target


def public_name(run: Run) -> str:
    """The base model's name for the world: its hub id where it has one, else what the reader called it."""
    name = run.record().get("model", {}).get("name") or str(config_of(run)["model_name_or_path"])
    return PUBLIC.get(name, name)


def adapter_facts(folder: Path) -> dict:
    """base, rank, alpha, targets, parameters and megabytes of an adapter's folder, from its two files."""
    from safetensors import safe_open

    settings = json.loads((folder / "adapter_config.json").read_text())
    weights, targets = folder / "adapter_model.safetensors", settings["target_modules"]  # names, or one pattern
    with safe_open(weights, "pt") as tensors:
        parameters = sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())
    return {
        "base model": settings["base_model_name_or_path"],
        "rank": max([settings["r"], *(settings.get("rank_pattern") or {}).values()]), "alpha": settings["lora_alpha"],
        "targets": targets if isinstance(targets, str) else sorted(targets), "parameters": parameters,
        "MB": round(weights.stat().st_size / 1e6, 1),
    }


def merge_needs(run: Run) -> dict:
    """What a merge takes and what there is, in GB: `disk`, `disk_free`, `memory`, `memory_free`; `warnings` in words.

    The merged model is as large as the base, and the base is held in memory once. KitError for a base model that is
    itself quantised: its integers cannot take up an adapter's small real numbers.
    """
    import psutil
    from transformers import AutoConfig

    config = config_of(run)
    base = str(config["model_name_or_path"])
    kind = getattr(AutoConfig.from_pretrained(base), "quantization_config", None)
    if kind:
        method = kind.get("quant_method") if isinstance(kind, dict) else type(kind).__name__
        raise KitError(f"the base model is quantised ({method}): an adapter cannot be merged into it",
                       "a base model in float32, float16 or bfloat16",
                       "serve the adapter beside the base, or train on the base model before quantisation")
    size = model_gigabytes(base)
    needs = {"disk": size, "disk_free": shutil.disk_usage(run.folder).free / 1e9,
             "memory": 1.3 * size + 0.8, "memory_free": psutil.virtual_memory().available / 1e9}
    warnings = [f"a merge needs about {needs[what]:.1f} GB of {what}, and {needs[what + '_free']:.1f} GB are free"
                for what in ("disk", "memory") if needs[what] > needs[what + "_free"]]
    if config.get("quantization_bit"):
        warnings.append(f"training held the base in {config['quantization_bit']} bits; merging takes its full weights, "
                        "so replies differ a little from those during training")
    return {**needs, "warnings": warnings}


def model_gigabytes(model: str) -> float:
    """The size of a model's weight files in GB: of a folder, or of a hub id that is in the local cache; else 0."""
    folder = Path(model)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError

        try:
            folder = Path(snapshot_download(model, local_files_only=True))
        except LocalEntryNotFoundError:
            return 0.0
    return sum(path.stat().st_size for path in folder.glob("*.safetensors")) / 1e9


def merge(run: Run, checkpoint: Path) -> Path:
    """The merged model, by the stock `llamafactory-cli export`, in export/merged/. Returns that folder.

    What was asked of it lies in export/merge.yaml, what it said in export/merge.log. The weights keep the base model's
    dtype. A full or freeze tuning's checkpoint is exported the same way, there being nothing to merge. KitError with
    the decisive line of the log if it fails.
    """
    needs = merge_needs(run)
    if needs["disk"] > needs["disk_free"]:
        raise KitError(needs["warnings"][0], "room for a whole model", "free some space or choose another storage")
    asked, log, target = run.export / "merge.yaml", run.export / "merge.log", run.export / "merged"
    files.write(asked, yaml.safe_dump(merge_config(config_of(run), Path(checkpoint), target), sort_keys=False))
    environment = {key: value for key, value in os.environ.items() if key not in ("USE_RAY", "FORCE_TORCHRUN")}
    with in_place(target) as folder, open(log, "wb") as output:
        command = [sys.executable, "-m", "llamafactory.cli", "export", str(asked), f"export_dir={folder}"]
        code = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, env=environment).returncode
        if code != 0 or not (folder / "config.json").is_file():
            raise KitError(f"llamafactory-cli export ended with status {code}: {decisive_line(log)}", "a merged model",
                           f"the whole log is in {log}")
        for file in folder.iterdir():
            file.chmod(0o644)  # safetensors writes 0600, which no server under another account can read
    return target


def merge_config(config: dict, checkpoint: Path, target: Path) -> dict:
    """The keys for `llamafactory-cli export`, from the run's config. The base's own dtype is asked for by name: left to
    itself, LLaMA-Factory 0.9.3 turns a float32 model into bfloat16."""
    from transformers import AutoConfig

    from ..evaluate import gpu_has_room

    base = str(config["model_name_or_path"])
    dtype = str(AutoConfig.from_pretrained(base).torch_dtype or "float32").removeprefix("torch.")
    is_adapter = (checkpoint / "adapter_config.json").is_file()
    what = {"model_name_or_path": base, "adapter_name_or_path": str(checkpoint)} if is_adapter else \
        {"model_name_or_path": str(checkpoint)}
    return what | {
        "template": config.get("template"), "finetuning_type": config.get("finetuning_type", "lora"),
        "infer_dtype": dtype, "trust_remote_code": False, "export_dir": str(target), "export_size": 5,
        # auto spreads what does not fit over the CPU, and LLaMA-Factory 0.9.3 then fails: such a model cannot be converted
        "export_device": "auto" if gpu_has_room(model_gigabytes(base)) else "cpu", "export_legacy_format": False,
    } | {key: config[key] for key in ("resize_vocab", "new_special_tokens", "default_system") if key in config}


def decisive_line(log: Path) -> str:
    """The last line of a log that names an error, or its last line."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line and not line.startswith("File ")]
    return (errors or lines or ["it printed nothing"])[-1]
