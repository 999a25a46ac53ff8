"""KitError, shown instead of a traceback (found, expected, fix), and Finding, a warning that ends nothing."""

import math
from difflib import get_close_matches
from typing import NamedTuple

from .secrets import mask

RANGES = {"a finite number above 0": lambda value: 0 < value < math.inf, "1 or more": lambda value: value >= 1,
          "0 or more": lambda value: value >= 0, "a share of the prompts, from 0 to below 1": lambda value: 0 <= value < 1}
"""In words -> whether a number is in it."""
POSITIVE, COUNT, NOT_NEGATIVE, SHARE = RANGES
RANGE = {
    **dict.fromkeys(("num_train_epochs", "learning_rate", "pref_beta", "lora_alpha", "logging_steps", "save_steps",
                     "eval_steps"), POSITIVE),
    **dict.fromkeys(("max_steps", "lora_rank", "per_device_train_batch_size", "gradient_accumulation_steps", "cutoff_len",
                     "ray_num_workers", "score_at_most", "keep_last", "max_new_tokens"), COUNT),
    **dict.fromkeys(("kto_chosen_weight", "kto_rejected_weight", "seed", "retries", "patience", "samples"), NOT_NEGATIVE),
    "heldout": SHARE}
"""Parameters and keys of a config of which libraries take others without a word; then nothing is trained, or it fails at the end."""


class Finding(NamedTuple):
    """Something worth telling that ends nothing: one line of the doctor, the watchdog, a check before a resume."""

    status: str  # OK, WARN (look at it) or FAIL (it cannot go well)
    found: str
    remedy: str = ""
    why: str = ""  # the likely cause, or what it leads to
    kind: str = ""  # its short name for programs
    step: int | None = None  # where in the training it was first seen

    def __str__(self) -> str:
        parts = (("why", self.why), ("fix", self.remedy))
        return f"[{self.status}]".ljust(7) + self.found + "".join(f"\n       {name}: {text}" for name, text in parts if text)


class KitError(Exception):
    """Shown as a one-line message instead of a traceback: what was found, what was expected, what to do."""

    def __init__(self, found: str, expected: str = "", remedy: str = ""):
        self.found, self.expected, self.remedy = found, expected, remedy
        parts = (("expected: ", expected), ("fix:      ", remedy))
        super().__init__(mask(found + "".join(f"\n  {name}{text}" for name, text in parts if text)))

    def _render_traceback_(self) -> list[str]:
        """What IPython shows instead of a traceback."""
        return [f"{type(self).__name__}: {self}"]


def refuse(findings: list[Finding], expected: str = "") -> None:
    """KitError for the first FAIL among them."""
    for finding in findings:
        if finding.status == "FAIL":
            raise KitError(finding.found, expected, finding.remedy)


def out_of_range(values: dict) -> dict[str, str]:
    """name -> its RANGE, for each of these numbers that is not in it. max_steps: -1 can be meant: as many as the epochs have."""
    numbers = {key: value for key, value in values.items() if key in RANGE and isinstance(value, int | float)}
    return {key: RANGE[key] for key, value in numbers.items()
            if not RANGES[RANGE[key]](value) and (key, value) != ("max_steps", -1)}


def refuse_out_of_range(**values) -> None:
    """KitError for the first of these that is."""
    for key, expected in out_of_range(values).items():
        raise KitError(f"{key} is {values[key]}", expected, f"correct `{key}`")


def closest(word: str, known) -> str:
    """`" (did you mean 'x'?)"` for the known word nearest to `word`, or an empty string."""
    near = get_close_matches(word, known, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""
