"""Run the six notebooks through papermill, into <run>/notebooks/."""

import base64
import os
import re
import subprocess
import time
from contextlib import contextmanager, nullcontext
from pathlib import Path

from filelock import FileLock, Timeout

from helpers import runs
from helpers.errors import KitError, closest
from helpers.runs import Run

from . import compare, parameters, report
from .terminal import Usage, as_usage

ENDING = 30.0
"""Grace period for a training process whose notebook died."""


def run(profile: str, storage: str, name: str | None, values: dict, resume: str | None, say, log: bool) -> Run:
    """Everything that `kto run` does."""
    with as_usage():
        begin, target = "01", runs.locate(profile, storage, runs.default_name(profile) if name is None else name)
    if resume == "auto" and (name is None or not target.record_file.exists()):
        names = [row["run"] for row in compare.listing(target.storage)]
        raise Usage("--resume auto needs --run-name" if name is None else f"there is no run {name!r} to resume{closest(name, names)}",
                    f"one of the runs in {target.storage}: {', '.join(names) or 'there is none'}",
                    "correct --run-name; --resume if-any begins a run that is not there yet, as a job does")
    if values.get("start_from"):
        values = model_of(target.storage, values["start_from"]) | values
    if not resume:  # before anything is touched
        runs.refuse_if_trained(target)
    with lock(target):
        if resume and target.trained:
            begin, why = prepare_resume(target)
            say(why)
        else:
            runs.start(profile, storage, target.name)
        try:
            return execute(target, values, say, begin, log)
        except KeyboardInterrupt:
            say(f"to go on: kto run --storage {target.storage} --run-name {target.name} --resume auto")
            raise


def model_of(storage: Path, start_from: str) -> dict:
    """Base model and template of the run that `start_from` names. Usage, before anything is touched, if there is none."""
    from helpers import rounds

    with as_usage():
        earlier = rounds.find(storage, start_from)
        rounds.adapters(earlier)
    model = earlier.record().get("model", {}) if isinstance(earlier, Run) else {}
    return {"model_name_or_path": model["name"], "template": model["template"]} if model else {}


def lock(run: Run, name: str = ".run.lock", patience: float = 0.0):
    """A lock in the run's folder, for a `with`. KitError where somebody else is at work on the run, still after `patience` seconds."""
    try:
        run.folder.mkdir(parents=True, exist_ok=True)
        return FileLock(run.folder / name).acquire(timeout=patience)
    except Timeout:
        raise KitError(f"the run {run.name!r} is being worked on at this moment", "one command at a time on a run",
                       "wait for its end (`kto runs` shows it), stop it, or take another --run-name") from None
    except OSError as error:
        raise KitError(f"cannot make the folder {run.folder}: {error.strerror}", "a writable storage",
                       "correct --storage") from None


def prepare_resume(run: Run) -> tuple[str, str]:
    """Make a run that was launched ready to be resumed; the number of the notebook to begin with, and why, in words.

    From its last complete checkpoint that leaves a step to train (resume.yaml is written), or, if it has none, from the
    beginning, the old log and output kept under other names. A finished run is left as it is. KitError if it is being trained.
    """
    from helpers import checkpoints, resume

    lock(run, "train.lock", ENDING).lock.release()  # the process that trains holds it
    if run.record().get("training", {}).get("status") == "finished":
        return "05", "the training is finished: evaluation and export are made again"
    if checkpoint := resume.write_unattended(run, checkpoints.find(run)):
        return "04", f"the training goes on from step {checkpoint.step}"
    number = len(list(run.folder.glob("train.failed-*.log"))) + 1
    run.log_file.rename(run.folder / f"train.failed-{number}.log")
    if run.output_dir.exists():
        run.output_dir.rename(run.folder / f"output.failed-{number}")
    return "04", "no complete checkpoint to go on from: the training starts again"


def execute(run: Run, values: dict, say=print, begin: str = "01", log: bool = False) -> Run:
    """Run the notebooks on `run`, from number `begin` on. A failing cell ends it: KitError with notebook, cell and error.

    `say(line)` gets a line when a notebook starts or ends and as the training moves on; with `log` stdout gets the training's log.
    """
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    if begin < "04":
        runs.refuse_if_trained(run)
    for warning in runs.settle(run.storage):
        say(warning)
    books, known, seconds = parameters.notebooks(), parameters.known(), {}
    chosen = {"profile": run.profile.name, "storage": str(run.storage), "run_name": run.name, **values}
    run.notebooks.mkdir(parents=True, exist_ok=True)
    os.environ["KTO_LIVE"] = "off"  # no front end watches: lines instead of a live picture
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # torch's waiting threads would take the others' time
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for number, path in enumerate(books, 1):
        if path.stem < begin:
            continue
        began, made, training = time.monotonic(), run.notebooks / path.name, path.stem == "04_train"
        say(f"[{number}/{len(books)}] {path.stem}")
        own = {name: value for name, value in chosen.items() if path.stem in known[name]["notebooks"]}
        try:
            with printed(run.log_file) if training and log else nullcontext():
                papermill.execute_notebook(
                    str(path), str(made), parameters=own, cwd=str(path.parent), kernel_name="python3",
                    progress_bar=False, extra_arguments=["--log-level=50"],  # the kernel: silent
                    stdout_file=Steps(say) if training else None)
        except BaseException as error:
            run.note(failed=path.stem)
            if isinstance(error, DeadKernelError):
                raise KitError(f"{path.stem}: the notebook's process ended before its last cell", "one that nobody ends",
                               "after Ctrl-C: --resume auto; else it was killed, most likely for memory: dmesg | grep -i oom") from None
            if not isinstance(error, PapermillExecutionError):
                raise
            if error.ename == "KeyboardInterrupt":  # Ctrl-C reached the kernel first
                raise KeyboardInterrupt from None
            raise KitError(f"{path.stem}, cell [{error.exec_count}]: {error.ename}: {error.evalue}", "",
                           f"see the executed notebook: {made}") from None
        finally:  # however it ended
            if made.exists():
                embed_pictures(made)
            status = run.record().get("training", {})
            if training and status.get("status") == "running":  # nothing trains any more
                run.note(training={**status, "status": "stopped", "ended": runs.now()})
        seconds[path.stem] = round(time.monotonic() - began, 1)
        say(f"[{number}/{len(books)}] {path.stem} done in {seconds[path.stem]:.0f} s")
    run.note(seconds=seconds, failed=None)
    report.write(run, summary(run))
    return run


class Steps:
    """A file for what notebook 4 prints: its lines about the training's progress are passed to `say`."""

    def __init__(self, say):
        self.say = say

    def write(self, text: str) -> None:
        for line in text.splitlines():
            if re.match(r"(?:[\w ]+, )?step \d|\[(?:WARN|FAIL)\]", line):
                self.say(f"      {line}")

    def flush(self) -> None:
        pass


@contextmanager
def printed(log: Path):
    """What is added to the training's log goes to stdout too, by tail(1)."""
    words = ["tail", f"--pid={os.getpid()}", "-n", "0", "-F", str(log)]
    with subprocess.Popen(words, stderr=subprocess.DEVNULL) as tail:
        try:
            yield
        finally:
            time.sleep(1.5)  # it may look once a second only
            tail.terminate()


def embed_pictures(notebook: Path) -> None:
    """The pictures that an executed notebook's texts show are put into it: it is whole wherever it is copied."""
    import nbformat

    book = nbformat.read(notebook, 4)
    for cell in book.cells:
        for name in re.findall(r"\]\((pictures/[^)]+)\)", cell.source) if cell.cell_type == "markdown" else ():
            data = base64.b64encode((parameters.NOTEBOOKS / name).read_bytes()).decode()
            cell.setdefault("attachments", {})[Path(name).name] = {"image/png": data}
            cell.source = cell.source.replace(f"]({name})", f"](attachment:{Path(name).name})")
    nbformat.write(book, notebook)


def summary(run: Run) -> dict:
    """What a finished run has to show: figures, places, times; plain data."""
    from helpers import rates, rounds

    record = run.record()
    evaluation, exported = record.get("evaluation", {}), record.get("export", {})
    return {
        "run": run.name,
        "held-out accuracy (area under ROC), before": evaluation.get("auc_before"),
        "held-out accuracy (area under ROC), after": evaluation.get("auc"),
        "held-out reward margin, before": evaluation.get("margin_before"),
        "held-out reward margin, after": evaluation.get("margin"),
        "rounds": rounds.words(record.get("rounds", [])) or None,
        "training": record.get("training", {}).get("says"),
        "training's pace": rates.corrected(record.get("measured"), record.get("estimate")) or None,
        "seconds": record.get("seconds", {}),
        "report": str(run.folder / "report.html"),
        "executed notebooks": str(run.notebooks),
        "figures": str(run.figures),
        "checkpoint": str(run.folder / best) if (best := record.get("checkpoint", {}).get("best")) else None,
        "adapter": exported.get("adapter"),
        "merged model": exported.get("merged"),
        "total seconds": round(sum(record.get("seconds", {}).values())),
    }
