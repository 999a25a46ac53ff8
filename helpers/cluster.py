"""Inspect this machine and the profile's Ray cluster: packages, disk, nodes, whether workers fit, who can read the data."""

import json
import logging
import os
import re
import shutil
import socket
import sys
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

from packaging.version import Version

from . import files, gpus
from .errors import Finding, KitError
from .profiles import ROOT, Profile
from .quiet import silence

GIB = 2**30
LOOPBACK = ("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
"""Set before ray is imported: Ray 2.57 and later turn 127.0.0.1 into the machine's reachable address without it."""
SUPPORTED = {"llamafactory": ("0.9.3", "0.9.5"), "transformers": ("4.52", "4.57"), "ray": ("2.48", "2.60"), "python": ("3.11", "3.12")}
"""The oldest and the newest release that was tried."""


def packages() -> list[dict]:
    """Each direct dependency, but for those of tests: what is required, what is installed, whether that is well. Rows of plain data.

    Well is a version of requirements.txt or of one of locks/, or a supported one. A local part (2.13.0+cpu) does not matter.
    """
    line = re.compile(r"^([\w.-]+)(?:\[[\w,]+\])?==([^\s#;]+)", re.M)  # name==version
    locks = [ROOT / "requirements.txt", *sorted((ROOT / "locks").glob("*.lock"))]
    pins, rows = [dict(line.findall(path.read_text().partition("# tests and development")[0])) for path in locks], []
    for name, version in installed(pins[0]).items():
        required, well = pins[0][name], version.split("+")[0] in {pinned.get(name) for pinned in pins}
        if name in SUPPORTED:
            required, well = " to ".join(SUPPORTED[name]), version != "missing" and not outside(name, version)
        rows.append({"package": name, "required": required, "installed": version, "ok": well})
    return rows


def installed(names) -> dict[str, str]:
    """The version of each of these packages here, or `missing`."""
    places = [place for place in sys.path if "thirdparty_files" not in place]  # ray, once imported, adds its own psutil there
    found = {name: metadata.Distribution.discover(name=name, path=places) for name in names}
    return {name: next((one.version for one in there), "missing") for name, there in found.items()}


def outside(name: str, version: str) -> str:
    """`older` or `newer` than the supported range; empty within it, and for a package that has none."""
    oldest, newest = (Version(bound).release for bound in SUPPORTED.get(name, (version, version)))
    release = Version(version).release
    return "older" if release < oldest else "newer" if release[: len(newest)] > newest else ""


def refuse_unsupported(rows: list[dict]) -> list[Finding]:
    """What nobody has tried with this stack (WARN), by name, with what to do; empty: all is well. KitError for what it cannot do."""
    install = "run `make install`, or one of locks/ (on a cluster image: make install-cluster)"
    refused, newer, other = [], [], []
    for row in [*rows, {"package": "python", "installed": "{}.{}".format(*sys.version_info), "ok": True}]:
        name, version = row["package"], row["installed"]
        if version == "missing":
            refused.append(f"{name} is not installed")
        elif side := outside(name, version):
            what = f"{name} {version} is {side} than what was tried ({' to '.join(SUPPORTED[name])})"
            (newer if name == "ray" and side == "newer" else refused).append(what)
        elif not row["ok"]:
            other.append(f"{name} {version} (required: {row['required']})")
    if refused:
        raise KitError("; ".join(refused), "a supported stack: README, *Where it runs*", install)
    found = [Finding("WARN", what, "watch curves and checkpoints") for what in newer]
    if any(row["package"] == "llamafactory" and row["installed"].startswith("0.9.5") for row in rows):
        found.append(Finding("WARN", "with LLaMA-Factory 0.9.5 its own trainer trains: the accelerator was not tried with it",
                             "for the accelerator take 0.9.3 or 0.9.4"))
    return found + ([Finding("WARN", f"other versions than those tried together: {', '.join(other)}", install)] if other else [])


def disk(storage: Path, needed_gib: float = 3.0) -> float:
    """Free GiB at `storage`, which need not exist yet. KitError if less than `needed_gib`."""
    there = next(folder for folder in (storage, *storage.parents) if folder.exists())
    free = shutil.disk_usage(there).free / GIB
    if free < needed_gib:
        raise KitError(f"{free:.1f} GiB of disk are free in {there}",
                       f"{needed_gib:g} GiB for the base model, checkpoints and the merged model",
                       "free some space, or choose another `storage`")
    return free


@contextmanager
def ray_cluster(profile: Profile, num_cpus: int = 3, **kwargs):
    """Ray, connected as the profile says: a new instance for `local`, the running cluster otherwise. Disconnected at the end.

    Quiet: the workers' output is not forwarded. KitError where no cluster answers, within seconds. `kwargs`: for ray.init.
    """
    address, kwargs = profile.ray_address, kwargs | {"runtime_env": environment(profile.ray_address, kwargs.get("runtime_env"))}
    if address == "local":
        os.environ.setdefault(*LOOPBACK)
        kwargs = {"num_cpus": num_cpus, "include_dashboard": False, "_node_ip_address": "127.0.0.1"} | kwargs
    elif address == "auto":
        last = Path("/tmp/ray/ray_current_cluster")
        address = os.environ.get("RAY_ADDRESS") or (last.read_text().strip() if last.is_file() else address)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # Ray forks, which tokenizers would warn of
    logging.getLogger("ray.widgets.util").setLevel(logging.ERROR)  # it misses ipywidgets in a notebook
    try:
        host, _, port = address.removeprefix("ray://").rpartition(":")
        if host:  # asked first, because Ray itself would try for 35 seconds and more
            socket.create_connection((host, int(port)), 3).close()
        with silence():
            import ray

            ray.init(address=profile.ray_address, log_to_driver=False, logging_level=logging.ERROR, **kwargs)
    except (OSError, ValueError) as error:
        if address == "local":
            raise
        raise KitError(f"no Ray cluster answers at {address}: {error}", "a running cluster",
                       "start one (ray start --head), correct RAY_ADDRESS, or use the profile local") from None
    try:
        yield ray
    finally:
        ray.shutdown()


def environment(address: str, own: dict | None = None) -> dict:
    """Ray's runtime_env at that address: `own`, and on a cluster what its nodes import of this project, which they need not have."""
    own, ours = dict(own or {}), [str(ROOT / package) for package in ("helpers", "kto_accelerator")]
    return own if address == "local" else own | {"py_modules": [*own.get("py_modules", []), *ours]}


def resources(profile: Profile) -> dict:
    """Nodes, CPUs, GPUs, their kind and the memory in GiB of the cluster that the profile names; `answers`: what each of its nodes
    with a GPU says (gpus.look)."""
    with ray_cluster(profile) as ray:
        total, alive = ray.cluster_resources(), [node for node in ray.nodes() if node["Alive"]]
        theirs = {node["NodeManagerAddress"] for node in alive if node["Resources"].get("GPU")}
        told = on_each_node(ray, gpus.look, patience=30.0) if profile.gpu and theirs else []
    kinds = sorted(name.removeprefix("accelerator_type:") for name in total if name.startswith("accelerator_type:"))
    return {"nodes": len(alive), "CPU": total.get("CPU", 0), "GPU": total.get("GPU", 0),
            "kinds of GPU": ", ".join(kinds) or "none", "memory GiB": round(total.get("memory", 0) / GIB, 1),
            "answers": [answer for node, answer, why in told if node in theirs and not why]}


def read_everywhere(profile: Profile, datasets: Path, names: list[str]):
    """A table, one row a node and dataset: rows read there, and whether they are, byte for byte, the ones written here.

    KitError shows it where they are not.
    """
    import pandas as pd

    with ray_cluster(profile, num_cpus=1) as ray:
        told = [(name, seen(datasets, name), on_each_node(ray, seen, datasets, name)) for name in names]
    table = pd.DataFrame([{"node": place, "dataset": name, "rows": (answer or [0])[0], "same": answer == mine}
                          for name, mine, answers in told for place, (_, answer, _) in enumerate(answers, 1)])
    if not table["same"].all():
        raise KitError(f"not every node reads the data in {datasets}:\n{table.to_string(index=False)}",
                       "a storage that all nodes share", "set `storage` to a shared folder")
    return table


def on_each_node(ray, function, *given, patience: float | None = None) -> list[tuple]:
    """(address, what `function(*given)` returns there, "") of each live node; where it returns nothing in `patience` seconds, or
    cannot, why."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task, alive = ray.remote(num_cpus=0, max_retries=1)(function), [node for node in ray.nodes() if node["Alive"]]
    pins = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in alive]
    asked = [task.options(scheduling_strategy=pin).remote(*given) for pin in pins]
    ray.wait(asked, num_returns=len(asked), timeout=patience)
    told = []
    for node, answer in zip(alive, asked, strict=True):
        try:
            said, why = ray.get(answer, timeout=0), ""
        except ray.exceptions.GetTimeoutError:
            said, why = None, f"did not answer within {patience:g} s"
        except ray.exceptions.RayError as error:  # it died, or cannot do what it is asked
            said, why = None, f"could not answer: {str(error).strip().splitlines()[-1]}"
        told.append((node["NodeManagerAddress"], said, why))
    return told


def seen(datasets: Path, name: str) -> tuple[int, str]:
    """Rows and sha256 of a dataset as this node sees it; 0 and the error's words where it cannot."""
    try:
        path = files.data_file(datasets, name)
        with path.open("rb") as file:
            return sum(1 for _ in file), files.sha256(path)
    except (OSError, KitError) as error:
        return 0, f"{type(error).__name__}: {error}"


def nodes(ray) -> list[dict]:
    """Resources of each live node: everything, whether or not it is in use."""
    return [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]


def machine(config: dict) -> dict:
    """The resources of the Ray that a training starts on this machine."""
    own, gpus = config.get("ray_init_kwargs") or {}, len(list(Path("/proc/driver/nvidia/gpus").glob("*")))
    return (own.get("resources") or {}) | {"CPU": own.get("num_cpus", os.cpu_count()), "GPU": own.get("num_gpus", gpus)}


def to_come() -> dict | None:
    """None: a fixed cluster. Else the most of each resource that it may ever have; {} where an autoscaler does not say."""
    from ray._private import state
    from ray.experimental.internal_kv import _internal_kv_get

    if most := state.state.get_max_resources_from_cluster_config():
        return most  # the newer autoscaler says it
    # The older one publishes a status. A fixed cluster has one too: there a node's type is called node_<id>.
    report = json.loads(_internal_kv_get("__autoscaling_status") or b"{}").get("autoscaler_report") or {}
    kinds = {*(report.get("node_type_mapping") or {}).values(), *(report.get("active_nodes") or {})}
    return {} if any(not kind.startswith("node_") for kind in kinds) else None


def capacity(profile: Profile, config: dict) -> tuple[list[dict], dict | None]:
    """The nodes' resources and what more may come (`to_come`), of the cluster on which `config` would be launched."""
    if (config.get("ray_init_kwargs") or {}).get("address", profile.ray_address) == "local":
        # Nothing is started for a Ray of its own: it will have what `machine` says, and the kind of GPU is taken to be as pinned.
        kinds = [name for name in config.get("resources_per_worker") or {} if name.startswith("accelerator_type:")]
        return [dict.fromkeys(kinds, 1) | machine(config)], None
    with ray_cluster(profile) as ray:
        return nodes(ray), to_come()


def placed(config: dict, there: list[dict], more: dict | None) -> Finding:
    """Whether the workers that `config` asks for fit on nodes with the resources `there`; `more`: see `to_come`."""
    workers, each = config.get("ray_num_workers", 1), config.get("resources_per_worker") or {"GPU": 1}
    need = {name: amount for name, amount in each.items() if amount}
    total = {name: sum(node.get(name, 0) for node in there) for name in {**need, "CPU": 0}}
    # Each worker takes all that it needs from one node; Ray Train's own process takes one CPU besides.
    fit = sum(min([int(node.get(name, 0) / need[name] + 1e-9) for name in need], default=workers) for node in there)
    says = f"{workers} workers of {', '.join(f'{amount:g} {name}' for name, amount in need.items())}"
    trainer = ""
    if fit >= workers:
        if total["CPU"] >= workers * need.get("CPU", 0) + 1:
            return Finding("OK", f"{says} fit (nodes: {len(there)})")
        trainer, fit = " beside Ray Train's trainer, which takes one CPU", workers - 1
    found = f"{says} are asked for{trainer}, {fit} fit (nodes: {len(there)}; {', '.join(f'{name} {total[name]:g}' for name in need)})"
    limit = total if more is None else more
    lacking = [name for name in need if limit and limit.get(name, 0) < workers * need[name]]
    if more is None:
        found += f"; lacking: {', '.join(lacking or ['CPU'])}; the cluster is fixed, no more will come"
    elif lacking:
        found += f"; the autoscaler may never have more than {', '.join(f'{name} {more.get(name, 0):g}' for name in lacking)}"
    else:
        return Finding("WARN", f"{found}; the cluster scales, {'far enough for this' if more else 'how far it does not say'}",
                       "launch: the nodes come when they are asked for, in minutes")
    return Finding("FAIL", found, "lower ray_num_workers or resources_per_worker (a pinned kind of GPU or node, too), or add nodes")
