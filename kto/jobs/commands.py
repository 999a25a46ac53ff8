"""`kto job …`: the pipeline as a job on a Ray cluster; `kto sweep`: over a grid."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from helpers.errors import KitError

from ..cli_print import AsJson, Profile, Storage, Values, fail, say, table

app = typer.Typer(no_args_is_help=True, help="The pipeline as a job on a Ray cluster, through its dashboard.")
Address = Annotated[str, typer.Option(help="The dashboard. Default: $RAY_ADDRESS if http, else http://127.0.0.1:8265.")]
Name = Annotated[str, typer.Argument(metavar="JOB", help="A job's id, or its run's name.")]


@app.command()
def submit(
    profile: Profile = "ray",
    storage: Storage = "",
    parameter: Values = [],  # noqa: B006
    run_name: Annotated[str, typer.Option(help="The run's folder. The same name again goes on where it stopped.")] = "",
    secret: Annotated[list[str], typer.Option(metavar="NAME", help="A variable of this environment to send along.")] = [],  # noqa: B006
    retries: Annotated[int, typer.Option(help="How often a failed training goes on by itself.")] = 2,
    follow: Annotated[bool, typer.Option(help="Stay and watch.")] = True,
    address: Address = "",
) -> None:
    """Submit the six notebooks as a job and watch it; Ctrl-C leaves it running.

    Example: kto job submit --profile ray --storage /mnt/shared/kto --secret HF_TOKEN -p max_steps=100
    """
    from helpers import runs

    from . import connect, submit

    name = run_name or runs.default_name(profile)
    try:
        client = connect(address)
        job = submit(client, profile, storage, name, parameter, secret, retries)
    except KitError as error:
        raise fail(error) from None
    say(f"job {job}: run {name}")
    if secret:
        say(f"{', '.join(secret)} went along, through the memory of the cluster's control store; no dashboard and no log shows it")
    if follow:
        watch(client, job)
    typer.echo(job)


@app.command()
def logs(name: Name, raw: Annotated[bool, typer.Option(help="The whole log so far, as it is.")] = False, address: Address = "") -> None:
    """Watch a job to its end, wherever it was submitted; Ctrl-C leaves it running."""
    from . import connect, find

    try:
        client = connect(address)
        job = find(client, name)["job"]
    except KitError as error:
        raise fail(error) from None
    if raw:
        typer.echo(client.get_job_logs(job), nl=False)
    else:
        watch(client, job)


@app.command()
def stop(name: Name, address: Address = "") -> None:
    """Stop a job and wait until it has ended."""
    from . import connect, find, stop

    try:
        client = connect(address)
        job = find(client, name)["job"]
        typer.echo(f"{job} {stop(client, job)}")
    except KitError as error:
        raise fail(error) from None


@app.command()
def fetch(
    name: Name,
    to: Annotated[Path, typer.Option(help="A folder; the run's own is made in it.")] = Path("."),
    everything: Annotated[bool, typer.Option("--all", help="Checkpoints and the merged model too.")] = False,
    address: Address = "",
) -> None:
    """Copy a job's results here from its storage: figures, metrics, notebooks, adapter."""
    from . import connect, fetch, find

    try:
        typer.echo(fetch(find(connect(address), name), to, everything))
    except KitError as error:
        raise fail(error) from None


@app.command("list")
def list_(as_json: AsJson = False, address: Address = "") -> None:
    """The jobs on the cluster, newest first."""
    from . import connect, listing

    try:
        rows = listing(connect(address))
    except KitError as error:
        raise fail(error) from None
    typer.echo(json.dumps(rows, indent=2) if as_json else table(rows))


def sweep(
    profile: Profile = "local",
    storage: Storage = "",
    parameter: Values = [],  # noqa: B006
    name: Annotated[str, typer.Option(help="The sweep's: its runs' names begin with it.")] = "sweep",
    at_most: Annotated[int, typer.Option(min=1, help="Runs at a time.")] = 1,
    as_json: AsJson = False,
) -> None:
    """The six notebooks for every combination of the values given with commas; what is done is skipped.

    Example: kto sweep -p learning_rate=1e-4,1e-3 -p pref_beta=0.1,0.3
    """
    from .. import sweep as room

    try:
        points = room.grid(parameter)
    except KitError as error:
        raise fail(error, 2) from None
    try:
        storage = str(Path(storage).expanduser().resolve()) if storage else ""
        rows = room.sweep(profile, storage, name, points, at_most, say)
    except KitError as error:
        raise fail(error) from None
    typer.echo(json.dumps(rows, indent=2) if as_json else table(rows))
    if any(row["status"] != "done" for row in rows):
        raise typer.Exit(1)


def watch(client, job: str) -> None:
    """Follow to the end; exit status 1 unless the job succeeded."""
    from tqdm import tqdm

    from helpers.plots.live import LiveView

    from .stream import follow

    try:
        info = follow(client, job, LiveView(), lambda line: tqdm.write(line, file=sys.stderr))
    except KitError as error:
        raise fail(error) from None
    except KeyboardInterrupt:
        say(f"\nthe job runs on: `job logs {job}` watches it again, `job stop {job}` ends it")
        raise typer.Exit(130) from None
    say(f"job {job}: {info.status}")
    if str(info.status) != "SUCCEEDED":
        raise typer.Exit(1)
