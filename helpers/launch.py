"""Launch the training as a child process (helpers.trainer), follow, stop and explain it, and record it in run.json.

Its output goes straight into the run's train.log. Only where this environment holds secrets does it pass through here, to be masked.
"""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from . import cluster, files, secrets, tracking
from .errors import KitError, refuse, refuse_out_of_range
from .evaluate import earlier_adapters
from .explain import explain
from .logs import Event, Parser
from .profiles import ROOT
from .runs import Run, now, refuse_if_trained

LAUNCHERS = ("helpers.trainer", "llamafactory-cli")


def command(run: Run, config_file: Path | None = None, launcher: str = "helpers.trainer", retries: int = 2) -> list[str]:
    """The command that trains. `llamafactory-cli`: LLaMA-Factory's own and nothing else."""
    config_file = str(config_file or next_config(run))
    if launcher == "llamafactory-cli":
        script = Path(sys.executable).with_name(launcher)
        words = [str(script)] if script.exists() else [sys.executable, "-m", "llamafactory.cli"]  # packages elsewhere: PYTHONPATH
        return [*words, "train", config_file]
    if launcher not in LAUNCHERS:
        raise KitError(f"there is no launcher {launcher!r}", " or ".join(LAUNCHERS), "correct `launcher`")
    accelerated = str(run.record().get("accelerated", False)).lower()
    return [sys.executable, "-m", launcher, config_file, f"--retries={retries}", f"--accelerated={accelerated}"]


def next_config(run: Run) -> Path:
    """What the next launch takes: the resume.yaml of notebook 5 if there is one, else config.yaml."""
    return run.resume_file if run.resume_file.exists() else run.config_file


def config_of(run: Run) -> dict:
    """The configuration of the next launch, with paths in the run's current folder."""
    return run.relocated(files.read_yaml(next_config(run)))


def environment(run: Run, launcher: str = "helpers.trainer") -> dict[str, str]:
    """What is set besides the environment that this process has."""
    settings = {"USE_RAY": "1"} if launcher == "llamafactory-cli" else {}
    settings |= {"RAY_DEDUP_LOGS": "0",  # Ray would merge the workers' lines, and with them steps
                 "PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false"}
    if run.profile.ray_address == "local":
        settings |= {"RAY_USAGE_STATS_ENABLED": "0", cluster.LOOPBACK[0]: cluster.LOOPBACK[1]}
        config = config_of(run)
        if all(Path(name).is_dir() for name in (config["model_name_or_path"], *earlier_adapters(config))):
            settings["HF_HUB_OFFLINE"] = "1"  # all in folders: nothing to ask the hub for
    return settings


def spelled(run: Run, config_file: Path | None = None, launcher: str = "helpers.trainer", retries: int = 2) -> str:
    """The command line with its environment, as one would type it in the project's folder, secrets left out."""
    program, *words = command(run, config_file, launcher, retries)
    settings = [f"{key}={value}" for key, value in environment(run, launcher).items()]
    return " ".join([*settings, Path(program).name, *map(run.show, words)])


def start(run: Run, launcher: str = "helpers.trainer", retries: int = 2) -> "Training":
    """Launch the training: of config.yaml, or of the resume.yaml that notebook 5 wrote, then appended to the same log.

    KitError if this run was launched before and is not to be resumed, is being trained at this moment, or could never start.
    """
    refuse_out_of_range(retries=retries)
    resuming = run.resume_file.exists()
    if not resuming:
        refuse_if_trained(run)
    if is_alive(run):
        raise KitError(f"the run {run.name!r} is being trained at this moment", "one launch of a run at a time",
                       "wait for its end, or choose another run_name")
    config, config_file = settle(run), run.config_file
    settings, expected = environment(run, launcher), "room for every worker; Ray would wait for ever"
    if settings.get("USE_RAY") == "1":  # the stock command: a GPU for each worker, whatever the config says
        config["resources_per_worker"] = {"GPU": 1} | (config.get("resources_per_worker") or {})
        expected += ". llamafactory-cli asks for a GPU each; without one take launcher helpers.trainer"
    refuse([cluster.placed(config, *cluster.capacity(run.profile, config))], expected)
    settings |= tracking.training_environment(run)
    if resuming:  # kept under a name of its own: what was launched stays on record
        number = next(n for n in range(1, 10_000) if not (run.folder / f"resumed-{n}.yaml").exists())
        config_file = run.resume_file.rename(run.folder / f"resumed-{number}.yaml")
    words = command(run, config_file, launcher, retries)
    try:
        log = open(run.log_file, "ab" if resuming else "xb")  # noqa: SIM115
    except FileExistsError:  # of two launches at once, one gets it
        return refuse_if_trained(run)
    before = run.record().get("training", {})
    earlier = before.pop("earlier", []) + ([before] if before else [])
    with log:  # noted before it starts: a disk that has no room for the note has none for a training
        run.note(training={"status": "running", "started": now(), "command": spelled(run, config_file, launcher, retries),
                           "environment": settings, "earlier": earlier})
        begins, hides = log.tell(), bool(secrets.spellings())
        process = subprocess.Popen(
            [*words, *(["--end-with-stdin"] if launcher == "helpers.trainer" else [])],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE if hides else log, stderr=subprocess.STDOUT, cwd=run.folder,
            start_new_session=True,  # an interrupted cell is answered by `stop`, in order
            env={**os.environ, **settings, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))})
    copier = threading.Thread(target=copy_masked, args=(process.stdout, run.log_file), daemon=True) if hides else None
    if copier:
        copier.start()
    return Training(run, process, begins, copier)


def settle(run: Run) -> dict:
    """The configuration of the next launch; its file is rewritten if the run was moved: a launch needs the current paths."""
    file, config = next_config(run), config_of(run)
    if config != files.read_yaml(file):
        run.note()  # run.json first: its paths are told by what config.yaml says of the former place
        files.write(file, files.dump_yaml(config))
    return config


def copy_masked(pipe, log_file: Path) -> None:
    """What the training prints, into its log, without the secrets of this environment. What a full disk does not take is lost."""
    with open(log_file, "ab", buffering=0) as log:
        for text in secrets.masked(iter(lambda: os.read(pipe.fileno(), 1 << 16), b"")):
            with suppress(OSError):
                log.write(text)


def is_alive(run: Run) -> bool:
    """Whether the run is being trained, from whichever machine that shares its folder: the process that trains holds this lock."""
    lock = run.folder / "train.lock"
    try:
        with FileLock(lock, timeout=0) if lock.exists() else nullcontext():
            return False
    except Timeout:
        return True


class Training:
    """A launched training. `events()` follows it; `wait()` sees it to its end; `stop()` ends every process of it."""

    def __init__(self, run: Run, process: subprocess.Popen, begins: int = 0, copier: threading.Thread | None = None):
        self.run, self.process, self.begins, self.copier = run, process, begins, copier
        self.stopped = False

    def events(self) -> Iterator[list[Event]]:
        """The log's events as they come: a list (perhaps empty) every 0.3 seconds, until the training ended.

        An interrupted cell (KeyboardInterrupt) stops the training, then goes on its way.
        """
        parser = Parser()
        try:
            with open(self.run.log_file, "rb") as log:
                log.seek(self.begins)
                while self.process.poll() is None:
                    yield parser.feed(log.read())
                    time.sleep(0.3)
                if self.copier:
                    self.copier.join(5)
                yield parser.feed(log.read() + b"\n")
        finally:
            self.stop()

    def wait(self) -> "Training":
        """Follow silently to the end. Raises KitError if the training failed."""
        for _ in self.events():
            pass
        return self.check()

    def check(self) -> "Training":
        """KitError that explains the failure if the training did not end well."""
        code = self.process.wait()
        if self.stopped:
            raise KitError("the training was stopped", "", "resume from its last checkpoint: notebook 5, `resume`")
        if code != 0:
            found = explain(self.run.log_file)
            if found.name.startswith("the log ends") and shutil.disk_usage(self.run.folder).free < 1 << 20:
                found = found._replace(name="the disk is full", why="the log lacks its last words", fix="free space, or other storage")
            raise KitError(f"{found}\n  log:      {self.run.log_file} (exit status {code})")
        return self

    def stop(self) -> None:
        """End driver, workers and the Ray instance they started, within 15 s, if they have not ended; the end is noted in run.json."""
        if self.process.poll() is None:
            self.stopped = True
            self.process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(10)
        with suppress(ProcessLookupError, PermissionError):  # after a lost driver Ray's agents would stay a minute
            os.killpg(self.process.pid, signal.SIGKILL)
        code, training = self.process.wait(), self.run.record().get("training", {})
        if training.get("status") == "running":
            status = "stopped" if self.stopped else "failed" if code else "finished"
            # A disk that is full or read-only takes no note; where it ended the training, `check` explains it.
            with suppress(KitError) if code else nullcontext():
                self.run.note(training={**training, "status": status, "exit_status": code, "ended": now()})
