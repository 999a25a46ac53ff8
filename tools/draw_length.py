"""Draws notebooks/pictures/length.png: how long a model's replies become where the label is right, and where it only follows length.

    kto sweep -p dataset=short_answers,longer.json -p max_steps=24 --name length
    .venv/bin/python tools/draw_length.py storage/length-short-… storage/length-longer-…

longer.json is dataset-configs/short_answers.json with every label replaced by "longer than the median reply". Both models reply
to the first run's held-out prompts, at most 64 tokens, always the likeliest one.
"""

import sys
from pathlib import Path

from helpers import evaluate, plots, replies, runs
from helpers.plots import BLACK, BLUE, VERMILLION
from helpers.profiles import ROOT

MOST = 64


def lengths(run, prompts: list, tuned: bool) -> list[int]:
    """Tokens of the reply to each prompt, by the model before or after this run's training."""
    scorer = evaluate.Scorer(run.config(), run.storage / run.name / run.record()["checkpoint"]["best"])
    said = scorer.replies(prompts, tuned=tuned, max_new_tokens=MOST)
    return sorted(len(scorer.tokenizer.encode(reply, add_special_tokens=False)) for reply in said)


def main() -> None:
    first, second = (runs.open_run("local", str(Path(folder).resolve().parent), Path(folder).name) for folder in sys.argv[1:3])
    scorer = evaluate.Scorer(first.config(), first.storage / first.name / first.record()["checkpoint"]["best"])
    prompts = replies.choose(scorer.rows(evaluate.heldout(first)), 1000)
    shown = {"before training": (lengths(first, prompts, False), BLACK, "-"),
             "trained on the labels that ship (short and right)": (lengths(first, prompts, True), BLUE, "--"),
             "trained on labels that only say long": (lengths(second, prompts, True), VERMILLION, "-.")}
    figure = plots.picture((8, 3.4))
    axes = figure.add_subplot()
    for name, (tokens, colour, style) in shown.items():
        share = [(at + 1) / len(tokens) for at in range(len(tokens))]
        middle = tokens[len(tokens) // 2]
        axes.step(tokens, share, style, color=colour, where="post", label=f"{name}: median {middle}")
        print(name, middle, tokens)
    axes.set_xlabel(f"tokens of the reply (cut at {MOST})")
    axes.set_ylabel("share of the replies\nthat are no longer")
    axes.legend(fontsize=8, loc="lower right")
    axes.set_title(f"Replies to {len(prompts)} held-out prompts, 24 steps of training")
    plots.save(figure, ROOT / "notebooks" / "pictures" / "length.png")


if __name__ == "__main__":
    main()
