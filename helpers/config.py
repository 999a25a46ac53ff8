"""Resolve a template and overrides into the config.yaml that is launched, and validate it.

`python -m helpers.config` reads a config on stdin and prints what LLaMA-Factory's own parser finds wrong with it, as JSON.
"""

import dataclasses
import json
import os
import re
import subprocess
import sys
import typing
from pathlib import Path

from kto_accelerator.enable import LOSSES, OURS, supports

from . import export, files, gpus, own_yaml, secrets
from .errors import KitError, closest, out_of_range, refuse
from .own_yaml import TEMPLATES, available  # noqa: F401, the latter is asked for here by notebook 3
from .profiles import ROOT
from .runs import Run, refuse_if_trained
from .trainer import RAY_KEYS

ACCELERATED = ("auto", "true", "false")
BRING_PACKAGES = {"pip", "uv", "conda", "container", "image_uri"}
"""Keys of Ray's runtime_env by which the workers get packages that their nodes need not have."""


def template(name: str) -> dict:
    """The template of that file name in train-configs/, or at that path, as a dict."""
    return files.read_yaml(own_yaml.path_of(name))


def used(run: Run, train_config: str = "", overrides: dict | None = None) -> tuple[str, str]:
    """(the template that `run` takes, why): the one given, else the profile's for the smallest GPU that 01_setup noted.

    `overrides`: LLaMA-Factory's keys; a kind of GPU that their resources_per_worker pins counts alone.
    """
    if train_config:
        return train_config, "as you say"
    resources = (run.profile.overrides | (overrides or {})).get("resources_per_worker")
    return run.profile.config_for(gpus.smallest(run.record().get("gpus") or [], resources))


def resolve(run: Run, train_config: str = "", **overrides) -> dict:
    """The configuration of `run`: the run's facts, then the template, then the profile's overrides, then `overrides`.

    Overrides bear LLaMA-Factory's names; one that is None is left to the template. In a YAML of the reader's own the run's facts
    win (own_yaml.taken). Nothing is written: see `write`.
    """
    profile, address = run.profile, run.profile.ray_address
    train_config, _ = used(run, train_config, overrides)
    config, _ = template_in_run(run, train_config)
    ray = config.get("ray_init_kwargs") or {}
    if address != "local" and ray.get("address", "local") == "local":  # the profile says which cluster, not the template
        config["ray_init_kwargs"] = {key: value for key, value in ray.items() if key == "runtime_env"} | {"address": address}
    config |= profile.overrides | {key: value for key, value in overrides.items() if value is not None}
    own_yaml.refuse_unfinished(config)
    if not isinstance(each := config.get("resources_per_worker") or {}, dict):
        raise KitError(f"resources_per_worker is {each!r}", "names and numbers, such as {GPU: 1}", "correct `resources_per_worker`")
    if isinstance(config.get("deepspeed"), str):  # the file's content goes along: every node has it
        config["deepspeed"] = own_yaml.deepspeed(config["deepspeed"], own_yaml.path_of(train_config))
    ray = config.get("ray_init_kwargs") or {}
    environment = ray.get("runtime_env") or {}
    if address != "local" and profile.worker_packages and not BRING_PACKAGES & environment.keys():
        lines = (ROOT / profile.worker_packages).read_text().splitlines()
        packages = [line for line in lines if line and not line.startswith("#")]
        config["ray_init_kwargs"] = ray | {"runtime_env": environment | {"pip": packages}}  # what the config brings itself stands
    if config.get("adapter_name_or_path") and not config.get("create_new_adapter"):
        raise KitError(
            "adapter_name_or_path without create_new_adapter trains that adapter further against the bare base: another objective",
            "a new adapter on top of it, whose reference is the base with that adapter; or a merged model",
            "set create_new_adapter: true (`start_from` does), or give the merged model as model_name_or_path",
        )
    if config.get("eval_steps"):  # what LLaMA-Factory wants besides: the rows that 02 held out, in batches as in training
        usual = {"eval_strategy": "steps", "per_device_eval_batch_size": config.get("per_device_train_batch_size", 8)}
        if not config.get("eval_dataset") and not config.get("val_size"):
            usual["eval_dataset"] = run.record()["dataset"].get("heldout_name")
            if not usual["eval_dataset"]:
                raise KitError(f"eval_steps is {config['eval_steps']}, but nothing was held out of the data",
                               "rows that training never sees",
                               "run 02_data with `heldout` above 0 under a new run_name, or take eval_steps away")
        config |= {key: config.get(key) or value for key, value in usual.items()}
    return config


def template_in_run(run: Run, train_config: str = "") -> tuple[dict, list[str]]:
    """(the template with the run's facts, a line for each key of the reader's own YAML that the run overruled or filled in)."""
    record = run.record()
    for key, made_by in (("model", "01_setup"), ("dataset", "02_data")):
        if key not in record:
            raise KitError(f"the run {run.name!r} has no {key} yet", f"what {made_by} records in run.json",
                           f"run {made_by} with the same run_name")
    facts = {
        "model_name_or_path": record["model"]["path"],
        "template": record["model"]["template"],
        "dataset": record["dataset"]["name"],
        "dataset_dir": str(run.datasets),
        "output_dir": str(run.output_dir),
        "ray_run_name": run.name,
        "ray_storage_path": str(run.storage),
    }
    path = own_yaml.path_of(used(run, train_config)[0])
    if path.parent != TEMPLATES:
        usual = template(used(run)[0])
        return own_yaml.taken(files.read_yaml(path), facts, record["dataset"].get("heldout_name"), usual, run.profile.gpu)
    config = facts | files.read_yaml(path)
    if processes := config.get("preprocessing_num_workers"):  # sixteen take 5 to 25 s to start, and 1 s to tokenise a thousand rows
        config["preprocessing_num_workers"] = min(processes, 1 + record["dataset"].get("rows", 0) // 1000)
    return config, []


def accelerated(config: dict, asked, shape: dict | None = None) -> tuple[bool, str]:
    """Whether this config trains with kto_accelerator's trainer, and a sentence for the reader that says why.

    `asked`: auto (where it is proved), true or false. `shape`: the model's config.json; by default read where the model is a folder.
    """
    asked = str(asked).lower()
    if asked not in ACCELERATED:
        raise KitError(f"accelerated is {asked!r}", "auto, true or false", "correct `accelerated`")
    if asked == "false":
        return False, "trained by LLaMA-Factory's own trainer, as `accelerated: false` asks"
    proved, why = supports(config, shape)
    if not proved and asked == "auto":
        return False, f"trained by LLaMA-Factory's own trainer: {why}"
    doubts = "" if proved else f" It is not proved for this: {why}."
    return True, ("trained by the faster trainer, kto_accelerator: the same loss, rewards and KL; "
                  f"-p accelerated=false takes LLaMA-Factory's own.{doubts}")


def traps(config: dict, record: dict) -> list[str]:
    """What LLaMA-Factory accepts and KTO suffers from, a sentence each with its remedy."""
    found = []
    if config.get("per_device_train_batch_size", 8) == 1 and config.get("loss", "kto") == "kto":
        found.append("per_device_train_batch_size is 1: the reference point is estimated from a single mismatched pair a "
                     "step, very noisily; 4 or more where memory allows")
    rows, cut = record.get("dataset", {}).get("rows", 0), config.get("max_samples")
    if cut and rows > cut:
        found.append(f"max_samples takes the first {cut} of {rows} rows, before any shuffle")
    return found


def write(run: Run, config: dict) -> Path:
    """Check `config`, then write it as the run's config.yaml. KitError lists all that is wrong."""
    refuse_if_trained(run)
    refuse(export.unservable(config), "a model that can be evaluated and exported as it was trained")
    secrets.refuse(config, "the config holds")
    ours = [f"{key}: {config[key]}" for key, stock in OURS.items() if config.get(key, stock) != stock]
    taken, why = accelerated(config, run.record().get("accelerated", False)) if ours else (False, "")
    if ours and not taken:
        raise KitError(f"{', '.join(ours)} is not in LLaMA-Factory's own trainer; {why}", "the project's faster trainer",
                       f"set accelerated = \"auto\" and what is named here, or take `{ours[0].partition(':')[0]}` away")
    refuse(gpus.without_bitsandbytes(config, run.record().get("bitsandbytes")), "bitsandbytes on every node with a GPU")
    if Path(config["dataset_dir"]).is_dir():  # LLaMA-Factory would miss one when the workers have started
        for name in files.listed(config.get("dataset")) + files.listed(config.get("eval_dataset")):
            files.data_file(Path(config["dataset_dir"]), name)
    check(config)
    return files.write(run.config_file, files.dump_yaml(config))


def check(config: dict) -> None:
    """KitError names every wrong key and the closest valid one, by LLaMA-Factory's own parser.

    In a process of its own, because importing the parser takes 9 s, prints, and sets up logging. It sees no GPU: with several, which
    the driver of a cluster may well have, the parser would ask for torchrun; workers see one each.
    """
    judged = subprocess.run([sys.executable, "-m", "helpers.config"], input=files.dump_yaml(config), capture_output=True, text=True,
                            cwd=ROOT, env={**os.environ, "LLAMAFACTORY_VERBOSITY": "ERROR", "USE_RAY": "1", "CUDA_VISIBLE_DEVICES": ""})
    if judged.returncode:
        raise KitError(f"the config could not be judged: {judged.stderr.strip()[-200:]}",
                       "LLaMA-Factory that can be imported", "run `make install`")
    if found := json.loads(judged.stdout.splitlines()[-1]):
        heading = f"the config has {f'{len(found)} errors' if len(found) > 1 else 'an error'}:"
        raise KitError("\n  - ".join([heading, *found]), "", "correct these keys (in 03's parameters, or the template)")


def findings(config: dict) -> list[str]:
    """Every unknown key and ill-typed value, then, if there are none, what LLaMA-Factory's own parser objects to."""
    import transformers.training_args as training_args
    from llamafactory.hparams import parser

    theirs = {}  # name -> annotated type of every field that LLaMA-Factory's argument classes accept
    for cls in parser._TRAIN_ARGS:
        hints = typing.get_type_hints(cls)
        theirs |= {field.name: hints[field.name] for field in dataclasses.fields(cls) if field.init}
    ours = {"loss": typing.Literal[LOSSES], "fp8": bool}
    types = ours | dict.fromkeys(RAY_KEYS, typing.Any) | theirs  # LLaMA-Factory 0.9.5 lacks some of Ray's
    found = [f"LLaMA-Factory knows no key {key!r}{closest(key, types)}" for key in config if key not in types]
    found += [line for key, value in config.items() if key in types and (line := ill_typed(key, value, types[key]))]
    beyond = [f"{key} is {config[key]}; expected: {words}" for key, words in out_of_range(config).items()]
    if found := found or beyond + unknown_metric(config):
        return found
    # The whole config, the parser's questions about the hardware answered with yes.
    for module in (training_args, parser):
        for question in ("is_torch_bf16_gpu_available", "is_torch_tf32_available"):
            if hasattr(module, question):
                setattr(module, question, lambda: True)
    if config.get("deepspeed"):  # accepted only in a distributed process: be one, of one
        os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    try:
        parser.get_train_args({key: value for key, value in config.items() if key in theirs})
    except Exception as error:  # its own words, whatever the kind
        return [f"LLaMA-Factory says: {error}"]
    return []


def ill_typed(key: str, value, hint) -> str:
    """What is said if `value` is not of the field's type. Strict: LLaMA-Factory converts nothing that comes from YAML."""
    from pydantic import ConfigDict, TypeAdapter, ValidationError

    kinds = typing.get_args(hint) or [hint]
    if isinstance(value, str) and set(kinds) <= {float, int, bool, type(None)}:
        number = re.fullmatch(r"([+-]?\d+)(\.\d*)?([eE][+-]?\d+)", value)
        says = f" (in quotes; write {number[1]}{number[2] or '.0'}{number[3]})" if number else ""
        return f"{key}: {value!r} is text{says}; expected: {kinds[0].__name__}"
    try:
        TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True)).validate_python(value)
    except ValidationError as error:
        return f"{key}: {value!r}: {error.errors()[0]['msg']}"
    return ""


def unknown_metric(config: dict) -> list[str]:
    """A metric for the best model, or for the learning rate, that no KTO evaluation returns: training ends at the first one."""
    if not (config.get("load_best_model_at_end") or config.get("lr_scheduler_type") == "reduce_lr_on_plateau"):
        return []
    sets = files.listed(config.get("eval_dataset"))
    returned = [f"{name}_loss" for name in sets] if config.get("eval_on_each_dataset") and sets else ["loss"]
    returned += [f"rewards/{which}" for which in ("margins", "auc", "chosen", "rejected")]
    metric = str(config.get("metric_for_best_model") or "loss").removeprefix("eval_")
    return [] if metric in returned else [
        f"metric_for_best_model: {metric} is not what a KTO evaluation returns; expected: {' or '.join(returned)}"]


if __name__ == "__main__":
    print("\n" + json.dumps(findings(files.parse_yaml(sys.stdin.read()))))
