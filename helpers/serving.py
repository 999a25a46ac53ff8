"""Serving configuration: the adapter where a multi-LoRA server looks for it, and a service.yaml that says so.

Ray Serve LLM (on any Ray cluster, or as an Anyscale service) holds one base model per replica and fetches adapters on
demand from `<dynamic_lora_loading_path>/<adapter>/`; a request names one as `model="<base>:<adapter>"`.
"""

from pathlib import Path

from . import export, files
from .errors import KitError
from .runs import Run

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM allows as max_lora_rank: its kernels are compiled for these."""

HEAD = """\
# {run}: the base model and its LoRA adapters behind an OpenAI-compatible API.
#
# Needs:   ray[serve,llm], a GPU per replica; a gated base wants HF_TOKEN in the cluster's environment (not in here).
# Launch:  serve deploy service.yaml          (a Ray cluster)
#          anyscale service deploy -f service.yaml
# Ask:     POST /v1/chat/completions with "model": "{base}:{adapter}";
#          "{base}" alone is the base model.
"""


def rank_allowed(rank: int) -> int:
    """The smallest max_lora_rank that vLLM allows for an adapter of this rank. KitError above the largest."""
    fitting = [allowed for allowed in RANKS if allowed >= rank]
    if not fitting:
        raise KitError(f"the adapter's rank is {rank}", f"at most {RANKS[-1]}, which is what vLLM serves",
                       "serve the merged model, or train with a smaller lora_rank")
    return fitting[0]


def write(run: Run, adapter: Path, prefix: str = "", adapters_per_replica: int = 16, max_replicas: int = 2) -> Path:
    """export/service.yaml: Ray Serve LLM's configuration for this adapter's base model, its commands in the head.

    `prefix`: the s3:// or gs:// folder that holds adapters, each in its own folder; empty: a placeholder stands there.
    `adapters_per_replica`: how many a replica keeps in memory; the least recently used one goes first.
    """
    from transformers import AutoConfig

    if prefix and not prefix.startswith(("s3://", "gs://")):
        raise KitError(f"Ray Serve LLM cannot fetch adapters from {prefix!r}", "an s3:// or gs:// prefix",
                       "copy the adapter to a bucket, or leave `adapter_prefix` empty")
    facts, config = export.adapter_facts(adapter), AutoConfig.from_pretrained(run.config()["model_name_or_path"])
    name = facts["base model"].rsplit("/", 1)[-1]
    llm = {
        "model_loading_config": {"model_id": name, "model_source": facts["base model"]},
        "lora_config": {"dynamic_lora_loading_path": (prefix or "s3://YOUR-BUCKET/adapters").rstrip("/"),
                        "max_num_adapters_per_replica": adapters_per_replica},
        "engine_kwargs": {"enable_lora": True, "max_lora_rank": rank_allowed(facts["rank"]),
                          "max_loras": min(4, adapters_per_replica), "max_cpu_loras": adapters_per_replica,
                          # at most 8192, so that the cache fits a common GPU
                          "max_model_len": min(8192, getattr(config, "max_position_embeddings", 8192))},
        "deployment_config": {"autoscaling_config": {"min_replicas": 1, "max_replicas": max_replicas}},
    }
    content = {"applications": [{"name": run.name, "route_prefix": "/", "import_path": "ray.serve.llm:build_openai_app",
                                 "args": {"llm_configs": [llm]}}]}
    head = HEAD.format(run=run.name, base=name, adapter=adapter.name)
    return files.write(run.export / "service.yaml", head + files.dump_yaml(content))


def publish(adapter: Path, prefix: str) -> str:
    """Copy the adapter's two files to `<prefix>/<adapter's name>/` (s3:// or gs://). Returns the address.

    adapter_config.json goes last: a server looks for it first, so half an adapter is never served. Credentials come
    from the environment.
    """
    scheme, _, folder = f"{prefix.rstrip('/')}/{adapter.name}".partition("://")
    if scheme not in ("s3", "gs"):
        raise KitError(f"{prefix!r} is no place for adapters", "an s3:// or gs:// prefix", "correct `adapter_prefix`")
    try:
        store = files.bucket_filesystem(scheme)
        store.create_dir(folder)
        for name in ("adapter_model.safetensors", "adapter_config.json"):
            with store.open_output_stream(f"{folder}/{name}") as output:
                output.write((adapter / name).read_bytes())
    except OSError as error:
        raise KitError(f"could not copy the adapter to {prefix}: {str(error).splitlines()[0]}",
                       "a bucket one may write to", "check the address and the credentials") from None
    return f"{scheme}://{folder}"
