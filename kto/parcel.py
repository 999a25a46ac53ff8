"""Secrets that go along with a job (`kto job submit --secret NAME`).

Not as `env_vars`, which Ray shows in its dashboard and writes to every node's log: they travel like a job's package, through
the dashboard into the memory of the control store. The job is told a random name only, and takes out what is there.
"""

import json
import os
import uuid

from helpers import secrets
from helpers.errors import KitError

NAME = "KTO_PARCEL"
"""The variable that tells a job the name of what was sent along."""


def send(client, names: list[str]) -> dict[str, str]:
    """Lay these variables into the control store; the variable that leads the job there (none for nothing)."""
    if not names:
        return {}
    package = f"_ray_pkg_{uuid.uuid4().hex}.zip"  # Ray takes packages of this form
    values = json.dumps({name: os.environ[name] for name in names}).encode()
    answer = client._do_request("PUT", f"/api/packages/gcs/{package}", data=values)
    if not answer.ok:
        raise KitError(f"the cluster did not take the secrets ({answer.status_code})", "", "submit again")
    return {NAME: package}


def take() -> None:
    """In the job: what was sent along into this process's environment, its names noted for the workers (secrets.carried)."""
    if not (package := os.environ.pop(NAME, "")):
        return
    from ray._raylet import GcsClient

    store, key = GcsClient(address=os.environ["RAY_ADDRESS"]), f"gcs://{package}".encode()
    if not (found := store.internal_kv_get(key, None)):
        raise KitError("what was sent along with this job is no longer there",
                       "the secrets of `kto job submit --secret`", "submit again: the run is resumed where it stopped")
    store.internal_kv_del(key, False, None)
    values = json.loads(found)
    os.environ.update(values, KTO_SECRETS=" ".join(name.removesuffix("_FILE") for name in values))
    secrets.load()
