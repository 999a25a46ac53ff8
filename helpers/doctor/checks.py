"""Everything that can be known to go wrong before a training is launched, found in seconds: a list of findings with remedies."""

import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .. import profiles, secrets
from ..errors import Finding, KitError
from . import basics, services

LIMIT = 18.0
"""Seconds until the cluster must have been joined and every node have answered; usually it takes 5."""


def examine(profile: str, storage: str = "", values: dict | None = None) -> list[Finding]:
    """All checks of a profile with these parameters (the notebooks' names); usually 6 s, and 20 where nothing at all answers."""
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
    with Joining(profile, config) as joining, ThreadPoolExecutor() as side_by_side:
        tracking = side_by_side.submit(services.mlflow)
        shape, answer = services.base_model(model)
        data, said = services.dataset(folder, values.get("dataset") or loaded.dataset)
        found += [*said, *answer, *tracking.result()]
        reach = model if answer and answer[0].status == "OK" else ""
        return found + joining.findings(folder, data, reach, shape, bool(values.get("accelerated")))


def _fail(error: KitError) -> Finding:
    return Finding("FAIL", error.found, error.remedy or error.expected)


class Joining:
    """What `join.everywhere` finds, in a process of its own: Ray ends one that joins by a node which is lost but not yet missed.

    It joins the cluster while the hub and MLflow are asked, and is told the rest of the question by `findings`.
    """

    def __init__(self, profile: str, config: dict):
        self.until = time.monotonic() + LIMIT
        self.process = subprocess.Popen([sys.executable, "-m", "helpers.doctor.join"], text=True, cwd=profiles.ROOT,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)  # fmt: skip
        self.process.stdin.write(json.dumps([profile, config]) + "\n")
        self.process.stdin.flush()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate()

    def findings(self, storage: Path, *asked) -> list[Finding]:
        """Its findings, or the one that there is none by the time that it has."""
        try:
            said, _ = self.process.communicate(json.dumps([str(storage), *asked]), max(1.0, self.until - time.monotonic()))
            return [Finding(*row) for row in json.loads(said.splitlines()[-1])]
        except subprocess.TimeoutExpired:
            found = f"the cluster was not joined, or did not answer, within {LIMIT:g} s"
            return [Finding("FAIL", found, "look at its head node: ray status")]
        except (IndexError, ValueError):
            found = "Ray ended the process that joined the cluster, as it does where a node has just been lost"
            return [Finding("FAIL", found, "ask again in a minute; then look at the nodes: ray status")]
