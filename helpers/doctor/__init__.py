"""Packages, disk and the cluster that a profile names, and whether the workers fit on it."""

from .basics import LOOPBACK, cluster, disk, gpus_here, packages, ray_cluster, refuse_wrong_packages
from .capacity import placed, there_and_to_come

__all__ = [
    "LOOPBACK",
    "cluster",
    "disk",
    "gpus_here",
    "packages",
    "placed",
    "ray_cluster",
    "refuse_wrong_packages",
    "there_and_to_come",
]
