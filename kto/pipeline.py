"""The six notebooks in their order through papermill, into <run>/notebooks/: the same files a reader walks through."""

import json
import os
import threading
import time
from contextlib import nullcontext
from pathlib import Path

from helpers import runs, secrets
from helpers.errors import KitError, closest
from helpers.profiles import ROOT
from helpers.runs import Run

NOTEBOOKS = ROOT / "notebooks"
COMMON = ("profile", "storage", "run_name")
PAUSE = 10.0
"""Seconds before a failed training goes on by itself, doubled each time: a lost node may be replaced meanwhile."""
ENDING = 30.0
"""Seconds that a training whose notebook died is given to end: its guard needs up to 15."""


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
    secrets.refuse(values, "the parameters")
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


def prepare_resume(run: Run) -> tuple[str, str]:
    """Make a run that was launched ready to go on by itself; the number of the notebook to begin with, and why, in words.

    From its last complete checkpoint that leaves a step to train (resume.yaml is written), or, if it has none, from the
    beginning, the old log and output kept under other names. A finished run is left as it is. KitError if it is being trained.
    """
    from helpers import checkpoints, launch
    from helpers.checkpoints import resume

    until = time.monotonic() + ENDING
    while launch.is_alive(run):
        if time.monotonic() > until:
            raise KitError(f"the run {run.name!r} is being trained at this moment", "a run whose training has ended",
                           "wait for its end, or stop it")  # fmt: skip
        time.sleep(0.5)
    if run.record().get("training", {}).get("status") == "finished":
        return "05", "the training is finished: evaluation and export are made again"
    if checkpoint := resume.write_unattended(run, checkpoints.find(run)):
        return "04", f"the training goes on from step {checkpoint.step}"
    number = next(n for n in range(1, 10_000) if not (run.folder / f"train.failed-{n}.log").exists())
    run.log_file.rename(run.folder / f"train.failed-{number}.log")
    if run.output_dir.exists():
        run.output_dir.rename(run.folder / f"output.failed-{number}")
    return "04", "no complete checkpoint to go on from: the training starts again"


def persist(run: Run, values: dict, say=print, begin: str = "01", retries: int = 0, echo=None) -> Run:
    """`execute`; a training that fails goes on from its last checkpoint by itself, `retries` times at most."""
    for attempt in range(retries + 1):
        try:
            return execute(run, values, say, begin, echo)
        except KitError as error:
            if attempt == retries or run.record().get("training", {}).get("status") != "failed":
                raise
            say(f"error: {error}")
            time.sleep(PAUSE * 2**attempt)
            begin, why = prepare_resume(run)
            say(why)


def execute(run: Run, values: dict, say=print, begin: str = "01", echo=None) -> Run:
    """Run the notebooks on `run`, from number `begin` on. A failing cell ends it: KitError with notebook, cell and error.

    `say(line)` gets a line when a notebook starts or ends and as the training moves on; `echo(bytes)` the training's log.
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
        with _Watch(run, say, echo) if path.stem == "04_train" else nullcontext():
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
    """While the training notebook runs: reads train.log along, echoes it, and says every tenth of the steps where it stands."""

    def __init__(self, run: Run, say, echo=None):
        self.run, self.say, self.echo, self.over = run, say, echo, threading.Event()
        self.position = run.log_file.stat().st_size if run.log_file.exists() else 0  # what an earlier launch wrote is known
        self.thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self):
        self.thread.start()

    def __exit__(self, *_):
        """However it ended, nothing trains any more: a record that says otherwise is put right."""
        self.over.set()
        self.thread.join(timeout=5)
        training = self.run.record().get("training", {})
        if training.get("status") == "running":
            self.run.note(training={**training, "status": "stopped", "ended": runs.now()})

    def _follow(self) -> None:
        from helpers.logs import Parser
        from helpers.plots.live import duration

        parser, said, last = Parser(), -1, False
        while not last:
            last = self.over.wait(1.0)  # and once more, for what was written last
            if not self.run.log_file.exists():
                continue
            with open(self.run.log_file, "rb") as log:
                log.seek(self.position)
                new = log.read()
            if not last:  # whole lines only: what is said between must not cut one
                new = new[: max(new.rfind(b"\n"), new.rfind(b"\r")) + 1]
            self.position += len(new)
            if self.echo:
                self.echo(new)
            events = parser.feed(new)
            bars = [event.data for event in events if event.kind == "progress" and event.data["task"] == "training"]
            if bars and (tenth := 10 * bars[-1]["done"] // max(bars[-1]["total"], 1)) > said:
                said, left = tenth, duration(bars[-1]["remaining"]) or "some time"
                self.say(f"      step {bars[-1]['done']} of {bars[-1]['total']}, {left} left")


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
        "checkpoint": str(run.folder / best) if (best := record.get("checkpoint", {}).get("best")) else None,
        "adapter": record.get("export", {}).get("adapter"),
        "merged model": record.get("export", {}).get("merged"),
    }
