"""`kto job …`: the pipeline as a job on a Ray cluster, through its dashboard; nothing of this process joins the cluster.

A job's run and storage lie in its metadata, so it is found again from any terminal, by its id or by its run's name.
"""

import asyncio
import os
import shlex
import shutil
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from helpers import files, profiles, runs, secrets
from helpers.errors import KitError, closest
from helpers.quiet import silence

from . import parameters, parcel
from .terminal import AsJson, Profile, Values, say, show

app = typer.Typer(no_args_is_help=True, help="The pipeline as a job on a Ray cluster, through its dashboard.")
Address = Annotated[str, typer.Option(help="The dashboard. Default: $RAY_ADDRESS if http, else http://127.0.0.1:8265.")]
Name = Annotated[str, typer.Argument(metavar="JOB", help="A job's id, or its run's name.")]
Storage = Annotated[str, typer.Option(help="Where runs are kept, as every node of the cluster sees it.")]
Secrets = Annotated[list[str], typer.Option(metavar="NAME", help="A variable of this environment to send along.")]

LEFT_HERE = [".git", ".venv", "storage", "mlruns", "tests", "benchmarks", "**/__pycache__"]
"""What of the project's folder does not travel to the cluster; what .gitignore names does not either."""
HEAVY = ("TorchTrainer_*", "output*", "merged", "fetched")
"""What `fetch` leaves on the storage unless everything is asked for: checkpoints and the merged model."""


@app.command("submit")
def submit_command(
    profile: Profile = "ray",
    storage: Storage = "",
    parameter: Values = [],  # noqa: B006
    run_name: Annotated[str, typer.Option(help="The run's folder. The same name again resumes it.")] = "",
    secret: Secrets = [],  # noqa: B006
    retries: Annotated[int, typer.Option(help="How often a failed training is resumed by itself.")] = 2,
    follow: Annotated[bool, typer.Option(help="Stay and watch.")] = True,
    address: Address = "",
) -> None:
    """Submit the six notebooks as a job and watch it; Ctrl-C leaves it running.

    Example: kto job submit --profile ray --storage /mnt/shared/kto --secret HF_TOKEN -p max_steps=100
    """
    name, client = run_name or runs.default_name(profile), connect(address)
    job = submit(client, profile, storage, name, parameter, secret, retries)
    say(f"job {job}: run {name}")
    if secret:
        say(f"{', '.join(secret)} went along, through the control store's memory; no dashboard and no log shows it")
    if follow:
        watch(client, job)
    typer.echo(job)


@app.command()
def logs(
    name: Name, raw: Annotated[bool, typer.Option(help="The log so far, on stdout.")] = False, address: Address = ""
) -> None:
    """Watch a job to its end, wherever it was submitted; Ctrl-C leaves it running."""
    client = connect(address)
    job = find(client, name)["job"]
    if raw:
        typer.echo(client.get_job_logs(job), nl=False)
    else:
        watch(client, job)


@app.command("stop")
def stop_command(name: Name, address: Address = "") -> None:
    """Stop a job and wait until it has ended."""
    client = connect(address)
    job = find(client, name)["job"]
    typer.echo(f"{job} {stop(client, job)}")


@app.command("fetch")
def fetch_command(
    name: Name,
    to: Annotated[Path, typer.Option(help="A folder; the run's own is made in it.")] = Path("."),
    everything: Annotated[bool, typer.Option("--all", help="Checkpoints and the merged model too.")] = False,
    address: Address = "",
) -> None:
    """Copy a job's results here from its storage: figures, metrics, notebooks, adapter."""
    typer.echo(fetch(find(connect(address), name), to, everything))


@app.command("list")
def list_command(as_json: AsJson = False, address: Address = "") -> None:
    """The jobs on the cluster, newest first."""
    show(listing(connect(address)), as_json)


def connect(address: str = ""):
    """Ray's client for the dashboard at `address`, else at RAY_ADDRESS if that is http, else on this machine."""
    with silence():
        from ray.job_submission import JobSubmissionClient

    variable = os.environ.pop("RAY_ADDRESS", "")  # Ray would let it overrule the address given
    address = address or (variable if variable.startswith("http") else "http://127.0.0.1:8265")
    if not address.startswith(("http://", "https://")):
        raise KitError(f"{address!r} is no address of a dashboard", "http://HOST:8265", "correct --address")
    try:
        return JobSubmissionClient(address)
    except (ConnectionError, RuntimeError) as error:
        raise KitError(f"no Ray dashboard answers at {address}: {str(error).splitlines()[0]}",
                       "a running cluster's dashboard",
                       "start one (ray start --head), forward its port (ssh -L 8265:localhost:8265 HEAD), or correct "
                       "--address") from None
    finally:
        if variable:
            os.environ["RAY_ADDRESS"] = variable


def entrypoint(profile: str, storage: str, run_name: str, values: list[str] = (), retries: int = 2) -> str:
    """The command that the job runs. Submitted again, it resumes the run where it was interrupted."""
    words = ["python", "-m", "kto", "run", "--profile", profile, "--storage", storage, "--run-name", run_name,
             "--resume", "if-any", "--retries", str(retries), "--log"]
    return shlex.join(words + [word for assignment in values for word in ("-p", assignment)])


def submit(client, profile: str, storage: str, name: str, values: list[str], sent: list[str], retries: int = 2) -> str:
    """Submit the run `name` as a job; its id. `sent`: the variables that travel as secrets. KitError before anything is sent."""
    loaded = profiles.load(profile)
    parameters.typed(values)
    storage = storage or os.environ.get("KTO_STORAGE", "") or loaded.storage
    if loaded.ray_address == "local":
        raise KitError(f"the profile {loaded.name!r} starts a Ray instance of its own",
                       "one that joins the job's cluster",
                       "--profile ray, anyscale, or one of your own; on this machine `kto run` does without a job")
    if not Path(storage).is_absolute():
        raise KitError(f"the storage {storage!r} is not an absolute path", "a folder that every node sees",
                       "set --storage")
    runs.locate(profile, storage, name)
    if missing := [variable for variable in sent if not os.environ.get(variable)]:
        raise KitError(f"not set in this environment: {', '.join(missing)}{closest(missing[0], os.environ)}",
                       "a value to send along", f"export {missing[0]}=…")
    if running := [row for row in listing(client) if row["run"] == name and row["status"] in ("PENDING", "RUNNING")]:
        raise KitError(f"the job {running[0]['job']} is at work on the run {name!r}", "one job a run at a time",
                       f"follow it (kto job logs {name}), stop it (kto job stop {name}), or take another --run-name")
    from ray.exceptions import RuntimeEnvSetupError

    environment = {"working_dir": str(profiles.ROOT), "excludes": LEFT_HERE, "env_vars": parcel.send(client, sent)}
    try:
        return client.submit_job(entrypoint=entrypoint(profile, storage, name, values, retries),
                                 runtime_env=environment, metadata={"run": name, "storage": storage, "profile": loaded.name})
    except (RuntimeError, ValueError, RuntimeEnvSetupError) as error:
        raise KitError(f"the cluster refused the job: {secrets.mask(str(error)).strip().splitlines()[-1]}") from None


def listing(client) -> list[dict]:
    """The kit's jobs on the cluster, newest first: job, run, status, started, minutes, storage."""
    rows = []
    for job in client.list_jobs():
        if "run" in (job.metadata or {}):
            began = (job.start_time or 0) / 1000
            minutes = ((job.end_time / 1000 if job.end_time else time.time()) - began) / 60
            rows.append({"job": job.submission_id, "run": job.metadata["run"], "status": str(job.status),
                         "started": datetime.fromtimestamp(began, UTC).isoformat(timespec="seconds"),
                         "minutes": round(minutes, 1), "storage": job.metadata.get("storage", "")})
    return sorted(rows, key=lambda row: row["started"], reverse=True)


def find(client, name: str) -> dict:
    """The job with that id, or the newest of the run with that name: its row in `listing`."""
    rows = listing(client)
    for row in rows:
        if name in (row["job"], row["run"]):
            return row
    known = [row["run"] for row in rows]
    raise KitError(f"there is no job {name!r} on this cluster{closest(name, known)}",
                   f"a job's id or its run's name: {', '.join(known) or 'none was submitted'}", "see `kto job list`")


def watch(client, job: str) -> None:
    """Show the job's log until it ends; exit status 1 unless it succeeded."""
    from aiohttp import ClientError

    async def tail() -> None:
        async for text in client.tail_job_logs(job):
            sys.stderr.write(text)
            sys.stderr.flush()

    again = f"`kto job logs {job}` watches it again, `kto job stop {job}` ends it"
    try:
        asyncio.run(tail())
        status = client.get_job_status(job)
    except KeyboardInterrupt:
        say(f"\nthe job runs on: {again}")
        raise typer.Exit(130) from None
    except (OSError, RuntimeError, ClientError) as error:
        raise KitError(f"the connection to the cluster was lost: {error}", "", f"the job runs on: {again}") from None
    say(f"job {job}: {status}" + ("" if status.is_terminal() else f"; {again}"))
    if str(status) != "SUCCEEDED":
        raise typer.Exit(1)


def stop(client, job: str, patience: float = 30.0) -> str:
    """Stop the job and wait until it has ended; its status then. A job that had ended already stays as it was."""
    client.stop_job(job)
    until = time.monotonic() + patience
    while not (status := client.get_job_status(job)).is_terminal():
        if time.monotonic() > until:
            raise KitError(f"the job {job} is still {status} after {patience:.0f} s", "STOPPED", "try again")
        time.sleep(0.5)
    return str(status)


def fetch(row: dict, to: Path, everything: bool = False) -> Path:
    """Copy the run's folder into `to`/<run>, whole or not at all; checkpoints and merged model if `everything`."""
    source, target = Path(row["storage"]) / row["run"], Path(to) / row["run"]
    if not source.is_dir():
        raise KitError(f"the run's folder {source} is not to be seen from here", "the job's storage, mounted here",
                       f"fetch on a machine that mounts it, or copy it: rsync -a HEAD:{source} {to}")
    if target.exists():
        raise KitError(f"{target} is there already", "a folder that is not there yet", "another --to, or remove it")
    with files.new_folder(target) as folder:
        left_there = None if everything else shutil.ignore_patterns(*HEAVY)
        shutil.copytree(source, folder, dirs_exist_ok=True, ignore=left_there)
    return target
