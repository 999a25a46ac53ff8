"""Copy a run's parameters, metrics, figures and adapter to MLflow; a failure never stops training.

The folder is the truth: `sync` sends whatever the server does not have yet, and can be called at any time and any number of times.
"""

import contextlib
import logging
import os
import re
import time
from pathlib import Path

from . import metrics
from .errors import KitError
from .runs import Run
from .secrets import mask

TAG = "kto.run_folder"
UNITS = ["step", "epoch", "split"]
PATIENCE = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "5", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "GIT_PYTHON_REFRESH": "quiet",
            "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true"}
"""MLflow's own defaults are 120 s and 7 retries: a server that is away would hold the sender for a quarter of an hour. And it would
print addresses among our results."""
WORKERS_NEED = ("MLFLOW_RUN_ID", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_TRACKING_USERNAME",
                "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "DATABRICKS_HOST", "DATABRICKS_TOKEN")
ENDS = {"finished": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}
FILES = {"config.yaml": None, "metrics.jsonl": None, "figures/*.png": "figures", "export/adapter/*/adapter_*": "adapter"}  # -> folder


def uri_for(run: Run) -> str:
    """MLFLOW_TRACKING_URI of the environment if set (http, https, databricks, …), else the storage's own SQLite file."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{run.storage / 'mlflow.db'}"


def client(run: Run):
    """An MlflowClient that gives up within seconds where no server answers."""
    for name, value in PATIENCE.items():
        os.environ.setdefault(name, value)
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

    Files (config, figures, adapter) are sent once the training has ended, by every call anew. `table`: a metrics table; default:
    what the run's log says. `there`: metric -> the steps that MLflow is known to have, which a caller of many syncs keeps; default:
    MLflow is asked. KitError where MLflow cannot be reached or refuses.
    """
    from mlflow.entities import Metric
    from mlflow.exceptions import MlflowException

    uri = uri_for(run)
    try:
        mlflow = client(run)
        run_id = run_of(mlflow, run)
        if table is None:
            table = metrics.table(run.log_file, run.config().get("logging_steps")) if run.trained else metrics.table([], 1)
        points, there, now = [], {} if there is None else there, int(time.time() * 1000)
        for split, rows in table.groupby("split"):
            for column in rows.columns.difference(UNITS):
                name = column if split == "train" else f"{split}/{column}"
                if name not in there:  # a long run's history is 10,000 rows a metric: asked for once
                    there[name] = {point.step for point in mlflow.get_metric_history(run_id, name)}
                points += [Metric(name, float(value), now, int(step)) for step, value in zip(rows["step"], rows[column], strict=True)
                           if value == value and step not in there[name]]
        for start in range(0, len(points), 1000):
            mlflow.log_batch(run_id, metrics=points[start : start + 1000])
        for point in points:
            there[point.key].add(point.step)

        if (status := run.record().get("training", {}).get("status")) in ENDS:
            for pattern, folder in FILES.items():
                for file in sorted(run.folder.glob(pattern)):
                    mlflow.log_artifact(run_id, str(file), folder)
            mlflow.set_terminated(run_id, ENDS[status])
        experiment = mlflow.get_run(run_id).info.experiment_id
        if uri.startswith("http"):
            url = f"{shown(uri).rstrip('/')}/#/experiments/{experiment}/runs/{run_id}"
        elif os.environ.get("MLFLOW_TRACKING_URI"):  # databricks, a store of one's own
            url = f"experiment {experiment} at {shown(uri)}"
        else:
            url = "make mlflow, then http://127.0.0.1:5000"
        return {"run_id": run_id, "points": len(points), "url": url}
    except (MlflowException, OSError) as error:
        raise KitError(f"MLflow at {shown(uri)} cannot be reached: {shown(str(error).splitlines()[0])[:300]}",
                       "a server that answers (make mlflow), and MLFLOW_TRACKING_USERNAME and _PASSWORD or _TOKEN if it asks for them",
                       f"nothing is lost: `kto track {run.folder}` sends it later") from None


def shown(text: str) -> str:
    """Addresses without a user name or password in them."""
    return re.sub(r"//[^/\s]+@", "//", text)


def experiment_of(mlflow, run: Run) -> str:
    """The id of MLFLOW_EXPERIMENT_NAME (default `kto`), made where it is missing. KitError for a name that cannot be used."""
    name, uri = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "kto", uri_for(run)
    if uri.partition(":")[0] == "databricks" and not name.startswith("/"):
        raise KitError(f"Databricks takes no experiment called {name!r}", "an absolute path in the workspace",
                       "export MLFLOW_EXPERIMENT_NAME=/Shared/kto (or /Users/<your address>/kto)")
    found = mlflow.get_experiment_by_name(name)
    if found and found.lifecycle_stage == "deleted":
        raise KitError(f"the MLflow experiment {name!r} was deleted on {shown(uri)}", "an active experiment",
                       f"mlflow experiments restore -x {found.experiment_id}, or set MLFLOW_EXPERIMENT_NAME to another name")
    own = (run.storage / "mlartifacts").as_uri() if uri.startswith("sqlite:") else None  # a server has its own artifact root
    return found.experiment_id if found else mlflow.create_experiment(name, own)


def run_of(mlflow, run: Run) -> str:
    """The MLflow run of this run's folder: found by its tag, so a resumed training continues in it, or created."""
    from mlflow.entities import Param

    experiment = experiment_of(mlflow, run)
    same = mlflow.search_runs([experiment], f"tags.`{TAG}` = '{run.folder}'", max_results=1)
    if same:
        return same[0].info.run_id
    made = mlflow.create_run(experiment, run_name=run.name, tags={TAG: str(run.folder)}).info.run_id
    named = parameters(run)
    if training_logs(run):  # transformers logs the trainer's arguments itself, and MLflow refuses a second spelling of one
        named = {key: value for key, value in named.items() if key == "profile" or key.startswith("data.")}
    mlflow.log_batch(made, params=[Param(key, mask(str(value))[:6000]) for key, value in named.items()])
    return made


def training_logs(run: Run) -> bool:
    """Whether the config has `report_to: mlflow`, so that transformers' own callback logs inside the training."""
    wanted = run.config().get("report_to") or []
    return "mlflow" in ([wanted] if isinstance(wanted, str) else wanted)


def training_environment(run: Run) -> dict[str, str]:
    """The environment by which `report_to: mlflow` logs into this run: mlflow.start_run takes up MLFLOW_RUN_ID. KitError as `sync`."""
    if not training_logs(run):
        return {}
    address = {} if os.environ.get("MLFLOW_TRACKING_URI") else {"MLFLOW_TRACKING_URI": uri_for(run)}
    carried = " ".join([os.environ.get("KTO_SECRETS", ""), *WORKERS_NEED]).strip()  # in memory, to workers on other nodes
    return address | {"MLFLOW_RUN_ID": sync(run)["run_id"], "KTO_SECRETS": carried}


def parameters(run: Run) -> dict:
    """The parameters sent to MLflow, under LLaMA-Factory's names; nothing of ray_init_kwargs, which may hold secrets."""
    dataset = run.record().get("dataset", {})
    data = {f"data.{key}": dataset[key] for key in ("source", "sha256", "rows", "accepted", "rejected") if key in dataset}
    config = {key: value for key, value in run.config().items() if key != "ray_init_kwargs"}
    return config | {"profile": run.profile.name} | data


class Tracker:
    """Sends while the training runs. After one failure it sends at the end only: the folder has everything."""

    def __init__(self, run: Run):
        self.run, self.there, self.failed, self.training_logs = run, {}, False, training_logs(run)

    def send(self, table) -> None:
        """Send what is new in a metrics table, unless the training itself is doing so. Raises nothing."""
        if not self.failed and not self.training_logs:
            try:
                sync(self.run, table, self.there)
            except KitError:  # said once, at the end
                self.failed = True

    def close(self, table=None) -> str:
        """Send the rest, and return a line that says how it went. Raises nothing: a run is worth more than its copy."""
        try:
            sent = sync(self.run, table)
            self.run.note(tracking={"run_id": sent["run_id"], "sent": True})
            return f"MLflow has the run {self.run.name!r} ({sent['url']})"
        except KitError as error:
            self.run.note(tracking={"sent": False})
            return str(error)
