"""KTO at scale: the small package behind the six notebooks.

Each module is one room of the project; a notebook imports the rooms it needs. Importing `helpers` itself stays cheap:
torch, ray, transformers and mlflow are imported inside the functions that need them.
"""

__version__ = "0.1.0"

from . import secrets

secrets.arm()
