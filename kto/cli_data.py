"""`kto data …`: check and prepare feedback, sample replies to rate."""

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from .terminal import AsJson, Profile, RunFolder, Storage, a_checkpoint, as_usage, show, two_columns

app = typer.Typer(no_args_is_help=True, help="Feedback: what is wrong with it, and a registered dataset made of it.")

Feedback = Annotated[str, typer.Argument(help="A file, a folder, a glob, an address, or a hub id.")]
Columns = Annotated[str, typer.Option(help="Which column is which, as prompt=…,reply=…,label=… (history, messages, chosen, "
                                           "rejected, system, tools too); dots lead into nested data.")]
Scale = Annotated[str, typer.Option(help="How votes are read: binary, sign, stars, their ends as 1-10, or the votes themselves as "
                                         "accepted,…/rejected,…/no vote,…")]
AcceptFrom = Annotated[float, typer.Option(help="From which rating on a reply is accepted, on any scale.")]
Stars = Annotated[int, typer.Option(help="Where ratings are 1 to 5: from how many on a row is accepted.")]
Strict = Annotated[bool, typer.Option(help="Stop at refused rows, contradictions and personal data, instead of counting them.")]


@app.command()
def check(
    feedback: Feedback,
    report: Annotated[Path, typer.Option(help="The file that gets every problem, one JSON line each.")] = None,
    columns: Columns = "",
    scale: Scale = "",
    accept_from: AcceptFrom = None,
    stars: Stars = 4,
    strict: Strict = False,
    as_json: AsJson = False,
) -> None:
    """Every row accounted for: what would be trained on, what is refused and why. Nothing else is written.

    Exit status 0: all rows can be used; 1: some are refused; 2: it cannot be read.

    Example: kto data check thumbs.csv --report problems.jsonl
    """
    from feedback import check as checking
    from feedback.find import find

    with as_usage(), tempfile.TemporaryDirectory(prefix="kto-") as scratch:
        checked = checking.check(find(feedback, Path(scratch)), report, columns, scale, accept_from, stars, strict)
    facts = checked.facts()
    if as_json:
        show(facts | {"refused": checked.ledger.refused, "noted": checked.ledger.noted}, as_json)
    else:
        counts = {name: value for name, value in facts.items() if name not in ("scale", "unused")}
        typer.echo(f"{two_columns(counts)}\n\n{checked.text()}\n\n{checked.ledger.text()}")
    if checked.ledger.refused:
        raise typer.Exit(1)


@app.command()
def prepare(
    feedback: Feedback,
    name: Annotated[str, typer.Option(help="The dataset's name in the registry; a part of its hash is added.")] = "",
    profile: Profile = "local",
    storage: Storage = "",
    heldout: Annotated[float, typer.Option(help="Share of the prompts that is kept apart.")] = 0.2,
    seed: Annotated[int, typer.Option(help="Of the split and of the rows' order.")] = 42,
    columns: Columns = "",
    scale: Scale = "",
    accept_from: AcceptFrom = None,
    stars: Stars = 4,
    strict: Strict = False,
    refuse_share: Annotated[float, typer.Option(help="An error where more of the rows than this share are refused.")] = 0.05,
) -> None:
    """Feedback checked, split, written and registered in <storage>/datasets/; prints what was made of it.

    Example: kto data prepare thumbs.csv --name thumbs
    """
    from feedback import check as checking
    from helpers import profiles

    with as_usage():
        folder = Path(profiles.storage_for(profiles.load(profile), storage)) / "datasets"
        facts = checking.prepare(feedback, folder, heldout, seed, name, refuse_share, columns=columns, scale=scale,
                                 accept_from=accept_from, stars=stars, strict=strict)
    show({**facts, "registry": str(folder / "dataset_info.json")}, as_json=True)


@app.command()
def sample(
    run: RunFolder,
    output: Annotated[Path, typer.Option(help="What to write: .json for Label Studio, .jsonl for Argilla, .csv for a spreadsheet.")],
    checkpoint: Annotated[str, typer.Option(help="best, latest, a step's number, or a checkpoint's folder.")] = "best",
    count: Annotated[int, typer.Option(help="How many prompts.")] = 50,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens a reply.")] = 256,
) -> None:
    """Replies of the trained model, for people to rate; `kto data prepare` reads the ratings.

    To prompts that were trained on: what was held out stays held out in a second round, to be measured again.

    Example: kto data sample storage/first-run --output to_rate.csv
    """
    from feedback import sample as sampling
    from helpers import evaluate
    from helpers.replies import choose

    sampling.kind_of(output)
    chosen, _ = a_checkpoint(run, checkpoint)
    scorer = evaluate.Scorer(run.config(), chosen)
    rows, items = choose(scorer.rows(scorer.config["dataset"]), count), []
    for place in range(0, len(rows), 8):
        batch = rows[place : place + 8]
        replies = scorer.replies(batch, max_new_tokens=max_new_tokens)
        items += [{"turns": row.messages, "reply": reply} for row, reply in zip(batch, replies, strict=True)]
    typer.echo(sampling.write(items, output))
