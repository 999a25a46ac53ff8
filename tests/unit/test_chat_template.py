"""Chat templates against tokenizers' own: what fits is let through, what does not is named before a training."""

import json

import pytest
import tiny

from helpers import chat_template, models
from helpers.errors import KitError
from kto import doctor

LLAMA3 = (  # meta-llama/Meta-Llama-3-8B-Instruct, tokenizer_config.json
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + message['role'] + "
    "'<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}"
    "{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}")
CHATML = (
    "{%% if messages[0]['role'] != 'system' %%}<|im_start|>system\n%s<|im_end|>\n{%% endif %%}{%% for m in messages %%}"
    "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{%% endfor %%}{%% if add_generation_prompt %%}<|im_start|>assistant\n{%% endif %%}")
GEMMA = (  # google/gemma-2-2b-it: refuses a system prompt
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n{{ m['content'] | trim }}"
    "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}")
QWEN = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
MARKS = {"llama3": ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|end_of_text|>"],
         "qwen": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], "gemma": ["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"]}


def model(folder, kind: str, chat: str | None):
    """A tokenizer of single bytes with that family's marks and chat template, and a config.json of exactly so many entries."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers import models as kinds
    from transformers import PreTrainedTokenizerFast

    marks = MARKS[kind]
    words = marks + sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(kinds.BPE({token: place for place, token in enumerate(words)}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    first, last = (None, "<|im_end|>") if kind == "qwen" else (marks[0], marks[-1] if kind == "llama3" else marks[1])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=first, eos_token=last, additional_special_tokens=marks)
    fast.chat_template = chat
    fast.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": len(fast)}))
    return str(folder)


def found(path, template: str, **more):
    return chat_template.finding({"model_name_or_path": str(path), "template": template, **more})


@pytest.mark.parametrize(("kind", "chat"), [("llama3", LLAMA3), ("qwen", CHATML % QWEN), ("gemma", GEMMA)])
def test_a_model_with_its_own_template_is_no_alarm(tmp_path, kind, chat):
    only = found(model(tmp_path, kind, chat), kind)
    assert only.status == "OK" and "as the tokenizer's own" in only.found


def test_the_projects_own_model_is_no_alarm_in_the_process_that_the_doctor_asks(tmp_path):
    config = {"model_name_or_path": str(tiny.model(tmp_path)), "template": "smollm2", "deepspeed": {"a": 1}}
    assert [only.status for only in chat_template.asked(config)] == ["OK"]


def test_marks_for_which_the_model_has_no_embedding_are_a_failure_before_a_gpu_is_paid_for(tmp_path):
    base = model(tmp_path, "qwen", CHATML % QWEN)
    only = found(base, "llama3")
    assert only.status == "FAIL" and "<|eot_id|>" in only.found and "resize_vocab" in only.remedy
    assert "<|start_header_id|>" in (warned := found(base, "llama3", resize_vocab=True)).found and warned.status == "WARN"


def test_marks_that_are_mere_text_to_the_tokenizer_are_named(tmp_path):
    only = found(model(tmp_path, "qwen", None), "zephyr")
    assert only.status == "WARN" and "<|user|>" in only.found and "does not know as a token" in only.found


def test_another_default_system_prompt_is_named_and_the_remedy_mends_it(tmp_path, monkeypatch):
    from llamafactory.data.template import TEMPLATES

    monkeypatch.setattr(TEMPLATES["qwen"], "default_system", TEMPLATES["qwen"].default_system)
    base = model(tmp_path, "qwen", CHATML % "You are a helpful assistant.")
    only = found(base, "qwen")
    assert only.status == "WARN" and QWEN in only.found and "'You are a helpful assistant.'" in only.found
    assert only.remedy == "set default_system: 'You are a helpful assistant.'"
    assert found(base, "qwen", default_system="You are a helpful assistant.").status == "OK"


def test_another_form_of_dialogue_is_shown_where_it_parts(tmp_path):
    base = model(tmp_path, "qwen", models.CHATML.replace("<|im_start|>{{ m['role'] }}", "<|im_start|>{{ m['role'] | upper }}"))
    only = found(base, "smollm2")
    assert only.status == "WARN" and "'user" in only.found and "'USER" in only.found


def test_a_tokenizer_without_a_chat_template_has_nothing_to_compare(tmp_path):
    only = found(model(tmp_path, "qwen", None), "qwen")
    assert only.status == "OK" and "no chat template of its own" in only.found


def test_an_unknown_template_and_a_missing_tokenizer_are_findings(tmp_path):
    assert "smolm2" in found(model(tmp_path / "a", "qwen", None), "smolm2").found
    (tmp_path / "b").mkdir()
    (only,) = chat_template.asked({"model_name_or_path": str(tmp_path / "b"), "template": "qwen"})
    assert only.status == "WARN" and "not compared" in only.found


def test_a_run_is_asked_once_and_again_where_the_config_says_something_else(tmp_path, run):
    config = {"model_name_or_path": model(tmp_path / "base", "qwen", CHATML % QWEN), "template": "qwen"}
    assert chat_template.of_run(run, config)[0].status == "OK"
    run.note(chat_template=run.record()["chat_template"] | {"findings": [["WARN", "kept"]]})
    assert chat_template.of_run(run, config | {"cutoff_len": 64})[0].found == "kept"
    failed = chat_template.of_run(run, config | {"template": "llama3"})
    with pytest.raises(KitError, match="no embedding"):
        chat_template.refuse(failed)


@pytest.mark.slow
def test_the_doctor_names_a_template_that_does_not_fit(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "LIMIT", 120.0)
    values = {"model_name_or_path": model(tmp_path / "base", "qwen", CHATML % QWEN), "template": "llama3", "dataset": "sample"}
    said = doctor.examine("local", str(tmp_path / "storage"), values)
    assert [only.status for only in said if only.kind == "template"] == ["FAIL"]
