"""`kto data …`: check and prepare feedback, sample replies to rate."""

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from .terminal import AsJson, Profile, RunFolder, Storage, a_checkpoint, a_local_path, as_usage, show, two_columns

app = typer.Typer(no_args_is_help=True, help="Check and prepare feedback, sample replies.")

Feedback = Annotated[str, typer.Argument(help="A file, a folder, a glob, an address, or a hub id.")]
Columns = Annotated[str, typer.Option(help="Which column is which: prompt=…,reply=…,label=… (also history, messages, chosen, "
                                           "rejected, system, tools); data.rating names a nested field.")]
Scale = Annotated[str, typer.Option(help="How votes are read: binary, sign, stars, a range such as 1-10, or the values themselves: "
                                         "ACCEPTED,…/REJECTED,…/NO VOTE,… Default: recognised.")]
AcceptFrom = Annotated[float, typer.Option(help="The lowest rating that counts as accepted, on any scale.")]
Stars = Annotated[int, typer.Option(help="For ratings from 1 to 5: the lowest that counts as accepted.")]
Strict = Annotated[bool, typer.Option(help="Fail on refused rows, contradictions and personal data instead of counting them.")]


@app.command()
def check(
    feedback: Feedback,
    report: Annotated[Path, typer.Option(metavar="PATH", parser=a_local_path,
                                         help="Write every problem to this file, one JSON line each.")] = None,
    columns: Columns = "",
    scale: Scale = "",
    accept_from: AcceptFrom = None,
    stars: Stars = 4,
    strict: Strict = False,
    as_json: AsJson = False,
) -> None:
    """Show which rows can be used, and which not and why. Writes nothing but --report.

    Exit status 0: no row is refused; 1: some are; 2: the feedback cannot be read.

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
    name: Annotated[str, typer.Option(help="The dataset's name in the registry; part of its hash is appended.")] = "",
    profile: Profile = "local",
    storage: Storage = "",
    heldout: Annotated[float, typer.Option(help="Share of the prompts that is held out.")] = 0.2,
    seed: Annotated[int, typer.Option(help="Seed of the split and of the order of rows.")] = 42,
    columns: Columns = "",
    scale: Scale = "",
    accept_from: AcceptFrom = None,
    stars: Stars = 4,
    strict: Strict = False,
    refuse_share: Annotated[float, typer.Option(help="Fail if a larger share of the rows than this is refused.")] = 0.05,
) -> None:
    """Validate, split and register feedback. The dataset is written to <storage>/datasets/; its facts are printed.

    Example: kto data prepare thumbs.csv --name thumbs
    """
    from feedback import check as checking
    from helpers import profiles
    from helpers.runs import refuse_name

    with as_usage():
        if name:
            refuse_name(name, "a dataset", "correct --name")
        folder = Path(profiles.storage_for(profiles.load(profile), storage)) / "datasets"
        facts = checking.prepare(feedback, folder, heldout, seed, name, refuse_share, columns=columns, scale=scale,
                                 accept_from=accept_from, stars=stars, strict=strict)
    show({**facts, "registry": str(folder / "dataset_info.json")}, as_json=True)


@app.command()
def sample(
    run: RunFolder,
    output: Annotated[Path, typer.Option(metavar="PATH", parser=a_local_path,
                                         help="The file to write: .json (Label Studio), .jsonl (Argilla) or .csv.")],
    checkpoint: Annotated[str, typer.Option(help="best, latest, a step's number, or a checkpoint's folder.")] = "best",
    count: Annotated[int, typer.Option(min=1, help="How many prompts.")] = 50,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Most tokens in a reply.")] = 256,
) -> None:
    """Sample replies of the trained model to rate. `kto data prepare` reads the ratings.

    The prompts are those of the training rows; held-out prompts stay held out for the second round.

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
