"""Validate configs with LLaMA-Factory's own parser: `python -m helpers.judge CONFIG...` prints its findings as JSON.

A process of its own, because importing the parser takes 9 s, prints, and sets up logging. A config for GPUs
can be judged on a machine without one: the questions that the parser puts to the hardware are answered with yes.
"""

import dataclasses
import json
import os
import re
import sys
import typing
from pathlib import Path

from . import files
from .errors import closest

OWN = {"loss": ("kto", "apo_zero_unpaired")}
"""Keys of ours in a config, with their values: our launcher takes them out of what LLaMA-Factory reads."""


class RayKeys(typing.TypedDict):
    """Keys of the launch that LLaMA-Factory 0.9.5 no longer knows; helpers.trainer takes them itself."""

    ray_run_name: str | None
    ray_storage_path: str
    ray_storage_filesystem: typing.Literal["s3", "gs", "gcs"] | None
    resources_per_worker: dict | str
    placement_strategy: typing.Literal["SPREAD", "PACK", "STRICT_SPREAD", "STRICT_PACK"]


def findings(config: dict) -> list[dict]:
    """Every unknown key and ill-typed value, then, if there are none, what LLaMA-Factory's own parser objects to.

    Each is {"key", "found", "expected"}; `key` is "" where the parser speaks of the config as a whole.
    """
    from llamafactory.hparams import parser

    own = {key: config[key] for key in OWN if key in config}
    config = {key: value for key, value in config.items() if key not in own}  # they are taken out before LLaMA-Factory reads it
    theirs = {}  # name -> annotated type of every field that LLaMA-Factory's argument classes accept
    for cls in parser._TRAIN_ARGS:
        hints = typing.get_type_hints(cls)
        theirs |= {field.name: hints[field.name] for field in dataclasses.fields(cls) if field.init}
    types = typing.get_type_hints(RayKeys) | theirs
    found = [{"key": key, "found": f"{key}: {value!r}", "expected": " or ".join(OWN[key])}
             for key, value in own.items() if value not in OWN[key]]
    found += [{"key": key, "found": f"LLaMA-Factory knows no key {key!r}{closest(key, types)}", "expected": ""}
              for key in config if key not in types]
    found += [f for key, value in config.items() if key in types and (f := ill_typed(key, value, types[key]))]
    return found or unknown_metric(config) or objections({key: value for key, value in config.items() if key in theirs}, parser)


def unknown_metric(config: dict) -> list[dict]:
    """The metric that decides on the best model, or on the learning rate, where a KTO evaluation does not return it: the training
    would end at its first evaluation."""
    if not (config.get("load_best_model_at_end") or config.get("lr_scheduler_type") == "reduce_lr_on_plateau"):
        return []
    sets = config.get("eval_dataset") or []
    sets = [name.strip() for name in sets.split(",")] if isinstance(sets, str) else sets
    each = config.get("eval_on_each_dataset") and sets
    returned = [f"{name}_loss" for name in sets] if each else ["loss"]
    returned += [f"rewards/{which}" for which in ("margins", "auc", "chosen", "rejected")]
    metric = str(config.get("metric_for_best_model") or "loss").removeprefix("eval_")
    return [] if metric in returned else [{
        "key": "metric_for_best_model", "found": f"metric_for_best_model: {metric} is not what a KTO evaluation returns",
        "expected": " or ".join(returned)}]


def ill_typed(key: str, value, hint) -> dict | None:
    """A finding if `value` is not of the field's type. Strict: LLaMA-Factory converts nothing that comes from YAML."""
    from pydantic import ConfigDict, TypeAdapter, ValidationError

    expected = getattr(hint, "__name__", None) or str(hint).replace("typing.", "")
    scalars = (float, int, bool)
    if isinstance(value, str) and hint in (*scalars, *(typing.Optional[kind] for kind in scalars)):  # noqa: UP045
        number = re.fullmatch(r"([+-]?\d+)(\.\d*)?([eE][+-]?\d+)?", value)
        says = f" (in quotes; write {number[1]}{number[2] or '.0'}{number[3]})" if number and number[3] else ""
        return {"key": key, "found": f"{key}: {value!r} is text{says}", "expected": expected}
    try:
        TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True)).validate_python(value)
    except ValidationError as error:
        return {"key": key, "found": f"{key}: {value!r}: {error.errors()[0]['msg']}", "expected": expected}
    except Exception:  # a type that pydantic cannot describe is left to LLaMA-Factory
        return None
    return None


def objections(config: dict, parser) -> list[dict]:
    """What LLaMA-Factory's parser itself says to the whole config, hardware questions answered with yes."""
    import transformers.training_args as training_args

    for module in (training_args, parser):
        for question in ("is_torch_bf16_gpu_available", "is_torch_tf32_available"):
            if hasattr(module, question):
                setattr(module, question, lambda: True)
    alone = dict(os.environ)
    if config.get("deepspeed"):  # accepted only in a distributed process: be one, of one
        os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    try:
        parser.get_train_args(dict(config))
    except Exception as error:  # its own words, whatever the kind
        return [{"key": "", "found": f"LLaMA-Factory says: {error}", "expected": ""}]
    finally:
        os.environ.clear()
        os.environ.update(alone)
    return []


def main() -> None:
    real = os.dup(1)
    os.dup2(2, 1)  # whatever the imports print goes to stderr
    found = [findings(files.read_yaml(Path(path))) for path in sys.argv[1:]]
    os.write(real, json.dumps(found).encode())


if __name__ == "__main__":
    main()
