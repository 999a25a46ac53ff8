"""Preflight checks: what would make a training run fail, each with its fix.

This machine, the registry, the hub and MLflow are asked here; a cluster and its nodes in a process of their own (kto.nodes),
because Ray ends one that joins by a node which has just been lost.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from helpers import chat_template, cluster, files, own_yaml, profiles, secrets
from helpers import config as configs
from helpers.errors import Finding
from helpers.runs import settle

from . import nodes
from .nodes import tried

LIMIT = 18.0
"""Seconds for everything; usually it takes 6."""


def examine(profile: str, storage: str = "", values: dict | None = None) -> list[Finding]:
    """All checks of a profile with these parameters (the notebooks' names)."""
    until, loaded = time.monotonic() + LIMIT, profiles.load(profile)
    values = values or {}
    found = [Finding("FAIL", f"{name} names a file that cannot be read", "correct it, or mount the secret")
             for name in secrets.load()]
    names = [values["train_config"]] if values.get("train_config") else loaded.train_configs
    own = {key: value for key, value in values.items() if key not in ("train_config", "dataset", "overrides", "accelerated")}
    candidates = {name: configs.template(name) | loaded.overrides | own | values.get("overrides", {}) for name in names}
    for config in candidates.values():
        found += tried(lambda config=config: own_yaml.refuse_unfinished(config) or [])
    found += tried(packages)
    found += tried(lambda: [Finding("OK", f"{cluster.disk(profiles.storage_for(loaded, storage)):.0f} GiB of disk are free "
                                          "where runs are kept")])
    if found[-1].status == "FAIL":
        return found
    folder = profiles.storage_for(loaded, storage)
    found += [Finding("WARN", text) for text in settle(folder)]
    model = values.get("model_name_or_path") or loaded.model_name_or_path
    shape, of_hub = base_model(model)
    reach = model if of_hub and of_hub[0].status == "OK" else ""
    local = next((str(path) for path in (Path(model).expanduser(), folder / "models" / model) if path.is_dir()), reach)
    spoken = {"template": loaded.template} | candidates[names[0]] | {"model_name_or_path": local}
    data, registered = dataset(folder, values.get("dataset") or loaded.dataset)
    question = {"profile": profile, "storage": str(folder), "data": data, "shape": shape, "model": reach,
                "configs": {name: config | {"model_name_or_path": local or model} for name, config in candidates.items()},
                "accelerated": values.get("accelerated", "auto")}
    with ThreadPoolExecutor() as at_once:
        tracking = at_once.submit(mlflow)
        fits = at_once.submit(chat_template.asked, spoken, until - time.monotonic()) if local else None
        asked = tried(nodes.everywhere, question) if loaded.ray_address == "local" else on_the_cluster(question, until)
        return [*found, registered, *of_hub, tracking.result(), *asked, *(fits.result() if fits else [])]


def packages() -> list[Finding]:
    """The packages of this machine, judged as notebook 1 judges them."""
    rows = cluster.packages()
    return cluster.refuse_unsupported(rows) or [Finding("OK", f"{len(rows)} packages here are as pinned")]


def dataset(storage: Path, name: str) -> tuple[dict, Finding]:
    """{file of a registered dataset: its hash here}; one that is not registered yet is looked for where 02_data takes it from."""
    known = files.registry(storage / "datasets")
    if name in known:
        path = files.data_file(storage / "datasets", name)
        return {str(path): files.sha256(path)}, Finding("OK", f"the dataset {name!r} is registered")
    template = profiles.ROOT / "dataset-configs" / f"{name}.json"
    if Path(name).is_file() or template.is_file() or "://" in name or name.count("/") == 1:
        return {}, Finding("OK", f"the dataset {name!r} is not registered yet; 02_data fetches, checks and registers it")
    return {}, Finding("FAIL", f"there is no dataset {name!r}",
                       f"give a file, an address, or one of: {', '.join(known) or 'none registered yet'}")


def base_model(model: str) -> tuple[dict | None, list[Finding]]:
    """The model's config.json, from its folder or the hub, with what the hub says to the token of the environment."""
    local = Path(model).expanduser() / "config.json"
    if local.is_file():
        return files.read_json(local), []
    if "/" not in model or model.startswith((".", "/", "~")):
        return None, []
    code, text = files.from_hub(model)
    token = "the token in HF_TOKEN" if os.environ.get("HF_TOKEN") else "no token (HF_TOKEN is not set)"
    if code == 200:
        with contextlib.suppress(ValueError):
            return json.loads(text), [Finding("OK", f"the hub gives {model} to {token}")]
    licence = (f"the hub refuses {model} to {token} ({code})",
               "accept the licence on the model's page, and set HF_TOKEN or HF_TOKEN_FILE")
    away = (f"the hub did not answer for {model} ({code or text})",
            "look at HF_ENDPOINT and the network, or give a folder that every node sees")
    unknown = (f"the hub knows no model {model}", "correct model_name_or_path")
    return None, [Finding("FAIL", *{401: licence, 403: licence, 404: unknown}.get(code, away))]


def mlflow() -> Finding:
    """Whether the MLflow server of the environment answers and lets us in."""
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    if not uri.startswith("http"):
        return Finding("OK", "MLflow: no server of its own is asked for")
    import requests

    token, user = os.environ.get("MLFLOW_TRACKING_TOKEN"), os.environ.get("MLFLOW_TRACKING_USERNAME")
    shown, headers = secrets.mask(uri), {"Authorization": f"Bearer {token}"} if token else {}
    login = (user, os.environ.get("MLFLOW_TRACKING_PASSWORD", "")) if user and not token else None
    try:
        answer = requests.post(f"{uri.rstrip('/')}/api/2.0/mlflow/experiments/search", json={"max_results": 1},
                               timeout=5, headers=headers, auth=login)
    except requests.RequestException as error:
        return Finding("WARN", f"MLflow at {shown} does not answer ({type(error).__name__})",
                       "start it (make mlflow); without it nothing is lost: `kto track RUN` sends it later")
    if answer.ok:
        return Finding("OK", f"MLflow at {shown} answers and lets us in")
    return Finding("FAIL", f"MLflow at {shown} refuses ({answer.status_code})",
                   "correct MLFLOW_TRACKING_URI, or set MLFLOW_TRACKING_TOKEN, or _USERNAME and _PASSWORD")


def on_the_cluster(question: dict, until: float) -> list[Finding]:
    """The findings of kto.nodes, run in a separate process; one finding if it does not answer in time."""
    try:
        done = subprocess.run([sys.executable, "-m", "kto.nodes"], input=json.dumps(question), text=True, cwd=profiles.ROOT,
                              stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=max(1.0, until - time.monotonic()))
        return [Finding(*row) for row in json.loads(done.stdout.splitlines()[-1])]
    except (subprocess.TimeoutExpired, IndexError, ValueError):
        return [Finding("FAIL", f"the cluster was not joined, or did not answer, within {LIMIT:g} s",
                        "look at its nodes: ray status; where one was just lost, ask again in a minute")]
