"""Replies of the model before and after training to held-out prompts, side by side."""

import html
import random
from pathlib import Path

from . import files
from .encoding import Row

STYLE = """<style>
.replies { border-collapse: collapse; font: 14px/1.4 system-ui, sans-serif; }
.replies th, .replies td { border: 1px solid #8888; padding: 6px 10px; text-align: left; vertical-align: top; }
.replies td { max-width: 24em; white-space: pre-wrap; }
</style>"""


def choose(rows: list[Row], samples: int) -> list[Row]:
    """`samples` rows with different prompts, drawn at random, always the same ones; in the order of `rows`."""
    first = {tuple(row.prompt_ids): index for index, row in reversed(list(enumerate(rows)))}
    indices = sorted(first.values())
    return [rows[i] for i in sorted(random.Random(0).sample(indices, min(samples, len(indices))))]


def before_after(scorer, rows: list[Row], table, max_new_tokens: int = 32):
    """Greedy replies of reference and tuned model to the prompts of `rows`; a DataFrame, one line a prompt.

    Columns: `prompt`, `before`, `after`, `changed` (whether they differ); and from `table` (see `evaluate.rewards`), of
    the held-out replies to that prompt: `likelier`, the label of the one that the model finds likelier, before → after,
    where there are both, and `rated`, each reply with its label and implied reward.
    """
    import pandas

    before = scorer.replies(rows, tuned=False, max_new_tokens=max_new_tokens)
    after = scorer.replies(rows, tuned=True, max_new_tokens=max_new_tokens)
    held = [table[table["prompt"] == row.prompt] for row in rows]
    rated = ["\n".join(f"{'accepted' if line.label else 'rejected'} {line.reward:+.2f}: {line.reply}"
                       for line in lines.itertuples()) for lines in held]
    changed = [old != new for old, new in zip(before, after, strict=True)]
    return pandas.DataFrame({"prompt": [row.prompt for row in rows], "before": before, "after": after, "changed": changed,
                             "likelier": [likelier(lines) for lines in held], "rated": rated})


def likelier(lines) -> str:
    """`rejected → accepted` and the like: the label of one prompt's likeliest reply, before and after training.

    `lines`: that prompt's lines of `evaluate.rewards`; an empty string if they do not have both labels.
    """
    if lines["label"].nunique() < 2:
        return ""
    labels = [lines.loc[lines[column].idxmax(), "label"] for column in ("logp_reference", "logp_policy")]
    return " → ".join("accepted" if label else "rejected" for label in labels)


def moved(table) -> dict[str, int]:
    """How many held-out prompts with both labels went from which to which: {"rejected → accepted": 3, …}."""
    words = [likelier(lines) for _, lines in table.groupby("prompt", sort=False)]
    return {word: words.count(word) for word in sorted(set(words) - {""})}


def page(replies, path: Path, title: str) -> str:
    """The table as HTML, every text escaped; also written to `path` as a page that stands by itself."""
    import pandas

    titles = {"prompt": "held-out prompt", "before": "before training", "after": "after training",
              "likelier": "likelier held-out reply", "rated": "held-out replies and their implied reward"}
    shown = replies.assign(changed=["yes" if changed else "no" for changed in replies["changed"]]).rename(columns=titles)
    with pandas.option_context("display.max_colwidth", None):
        # formatted by `str`, as pandas itself writes a line break as a backslash and an n
        table = STYLE + shown.to_html(index=False, escape=True, classes="replies", border=0, formatters=[str] * shown.shape[1])
    title = html.escape(title)
    files.write(path, f'<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8"><title>{title}</title></head>\n'
                      f"<body>\n<h1>{title}</h1>\n{table}\n</body>\n</html>\n")
    return table
