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

import yaml

from . import guard
from .errors import KitError
from .logs import Event, Parser
from .runs import Run, now, refuse_if_trained

SECRET = ("TOKEN", "KEY", "SECRET", "PASSWORD", "CREDENTIAL")


def command(run: Run, gpu: bool | None = None) -> list[str]:
    """The command that trains: the stock one where a worker gets a GPU, the CPU replacement (helpers.cpu) otherwise."""
    gpu = asks_for_gpu(run) if gpu is None else gpu
    entry = [str(Path(sys.executable).with_name("llamafactory-cli"))] if gpu else [sys.executable, "-m", "helpers.cpu"]
    return [*entry, "train", str(run.config_file)]


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
        if Path(config_of(run)["model_name_or_path"]).is_dir():
            settings["HF_HUB_OFFLINE"] = "1"  # a local model: nothing to ask the hub for
    return settings


def config_of(run: Run) -> dict:
    """config.yaml as it lies in the run's folder."""
    return yaml.safe_load(run.config_file.read_text())


def asks_for_gpu(run: Run) -> bool:
    """Whether the run's config asks for a GPU per worker."""
    return bool((config_of(run).get("resources_per_worker") or {}).get("GPU", 0))


def spelled(run: Run) -> str:
    """The command line with its environment, as one would type it in the project's folder, secrets left out."""
    words = [Path(word).name if i == 0 else word for i, word in enumerate(command(run))]
    words[-1] = run.show(words[-1])
    return " ".join([f"{key}={value}" for key, value in environment(run).items()] + words)


class Training:
    """A launched training. `events()` follows it; `wait()` sees it to its end; `stop()` ends every process of it."""

    def __init__(self, run: Run, guardian: subprocess.Popen, mark: str):
        self.run, self.guardian, self.mark = run, guardian, mark
        self.parser = Parser()
        self.failures: list[Event] = []
        self._stopped = False

    def events(self, every: float = 0.3) -> Iterator[list[Event]]:
        """The log's events as they come: a list (perhaps empty) every `every` seconds, until the training ended.

        An interrupted cell (KeyboardInterrupt) stops the training, then goes on its way.
        """
        try:
            with open(self.run.log_file, "rb") as log:
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
            raise KitError(f"the training ended with status {code}: {self._reason()}",
                           "exit status 0", f"the whole log is in {self.run.log_file}")
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
        self.failures += [event for event in events if event.kind == "failure"]
        return events

    def _reason(self) -> str:
        if self.failures:
            return self.failures[-1].data["text"]
        tail = self.run.log_file.read_bytes()[-4000:].decode(errors="replace").strip().splitlines()
        return tail[-1] if tail else "nothing was printed"

    def _note_end(self) -> None:
        code = self.guardian.poll()
        status = "stopped" if self._stopped or code == guard.STOPPED else "finished" if code == 0 else "failed"
        self.run.note(training={**self.run.record().get("training", {}), "status": status, "exit_status": code,
                                "ended": now()})


def start(run: Run) -> Training:
    """Launch the training of config.yaml. KitError if this run name was launched before, or at this very moment."""
    refuse_if_trained(run)
    arguments, settings = command(run), environment(run)
    mark = f"{run.name}-{uuid.uuid4().hex[:12]}"
    try:
        log = open(run.log_file, "xb")  # exclusive: of two launches with one name, one gets it
    except FileExistsError:
        refuse_if_trained(run)
        raise
    with log:
        guardian = subprocess.Popen(
            [sys.executable, "-m", "helpers.guard", mark, "--", *arguments],
            stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            cwd=run.folder, env={**os.environ, **settings},
        )
    run.note(training={"status": "running", "started": now(), "mark": mark, "command": spelled(run),
                       "environment": masked(settings)})
    return Training(run, guardian, mark)


def masked(settings: dict[str, str]) -> dict[str, str]:
    """The same settings with every value hidden whose name speaks of a secret."""
    return {key: "****" if any(word in key.upper() for word in SECRET) else value for key, value in settings.items()}
