"""Everything that can be known to go wrong before a training is launched, found in seconds: a list of findings with remedies."""

import json
import subprocess
import sys

from .. import profiles, secrets
from ..errors import KitError
from . import basics, services
from .basics import Finding

LIMIT = 25
"""Seconds until the cluster must have been joined and have answered; usually it takes 5 to 15."""


def examine(profile: str, storage: str = "", values: dict | None = None) -> list[Finding]:
    """All checks of a profile with these parameters (the notebooks' names); 5 to 20 s, 35 where nothing at all answers."""
    from .. import config as configs

    values = dict(values or {})
    loaded = profiles.load(profile)
    found = [
        Finding("FAIL", f"{name} names a file that cannot be read", "correct it, or mount the secret")
        for name in secrets.load()
    ]
    config = configs.template(values.pop("train_config", "") or loaded.train_config) | loaded.overrides
    asked = {key: value for key, value in values.items() if value is not None}
    config |= {key: value for key, value in asked.items() if key not in ("dataset", "overrides")} | asked.get(
        "overrides", {}
    )
    model = values.get("model_name_or_path") or loaded.model_name_or_path
    found += services.here(loaded)
    try:
        folder = profiles.storage_for(loaded, storage)
        found.append(Finding("OK", f"{basics.disk(folder):.0f} GiB of disk are free where runs are kept"))
    except KitError as error:
        return [*found, _fail(error)]
    data, said = services.dataset(folder, values.get("dataset") or loaded.dataset)
    shape, answer = services.base_model(model)
    found += [*said, *answer, *services.mlflow()]
    reach = model if answer and answer[0].status == "OK" else ""
    return found + apart(profile, str(folder), config, data, reach, shape, bool(values.get("accelerated")))


def _fail(error: KitError) -> Finding:
    return Finding("FAIL", error.found, error.remedy or error.expected)


def apart(*asked) -> list[Finding]:
    """What `join.everywhere` finds, in a process of its own: Ray ends one that joins by a node which is lost but not yet missed."""
    command = [sys.executable, "-m", "helpers.doctor.join"]
    try:
        done = subprocess.run(
            command, input=json.dumps(asked), capture_output=True, text=True, cwd=profiles.ROOT, timeout=LIMIT
        )
        return [Finding(*row) for row in json.loads(done.stdout.splitlines()[-1])]
    except subprocess.TimeoutExpired:
        return [Finding("FAIL", f"the cluster was not joined within {LIMIT} s", "look at its head node: ray status")]
    except (IndexError, ValueError):
        found = "Ray ended the process that joined the cluster, as it does where a node has just been lost"
        return [Finding("FAIL", found, "ask again in a minute; then look at the nodes: ray status")]
