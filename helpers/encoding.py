"""Records as token ids, by LLaMA-Factory's own converter, template and processor: exactly what training sees."""

import json
import random
from dataclasses import dataclass
from pathlib import Path

from . import files
from .errors import KitError

KEYS = ("template", "cutoff_len", "default_system", "enable_thinking", "tool_format")
"""The keys of a config that decide how a row becomes tokens."""
SAMPLE = 2000
"""Rows that are read of a larger dataset: enough for intervals of two hundredths, minutes instead of hours."""


@dataclass(frozen=True)
class Row:
    """`messages`: the turns before the reply, a system message first where there is one; `…_ids`: cut to the config's cutoff."""

    messages: list[dict]
    reply: str
    label: bool
    prompt_ids: list[int]
    reply_ids: list[int]

    @property
    def prompt(self) -> str:
        """The turns before the reply as text; a single question as it is."""
        if len(self.messages) == 1:
            return self.messages[0]["content"]
        return "\n".join(f"{turn['role']}: {turn['content']}" for turn in self.messages)


class Encoder:
    """Turns registered datasets into rows of token ids; `tokenizer` (transformers') is adjusted. KitError for an unknown template."""

    def __init__(self, config: dict, tokenizer):
        from llamafactory.data import get_template_and_fix_tokenizer
        from llamafactory.hparams import DataArguments

        self.tokenizer = tokenizer
        for key in ("add_tokens", "add_special_tokens"):  # as LLaMA-Factory's patch_tokenizer does
            if words := [word.strip() for word in str(config.get(key) or "").split(",") if word.strip()]:
                tokenizer.add_tokens(words, special_tokens=key == "add_special_tokens")
        self.arguments = DataArguments(**{key: config[key] for key in KEYS if config.get(key) is not None})
        try:
            self.template = get_template_and_fix_tokenizer(tokenizer, self.arguments)
        except ValueError as error:
            raise KitError(f"template {config.get('template')!r}: {error}", "one of LLaMA-Factory's templates",
                           "correct `template` in 03_config") from None

    def rows(self, folder: Path, name: str, at_most: int = SAMPLE) -> tuple[list[Row], int]:
        """The dataset registered under `name` in `folder`, in the file's order, and how many rows it has.

        A larger one than `at_most` is sampled: whole prompts, always the same, until there are so many rows.
        KitError if it is not registered, or training would drop a row of it.
        """
        from llamafactory.data.converter import get_dataset_converter
        from llamafactory.data.parser import get_dataset_list
        from llamafactory.data.processor import FeedbackDatasetProcessor

        with files.data_file(folder, name).open(encoding="utf-8") as file:
            records = [json.loads(line) for line in file]
        attributes = get_dataset_list([name], str(folder))[0]
        convert = get_dataset_converter(attributes.formatting, attributes, self.arguments)
        aligned = sample([convert(record) for record in records], at_most)
        processor = FeedbackDatasetProcessor(self.template, self.tokenizer, None, self.arguments)
        encoded = processor.preprocess_dataset({key: [record[key] for record in aligned] for key in aligned[0]})
        if dropped := len(aligned) - len(encoded["input_ids"]):
            raise KitError(f"training would drop {dropped} of the {len(aligned)} rows of {name!r}",
                           "turns in alternation, labels true or false", "run 02_data: it says what is wrong with which row")
        rows, made = [], (encoded["input_ids"], encoded["labels"], encoded["kto_tags"])
        for record, ids, labels, accepted in zip(aligned, *made, strict=True):
            start = sum(label == -100 for label in labels)  # LLaMA-Factory masks the prompt with IGNORE_INDEX
            system = [{"role": "system", "content": record["_system"]}] if record["_system"] else []
            reply = record["_response"][0 if accepted else 1]["content"]
            rows.append(Row(system + record["_prompt"], reply, accepted, ids[:start], ids[start:]))
        return rows, len(records)


def sample(records: list[dict], at_most: int) -> list[dict]:
    """All `records` (LLaMA-Factory's aligned ones), or whole prompts of them in their order, at least `at_most` rows."""
    if len(records) <= at_most:
        return records
    by_prompt: dict[str, list[int]] = {}
    for index, record in enumerate(records):
        by_prompt.setdefault(json.dumps([record["_system"], record["_prompt"]]), []).append(index)
    prompts, kept = list(by_prompt.values()), []
    random.Random(0).shuffle(prompts)
    while len(kept) < at_most:
        kept += prompts.pop()
    return [records[index] for index in sorted(kept)]
