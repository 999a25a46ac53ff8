"""What a node says of itself: runs there as a Ray task, sent by value, so it needs nothing of this project on the node."""

import hashlib
import os
import shutil
import socket
import subprocess
import sys
from importlib import metadata


def look(node: str, storage: str, mark: str, packages: list, data: dict, meeting: tuple, model: str) -> dict:
    """Versions, GPUs, storage, data, hub and the way to `meeting` (host, port), each as seen from this node.

    `mark`: name of a folder that the asking side made in `storage`; this node answers in it. `data`: path -> nothing, to be hashed.
    """
    return {
        "host": socket.gethostname(),
        "python": ".".join(map(str, sys.version_info[:2])),
        "versions": {name: version(name) for name in packages},
        "gpus": gpus(),
        "storage": shared(storage, mark, node),
        "free": shutil.disk_usage(storage if os.path.isdir(storage) else "/").free / 2**30,
        "data": {path: digest(path) for path in data},
        "meeting": reach(meeting),
        "hub": hub(model)[0] if model else None,
    }


def version(name: str) -> str:
    places = [place for place in sys.path if "thirdparty_files" not in place]  # ray adds its own psutil there
    found = next(iter(metadata.Distribution.discover(name=name, path=places)), None)
    return found.version if found else "missing"


def gpus() -> list:
    """(name, GiB) of each GPU that the driver shows; none without a driver."""
    command = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, timeout=5).stdout.splitlines()
        return [(line.rpartition(",")[0], float(line.rpartition(",")[2]) / 1024) for line in lines if "," in line]
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return []


def shared(storage: str, mark: str, node: str) -> str:
    """'' if this node sees what the asking side wrote and could write beside it; else what is wrong."""
    folder = os.path.join(storage, mark)
    if not os.path.isdir(folder):
        return "does not see what was written there from here"
    try:
        with open(os.path.join(folder, node), "w") as file:
            file.write(node)
    except OSError as error:
        return f"cannot write there: {error.strerror}"
    return ""


def digest(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def reach(meeting: tuple) -> str:
    """'' if a connection to (host, port) can be made within 3 s."""
    if not meeting:
        return ""
    try:
        socket.create_connection(tuple(meeting), 3).close()
        return ""
    except OSError as error:
        return str(error)


def hub(model: str) -> tuple:
    """(HTTP status, body) of the model's config.json from the hub, with the token of the environment; (0, words) without an answer."""
    import requests  # drops the token where it is sent on to another host

    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    token = os.environ.get("HF_TOKEN")
    try:
        answer = requests.get(
            f"{endpoint}/{model}/resolve/main/config.json",
            timeout=5,
            headers={"Authorization": f"Bearer {token}"} if token else {},
        )
        return answer.status_code, answer.text
    except requests.RequestException as error:
        return 0, type(error).__name__


def listen(seconds: float = 20.0) -> tuple:
    """(this node's address, a port) where a thread takes connections for a while."""
    import threading

    import ray

    server = socket.create_server(("", 0))
    server.settimeout(seconds)

    def take():
        try:
            while True:
                server.accept()[0].close()
        except OSError:
            server.close()

    threading.Thread(target=take, daemon=True).start()
    return ray.util.get_node_ip_address(), server.getsockname()[1]
