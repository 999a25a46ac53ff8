"""Whether workers can be placed: what each node has, what is pinned, and whether more nodes will come."""

import json
import os
from pathlib import Path

from . import cluster
from .errors import Finding
from .profiles import Profile


def there_and_to_come(profile: Profile, config: dict) -> tuple[list[dict], dict | None]:
    """The nodes' resources and what more may come (`to_come`), of the cluster on which `config` would be launched.

    For a Ray of its own nothing is started here: it will have what `machine` says, and the kind of GPU is taken to be as pinned.
    """
    if (config.get("ray_init_kwargs") or {}).get("address", profile.ray_address) == "local":
        kinds = [name for name in config.get("resources_per_worker") or {} if name.startswith("accelerator_type:")]
        return [dict.fromkeys(kinds, 1) | machine(config)], None
    with cluster.ray_cluster(profile) as ray:
        return nodes(ray), to_come()


def nodes(ray) -> list[dict]:
    """Resources of each live node: everything, whether or not it is in use."""
    return [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]


def machine(config: dict) -> dict:
    """What a Ray instance that the training starts on this machine counts as its own."""
    own, gpus = config.get("ray_init_kwargs") or {}, len(list(Path("/proc/driver/nvidia/gpus").glob("*")))
    counted = {"CPU": own.get("num_cpus", os.cpu_count()), "GPU": own.get("num_gpus", gpus)}
    return (own.get("resources") or {}) | counted


def to_come() -> dict | None:
    """None: a fixed cluster. Else the most of each resource that it may ever have; {} where an autoscaler does not say.

    The newer autoscaler reports its node groups and their limits. The older one publishes a status every few seconds; on a fixed
    cluster its read-only stand-in calls a node's type node_<id>, an autoscaler by a name of its configuration.
    """
    from ray._private import state
    from ray.experimental.internal_kv import _internal_kv_get

    if most := state.state.get_max_resources_from_cluster_config():
        return most
    report = json.loads(_internal_kv_get("__autoscaling_status") or b"{}").get("autoscaler_report") or {}
    kinds = {*(report.get("node_type_mapping") or {}).values(), *(report.get("active_nodes") or {})}
    return {} if any(not kind.startswith("node_") for kind in kinds) else None


def placed(config: dict, there: list[dict], more: dict | None) -> Finding:
    """Whether the workers that `config` asks for fit on nodes with the resources `there`; `more`: see `to_come`."""
    workers, need = config.get("ray_num_workers", 1), config.get("resources_per_worker") or {"GPU": 1}
    need = {name: amount for name, amount in need.items() if amount}
    total = {name: sum(node.get(name, 0) for node in there) for name in {**need, "CPU": 0}}
    # Each worker takes all that it needs from one node; Ray Train's own process takes one CPU besides.
    slots = [min([int(node.get(name, 0) / amount + 1e-9) for name, amount in need.items()], default=workers) for node in there]
    fit = min(sum(slots), workers)
    says = f"{workers} workers of {', '.join(f'{amount:g} {name}' for name, amount in need.items())}"
    if fit == workers and total["CPU"] >= workers * need.get("CPU", 0) + 1:
        return Finding("OK", f"{says} fit (nodes: {len(there)})")
    lacking = [name for name in need if total[name] < workers * need[name]] or ["CPU"]
    lacking = [name for name in lacking if not total[name]] or lacking
    trainer = " beside Ray Train's trainer, which takes one CPU" if fit == workers else ""
    here = ", ".join(f"{name} {total[name]:g}" for name in need)
    found = f"{says} are asked for{trainer}, {fit - bool(trainer)} fit (nodes: {len(there)}; {here}); lacking: {', '.join(lacking)}"
    if more is None:
        return Finding("FAIL", f"{found}; the cluster is fixed, no more will come", _remedy(lacking, there))
    if never := [name for name in need if more and more.get(name, 0) < workers * need[name]]:
        most = ", ".join(f"{name} {more.get(name, 0):g}" for name in never)
        return Finding("FAIL", f"{found}; the autoscaler may never have more than {most}", _remedy(never, [more]))
    limits = "far enough for this" if more else "how far it does not say"
    return Finding("WARN", f"{found}; the cluster scales, {limits}", "launch: the nodes come when they are asked for, in minutes")


def _remedy(lacking: list[str], there: list[dict]) -> str:
    """What to do where `lacking` is not there: about a pinned kind of GPU or node, or about how many there are."""
    pinned = ("accelerator_type:", "anyscale/")
    if any(name.startswith(pinned) for name in lacking):
        pins = {name for node in there for name in node if name.startswith(("accelerator_type:", "anyscale/accelerator_shape:"))}
        return f"take the pin out of resources_per_worker, or name one of: {', '.join(sorted(pins)) or 'none is there'}"
    return f"lower ray_num_workers, or add nodes{' with GPUs' if 'GPU' in lacking else ''}"
