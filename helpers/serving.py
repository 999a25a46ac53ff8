"""Write service.yaml, and lay out the adapter for a multi-LoRA server.

Ray Serve LLM (on any Ray cluster, or as an Anyscale service) holds one base model per replica and fetches adapters on
demand from `<dynamic_lora_loading_path>/<adapter>/`; a request names one as `model="<base>:<adapter>"`.
"""

from pathlib import Path

from . import export, files
from .errors import KitError
from .runs import Run

HEAD = """\
# {run}: the base model and its LoRA adapters behind an OpenAI-compatible API.
#
# Needs:   ray[serve,llm], a GPU per replica; a gated base wants HF_TOKEN in the cluster's environment (not in here).
# Launch:  serve deploy service.yaml          (a Ray cluster)
#          anyscale service deploy -f service.yaml
# Ask:     POST /v1/chat/completions with "model": "{base}:{adapter}";
#          "{base}" alone is the base model.
"""


def write(run: Run, adapter: Path, prefix: str = "") -> Path:
    """export/service.yaml: Ray Serve LLM's configuration for this adapter's base model, its commands in the head.

    `prefix`: the s3:// or gs:// folder that holds adapters, each in its own folder; empty: a placeholder stands there.
    """
    from transformers import AutoConfig

    facts, config = export.adapter_facts(adapter), AutoConfig.from_pretrained(files.base_model(run.config()))
    name = facts["base model"].rsplit("/", 1)[-1]
    llm = {
        "model_loading_config": {"model_id": name, "model_source": facts["base model"]},
        "lora_config": {"dynamic_lora_loading_path": (prefix or "s3://YOUR-BUCKET/adapters").rstrip("/"),
                        "max_num_adapters_per_replica": 16},  # the least recently used one goes first
        "engine_kwargs": {"enable_lora": True, "max_lora_rank": rank_allowed(facts["rank"]), "max_loras": 4, "max_cpu_loras": 16,
                          # at most 8192, so that the cache fits a common GPU
                          "max_model_len": min(8192, getattr(config, "max_position_embeddings", 8192))},
        "deployment_config": {"autoscaling_config": {"min_replicas": 1, "max_replicas": 2}},
    }
    content = {"applications": [{"name": run.name, "route_prefix": "/", "import_path": "ray.serve.llm:build_openai_app",
                                 "args": {"llm_configs": [llm]}}]}
    head = HEAD.format(run=run.name, base=name, adapter=adapter.name)
    return files.write(run.export / "service.yaml", head + files.dump_yaml(content))


def rank_allowed(rank: int) -> int:
    """The smallest max_lora_rank that vLLM has kernels for and that holds an adapter of this rank. KitError above the largest."""
    for allowed in (8, 16, 32, 64, 128, 256, 320, 512):
        if allowed >= rank:
            return allowed
    raise KitError(f"the adapter's rank is {rank}", f"at most {allowed}, which is what vLLM serves",
                   "serve the merged model, or train with a smaller lora_rank")


def publish(adapter: Path, prefix: str) -> str:
    """Copy the adapter's two files to `<prefix>/<adapter's name>/` (s3:// or gs://). Returns the address."""
    from pyarrow import fs

    scheme, _, folder = f"{prefix.rstrip('/')}/{adapter.name}".partition("://")
    if scheme not in ("s3", "gs"):
        raise KitError(f"Ray Serve LLM cannot fetch adapters from {prefix!r}", "an s3:// or gs:// prefix", "correct `adapter_prefix`")
    for name in reversed(export.ADAPTER_FILES):  # the settings last: a server looks for them first
        fs.copy_files(str(adapter / name), f"{folder}/{name}", destination_filesystem=files.bucket_filesystem(scheme))
    return f"{scheme}://{folder}"
