"""Export the adapter for serving, and say what a configuration rules out."""

import contextlib
import json
import math
import shutil
from pathlib import Path

from . import checkpoints, files
from . import choose as choosing
from .chat_template import VOCABULARY
from .errors import Finding, KitError
from .evaluate import earlier_adapters
from .runs import Run

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")

PUBLIC = {"smollm2-135m-instruct": "HuggingFaceTB/SmolLM2-135M-Instruct"}
"""Packaged models (helpers.models.PACKAGED) by the name they are published under."""

# Keys of a config that put more than A and B matrices into an adapter (vLLM's multi-LoRA loads nothing else), and that make
# another base model of the one that is named.
MERGED_ONLY = ("use_dora", "additional_target", *VOCABULARY)
OTHER_BASE = ("pissa_init", "rope_scaling", "shift_attn", "mixture_of_depths", "use_llama_pro")


def choose(run: Run, checkpoint: str = "best") -> tuple[Path, int | None, str]:
    """(folder, step, why) of a checkpoint of `run`: `best` (what 05_checkpoints chose, else by margin), `latest`, a step, a path."""
    folder = Path(checkpoint).expanduser()
    if checkpoint not in ("best", "latest") and not checkpoint.isdigit():
        if not any((folder / name).is_file() for name in ("adapter_config.json", "config.json")):
            raise KitError(f"{checkpoint!r} is no checkpoint",
                           "best, latest, a step's number, or a checkpoint's folder", "correct `checkpoint`")
        return folder.resolve(), None, "its path was given"
    found = checkpoints.find(run)
    if checkpoint.isdigit():
        item, why = choosing.by_step(found, int(checkpoint))
    else:
        noted = run.record().get("checkpoint", {})
        item = next((item for item in found if item.usable and choosing.below(item.path, run.folder) == noted.get("best")), None)
        why = noted.get("why", "chosen in 05_checkpoints")
        if checkpoint == "latest" or item is None:
            item, why = {"best": choosing.best, "latest": choosing.latest}[checkpoint](found)
    return choosing.fetch(item, run.export / "checkpoint", to_resume=False).path, item.step, why


def unservable(config: dict) -> list[Finding]:
    """What this configuration rules out after training, before a GPU is paid for; an empty list if nothing.

    `kind` says what: `adapter` (no adapter to serve beside others), `merge` (no merged model), `exact` (figures and
    merge take the unquantised base), `reference` (a wrong objective). Status FAIL: 03_config writes no such config.
    """
    said, tuning = [], config.get("finetuning_type", "lora")
    kind = settings_of(str(config["model_name_or_path"]), "config.json").get("quantization_config")
    base = (kind.get("quant_method") or "an unnamed method") if kind else ""  # how the base model itself is quantised

    def say(status: str, kind: str, found: str, remedy: str) -> None:
        said.append(Finding(status, found, remedy, kind=kind))

    odd = [f"{key}: {config[key]}" for key in MERGED_ONLY if config.get(key)] if tuning == "lora" else [f"a {tuning} tuning"]
    odd += [f"{path}: {words}" for path in earlier_adapters(config) if (words := beyond_lora(path))]
    if odd:
        say("WARN", "adapter", f"{', '.join(odd)}: there will be no adapter to serve beside others",
            "serve the merged model; figures and card are made all the same")
    if base:
        say("FAIL", "merge", f"the base model is quantised ({base}): an adapter cannot be merged into it",
            "name the base before quantisation; with quantization_bit: 4 training holds it in 4 bits")
    few_bits = base or config.get("quantization_bit")
    if few_bits and not base:
        say("WARN", "exact", f"training holds the base in {few_bits} bits; evaluation and merge take its full weights, so "
            "replies differ a little", "quantise the merged model for serving, or leave quantization_bit out")
    if changed := [key for key in OTHER_BASE if config.get(key)]:
        say("FAIL", "reference", f"{', '.join(changed)} changes the base model: the reference and what is served would be another one",
            "leave it out, or name a base model that has it already")
    added, trained = [key for key in VOCABULARY if config.get(key)], config.get("additional_target")
    if added and (few_bits or tuning != "lora"):
        say("FAIL", "merge", f"{', '.join(added)} with {'a base held in few bits' if few_bits else f'a {tuning} tuning'}: "
            "the embeddings cannot be made larger", "add the tokens to the base first and name that model")
    elif added and trained and not all(name in trained for name in ("embed_tokens", "lm_head")):
        say("FAIL", "merge", f"{', '.join(added)} with additional_target {trained}: of new rows that are not trained nothing is saved",
            "leave additional_target out: both embeddings are then trained and saved")
    deepspeed = config.get("deepspeed") or {}  # a file's name, or its content
    zero3 = "z3" in deepspeed if isinstance(deepspeed, str) else deepspeed.get("zero_optimization", {}).get("stage") == 3
    if config.get("create_new_adapter") and earlier_adapters(config) and (few_bits or zero3):
        say("FAIL", "reference", f"{'a base held in few bits' if few_bits else 'ZeRO-3'} cannot take up the earlier adapter: "
            "LLaMA-Factory would train that one further, against the bare base model", "merge it first and name the merged model")
    return said


def settings_of(name: str, file: str) -> dict:
    """A model's or an adapter's settings, from its folder, the hub's cache, or the hub; an empty dict where none of them has any."""
    path = Path(name).expanduser() / file
    if not path.is_file() and files.is_hub_id(name):
        from huggingface_hub import constants, try_to_load_from_cache

        path = Path(str(try_to_load_from_cache(name, file)))
        if not path.is_file() and not constants.HF_HUB_OFFLINE:
            code, text = files.from_hub(name, file)
            with contextlib.suppress(ValueError):  # a page that some proxy sends instead
                return json.loads(text) if code == 200 else {}
    return files.read_json(path) if path.is_file() else {}


def beyond_lora(adapter: str) -> str:
    """What of an adapter (a folder or a hub id) a multi-LoRA server does not load, in words; empty for plain LoRA."""
    settings = settings_of(adapter, ADAPTER_FILES[0])
    keys = ("use_dora", "modules_to_save", "trainable_token_indices", "bias")
    return ", ".join(f"{key}: {settings[key]}" for key in keys if settings.get(key) not in (None, False, "none"))


def adapter(run: Run, checkpoint: Path) -> Path:
    """The adapter alone, in export/adapter/<run name>/: what vLLM and Ray Serve LLM load beside other adapters.

    Where training started from earlier adapters, all of them combined into one (`combine`), so that it belongs on the
    plain base. The base's name in adapter_config.json becomes its public one. KitError if there is no plain LoRA.
    """
    from huggingface_hub import snapshot_download

    parts = [Path(name if Path(name).is_dir() else snapshot_download(name, allow_patterns=list(ADAPTER_FILES)))
             for name in earlier_adapters(run.config())] + [Path(checkpoint)]
    for part in parts:
        if missing := [name for name in ADAPTER_FILES if not (part / name).is_file()]:
            raise KitError(f"{part} has no {' and no '.join(missing)}", "a complete LoRA checkpoint",
                           "choose another checkpoint; a full or freeze tuning has no adapter, only a merged model")
        if words := beyond_lora(str(part)):
            raise KitError(f"this adapter cannot be served beside others: {words}",
                           "plain LoRA: vLLM loads the A and B matrices and nothing else", "serve the merged model")
    target = run.export / "adapter" / run.name
    with files.new_folder(target) as folder:
        if len(parts) > 1:
            settings = combine(parts, folder / ADAPTER_FILES[1])
        else:
            settings = files.read_json(parts[0] / ADAPTER_FILES[0])
            shutil.copyfile(parts[0] / ADAPTER_FILES[1], folder / ADAPTER_FILES[1])
        settings |= {"base_model_name_or_path": public_name(run), "inference_mode": True}
        files.write(folder / ADAPTER_FILES[0], json.dumps(settings, indent=2) + "\n")
    return target


def combine(parts: list[Path], target: Path) -> dict:
    """One adapter that does exactly what the LoRA adapters `parts` do one upon the other: its weights to `target`, its settings back.

    W + s1·B1·A1 + s2·B2·A2 is W + [s1·B1 s2·B2]·[A1; A2]: ranks add up, and each scaling is multiplied into its B, so
    that every module's alpha equals its rank. Modules that only some adapters change keep their smaller rank.
    """
    import torch
    from peft.utils.other import get_pattern_key
    from safetensors.torch import load_file, save_file

    modules: dict[str, list] = {}  # module -> the (A, scaled B) of each adapter that changes it
    for part in parts:
        settings, tensors = files.read_json(part / ADAPTER_FILES[0]), load_file(part / ADAPTER_FILES[1])
        alphas = settings.get("alpha_pattern") or {}
        for name in sorted(name for name in tensors if name.endswith(".lora_A.weight")):
            prefix = name.removesuffix(".lora_A.weight")
            a, b = tensors.pop(name).float(), tensors.pop(prefix + ".lora_B.weight").float()
            alpha = alphas.get(get_pattern_key(alphas, prefix), settings["lora_alpha"])
            scaling = alpha / (math.sqrt(len(a)) if settings.get("use_rslora") else len(a))
            modules.setdefault(prefix, []).append((a, b * scaling))
        if tensors:
            raise KitError(f"{part} holds {next(iter(tensors))}", "A and B matrices only", "serve the merged model")
    made = {f"{prefix}.lora_A.weight": torch.cat([a for a, _ in pairs]) for prefix, pairs in modules.items()}
    made |= {f"{prefix}.lora_B.weight": torch.cat([b for _, b in pairs], 1) for prefix, pairs in modules.items()}
    save_file(made, target, metadata={"format": "pt"})
    ranks = {prefix.removeprefix("base_model.model."): sum(len(a) for a, _ in pairs) for prefix, pairs in modules.items()}
    rank = max(ranks.values())
    smaller = {name: value for name, value in ranks.items() if value != rank}
    return settings | {
        "r": rank, "lora_alpha": rank, "use_rslora": False, "rank_pattern": smaller, "alpha_pattern": smaller,
        "target_modules": sorted(ranks), "layers_to_transform": None, "layers_pattern": None, "exclude_modules": None,
        "init_lora_weights": True}


def public_name(run: Run) -> str:
    """The base model's name for the world: its hub id where it has one, else what the reader called it."""
    name = run.record().get("model", {}).get("name") or str(run.config()["model_name_or_path"])
    return PUBLIC.get(name, name)


def adapter_facts(folder: Path) -> dict:
    """base, rank, alpha, targets, parameters and megabytes of an adapter's folder, from its two files."""
    from safetensors import safe_open

    settings = files.read_json(folder / ADAPTER_FILES[0])
    weights, targets = folder / ADAPTER_FILES[1], settings["target_modules"]  # names, or one pattern
    with safe_open(weights, "pt") as tensors:
        parameters = sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())
    return {
        "base model": settings["base_model_name_or_path"],
        "rank": max([settings["r"], *(settings.get("rank_pattern") or {}).values()]), "alpha": settings["lora_alpha"],
        "targets": targets if isinstance(targets, str) else sorted({name.rsplit(".", 1)[-1] for name in targets}),
        "parameters": parameters, "MB": round(weights.stat().st_size / 1e6, 1),
    }
