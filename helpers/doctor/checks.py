"""Everything that can be known to go wrong before a training is launched, found in seconds: a list of findings with remedies."""

import os
from pathlib import Path

from .. import profiles, secrets
from ..errors import KitError
from . import basics, capacity, nodes, services
from .basics import Finding


def examine(profile: str, storage: str = "", values: dict | None = None) -> list[Finding]:
    """All checks of a profile with these parameters (the notebooks' names); takes less than 20 s, whatever does not answer."""
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
    try:
        found += everywhere(
            loaded, folder, config, data, model if answer and answer[0].status == "OK" else "", shape, values
        )
    except KitError as error:
        found.append(_fail(error))
    return found


def _fail(error: KitError) -> Finding:
    return Finding("FAIL", error.found, error.remedy or error.expected)


def everywhere(
    profile, storage: Path, config: dict, data: dict, model: str, shape: dict | None, values: dict
) -> list[Finding]:
    """The checks that need the cluster: placement, memory, and every node's own answers."""
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
    return (
        found
        + nodes.compare(answers, data)
        + nodes.room(config, shape, answers, there, values.get("accelerated", False))
    )
