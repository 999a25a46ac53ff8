"""How commands speak: results on stdout, progress and errors on stderr; status 0 done, 1 not well, 2 wrong usage."""

import json
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from helpers import profiles
from helpers.errors import KitError
from helpers.runs import Run, of_folder

Profile = Annotated[
    str,
    typer.Option(help="Where it runs: local, anyscale, ray, or the path of a profile's YAML.", callback=lambda name: a_profile(name)),
]
Storage = Annotated[
    str,
    typer.Option(help="Where runs are kept. Default: $KTO_STORAGE, else the profile's own.",
                 callback=lambda folder: str(Path(folder).expanduser().resolve()) if folder else ""),
]
Values = Annotated[
    list[str],
    typer.Option("-p", "--parameter", metavar="NAME=VALUE", help="A notebook's parameter; may be repeated."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, with everything, instead of a table.")]


class Usage(KitError):
    """The command was called wrongly: exit status 2."""


@contextmanager
def as_usage(remedy: str = ""):
    """A KitError in here becomes Usage: what was given is what is wrong."""
    try:
        yield
    except KitError as error:
        raise Usage(error.found, error.expected, remedy or error.remedy) from None


def a_profile(name: str) -> str:
    """`name`, if it is a profile's; Usage where it is none."""
    with as_usage():
        profiles.load(name)
    return name


def a_run(folder: str) -> Run:
    """The run of a folder; Usage where it is none."""
    if not (Path(folder) / "run.json").is_file():
        raise Usage(f"{folder} is no run's folder: no run.json there", "a run's folder in a storage (`kto runs` lists them)",
                    "correct the path")
    return of_folder(Path(folder))


RunFolder = Annotated[Run, typer.Argument(metavar="RUN", help="A run's folder.", parser=a_run)]


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


def show(rows: list[dict], as_json: bool) -> None:
    """Rows with the same keys on stdout, as a table or as JSON."""
    typer.echo(json.dumps(rows, indent=2, default=str) if as_json else table(rows))


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
    """Aligned columns, at most as wide as the terminal: texts are cut, then the last columns left out and named below."""
    if not rows:
        return "none"
    names, room = list(rows[0]), shutil.get_terminal_size(fallback=(10_000, 24)).columns
    texts = {name: [name, *(cell(row.get(name)) for row in rows)] for name in names}
    widths = {name: max(map(len, texts[name])) for name in names}
    numeric = {name for name in names if any(isinstance(row.get(name), int | float) for row in rows)}
    while sum(widths.values()) + 2 * len(widths) - 2 > room and len(widths) > 1:
        longest = max(widths, key=lambda name: 0 if name in numeric else widths[name])
        if longest not in numeric and widths[longest] > max(16, len(longest)):
            widths[longest] -= 1  # texts become shorter
        else:
            widths.popitem()
    lines = []
    for number in range(len(rows) + 1):
        line = []
        for name, width in widths.items():
            text = texts[name][number]
            text = text if len(text) <= width else text[: width - 1] + "…"
            line.append(text.rjust(width) if name in numeric else text.ljust(width))
        lines.append("  ".join(line).rstrip())
    left_out = names[len(widths):]
    return "\n".join(lines + ([f"({', '.join(left_out)}: with --json)"] if left_out else []))


def records(frame) -> list[dict]:
    """The rows of a DataFrame as plain data; a missing number is None."""
    return json.loads(frame.to_json(orient="records", date_format="iso", date_unit="s", default_handler=str))
