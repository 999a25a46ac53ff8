"""Paths of a run that was moved or copied: they follow its storage, so a cluster's run opens on a laptop.

A run's files name places in its storage (`/mnt/cluster_storage/kto/first-run/output`, `…/datasets`, `…/models/base`). Read through
here, each is the place of that name in the storage where the run lies now.
"""

from pathlib import PurePosixPath

from . import files
from .runs import Run


def config_of(run: Run) -> dict:
    """The run's config.yaml, its paths in the storage where the run lies now. KitError where it is missing or malformed."""
    return relocated(files.read_yaml(run.config_file), run)


def relocated(content, run: Run):
    """`content` (a config, run.json, or part of one) with every path below the run's former storage below its present one.

    Where the run's folder was is read off its config.yaml: `output_dir` is `<folder>/output`. The folder may have a new name.
    """
    config = files.read_yaml(run.config_file) if run.config_file.exists() else {}
    output = PurePosixPath(str(config.get("output_dir") or ""))
    before = output.parent
    if not output.is_absolute() or output.name != run.output_dir.name or before == PurePosixPath(run.folder):
        return content
    places = ((str(before), str(run.folder)), (str(before.parent), str(run.storage)))

    def moved(value):
        if isinstance(value, dict):
            renamed = {"ray_run_name": run.name} if value.get("ray_run_name") == before.name else {}
            return {key: moved(inner) for key, inner in value.items()} | renamed
        if isinstance(value, list):
            return [moved(inner) for inner in value]
        for there, here in places if isinstance(value, str) else ():
            if value == there or value.startswith(f"{there}/"):
                return here + value[len(there):]
        return value

    return moved(content)
