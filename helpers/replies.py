"""Replies to held-out prompts before and after training, side by side."""

import html
import random
from pathlib import Path

from . import files
from .chat_template import Row
from .errors import refuse_out_of_range

STYLE = """<style>
.replies { border-collapse: collapse; font: 14px/1.4 system-ui, sans-serif; }
table.replies th, table.replies td { border: 1px solid #8888; padding: 6px 10px; text-align: left; vertical-align: top; }
.replies td { max-width: 24em; white-space: pre-wrap; }
</style>"""


def choose(rows: list[Row], samples: int) -> list[Row]:
    """`samples` rows with different prompts, drawn at random, always the same ones; in the order of `rows`."""
    refuse_out_of_range(samples=samples)
    first = {tuple(row.prompt_ids): index for index, row in reversed(list(enumerate(rows)))}
    indices = sorted(first.values())
    return [rows[i] for i in sorted(random.Random(0).sample(indices, min(samples, len(indices))))]


def before_after(scorer, rows: list[Row], table, max_new_tokens: int):
    """Greedy replies of reference and tuned model to the prompts of `rows`; a DataFrame, one line a prompt.

    Columns: `prompt`, `before`, `after`, `changed`; and from `table` (see `evaluate.rewards`), of the held-out replies to
    that prompt: `likelier` (see there), and `rated`, each with its label and implied reward.
    """
    import pandas

    frame = pandas.DataFrame({"prompt": [row.prompt for row in rows],
                              "before": scorer.replies(rows, tuned=False, max_new_tokens=max_new_tokens),
                              "after": scorer.replies(rows, tuned=True, max_new_tokens=max_new_tokens)})
    words = [f"{'accepted' if line.label else 'rejected'} {line.reward:+.2f}: {line.reply}" for line in table.itertuples()]
    rated = table.assign(words=words).groupby("prompt")["words"].agg("\n".join)
    return frame.assign(changed=frame["before"] != frame["after"], likelier=frame["prompt"].map(likelier(table)).fillna(""),
                        rated=frame["prompt"].map(rated).fillna(""))


def likelier(table):
    """A Series, prompt -> `rejected → accepted` and the like: the label of its likeliest held-out reply before and after training.

    `table`: of `evaluate.rewards`; only prompts with both labels count.
    """
    both = table.groupby("prompt")["label"].transform("nunique") == 2
    likeliest = table[both].groupby("prompt")[["logp_reference", "logp_policy"]].idxmax()
    label = table["label"].map({True: "accepted", False: "rejected"})
    return likeliest["logp_reference"].map(label) + " → " + likeliest["logp_policy"].map(label)


def moved(table) -> dict[str, int]:
    """How many held-out prompts with both labels went from which to which: {"rejected → accepted": 3, …}."""
    return likelier(table).value_counts().sort_index().to_dict()


def page(replies, path: Path, title: str) -> str:
    """The table as HTML, every text escaped; also written to `path` as a complete page."""
    import pandas

    titles = {"prompt": "held-out prompt", "before": "before training", "after": "after training",
              "likelier": "likelier held-out reply", "rated": "held-out replies and their implied reward"}
    shown = replies.assign(changed=replies["changed"].map({True: "yes", False: "no"})).rename(columns=titles)
    with pandas.option_context("display.max_colwidth", None):
        # formatted by `str`, as pandas itself writes a line break as a backslash and an n
        table = STYLE + shown.to_html(index=False, escape=True, classes="replies", border=0, formatters=[str] * shown.shape[1])
    title = html.escape(title)
    files.write(path, f'<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8"><title>{title}</title></head>\n'
                      f"<body>\n<h1>{title}</h1>\n{table}\n</body>\n</html>\n")
    return table
