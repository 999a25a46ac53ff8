"""Whether this machine or cluster can do what is asked of it, before it is asked."""

from ..errors import Finding
from .basics import LOOPBACK, cluster, disk, gpus_here, packages, ray_cluster, refuse_wrong_packages
from .capacity import placed, there_and_to_come
from .checks import examine

__all__ = [
    "LOOPBACK",
    "Finding",
    "cluster",
    "disk",
    "examine",
    "gpus_here",
    "packages",
    "placed",
    "ray_cluster",
    "refuse_wrong_packages",
    "there_and_to_come",
]
