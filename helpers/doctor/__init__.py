"""Whether this machine or cluster can do what is asked of it, before it is asked."""

from .basics import Finding, cluster, disk, gpus_here, packages, ray_cluster, refuse_wrong_packages, workers_fit
from .checks import examine

__all__ = [
    "Finding",
    "cluster",
    "disk",
    "examine",
    "gpus_here",
    "packages",
    "ray_cluster",
    "refuse_wrong_packages",
    "workers_fit",
]
