"""Secrets that go along with a job: laid into the cluster's control store, and taken out of it by the job's first process.

A job's `env_vars` would be shown in Ray's dashboard and written to every node's runtime_env_agent.log. So they travel the way a job's
package does, through the dashboard's HTTP into the memory of the control store; the job is told a random name only, and what it has
taken is no longer there.
"""

import json
import os
import uuid

from helpers import secrets
from helpers.errors import KitError

NAME = "KTO_PARCEL"
"""The variable that tells a job the name of what was sent along."""


def send(client, values: dict[str, str]) -> dict[str, str]:
    """Lay `values` into the control store; the variable that leads the job there (none where there is nothing to send)."""
    if not values:
        return {}
    name = f"_ray_pkg_{uuid.uuid4().hex}.zip"  # Ray takes packages of this form
    answer = client._do_request("PUT", f"/api/packages/gcs/{name}", data=json.dumps(values).encode())
    if not answer.ok:
        raise KitError(f"the cluster did not take the secrets ({answer.status_code})", "", "submit again")
    return {NAME: name}


def take() -> None:
    """In the job: put what was sent along into this process's environment, and note its names for the workers (secrets.carried)."""
    if not (name := os.environ.pop(NAME, "")):
        return
    from ray._raylet import GcsClient

    store, key = GcsClient(address=os.environ["RAY_ADDRESS"]), f"gcs://{name}".encode()
    if not (found := store.internal_kv_get(key, None)):
        raise KitError("what was sent along with this job is no longer there", "the secrets that `job submit --secret` laid down",
                       "submit again: it goes on where it stopped")
    store.internal_kv_del(key, False, None)
    values = json.loads(found)
    os.environ.update(values, KTO_SECRETS=" ".join(name.removesuffix("_FILE") for name in values))
    secrets.load()
