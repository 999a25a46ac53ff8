"""The notebooks' parameters, and their values from a command line."""

import json
from pathlib import Path

from helpers import secrets
from helpers.errors import closest, out_of_range
from helpers.profiles import ROOT

from .terminal import Usage

NOTEBOOKS = ROOT / "notebooks"
COMMON = ("profile", "storage", "run_name")
PATHS = ("dataset", "model_name_or_path", "train_config", "start_from")
"""Parameters that may name a file or folder."""
READERS = {"int": int, "float": float, "dict": lambda text: dict(json.loads(text)),
           "bool": lambda text: {"true": True, "false": False}[text.lower()]}
"""How the text of a parameter becomes a value, by the type that its notebook gives it; others stay text."""


def notebooks() -> list[Path]:
    """The numbered notebooks, in order."""
    return sorted(NOTEBOOKS.glob("0[1-9]_*.ipynb"))


def known() -> dict[str, dict]:
    """name -> {"notebooks", "type", "default", "help"} of every knob in the notebooks' parameters cells."""
    import papermill

    found: dict[str, dict] = {}
    for path in notebooks():
        for name, one in papermill.inspect_notebook(str(path)).items():
            entry = {"type": one["inferred_type_name"], "default": one["default"], "help": one["help"]}
            found.setdefault(name, {"notebooks": [], **entry})["notebooks"].append(path.stem)
    return found


def typed(assignments: list[str]) -> dict:
    """`["max_steps=12"]` -> `{"max_steps": 12}`, by the types in the parameters cells; paths that exist are made absolute.

    Usage lists the valid names.
    """
    there, values = known(), {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if name not in there or name in COMMON:
            hint = " (has an option of its own)" if name in COMMON else closest(name, there)
            raise Usage(f"there is no parameter {name!r}{hint}",
                        f"name=value with one of: {', '.join(sorted(set(there) - set(COMMON)))}",
                        "correct -p; any other LLaMA-Factory key goes into -p 'overrides={\"key\": value}'")
        kind = there[name]["type"]
        if not equals or (not text and kind in READERS):
            raise Usage(f"-p {name} has no value", f"-p {name}=VALUE, of type {kind}", "correct -p")
        try:
            values[name] = READERS.get(kind, str)(text)
        except (ValueError, KeyError, TypeError):
            raise Usage(f"{name}={text}: {text!r} is of another type", f"a value of type {kind}", "correct -p") from None
        if name in PATHS and text and Path(text).exists():  # the notebooks run in a folder of their own
            values[name] = str(Path(text).resolve())
    if wrong := out_of_range(values) | unknown(values):
        raise Usage("; ".join(f"{name} is {values[name]}, expected: {words}" for name, words in wrong.items()), "", "correct -p")
    secrets.refuse(values, "the parameters hold")
    return values


def unknown(values: dict) -> dict[str, str]:
    """name -> what was expected, for each choice that its notebook would refuse, which may be when the training is over."""
    from helpers import config, launch, quantise, schedule

    one_of = {"accelerated": config.ACCELERATED, "loss": config.LOSSES, "launcher": launch.LAUNCHERS,
              "quantise": tuple(quantise.SCHEMES), "resume": ("", "latest", "best"),
              "metric": ("held-out", "kl_mean", *schedule.LOGGED)}
    also = {"resume": ("a step", str.isdecimal), "metric": ("eval_…", lambda word: word.startswith("eval_")),
            "accelerated": ("", lambda word: word.lower() in config.ACCELERATED)}
    wrong = {}
    for name in values.keys() & one_of.keys():
        words = [word for word in values[name].split(",") if word] if name == "quantise" else [values[name]]
        others, fits = also.get(name, ("", lambda word: False))
        if odd := [word for word in words if word not in one_of[name] and not fits(word)]:
            wrong[name] = f"one of {', '.join(filter(None, [*one_of[name], others]))}" + closest(odd[0], one_of[name])
    return wrong
