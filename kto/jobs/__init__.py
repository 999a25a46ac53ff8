"""The pipeline as a job on a Ray cluster, through Ray's own job API: submit, follow, stop, fetch.

Only HTTP to the cluster's dashboard is needed; this process joins no cluster. What must be known of a job later (its run and
storage) lies in the job's metadata, so a job is found again from another terminal, by its id or by its run's name.
"""

import os
import shlex
import shutil
from contextlib import contextmanager
from pathlib import Path

from helpers.errors import KitError, closest
from helpers.profiles import ROOT, load
from helpers.quiet import silence
from helpers.runs import NAME
from helpers.secrets import mask

from . import parcel

DASHBOARD = "http://127.0.0.1:8265"
LEFT_HERE = [".git", ".venv", "storage", "mlruns", "tests", "benchmarks", "**/__pycache__"]
"""What of the project's folder does not travel to the cluster; what .gitignore names does not either."""
HEAVY = ("TorchTrainer_*", "output*", "merged", "fetched")
"""What `fetch` leaves on the storage unless everything is asked for: checkpoints and the merged model."""


def connect(address: str = ""):
    """Ray's JobSubmissionClient for the dashboard at `address`, else at RAY_ADDRESS if that is http, else on this machine."""
    with silence():
        from ray.job_submission import JobSubmissionClient

    ray_address = os.environ.get("RAY_ADDRESS", "")
    address = address or (ray_address if ray_address.startswith("http") else DASHBOARD)
    if not address.startswith(("http://", "https://")):
        raise KitError(f"{address!r} is no address of a dashboard", "http://HOST:8265", "correct --address")
    try:
        with _without("RAY_ADDRESS"):  # Ray would let it overrule the address given
            return JobSubmissionClient(address)
    except (ConnectionError, RuntimeError) as error:
        raise KitError(f"no Ray dashboard answers at {address}: {str(error).splitlines()[0]}",
                       "the dashboard of a running cluster, reachable from here",
                       "start one (ray start --head), forward its port (ssh -L 8265:localhost:8265 HEAD), or correct "
                       "--address") from None


def entrypoint(profile: str, storage: str, run_name: str, parameters: list[str] = (), retries: int = 2) -> str:
    """The command that the job runs. Submitted again, it goes on where the run was interrupted."""
    words = ["python", "-m", "kto", "run", "--profile", profile, "--storage", storage, "--run-name", run_name,
             "--resume", "auto", "--retries", str(retries), "--log"]
    return shlex.join(words + [word for assignment in parameters for word in ("-p", assignment)])


def submit(client, profile: str, storage: str, run_name: str, parameters: list[str], secrets: list[str], retries: int = 2) -> str:
    """Submit the six notebooks as a job; its id. `secrets`: names of variables that travel from this environment.

    KitError before anything is sent: an unknown parameter, a storage that is no absolute path, a job of this run that runs.
    """
    from .. import pipeline

    loaded, variables = load(profile), taken(secrets)
    pipeline.typed(parameters)
    storage = storage or os.environ.get("KTO_STORAGE", "") or loaded.storage
    if loaded.ray_address == "local":
        raise KitError(f"the profile {loaded.name!r} starts a Ray instance of its own", "a profile that joins the job's cluster",
                       "--profile ray, anyscale, or one of your own; on this machine `kto run` does without a job")
    if not Path(storage).is_absolute():
        raise KitError(f"the storage {storage!r} is not an absolute path", "a folder that every node of the cluster sees",
                       "set --storage")
    if not NAME.fullmatch(run_name):
        raise KitError(f"{run_name!r} is no name for a run", "letters, digits, '.', '_' and '-'", "correct --run-name")
    if running := [row for row in listing(client) if row["run"] == run_name and row["status"] in ("PENDING", "RUNNING")]:
        raise KitError(f"the job {running[0]['job']} is at work on the run {run_name!r}", "one job a run at a time",
                       f"follow it (job logs {run_name}), stop it (job stop {run_name}), or take another --run-name")
    from ray.exceptions import RuntimeEnvSetupError

    try:
        return client.submit_job(
            entrypoint=entrypoint(profile, storage, run_name, parameters, retries),
            runtime_env={"working_dir": str(ROOT), "excludes": LEFT_HERE, "env_vars": parcel.send(client, variables)},
            metadata={"run": run_name, "storage": storage, "profile": loaded.name})
    except (RuntimeError, ValueError, RuntimeEnvSetupError) as error:
        raise KitError(f"the cluster refused the job: {mask(str(error)).strip().splitlines()[-1]}") from None


def taken(names: list[str]) -> dict[str, str]:
    """The variables of these names out of this environment. KitError names those that are not set; values are never shown."""
    if missing := [name for name in names if not os.environ.get(name)]:
        near = closest(missing[0], os.environ)
        raise KitError(f"not set in this environment: {', '.join(missing)}{near}", "a value to send along", f"export {missing[0]}=…")
    return {name: os.environ[name] for name in names}


def listing(client) -> list[dict]:
    """The kit's jobs on the cluster, newest first: job, run, status, started, minutes, storage."""
    from datetime import UTC, datetime

    rows = []
    for job in sorted(client.list_jobs(), key=lambda job: job.start_time or 0, reverse=True):
        if "run" not in (job.metadata or {}):
            continue
        started = datetime.fromtimestamp((job.start_time or 0) / 1000, UTC)
        ended = datetime.fromtimestamp(job.end_time / 1000, UTC) if job.end_time else datetime.now(UTC)
        rows.append({"job": job.submission_id, "run": job.metadata["run"], "status": str(job.status),
                     "started": started.isoformat(timespec="seconds"), "minutes": round((ended - started).seconds / 60, 1),
                     "storage": job.metadata.get("storage", "")})
    return rows


def find(client, name: str) -> dict:
    """The job with that id, or the newest of the run with that name: its row in `listing`. KitError lists what there is."""
    rows = listing(client)
    if row := next((row for row in rows if name in (row["job"], row["run"])), None):
        return row
    known = [row["run"] for row in rows]
    raise KitError(f"there is no job {name!r} on this cluster{closest(name, known)}",
                   f"a job's id or its run's name: {', '.join(known) or 'none was submitted'}", "see `job list`")


def stop(client, job: str, patience: float = 30.0) -> str:
    """Stop the job and wait until it has ended; its status then. A job that had ended already stays as it was."""
    import time

    client.stop_job(job)
    until = time.monotonic() + patience
    while not (status := client.get_job_status(job)).is_terminal():
        if time.monotonic() > until:
            raise KitError(f"the job {job} is still {status} after {patience:.0f} s", "STOPPED", "try again")
        time.sleep(0.5)
    return str(status)


def fetch(row: dict, to: Path, everything: bool = False) -> Path:
    """Copy the run's folder from its storage into `to`/<run>, whole or not at all. Checkpoints and merged model: if `everything`.

    KitError if the storage is not to be seen from here, or there is a folder of that name already.
    """
    source, target = Path(row["storage"]) / row["run"], Path(to) / row["run"]
    if not source.is_dir():
        raise KitError(f"the run's folder {source} is not to be seen from here", "the job's storage, mounted on this machine",
                       f"fetch on a machine that mounts it, or copy it: rsync -a HEAD:{source} {to}")
    if target.exists():
        raise KitError(f"{target} is there already", "a folder that is not there yet", "another --to, or remove it")
    beside = target.with_name(f".{target.name}.partial")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        ignored = None if everything else shutil.ignore_patterns(*HEAVY)
        shutil.copytree(source, beside, ignore=ignored)
        return beside.rename(target)
    except (OSError, shutil.Error) as error:
        shutil.rmtree(beside, ignore_errors=True)
        raise KitError(f"could not copy {source}: {error}", "free disk, and a run that is not being written", "fetch again") from None


@contextmanager
def _without(name: str):
    kept = os.environ.pop(name, None)
    try:
        yield
    finally:
        if kept is not None:
            os.environ[name] = kept
