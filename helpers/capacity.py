"""Whether workers can be placed: what each node has, what is pinned, and whether more nodes will come."""

import json
import os
from pathlib import Path

from . import cluster
from .profiles import Profile


def gpus_here() -> int:
    """How many NVIDIA GPUs the driver of this machine shows; 0 without a driver."""
    return len(list(Path("/proc/driver/nvidia/gpus").glob("*")))


def nodes(ray) -> list[dict]:
    """Resources of each live node: everything, whether or not it is in use."""
    return [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]


def machine(config: dict) -> dict:
    """What a Ray instance that the training starts on this machine counts as its own."""
    own = config.get("ray_init_kwargs") or {}
    counted = {"CPU": own.get("num_cpus", os.cpu_count()), "GPU": own.get("num_gpus", gpus_here())}
    return (own.get("resources") or {}) | counted


def there_and_to_come(profile: Profile, config: dict) -> tuple[list[dict], dict | None]:
    """The nodes' resources and what more may come (`to_come`), of the cluster on which `config` would be launched.

    For a Ray of its own nothing is started here: it will have what `machine` says, and the kind of GPU is taken to be as pinned.
    """
    if (config.get("ray_init_kwargs") or {}).get("address", profile.ray_address) == "local":
        kinds = [name for name in config.get("resources_per_worker") or {} if name.startswith("accelerator_type:")]
        return [dict.fromkeys(kinds, 1) | machine(config)], None
    with cluster.ray_cluster(profile) as ray:
        return nodes(ray), to_come()


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


def slots(need: dict, there: list[dict]) -> int:
    """How many workers of `need` fit on the nodes, each on one of them."""
    asked = {name: amount for name, amount in need.items() if amount}
    if not asked:
        return 10**6
    return sum(min(int(node.get(name, 0) / amount + 1e-9) for name, amount in asked.items()) for node in there)


def placed(config: dict, there: list[dict], more: dict | None) -> tuple[str, str, str]:
    """(OK, WARN or FAIL; what was found; what to do) for the workers that `config` asks for."""
    workers, need = config.get("ray_num_workers", 1), config.get("resources_per_worker") or {"GPU": 1}
    fit = min(slots(need, there), workers)
    total = {name: sum(node.get(name, 0) for node in there) for name in need}
    says = f"{workers} workers of {', '.join(f'{amount:g} {name}' for name, amount in need.items())}"
    cpus = sum(node.get("CPU", 0) for node in there)
    if fit == workers and cpus >= workers * need.get("CPU", 0) + 1:
        return "OK", f"{says} fit (nodes: {len(there)})", ""
    lacking = [name for name in need if not total[name]] or [n for n in need if total[n] < workers * need[n]] or ["CPU"]
    here = ", ".join(f"{name} {amount:g}" for name, amount in total.items())
    trainer = " beside Ray Train's trainer, which takes one CPU" if fit == workers else ""
    found = f"{says} are asked for{trainer}, {fit - bool(trainer)} fit (nodes: {len(there)}; {here}); lacking: {', '.join(lacking)}"
    if more is None:
        return "FAIL", f"{found}; the cluster is fixed, no more will come", _remedy(lacking, there)
    never = [name for name in need if more and more.get(name, 0) < workers * need[name]]
    if never:
        most = ", ".join(f"{name} {more.get(name, 0):g}" for name in never)
        return "FAIL", f"{found}; the autoscaler may never have more than {most}", _remedy(never, [more])
    limits = "far enough for this" if more else "how far it does not say"
    return (
        "WARN",
        f"{found}; the cluster scales, {limits}",
        "launch: the nodes come when they are asked for, in minutes",
    )


def _remedy(lacking: list[str], there: list[dict]) -> str:
    pins = sorted(
        {
            name
            for node in there
            for name in node
            if name.startswith(("accelerator_type:", "anyscale/accelerator_shape:"))
        }
    )
    if any(name.startswith(("accelerator_type:", "anyscale/")) for name in lacking):
        return f"take the pin out of resources_per_worker, or name one of: {', '.join(pins) or 'none is there'}"
    return "lower ray_num_workers, or add nodes" + ("" if "GPU" not in lacking else " with GPUs")
