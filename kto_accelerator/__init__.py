"""A faster KTO trainer for LLaMA-Factory: see README.md."""

from .enable import install, supports

__all__ = ["install", "supports"]
