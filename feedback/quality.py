"""Checks on the rows as a whole: duplicates, contradictions, labels that follow length, personal data."""

import re
import unicodedata

import numpy as np

from helpers.secrets import LITERAL

EMAIL = re.compile(r"[\w.+-]+@[A-Za-z0-9-]+\.[A-Za-z][\w.-]+")
PERSONAL = {
    "an IBAN": re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){3,7}(?: ?[A-Z0-9]{1,3})?\b"),
    "a card number": re.compile(r"\b(?:\d{4}[ -]?){3}\d{1,4}\b"),
    "a social security number": re.compile(r"\b\d{3}-\d{2}-\d{4}\b"),
    "an IP address": re.compile(r"(?<![\w.])(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(?:25[0-5]|2[0-4]\d|1?\d?\d)(?![\w.])"),
    "a phone number": re.compile(r"(?<![\w.+/-])(?:\+\d{1,3}[ ./-]?\(?\d|\(\d{2,5}\) ?\d|0\d{1,4}[ -]\d|\d{3}[-.]\d{3}[-.]\d)"
                                 r"[\d ()./-]{2,14}\d(?![\w-])"),
}
PASSWORD = re.compile(r"(?i)\b(?:password|passwd|passwort|kennwort|mot de passe|contraseña|senha|пароль|密码|api[_-]?key|secret)\b"
                      r"[ ]?(?:is|ist|es|est|[:：=])[ ]?[\"']?(?=\S*\d)[^\s\"',;]{6,}")
TOKEN = re.compile(r"\beyJ[\w-]{10,}\.eyJ[\w-]{10,}|\bxox[abpr]-[\w-]{10,}|\bAIza[\w-]{30,}|\b[sr]k_live_\w{10,}"
                   r"|\bBearer [\w.-]{20,}|://[^\s:/@]+:[^\s/@]{3,}@")
"""a JSON Web Token, keys of Slack, Google and Stripe, a header, a password in an address"""
SECRETS = {
    LITERAL: ("hf_", "akia", "asia", "aph0_", "sk-", "dapi", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "private key"),
    TOKEN: ("eyj", "xox", "aiza", "k_live_", "bearer ", "://"),
    PASSWORD: ("passw", "kennwort", "mot de passe", "contrase", "senha", "парол", "密码", "api", "secret"),
}
"""pattern -> one of these, in small letters, is in what it finds: most texts have none, and are done without a search"""
GARBLED = re.compile("Ã[\x80-\xbf‰Ÿ€œ“”–—‡„]|â€|<\\|user\\|>|\ufffd|\\w&#39;\\w|\\s&quot;\\w|[.!?:](?:\\\\n)+[A-Z][a-z]+ ")
DIGITS = re.compile(r"\d[\d ()./-]{6,}")

COMMON = {language: set(words.split()) for language, words in {
    "English": "the and is of to you it that for with are this your can",
    "German": "der die das und ist nicht ein eine im sie zu den mit auf ich",
    "French": "le la les et est des une que pour dans vous pas du", "Spanish": "el la los que es una por para con las del se como",
    "Italian": "il che di la è un per non una sono con del gli", "Portuguese": "o que de não uma para com os do da um em",
    "Dutch": "de het een en van is dat niet op zijn je met voor"}.items()}
RARE = 0.1
LENGTH_AUC = 0.7
"""from here on a label is said to follow from the reply's length (0.5: not at all, 1: entirely)"""


def doubtful(text: str) -> list[tuple[str, str]]:
    """(kind, reason) of what looks garbled, personal or secret in a text; the latter masked but for its first letters."""
    found, lower = [], text.lower()
    if "@" in text and (hit := EMAIL.search(text)):
        found.append(("personal data", f"an e-mail address: {_masked(hit[0])}"))
    near = (text[max(digits.start() - 20, 0) : digits.end() + 20] for digits in DIGITS.finditer(text))
    hits = ((name, hit[0]) for part in near for name, pattern in PERSONAL.items()  # around long numbers alone: most texts have none
            if (hit := pattern.search(part)) and (name != "a card number" or is_card(hit[0])))
    if hit := next(hits, None):
        found.append(("personal data", f"{hit[0]}: {_masked(hit[1])}"))
    if any(mark in text for mark in ("Ã", "â€", "<|user|>", "\ufffd", "&#39;", "&quot;", "\\n")) and (hit := GARBLED.search(text)):
        found.append(("garbled text", f"{hit[0]!r}: left over from another encoding, a web page, or a chat template"))
    likely = (pattern for pattern, hints in SECRETS.items() if any(hint in lower for hint in hints))
    if hit := next((hit for pattern in likely if (hit := pattern.search(text))), None):
        found.append(("secrets", _masked(hit[0])))
    return found


def look_across(checked) -> None:
    """Enter into the ledger what no single row shows."""
    import pandas as pd

    where, note, labels = checked.where, checked.ledger.note, checked.labels
    order = np.lexsort((labels, checked.replies))
    same = np.flatnonzero(checked.replies[order[1:]] == checked.replies[order[:-1]])
    repeats = [(where[i], where[j], labels[i] == labels[j]) for i, j in zip(order[same + 1], order[same], strict=True)]
    note("both labels", ((here, f"against {there}") for here, there, alike in repeats if not alike))
    note("duplicate", ((here, f"repeats {there}") for here, there, alike in repeats if alike))
    keys = checked.words ^ labels.astype(np.uint64)  # a reply with its label
    table = pd.DataFrame({"row": np.arange(len(keys)), "prompt": checked.prompts}).groupby(keys)
    often = zip(table["row"].first(), table["prompt"].nunique(), strict=True)
    note("one reply, many prompts", ((where[i], f"this reply stands under {prompts:,} prompts") for i, prompts in often if prompts > 2))
    count, share, longest = len(labels), labels.mean(), int(checked.lengths.max())
    cut = np.flatnonzero(checked.lengths == longest)
    if longest >= 200 and len(np.unique(checked.words[cut])) > 2:
        note("cut off", ((where[i], f"{longest:,} characters, as {len(cut) - 1} others, and no reply has more") for i in cut))
    if count >= 5 and (checked.prompts == checked.prompts[0]).all():
        note("one prompt", [("all rows", "the prompt is the same in every row")])
    if count >= 20 and 0 < min(share, 1 - share) < RARE:
        only = "accepted" if share < 0.5 else "rejected"
        note("one label is rare", [("all rows", f"{min(share, 1 - share):.1%} of the rows are {only}")])
    if min(labels.sum(), (~labels).sum()) >= 10:
        auc = length_auc(checked)
        if max(auc, 1 - auc) >= LENGTH_AUC:
            note("label follows length", [("all rows", lengths_in_words(checked))])
        shares, languages = {}, np.array(checked.languages)
        for language in sorted(set(checked.languages) - {""}):
            mine = languages == language
            shares[language] = mine[labels].mean(), mine[~labels].mean()
        note("language differs by label", [
            ("all rows", f"{language}: {accepted:.0%} of the accepted replies, {rejected:.0%} of the rejected")
            for language, (accepted, rejected) in shares.items() if abs(accepted - rejected) >= 0.2])


def length_auc(checked) -> float:
    """Area under the curve of the reply's length against the label: in so many pairs the longer reply is the accepted one."""
    import pandas as pd

    ranks = pd.Series(checked.lengths).rank().to_numpy()
    accepted, rejected = int(checked.labels.sum()), int((~checked.labels).sum())
    return float((ranks[checked.labels].sum() - accepted * (accepted + 1) / 2) / (accepted * rejected))


def lengths_in_words(checked) -> str:
    """Lengths by label in one line; both labels must be there."""
    accepted, rejected = (int(np.median(checked.lengths[side])) for side in (checked.labels, ~checked.labels))
    auc = length_auc(checked)
    return (f"accepted replies have {accepted:,} characters (median), rejected ones {rejected:,}; the longer of two is the "
            f"accepted one in {auc:.0%} of the pairs (50 % would be no link)")


def language_of(text: str) -> str:
    """The script of a text's first letter (Cyrillic, Cjk, Arabic, …); of Latin texts the language, by its commonest words; or ""."""
    letter = next((char for char in text[:200] if char.isalpha()), "")
    if letter > "\x7f" and (script := unicodedata.name(letter, "").split(" ")[0]) != "LATIN":
        return script.capitalize()
    words = set(text[:300].lower().split())
    hits = {language: len(words & common) for language, common in COMMON.items()} if letter else {}
    best = max(hits, key=hits.get, default="")
    return best if hits.get(best, 0) > 1 and list(hits.values()).count(hits[best]) == 1 else ""


def is_card(number: str) -> bool:
    """Whether the digits of a card number have the right check sum (Luhn's)."""
    digits = [int(char) for char in number if char.isdigit()][::-1]
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[1::2]]
    return len(digits) >= 13 and (sum(digits[::2]) + sum(doubled)) % 10 == 0


def _masked(text: str) -> str:
    return text[: min(3, len(text) // 3)] + "…" + "*" * 5
