"""Serve a run's base and adapters behind an OpenAI-compatible API on this machine.

Ray Serve with model multiplexing over transformers and peft, which also runs without a GPU. For throughput on GPUs
there is `export/service.yaml`: Ray Serve LLM, which asks for models by the same names.
"""

import contextlib
import os
import socket
from dataclasses import dataclass
from pathlib import Path

from helpers import cluster, files
from helpers.errors import KitError
from helpers.export import public_name
from helpers.quiet import silence
from helpers.runs import Run

AT_ONCE = 4
"""Adapters in memory at once; the least recently used makes room for another."""
ADAPTERS, MERGED = "adapter/[!.]*/adapter_config.json", "merged/config.json"
"""Where in export/ what can be served lies."""


@dataclass(frozen=True)
class Served:
    """`base` (a model to load) is served under `name`, beside it the adapters of the `storage`'s runs whose adapter_config.json
    names `public` as their base; an empty `public`: none are."""

    base: str
    name: str
    storage: Path
    public: str = ""

    def models(self) -> dict[str, Path]:
        """What may be asked for and where it lies: `name`, and `name:adapter` for every exported adapter that fits the base; looked
        up each time, so a later export is there."""
        found = {self.name: Path(self.base)}
        for file in sorted(self.storage.glob(f"*/export/{ADAPTERS}")) if self.public else ():
            with contextlib.suppress(KitError, OSError):  # one that is torn, or was just removed
                if files.read_json(file).get("base_model_name_or_path") == self.public:
                    found[f"{self.name}:{file.parent.name}"] = file.parent
        return found


def newest(storage: Path) -> Path:
    """The folder of the run in `storage` that was made last and has an export. KitError if none has one."""
    exported = [file.parent for file in storage.glob("*/run.json")
                if any(file.parent.glob(f"export/{ADAPTERS}")) or any(file.parent.glob(f"export/{MERGED}"))]
    if not exported:
        raise KitError(f"no run in {storage} has an export", "what 06_export leaves", "make demo, or: kto run")
    return max(exported, key=lambda folder: files.read_json(folder / "run.json").get("created", ""))


def of_run(run: Run) -> Served:
    """What `run` serves: its base model and every adapter of its storage that fits, or, for a full or freeze tuning,
    its merged model under the run's name. KitError if nothing was exported."""
    if any(run.export.glob(ADAPTERS)):
        public = public_name(run)
        return Served(files.base_model(run.config()), Path(public).name, run.storage, public)
    if any(run.export.glob(MERGED)):
        return Served(str(run.export / "merged"), run.name, run.storage)
    raise KitError(f"{run.name} has no export", "an adapter or a merged model in export/", "run 06_export")


def start(served: Served, host: str = "127.0.0.1", port: int = 8000) -> str:
    """Start Ray and the application; the address for an OpenAI client. It runs until `stop` or the process's end.

    Everything but the API itself listens on loopback, and so does the API unless `host` says otherwise. KitError if the
    port is taken or the model cannot be loaded.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise KitError(f"{host}:{port} cannot be used: {error.strerror}", "a free port of this machine",
                           f"another one: --port {port + 1}") from None
    os.environ.setdefault(*cluster.LOOPBACK)
    with silence():
        import ray
        from ray import serve

        from .multiplex import Api, Model

        ray.init(address="local", include_dashboard=False, log_to_driver=False, num_cpus=1, logging_level="ERROR",
                 _node_ip_address="127.0.0.1", object_store_memory=100 * 2**20)
    try:
        with silence():
            serve.start(http_options={"host": host, "port": port}, logging_config={"log_level": "WARNING"})
            serve.run(Api.bind(served, Model.bind(served)), name="chat")
    except RuntimeError as error:
        why = serve.status().applications["chat"].deployments["model"].message
        stop()
        raise KitError(f"{served.name} could not be served: {why}", "a model that transformers loads",
                       "make it ready again with 01_setup") from error
    return f"http://{host}:{port}/v1"


def stop() -> None:
    """End the application and this process's Ray."""
    import ray
    from ray import serve

    with silence():
        serve.shutdown()
        ray.shutdown()
