"""The checks that need the cluster.

`python -m helpers.doctor.join`: on stdin a line of JSON with the cluster to join, then the rest of the question; the findings on
stdout.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path

from .. import profiles, secrets
from ..errors import Finding, KitError
from ..process.workers import first_steps
from . import basics, capacity, nodes


def everywhere(profile, config: dict, question: Callable[[], list]) -> list[Finding]:
    """Placement, memory, and every node's own answers.

    `question()`, asked for once the cluster is joined: the storage, the data (path -> SHA-256 here), the model that nodes are to
    get from the hub ("" for none), its shape (its config.json) or None, and whether the launch is the accelerated one.
    """
    carried = secrets.carried()
    extra = {"runtime_env": {"worker_process_setup_hook": first_steps(carried, cluster=False)}} if carried else {}
    own = config.get("ray_init_kwargs") or {}
    with basics.ray_cluster(profile, num_cpus=own.get("num_cpus") or 3, **extra) as ray:
        there = capacity.nodes(ray)
        if profile.ray_address == "local":
            there = [there[0] | capacity.machine(config)]
        more = None if profile.ray_address == "local" else capacity.to_come()
        found = [Finding(*capacity.placed(config, there, more))]
        storage, data, model, shape, accelerated = question()
        answers, silent = nodes.ask(ray, Path(storage), data, model)
    for name in silent:
        found.append(
            Finding(
                "FAIL",
                f"{name} did not answer within {nodes.PATIENCE:g} s",
                "look at it, or take it out of the cluster",
            )
        )
    return found + nodes.compare(answers, data) + nodes.room(config, shape, answers, there, accelerated)


def main() -> None:
    profile, config = json.loads(sys.stdin.readline())
    try:
        found = everywhere(profiles.load(profile), config, lambda: json.load(sys.stdin))
    except KitError as error:
        found = [Finding("FAIL", error.found, error.remedy or error.expected)]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
