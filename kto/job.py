"""`kto job …`: run the pipeline as a job on a Ray cluster, through its dashboard.

A job's run and storage lie in its metadata, so it is found again from any terminal, by its id or by its run's name.

Secrets (`--secret NAME`) do not go along as `env_vars`, which Ray shows in its dashboard and writes to every node's log: they travel
like a job's package, through the dashboard into the memory of the control store. The job is told a random name only.
"""

import asyncio
import json
import os
import shlex
import shutil
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from helpers import files, profiles, runs, secrets
from helpers.errors import KitError, closest
from helpers.quiet import silence

from . import parameters
from .terminal import AsJson, Profile, Usage, Values, a_local_path, as_usage, say, show

app = typer.Typer(no_args_is_help=True, help="Run the pipeline as a job on a Ray cluster.")
Address = Annotated[str, typer.Option(help="The dashboard. Default: $RAY_ADDRESS if http, else http://127.0.0.1:8265.")]
Name = Annotated[str, typer.Argument(metavar="JOB", help="A job's id, or its run's name.")]
Storage = Annotated[str, typer.Option(help="Where runs are kept: an absolute path that is the same on every node.")]
Secrets = Annotated[list[str], typer.Option(metavar="NAME", help="An environment variable to send along; may be repeated.")]

LEFT_HERE = [".git", ".venv", "storage", "mlruns", "tests", "benchmarks", "**/__pycache__"]
"""What of the project's folder does not travel to the cluster; what .gitignore names does not either."""
HEAVY = ("TorchTrainer_*", "output*", "merged", "fetched")
"""What `fetch` leaves on the storage unless everything is asked for: checkpoints and the merged model."""
SENT = "KTO_PARCEL"
"""The variable that tells a job under which name its secrets lie in the control store."""


@app.command()
def submit(
    profile: Profile = "ray",
    storage: Storage = "",
    parameter: Values = [],  # noqa: B006
    run_name: Annotated[str, typer.Option(help="The run's folder. Submit the same name again to resume it.")] = "",
    secret: Secrets = [],  # noqa: B006
    retries: Annotated[int, typer.Option(min=0, help="How often lost workers are replaced. Same as -p retries.")] = 2,
    follow: Annotated[bool, typer.Option(help="Watch the job until it ends.")] = True,
    address: Address = "",
) -> None:
    """Submit the six notebooks as a job and watch it. Ctrl-C leaves it running.

    Example: kto job submit --profile ray --storage /mnt/shared/kto --secret HF_TOKEN -p max_steps=100
    """
    loaded, name = profiles.load(profile), run_name or runs.default_name(profile)
    parameters.typed(parameter)
    storage = storage or os.environ.get("KTO_STORAGE", "") or loaded.storage
    if loaded.ray_address == "local":
        raise Usage(f"the profile {loaded.name!r} starts a Ray instance of its own", "one that joins the job's cluster",
                    "--profile ray, anyscale, or one of your own; on this machine `kto run` does without a job")
    if not Path(storage).is_absolute():
        raise Usage(f"the storage {storage!r} is not an absolute path", "a folder that every node sees", "set --storage")
    with as_usage():
        runs.locate(profile, storage, name)
    if missing := [variable for variable in secret if not os.environ.get(variable)]:
        raise Usage(f"not set in this environment: {', '.join(missing)}{closest(missing[0], os.environ)}",
                    "a value to send along", f"export {missing[0]}=…")
    client = connect(address)
    from ray.exceptions import RuntimeEnvSetupError

    # Submitted again, the same command resumes the run where it was interrupted.
    words = ["python", "-m", "kto", "run", "--profile", profile, "--storage", storage, "--run-name", name,
             "--resume", "if-any", "--retries", str(retries), "--log"]
    words += [word for assignment in parameter for word in ("-p", assignment)]
    environment = {"working_dir": str(profiles.ROOT), "excludes": LEFT_HERE}
    if secret:
        package = f"_ray_pkg_{uuid.uuid4().hex}.zip"  # Ray takes packages of this form into its control store
        values = json.dumps({variable: os.environ[variable] for variable in secret}).encode()
        client._do_request("PUT", f"/api/packages/gcs/{package}", data=values).raise_for_status()
        environment["env_vars"] = {SENT: package}
    try:
        job = client.submit_job(entrypoint=shlex.join(words), runtime_env=environment,
                                metadata={"run": name, "storage": storage, "profile": loaded.name})
    except (RuntimeError, ValueError, RuntimeEnvSetupError) as error:
        raise KitError(f"the cluster refused the job: {str(error).strip().splitlines()[-1]}") from None
    say(f"job {job}: run {name}")
    if follow:
        watch(client, job)
    typer.echo(job)


@app.command()
def logs(
    name: Name, raw: Annotated[bool, typer.Option(help="Print the log so far to stdout, and stop.")] = False, address: Address = ""
) -> None:
    """Watch a job to its end. Works from any terminal; Ctrl-C leaves it running."""
    client = connect(address)
    job = find(client, name)["job"]
    if raw:
        typer.echo(client.get_job_logs(job), nl=False)
    else:
        watch(client, job)


@app.command()
def stop(name: Name, address: Address = "") -> None:
    """Stop a job and wait until it has ended."""
    client = connect(address)
    job = find(client, name)["job"]
    client.stop_job(job)
    until = time.monotonic() + 30
    while not (status := client.get_job_status(job)).is_terminal():
        if time.monotonic() > until:
            raise KitError(f"the job {job} is still {status} after 30 s", "STOPPED", "try again")
        time.sleep(0.5)
    typer.echo(f"{job} {status}")


@app.command()
def fetch(
    name: Name,
    to: Annotated[Path, typer.Option(metavar="PATH", parser=a_local_path,
                                     help="A folder; the run's folder is created in it.")] = Path("."),
    everything: Annotated[bool, typer.Option("--all", help="Copy checkpoints and the merged model as well.")] = False,
    address: Address = "",
) -> None:
    """Copy a job's results here from its storage. Copies figures, metrics, notebooks and the adapter; the rest with --all."""
    row = find(connect(address), name)
    source, target = Path(row["storage"]) / row["run"], to / row["run"]
    if not source.is_dir():
        raise KitError(f"the run's folder {source} is not to be seen from here", "the job's storage, mounted here",
                       f"fetch on a machine that mounts it, or copy it: rsync -a HEAD:{source} {to}")
    if target.exists():
        raise KitError(f"{target} is there already", "a folder that is not there yet", "another --to, or remove it")
    with files.new_folder(target) as folder:
        left_there = None if everything else shutil.ignore_patterns(*HEAVY)
        shutil.copytree(source, folder, dirs_exist_ok=True, ignore=left_there)
    typer.echo(target)


@app.command("list")
def list_command(as_json: AsJson = False, address: Address = "") -> None:
    """List the jobs on the cluster, newest first."""
    show(listing(connect(address)), as_json)


def connect(address: str = ""):
    """Ray's client for the dashboard at `address`, else at RAY_ADDRESS if that is http, else on this machine."""
    with silence():
        from ray.job_submission import JobSubmissionClient

    variable = os.environ.pop("RAY_ADDRESS", "")  # Ray would let it overrule the address given
    address = address or (variable if variable.startswith("http") else "http://127.0.0.1:8265")
    if not address.startswith(("http://", "https://")):
        raise Usage(f"{address!r} is no address of a dashboard", "http://HOST:8265", "correct --address")
    try:
        return JobSubmissionClient(address)
    except (ConnectionError, RuntimeError, ValueError) as error:  # the last: of an address without sense
        raise KitError(f"no Ray dashboard answers at {address}: {str(error).splitlines()[0]}", "a running cluster's dashboard",
                       "start one (ray start --head), forward its port (ssh -L 8265:localhost:8265 HEAD), or correct "
                       "--address") from None


def take_secrets() -> None:
    """In the job: what was sent along into this process's environment, its names noted for the workers (secrets.carried)."""
    if not (package := os.environ.pop(SENT, "")):
        return
    from ray._raylet import GcsClient

    store, key = GcsClient(address=os.environ["RAY_ADDRESS"]), f"gcs://{package}".encode()
    if not (found := store.internal_kv_get(key, None)):
        raise KitError("what was sent along with this job is no longer there", "the secrets of `kto job submit --secret`",
                       "submit again: the run is resumed where it stopped")
    store.internal_kv_del(key, False, None)
    values = json.loads(found)
    os.environ.update(values, KTO_SECRETS=" ".join(name.removesuffix("_FILE") for name in values))
    secrets.load()


def listing(client) -> list[dict]:
    """The kit's jobs on the cluster, newest first: job, run, status, started, storage."""
    rows = [{"job": job.submission_id, "run": job.metadata["run"], "status": str(job.status),
             "started": datetime.fromtimestamp((job.start_time or 0) / 1000, UTC).isoformat(timespec="seconds"),
             "storage": job.metadata["storage"]} for job in client.list_jobs() if "run" in (job.metadata or {})]
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
            typer.echo(text, nl=False, err=True)

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
