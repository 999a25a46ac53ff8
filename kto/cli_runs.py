"""The commands that look at what was trained: metrics, plot, compare, evaluate, clean."""

import json
from pathlib import Path
from typing import Annotated

import typer

from helpers.errors import KitError

from .cli_print import AsJson, fail, say, table

app = typer.Typer(rich_markup_mode=None)

Folders = Annotated[list[Path], typer.Argument(help="Runs' folders.")]
Logs = Annotated[list[Path], typer.Argument(help="LLaMA-Factory logs, or runs' folders.")]


@app.command()
def metrics(
    log: Annotated[Path, typer.Argument(help="A LLaMA-Factory log, or a run's folder.")], as_json: AsJson = False
) -> None:
    """The table of a training log in KTO's units; also of a log that this project did not make.

    Example: kto metrics storage/first-run
    """
    try:
        found = metrics_of(log)
    except KitError as error:
        raise fail(error, 2) from None
    typer.echo(found.to_json(orient="records", indent=2) if as_json else found.to_string(index=False))


@app.command()
def plot(
    logs: Logs, output: Annotated[Path, typer.Option("-o", "--output", help="Where to: a .png, .svg or .pdf.")]
) -> None:
    """The curves of one training, or of several in one figure; what it shows is said in words.

    Example: kto plot storage/first-run -o curves.png
    """
    from helpers import checkpoints, metrics, plots

    try:
        tables = {name: metrics_of(log) for name, log in zip(labels(logs), logs, strict=True)}
        (name, first), *others = tables.items()
        saved = checkpoints.find(logs[0]) if logs[0].is_dir() and not others else []
        steps = {item.step for item in saved if item.step is not None}
        figure = plots.compare(tables) if others else plots.training(first, steps, name)
        typer.echo(plots.save(figure, output))
    except KitError as error:
        raise fail(error) from None
    say("\n".join(f"{name}: {metrics.summary(table)}" for name, table in tables.items()))


@app.command()
def compare(runs: Folders, as_json: AsJson = False) -> None:
    """What differs in the runs' configs and data, and where each of them ended.

    The figures are means over the last fifth of a training's windows; auc and margin held out are notebook 6's.

    Example: kto compare storage/first-run storage/second-run
    """
    import orjson

    from helpers import tracking
    from helpers.runs import differences, of_folder

    if len(runs) < 2:
        raise fail(KitError("one run is nothing to compare", "two runs' folders or more", "name another"), 2)
    try:
        opened = dict(zip(names(runs), map(of_folder, runs), strict=True))
        differ = differences({name: tracking.parameters(run) for name, run in opened.items()})
        ended = [{"run": name, **outcome(run)} for name, run in opened.items()]
    except KitError as error:
        raise fail(error) from None
    if as_json:
        typer.echo(orjson.dumps({"differences": differ, "outcomes": ended}, option=orjson.OPT_INDENT_2))
    else:
        typer.echo(f"{table(differ) if differ else 'The configs are the same.'}\n\n{table(ended)}")


@app.command()
def evaluate(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.")],
    checkpoint: Annotated[str, typer.Option(help="best, latest, a step's number, or a checkpoint's folder.")] = "best",
    as_json: AsJson = False,
) -> None:
    """Implied rewards on the held-out rows, before and after training: area under ROC and margin, with 95 % intervals.

    Example: kto evaluate storage/first-run --checkpoint latest
    """
    from helpers import evaluate as room
    from helpers import export
    from helpers.runs import of_folder

    try:
        run = of_folder(folder)
        chosen, step, why = export.choose(run, checkpoint)
        say(f"checkpoint of step {step}: {why}")
        config = export.config_of(run)
        scorer = room.Scorer(config, chosen)
        rows = scorer.rows(room.heldout(run))
        reference, policy = scorer.logps(rows, tuned=False), scorer.logps(rows)
        measured = {
            "before": room.accuracy(room.rewards(rows, reference, reference, config)),
            "after": room.accuracy(room.rewards(rows, policy, reference, config)),
        }
    except KitError as error:
        raise fail(error) from None
    if as_json:
        typer.echo(json.dumps({"checkpoint": str(chosen), "step": step, **measured}, indent=2))
    else:
        typer.echo(table([{"": when, **figures} for when, figures in measured.items()]))


@app.command()
def clean(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.")],
    keep_last: Annotated[int, typer.Option(help="Complete checkpoints to keep, besides the best.")] = 2,
    metric: Annotated[str, typer.Option(help="What the best one is best at.")] = "rewards/margins",
    lower_is_better: Annotated[bool, typer.Option("--lower-is-better", help="As for a loss.")] = False,
) -> None:
    """Remove checkpoints that are neither the last nor the best: shown first, then asked. In use or the only one: never.

    Example: kto clean storage/first-run --keep-last 1
    """
    from helpers import checkpoints
    from helpers.checkpoints import keep
    from helpers.runs import of_folder

    try:
        run = of_folder(folder)
        verdicts = keep.plan(run, checkpoints.find(run), keep_last, metric, not lower_is_better)
        freed = keep.remove(run, verdicts)
    except KitError as error:
        raise fail(error) from None
    except EOFError:  # nobody is there to answer
        freed = 0
    say(f"freed {freed / 1e6:,.1f} MB")


def metrics_of(log: Path):
    """The table (helpers.metrics) of a log or of a run's folder. KitError where there is none, or it logged nothing."""
    from helpers import metrics

    path = log / "train.log" if log.is_dir() else log
    if not path.is_file():
        raise KitError(f"there is no log {path}", "a LLaMA-Factory log or a run's folder", "correct the path")
    found = metrics.joined(path)
    if found.empty:
        raise KitError(f"{path} holds no logged window", "lines like {'loss': …, 'learning_rate': …}",
                       "read it; a training of fewer steps than logging_steps logs none")
    return found


def names(paths: list[Path]) -> list[str]:
    """What to call each: the folder's or the log's own name, the whole path where two share one."""
    whole = [path.resolve() for path in paths]
    short = [path.parent.name if path.name == "train.log" else path.name.removesuffix(".log") for path in whole]
    return short if len(set(short)) == len(short) else [str(path) for path in paths]


def labels(logs: list[Path]) -> list[str]:
    """What to call each in a picture: of runs that differ in three keys at most those and their values, else its name."""
    from helpers import tracking
    from helpers.runs import differences, of_folder

    called = names(logs)
    if not all((log / "config.yaml").is_file() for log in logs):
        return called
    differ = differences({name: tracking.parameters(of_folder(log)) for name, log in zip(called, logs, strict=True)})
    said = [", ".join(f"{row['key']} {row[name]}" for row in differ) for name in called]
    return said if len(differ) <= 3 and len(set(said)) == len(said) > 1 else called


def outcome(run) -> dict:
    """Where a run ended: status, last step, means of the last fifth of its windows, what notebook 6 found."""
    record, figures = run.record(), {}
    if run.trained:
        train = metrics_of(run.folder).query("split == 'train'")
        last = train.tail(max(len(train) // 5, 1))
        named = {"loss": "loss_mean", "margin": "rewards/margins", "KL": "kl_mean"}
        figures = {"step": int(train["step"].max()), **{name: float(last[key].mean()) for name, key in named.items()}}
    evaluation = record.get("evaluation", {})
    return {
        "status": record.get("training", {}).get("status", "not launched"),
        **figures,
        "auc held out": evaluation.get("auc"),
        "margin held out": evaluation.get("margin"),
    }
