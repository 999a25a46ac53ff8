"""Suppress what third-party libraries print while they are imported and loaded."""

import contextlib
import io
import os
from functools import cache


@contextlib.contextmanager
def silence():
    """Discard stdout and stderr, those of child processes too; exceptions still propagate. For imports that print.

    deepspeed tries its compilers when transformers imports it, ray and tqdm miss ipywidgets in a kernel.
    """
    sink = _sink()
    kept = os.dup(1), os.dup(2)
    try:
        with contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
            for number in (1, 2):
                os.dup2(sink.fileno(), number)
            yield
    finally:
        for number, copy in zip((1, 2), kept, strict=True):
            os.dup2(copy, number)
            os.close(copy)


@contextlib.contextmanager
def quietly():
    """Suppress LLaMA-Factory's and transformers' notices and progress bars; errors are still shown."""
    with silence():
        import transformers.modeling_utils  # noqa: F401  (what imports deepspeed)
        from transformers.utils import logging

    before = os.environ.get("LLAMAFACTORY_VERBOSITY")
    os.environ["LLAMAFACTORY_VERBOSITY"] = before or "WARN"
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
        if before is None:
            os.environ.pop("LLAMAFACTORY_VERBOSITY", None)


@cache
def _sink() -> io.TextIOWrapper:
    """Never closed: a log handler made during the silence keeps it as its stream."""
    return open(os.devnull, "w")
