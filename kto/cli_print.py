"""How the commands of `kto` speak: results on stdout, progress and errors on stderr."""

import sys
from typing import Annotated

import typer

from helpers.errors import KitError

Profile = Annotated[str, typer.Option(help="Where it runs: local, anyscale, ray, or the path of a profile's YAML.")]
Storage = Annotated[str, typer.Option(help="Where runs are kept. Default: $KTO_STORAGE, else the profile's own.")]
Values = Annotated[
    list[str],
    typer.Option(
        "-p",
        "--parameter",
        metavar="NAME=VALUE",
        help="A notebook's parameter; may be repeated. An unknown one is an error.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def say(line: str) -> None:
    """Progress: to stderr, at once."""
    typer.echo(line, err=True)


def through(data: bytes) -> None:
    """Bytes to stdout as they are, at once."""
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def fail(error: KitError, code: int = 1) -> typer.Exit:
    """The error's message on stderr, and the exit status to raise."""
    typer.echo(f"error: {error}", err=True)
    return typer.Exit(code)


def two_columns(facts: dict) -> str:
    """`name: value` lines, aligned; nested dicts in one line."""
    width = max(map(len, facts))

    def cell(value) -> str:
        if isinstance(value, dict):
            return ", ".join(f"{key} {inner:g}" for key, inner in value.items())
        return f"{value:.3f}" if isinstance(value, float) else "-" if value is None else str(value)

    return "\n".join(f"{name.ljust(width)}  {cell(value)}" for name, value in facts.items())


def table(rows: list[dict]) -> str:
    """Rows with the same keys as aligned columns."""
    import pandas as pd

    return pd.DataFrame(rows).to_string(index=False) if rows else "none"
