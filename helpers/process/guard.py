"""The training's guardian: runs one command and sees to it that no process of it outlives the notebook that asked for it.

`python -m helpers.process.guard MARK -- COMMAND...` starts COMMAND in a session of its own and waits. When its standard input closes
(the notebook stopped the run, was interrupted, or its kernel died) or it gets SIGTERM, it ends every process that carries
KTO_TRAINING=MARK in its environment: driver, workers, and the Ray instance that the driver started; nothing else.
"""

import os
import select
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress

import psutil

from helpers import secrets

MARK = "KTO_TRAINING"
STOPPED = 143
"""Exit status of a training that was stopped rather than ended."""


def marked(mark: str) -> list[psutil.Process]:
    """The live processes of this user whose environment has KTO_TRAINING=mark, the guard itself left out."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get(MARK) == mark:
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def end_all(mark: str, driver: subprocess.Popen | None = None, grace: float = 6.0) -> int:
    """SIGTERM to the driver, then after `grace` seconds SIGKILL to whatever is marked, until nothing is. Returns how many.

    The driver first: Ray's own exit handlers take its raylet and workers down in order, which also flushes the log.
    """
    if driver is not None and driver.poll() is None:
        driver.terminate()
        try:
            driver.wait(grace)
        except subprocess.TimeoutExpired:
            pass
    killed = 0
    for _ in range(20):
        left = [p for p in marked(mark) if p.status() != psutil.STATUS_ZOMBIE]
        if not left:
            break
        for process in left:
            try:
                process.kill()
                killed += 1
            except psutil.Error:
                pass
        psutil.wait_procs(left, timeout=0.5)
    return killed


def copy_masked(pipe) -> None:
    """What the training prints, to where it would have gone: byte for byte, but for the secrets in this environment.

    What a full disk does not take is lost; nobody must wait for it.
    """
    masker = secrets.Masker()
    while chunk := os.read(pipe.fileno(), 1 << 16):
        with suppress(OSError):
            os.write(1, masker.feed(chunk))
    with suppress(OSError):
        os.write(1, masker.rest)


def main(argv: list[str]) -> int:
    mark, command = argv[0], argv[2:]
    asked = {"stop": False}
    signal.signal(signal.SIGTERM, lambda *_: asked.update(stop=True))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    driver = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True, env={**os.environ, MARK: mark},
                              **({"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT} if secrets.values() else {}))
    copier = threading.Thread(target=copy_masked, args=(driver.stdout,), daemon=True) if driver.stdout else None
    if copier:
        copier.start()
    while driver.poll() is None and not asked["stop"]:
        ready, _, _ = select.select([sys.stdin], [], [], 0.25)
        if ready and not os.read(sys.stdin.fileno(), 1):
            asked["stop"] = True
    if asked["stop"] and driver.poll() is None:
        end_all(mark, driver)
        if copier:
            copier.join(2)
        return STOPPED
    code = driver.wait()
    time.sleep(0.2)  # Ray's processes leave by themselves right after their driver
    end_all(mark)
    if copier:
        copier.join(5)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
