"""`llamafactory-cli train` on Ray as a child process: started, followed, stopped, explained.

The child writes straight into the run's train.log; this side reads along. So the log is what the terminal would have
shown, byte for byte, and watching costs the training nothing but a reader of a file.
"""

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from .. import doctor, files, secrets
from ..errors import KitError
from ..explain import explain
from ..logs import Event, Parser
from ..process import guard
from ..runs import Run, now, refuse_if_trained


def command(run: Run, config_file: Path | None = None) -> list[str]:
    """The command that trains: our accelerator where 03 noted so, the stock one where a worker gets a GPU, else helpers.process.cpu."""
    beside = Path(sys.executable).with_name("llamafactory-cli")
    words = [str(beside)] if beside.exists() else [sys.executable, "-m", "llamafactory.cli"]  # packages elsewhere: PYTHONPATH
    if run.record().get("accelerated") or not asks_for_gpu(run):
        module = "accelerator" if run.record().get("accelerated") else "cpu"
        words = [sys.executable, "-m", f"helpers.process.{module}"]
    elif secrets.carried():
        words = [sys.executable, "-m", "helpers.process.carrying"]
    return [*words, "train", str(config_file or next_config(run))]


def next_config(run: Run) -> Path:
    """What the next launch takes: the resume.yaml of notebook 5 if there is one, else config.yaml."""
    return run.resume_file if run.resume_file.exists() else run.config_file


def environment(run: Run) -> dict[str, str]:
    """What is set besides the environment that this process has."""
    settings = {
        "USE_RAY": "1",
        "RAY_TRAIN_V2_ENABLED": "0",  # Ray 2.48's default; named so that a newer Ray keeps the folder layout
        "RAY_DEDUP_LOGS": "0",  # Ray would merge the workers' lines, and with them steps
        "PYTHONUNBUFFERED": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if run.profile.ray_address == "local":
        settings["RAY_USAGE_STATS_ENABLED"] = "0"
        settings |= dict([doctor.LOOPBACK])
        if Path(config_of(run)["model_name_or_path"]).is_dir():
            settings["HF_HUB_OFFLINE"] = "1"  # a local model: nothing to ask the hub for
    return settings


def config_of(run: Run) -> dict:
    """The configuration that the next launch takes, as it lies in the run's folder."""
    return files.read_yaml(next_config(run))


def asks_for_gpu(run: Run) -> bool:
    """Whether the run's config asks for a GPU per worker."""
    return bool((config_of(run).get("resources_per_worker") or {}).get("GPU", 0))


def spelled(run: Run, config_file: Path | None = None) -> str:
    """The command line with its environment, as one would type it in the project's folder, secrets left out."""
    words = [Path(word).name if i == 0 else word for i, word in enumerate(command(run, config_file))]
    words[-1] = run.show(words[-1])
    return " ".join([f"{key}={value}" for key, value in environment(run).items()] + words)


class Training:
    """A launched training. `events()` follows it; `wait()` sees it to its end; `stop()` ends every process of it."""

    def __init__(self, run: Run, guardian: subprocess.Popen, mark: str, lock: FileLock, begins: int = 0):
        self.run, self.guardian, self.mark, self.lock, self.begins = run, guardian, mark, lock, begins
        self.parser = Parser()
        self._stopped = False

    def events(self, every: float = 0.3) -> Iterator[list[Event]]:
        """The log's events as they come: a list (perhaps empty) every `every` seconds, until the training ended.

        An interrupted cell (KeyboardInterrupt) stops the training, then goes on its way.
        """
        try:
            with open(self.run.log_file, "rb") as log:
                log.seek(self.begins)
                while True:
                    ended = self.guardian.poll() is not None
                    yield self._read(log)
                    if ended:
                        break
                    time.sleep(every)
            yield self.parser.close()
            self._note_end()
        except BaseException:
            self.stop()
            raise

    def wait(self) -> "Training":
        """Follow silently to the end. Raises KitError if the training failed."""
        for _ in self.events():
            pass
        return self.check()

    def check(self) -> "Training":
        """KitError that explains the failure if the training did not end well."""
        code = self.guardian.wait()
        if code != 0:
            if self._stopped or code == guard.STOPPED:
                raise KitError("the training was stopped", "", "go on from its last checkpoint: notebook 5, `resume`")
            raise KitError(f"{explain(self.run.log_file)}\n  log:      {self.run.log_file} (exit status {code})")
        return self

    def stop(self) -> None:
        """End driver, workers and the Ray instance they started, within 15 s; notes it in run.json."""
        if self.guardian.poll() is None:
            self._stopped = True
            self.guardian.stdin.close()
            try:
                self.guardian.wait(12)
            except subprocess.TimeoutExpired:
                self.guardian.send_signal(signal.SIGKILL)
                guard.end_all(self.mark)
        self._note_end()

    def _read(self, log) -> list[Event]:
        events = []
        while chunk := log.read(1 << 20):
            events += self.parser.feed(chunk)
        return events

    def _note_end(self) -> None:
        code = self.guardian.poll()
        status = "stopped" if self._stopped or code == guard.STOPPED else "finished" if code == 0 else "failed"
        training = self.run.record().get("training", {})
        try:
            if training.get("status") == "running":
                self.run.note(training={**training, "status": status, "exit_status": code, "ended": now()})
        except KitError:  # a full or read-only disk: the same that ended the training, which `check` explains
            if status == "finished":
                raise
        finally:
            self.lock.release()


def start(run: Run) -> Training:
    """Launch the training: of config.yaml, or of the resume.yaml that notebook 5 wrote, then appended to the same log.

    KitError if this run was launched before and is not to be resumed, or is being trained at this very moment.
    """
    resuming = run.resume_file.exists()
    if not resuming:
        refuse_if_trained(run)
    refuse_impossible(run)
    lock = FileLock(run.folder / "train.lock")
    try:
        lock.acquire(timeout=0)  # of two launches with one name, one gets it
        if is_alive(run):  # its notebook died, it is being ended
            lock.release()
            raise Timeout(str(lock.lock_file))
    except Timeout:
        raise KitError(
            f"the run {run.name!r} is being trained at this moment",
            "one launch of a run at a time",
            "wait for its end, or choose another run_name",
        ) from None
    try:
        return _launch(run, lock, resuming)
    except BaseException:
        lock.release()
        raise


def is_alive(run: Run) -> bool:
    """Whether any process of the run's last launch is there."""
    return bool(guard.marked(run.record().get("training", {}).get("mark", "")))


def _launch(run: Run, lock: FileLock, resuming: bool) -> Training:
    config_file = run.config_file
    if resuming:  # kept under a name of its own: what was launched stays on record
        number = next(n for n in range(1, 10_000) if not (run.folder / f"resumed-{n}.yaml").exists())
        config_file = run.resume_file.rename(run.folder / f"resumed-{number}.yaml")
    arguments, settings = command(run, config_file), environment(run)
    mark = f"{run.name}-{uuid.uuid4().hex[:12]}"
    with open(run.log_file, "ab" if resuming else "xb") as log:
        begins = log.tell()
        guardian = subprocess.Popen(
            [sys.executable, "-m", "helpers.process.guard", mark, "--", *arguments],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd=run.folder,
            env={**os.environ, **settings},
        )
    earlier = run.record().get("training")
    launches = [*earlier.pop("earlier", []), earlier] if earlier else []
    run.note(
        training={
            "status": "running",
            "started": now(),
            "mark": mark,
            "command": spelled(run, config_file),
            "environment": masked(settings),
            "earlier": launches,
        }
    )
    return Training(run, guardian, mark, lock, begins)


def refuse_impossible(run: Run) -> None:
    """KitError within seconds where the workers asked for can never be placed; the stock command would wait for ever.

    Nodes that an autoscaler may still bring count as there.
    """
    config = config_of(run)
    there, more = doctor.there_and_to_come(run.profile, config)
    status, found, remedy = doctor.placed(config, there, more)
    if status == "FAIL":
        raise KitError(found, "room for every worker; Ray would wait for ever", remedy)


def masked(settings: dict[str, str]) -> dict[str, str]:
    """The same settings with every value hidden whose name speaks of a secret."""
    return {key: "****" if secrets.NAME.search(key.upper()) else value for key, value in settings.items()}
