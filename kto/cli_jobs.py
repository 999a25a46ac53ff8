"""The commands for many runs and far ones: job submit, logs, stop, fetch, list; and sweep."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from helpers import runs

from .terminal import AsJson, Profile, Storage, Values, say, show

app = typer.Typer(no_args_is_help=True, help="The pipeline as a job on a Ray cluster, through its dashboard.")
Address = Annotated[str, typer.Option(help="The dashboard. Default: $RAY_ADDRESS if http, else http://127.0.0.1:8265.")]
Name = Annotated[str, typer.Argument(metavar="JOB", help="A job's id, or its run's name.")]


@app.command()
def submit(
    profile: Profile = "ray",
    storage: Storage = "",
    parameter: Values = [],  # noqa: B006
    run_name: Annotated[str, typer.Option(help="The run's folder. The same name again resumes it where it stopped.")] = "",
    secret: Annotated[list[str], typer.Option(metavar="NAME", help="A variable of this environment to send along.")] = [],  # noqa: B006
    retries: Annotated[int, typer.Option(help="How often a failed training is resumed by itself.")] = 2,
    follow: Annotated[bool, typer.Option(help="Stay and watch.")] = True,
    address: Address = "",
) -> None:
    """Submit the six notebooks as a job and watch it; Ctrl-C leaves it running.

    Example: kto job submit --profile ray --storage /mnt/shared/kto --secret HF_TOKEN -p max_steps=100
    """
    from . import job

    name, client = run_name or runs.default_name(profile), job.connect(address)
    submitted = job.submit(client, profile, storage, name, parameter, secret, retries)
    say(f"job {submitted}: run {name}")
    if secret:
        say(f"{', '.join(secret)} went along, through the memory of the cluster's control store; no dashboard and no log shows it")
    if follow:
        watch(client, submitted)
    typer.echo(submitted)


def watch(client, submitted: str) -> None:
    """Show the job's log to its end; exit status 1 unless it succeeded."""
    from . import job

    def write(text: str) -> None:
        sys.stderr.write(text)
        sys.stderr.flush()

    try:
        status = job.follow(client, submitted, write)
    except KeyboardInterrupt:
        say(f"\nthe job runs on: `kto job logs {submitted}` watches it again, `kto job stop {submitted}` ends it")
        raise typer.Exit(130) from None
    say(f"job {submitted}: {status}")
    if status != "SUCCEEDED":
        raise typer.Exit(1)


@app.command()
def logs(name: Name, raw: Annotated[bool, typer.Option(help="The log so far, on stdout.")] = False, address: Address = "") -> None:
    """Watch a job to its end, wherever it was submitted; Ctrl-C leaves it running."""
    from . import job

    client = job.connect(address)
    found = job.find(client, name)["job"]
    if raw:
        typer.echo(client.get_job_logs(found), nl=False)
    else:
        watch(client, found)


@app.command()
def stop(name: Name, address: Address = "") -> None:
    """Stop a job and wait until it has ended."""
    from . import job

    client = job.connect(address)
    found = job.find(client, name)["job"]
    typer.echo(f"{found} {job.stop(client, found)}")


@app.command()
def fetch(
    name: Name,
    to: Annotated[Path, typer.Option(help="A folder; the run's own is made in it.")] = Path("."),
    everything: Annotated[bool, typer.Option("--all", help="Checkpoints and the merged model too.")] = False,
    address: Address = "",
) -> None:
    """Copy a job's results here from its storage: figures, metrics, notebooks, adapter."""
    from . import job

    typer.echo(job.fetch(job.find(job.connect(address), name), to, everything))


@app.command("list")
def list_jobs(as_json: AsJson = False, address: Address = "") -> None:
    """The jobs on the cluster, newest first."""
    from . import job

    show(job.listing(job.connect(address)), as_json)


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
    from . import sweep as grids

    storage = str(Path(storage).expanduser().resolve()) if storage else ""
    rows = grids.sweep(profile, storage, name, grids.grid(parameter), at_most, say)
    show(rows, as_json)
    if any(row["status"] != "done" for row in rows):
        raise typer.Exit(1)
