"""The six notebooks in their order through papermill, into <run>/notebooks/: the same files a reader walks through."""

import json
import os
import threading
import time
from pathlib import Path

from . import runs
from .errors import KitError, closest
from .profiles import ROOT
from .runs import Run

NOTEBOOKS = ROOT / "notebooks"
COMMON = ("profile", "storage", "run_name")


def notebooks() -> list[Path]:
    """The numbered notebooks, in order."""
    return sorted(NOTEBOOKS.glob("0[1-9]_*.ipynb"))


def parameters() -> dict[str, dict]:
    """name -> {"notebooks", "type", "default", "help"} of every knob in the notebooks' parameters cells."""
    import papermill

    known: dict[str, dict] = {}
    for path in notebooks():
        for name, found in papermill.inspect_notebook(str(path)).items():
            entry = {"type": found["inferred_type_name"], "default": found["default"], "help": found["help"]}
            known.setdefault(name, {"notebooks": [], **entry})["notebooks"].append(path.stem)
    return known


def typed(assignments: list[str]) -> dict:
    """`["max_steps=12"]` -> `{"max_steps": 12}`, by the types in the parameters cells. KitError lists the valid names."""
    known = parameters()
    values = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals or name not in known or name in COMMON:
            hint = " (has an option of its own)" if name in COMMON else closest(name, known)
            listed = ", ".join(sorted(set(known) - set(COMMON)))
            raise KitError(
                f"there is no parameter {name!r}{hint}",
                f"name=value with one of: {listed}",
                "correct -p; any other LLaMA-Factory key goes into -p 'overrides={\"key\": value}'",
            )
        values[name] = _typed(name, text, known[name]["type"])
    return values


def _typed(name: str, text: str, kind: str):
    try:
        if kind == "bool":
            return {"true": True, "false": False}[text.lower()]
        if kind == "dict":
            return dict(json.loads(text))
        return {"int": int, "float": float}.get(kind, str)(text)
    except (ValueError, KeyError, TypeError):
        raise KitError(f"{name}={text}: {text!r} is not a value of type {kind}", f"a {kind}", "correct -p") from None


def absolute_paths(values: dict, names=("dataset", "model_name_or_path", "train_config")) -> dict:
    """Values that name an existing file or folder, made absolute: the notebooks run in a folder of their own."""
    return {
        name: str(Path(value).resolve()) if name in names and value and Path(value).exists() else value
        for name, value in values.items()
    }


def prepare_resume(run: Run) -> str:
    """Make a run that was launched ready to go on by itself; what will happen, in words.

    From its last complete checkpoint (resume.yaml is written), or, if it has none, from the beginning, the old log and output
    kept under other names. A finished run is left as it is.
    """
    from . import checkpoints
    from .checkpoints import resume

    if run.record().get("training", {}).get("status") == "finished":
        return "the training is finished: evaluation and export are made again"
    if any(item.complete for item in checkpoints.find(run)):
        latest, _ = checkpoints.latest(checkpoints.find(run))
        resume.write(run, latest)
        return f"the training goes on from step {latest.step}"
    number = next(n for n in range(1, 10_000) if not (run.folder / f"train.failed-{n}.log").exists())
    run.log_file.rename(run.folder / f"train.failed-{number}.log")
    if run.output_dir.exists():
        run.output_dir.rename(run.folder / f"output.failed-{number}")
    return "no complete checkpoint: the training starts again"


def execute(run: Run, values: dict, say=print, begin: str = "01") -> Run:
    """Run the notebooks on `run`, from number `begin` on. A failing cell ends it: KitError with notebook, cell and error.

    `say(line)` gets a line when a notebook starts or ends and as the training moves on.
    """
    import papermill
    from papermill.exceptions import PapermillExecutionError

    if begin < "04":
        runs.refuse_if_trained(run)
    known, chosen = (
        parameters(),
        {"profile": run.profile.name, "storage": str(run.storage), "run_name": run.name, **values},
    )
    run.notebooks.mkdir(parents=True, exist_ok=True)
    os.environ["KTO_LIVE"] = "off"  # no front end watches: lines instead of a live picture
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # on busy cores, torch's waiting threads would take the others' time
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    seconds = {}
    for number, path in enumerate(notebooks(), 1):
        if path.stem < begin:
            continue
        started = time.monotonic()
        say(f"[{number}/{len(notebooks())}] {path.stem}")
        own = {name: value for name, value in chosen.items() if path.stem in known[name]["notebooks"]}
        with _Watch(run, say if path.stem == "04_train" else None):
            try:
                papermill.execute_notebook(
                    str(path),
                    str(run.notebooks / path.name),
                    parameters=own,
                    cwd=str(NOTEBOOKS),
                    kernel_name="python3",
                    progress_bar=False,
                    extra_arguments=["--log-level=50"],
                )  # the kernel: silent
            except PapermillExecutionError as error:
                raise KitError(
                    f"{path.stem}, cell [{error.exec_count}]: {error.ename}: {error.evalue}",
                    "",
                    f"see the executed notebook: {run.notebooks / path.name}",
                ) from None
        seconds[path.stem] = round(time.monotonic() - started, 1)
        say(f"[{number}/{len(notebooks())}] {path.stem} done in {seconds[path.stem]:.0f} s")
    run.note(seconds=seconds)
    return run


class _Watch:
    """While the training notebook runs: reads train.log along and says, every tenth of the steps, where it stands."""

    def __init__(self, run: Run, say):
        self.run, self.say, self.over = run, say, threading.Event()
        self.thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self):
        if self.say:
            self.thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        if self.say:
            self.thread.join(timeout=5)

    def _follow(self) -> None:
        from .logs import Parser
        from .plots.live import duration

        parser, position, said = Parser(), 0, -1
        while not self.over.wait(1.0):
            if not self.run.log_file.exists():
                continue
            with open(self.run.log_file, "rb") as log:
                log.seek(position)
                events = parser.feed(log.read())
                position = log.tell()
            bars = [event.data for event in events if event.kind == "progress" and event.data["task"] == "training"]
            if bars and (tenth := 10 * bars[-1]["done"] // max(bars[-1]["total"], 1)) > said:
                said = tenth
                self.say(
                    f"      step {bars[-1]['done']} of {bars[-1]['total']}, {duration(bars[-1]['remaining']) or 'some time'} left"
                )


def summary(run: Run) -> dict:
    """What a finished run has to show: figures, places, times; plain data."""
    record = run.record()
    evaluation = record.get("evaluation", {})
    return {
        "run": run.name,
        "held-out accuracy (area under ROC), before": evaluation.get("auc_before"),
        "held-out accuracy (area under ROC), after": evaluation.get("auc"),
        "held-out reward margin, before": evaluation.get("margin_before"),
        "held-out reward margin, after": evaluation.get("margin"),
        "training": record.get("training", {}).get("says"),
        "seconds": record.get("seconds", {}),
        "executed notebooks": str(run.notebooks),
        "figures": str(run.figures),
        "checkpoint": record.get("checkpoint", {}).get("best"),
        "adapter": record.get("export", {}).get("adapter"),
        "merged model": record.get("export", {}).get("merged"),
    }
