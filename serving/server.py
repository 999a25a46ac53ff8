"""A run's model behind an OpenAI-compatible API on this machine: its base once in memory, adapters beside it on demand.

Ray Serve with model multiplexing over transformers and peft, which also runs without a GPU. For throughput on GPUs
there is `export/service.yaml`: Ray Serve LLM, which asks for models by the same names.
"""

import json
import os
import re
import socket
from dataclasses import dataclass
from pathlib import Path

from helpers import cluster, files
from helpers.errors import KitError
from helpers.export import ADAPTER_FILES, public_name
from helpers.quiet import silence
from helpers.runs import Run

AT_ONCE = 4
"""Adapters in memory at once; the least recently used makes room for another."""


@dataclass(frozen=True)
class Served:
    """What is served: `base` (a model to load), the `name` it is asked for by, and the `storage` whose runs' adapters
    for `public` (the base's name in adapter_config.json) are served beside it; an empty `public`: none are."""

    base: str
    name: str
    storage: Path
    public: str = ""

    def adapters(self) -> dict[str, Path]:
        """name -> folder of every exported adapter that fits the base; looked up each time, so a later export is there."""
        found = {}
        for file in sorted(self.storage.glob("*/export/adapter/*/adapter_config.json")) if self.public else []:
            whole = all((file.parent / name).is_file() for name in ADAPTER_FILES)
            if whole and json.loads(file.read_text()).get("base_model_name_or_path") == self.public:
                found[file.parent.name] = file.parent
        return {name: folder for name, folder in found.items() if not name.startswith(".")}


def newest(storage: Path) -> Path:
    """The folder of the run in `storage` that was made last and has an export. KitError if none has one."""
    made = {file: files.read_json(file).get("created", "") for file in storage.glob("*/run.json")}
    for record in sorted(made, key=made.get, reverse=True):
        if served_parts(record.parent / "export"):
            return record.parent
    raise KitError(f"no run in {storage} has an export", "what 06_export leaves", "make demo, or: kto run")


def served_parts(export: Path) -> list[Path]:
    """What of an export folder can be served: adapters and the merged model."""
    configs = (*export.glob("adapter/[!.]*/adapter_config.json"), *export.glob("merged/config.json"))
    return [path.parent for path in configs]


def of_run(run: Run) -> Served:
    """What `run` serves: its base model and every adapter of its storage that fits, or, for a full or freeze tuning,
    its merged model under the run's name. KitError if nothing was exported or the chat template is missing."""
    parts = served_parts(run.export)
    if not parts:
        raise KitError(f"{run.name} has no export", "an adapter or a merged model in export/", "run 06_export")
    if all(part.name == "merged" for part in parts):
        served = Served(str(parts[0]), run.name, run.storage)
    else:
        public = public_name(run)
        served = Served(str(run.config()["model_name_or_path"]), Path(public).name, run.storage, public)
    settings = Path(served.base) / "tokenizer_config.json"
    if settings.is_file() and '"chat_template"' not in settings.read_text() and \
            not settings.with_name("chat_template.jinja").is_file():
        raise KitError(f"the base model {served.base} has no chat template", "an instruct model's tokenizer",
                       "serve export/merged, whose tokenizer has the template of the training")
    return served


def start(served: Served, host: str = "127.0.0.1", port: int = 8000) -> str:
    """Start Ray and the application; the address for an OpenAI client. It runs until `stop` or the process's end.

    Everything but the API itself listens on loopback, and so does the API unless `host` says otherwise. KitError if the
    port is taken or the model cannot be loaded.
    """
    refuse_taken_port(host, port)
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
        message = serve.status().applications["chat"].deployments["model"].message
        causes = re.findall(r"^[\w.]+Error: .+", message, re.MULTILINE)
        stop()
        raise KitError(f"{served.name} could not be served: {(causes or [str(error)])[-1]}",
                       "a model that transformers loads", "make it ready again with 01_setup") from error
    return f"http://{host}:{port}/v1"


def stop() -> None:
    """End the application and this process's Ray."""
    import ray
    from ray import serve

    with silence():
        serve.shutdown()
        ray.shutdown()


def refuse_taken_port(host: str, port: int) -> None:
    """KitError if `host`:`port` cannot be listened on."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise KitError(f"{host}:{port} cannot be used: {error.strerror}", "a free port of this machine",
                           f"another one: --port {port + 1}") from None
