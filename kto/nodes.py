"""Preflight checks on the cluster: whether workers fit, and what every node reports.

`python -m kto.nodes`: the question as JSON on stdin, the findings on stdout.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path

from helpers import cluster, files, gpus, profiles, secrets, trainer
from helpers.config import BRING_PACKAGES, accelerated
from helpers.errors import Finding, KitError

from . import memory

STAY = ("ray", "torch")
"""A node's own packages that a training uses, where Ray brings it the others."""
PATIENCE = 8.0
"""Seconds that nodes have to answer; one that does not is a finding."""


def tried(check, *given) -> list[Finding]:
    """What `check` finds, or the error that it ends with."""
    try:
        return check(*given)
    except KitError as error:
        return [Finding("FAIL", error.found, error.remedy or error.expected)]


def everywhere(question: dict) -> list[Finding]:
    """Check whether the workers fit, what every node answers, and whether the model fits into the GPUs. Starts no Ray on `local`.

    `question`: profile, storage, data, model, shape, accelerated (as asked), and configs: {file: config} that the profile may take.
    """
    profile, storage = profiles.load(question["profile"]), Path(question["storage"])
    configs = question["configs"]
    config = next(iter(configs.values()))  # they name the same packages and cluster
    own = (config.get("ray_init_kwargs") or {}).get("runtime_env") or {}
    brought = profile.ray_address != "local" and (profile.worker_packages or BRING_PACKAGES & own.keys())
    names = [row["package"] for row in cluster.packages() if row["package"] in STAY or not brought]
    asked = names, question["data"], question["model"]
    try:
        storage.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=storage, prefix=".doctor-") as mark:  # every node is to see it, and to write in it
            if profile.ray_address == "local":
                (there, more), told = cluster.capacity(profile, config), [("this machine", look(mark, *asked), "")]
            else:
                carried = secrets.carried()
                extra = {"runtime_env": {"worker_process_setup_hook": trainer.worker_setup(carried, False)}} if carried else {}
                with cluster.ray_cluster(profile, **extra) as ray:
                    # Ray sends `look` itself, as this is the main module, and helpers with it (cluster.environment): no node
                    # needs the project.
                    told = cluster.on_each_node(ray, look, mark, *asked, patience=PATIENCE)
                    there, more = cluster.nodes(ray), cluster.to_come()
    except OSError as error:
        raise KitError(f"cannot write to the storage {storage}: {error.strerror}", "", "correct `storage`") from None
    answers = [{"name": name, **answer} for name, answer, why in told if not why]
    found = [Finding("FAIL", f"the node {name} {why}", "look at it, or take it out of the cluster") for name, _, why in told if why]
    # A card that Ray does not know trains nothing: as notebook 1 counts (cluster.resources).
    with_gpus = [answer for (_, answer, why), node in zip(told, there, strict=False) if node.get("GPU") and not why]
    here = gpus.counted(with_gpus)
    if len(configs) > 1:
        name, why = profile.config_for(gpus.smallest(here, config.get("resources_per_worker")))
        config = configs[name]
        found.append(Finding("OK" if here else "WARN", f"the profile takes {name}: {why}"))
    fast, says = accelerated(config, question["accelerated"], question["shape"])
    lines = (profiles.ROOT / profile.worker_packages).read_text() if profile.worker_packages else ""
    found += gpus.without_bitsandbytes(config, all(answer["bitsandbytes"] for answer in with_gpus), lines)
    found += [Finding("OK", says), cluster.placed(config, there, more), *compare(answers, names, question["data"])]
    return found + memory.fits(config, question["shape"], here, fast)


def look(mark: str, names: list[str], data: dict, model: str) -> dict:
    """What one node says of itself: its versions of the packages `names`, its GPUs, the storage's folder `mark`, hashes of the files
    `data`, and what the hub answers for `model`. Empty words: well."""
    hashes, storage = {}, ""
    try:
        tempfile.TemporaryFile(dir=mark).close()
    except FileNotFoundError:
        storage = "does not see what was written there from here"
    except OSError as error:
        storage = f"cannot write there: {error.strerror}"
    for path in data:
        try:
            hashes[path] = files.sha256(path)
        except OSError as error:
            hashes[path] = f"cannot be read: {error.strerror}"
    return {
        "python": ".".join(map(str, sys.version_info[:2])), "storage": storage, "data": hashes, **gpus.look(),
        "versions": cluster.installed(names),
        "free": shutil.disk_usage("/").free / cluster.GIB,
        "hub": files.from_hub(model)[0] if model else None,
    }


def compare(answers: list[dict], names: list[str], data: dict) -> list[Finding]:
    """Compare the nodes' answers with this machine."""
    mine = cluster.installed(names)
    python, found = ".".join(map(str, sys.version_info[:2])), []

    def judge(well: str, wrong: list[str], remedy: str, status: str = "FAIL") -> None:
        found.append(Finding(status, "; ".join(wrong), remedy) if wrong else Finding("OK", well))

    what = "the packages" if len(names) > len(STAY) else f"the {' and '.join(names)}"
    judge(f"every node has {what} and the Python that are here",
          [f"{a['name']}: {name} {a['versions'].get(name)} (here: {version})" for a in answers
           for name, version in mine.items() if a["versions"].get(name) != version]
          + [f"{a['name']}: Python {a['python']}" for a in answers if a["python"] != python],
          "install the same on every node: make install-cluster, or one image for all")
    shared = "set `storage` to a folder that every node mounts"
    judge("the storage is writable from every node, and the same on all",
          [f"{a['name']} {a['storage']}" for a in answers if a["storage"]], shared)
    judge(f"at least {min((a['free'] for a in answers), default=0):.0f} GiB are free on every node",
          [f"{a['name']} has {a['free']:.1f} GiB free" for a in answers if a["free"] < 3], "free some space")
    if data:
        said = [(a["name"], Path(path).name, seen) for a in answers for path, seen in a["data"].items() if seen != data[path]]
        judge("every node reads the dataset, byte for byte",
              [f"{name}: {file} {seen if ' ' in seen else 'differs'}" for name, file, seen in said], shared)
    if any(a["hub"] is not None for a in answers):
        judge("every node gets the model from the hub",
              [f"{a['name']}: {a['hub'] or 'no answer'}" for a in answers if a["hub"] != 200],
              "let the nodes reach the hub, or give the model as a folder on the storage", "WARN")
    return found


if __name__ == "__main__":
    print(json.dumps(tried(everywhere, json.load(sys.stdin))))
