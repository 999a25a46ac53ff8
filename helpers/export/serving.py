"""Serving configuration: the adapter where a multi-LoRA server looks for it, and a service.yaml that says so.

Ray Serve LLM (on any Ray cluster, or as an Anyscale service) holds one base model a replica and fetches adapters on
demand from `<dynamic_lora_loading_path>/<adapter>/`; a request names one as `model="<base>:<adapter>"`.
"""

from pathlib import Path

import yaml

from .. import files
from ..checkpoints.stores import bucket_filesystem
from ..errors import KitError
from ..runs import Run
from . import adapter_facts, config_of

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM allows as max_lora_rank: its kernels are compiled for these."""

PLACEHOLDER = "s3://YOUR-BUCKET/adapters"

HEAD = """\
# {run}: the base model and its LoRA adapters behind an OpenAI-compatible API.
#
# Needs:   ray[serve,llm], a GPU a replica; a gated base wants HF_TOKEN in the cluster's environment (not in here).
# Launch:  serve deploy service.yaml          (a Ray cluster)
#          anyscale service deploy -f service.yaml
# Ask:     POST /v1/chat/completions with "model": "{base}:{adapter}";
#          "{base}" alone is the model before training.
"""


def rank_allowed(rank: int) -> int:
    """The smallest max_lora_rank that vLLM allows for an adapter of this rank. KitError above the largest."""
    fitting = [allowed for allowed in RANKS if allowed >= rank]
    if not fitting:
        raise KitError(f"the adapter's rank is {rank}", f"at most {RANKS[-1]}, which is what vLLM serves",
                       "serve the merged model, or train with a smaller lora_rank")
    return fitting[0]


def service(run: Run, adapter: Path, prefix: str = "", adapters_per_replica: int = 16, max_replicas: int = 2,
            accelerator_type: str = "") -> dict:
    """The Serve configuration for this adapter's base model, as plain data.

    `prefix`: the s3:// or gs:// folder that holds adapters, each in a folder of its own; left empty a placeholder
    stands there. `adapters_per_replica`: how many a replica keeps in memory, the least recently used going first.
    """
    if prefix and not prefix.startswith(("s3://", "gs://")):
        raise KitError(f"Ray Serve LLM cannot fetch adapters from {prefix!r}", "an s3:// or gs:// prefix",
                       "copy the adapter there with serving.publish, or leave `adapter_prefix` empty")
    facts = adapter_facts(adapter)
    base = facts["base model"]
    llm = {
        "model_loading_config": {"model_id": base.rsplit("/", 1)[-1], "model_source": base},
        "lora_config": {"dynamic_lora_loading_path": (prefix or PLACEHOLDER).rstrip("/"),
                        "max_num_adapters_per_replica": adapters_per_replica},
        "engine_kwargs": {"enable_lora": True, "max_lora_rank": rank_allowed(facts["rank"]),
                          "max_loras": min(4, adapters_per_replica), "max_cpu_loras": adapters_per_replica,
                          "max_model_len": _context(run)},
        "deployment_config": {"autoscaling_config": {"min_replicas": 1, "max_replicas": max_replicas}},
    }
    if accelerator_type:
        llm["accelerator_type"] = accelerator_type
    application = {"name": run.name, "route_prefix": "/", "import_path": "ray.serve.llm:build_openai_app",
                   "args": {"llm_configs": [llm]}}
    return {"applications": [application]}


def _context(run: Run) -> int:
    """Tokens a request may have: the base model's own limit, at most 8192, so that the cache fits a common GPU."""
    from transformers import AutoConfig

    base = AutoConfig.from_pretrained(config_of(run)["model_name_or_path"])
    return min(8192, getattr(base, "max_position_embeddings", 8192))


def write(run: Run, adapter: Path, prefix: str = "", **knobs) -> Path:
    """`service` as export/service.yaml, with the commands that launch and ask it in its head."""
    content = service(run, adapter, prefix, **knobs)
    base = content["applications"][0]["args"]["llm_configs"][0]["model_loading_config"]["model_id"]
    head = HEAD.format(run=run.name, base=base, adapter=adapter.name)
    return files.write(run.export / "service.yaml", head + yaml.safe_dump(content, sort_keys=False))


def check(content: dict) -> bool:
    """Hold a service against the schema of the installed ray; False where that ray has no ray.llm to ask.

    Ray takes seconds to import, so `write` leaves this to whoever wants it. `ray.serve.llm` itself cannot be imported
    without vLLM; its configuration classes can. KitError says what they refuse.
    """
    try:
        from ray.llm._internal.serve.configs.server_models import LLMConfig
    except ImportError:  # another version of ray, or one without its llm parts
        return False
    from pydantic import ValidationError

    for application in content["applications"]:
        for llm in application["args"]["llm_configs"]:
            try:
                LLMConfig(**llm)
            except ValidationError as error:
                lines = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
                raise KitError(f"ray refuses the service: {lines}", "the keys of ray.serve.llm.LLMConfig") from None
    return True


def publish(adapter: Path, prefix: str, filesystem=None) -> str:
    """Copy the adapter's two files to `<prefix>/<adapter's name>/` (s3:// or gs://); returns that address.

    adapter_config.json goes last: a server looks for it first, so half an adapter is never served. Credentials come
    from the environment, as for boto3. `filesystem`: any pyarrow file system instead, with `prefix` as a path in it.
    """
    scheme, _, rest = prefix.rstrip("/").rpartition("://")
    if filesystem is None and scheme not in ("s3", "gs"):
        raise KitError(f"{prefix!r} is no place for adapters", "an s3:// or gs:// prefix", "correct `adapter_prefix`")
    store, target = filesystem or bucket_filesystem(scheme), f"{rest}/{adapter.name}"
    try:
        store.create_dir(target)
        for name in ("adapter_model.safetensors", "adapter_config.json"):
            with store.open_output_stream(f"{target}/{name}") as output:
                output.write((adapter / name).read_bytes())
    except OSError as error:
        raise KitError(f"could not copy the adapter to {prefix}: {str(error).splitlines()[0]}",
                       "a bucket one may write to", "check the address and the credentials") from None
    return f"{scheme}://{target}" if scheme else target
