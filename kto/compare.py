"""Compare runs: what a storage holds, how configs and data differ, how each run ended."""

from pathlib import Path

from helpers import files, metrics, tracking
from helpers.errors import KitError
from helpers.explain import explain
from helpers.runs import Run, of_folder

from .terminal import Usage

OWN = ("output_dir", "ray_run_name", "dataset_dir", "ray_storage_path")
"""Keys of a config that differ between any two runs and say nothing."""


def listing(storage: Path) -> list[dict]:
    """One row a run in `storage`, newest first: name, created, how far it came, held-out figures."""
    rows = []
    for file in storage.glob("*/run.json"):
        try:
            record = files.read_json(file)
        except KitError:
            record = {"training": {"status": "run.json is broken"}}
        evaluation = record.get("evaluation", {})
        rows.append({"run": record.get("run_name", file.parent.name), "created": record.get("created", ""),
                     "status": status(record), "dataset": record.get("dataset", {}).get("name", ""),
                     "auc": evaluation.get("auc"), "margin": evaluation.get("margin")})
    return sorted(rows, key=lambda row: row["created"], reverse=True)


def status(record: dict) -> str:
    """How far a run came, from its run.json: its training's status, or the notebook that failed before or after it."""
    trained = record.get("training", {}).get("status", "not launched")
    return f"{record['failed']} failed" if trained in ("finished", "not launched") and record.get("failed") else trained


def differences(opened: dict[str, Run]) -> list[dict]:
    """One row a key whose value is not the same in all runs: {"key", a run's name: its value (None: not set), …}."""
    parameters = {name: tracking.parameters(run) for name, run in opened.items() if run.config_file.exists()}
    keys = dict.fromkeys(key for values in parameters.values() for key in values if key not in OWN)
    rows = [{"key": key, **{name: parameters.get(name, {}).get(key) for name in opened}} for key in keys]
    first = next(iter(parameters), None)  # a run without a config ended before it was to differ
    return [row for row in rows if any(row[name] != row[first] for name in parameters)]


def names(paths: list[Path]) -> list[str]:
    """What to call each: the folder's or the log's own name, the whole path where two share one."""
    whole = [path.resolve() for path in paths]
    short = [path.parent.name if path.name == "train.log" else path.name.removesuffix(".log") for path in whole]
    return short if len(set(short)) == len(short) else [str(path) for path in paths]


def labels(logs: list[Path]) -> list[str]:
    """What to call each in a picture: of runs that differ in up to three keys these with their values, else its name."""
    called = names(logs)
    if not all((log / "config.yaml").is_file() for log in logs):
        return called
    differ = differences({name: of_folder(log) for name, log in zip(called, logs, strict=True)})
    said = [", ".join(f"{row['key']} {row[name]}" for row in differ) for name in called]
    return said if len(differ) <= 3 and len(set(said)) == len(said) > 1 else called


def outcome(run: Run) -> dict:
    """Where a run ended: status, last step, means of the last fifth of its windows, what notebook 6 found."""
    record, figures = run.record(), {}
    if run.trained and len(windows := metrics.table(run.log_file)):  # one that failed before its first window has its status only
        train = windows.query("split == 'train'")
        last = train.tail(max(len(train) // 5, 1))
        named = {"loss": "loss_mean", "margin": "rewards/margins", "KL": "kl_mean"}
        means = {name: last[key].mean() for name, key in named.items()}
        figures = {"step": int(train["step"].max()), **{name: float(mean) if mean == mean else None for name, mean in means.items()}}
    evaluation = record.get("evaluation", {})
    return {"status": status(record), **figures, "auc held out": evaluation.get("auc"), "margin held out": evaluation.get("margin")}


def log_of(path: Path) -> Path:
    """The log of `path`: the file itself, or a run's train.log. Usage if there is none."""
    log = path / "train.log" if path.is_dir() else path
    if not log.is_file():
        raise Usage(f"there is no log {log}", "a LLaMA-Factory log or a run's folder", "correct the path")
    with log.open("rb") as file:
        start = file.read(1 << 14).decode("utf-8", "replace")
    if start.count("\0") + start.count("\ufffd") > len(start) / 8:  # a picture, an archive, UTF-16
        raise Usage(f"{log} is no text in UTF-8", "a training's log as it was printed",
                    "give the log itself, unpacked; one in UTF-16: iconv -f UTF-16 -t UTF-8")
    return log


def metrics_of(path: Path, logging_steps: int | None = None):
    """The table (helpers.metrics) of a log or of a run's folder. KitError where it logged nothing, with what log it is."""
    log = log_of(path)
    if (found := metrics.table(log, logging_steps)).empty:
        raise KitError(f"{log} holds no logged window: {explain(log)}", "lines like {'loss': …, 'learning_rate': …}")
    return found
