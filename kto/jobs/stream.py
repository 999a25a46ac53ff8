"""A job's log as it is written, over a connection that may break: made anew, and gone on with where it stopped.

The log holds what the pipeline says and, with `run --log`, the training's own log: the first is shown as it comes, the
second goes through helpers.logs into the live view.
"""

import asyncio
import re
import time

from helpers.errors import KitError
from helpers.logs import Parser

SAID = re.compile(r"\[\d/\d\] |error: |the training |no complete checkpoint|trying again|  (?:why|expected|to do|log): |  - ")
"""How a line begins that the pipeline says."""
SILENCE, PATIENCE = 60.0, 300.0
"""Seconds without a word before the connection is thought dead; seconds without an answer before we give up."""


def follow(client, job: str, view=None, say=None, patience: float = PATIENCE):
    """Follow the job to its end: events to `view` (helpers.plots.live), the pipeline's lines to `say`. Returns Ray's job info.

    A broken connection is made anew for `patience` seconds, and what was seen is not shown twice. KitError after that:
    the job runs on all the same.
    """
    parser, rest = Parser(), ""

    def show(text: str) -> None:
        nonlocal rest
        if view:
            view.feed(parser.feed(text))
        *lines, rest = (rest + text).split("\n")
        for line in lines:
            if say and SAID.match(line):
                say(line)

    info = asyncio.run(_follow(client, job, show, say or (lambda line: None), patience))
    if view:
        view.feed(parser.close())
    return info


async def _follow(client, job: str, show, say, patience: float):
    seen, answered, lost = 0, time.monotonic(), False
    while True:
        place = 0
        try:
            async for text in _pieces(client, job):  # from the beginning, whenever it is asked for
                place, answered, lost = place + len(text), time.monotonic(), False
                if place > seen:
                    show(text[seen - place :])
                    seen = place
            info = await asyncio.to_thread(client.get_job_info, job)
            if info.status.is_terminal():  # what was written since the connection broke, if it did
                show((await asyncio.to_thread(client.get_job_logs, job))[seen:])
                return info
            answered, lost = time.monotonic(), False
        except (OSError, RuntimeError, _broken()) as error:  # a time-out is an OSError
            if time.monotonic() - answered > patience:
                raise KitError(f"the cluster has not answered for {patience:.0f} s: {error!r}", "a connection to its dashboard",
                               f"the job runs on by itself: `job logs {job}` takes it up again") from None
            if not lost:
                say("connection lost; trying again")
            lost = True
        await asyncio.sleep(1.0)


async def _pieces(client, job: str):
    """What Ray sends of the log; silence for longer than SILENCE ends it, in case nobody is there any more."""
    tail = client.tail_job_logs(job)
    try:
        while True:
            yield await asyncio.wait_for(anext(tail), SILENCE)
    except StopAsyncIteration:
        return
    finally:
        await tail.aclose()


def _broken():
    from aiohttp import ClientError

    return ClientError
