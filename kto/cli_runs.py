"""Commands on one run: metrics, explain, plot, compare, checkpoints, evaluate, clean, export, serve."""

import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from helpers.errors import KitError
from helpers.runs import Run, of_folder

from .terminal import (
    AsJson,
    RunFolder,
    Storage,
    Usage,
    a_checkpoint,
    a_local_path,
    a_run,
    a_storage,
    as_usage,
    records,
    say,
    show,
    table,
)

app = typer.Typer(rich_markup_mode=None)

Log = Annotated[Path, typer.Argument(help="A LLaMA-Factory log, or a run's folder.")]
Forms = Annotated[str, typer.Option("--as", help="What to export, separated by commas: adapter, merged, fp8, w8a8, w4a16, gguf.")]
Chosen = Annotated[str, typer.Option(help="best, latest, a step's number, or a checkpoint's folder.")]


@app.command()
def metrics(
    log: Log,
    logging_steps: Annotated[int, typer.Option(min=1, help="Steps between two log lines, if the log doesn't say.")] = None,
    as_json: AsJson = False,
) -> None:
    """Print a training log as a table in KTO's units. Any LLaMA-Factory log will do.

    Example: kto metrics storage/first-run
    """
    from . import compare as side_by_side

    with as_usage():
        table = side_by_side.metrics_of(log, logging_steps)
    show(records(table), as_json)
    for note in (f"rewards and logps are means over the rows of {table.attrs['rows of']}", *table.attrs["notes"]):
        say(f"note: {note}")


@app.command()
def explain(log: Log) -> None:
    """Explain why a training run failed. Any LLaMA-Factory or Ray log will do; for a run that did not fail it says how it ended.

    Example: kto explain storage/first-run
    """
    from helpers.explain import explain as explanation

    from .compare import log_of

    typer.echo(explanation(log_of(log)))


@app.command()
def plot(
    logs: Annotated[list[Path], typer.Argument(help="LLaMA-Factory logs, or runs' folders.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="PATH", parser=a_local_path,
                                         help="The file to write: .png, .svg or .pdf.")],
) -> None:
    """Plot the curves of one or several training runs. Draws them in one figure and prints a summary in words.

    Example: kto plot storage/first-run -o curves.png
    """
    from helpers import checkpoints as saves
    from helpers import plots
    from helpers.metrics import summary

    from .compare import labels, metrics_of

    if output.suffix not in (".png", ".svg", ".pdf"):
        raise Usage(f"a figure cannot be written as {str(output)!r}", "a name ending in .png, .svg or .pdf", "correct -o")
    tables = {}
    for name, log in zip(labels(logs), logs, strict=True):
        try:
            tables[name] = metrics_of(log)
        except KitError as error:
            if len(logs) == 1 or not (log / "run.json").is_file():
                raise
            say(f"left out: {error.found}")  # of a sweep's runs one may have failed before its first window
    if not tables:
        raise Usage("none of the runs has a logged window", "a run with one", "name another")
    if len(tables) > 1:
        figure = plots.compare(tables)
    else:
        saved = saves.find(logs[0]) if logs[0].is_dir() else []
        name, table = next(iter(tables.items()))
        figure = plots.training(table, {item.step for item in saved if item.step is not None}, name)
    typer.echo(plots.save(figure, output))
    say("\n".join(f"{name}: {summary(found)}" for name, found in tables.items()))


@app.command()
def compare(
    runs: Annotated[list[Run], typer.Argument(metavar="RUN...", help="Runs' folders.", parser=a_run)], as_json: AsJson = False
) -> None:
    """Show how runs differ and where each ended. Compares configs, data and results.

    Loss, rewards, margin and KL are means over the last fifth of the log lines; held-out figures come from notebook 6.

    Example: kto compare storage/first-run storage/second-run
    """
    from . import compare as side_by_side

    opened = dict(zip(side_by_side.names([run.folder for run in runs]), runs, strict=True))
    if len(opened) < 2:
        raise Usage("one run is nothing to compare", "two runs' folders or more", "name another")
    differ = side_by_side.differences(opened)
    ended = [{"run": name, **side_by_side.outcome(run)} for name, run in opened.items()]
    if as_json:
        show({"differences": differ, "outcomes": ended}, as_json)
    else:
        typer.echo(f"{table(differ) if differ else 'The configs are the same.'}\n\n{table(ended)}")


@app.command()
def checkpoints(
    where: Annotated[str, typer.Argument(help="A run's folder, any folder with checkpoints, or an s3:// or gs:// address.")],
    as_json: AsJson = False,
) -> None:
    """List checkpoints and whether each is complete. Shows step, size, loss, margin and KL.

    Example: kto checkpoints storage/first-run
    """
    from helpers import checkpoints as saves
    from helpers import choose

    if not where:
        raise Usage("the folder's name is empty", "a run's folder, a trial or a checkpoint", "correct the path")
    with as_usage():
        found = choose.table(saves.find(where))
    if found.empty:
        say(f"there is no checkpoint in {where}: none was saved yet (save_steps), or they lie elsewhere")
    if len(found) or as_json:
        first = ["step", "complete"]  # a narrow terminal loses the last columns
        show(records(found[[*first, *found.columns.drop(first)]]), as_json)
    if not found["complete"].any():
        raise typer.Exit(1)


@app.command()
def evaluate(run: RunFolder, checkpoint: Chosen = "best", as_json: AsJson = False) -> None:
    """Measure held-out rewards before and after training. Shows area under ROC and margin, with 95 % intervals.

    Example: kto evaluate storage/first-run --checkpoint latest
    """
    from helpers import evaluate as heldout
    from helpers import scores

    chosen, step = a_checkpoint(run, checkpoint)
    config = run.config()
    scorer = heldout.Scorer(config, chosen)
    rows = scorer.rows(heldout.heldout(run))
    reference, policy = scores.logps(run, scorer, rows, tuned=False), scores.logps(run, scorer, rows)
    measured = {"before": heldout.accuracy(heldout.rewards(rows, reference, reference, config)),
                "after": heldout.accuracy(heldout.rewards(rows, policy, reference, config))}
    if as_json:
        show({"checkpoint": str(chosen), "step": step, **measured}, as_json)
    else:
        show([{"": when, **figures} for when, figures in measured.items()], as_json)


@app.command()
def clean(
    run: RunFolder,
    keep_last: Annotated[int, typer.Option(min=1, help="Complete checkpoints to keep, besides the best.")] = 2,
    metric: Annotated[str, typer.Option(help="The logged value that decides which checkpoint is best.")] = "rewards/margins",
    lower_is_better: Annotated[bool, typer.Option("--lower-is-better", help="The lowest --metric is best.")] = False,
) -> None:
    """Remove checkpoints that are no longer needed. Keeps the last, the best and those in use. Shows the plan and asks first.

    Example: kto clean storage/first-run --keep-last 1
    """
    from helpers import keep

    verdicts = keep.plan(run, keep_last, metric, not lower_is_better)
    typer.echo(keep.shown(run, verdicts))
    going = [verdict.checkpoint for verdict in verdicts if not verdict.keep]
    if going:
        typer.echo(f"remove {len(going)} checkpoints? [yes/no] ", nl=False)
    freed = keep.remove(run, going) if going and sys.stdin.readline().strip() == "yes" else 0
    say(f"freed {freed / 1e6:,.1f} MB")


@app.command()
def export(
    run: RunFolder,
    forms: Forms = "adapter,merged",
    checkpoint: Chosen = "best",
    as_json: AsJson = False,
) -> None:
    """Export the adapter and the merged model. And quantised models, with their loss of quality: see --as. Written to <run>/export/.

    Example: kto export storage/first-run --as adapter,merged,fp8
    """
    from .forms import make

    show(make(run, forms.split(","), checkpoint), as_json)


@app.command()
def serve(
    run: Annotated[Run, typer.Argument(metavar="RUN", help="A run's folder. Default: the newest export.", parser=a_run)] = None,
    storage: Storage = "",
    host: Annotated[str, typer.Option(help="The address to listen on; 0.0.0.0 is every interface.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="The port to listen on.")] = 8000,
) -> None:
    """Serve a run behind an OpenAI-compatible API. Serves the base model, and every adapter in the storage that fits it.

    Example: kto serve storage/first-run
    """
    from serving import server

    run = run or of_folder(server.newest(a_storage("local", storage)))
    served, started = server.of_run(run), False
    try:
        say(f"loading {served.name} ...")
        url = server.start(served, host, port)
        started = True
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C; ray has put its own in its place
        typer.echo(f"{url}\nmodels: {', '.join(served.models())}\nCtrl-C ends it")
        signal.pause()
    except KeyboardInterrupt:
        say("stopping ...")
    finally:
        if started:
            server.stop()
