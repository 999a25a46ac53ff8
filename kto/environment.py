"""Other folders where the home cannot be written or the temp folder's name is too long: for us and for what we start."""

import contextlib
import os
from pathlib import Path

LONGEST = 38
"""Characters of a temp folder's name, beyond which the paths of Ray's sockets in it exceed Linux' 107."""


def settle(storage: Path) -> list[str]:
    """Set what has to be other than it is, in this process's environment; a sentence for each."""
    said = []
    home = Path(os.environ.get("HOME") or "/nonexistent")
    if not (home.is_dir() and os.access(home, os.W_OK)):
        cache = storage / ".cache"
        why = "cannot be written" if home.is_dir() else "does not exist"
        said.append(f"the home folder {home} {why}: caches go to {cache}")
        with contextlib.suppress(OSError):  # a storage that cannot be written is somebody else's finding
            cache.mkdir(parents=True, exist_ok=True)
        for name, folder in {"XDG_CACHE_HOME": "", "HF_HOME": "huggingface", "MPLCONFIGDIR": "matplotlib",
                             "TRITON_CACHE_DIR": "triton", "TORCHINDUCTOR_CACHE_DIR": "inductor",
                             "IPYTHONDIR": "ipython", "JUPYTER_RUNTIME_DIR": "jupyter"}.items():
            os.environ.setdefault(name, str(cache / folder))
    temp = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    if len(temp) > LONGEST:
        os.environ["RAY_TMPDIR"] = "/tmp"
        said.append(f"the temp folder's name {temp} is too long for Ray's sockets: Ray's files go to /tmp/ray")
    return said
