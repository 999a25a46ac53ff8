"""Packages, disk and the cluster that a profile names."""

import os
import re
import shutil
import socket
import sys
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

from ..errors import KitError
from ..profiles import ROOT, Profile
from ..quiet import silence

GIB = 2**30
LOOPBACK = ("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
"""Set before ray is imported: Ray 2.57 and later turn 127.0.0.1 into the machine's reachable address without it."""


def packages(requirements: Path = ROOT / "requirements.txt") -> list[dict]:
    """Each direct dependency: what is required, what is installed, whether that is well. Rows of plain data.

    A version with a local part (torch 2.13.0+cpu) satisfies the version before the plus.
    """
    places = [
        place for place in sys.path if "thirdparty_files" not in place
    ]  # ray, once imported, adds its own psutil there
    rows = []
    for line in requirements.read_text().splitlines():
        if match := re.match(r"([\w.-]+)(?:\[[\w,]+\])?==([^\s#]+)", line):
            name, required = match.groups()
            found = next(iter(metadata.Distribution.discover(name=name, path=places)), None)
            installed = found.version if found else ""
            rows.append(
                {
                    "package": name,
                    "required": required,
                    "installed": installed or "missing",
                    "ok": installed.split("+")[0] == required,
                }
            )
    return rows


def refuse_wrong_packages(rows: list[dict]) -> None:
    """KitError that lists the packages whose version is not the required one."""
    wrong = [f"{row['package']} {row['installed']} (required: {row['required']})" for row in rows if not row["ok"]]
    if wrong:
        raise KitError(
            f"{len(wrong)} packages differ from what is required: {', '.join(wrong)}",
            "the versions in requirements.txt",
            "run `make install` (on a cluster image: make install-cluster)",
        )


def disk(storage: Path, needed_gib: float = 3.0) -> float:
    """Free GiB where `storage` lies (or will lie). KitError if less than `needed_gib`."""
    there = next(folder for folder in (storage, *storage.parents) if folder.exists())
    free = shutil.disk_usage(there).free / GIB
    if free < needed_gib:
        raise KitError(
            f"{free:.1f} GiB of disk are free in {there}",
            f"{needed_gib:g} GiB for the base model, checkpoints and the merged model",
            "free some space, or choose another `storage`",
        )
    return free


@contextmanager
def ray_cluster(profile: Profile, num_cpus: int = 3, **kwargs):
    """Ray, connected as the profile says: an instance of its own for `local`, the running cluster otherwise; then left.

    Quiet: the workers' output is not forwarded. KitError where no cluster answers, within seconds. `kwargs`: for ray.init.
    """
    import logging

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
        raise KitError(
            f"no Ray cluster answers at {profile.ray_address!r}: {error}",
            "a running cluster",
            "start one (ray start --head), or use the profile local",
        ) from None
    try:
        yield ray
    finally:
        ray.shutdown()


def refuse_silent(address: str) -> None:
    """KitError where nothing listens at the cluster's address: Ray itself would try for 35 seconds and more."""
    last = Path("/tmp/ray/ray_current_cluster")
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS") or (last.read_text().strip() if last.is_file() else "")
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), 3).close()
    except OSError as error:
        raise KitError(
            f"no Ray cluster answers at {address}: {error}",
            "a running cluster",
            "start one (ray start --head), correct RAY_ADDRESS, or use the profile local",
        ) from None


def cluster(profile: Profile) -> dict:
    """Nodes, CPUs, GPUs, their kind and the memory in GiB of the cluster that the profile names."""
    with ray_cluster(profile) as ray:
        resources, nodes = ray.cluster_resources(), [node for node in ray.nodes() if node["Alive"]]
    kinds = sorted(name.removeprefix("accelerator_type:") for name in resources if name.startswith("accelerator_type:"))
    return {
        "nodes": len(nodes),
        "CPU": resources.get("CPU", 0),
        "GPU": resources.get("GPU", 0),
        "kinds of GPU": ", ".join(kinds) or "none",
        "memory GiB": round(resources.get("memory", 0) / GIB, 1),
    }


def gpus_here() -> int:
    """How many NVIDIA GPUs the driver of this machine shows; 0 without a driver."""
    return len(list(Path("/proc/driver/nvidia/gpus").glob("*")))
