"""KTO at scale: what the six notebooks import.

Importing `helpers` itself stays cheap: torch, ray, transformers and mlflow are imported inside the functions that need them.
"""

__version__ = "0.1.0"
