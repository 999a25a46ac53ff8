"""MLflow: a run's parameters, metrics, config, figures and adapter, from the run's folder and never in the training's way.

The folder is the truth and MLflow a copy: `sync` sends whatever the server does not have yet, so it can be called at any time
and any number of times. A server that goes away costs nothing; what could not be sent goes with the next call.
"""

import contextlib
import json
import os
import re
import threading
import time
from pathlib import Path

from . import metrics
from .errors import KitError
from .runs import Run
from .secrets import mask

TAG = "kto.run_folder"
EXPERIMENT = "kto"
UNITS = {"step", "epoch", "split"}
PATIENCE = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "5", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
"""MLflow's own defaults are 120 s and 7 retries: a server that is away would hold the sender for a quarter of an hour."""


def uri_for(run: Run) -> str:
    """MLFLOW_TRACKING_URI of the environment if set, else the storage's own SQLite file (needs no server)."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{run.storage / 'mlflow.db'}"


def client(run: Run):
    """An MlflowClient that gives up within seconds where no server answers."""
    for name, value in PATIENCE.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    import logging

    from mlflow import MlflowClient

    logging.getLogger("mlflow").setLevel(logging.ERROR)
    before = logging.root.manager.disable
    logging.disable(logging.INFO)  # a new store's tables: alembic sets its own level and tells each of them on stderr
    try:
        return MlflowClient(uri_for(run))
    finally:
        logging.disable(before)
        with contextlib.suppress(OSError):
            Path("mlruns").rmdir()  # MLflow makes an empty one wherever it is, whatever the address


def sync(run: Run, table=None, there: dict | None = None) -> dict:
    """Send what MLflow does not have yet; {"run_id", "points", "url"}, `points` being the metric values sent by this call.

    `table`: a metrics table; default: what the run's log says, or its metrics.jsonl if the log is gone. `there`: metric -> the
    steps that MLflow is known to have, which a caller of many syncs keeps; default: MLflow is asked. KitError where MLflow
    cannot be reached: nothing is lost, `kto track RUN` sends it later.
    """
    from mlflow.exceptions import MlflowException

    try:
        mlflow = client(run)
        run_id = _run_id(mlflow, run)
        if table is None and run.trained:
            from .launch import config_of

            table = metrics.joined(run.log_file, config_of(run).get("logging_steps"))
        elif table is None and run.metrics_file.exists():
            table = metrics.read_jsonl(run.metrics_file)
        points = 0 if table is None else _send(mlflow, run_id, table, {} if there is None else there)
        _artifacts(mlflow, run, run_id)
        if (status := run.record().get("training", {}).get("status")) in ("finished", "failed", "stopped"):
            ends = {"finished": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}
            mlflow.set_terminated(run_id, ends[status])
        return {"run_id": run_id, "points": points, "url": page(run, mlflow.get_run(run_id).info)}
    except (MlflowException, OSError) as error:
        reason = re.sub(r"//[^/@\s]+@", "//", str(error).splitlines()[0])[:300]
        raise KitError(
            f"MLflow at {shown(uri_for(run))} cannot be reached: {reason}",
            "a server that answers (make mlflow)",
            f"nothing is lost: `kto track {run.folder}` sends it later",
        ) from None


def page(run: Run, info) -> str:
    """The run's page on the server; for the embedded store, how to look at it."""
    uri = uri_for(run)
    if uri.startswith("http"):
        return f"{shown(uri).rstrip('/')}/#/experiments/{info.experiment_id}/runs/{info.run_id}"
    return "make mlflow, then http://127.0.0.1:5000"


def shown(uri: str) -> str:
    """The address without a user name or password in it."""
    scheme, _, rest = uri.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"


def _run_id(mlflow, run: Run) -> str:
    """The MLflow run of this run's folder: found by its tag, so a resumed training goes on in it, or created."""
    found = mlflow.get_experiment_by_name(EXPERIMENT)
    artifacts = None if uri_for(run).startswith("http") else (run.storage / "mlartifacts").as_uri()
    experiment = found.experiment_id if found else mlflow.create_experiment(EXPERIMENT, artifacts)
    same = mlflow.search_runs([experiment], f"tags.`{TAG}` = '{run.folder}'", max_results=1)
    if same:
        return same[0].info.run_id
    made = mlflow.create_run(experiment, run_name=run.name, tags={TAG: str(run.folder)})
    from mlflow.entities import Param

    params = [Param(key, mask(str(value))[:6000]) for key, value in parameters(run).items()]
    mlflow.log_batch(made.info.run_id, params=params)
    return made.info.run_id


def parameters(run: Run) -> dict:
    """What MLflow is told of the config and the data: LLaMA-Factory's own names; nothing of ray_init_kwargs, where secrets are."""
    from .launch import config_of

    record = run.record()
    data = {
        f"data.{key}": record.get("dataset", {}).get(key)
        for key in ("source", "sha256", "rows", "accepted", "rejected")
    }
    config = {key: value for key, value in config_of(run).items() if key != "ray_init_kwargs"}
    return config | {"profile": run.profile.name} | {key: value for key, value in data.items() if value is not None}


def _send(mlflow, run_id: str, table, there: dict[str, set[int]]) -> int:
    """log_batch of the points that MLflow does not have, and note them in `there`. Returns how many."""
    from mlflow.entities import Metric

    now, points = int(time.time() * 1000), []
    for split, rows in table.groupby("split"):
        prefix = "" if split == "train" else f"{split}/"
        for column in [name for name in rows.columns if name not in UNITS and rows[name].dtype.kind in "fi"]:
            name = prefix + column
            if name not in there:  # a long run's history is 10,000 rows a metric: asked for once
                there[name] = {point.step for point in mlflow.get_metric_history(run_id, name)}
            points += [
                Metric(name, float(value), now, int(step))
                for step, value in zip(rows["step"], rows[column], strict=True)
                if value == value and int(step) not in there[name]
            ]
    for start in range(0, len(points), 1000):
        batch = points[start : start + 1000]
        mlflow.log_batch(run_id, metrics=batch)
        for point in batch:
            there[point.key].add(point.step)
    return len(points)


def _artifacts(mlflow, run: Run, run_id: str) -> None:
    """The config, the metrics, the figures, and the adapter once it is exported; again where a file has changed."""
    sent = json.loads(mlflow.get_run(run_id).data.tags.get("kto.artifacts", "{}"))
    files = [(run.config_file, ""), (run.metrics_file, "")]
    files += [(file, "figures") for file in sorted(run.figures.glob("*.png"))]
    files += [(file, "adapter") for file in sorted(run.export.glob("adapter/*/adapter_*")) if file.is_file()]
    for file, folder in files:
        mark = f"{file.stat().st_size}-{file.stat().st_mtime_ns}" if file.exists() else ""
        key = f"{folder}/{file.name}"
        if mark and sent.get(key) != mark:
            mlflow.log_artifact(run_id, str(file), folder or None)
            sent[key] = mark
    mlflow.set_tag(run_id, "kto.artifacts", json.dumps(sent))


class Tracker:
    """Sends while the training runs, from a thread of its own, at most every `every` seconds; a failing server is waited out.

    `feed(events)` costs a list's append. `close(table)` sends the rest and returns a line that says how it went.
    """

    def __init__(self, run: Run, every: float = 15.0):
        self.run, self.every = run, every
        self.events: list = []
        self.there: dict[str, set[int]] = {}
        self.news, self.over = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self._loop, daemon=True)
        self.thread.start()

    def feed(self, events: list) -> None:
        """Take in a list of log events."""
        kept = [event for event in events if event.kind in ("metrics", "eval", "config")]
        self.events += kept
        if any(event.kind != "config" for event in kept):
            self.news.set()

    def close(self, table=None) -> str:
        """End the thread, send what is left, and say so in a line. Never raises: a run is worth more than its copy."""
        self.over.set()
        self.news.set()
        self.thread.join(timeout=30)
        try:
            told = sync(self.run, table)
            self.run.note(tracking={"run_id": told["run_id"], "sent": True})
            return f"MLflow has the run {self.run.name!r} ({told['url']})"
        except KitError as error:
            self.run.note(tracking={"sent": False})
            return str(error)

    def _loop(self) -> None:
        while not self.over.is_set():
            self.news.wait()
            self.news.clear()
            if self.over.is_set():
                return
            with contextlib.suppress(KitError):  # said once, at the end
                sync(self.run, metrics.table(list(self.events)), self.there)
            self.over.wait(self.every)
