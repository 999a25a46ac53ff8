"""GPUs by name: what a node has, which of them a config's workers get, and what is published of each kind."""

import contextlib
import importlib.util
import re
import subprocess

from .errors import Finding

KINDS = {
    "T4": (15.0, None), "V100": (16.0, None), "L4": (22.5, 121), "A10": (22.5, 125), "A10G": (22.5, 70), "RTX 4090": (24.0, 165),
    "A40": (45.0, 150), "A6000": (48.0, 155), "L40S": (45.0, 362), "A100": (40.0, 312), "A100-40G": (40.0, 312),
    "A100-80G": (80.0, 312), "H100": (79.6, 989), "H100 PCIe": (79.6, 756), "H100 NVL": (93.6, 835), "H200": (140.4, 989),
}
"""Kind, as Ray or nvidia-smi write it -> (GiB, for nodes that are still to come; dense bf16 TFLOP/s as published; None: no bf16)."""


def kind(name: str) -> str:
    """The longest of KINDS that this name of a GPU holds as a word ("NVIDIA L40S": "L40S"), or an empty string."""
    return max((known for known in KINDS if holds(name, known)), key=len, default="")


def holds(name: str, word: str) -> bool:
    return bool(re.search(rf"(?<![A-Za-z0-9]){re.escape(word)}(?![A-Za-z0-9])", name))


def look() -> dict:
    """What this node has: `gpus`, a list of (name, GiB), and whether `bitsandbytes` is installed."""
    gpus = []
    with contextlib.suppress(OSError, ValueError, subprocess.TimeoutExpired):  # no driver
        command = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
        for line in subprocess.run(command, capture_output=True, text=True, timeout=5).stdout.splitlines():
            name, _, mib = line.rpartition(",")
            gpus.append((name, float(mib) / 1024))
    return {"gpus": gpus, "bitsandbytes": importlib.util.find_spec("bitsandbytes") is not None}


def counted(answers: list[dict]) -> list[list]:
    """[name, GiB, how many] of each sort of GPU in the nodes' answers (`look`), the smallest first."""
    found = [(gib, name) for answer in answers for name, gib in answer["gpus"]]
    return [[name, round(gib, 1), found.count((gib, name))] for gib, name in sorted(set(found))]


def smallest(found: list, resources: dict | None = None) -> tuple[str, float] | None:
    """(name, GiB) of the smallest GPU that workers with these `resources` can get, of those `found` ((name, GiB, …) each).

    Of a kind that the resources pin (accelerator_type:L40S, anyscale/accelerator_shape:4xL40S) only that one counts, and where none
    of it is up yet, what is published. None: not known.
    """
    pins = [re.sub(r"^\d+x", "", name.rpartition(":")[2]) for name in resources or {} if "accelerator_" in name]
    if pins:
        there = [one for one in found if any(holds(one[0], pin.partition("-")[0]) for pin in pins)]
        found = there or [(pin, KINDS[kind(pin)][0]) for pin in pins if kind(pin)]
    return min(((one[0], one[1]) for one in found), key=lambda one: one[1], default=None)


def without_bitsandbytes(config: dict, there: bool | None, brought: str = "") -> list[Finding]:
    """A FAIL where the config quantises with bitsandbytes and not every node has it (`there` False), nor Ray brings it (`brought`, or
    the config's own runtime_env)."""
    environment = (config.get("ray_init_kwargs") or {}).get("runtime_env") or {}
    other_image = environment.keys() & {"conda", "container", "image_uri"}  # nobody looked into it
    with_it = config.get("quantization_bit") and config.get("quantization_method", "bnb") in ("bnb", "bitsandbytes")
    if not with_it or there is not False or other_image or "bitsandbytes" in f"{brought} {environment}":
        return []
    return [Finding("FAIL", f"quantization_bit {config['quantization_bit']} needs bitsandbytes, which not every node with a GPU has",
                    "pip install bitsandbytes on these nodes, or as a line of the profile's worker_packages; then 01_setup again")]
