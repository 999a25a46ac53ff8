"""Every node of the cluster asked for itself, and its answers compared with what is so here."""

import contextlib
import shutil
import sys
import uuid
from pathlib import Path

from ..errors import Finding, KitError
from . import basics, memory, probe

PATIENCE = 8.0
"""Seconds that nodes have to answer; one that does not is a finding, not a wait."""


def ask(ray, storage: Path, data: dict, model: str) -> tuple[list[dict], list[str]]:
    """Every node's answers to `probe.look`, and the names of those that gave none in time."""
    from ray import cloudpickle
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    cloudpickle.register_pickle_by_value(probe)
    alive = [(node["NodeID"], node["NodeManagerAddress"]) for node in ray.nodes() if node["Alive"]]
    pin = {node: NodeAffinitySchedulingStrategy(node, soft=False) for node, _ in alive}
    mark = f".doctor-{uuid.uuid4().hex[:12]}"
    try:
        (storage / mark).mkdir(parents=True)
    except OSError as error:
        raise KitError(f"cannot write to the storage {storage}: {error.strerror}", "", "correct `storage`") from None
    try:
        meeting = ()
        if len(alive) > 1:
            with contextlib.suppress(ray.exceptions.GetTimeoutError):
                listener = ray.remote(num_cpus=0)(probe.listen).options(scheduling_strategy=pin[alive[0][0]])
                meeting = ray.get(listener.remote(), timeout=PATIENCE / 2)
        look = ray.remote(num_cpus=0, max_retries=0)(probe.look)
        names = [row["package"] for row in basics.packages()]
        asked = {}
        for node, address in alive:
            there = look.options(scheduling_strategy=pin[node])
            asked[there.remote(node, str(storage), mark, names, data, meeting, model)] = node, address
        done, _ = ray.wait(list(asked), num_returns=len(asked), timeout=PATIENCE)
        answers = []
        for ref in done:
            with contextlib.suppress(ray.exceptions.RayError):
                answers.append(ray.get(ref) | {"name": asked[ref][1]})
                if not answers[-1]["storage"] and not (storage / mark / asked[ref][0]).is_file():
                    answers[-1]["storage"] = "writes to another folder of the same name"
        told = {answer["name"] for answer in answers}
        return answers, [f"the node {address}" for _, address in asked.values() if address not in told]
    finally:
        shutil.rmtree(storage / mark, ignore_errors=True)


def compare(answers: list[dict], data: dict) -> list[Finding]:
    """What the nodes said against what is so here."""
    mine = {row["package"]: row["installed"] for row in basics.packages()}
    found = []

    def judge(well: str, wrong: list[str], remedy: str, status: str = "FAIL") -> None:
        found.append(Finding(status, "; ".join(wrong), remedy) if wrong else Finding("OK", well))

    python = ".".join(map(str, sys.version_info[:2]))
    judge(
        "every node has the packages and the Python that are here",
        [f"{a['name']}: {name} {a['versions'][name]} (here: {version})" for a in answers for name, version in mine.items()
         if a["versions"][name] != version] + [f"{a['name']}: Python {a['python']}" for a in answers if a["python"] != python],
        "install the same on every node: make install-cluster, or one image for all",
    )  # fmt: skip
    judge(
        "the storage is writable from every node, and the same on all",
        [f"{a['name']} {a['storage']}" for a in answers if a["storage"]],
        "set `storage` to a folder that every node mounts",
    )
    judge(
        f"at least {min((a['free'] for a in answers), default=0):.0f} GiB are free on every node",
        [f"{a['name']} has {a['free']:.1f} GiB free" for a in answers if a["free"] < 3],
        "free some space",
    )
    if data:
        said = [
            (a["name"], Path(path).name, seen)
            for a in answers
            for path, seen in a["data"].items()
            if seen != data[path]
        ]
        judge(
            "every node reads the dataset, byte for byte",
            [f"{name}: {file} {seen if ' ' in seen else 'differs'}" for name, file, seen in said],
            "set `storage` to a folder that every node mounts",
        )
    if len(answers) > 1:
        judge(
            "the nodes reach each other",
            [f"{a['name']}: {a['meeting']}" for a in answers if a["meeting"]],
            "open the ports between the nodes: workers take any above 1024",
        )
    if any(a["hub"] is not None for a in answers):
        judge(
            "every node gets the model from the hub",
            [f"{a['name']}: {a['hub'] or 'no answer'}" for a in answers if a["hub"] != 200],
            "let the nodes reach the hub, or give the model as a folder on the storage",
            "WARN",
        )
    return found


def room(config: dict, shape: dict | None, answers: list[dict], there: list[dict], accelerated: bool) -> list[Finding]:
    """The memory that the config takes of a GPU against the least that a GPU here has (or that a pinned kind has)."""
    if not (config.get("resources_per_worker") or {"GPU": 1}).get("GPU"):
        return []
    kinds = {gpu for a in answers for gpu in map(tuple, a["gpus"])}
    pins = [
        name.rpartition(":")[2].rpartition("x")[2] for name in config.get("resources_per_worker") or {} if ":" in name
    ]
    sizes = [gib for _, gib in kinds] or [memory.KNOWN[kind] * 0.93 for kind in pins if kind in memory.KNOWN]
    if not shape or "intermediate_size" not in shape:
        return [Finding("WARN", "how much memory is needed is not known: the model's config.json could not be read")]
    parts = memory.estimate(config, shape, accelerated)
    needs = sum(parts.values()) + 1.0
    listed = ", ".join(f"{name} {gib:.1f}" for name, gib in parts.items() if gib >= 0.05)
    says = f"{needs:.0f} GiB of a GPU are needed at most ({listed}, driver 1)"
    if not sizes:
        return [Finding("WARN", f"{says}; no GPU is there yet to compare with")]
    least = min(sizes)
    says += f"; the smallest has {least:.0f} ({', '.join(sorted({name for name, _ in kinds})) or ', '.join(pins)})"
    if needs > least:
        remedy = "per_device_train_batch_size or cutoff_len down, or -p train_config=kto_qlora.yaml or kto_lora_deepspeed.yaml"
        return [Finding("FAIL", says, remedy)]
    return [Finding("WARN" if needs > 0.9 * least else "OK", says)]
