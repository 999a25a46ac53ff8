"""The pipeline as a job on a Ray cluster, through the job API of its dashboard: plain HTTP, nothing of this process joins the cluster.

A job's run and storage lie in its metadata, so that it is found again from another terminal, by its id or by its run's name.

Secrets (`--secret NAME`) do not go into `env_vars`, which Ray shows in its dashboard and writes to every node's log. They travel like a
job's package, through the dashboard into the memory of the control store; the job is told a random name only, and takes them out.
"""

import asyncio
import json
import os
import shlex
import shutil
import sys
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path

from helpers import files, secrets
from helpers.errors import KitError, closest
from helpers.profiles import ROOT, load
from helpers.quiet import silence
from helpers.runs import NAME

from . import parameters

PARCEL = "KTO_PARCEL"
"""The variable that tells a job the name of what was sent along."""
LEFT_HERE = [".git", ".venv", "storage", "mlruns", "tests", "benchmarks", "**/__pycache__"]
"""What of the project's folder does not travel to the cluster; what .gitignore names does not either."""
HEAVY = ("TorchTrainer_*", "output*", "merged", "fetched")
"""What `fetch` leaves on the storage unless everything is asked for: checkpoints and the merged model."""


def connect(address: str = ""):
    """Ray's JobSubmissionClient for the dashboard at `address`, else at RAY_ADDRESS if that is http, else on this machine."""
    with silence():
        from ray.job_submission import JobSubmissionClient

    set_to = os.environ.pop("RAY_ADDRESS", "")  # Ray would let it overrule the address given
    address = address or (set_to if set_to.startswith("http") else "http://127.0.0.1:8265")
    if not address.startswith(("http://", "https://")):
        raise KitError(f"{address!r} is no address of a dashboard", "http://HOST:8265", "correct --address")
    try:
        return JobSubmissionClient(address)
    except (ConnectionError, RuntimeError) as error:
        raise KitError(f"no Ray dashboard answers at {address}: {str(error).splitlines()[0]}",
                       "the dashboard of a running cluster, reachable from here", "start one (ray start --head), forward its "
                       "port (ssh -L 8265:localhost:8265 HEAD), or correct --address") from None
    finally:
        if set_to:
            os.environ["RAY_ADDRESS"] = set_to


def entrypoint(profile: str, storage: str, run_name: str, values: list[str] = (), retries: int = 2) -> str:
    """The command that the job runs. Submitted again, it resumes the run where it was interrupted."""
    words = ["python", "-m", "kto", "run", "--profile", profile, "--storage", storage, "--run-name", run_name,
             "--resume", "if-any", "--retries", str(retries), "--log"]
    return shlex.join(words + [word for assignment in values for word in ("-p", assignment)])


def submit(client, profile: str, storage: str, run_name: str, values: list[str], names: list[str], retries: int = 2) -> str:
    """Submit the six notebooks as a job; its id. `names`: variables of this environment that travel as secrets.

    KitError before anything is sent: an unknown parameter, a storage that is no absolute path, a job of this run that runs.
    """
    loaded = load(profile)
    parameters.typed(values)
    if missing := [name for name in names if not os.environ.get(name)]:
        raise KitError(f"not set in this environment: {', '.join(missing)}{closest(missing[0], os.environ)}", "a value to send along",
                       f"export {missing[0]}=…")
    if loaded.ray_address == "local":
        raise KitError(f"the profile {loaded.name!r} starts a Ray instance of its own", "a profile that joins the job's cluster",
                       "--profile ray, anyscale, or one of your own; on this machine `kto run` does without a job")
    storage = storage or os.environ.get("KTO_STORAGE", "") or loaded.storage
    if not Path(storage).is_absolute():
        raise KitError(f"the storage {storage!r} is not an absolute path", "a folder that every node of the cluster sees",
                       "set --storage")
    if not NAME.fullmatch(run_name):
        raise KitError(f"{run_name!r} is no name for a run", "letters, digits, '.', '_' and '-'", "correct --run-name")
    if running := [row for row in listing(client) if row["run"] == run_name and row["status"] in ("PENDING", "RUNNING")]:
        raise KitError(f"the job {running[0]['job']} is at work on the run {run_name!r}", "one job a run at a time",
                       f"follow it (kto job logs {run_name}), stop it (kto job stop {run_name}), or take another --run-name")
    from ray.exceptions import RuntimeEnvSetupError

    try:
        return client.submit_job(
            entrypoint=entrypoint(profile, storage, run_name, values, retries),
            runtime_env={"working_dir": str(ROOT), "excludes": LEFT_HERE, "env_vars": send(client, names)},
            metadata={"run": run_name, "storage": storage, "profile": loaded.name})
    except (RuntimeError, ValueError, RuntimeEnvSetupError) as error:
        raise KitError(f"the cluster refused the job: {secrets.mask(str(error)).strip().splitlines()[-1]}") from None


def send(client, names: list[str]) -> dict[str, str]:
    """Lay these variables into the control store; the variable that leads the job there (none where there is nothing to send)."""
    if not names:
        return {}
    package = f"_ray_pkg_{uuid.uuid4().hex}.zip"  # Ray takes packages of this form
    values = json.dumps({name: os.environ[name] for name in names}).encode()
    answer = client._do_request("PUT", f"/api/packages/gcs/{package}", data=values)
    if not answer.ok:
        raise KitError(f"the cluster did not take the secrets ({answer.status_code})", "", "submit again")
    return {PARCEL: package}


def take() -> None:
    """In the job: put what was sent along into this process's environment, and note its names for the workers (secrets.carried)."""
    if not (package := os.environ.pop(PARCEL, "")):
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
    """The kit's jobs on the cluster, newest first: job, run, status, started, minutes, storage."""
    rows = []
    for job in sorted(client.list_jobs(), key=lambda job: job.start_time or 0, reverse=True):
        if "run" in (job.metadata or {}):
            started = datetime.fromtimestamp((job.start_time or 0) / 1000, UTC)
            ended = datetime.fromtimestamp(job.end_time / 1000, UTC) if job.end_time else datetime.now(UTC)
            rows.append({"job": job.submission_id, "run": job.metadata["run"], "status": str(job.status),
                         "started": started.isoformat(timespec="seconds"),
                         "minutes": round((ended - started).total_seconds() / 60, 1), "storage": job.metadata.get("storage", "")})
    return rows


def find(client, name: str) -> dict:
    """The job with that id, or the newest of the run with that name: its row in `listing`. KitError lists what there is."""
    rows = listing(client)
    known = [row["run"] for row in rows]
    if row := next((row for row in rows if name in (row["job"], row["run"])), None):
        return row
    raise KitError(f"there is no job {name!r} on this cluster{closest(name, known)}",
                   f"a job's id or its run's name: {', '.join(known) or 'none was submitted'}", "see `kto job list`")


def follow(client, job: str, write=sys.stdout.write, patience: float = 300.0) -> str:
    """Pass the job's log to `write` until it ends; its status then. A broken connection is made anew for `patience` seconds."""
    from aiohttp import ClientError

    seen, answered = 0, time.monotonic()

    async def tail() -> None:
        nonlocal seen, answered
        place = 0
        async for text in client.tail_job_logs(job):  # from the beginning, whenever it is asked for
            place, answered = place + len(text), time.monotonic()
            if place > seen:
                write(text[seen - place:])
                seen = place

    while True:
        try:
            asyncio.run(tail())
            if (status := client.get_job_status(job)).is_terminal():
                write(client.get_job_logs(job)[seen:])
                return str(status)
            answered = time.monotonic()
        except (OSError, RuntimeError, ClientError) as error:  # a time-out is an OSError
            if time.monotonic() - answered > patience:
                raise KitError(f"the cluster has not answered for {patience:.0f} s: {error!r}", "a connection to its dashboard",
                               f"the job runs on by itself: `kto job logs {job}` takes it up again") from None
        time.sleep(1.0)


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
    """Copy the run's folder from its storage into `to`/<run>, whole or not at all. Checkpoints and merged model: if `everything`."""
    source, target = Path(row["storage"]) / row["run"], Path(to) / row["run"]
    if not source.is_dir():
        raise KitError(f"the run's folder {source} is not to be seen from here", "the job's storage, mounted on this machine",
                       f"fetch on a machine that mounts it, or copy it: rsync -a HEAD:{source} {to}")
    if target.exists():
        raise KitError(f"{target} is there already", "a folder that is not there yet", "another --to, or remove it")
    with files.new_folder(target) as folder:
        shutil.copytree(source, folder, dirs_exist_ok=True, ignore=None if everything else shutil.ignore_patterns(*HEAVY))
    return target
