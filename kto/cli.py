"""`kto COMMAND` (or `python -m kto`): everything the notebooks do, from a terminal."""

import json
import signal
import sys
from typing import Annotated, Literal

import typer

from . import cli_data, cli_runs, job
from .parameters import known, typed
from .terminal import AsJson, Commands, Profile, RunFolder, Storage, Usage, Values, a_storage, as_usage, say, show

app = typer.Typer(
    cls=Commands, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
    help="KTO at scale: align a model to thumbs-up/thumbs-down feedback, on a laptop or a Ray cluster.",
)
config_app = typer.Typer(no_args_is_help=True, help="Show the config that a run would be launched with.")
app.add_typer(config_app, name="config")
app.add_typer(cli_data.app, name="data")
app.add_typer(cli_runs.app)
app.add_typer(job.app, name="job")


@app.command()
def run(
    profile: Profile = "local",
    storage: Storage = "",
    parameter: Values = [],  # noqa: B006
    run_name: Annotated[str, typer.Option(help="The run's folder. Default: the profile and the time.")] = None,
    resume: Annotated[Literal["auto", "if-any"],
                      typer.Option(help="auto: resume --run-name where it stopped; if-any: start it if there is no such run.")] = None,
    start_from: Annotated[str, typer.Option(help="Train on top of this run's best, an adapter's folder or a hub id.")] = "",
    retries: Annotated[int, typer.Option(min=0, help="How often lost workers are replaced. Same as -p retries.")] = None,
    log: Annotated[bool, typer.Option("--log", help="Print the training log to stdout as well (for jobs).")] = False,
    as_json: AsJson = False,
) -> None:
    """Run the six notebooks in order. The executed copies are saved in <run>/notebooks/.

    Example: kto run --profile local -p max_steps=12 -p learning_rate=5e-4
    """
    from . import pipeline

    options = {"start_from": start_from or None, "retries": retries}
    values = typed([*parameter, *(f"{name}={value}" for name, value in options.items() if value is not None)])
    job.take_secrets()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # a stopped job tidies up like an interrupted one
    target = pipeline.run(profile, storage, run_name, values, resume, say, log)
    show(pipeline.summary(target), as_json)


@app.command()
def sweep(
    profile: Profile = "local",
    storage: Storage = "",
    parameter: Values = [],  # noqa: B006
    name: Annotated[str, typer.Option(help="The sweep's name; its runs are named NAME-…")] = "sweep",
    at_most: Annotated[int, typer.Option(min=1, help="How many runs at the same time.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Run the notebooks for every combination of values. Separate values with commas; finished runs are skipped.

    Example: kto sweep -p learning_rate=1e-4,1e-3 -p pref_beta=0.1,0.3
    """
    from . import sweep as sweeping

    if not parameter:
        raise Usage("there is nothing to sweep over", "parameters, their values with commas", "-p name=1,2,3")
    rows = sweeping.sweep(profile, storage, name, sweeping.grid(parameter), at_most, say)
    show(rows, as_json)
    if any(row["status"] != "done" for row in rows):
        raise typer.Exit(1)


@app.command()
def parameters(as_json: AsJson = False) -> None:
    """List what `kto run -p` accepts. Shows each parameter's default and the notebooks that read it."""
    if as_json:
        show(known(), as_json)
        return
    for name, one in known().items():
        typer.echo(f"{name}: {one['type']} = {one['default']}  # {one['help']}  ({', '.join(one['notebooks'])})")


@app.command()
def runs(profile: Profile = "local", storage: Storage = "", as_json: AsJson = False) -> None:
    """List the runs in a storage. Shows when each began, its status, dataset, held-out area and margin."""
    from .compare import listing

    show(listing(a_storage(profile, storage)), as_json)


@app.command()
def track(run: RunFolder) -> None:
    """Send to MLflow what it lacks of a run. The server is $MLFLOW_TRACKING_URI, or else the storage's own store.

    Example: kto track storage/first-run
    """
    from helpers import tracking

    sent = tracking.sync(run)
    typer.echo(f"{sent['points']} values sent; {sent['url']}")


@app.command()
def doctor(
    profile: Profile = "local",
    storage: Storage = "",
    parameter: Values = [],  # noqa: B006
    as_json: AsJson = False,
) -> None:
    """Run preflight checks before a launch. Checks this machine, every node, the hub and MLflow, in under 20 s.

    Says which training config suits the memory of the GPUs.

    Example: kto doctor --profile anyscale -p train_config=kto_lora_48gb.yaml -p ray_num_workers=8
    """
    from . import doctor as preflight

    findings = preflight.examine(profile, storage, typed(parameter))
    typer.echo(json.dumps([f._asdict() for f in findings], indent=2) if as_json else "\n".join(map(str, findings)))
    if any(finding.status == "FAIL" for finding in findings):
        raise typer.Exit(1)


Keys = Annotated[list[str], typer.Option("-p", metavar="KEY=VALUE", help="A LLaMA-Factory key; may be repeated.")]


@config_app.command("show")
def show_config(
    profile: Profile = "local",
    storage: Storage = "",
    run_name: Annotated[str, typer.Option(help="A run for which notebooks 1 and 2 were run.")] = "first-run",
    parameter: Keys = [],  # noqa: B006
) -> None:
    """Print a run's resolved YAML. With -p, as these overrides would change it; nothing is written.

    Example: kto config show --run-name first-run -p learning_rate=5e-4
    """
    import yaml

    from helpers import config, files
    from helpers import runs as run_folders

    if bare := [given for given in parameter if "=" not in given]:
        raise Usage(f"-p {bare[0]} has no value", f"-p {bare[0]}=VALUE", "correct -p")
    try:
        overrides = {key: files.parse_yaml(text) for key, text in (given.split("=", 1) for given in parameter)}
    except yaml.YAMLError as error:
        raise Usage(f"a value of -p is malformed YAML: {error}", "a number, a text, {key: value}", "correct -p") from None
    overrides |= overrides.pop("overrides", {})  # as `kto run -p overrides=…`
    with as_usage():
        target = run_folders.open_run(profile, storage, run_name)
    resolved = config.resolve(target, **overrides)
    if overrides:  # LLaMA-Factory is asked, which takes a while
        with as_usage("correct -p"):
            config.check(resolved)
    typer.echo(files.dump_yaml(resolved), nl=False)


def main() -> None:
    """The script `kto`, and `python -m kto`."""
    app(prog_name="kto")
