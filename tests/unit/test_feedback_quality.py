"""What the rows together show before a GPU is paid for: each in one line, with its remedy."""

import json

import pytest

from feedback import check, find, problems, quality
from helpers import secrets
from helpers.errors import KitError


def ledger_of(tmp_path, rows, **how):
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return check.check(find.find(str(path), tmp_path), **how).ledger


def row(i, reply=None, vote=None):
    return {"prompt": f"Question {i}?", "response": reply or f"Answer {i}.", "vote": i % 2 == 0 if vote is None else vote}


def test_a_label_that_follows_from_length_is_said_with_the_area_under_the_curve(tmp_path):
    ledger = ledger_of(tmp_path, [row(i, "x" * (50 + i % 7 + 30 * (i % 2 == 0))) for i in range(40)])
    (where, reason), = ledger.problems["label follows length"]
    assert "83 characters (median)" in reason and "in 100% of the pairs" in reason and "KTO would learn length" in ledger.text()
    assert "label follows length" not in ledger_of(tmp_path, [row(i, "x" * (50 + i // 2)) for i in range(40)]).counts


def test_the_area_is_that_of_scikit_learn(tmp_path):
    from sklearn.metrics import roc_auc_score

    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(json.dumps(row(i, "x" * (1 + i * 7 % 13), i % 3 == 0)) for i in range(60)))
    checked = check.check(find.find(str(path), tmp_path))
    assert quality.length_auc(checked) == pytest.approx(roc_auc_score(checked.labels, checked.lengths))


def test_a_canned_reply_to_many_prompts_is_noted(tmp_path):
    rows = [row(i) for i in range(20)] + [row(i, "I cannot help with that.", False) for i in range(20, 24)]
    assert ledger_of(tmp_path, rows).problems["one reply, many prompts"] == [("data.jsonl:21", "this reply stands under 4 prompts")]


def test_a_rare_label_and_a_script_of_one_label_are_noted(tmp_path):
    assert "5.0% of the rows are rejected" in ledger_of(tmp_path, [row(i, vote=i % 20 > 0) for i in range(40)]).text()
    ledger = ledger_of(tmp_path, [row(i, f"Ответ {i}" if i % 2 else f"Reply {i}") for i in range(40)])
    assert ledger.problems["language differs by label"] == [("all rows", "Cyrillic: 0% of the accepted replies, 100% of the rejected")]


PRIVATE = {
    "an e-mail address": "write to anna.smith@example.com", "a phone number": "call +49 170 1234567", "a phone number ": "call (030) 1234 5678",
    "a phone number  ": "call 555-123-4567 now", "an IBAN": "to DE89 3704 0044 0532 0130 00", "an IBAN ": "to GB29NWBK60161331926819",
    "a card number": "card 4111 1111 1111 1111", "a social security number": "SSN 078-05-1120", "an IP address": "from 192.168.17.25 today",
}


@pytest.mark.parametrize("what, text", PRIVATE.items())
def test_personal_data_are_counted_and_shown_masked_and_stop_strict(what, text, tmp_path):
    rows = [row(i) for i in range(20)] + [row(20, text)]
    ledger = ledger_of(tmp_path, rows)
    (where, reason), = ledger.problems["personal data"]
    assert where == "data.jsonl:21" and reason.startswith(f"{what.strip()}: ") and reason.endswith("…*****")
    assert text.split()[-1] not in ledger.text()
    with pytest.raises(KitError, match="strict[\\s\\S]*personal data"):
        ledger_of(tmp_path, rows, strict=True)


ISSUED = {"a Hugging Face token": "hf_" + "a" * 34, "an AWS key": "AKIA" + "A" * 16, "an Anyscale or OpenAI key": "sk-" + "a" * 40,
          "a Databricks token": "dapi" + "a" * 32, "a GitHub token": "ghp_" + "a" * 36, "a private key": "-----BEGIN RSA " + "PRIVATE KEY-----"}


def test_every_kind_of_issued_secret_has_a_sample_here():
    assert set(ISSUED) == set(secrets.ISSUED)


@pytest.mark.parametrize("text", [*ISSUED.values(), "password: hunter22", "api_key=abc123def456"])
def test_secrets_in_the_text_are_counted_and_shown_masked(text, tmp_path):
    ledger = ledger_of(tmp_path, [row(i) for i in range(20)] + [row(20, f"use {text} please")])
    assert ledger.counts["secrets"] == 1 and text not in ledger.text()


@pytest.mark.parametrize("text", ["In 1990-2000 it was", "pi is 3.14159265358979", "version 1.2.3", "2026-11-26 12:00:00", "0.8444218515250481", "1,234,567,890",
                                  "order 1234567890123456", "a@b", "password reset", "the secret is out"])
def test_ordinary_numbers_and_words_are_no_personal_data(text):
    assert quality.doubtful(text) == []


def test_every_kind_that_is_noted_has_its_remedy():
    assert all(len(entry) == 3 and entry[1] for entry in problems.NOTED.values())


@pytest.mark.parametrize("text, language", [
    ("You can plant the cloves in autumn.", "English"), ("Die Zehen kommen im Herbst in die Erde.", "German"), ("Plantez les gousses dans la terre.", "French"),
    ("Se plantan los dientes en la tierra.", "Spanish"), ("Gli spicchi si piantano con la punta in su, non di lato.", "Italian"),
    ("Plante os dentes com a ponta para cima, não de lado.", "Portuguese"), ("Plant de tenen in het najaar, niet in de zomer.", "Dutch"),
    ("Сажайте осенью.", "Cyrillic"), ("秋天种。", "Cjk"), ("42", ""), ("Garlic!", ""), ("def f(x): return x", "")])
def test_languages_are_told_by_their_commonest_words_or_their_script(text, language):
    assert quality.language_of(text) == language


def test_a_language_of_one_label_alone_is_noted(tmp_path):
    rows = [{"prompt": f"{i}?", "response": f"{i}: {['Das ist nicht der Weg.', 'This is not the way.'][i % 2]}", "label": i % 2 == 1} for i in range(40)]
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    ledger = check.check(find.find(str(path), tmp_path)).ledger
    assert [reason for _, reason in ledger.problems["language differs by label"]] == [
        "English: 100% of the accepted replies, 0% of the rejected", "German: 0% of the accepted replies, 100% of the rejected"]


@pytest.mark.parametrize("text", [  # put together here, so that no scanner takes this file for a leak
    "eyJ" + "hbGciOiJIUzI1NiJ9" + ".eyJ" + "zdWIiOiIxMjM0In0.x", "xoxb-" + "123456789012-abc", "AIza" + "S" * 35, "sk_live_" + "4eC39HqLyjWD",
    "Authorization: Bearer " + "abcdef0123456789abcdef", "postgres://user:" + "s3cret@db/x", "mot de passe : azerty" + "123", "Kennwort: geheim" + "1",
    "senha: abc" + "12345"])
def test_keys_and_passwords_of_other_makers_and_languages_are_seen_and_masked(text):
    (reason,) = [reason for kind, reason in quality.doubtful(f"use {text} please") if kind == "secrets"]
    assert reason.endswith("…*****") and len(reason) < 12


@pytest.mark.parametrize("text", ["https://example.com/a:b@c", "eyJ is how it begins", "a Bearer of news", "the api is new", "the secret is out"])
def test_what_only_looks_like_a_key_is_no_secret(text):
    assert [kind for kind, _ in quality.doubtful(text) if kind == "secrets"] == []
