"""The processes that a test started, however far down: told by a variable that they inherited."""

import psutil

VARIABLE = "KTO_TEST_PROCESSES"


def marked(mark: str) -> list[psutil.Process]:
    """The live processes of this user whose environment holds that mark."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(VARIABLE) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found
