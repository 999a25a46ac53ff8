"""The judge of every shape: LLaMA-Factory's own loader reads what was written, row for row and label for label."""

import json
import subprocess
import sys

import pytest

from feedback import check, stats
from helpers import files


def read_registered(folder, name):
    return [json.loads(line) for line in files.data_file(folder, name).read_text().splitlines()]


TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {
    "properties": {"city": {"type": "string", "enum": ["Oslo", 5]}, "day": None}}}}]
CALL = {"name": "weather", "arguments": {"city": "Oslo"}}


def dialogue(i, role="role", content="content", user="user", assistant="assistant"):
    turns = [{role: user, content: f"Why {i}?"}, {role: assistant, content: f"Because {i}."}]
    return turns + [{role: user, content: "And why so?"}, {role: assistant, content: f"Thus {i}."}] * (i % 4 == 0)


def with_tools(i):
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": f"How cold {i}?"}]
    if i % 3:  # some rows have tools, some none: the column must be the same type in all
        called = {"role": "function_call", "content": json.dumps(CALL)} if i % 2 else {
            "role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": CALL}]}
        turns += [called, {"role": "tool", "content": '{"celsius": 4}'}]
    return turns + [{"role": "assistant", "content": f"{i} degrees."}]


def call_as_reply(i):
    return [{"role": "user", "content": f"How cold {i}?"}, {"role": "function_call", "content": json.dumps(CALL)}]


def label(i):
    return i % 5 < 3


SHAPES = {
    "role_content": lambda i: {"messages": dialogue(i), "label": label(i)},
    "from_value": lambda i: {"conversations": dialogue(i, "from", "value", "human", "gpt"), "kto_tag": label(i)},
    "system": lambda i: {"messages": dialogue(i), "system": "Be brief." * (i % 2), "label": label(i)},
    "tools": lambda i: {"messages": with_tools(i), "tools": TOOLS if i % 3 else None, "label": label(i)},
    "call": lambda i: {"messages": call_as_reply(i), "tools": json.dumps(TOOLS), "label": label(i)},
    "trl": lambda i: {"prompt": f"Why {i}?", "completion": f"Because {i}.", "label": label(i)},
    "trl_turns": lambda i: {"prompt": dialogue(i)[:-1], "completion": dialogue(i)[-1:], "label": label(i)},
    "thumbs": lambda i: {"prompt": f"Why {i}?", "response": f"Because {i}.", "rating": "up" if label(i) else "down"},
    "zero_one": lambda i: {"prompt": f"Why {i}?", "response": f"Because {i}.", "rating": int(label(i))},
    "minus_one": lambda i: {"prompt": f"Why {i}?", "response": f"Because {i}.", "rating": 1 if label(i) else -1},
    "stars": lambda i: {"prompt": f"Why {i}?", "response": f"Because {i}.", "stars": i % 5 + 1},
    "alpaca": lambda i: {"instruction": f"Why {i}?", "input": "Say it.", "output": "So.", "kto_tag": label(i)},
    "pairs": lambda i: {"prompt": f"Why {i}?", "chosen": f"Because {i}.", "rejected": f"No {i}."},
    "pairs_turns": lambda i: {"conversations": dialogue(i, "from", "value", "human", "gpt")[:-1],
                              "chosen": {"from": "gpt", "value": "Yes."}, "rejected": {"from": "gpt", "value": "No."}},
    "parallel": lambda i: {"messages": [
        {"role": "user", "content": f"How cold {i}?"},
        {"role": "assistant", "content": None, "tool_calls": [{"function": CALL}, {"function": CALL}]},
        {"role": "tool", "content": "4"}, {"role": "tool", "content": "5"}, {"role": "assistant", "content": "Cold."}],
        "tools": TOOLS, "label": label(i)},
    "transcript": lambda i: {"prompt": f"Human: Why {i}?\n\nAssistant:", "completion": f"Because {i}.", "label": label(i)},
    "broken": lambda i: [{"messages": dialogue(i), "label": label(i)}, {"messages": dialogue(i)[1:], "label": True},
                         {"messages": dialogue(i), "label": None}, "no row"][0 if i % 7 else i % 4],
}

LOADER = """
import json, sys
from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
from llamafactory.data.processor.processor_utils import infer_seqlen
from llamafactory.hparams import DataArguments, ModelArguments
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Seq2SeqTrainingArguments
letters = Tokenizer(models.BPE({letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
letters.pre_tokenizer, letters.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=letters, eos_token="<|im_end|>", pad_token="<|im_end|>",
                                    additional_special_tokens=["<|im_start|>"])
folder, *names = sys.argv[1:]
steps = range(0, 90, 7), range(1, 90, 8), (16, 33, 64)
lengths = [(prompt, reply, cutoff) for prompt in steps[0] for reply in steps[1] for cutoff in steps[2]]
answers = {"cut": [[each, infer_seqlen(*each)] for each in lengths]}
for name in names:
    data = DataArguments(dataset_dir=folder, dataset=name, template="smollm2", cutoff_len=2048, overwrite_cache=True)
    template = get_template_and_fix_tokenizer(tokenizer, data)
    arguments = Seq2SeqTrainingArguments(output_dir=folder + "/out", report_to="none", log_level="error")
    loaded = get_dataset(template, ModelArguments(model_name_or_path="none"), data, arguments, "kto", tokenizer)
    rows = loaded["train_dataset"]
    replies = [tokenizer.decode([token for token in row if token >= 0]) for row in rows["labels"]]
    answers[name] = {"labels": rows["kto_tags"], "replies": replies,
                     "texts": [tokenizer.decode(ids) for ids in rows["input_ids"][:4]]}
json.dump(answers, open(folder + "/answers.json", "w"))
"""


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """(facts, answers): what the notebook would report of each shape, and what LLaMA-Factory 0.9.3 makes of it."""
    folder = tmp_path_factory.mktemp("data")
    facts = {}
    for name, make in SHAPES.items():
        path = folder / f"{name}.jsonl"
        path.write_text("\n".join(json.dumps(make(i)) for i in range(60)))
        facts[name] = check.prepare(str(path), folder / "prepared", heldout=0.25, refuse_share=1)
    names = [each[key] for each in facts.values() for key in ("name", "heldout_name")]
    done = subprocess.run([sys.executable, "-c", LOADER, str(folder / "prepared"), *names],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return facts, json.loads((folder / "prepared" / "answers.json").read_text()), folder / "prepared"


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_llama_factory_reads_as_many_rows_with_the_same_labels_as_were_reported(loaded, shape):
    facts, answers, folder = loaded
    for prefix, name in (("", facts[shape]["name"]), ("heldout_", facts[shape]["heldout_name"])):
        written = read_registered(folder, name)
        assert answers[name]["labels"] == [row["label"] for row in written]
        assert len(written) == facts[shape][f"{prefix}rows"]
        assert sum(answers[name]["labels"]) == facts[shape][f"{prefix}accepted"]


@pytest.mark.slow
@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape != "call"])
def test_llama_factory_learns_the_reply_that_was_written(loaded, shape):
    facts, answers, folder = loaded
    written = read_registered(folder, facts[shape]["name"])
    for reply, row in zip(answers[facts[shape]["name"]]["replies"], written, strict=True):
        assert reply.removesuffix("\n").removesuffix("<|im_end|>") == row["messages"][-1]["content"]


@pytest.mark.slow
def test_the_cutoff_takes_what_llama_factory_takes(loaded):
    for (prompt, reply, cutoff), kept in loaded[1]["cut"]:
        assert stats.cut(prompt, reply, cutoff) == tuple(kept)


@pytest.mark.slow
def test_llama_factory_gets_tools_and_system_where_a_row_has_them(loaded):
    facts, answers, folder = loaded
    name = facts["tools"]["name"]
    for text, row in zip(answers[name]["texts"], read_registered(folder, name), strict=False):
        assert "Be brief." in text
        assert ("Tool Name: weather" in text) == bool(row["tools"])
