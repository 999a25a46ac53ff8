"""The base model made ready."""

import tiny

from helpers import models


def test_a_model_in_several_files_answers_without_a_progress_bar(tmp_path, capfd):
    from transformers import AutoModelForCausalLM

    base = tiny.model(tmp_path / "base")
    AutoModelForCausalLM.from_pretrained(base).save_pretrained(base, max_shard_size="50KB")
    (base / "model.safetensors").unlink(missing_ok=True)
    assert len(list(base.glob("model-*.safetensors"))) > 1
    capfd.readouterr()
    assert len(models.generate(str(base), ["Hello?", "Yes?"], max_new_tokens=2)) == 2
    assert capfd.readouterr().err == ""


def test_a_base_model_without_a_chat_template_answers_too(tmp_path):
    from transformers import AutoTokenizer

    base = tiny.model(tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = None
    (base / "chat_template.jinja").unlink(missing_ok=True)
    tokenizer.save_pretrained(base)
    assert AutoTokenizer.from_pretrained(base).chat_template is None
    assert len(models.generate(str(base), ["Hello?", "Yes?"], max_new_tokens=2)) == 2
