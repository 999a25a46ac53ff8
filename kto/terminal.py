"""Conventions of the commands: results on stdout, progress and errors on stderr, exit status 0, 1 or 2."""

import json
import re
import shutil
import textwrap
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated

import typer

from helpers import profiles
from helpers.errors import KitError
from helpers.runs import Run, of_folder

OPTIONS = r"`(profile|storage|run_name|start_from|checkpoint)`"
"""The notebooks' parameters that are options of the commands, as errors name them."""


class Usage(KitError):
    """The command was called wrongly: exit status 2."""


@contextmanager
def as_usage(remedy: str = ""):
    """A KitError in here becomes Usage: what was given is what is wrong. A parameter that the remedy names is an option here."""
    try:
        yield
    except KitError as error:
        fix = re.sub(OPTIONS, lambda name: f"--{name[1].replace('_', '-')}", error.remedy)
        raise Usage(error.found, error.expected, remedy or fix) from None


def a_profile(name: str) -> str:
    """`name`, if it is a profile's; Usage where it is none."""
    with as_usage():
        profiles.load(name)
    return name


def a_run(folder: str) -> Run:
    """The run of a folder; Usage where it is none."""
    with as_usage():
        return of_folder(Path(folder))


def a_local_path(path: str) -> Path:
    """Where something is to be written; Usage for an address, which would become a folder of that name here."""
    if "://" in str(path):
        raise Usage(f"{path} is an address", "a path on this machine", "write it here, then copy it there")
    return Path(path)


def a_storage(profile: str, storage: str) -> Path:
    """The folder where runs are kept; Usage where it is not there, or a profile has none of its own and none is given."""
    with as_usage():
        folder = profiles.storage_for(profiles.load(profile), storage)
    if storage and not folder.is_dir():
        raise Usage(f"there is no folder {storage}", "a storage with runs", "correct --storage")
    return folder


Profile = Annotated[
    str, typer.Option(help="Where it runs: local, anyscale, ray, or the path of a profile's YAML.", callback=a_profile)
]
Storage = Annotated[
    str,
    typer.Option(help="Where runs are kept. Default: $KTO_STORAGE, else the profile's own.",
                 callback=lambda folder: str(Path(folder).expanduser().resolve()) if folder and "://" not in folder else folder),
]
Values = Annotated[
    list[str], typer.Option("-p", "--parameter", metavar="NAME=VALUE", help="Set a notebook parameter; may be repeated.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print complete JSON instead of a table.")]
RunFolder = Annotated[Run, typer.Argument(metavar="RUN", help="A run's folder.", parser=a_run)]


def a_checkpoint(run: Run, checkpoint: str) -> tuple[Path, int | None]:
    """(folder, step) of the run's checkpoint that `checkpoint` names, after a line that says why; Usage where it names none."""
    from helpers import export

    with nullcontext() if checkpoint in ("best", "latest") else as_usage():
        folder, step, why = export.choose(run, checkpoint)
    say(f"checkpoint of step {step}: {why}" if step is not None else f"checkpoint {folder}")
    return folder, step


class Commands(typer.core.TyperGroup):
    """Ends a command with one message and an exit status where it would end with a traceback."""

    def invoke(self, ctx):
        try:
            return super().invoke(ctx)
        except KitError as error:
            say(f"error: {error}")
            raise typer.Exit(2 if isinstance(error, Usage) else 1) from None
        except KeyboardInterrupt:
            say("interrupted")
            raise typer.Exit(130) from None


def say(line: str) -> None:
    """Progress: to stderr, at once."""
    typer.echo(line, err=True)


def show(found: list[dict] | dict, as_json: bool) -> None:
    """Rows with the same keys as a table, or a dict in two columns, on stdout; or either as JSON."""
    in_words = table if isinstance(found, list) else two_columns
    typer.echo(json.dumps(found, indent=2, default=str) if as_json else in_words(found))


def two_columns(facts: dict) -> str:
    """`name  value` lines, aligned; nested dicts in one line."""
    width = max(map(len, facts))
    return "\n".join(f"{name.ljust(width)}  {cell(value)}" for name, value in facts.items())


def cell(value) -> str:
    """A value as a table shows it."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {cell(inner)}" for key, inner in value.items())
    if value is None or value != value:  # nan
        return "-"
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def table(rows: list[dict]) -> str:
    """Aligned columns. Where the terminal is too narrow texts are cut, then the last columns are left out and named below."""
    if not rows:
        return "none"
    names, room = list(rows[0]), shutil.get_terminal_size(fallback=(10_000, 24)).columns
    lines = [names, *([cell(row.get(name)) for name in names] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    if sum(widths) + 2 * len(widths) - 2 > room:
        widths = [min(width, 16) for width in widths]  # which no number needs
    while sum(widths) + 2 * len(widths) - 2 > room and len(widths) > 1:
        widths.pop()
    numeric = [any(isinstance(row.get(name), int | float) for row in rows) for name in names]
    aligned = []
    for line in lines:
        short = [text if len(text) <= width else f"{text[: width - 1]}…" for text, width in zip(line, widths, strict=False)]
        aligned.append("  ".join(text.rjust(width) if right else text.ljust(width)
                                 for text, width, right in zip(short, widths, numeric, strict=False)).rstrip())
    left_out = names[len(widths):]
    return "\n".join(aligned + (textwrap.wrap(f"({', '.join(left_out)}: with --json)", room) if left_out else []))


def records(frame) -> list[dict]:
    """The rows of a DataFrame as plain data; a missing number is None."""
    return json.loads(frame.to_json(orient="records", date_format="iso", date_unit="s", default_handler=str))
