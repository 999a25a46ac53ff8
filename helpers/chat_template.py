"""Encode records exactly as training does, and check that LLaMA-Factory's chat template fits the model.

`python -m helpers.chat_template` takes a config as JSON on stdin and prints a finding as JSON: LLaMA-Factory takes seconds to import.
"""

import json
import os
import random
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from . import files
from .errors import Finding, KitError, refuse  # noqa: F401, the latter is asked for here by notebook 3
from .profiles import ROOT

SYSTEM, QUESTION = "Be brief.", {"role": "user", "content": "What is tea?"}
ANSWER, ANOTHER = {"role": "assistant", "content": "A drink."}, {"role": "user", "content": "And coffee?"}
DIALOGUES = (("", [QUESTION]), (SYSTEM, [QUESTION]), ("", [QUESTION, ANSWER, ANOTHER]))
MESSAGES = [([{"role": "system", "content": system}] if system else []) + turns for system, turns in DIALOGUES]
SAME = "give `template` the model's own (LLaMA-Factory's list: its README, Supported Models)"
KEYS = ("template", "default_system", "enable_thinking", "tool_format")
"""The keys of a config that decide how a row becomes tokens, besides cutoff_len."""
VOCABULARY = ("resize_vocab", "add_tokens", "add_special_tokens")
"""Keys of a config that make the embeddings larger."""
ASKED = ("model_name_or_path", *KEYS, *VOCABULARY)
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
        self.arguments = DataArguments(**{key: config[key] for key in (*KEYS, "cutoff_len") if config.get(key) is not None})
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


def finding(config: dict) -> Finding:
    """OK, or what does not fit: FAIL where training could not run, WARN where the model is asked as it never was before.

    `config` has the keys of `ASKED`. A hub id's tokenizer is downloaded; OSError or ValueError where there is none.
    """
    from transformers import AutoConfig, AutoTokenizer

    def say(status: str, found: str, remedy: str = "", why: str = "") -> Finding:
        return Finding(status, found, remedy, why, kind="template")

    model, name = config["model_name_or_path"], config.get("template")
    tokenizer, own = (AutoTokenizer.from_pretrained(model) for _ in range(2))
    entries = AutoConfig.from_pretrained(model).get_text_config().vocab_size
    try:
        template = Encoder(config, tokenizer).template
    except KitError as error:
        return say("FAIL", error.found, error.remedy)

    # Tokens that the model has no embedding for, in what training reads: (prompt, reply).
    written = [template.encode_oneturn(tokenizer, [*turns, ANSWER], system or None, None) for system, turns in DIALOGUES]
    beyond = {tokenizer.decode(token) for pair in written for ids in pair for token in ids if token >= entries}
    if beyond and not config.get("resize_vocab"):
        return say("FAIL", f"the template {name} writes {', '.join(sorted(beyond))}, for which the model has no embedding "
                   f"(it has {entries:,})", f"{SAME}, or resize_vocab: true to learn new ones")

    # The prompts of both, token by token.
    prompts, theirs = [prompt for prompt, _ in written], [served(own, messages) for messages in MESSAGES]
    differ = [(ours, other) for ours, other in zip(prompts, theirs, strict=True) if other is not None and ours != other]
    if not differ and any(theirs):
        return say("OK", f"the template {name} writes dialogues as the tokenizer's own chat template does")
    texts = " ".join(tokenizer.decode(prompt + reply) for prompt, reply in written)
    if missing := set(re.findall(r"<[^<>\s]+>", texts)) - own.get_vocab().keys():
        return say("WARN", f"the template {name} writes {', '.join(sorted(missing))}, which the tokenizer does not know as a token",
                   SAME, "the model was taught with other marks between turns")
    if not differ:
        return say("OK", f"the tokenizer has no chat template of its own to compare {name} with")
    if prompts[1] == theirs[1] and prompts[0] != theirs[0]:
        # The system prompt that the chat template writes where none is given: it stands where a given one does.
        without, given = (own.apply_chat_template(messages, tokenize=False) for messages in MESSAGES[:2])
        before, _, after = given.partition(SYSTEM)
        inside = without.startswith(before) and without.endswith(after)
        usual = without[len(before):len(without) - len(after)] if inside else ""
        return say("WARN", f"the default system prompt differs: the template {name} writes {template.default_system or ''!r}, "
                   f"the tokenizer's own chat template {usual!r}", f"set default_system: {usual!r}" if usual else SAME,
                   "a server that is sent no system prompt would ask the model otherwise than training did")
    place = len(os.path.commonprefix(differ[0]))  # where the two lists part
    here, there = (tokenizer.decode(ids[place:place + 12]) for ids in differ[0])
    return say("WARN", f"the template {name} does not write a dialogue as the tokenizer's own chat template does: {here!r} where that "
               f"has {there!r}", SAME, "the model is trained in a form that a server will not ask it in")


def served(tokenizer, messages: list[dict]) -> list[int] | None:
    """The prompt's ids by the tokenizer's chat template; None where it has none, or refuses the messages (a system prompt)."""
    from jinja2 import TemplateError

    try:
        return list(tokenizer.apply_chat_template(messages, add_generation_prompt=True)) if tokenizer.chat_template else None
    except TemplateError:
        return None


def of_run(run, config: dict) -> list[Finding]:
    """The finding of a run's config: the one that an earlier notebook kept in run.json where nothing of it changed since."""
    question, kept = {key: config[key] for key in ASKED if config.get(key)}, run.record().get("chat_template", {})
    if kept.get("config") != question:
        kept = run.note(chat_template={"config": question, "findings": asked(question)})["chat_template"]
    return [Finding(*row) for row in kept["findings"]]


def asked(config: dict, seconds: float = 60.0) -> list[Finding]:
    """`finding`, computed in a separate process; WARN if it takes longer than `seconds`."""
    question = json.dumps({key: config.get(key) for key in ASKED})
    environment = {"HF_HUB_ETAG_TIMEOUT": "5", "HF_HUB_DOWNLOAD_TIMEOUT": "5", "CUDA_VISIBLE_DEVICES": ""}
    try:
        with files.hub_or_cache(config["model_name_or_path"]):
            done = subprocess.run([sys.executable, "-m", "helpers.chat_template"], input=question, text=True, cwd=ROOT,
                                  env=os.environ | environment, capture_output=True, timeout=max(1.0, seconds))
        if done.returncode == 0:
            return [Finding(*json.loads(done.stdout.splitlines()[-1]))]
        why = done.stderr.strip().splitlines()[-1]
    except subprocess.TimeoutExpired:
        why = f"no answer within {seconds:.0f} s"
    return [Finding("WARN", f"the chat template was not compared with the tokenizer's: {why}",
                    "look at the model's tokenizer files; notebook 6 compares again", kind="template")]


if __name__ == "__main__":
    print(json.dumps(finding(json.load(sys.stdin))))
