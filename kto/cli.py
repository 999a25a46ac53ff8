"""`kto COMMAND`: what a notebook does, a terminal can.

Results go to stdout, progress to stderr; exit status 0: done, 1: the thing asked about is not well, 2: wrong usage.
"""

import json
import signal
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from helpers.errors import KitError

from . import cli_export, cli_runs
from .cli_print import AsJson, Profile, Storage, Values, fail, say, table, through, two_columns
from .jobs.commands import app as jobs_app
from .jobs.commands import sweep

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="KTO at scale: align a model to thumbs-up/thumbs-down feedback, on a laptop or a Ray cluster.",
)
config_app = typer.Typer(no_args_is_help=True, help="Configurations.")
app.add_typer(config_app, name="config")
data_app = typer.Typer(no_args_is_help=True, help="Feedback: what is wrong with it, and a registered dataset made of it.")
app.add_typer(data_app, name="data")
app.add_typer(cli_runs.app)
app.add_typer(cli_export.app)
app.add_typer(jobs_app, name="job")
app.command()(sweep)


@app.command()
def run(
    profile: Profile = "local",
    storage: Storage = "",
    parameter: Values = [],  # noqa: B006
    run_name: Annotated[str, typer.Option(help="The run's folder. Default: the profile and the time.")] = "",
    resume: Annotated[str, typer.Option(help="auto: go on with --run-name where it was interrupted.")] = "",
    retries: Annotated[int, typer.Option(help="How often a failed training goes on by itself from its last checkpoint.")] = 0,
    log: Annotated[bool, typer.Option("--log", help="The training's own log to stdout too, for a job's log.")] = False,
    as_json: AsJson = False,
) -> None:
    """The six notebooks in order, executed into <run>/notebooks/.

    Example: kto run --profile local -p max_steps=12 -p learning_rate=5e-4
    """
    from helpers import runs

    from . import pipeline
    from .jobs import parcel

    started = datetime.now(UTC)
    storage = str(Path(storage).expanduser().resolve()) if storage else ""
    if resume not in ("", "auto"):
        raise fail(KitError(f"--resume {resume}", "auto", "correct --resume; a step is chosen in notebook 5"), 2)
    try:
        values = pipeline.absolute_paths(pipeline.typed(parameter))
    except KitError as error:
        raise fail(error, 2) from None
    try:
        parcel.take()
        name, begin = run_name or runs.default_name(profile), "01"
        if resume and (target := runs.locate(profile, storage, name)).trained:
            begin, why = pipeline.prepare_resume(target)
            say(why)
        else:
            target = runs.start(profile, storage, name)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # a stopped job tidies up like an interrupted one
        pipeline.persist(target, values, say, begin, retries, through if log else None)
    except KitError as error:
        raise fail(error) from None
    shown = pipeline.summary(target) | {"total seconds": (datetime.now(UTC) - started).seconds}
    typer.echo(json.dumps(shown, indent=2) if as_json else two_columns(shown))


@app.command()
def parameters(as_json: AsJson = False) -> None:
    """Every parameter that `run -p` takes, with its default and the notebooks that read it."""
    from . import pipeline

    known = pipeline.parameters()
    if as_json:
        typer.echo(json.dumps(known, indent=2))
        return
    for name, entry in known.items():
        typer.echo(
            f"{name}: {entry['type']} = {entry['default']}  # {entry['help']}  ({', '.join(entry['notebooks'])})"
        )


@app.command()
def runs(profile: Profile = "local", storage: Storage = "", as_json: AsJson = False) -> None:
    """The runs in a storage: when, how they ended, held-out figures."""
    from helpers import profiles
    from helpers.runs import listing

    try:
        rows = listing(profiles.storage_for(profiles.load(profile), storage))
    except KitError as error:
        raise fail(error) from None
    typer.echo(json.dumps(rows, indent=2) if as_json else table(rows))


@app.command()
def track(folder: Annotated[Path, typer.Argument(help="A run's folder.")]) -> None:
    """Send to MLflow what it does not have of a run yet ($MLFLOW_TRACKING_URI, else the storage's own store).

    Example: kto track storage/first-run
    """
    from helpers import tracking
    from helpers.runs import of_folder

    try:
        told = tracking.sync(of_folder(folder))
    except KitError as error:
        raise fail(error) from None
    typer.echo(f"{told['points']} values sent; {told['url']}")


@app.command()
def checkpoints(
    where: Annotated[str, typer.Argument(help="A run's folder, any folder with checkpoints, or s3://, gs://.")],
    as_json: AsJson = False,
) -> None:
    """The checkpoints there: step, size, figures, complete or why not.

    Example: kto checkpoints storage/first-run
    """
    from helpers import checkpoints as room

    try:
        found = room.table(room.find(where))
    except KitError as error:
        raise fail(error) from None
    typer.echo(
        found.to_json(orient="records", indent=2, default_handler=str) if as_json else found.to_string(index=False)
    )
    if found.empty or not found["complete"].any():
        raise typer.Exit(1)


@app.command()
def doctor(profile: Profile = "local", storage: Storage = "", parameter: Values = [], as_json: AsJson = False) -> None:  # noqa: B006
    """Whether a training can go well, asked of this machine, every node, the hub and MLflow in under 20 s.

    Example: kto doctor --profile anyscale -p train_config=kto_lora_48gb.yaml -p ray_num_workers=8
    """
    from . import doctor as room
    from . import pipeline

    try:
        values = pipeline.typed(parameter)
    except KitError as error:
        raise fail(error, 2) from None
    try:
        findings = room.examine(profile, storage, values)
    except KitError as error:
        raise fail(error) from None
    typer.echo(json.dumps([f._asdict() for f in findings], indent=2) if as_json else "\n".join(map(str, findings)))
    if any(finding.status == "FAIL" for finding in findings):
        raise typer.Exit(1)


Feedback = Annotated[str, typer.Argument(help="A file, a folder, a glob, an address, or a hub id.")]
Stars = Annotated[int, typer.Option(help="Where ratings are 1 to 5: from how many on a row is accepted.")]
Scale = Annotated[str, typer.Option(help="How numbers as labels are read where it cannot be told: binary, sign, stars.")]
Strict = Annotated[bool, typer.Option(help="Stop at rows that cannot be used, instead of counting them.")]


@data_app.command("check")
def check_data(
    feedback: Feedback,
    report: Annotated[Path, typer.Option(help="The file that gets every problem, one JSON line each.")] = None,
    stars: Stars = 4,
    scale: Scale = "",
    strict: Strict = False,
    as_json: AsJson = False,
) -> None:
    """Every row accounted for: what would be trained on, what is refused and why. Nothing else is written.

    Example: kto data check thumbs.csv --report problems.jsonl
    """
    import tempfile

    from helpers import dataset

    try:
        with tempfile.TemporaryDirectory(prefix="kto-") as scratch:
            checked = dataset.check(dataset.find(feedback, Path(scratch)), report, stars=stars, scale=scale, strict=strict)
    except KitError as error:
        raise fail(error) from None
    ledger, accepted = checked.ledger, int(checked.labels.sum())
    facts = {
        "shape": checked.shape.name, "rows in": ledger.rows_in, "rows out": ledger.rows_out, "accepted": accepted,
        "rejected": len(checked.labels) - accepted, "sha256": checked.sha256,
    }
    if as_json:
        typer.echo(json.dumps(facts | {"refused": ledger.refused, "noted": ledger.noted}, indent=2))
    else:
        typer.echo(f"{two_columns(facts)}\n\n{ledger.text()}")
    if ledger.refused:
        raise typer.Exit(1)


@data_app.command("prepare")
def prepare_data(
    feedback: Feedback,
    name: Annotated[str, typer.Option(help="The dataset's name in the registry; a part of its hash is added.")] = "",
    profile: Profile = "local",
    storage: Storage = "",
    heldout: Annotated[float, typer.Option(help="Share of the prompts that is kept apart.")] = 0.2,
    seed: Annotated[int, typer.Option(help="Of the split and of the rows' order.")] = 42,
    stars: Stars = 4,
    scale: Scale = "",
    strict: Strict = False,
) -> None:
    """Feedback checked, split, written and registered in <storage>/datasets/; prints what was made of it.

    Example: kto data prepare thumbs.csv --name thumbs
    """
    from helpers import dataset, profiles

    try:
        loaded = profiles.load(profile)
        folder = Path(profiles.storage_for(loaded, storage)) / "datasets"
        how = {"stars": stars, "scale": scale, "strict": strict, "profile": loaded}
        facts = dataset.prepare(feedback, folder, heldout, seed, name, **how)
    except KitError as error:
        raise fail(error) from None
    typer.echo(json.dumps({**facts, "registry": str(folder / "dataset_info.json")}, indent=2))


@config_app.command()
def show(
    profile: Profile = "local",
    storage: Storage = "",
    run_name: Annotated[str, typer.Option(help="A run that 01 and 02 have prepared.")] = "first-run",
    parameter: Annotated[
        list[str], typer.Option("-p", metavar="KEY=VALUE", help="A LLaMA-Factory key; may be repeated.")
    ] = [],  # noqa: B006
) -> None:
    """The resolved YAML of a run with these overrides; nothing is written.

    Example: kto config show --run-name first-run -p learning_rate=5.0e-4
    """
    import yaml

    from helpers import config, runs

    try:
        overrides = yaml.safe_load("\n".join(p.replace("=", ": ", 1) for p in parameter)) or {}
        typer.echo(
            yaml.safe_dump(config.resolve(runs.open_run(profile, storage, run_name), **overrides), sort_keys=False)
        )
    except KitError as error:
        raise fail(error) from None


def main() -> None:
    """The script `kto`, and `python -m kto`."""
    app(prog_name="kto")
