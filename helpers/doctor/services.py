"""What is asked of this machine, the storage's registry, the hub and MLflow: no cluster is needed."""

import contextlib
import json
import os
from pathlib import Path

from .. import profiles, secrets
from ..errors import Finding
from . import basics, probe


def here(profile) -> list[Finding]:
    """The packages of this machine against the pins; on a cluster's image, torch and ray may differ."""
    rows = basics.packages()
    wrong = [row for row in rows if not row["ok"]]
    if not wrong:
        return [Finding("OK", f"{len(rows)} packages here are as pinned")]
    images = profile.ray_address != "local"
    excused = images and all(row["package"] in ("torch", "ray") and row["installed"] != "missing" for row in wrong)
    says = ", ".join(f"{row['package']} {row['installed']} (pinned: {row['required']})" for row in wrong)
    remedy = "" if excused else "make install (on a cluster image: make install-cluster)"
    return [Finding("WARN" if excused else "FAIL", f"here: {says}", remedy)]


def dataset(storage: Path, name: str) -> tuple[dict, list[Finding]]:
    """The file of a registered dataset and its hash here; what is not registered yet is found where 02_data will take it from."""
    from ..dataset import registry

    known = registry.entries(storage / "datasets")
    if name in known:
        path = registry.data_file(storage / "datasets", name)
        return {str(path): probe.digest(str(path))}, [
            Finding("OK", f"the dataset {name!r} is registered in {registry.FILE}")
        ]
    if Path(name).is_file() or (profiles.ROOT / "dataset-configs" / f"{name}.json").is_file():
        return {}, [Finding("OK", f"the dataset {name!r} is there; 02_data checks and registers it")]
    if "://" in name or name.count("/") == 1:
        return {}, [Finding("OK", f"the dataset {name!r} is fetched and registered by 02_data; not looked at here")]
    names = ", ".join(known) or "none registered yet"
    return {}, [Finding("FAIL", f"there is no dataset {name!r}", f"give a file, an address, or one of: {names}")]


def base_model(model: str) -> tuple[dict | None, list[Finding]]:
    """The model's config.json, from its folder or the hub, with what the hub says to the token of the environment."""
    local = Path(model).expanduser() / "config.json"
    if local.is_file():
        return json.loads(local.read_text()), []
    if "/" not in model or model.startswith((".", "/", "~")):
        return None, []
    code, text = probe.hub(model)
    token = "the token in HF_TOKEN" if os.environ.get("HF_TOKEN") else "no token (HF_TOKEN is not set)"
    if code == 200:
        with contextlib.suppress(ValueError):
            return json.loads(text), [Finding("OK", f"the hub gives {model} to {token}")]
    if code in (401, 403):
        return None, [Finding("FAIL", f"the hub refuses {model} to {token} ({code})",
                              "accept the licence on the model's page, and set HF_TOKEN or HF_TOKEN_FILE")]  # fmt: skip
    if code == 404:
        return None, [Finding("FAIL", f"the hub knows no model {model}", "correct model_name_or_path")]
    return None, [Finding("FAIL", f"the hub did not answer for {model} ({text if not code else code})",
                          "look at HF_ENDPOINT and the network, or give a folder that every node sees")]  # fmt: skip


def mlflow() -> list[Finding]:
    """Whether the MLflow server of the environment answers and lets us in."""
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    if not uri.startswith("http"):
        return [Finding("OK", "MLflow: the storage's own store, no server is needed")]
    import requests

    token = os.environ.get("MLFLOW_TRACKING_TOKEN")
    user = os.environ.get("MLFLOW_TRACKING_USERNAME")
    shown = secrets.mask(uri)
    try:
        answer = requests.post(f"{uri.rstrip('/')}/api/2.0/mlflow/experiments/search", json={"max_results": 1}, timeout=5,
                               headers={"Authorization": f"Bearer {token}"} if token else {},
                               auth=(user, os.environ.get("MLFLOW_TRACKING_PASSWORD", "")) if user and not token else None)  # fmt: skip
    except requests.RequestException as error:
        return [Finding("WARN", f"MLflow at {shown} does not answer ({type(error).__name__})",
                        "start it (make mlflow); without it nothing is lost: `kto track` sends it later")]  # fmt: skip
    if answer.ok:
        return [Finding("OK", f"MLflow at {shown} answers and lets us in")]
    if answer.status_code in (401, 403):
        remedy = "set MLFLOW_TRACKING_TOKEN, or _USERNAME and _PASSWORD"
        return [Finding("FAIL", f"MLflow at {shown} refuses ({answer.status_code})", remedy)]
    return [Finding("FAIL", f"{shown} answers otherwise than MLflow does ({answer.status_code})", "correct MLFLOW_TRACKING_URI")]
