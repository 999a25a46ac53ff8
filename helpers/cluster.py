"""This machine and the Ray cluster that a profile names: packages, disk, nodes, whether the workers fit, who can read the data."""

import os
import re
import shutil
import socket
import sys
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

from . import files
from .errors import Finding, KitError
from .profiles import ROOT, Profile
from .quiet import silence

GIB = 2**30
LOOPBACK = ("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
"""Set before ray is imported: Ray 2.57 and later turn 127.0.0.1 into the machine's reachable address without it."""
SUPPORTED = {"llamafactory": ("0.9.3", "0.9.5"), "transformers": ("4.52", "4.57"), "ray": ("2.48", "2.60"), "python": ("3.11", "3.12")}
"""The oldest and the newest release that was tried."""


def packages(requirements: Path = ROOT / "requirements.txt") -> list[dict]:
    """Each direct dependency: what is required, what is installed, whether that is well. Rows of plain data.

    Well is a version of requirements.txt or of one of locks/, or a supported one. A local part (2.13.0+cpu) does not matter.
    """
    places = [place for place in sys.path if "thirdparty_files" not in place]  # ray, once imported, adds its own psutil there
    line = re.compile(r"^([\w.-]+)(?:\[[\w,]+\])?==([^\s#;]+)", re.M)  # name==version
    pins = [dict(line.findall(path.read_text())) for path in (requirements, *sorted((ROOT / "locks").glob("*.lock")))]
    rows = []
    for name, required in pins[0].items():
        found = next(iter(metadata.Distribution.discover(name=name, path=places)), None)
        installed = found.version if found else "missing"
        well = installed.split("+")[0] in {lock.get(name) for lock in pins} or (name in SUPPORTED and compared(name, installed) == 0)
        oldest, newest = SUPPORTED.get(name, (required, required))
        rows.append({"package": name, "required": required if oldest == newest else f"{oldest} to {newest}",
                     "installed": installed, "ok": well})
    return rows


def compared(name: str, version: str) -> int:
    """-1, 0 or 1: `version` is before, within or after the supported range."""
    oldest, newest = SUPPORTED[name]
    numbers = [int(part) for part in re.findall(r"\d+", version.split("+")[0])[:3]]
    low, high = ([int(part) for part in bound.split(".")] for bound in (oldest, newest))
    return -1 if numbers[: len(low)] < low else int(numbers[: len(high)] > high)


def refuse_unsupported(rows: list[dict]) -> list[Finding]:
    """What nobody has tried with this stack (WARN), by name, with what to do; empty: all is well. KitError for what it cannot do."""
    here = {row["package"]: row["installed"] for row in rows} | {"python": "{}.{}".format(*sys.version_info)}
    install = "run `make install`, or one of locks/ (on a cluster image: make install-cluster)"
    missing = [name for name, version in here.items() if version == "missing"]
    grave, found = [f"not installed: {', '.join(missing)}"] if missing else [], []
    for name, (oldest, newest) in SUPPORTED.items():
        version = here.get(name, "missing")
        if version != "missing" and (side := compared(name, version)):
            what = f"{name} {version} is {'older' if side < 0 else 'newer'} than what was tried ({oldest} to {newest})"
            if side < 0 or name != "ray":
                grave.append(what)
            else:
                found.append(Finding("WARN", what, "watch curves and checkpoints"))
    if grave:
        raise KitError("; ".join(grave), "a supported stack: README, *Where it runs*", install)
    if here.get("llamafactory", "").startswith("0.9.5"):
        found.append(Finding("WARN", "LLaMA-Factory 0.9.5 trains, and its runs are watched, found and exported; held-out evaluation "
                             "was not tried with it, and `accelerated: auto` leaves the accelerator off", "take 0.9.3 for both"))
    other = [f"{row['package']} {row['installed']} (required: {row['required']})" for row in rows
             if not row["ok"] and row["installed"] != "missing" and row["package"] not in SUPPORTED]
    return found + ([Finding("WARN", f"other versions than those tried together: {', '.join(other)}", install)] if other else [])


def disk(storage: Path, needed_gib: float = 3.0) -> float:
    """Free GiB where `storage` lies (or will lie). KitError if less than `needed_gib`."""
    there = next(folder for folder in (storage, *storage.parents) if folder.exists())
    free = shutil.disk_usage(there).free / GIB
    if free < needed_gib:
        raise KitError(f"{free:.1f} GiB of disk are free in {there}",
                       f"{needed_gib:g} GiB for the base model, checkpoints and the merged model",
                       "free some space, or choose another `storage`")
    return free


@contextmanager
def ray_cluster(profile: Profile, num_cpus: int = 3, **kwargs):
    """Ray, connected as the profile says: an instance of its own for `local`, the running cluster otherwise; then left.

    Quiet: the workers' output is not forwarded. KitError where no cluster answers, within seconds. `kwargs`: for ray.init.
    """
    import logging

    logging.getLogger("ray.widgets.util").setLevel(logging.ERROR)  # it misses ipywidgets in a notebook
    if profile.ray_address == "local":
        os.environ.setdefault(*LOOPBACK)
    with silence():
        import ray

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # Ray forks, which tokenizers would warn of
    alone = {"num_cpus": num_cpus, "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    own = alone if profile.ray_address == "local" else {}
    refuse_silent(profile.ray_address)
    try:
        with silence():
            ray.init(address=profile.ray_address, log_to_driver=False, logging_level=logging.ERROR, **own, **kwargs)
    except (ConnectionError, ValueError) as error:
        raise silent(repr(profile.ray_address), error) from None
    try:
        yield ray
    finally:
        ray.shutdown()


def silent(address: str, error) -> KitError:
    return KitError(f"no Ray cluster answers at {address}: {error}", "a running cluster",
                    "start one (ray start --head), correct RAY_ADDRESS, or use the profile local")


def refuse_silent(address: str) -> None:
    """KitError where nothing listens at the cluster's address: Ray itself would try for 35 seconds and more."""
    if address == "auto":
        last = Path("/tmp/ray/ray_current_cluster")
        address = os.environ.get("RAY_ADDRESS") or (last.read_text().strip() if last.is_file() else "")
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        try:
            socket.create_connection((host, int(port)), 3).close()
        except OSError as error:
            raise silent(address, error) from None


def resources(profile: Profile) -> dict:
    """Nodes, CPUs, GPUs, their kind and the memory in GiB of the cluster that the profile names."""
    with ray_cluster(profile) as ray:
        total, alive = ray.cluster_resources(), [node for node in ray.nodes() if node["Alive"]]
    kinds = sorted(name.removeprefix("accelerator_type:") for name in total if name.startswith("accelerator_type:"))
    return {"nodes": len(alive), "CPU": total.get("CPU", 0), "GPU": total.get("GPU", 0),
            "kinds of GPU": ", ".join(kinds) or "none", "memory GiB": round(total.get("memory", 0) / GIB, 1)}


def worker_setup(tokens: dict[str, str], on_cluster: bool):
    """The first thing that a worker process does (Ray's worker_process_setup_hook): `tokens` into its environment.

    On a cluster it also names gloo the interface by which Ray reaches the node: gloo would take the one that the machine's own
    name leads to, which on many (Debian's /etc/hosts) is the loopback, where no other node answers.
    """

    def prepare_worker():
        os.environ.update(tokens)
        if on_cluster and "GLOO_SOCKET_IFNAME" not in os.environ:
            import psutil
            import ray

            address = ray.util.get_node_ip_address()
            for interface, known in psutil.net_if_addrs().items():
                if any(one.address == address for one in known):
                    os.environ["GLOO_SOCKET_IFNAME"] = interface

    return prepare_worker


def read_everywhere(profile: Profile, datasets: Path, names: list[str]):
    """A table, one row a node and dataset: rows read there, and whether they are, byte for byte, the ones written here.

    KitError shows it where they are not.
    """
    import pandas as pd

    with ray_cluster(profile, num_cpus=1) as ray:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        probe = ray.remote(num_cpus=0, max_retries=1)(seen)
        alive = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
        pinned_to = [NodeAffinitySchedulingStrategy(node, soft=False) for node in alive]
        answers = ray.get([probe.options(scheduling_strategy=node).remote(datasets, names) for node in pinned_to])
    table = pd.DataFrame([{"node": place, "dataset": name, "rows": answer[name][0], "same": answer[name] == mine}
                          for place, answer in enumerate(answers, 1) for name, mine in seen(datasets, names).items()])
    return refuse_differing(table, datasets)


def refuse_differing(table, datasets: Path):
    """The table, if every node saw the same; KitError that shows it where one did not."""
    if not table["same"].all():
        raise KitError(f"not every node reads the data in {datasets}:\n{table.to_string(index=False)}",
                       "a storage that all nodes share", "set `storage` to a shared folder")
    return table


def seen(datasets: Path, names: list[str]) -> dict[str, tuple[int, str]]:
    """Rows and sha256 of each dataset as this node sees it; 0 and the error's words where it cannot."""
    found = {}
    for name in names:
        try:
            path = files.data_file(datasets, name)
            with path.open("rb") as file:
                found[name] = sum(1 for _ in file), files.sha256(path)
        except (OSError, KeyError, KitError) as error:
            found[name] = 0, f"{type(error).__name__}: {error}"
    return found
