"""The checks that need the cluster. `python -m helpers.doctor.join`: what to look at as JSON on stdin, the findings on stdout."""

import json
import os
import sys
from pathlib import Path

from .. import profiles, secrets
from ..errors import KitError
from . import basics, capacity, nodes
from .basics import Finding


def everywhere(
    profile, storage: Path, config: dict, data: dict, model: str, shape: dict | None, accelerated: bool
) -> list[Finding]:
    """Placement, memory, and every node's own answers."""
    carried = secrets.carried()
    extra = {"runtime_env": {"worker_process_setup_hook": secrets.setter(carried)}} if carried else {}
    own = config.get("ray_init_kwargs") or {}
    with basics.ray_cluster(profile, num_cpus=own.get("num_cpus") or 3, **extra) as ray:
        there = capacity.nodes(ray)
        if profile.ray_address == "local":
            there = [
                there[0] | {"CPU": own.get("num_cpus", os.cpu_count()), "GPU": own.get("num_gpus", basics.gpus_here())}
            ]
        more = None if profile.ray_address == "local" else capacity.to_come()
        found = [Finding(*capacity.placed(config, there, more))]
        answers, silent = nodes.ask(ray, storage, data, model)
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
    profile, storage, *rest = json.load(sys.stdin)
    try:
        found = everywhere(profiles.load(profile), Path(storage), *rest)
    except KitError as error:
        found = [Finding("FAIL", error.found, error.remedy or error.expected)]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
