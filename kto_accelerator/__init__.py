"""A faster KTO trainer for LLaMA-Factory: see README.md."""

from .enable import install, shape_of, supports

__all__ = ["install", "shape_of", "supports"]
