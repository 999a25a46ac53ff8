"""From a template in train-configs/ and a reader's overrides to the one resolved config.yaml that is launched."""

import json
import os
import subprocess
import sys
from pathlib import Path

from . import export, files, own_yaml, secrets
from .errors import KitError
from .own_yaml import TEMPLATES
from .profiles import ROOT
from .runs import Run, refuse_if_trained


def template(name: str) -> dict:
    """The template of that file name in train-configs/, or at that path, as a dict."""
    return files.read_yaml(own_yaml.path_of(name))


def available() -> list[str]:
    """The templates' file names."""
    return sorted(path.name for path in TEMPLATES.glob("*.yaml"))


def resolve(run: Run, train_config: str = "", **overrides) -> dict:
    """The configuration of `run`: the run's facts, then the template, then the profile's overrides, then `overrides`.

    Overrides bear LLaMA-Factory's names; one that is None is left to the template. What 01 and 02 recorded in run.json (model,
    dataset) is filled in. In a YAML of the reader's own the run's facts win (own_yaml.taken). Nothing is written: see `write`.
    """
    config, _ = template_in_run(run, train_config)
    ray, address = config.get("ray_init_kwargs") or {}, run.profile.ray_address
    if address != "local" and ray.get("address", "local") == "local":  # the profile says which cluster, not the template
        config["ray_init_kwargs"] = {key: value for key, value in ray.items() if key == "runtime_env"} | {"address": address}
    config |= run.profile.overrides | {key: value for key, value in overrides.items() if value is not None}
    own_yaml.refuse_unfinished(config)
    if isinstance(config.get("deepspeed"), str):  # the file's content goes along: every node has it
        config["deepspeed"] = own_yaml.deepspeed(config["deepspeed"], own_yaml.path_of(train_config or run.profile.train_config))
    if run.profile.worker_packages and address != "local":
        config["ray_init_kwargs"] = with_packages(config.get("ray_init_kwargs") or {}, run.profile.worker_packages)
    if config.get("adapter_name_or_path") and not config.get("create_new_adapter"):
        raise KitError(
            "adapter_name_or_path without create_new_adapter trains that adapter further against the bare base: another objective",
            "a new adapter on top of it, whose reference is the base with that adapter; or a merged model",
            "set create_new_adapter: true (`start_from` does), or give the merged model as model_name_or_path",
        )
    return evaluated(config, run.record())


def template_in_run(run: Run, train_config: str = "") -> tuple[dict, list[str]]:
    """(the template with the run's facts, a line for each key of the reader's own YAML that the run overruled or filled in)."""
    record = run.record()
    for key, made_by in (("model", "01_setup"), ("dataset", "02_data")):
        if key not in record:
            raise KitError(
                f"the run {run.name!r} has no {key} yet",
                f"what {made_by} records in run.json",
                f"run {made_by} with the same run_name",
            )
    facts = {
        "model_name_or_path": record["model"]["path"],
        "template": record["model"]["template"],
        "dataset": record["dataset"]["name"],
        "dataset_dir": str(run.datasets),
        "output_dir": str(run.output_dir),
        "ray_run_name": run.name,
        "ray_storage_path": str(run.storage),
    }
    name = train_config or run.profile.train_config
    if own_yaml.is_own(name):
        return own_yaml.taken(template(name), facts | {"eval_dataset": record["dataset"].get("heldout_name")}, run.profile)
    return facts | template(name), []


def accelerated(config: dict, asked, shape: dict | None = None) -> tuple[bool, str]:
    """Whether this config trains with kto_accelerator's trainer, and a sentence for the reader that says why.

    `asked`: auto (where it is proved), true or false. `shape`: the model's config.json; by default read where the model is a folder.
    """
    from kto_accelerator import supports

    asked = str(asked).lower()
    if asked not in ("auto", "true", "false"):
        raise KitError(f"accelerated is {asked!r}", "auto, true or false", "correct `accelerated`")
    proved, why = supports(config, shape)
    if asked == "false":
        return False, "trained by LLaMA-Factory's own trainer, as `accelerated: false` asks"
    if not proved and asked == "auto":
        return False, f"trained by LLaMA-Factory's own trainer: {why}"
    doubts = "" if proved else f" It is not proved for this: {why}."
    return True, ("trained by the faster trainer, kto_accelerator: the same loss, rewards and KL; "
                  f"-p accelerated=false takes LLaMA-Factory's own.{doubts}")


def with_packages(kwargs: dict, requirements: str) -> dict:
    """`ray_init_kwargs` by which the workers get the lines of a requirements file; a `pip` or `uv` of its own stands."""
    environment = kwargs.get("runtime_env") or {}
    if {"pip", "uv", "conda", "container", "image_uri"} & environment.keys():
        return kwargs
    try:
        lines = [line for line in (ROOT / requirements).read_text().splitlines() if line and not line.startswith("#")]
    except OSError as error:
        raise KitError(f"cannot read worker_packages: {error}", "a requirements file", "correct the profile") from None
    return {**kwargs, "runtime_env": {**environment, "pip": lines}}


def evaluated(config: dict, record: dict) -> dict:
    """`config`, with what LLaMA-Factory wants besides `eval_steps`: on which rows (those that 02 held out), in batches as in training.

    Untouched without `eval_steps`; what the config says itself stands. KitError if there are no rows to evaluate.
    """
    if not config.get("eval_steps"):
        return config
    ours = {"eval_strategy": "steps", "per_device_eval_batch_size": config.get("per_device_train_batch_size", 1)}
    if not config.get("eval_dataset") and not config.get("val_size"):
        if not record["dataset"].get("heldout_name"):
            raise KitError(
                f"eval_steps is {config['eval_steps']}, but nothing was held out of the data",
                "rows that training never sees",
                "run 02_data with `heldout` above 0 under a new run_name, or take eval_steps away",
            )
        ours["eval_dataset"] = record["dataset"]["heldout_name"]
    return {**config, **{key: value for key, value in ours.items() if key not in config}}


def write(run: Run, config: dict) -> Path:
    """Check `config`, then write it as the run's config.yaml (whole or not at all). KitError lists all that is wrong."""
    refuse_if_trained(run)
    for finding in export.unservable(config):
        if finding.status == "FAIL":
            raise KitError(finding.found, "a model that can be evaluated and exported as it was trained", finding.remedy)
    secrets.refuse(config, "the config holds")
    if config.get("loss", "kto") != "kto" and not accelerated(config, run.record().get("accelerated", False))[0]:
        raise KitError(f"loss: {config['loss']} is not in LLaMA-Factory's own trainer", "kto, or the project's faster trainer",
                       "set accelerated = \"auto\" (LoRA and QLoRA), or take `loss` away")
    beside = run.folder / ".config.partial.yaml"
    files.write(beside, files.dump_yaml(config))
    try:
        check(beside)
        os.replace(beside, run.config_file)
    finally:
        beside.unlink(missing_ok=True)
    return run.config_file


def check(path: Path) -> None:
    """LLaMA-Factory's own parser as the judge (helpers.judge). KitError names every wrong key and the closest valid one."""
    files.read_yaml(path)
    judged = subprocess.run([sys.executable, "-m", "helpers.judge", path.resolve()], capture_output=True, text=True, cwd=ROOT,
                            env={**os.environ, "LLAMAFACTORY_VERBOSITY": "ERROR", "USE_RAY": "1"})
    if judged.returncode:
        raise KitError(f"the config could not be judged: {(judged.stderr.strip().splitlines() or [''])[-1]}",
                       "LLaMA-Factory that can be imported", "run `make install`")
    if found := json.loads(judged.stdout)[0]:
        lines = [f["found"] + (f"; expected: {f['expected']}" if f["expected"] else "") for f in found]
        heading = f"the config has {f'{len(lines)} errors' if len(lines) > 1 else 'an error'}:"
        raise KitError("\n  - ".join([heading, *lines]), "", "correct these keys (in 03's parameters, or the template)")


def traps(config: dict, record: dict) -> list[str]:
    """What LLaMA-Factory accepts and KTO suffers from, a sentence each with its remedy. Empty: nothing to say."""
    found = []
    if config.get("per_device_train_batch_size", 1) == 1 and config.get("loss", "kto") == "kto":
        found.append(
            "per_device_train_batch_size is 1: the reference point is estimated from a single mismatched pair a "
            "step, very noisily; 4 or more where memory allows"
        )
    if "report_to" not in config:
        found.append("report_to is missing: every tracker installed would be tried; write `report_to: none`")
    rows, cut = record.get("dataset", {}).get("rows", 0), config.get("max_samples")
    if cut and rows > cut:
        found.append(f"max_samples takes the first {cut} of {rows} rows, before any shuffle")
    if not Path(config["output_dir"]).is_absolute():
        found.append("output_dir is relative: Ray Train changes the worker's folder, and it is lost with the node")
    return found
