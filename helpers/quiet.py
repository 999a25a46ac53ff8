"""Suppress what third-party libraries print while they are imported and loaded."""

import contextlib
import os

SINK = open(os.devnull, "w")  # noqa: SIM115, never closed: a log handler made during the silence keeps it as its stream


@contextlib.contextmanager
def silence():
    """Discard stdout and stderr, those of child processes too; exceptions still propagate. For imports that print.

    deepspeed tries its compilers when transformers imports it, ray and tqdm miss ipywidgets in a kernel.
    """
    kept = os.dup(1), os.dup(2)
    try:
        with contextlib.redirect_stdout(SINK), contextlib.redirect_stderr(SINK):
            for number in (1, 2):
                os.dup2(SINK.fileno(), number)
            yield
    finally:
        for number, copy in enumerate(kept, 1):
            os.dup2(copy, number)
            os.close(copy)


@contextlib.contextmanager
def quietly():
    """Suppress LLaMA-Factory's notices in a `with` block, and transformers' notices and progress bars from here on."""
    with silence():
        import transformers.modeling_utils  # noqa: F401  (what imports deepspeed)
        from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    given = "LLAMAFACTORY_VERBOSITY" in os.environ
    os.environ.setdefault("LLAMAFACTORY_VERBOSITY", "WARN")
    try:
        yield
    finally:
        if not given:  # a training that is started later shows its notices
            os.environ.pop("LLAMAFACTORY_VERBOSITY", None)
