"""Whether LLaMA-Factory's chat template fits the model: its tokens exist, and it writes a dialogue as the tokenizer's own does.

`python -m helpers.chat_template` takes a config as JSON on stdin and prints findings as JSON: LLaMA-Factory takes seconds to import.
"""

import json
import os
import re
import subprocess
import sys

from . import files
from .errors import Finding, KitError
from .profiles import ROOT

SYSTEM, QUESTION = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is tea?"}
ANSWER, ANOTHER = {"role": "assistant", "content": "A drink."}, {"role": "user", "content": "And coffee?"}
DIALOGUES = ([QUESTION], [SYSTEM, QUESTION], [QUESTION, ANSWER, ANOTHER])
ASKED = ("model_name_or_path", "template", "default_system", "enable_thinking", "tool_format", "resize_vocab", "add_tokens",
         "add_special_tokens")
"""The keys of a config that decide it."""
TOKEN = re.compile(r"<[^<>\s]+>")
SAME = "give `template` the model's own (LLaMA-Factory's list: its README, Supported Models)"


def findings(config: dict) -> list[Finding]:
    """One OK, or what does not fit: FAIL where training could not run, WARN where the model is asked as it never was before.

    `config`: model_name_or_path, template, and what else decides how rows become tokens (encoding.KEYS, resize_vocab). A hub id's
    tokenizer is downloaded.
    """
    from .encoding import Encoder
    from .quiet import quietly

    model, name = str(config["model_name_or_path"]), config.get("template")
    try:
        with quietly():
            from transformers import AutoConfig, AutoTokenizer

            tokenizer, own = (AutoTokenizer.from_pretrained(model) for _ in range(2))
            entries = AutoConfig.from_pretrained(model).get_text_config().vocab_size
    except (OSError, ValueError) as error:
        return [Finding("WARN", f"the template {name} was not compared with {model}: {str(error).splitlines()[0]}",
                        "look at the model's tokenizer files; notebook 6 compares again", kind="template")]
    try:
        with quietly():
            template = Encoder(config, tokenizer).template
    except KitError as error:
        return [Finding("FAIL", error.found, error.remedy, kind="template")]
    written = [training(template, tokenizer, dialogue) for dialogue in DIALOGUES]
    texts = " ".join(tokenizer.decode(prompt + reply) for prompt, reply in written)
    missing = sorted(set(TOKEN.findall(texts)) - own.get_vocab().keys())
    beyond = sorted({tokenizer.decode(token) for pair in written for ids in pair for token in ids if token >= entries})
    if beyond and not config.get("resize_vocab"):
        return [Finding("FAIL", f"the template {name} writes {', '.join(beyond)}, for which the model has no embedding "
                        f"(it has {entries:,})", f"{SAME}, or resize_vocab: true to learn new ones", kind="template")]
    theirs = [served(own, dialogue) for dialogue in DIALOGUES]
    differ = [(ours, other) for (ours, _), other in zip(written, theirs, strict=True) if other is not None and ours != other]
    if not differ and any(theirs):
        return [Finding("OK", f"the template {name} writes dialogues as the tokenizer's own chat template does")]
    if missing:
        return [Finding("WARN", f"the template {name} writes {', '.join(missing)}, which the tokenizer does not know as a token",
                        SAME, "the model was taught with other marks between turns", kind="template")]
    if not differ:
        return [Finding("OK", f"the tokenizer has no chat template of its own to compare {name} with")]
    if written[1][0] == theirs[1] and written[0][0] != theirs[0]:
        said, usual = template.default_system or "", default_system(own)
        return [Finding("WARN", f"the default system prompt differs: the template {name} writes {said!r}, the tokenizer's own chat "
                        f"template {usual!r}", f"set default_system: {usual!r}" if usual else SAME,
                        "a server that is sent no system prompt would ask the model otherwise than training did", kind="template")]
    return [Finding("WARN", f"the template {name} does not write a dialogue as the tokenizer's own chat template does: "
                    + difference(own, *differ[0]), SAME, "the model is trained in a form that a server will not ask it in",
                    kind="template")]


def training(template, tokenizer, dialogue: list[dict]) -> tuple[list[int], list[int]]:
    """(prompt, reply) as token ids, as LLaMA-Factory's processor writes them in training."""
    system = dialogue[0]["content"] if dialogue[0]["role"] == "system" else None
    return template.encode_oneturn(tokenizer, [turn for turn in dialogue if turn["role"] != "system"] + [ANSWER], system, None)


def served(tokenizer, dialogue: list[dict]) -> list[int] | None:
    """The prompt's ids by the tokenizer's chat template; None where it has none, or refuses the dialogue (a system prompt)."""
    from jinja2 import TemplateError

    try:
        return list(tokenizer.apply_chat_template(dialogue, add_generation_prompt=True)) if tokenizer.chat_template else None
    except TemplateError:
        return None


def default_system(tokenizer) -> str:
    """The system prompt that the chat template writes where none is given."""
    without, given = (tokenizer.apply_chat_template(dialogue, tokenize=False) for dialogue in DIALOGUES[:2])
    before, _, after = given.partition(SYSTEM["content"])
    inside = without.startswith(before) and without.endswith(after)
    return without[len(before):len(without) - len(after)] if inside else ""


def difference(tokenizer, ours: list[int], theirs: list[int]) -> str:
    """Where two lists of ids part, in words."""
    place = next((i for i, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), min(len(ours), len(theirs)))
    here, there = (tokenizer.decode(ids[place:place + 12]) for ids in (ours, theirs))
    return f"{here!r} where that has {there!r}"


def of_run(run, config: dict) -> list[Finding]:
    """The findings of a run's config: those that an earlier notebook kept in run.json where nothing of it changed since."""
    question, kept = {key: config[key] for key in ASKED if config.get(key)}, run.record().get("chat_template", {})
    if kept.get("config") != question:
        found = (findings if os.path.isdir(str(config["model_name_or_path"])) else asked)(question)
        kept = run.note(chat_template={"config": question, "findings": found})["chat_template"]
    return [Finding(*row) for row in kept["findings"]]


def refuse(found: list[Finding]) -> None:
    """KitError for the first FAIL among them."""
    for finding in found:
        if finding.status == "FAIL":
            raise KitError(finding.found, "", finding.remedy)


def asked(config: dict, seconds: float = 60.0) -> list[Finding]:
    """`findings` from a process of its own, within `seconds`."""
    keys = {key: value for key, value in config.items() if isinstance(value, str | int | float | bool)}
    environment = {"HF_HUB_ETAG_TIMEOUT": "5", "HF_HUB_DOWNLOAD_TIMEOUT": "5", "CUDA_VISIBLE_DEVICES": ""}
    try:
        with files.hub_or_cache(str(config["model_name_or_path"])):
            done = subprocess.run([sys.executable, "-m", "helpers.chat_template"], input=json.dumps(keys), text=True, cwd=ROOT,
                                  env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                                  timeout=max(1.0, seconds))
        return [Finding(*row) for row in json.loads(done.stdout.splitlines()[-1])]
    except (subprocess.TimeoutExpired, IndexError, ValueError):
        return [Finding("WARN", f"the chat template was not compared with the tokenizer's within {seconds:.0f} s",
                        "notebook 1 compares them", kind="template")]


if __name__ == "__main__":
    print(json.dumps(findings(json.load(sys.stdin))))
