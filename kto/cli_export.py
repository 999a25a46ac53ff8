"""The commands that hand a model on: export, serve."""

import json
import signal
from pathlib import Path
from typing import Annotated

import typer

from helpers.errors import KitError

from .cli_print import AsJson, Storage, fail, say, table

app = typer.Typer(rich_markup_mode=None)


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(help="A run's folder.")],
    forms: Annotated[str, typer.Option("--as", help="What to make: adapter, merged, fp8, w8a8, w4a16, gguf.")] = "adapter,merged",
    checkpoint: Annotated[str, typer.Option(help="best, latest, a step's number, or a checkpoint's folder.")] = "best",
    as_json: AsJson = False,
) -> None:
    """Adapter, merged model with its proof, quantised models with what they cost in quality: into <run>/export/.

    Example: kto export storage/first-run --as adapter,merged,fp8
    """
    from helpers.export import forms as room
    from helpers.runs import of_folder

    try:
        rows = room.make(of_folder(folder), forms.split(","), checkpoint, say)
    except KitError as error:
        raise fail(error) from None
    typer.echo(json.dumps(rows, indent=2) if as_json else table(rows))


@app.command()
def serve(
    folder: Annotated[Path | None, typer.Argument(help="A run's folder. Default: the newest run with an export.")] = None,
    storage: Storage = "",
    host: Annotated[str, typer.Option(help="Where to listen; 0.0.0.0: on every interface, for whoever reaches it.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port.")] = 8000,
) -> None:
    """An OpenAI-compatible server on this machine: the run's base model and every adapter of its storage that fits it.

    Example: kto serve storage/first-run
    """
    from helpers import profiles
    from helpers.runs import of_folder
    from serving import server as room

    started = False
    try:
        chosen = folder or room.newest(profiles.storage_for(profiles.load("local"), storage))
        served = room.of_run(of_folder(chosen))
        say(f"loading {served.name} ...")
        url = room.start(served, host, port)
        started = True
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C; ray has put its own in its place
        names = [served.name, *(f"{served.name}:{name}" for name in served.adapters())]
        typer.echo(f"{url}\nmodels: {', '.join(names)}\nCtrl-C ends it")
        signal.pause()
    except KitError as error:
        raise fail(error) from None
    except KeyboardInterrupt:
        say("stopping ...")
    finally:
        if started:
            room.stop()
