"""Quantise the merged model, and measure the loss of quality.

By llm-compressor into the compressed-tensors format, which vLLM serves and transformers loads as it is; by auto-round into
GGUF, for llama.cpp and Ollama.
"""

import contextlib
import math
import random
import tempfile
from pathlib import Path

from . import files
from .chat_template import Row
from .errors import KitError
from .evaluate import Scorer, accuracy, rewards
from .quiet import quietly, silence
from .runs import Run

SCHEMES = {
    "fp8": "8-bit floats, activations scaled as they come (FP8_DYNAMIC); needs no data; fast on H100, L40S and later",
    "w8a8": "8-bit integers, weights by GPTQ over calibration rows; for GPUs before the H100",
    "w4a16": "4-bit integer weights in groups, by GPTQ over calibration rows; the smallest",
    "gguf": "8-bit weights (Q8_0) in one file for llama.cpp and Ollama; needs no data",
}
CALIBRATED = ("w8a8", "w4a16")


def calibration(rows: list[Row], count: int = 64) -> list[Row]:
    """`count` accepted rows of the training data, drawn at random, always the same: what the model should write well."""
    good = [row for row in rows if row.label]
    return random.Random(0).sample(good, min(count, len(good)))


def quantise(run: Run, scheme: str, rows: list[Row]) -> Path:
    """The merged model quantised by `scheme` (see `SCHEMES`) into export/<scheme>/; returns that folder.

    `rows`: what GPTQ calibrates on (see `calibration`; fp8 and gguf read none). The output layer keeps its precision. KitError if
    there is no merged model, or no row to calibrate on.
    """
    merged = run.export / "merged"
    if scheme not in SCHEMES:
        raise KitError(f"there is no quantisation {scheme!r}", f"one of {', '.join(SCHEMES)}", "correct the name")
    if not (merged / "config.json").is_file():
        raise KitError(f"there is no merged model in {merged}", "what a merge leaves", "export with --as merged first")
    if scheme in CALIBRATED and not rows:
        raise KitError(f"no row to calibrate {scheme} on", "accepted rows in the training data", "choose fp8")
    with files.new_folder(run.export / scheme) as folder, quietly(), silence():
        if scheme == "gguf":
            to_gguf(merged, folder)
        else:
            to_compressed_tensors(scheme, merged, rows, folder)
    return run.export / scheme


def to_gguf(merged: Path, folder: Path) -> None:
    """The merged model as one .gguf file, every weight rounded to the nearest."""
    from auto_round import AutoRound

    rounding = AutoRound(str(merged), scheme="GGUF:Q8_0", iters=0, disable_opt_rtn=True)
    with tempfile.TemporaryDirectory(dir=folder) as work:
        try:
            rounding.quantize_and_save(work, format="gguf:q8_0")
        except NotImplementedError as error:
            raise KitError(f"the model cannot be written as GGUF: {error}", "an architecture and a tokenizer that llama.cpp knows",
                           "choose fp8, w8a8 or w4a16") from None
        (made,) = Path(work).rglob("*.gguf")
        made.rename(folder / "model-Q8_0.gguf")


def to_compressed_tensors(scheme: str, merged: Path, rows: list[Row], folder: Path) -> None:
    """The merged model with quantised linear layers, and its tokenizer."""
    import torch
    from datasets import Dataset
    from llmcompressor import oneshot
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(merged, torch_dtype="auto")
    model = model.to("cuda" if torch.cuda.is_available() else "cpu")
    data = {}
    if scheme in CALIBRATED:  # whole conversations, as training reads them
        ids = [row.prompt_ids + row.reply_ids for row in rows]
        dataset = Dataset.from_dict({"input_ids": ids, "attention_mask": [[1] * len(line) for line in ids]})
        data = {"dataset": dataset, "num_calibration_samples": len(rows), "max_seq_length": max(map(len, ids))}
    with tempfile.TemporaryDirectory() as scratch, contextlib.chdir(scratch):  # it leaves a folder sparse_logs wherever it is
        oneshot(model=model, recipe=recipe(scheme, model), log_dir=None, **data)
    model.save_pretrained(folder, save_compressed=True)
    AutoTokenizer.from_pretrained(merged).save_pretrained(folder)


def recipe(scheme: str, model):
    """llm-compressor's modifier for `scheme`; every linear layer but the output layer. KitError where no group size fits."""
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from llmcompressor.modifiers.quantization import GPTQModifier, QuantizationModifier
    from torch.nn import Linear

    if scheme == "fp8":
        return QuantizationModifier(scheme="FP8_DYNAMIC", targets="Linear", ignore=["lm_head"])
    if scheme == "w8a8":
        return GPTQModifier(scheme="W8A8", targets="Linear", ignore=["lm_head"])
    widths = {layer.in_features for name, layer in model.named_modules() if isinstance(layer, Linear) and name != "lm_head"}
    weights = QuantizationArgs(num_bits=4, type="int", strategy="group", group_size=group_size(widths), symmetric=True)
    groups = {"group_0": QuantizationScheme(targets=["Linear"], weights=weights)}
    return GPTQModifier(config_groups=groups, ignore=["lm_head"])


def group_size(widths: set[int]) -> int:
    """The largest group of 4-bit weights that vLLM's kernels take and that divides every layer's inputs. KitError if none does."""
    for size in (128, 64, 32):
        if all(width % size == 0 for width in widths):
            return size
    raise KitError(f"layers have {sorted(widths)} inputs", "multiples of 32, for groups of 4-bit weights", "choose fp8 or w8a8")


def compare(scorer: Scorer, models: dict[str, Path], rows: list[Row]):
    """Size and held-out quality of each model in one DataFrame, a line a model, in the order given.

    Columns: `model`; `MB` of weights; `perplexity` a token of the accepted held-out replies; `auc` and `margin` of the
    implied reward against the base model (see `evaluate.accuracy`). Activations are quantised as a server would, in
    float arithmetic, so the figures are those of the format and not of a kernel.
    """
    import pandas

    reference, lines = scorer.logps(rows, tuned=False), []
    for name, folder in models.items():
        weights = [*folder.glob("*.safetensors"), *folder.glob("*.gguf")]
        options = {"gguf_file": weights[0].name} if weights[0].suffix == ".gguf" else {}
        with scorer.set_aside():
            policy = scorer.logps(rows, model=scorer.load(folder, **options))
        table = rewards(rows, policy, reference, scorer.config)
        good, figures = table[table["label"]], accuracy(table)
        lines.append({"model": name, "MB": sum(file.stat().st_size for file in weights) / 1e6,
                      "perplexity": math.exp(-good["logp_policy"].sum() / good["tokens"].sum()),
                      "auc": figures["auc"], "margin": figures["margin"]})
    return pandas.DataFrame(lines)
