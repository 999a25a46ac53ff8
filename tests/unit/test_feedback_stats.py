"""What labels and lengths imply, and the figures of both."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feedback import check, find, register, stats
from helpers import cluster, figures
from helpers.errors import KitError


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    return check.check(find.find("short_answers", tmp_path_factory.mktemp("downloads")))


@pytest.fixture(scope="module")
def letters(tmp_path_factory):
    """A tokenizer for which every byte is a token, with a chat template; its folder."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {letter: place for place, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    wrapped.chat_template = ("{% for m in messages %}{{ m['role'][0] }}{{ m['content'] }}\n{% endfor %}"
                             "{% if add_generation_prompt %}a{% endif %}")
    folder = tmp_path_factory.mktemp("letters")
    wrapped.save_pretrained(folder)
    return str(folder)


def test_the_weights_of_the_papers_example_are_its_own():
    assert stats.weights(200, 800) == {"kto_chosen_weight": 4.0, "kto_rejected_weight": 1.0}


@given(st.integers(1, 10_000), st.integers(1, 10_000))
def test_the_recommended_weights_balance_any_counts_and_change_one_only(accepted, rejected):
    weights = stats.weights(accepted, rejected)
    assert 1 - 1e-9 <= stats.balance(accepted, rejected, **weights) <= stats.HIGHEST * 1.011
    assert 1.0 in weights.values()
    if 1 <= accepted / rejected <= stats.HIGHEST:
        assert set(weights.values()) == {1.0}


def test_counts_add_up(shipped):
    counts = stats.counts(shipped, register.split(shipped))
    assert counts["rows"].sum() == len(shipped.labels)
    assert (counts["accepted"] + counts["rejected"]).equals(counts["rows"])


def test_tokens_are_counted_with_the_models_own_template(shipped, letters):
    lengths = stats.token_lengths(shipped, letters, cutoff_len=200)
    question, reply = (turn["content"].encode() for turn in shipped.rows([1])[0]["messages"])
    assert lengths.loc[1, "prompt"] == len(question) + 3, "u, the line's end, and a"
    assert lengths.loc[1, "reply"] == len(reply) + 1
    assert lengths.attrs["how"] == "the model's chat template"
    assert (lengths["kept_reply"] <= lengths["reply"]).all()


def test_rows_over_the_cutoff_are_noted_with_what_their_reply_loses(shipped, letters):
    lengths = stats.token_lengths(shipped, letters, cutoff_len=60)
    cutting = stats.note_cutoff(shipped, lengths, 60)
    over = (lengths["total"] > 60).sum()
    assert shipped.ledger.counts["over the cutoff"] == over
    assert cutting["share_over"] == pytest.approx(over / len(lengths), abs=1e-4)
    assert 0 < cutting["mean_reply_lost"] < 1
    where, reason = shipped.ledger.problems["over the cutoff"][0]
    assert where.startswith("short_answers.json:") and "of its reply" in reason


def test_a_large_dataset_is_sampled_and_the_sample_is_the_seeds(shipped, letters, monkeypatch):
    monkeypatch.setattr(stats, "MEASURED", 50)
    first, again = (stats.token_lengths(shipped, letters, 100) for _ in range(2))
    assert len(first) == 50 and first.equals(again)


def test_a_model_without_a_tokenizer_is_an_error(shipped, tmp_path):
    with pytest.raises(KitError, match="no tokenizer"):
        stats.token_lengths(shipped, str(tmp_path), 100)


def test_the_figures_show_every_label_and_the_cutoff(shipped):
    counts = stats.counts(shipped, register.split(shipped))
    bars = figures.labels(counts).axes[0]
    assert [text.get_text() for text in bars.get_legend().get_texts()] == ["accepted", "rejected"]
    turns = figures.turns(stats.turns(shipped)).axes[0]
    assert [label.get_text() for label in turns.get_xticklabels()] == ["1", "2", "3"]
    lengths = figures.token_lengths({"accepted": [10, 300], "rejected": [20, 30]}, 256).axes[0]
    legend = [text.get_text() for text in lengths.get_legend().get_texts()]
    assert legend == ["accepted: 50% over the cutoff", "rejected: 0% over the cutoff", "cutoff_len 256"]


def test_the_figure_of_reply_lengths_says_what_length_tells_of_the_label():
    axes = figures.reply_lengths({"accepted": [10, 20, 30], "rejected": [200, 300, 4000]}, 0.0).axes[0]
    assert axes.get_title().endswith("AUC 0.00")
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["accepted: median 20", "rejected: median 300"]
    assert sum(patch.get_xy()[:, 1].max() for patch in axes.patches) > 0


def test_labels_differ_in_the_figures_without_colour():
    (_, line, hatch), (_, other_line, other_hatch) = figures.STYLE["accepted"], figures.STYLE["rejected"]
    assert line != other_line and hatch != other_hatch


def test_what_a_node_sees_is_rows_and_hash_or_the_reason(tmp_path):
    (name,) = register.write(tmp_path, "data", [("", [b"{}\n", b"{}\n"])])
    assert cluster.seen(tmp_path, name)[0] == 2
    rows, words = cluster.seen(tmp_path, "other")
    assert rows == 0 and "no dataset 'other'" in words
