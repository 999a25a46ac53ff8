"""Proof that prepared data can be read where the training will run: a Ray task on every node reads it."""

import hashlib
from pathlib import Path

from . import files
from .doctor import ray_cluster
from .errors import KitError
from .profiles import Profile


def read_everywhere(profile: Profile, datasets: Path, names: list[str]):
    """A table, one row a node and dataset: rows read there, and whether they are, byte for byte, the ones written here.

    KitError names the nodes and datasets where they are not.
    """
    import pandas as pd

    _hush()
    with ray_cluster(profile, num_cpus=1) as ray:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        probe = ray.remote(num_cpus=0, max_retries=1)(seen)
        alive = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
        pinned = [NodeAffinitySchedulingStrategy(node, soft=False) for node in alive]
        answers = ray.get([probe.options(scheduling_strategy=node).remote(datasets, names) for node in pinned])
    return compare(pd.DataFrame([
        {"node": place, "dataset": name, "rows": answer[name][0], "same": answer[name] == mine}
        for place, answer in enumerate(answers, 1) for name, mine in seen(datasets, names).items()
    ]), datasets)


def compare(table, datasets: Path):
    """The table, if every node saw the same; KitError that shows it where one did not."""
    if not table["same"].all():
        raise KitError(f"not every node reads the data in {datasets}:\n{table.to_string(index=False)}",
                       "a storage that all nodes share", "set `storage` to a shared folder")
    return table


def seen(datasets: Path, names: list[str]) -> dict[str, tuple[int, str]]:
    """Rows and sha256 of each dataset as this node sees it; 0 and the error's words where it cannot."""
    found = {}
    for name in names:
        try:
            with files.data_file(datasets, name).open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                file.seek(0)
                found[name] = (sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b"")), digest)  # noqa: B023
        except (OSError, KitError) as error:
            found[name] = (0, str(error))
    return found


def _hush() -> None:
    """Without ipywidgets, importing Ray in a notebook prints two lines about it; nothing here needs them."""
    import logging
    import warnings

    logging.getLogger("ray.widgets.util").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message="IProgress not found")
