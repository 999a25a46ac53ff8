"""Preflight checks on the cluster: whether the workers fit, and what every node reports about itself.

`python -m kto.nodes`: the question as JSON on stdin, the findings on stdout. What runs on the nodes is sent by value: they need nothing
of this project.
"""

import contextlib
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import uuid
from importlib import metadata
from pathlib import Path

from helpers import cluster, files, profiles, secrets
from helpers.errors import Finding, KitError

from . import memory

PATIENCE = 8.0
"""Seconds that nodes have to answer; one that does not is a finding."""


def everywhere(question: dict) -> list[Finding]:
    """Joins the cluster: do the workers fit, what does every node answer, and does the model fit into its GPUs?"""
    from helpers.cluster import worker_setup

    profile, config, carried = profiles.load(question["profile"]), question["config"], secrets.carried()
    extra = {"runtime_env": {"worker_process_setup_hook": worker_setup(carried, False)}} if carried else {}
    own = config.get("ray_init_kwargs") or {}
    with cluster.ray_cluster(profile, num_cpus=own.get("num_cpus") or 3, **extra) as ray:
        there, more = cluster.nodes(ray), None
        if profile.ray_address == "local":  # what the training's own Ray will count, not this one's
            there = [there[0] | cluster.machine(config)]
        else:
            more = cluster.to_come()
        answers, silent = ask(ray, Path(question["storage"]), question["data"], question["model"])
    found = [cluster.placed(config, there, more)]
    found += [Finding("FAIL", f"the node {name} did not answer within {PATIENCE:g} s",
                      "look at it, or take it out of the cluster") for name in silent]
    found += compare(answers, question["data"])
    gpus = [tuple(gpu) for answer in answers for gpu in answer["gpus"]]
    return found + memory.fits(config, question["shape"], gpus, question["accelerated"])


def ask(ray, storage: Path, data: dict, model: str) -> tuple[list[dict], list[str]]:
    """Every node's answers to `look`, and the addresses of those that gave none in time."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    mark = storage / f".doctor-{uuid.uuid4().hex[:12]}"  # the nodes are to see this folder, and to write in it
    try:
        mark.mkdir(parents=True)
    except OSError as error:
        raise KitError(f"cannot write to the storage {storage}: {error.strerror}", "", "correct `storage`") from None
    alive = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    pin = {node: NodeAffinitySchedulingStrategy(node, soft=False) for node in alive}
    try:
        meeting = ()  # where the nodes are to reach the first one
        if len(alive) > 1:
            with contextlib.suppress(ray.exceptions.GetTimeoutError):
                listener = ray.remote(num_cpus=0)(listen).options(scheduling_strategy=pin[next(iter(alive))])
                meeting = ray.get(listener.remote(), timeout=PATIENCE / 2)
        # Every node looks at itself, at the same time; one that is late or dies is left out.
        task, names = ray.remote(num_cpus=0, max_retries=0)(look), [row["package"] for row in cluster.packages()]
        asked = {task.options(scheduling_strategy=pin[node]).remote(node, str(mark), names, data, meeting, model): node
                 for node in alive}
        done, _ = ray.wait(list(asked), num_returns=len(asked), timeout=PATIENCE)
        answers = {}
        for ref in done:
            node = asked[ref]
            with contextlib.suppress(ray.exceptions.RayError):
                answers[node] = ray.get(ref) | {"name": alive[node]}
                if not answers[node]["storage"] and not (mark / node).is_file():
                    answers[node]["storage"] = "writes to another folder of the same name"
        return list(answers.values()), [address for node, address in alive.items() if node not in answers]
    finally:
        shutil.rmtree(mark, ignore_errors=True)


def look(node: str, mark: str, names: list, data: dict, meeting: tuple, model: str) -> dict:
    """What one node says of itself: versions of the packages `names`, its GPUs, the storage's folder `mark`, hashes of `data`, and
    whether it reaches `meeting` (host, port) and the hub. Empty words: well."""
    places = [place for place in sys.path if "thirdparty_files" not in place]  # ray adds a psutil of its own there
    found = {name: next(iter(metadata.Distribution.discover(name=name, path=places)), None) for name in names}
    try:
        command = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
        lines = subprocess.run(command, capture_output=True, text=True, timeout=5).stdout.splitlines()
        gpus = [(line.rpartition(",")[0], float(line.rpartition(",")[2]) / 1024) for line in lines if "," in line]
    except (OSError, ValueError, subprocess.TimeoutExpired):  # no driver
        gpus = []
    storage = "" if os.path.isdir(mark) else "does not see what was written there from here"
    if not storage:
        try:
            with open(os.path.join(mark, node), "w") as file:
                file.write(node)
        except OSError as error:
            storage = f"cannot write there: {error.strerror}"
    hashes = {}
    for path in data:
        try:
            with open(path, "rb") as file:
                hashes[path] = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            hashes[path] = f"cannot be read: {error.strerror}"
    way = ""
    try:
        if meeting:
            socket.create_connection(tuple(meeting), 3).close()
    except OSError as error:
        way = str(error)
    return {
        "python": ".".join(map(str, sys.version_info[:2])), "gpus": gpus, "storage": storage, "data": hashes,
        "meeting": way,
        "versions": {name: one.version if one else "missing" for name, one in found.items()},
        "free": shutil.disk_usage(mark if os.path.isdir(mark) else "/").free / 2**30,
        "hub": files.from_hub(model)[0] if model else None,
    }


def listen(seconds: float = 20.0) -> tuple:
    """(this node's address, a port) where a thread takes connections for a while."""
    import threading

    import ray

    server = socket.create_server(("", 0))
    server.settimeout(seconds)

    def take():
        with contextlib.suppress(OSError):  # the time is up
            while True:
                server.accept()[0].close()
        server.close()

    threading.Thread(target=take, daemon=True).start()
    return ray.util.get_node_ip_address(), server.getsockname()[1]


def compare(answers: list[dict], data: dict) -> list[Finding]:
    """What the nodes said against what is so here."""
    mine = {row["package"]: row["installed"] for row in cluster.packages()}
    python, found = ".".join(map(str, sys.version_info[:2])), []

    def judge(well: str, wrong: list[str], remedy: str, status: str = "FAIL") -> None:
        found.append(Finding(status, "; ".join(wrong), remedy) if wrong else Finding("OK", well))

    judge("every node has the packages and the Python that are here",
          [f"{a['name']}: {name} {a['versions'][name]} (here: {version})" for a in answers
           for name, version in mine.items() if a["versions"][name] != version]
          + [f"{a['name']}: Python {a['python']}" for a in answers if a["python"] != python],
          "install the same on every node: make install-cluster, or one image for all")
    shared = "set `storage` to a folder that every node mounts"
    judge("the storage is writable from every node, and the same on all",
          [f"{a['name']} {a['storage']}" for a in answers if a["storage"]], shared)
    judge(f"at least {min((a['free'] for a in answers), default=0):.0f} GiB are free on every node",
          [f"{a['name']} has {a['free']:.1f} GiB free" for a in answers if a["free"] < 3], "free some space")
    if data:
        said = [(a["name"], Path(path).name, seen) for a in answers for path, seen in a["data"].items()
                if seen != data[path]]
        judge("every node reads the dataset, byte for byte",
              [f"{name}: {file} {seen if ' ' in seen else 'differs'}" for name, file, seen in said], shared)
    if len(answers) > 1:
        judge("the nodes reach each other", [f"{a['name']}: {a['meeting']}" for a in answers if a["meeting"]],
              "open the ports between the nodes: workers take any above 1024")
    if any(a["hub"] is not None for a in answers):
        judge("every node gets the model from the hub",
              [f"{a['name']}: {a['hub'] or 'no answer'}" for a in answers if a["hub"] != 200],
              "let the nodes reach the hub, or give the model as a folder on the storage", "WARN")
    return found


if __name__ == "__main__":
    try:
        rows = everywhere(json.load(sys.stdin))
    except KitError as error:
        rows = [Finding("FAIL", error.found, error.remedy or error.expected)]
    print(json.dumps(rows))
