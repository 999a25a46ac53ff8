"""Train on top of another run: its adapters, the rows it held out, and how both rounds' rows fare."""

from pathlib import Path

from . import export, files, runs
from .chat_template import VOCABULARY
from .errors import KitError, closest
from .evaluate import Scorer, earlier_adapters
from .profiles import ROOT
from .runs import Run
from .scores import bootstrap, interval, rewards


def find(storage: Path, start_from: str) -> Run | Path | str:
    """What `start_from` names: a run (by its name in `storage` or its folder), an adapter's folder, or an adapter's hub id."""
    for folder in (storage / start_from, ROOT / Path(start_from).expanduser()):
        if (folder / "run.json").is_file():
            return runs.of_folder(folder)
        if (folder / export.ADAPTER_FILES[0]).is_file():
            return folder.resolve()
    names = sorted(file.parent.name for file in storage.glob("*/run.json"))
    looked = f"a run in {storage} ({', '.join(names) or 'there is none'}), an adapter's folder, or an adapter's hub id"
    if files.is_hub_id(start_from):
        code, said = files.from_hub(start_from, export.ADAPTER_FILES[0])
        if code == 200:
            return start_from
        raise KitError(f"the hub has no adapter {start_from!r} ({code or said})", looked, "correct `start_from`, or set HF_TOKEN")
    raise KitError(f"there is nothing to start from at {start_from!r}{closest(start_from, names)}", looked, "correct `start_from`")


def adapters(earlier: Run | Path | str) -> list[str]:
    """The adapters to start from, in order: of a run those that it started from itself, then its best checkpoint."""
    if not isinstance(earlier, Run):
        return [str(earlier)]
    if not earlier.config_file.exists():
        raise KitError(f"the run {earlier.name!r} has no config.yaml: it was never trained", "a run with a checkpoint",
                       "train it first, or correct `start_from`")
    config, best = earlier.config(), export.choose(earlier)[0]
    if not (best / export.ADAPTER_FILES[0]).is_file():
        raise KitError(f"{earlier.name!r} was a {config.get('finetuning_type')} tuning: it has no adapter", "a run with LoRA",
                       f"export it, and start from the merged model: model_name_or_path={earlier.export / 'merged'}")
    return [*earlier_adapters(config), str(best)]


def on_top_of(run: Run, start_from: str) -> dict:
    """LLaMA-Factory's keys for a new adapter of `run` on what `start_from` names; base and those adapters are the reference.

    KitError where that cannot be: another base model, or earlier held-out rows that 02_data did not hold out again.
    """
    if not start_from:
        return {}
    earlier = find(run.storage, start_from)
    start = {"adapter_name_or_path": ",".join(adapters(earlier)), "create_new_adapter": True}
    if isinstance(earlier, Path):
        refuse_misfit(earlier, run.record().get("model", {}).get("path"))
    if missing := heldout_before(earlier).keys() - run.record().get("earlier_heldout", {}).keys():
        raise KitError(f"what {', '.join(sorted(missing))} held out was not held out again", "rows that no round trains on",
                       f"run 02_data with start_from={start_from!r} as well")
    if isinstance(earlier, Run):  # the adapter fits no other vocabulary, and no other model
        start |= {key: value for key, value in earlier.config().items() if key in VOCABULARY}
        ours, theirs = (str(one.record().get("model", {}).get("name")) for one in (run, earlier))
        if ours != theirs:
            raise KitError(f"{earlier.name!r} was trained on {theirs}, this run's model is {ours}", "one base model for both",
                           f"run 01_setup with model_name_or_path={theirs!r}")
    return start


def refuse_misfit(adapter: Path, base: str | None) -> None:
    """KitError if the adapter in that folder is no LoRA of the base model (folder or hub id; not checked where it is out of reach)."""
    import torch
    from safetensors import safe_open
    from transformers import AutoConfig, AutoModelForCausalLM

    expected, remedy = f"a LoRA adapter trained on {base}", "correct `start_from`, or run 01_setup with the adapter's own base model"
    kind, weights = files.read_json(adapter / export.ADAPTER_FILES[0]).get("peft_type"), adapter / export.ADAPTER_FILES[1]
    if kind != "LORA" or not weights.is_file():
        what = f"no {weights.name}" if kind == "LORA" else f"an adapter of the kind {kind}"
        raise KitError(f"{adapter} holds {what}", expected, remedy)
    try:
        with files.hub_or_cache(str(base)):
            shape = AutoConfig.from_pretrained(base)
    except (OSError, ValueError):
        return
    with torch.device("meta"):  # no weights are made
        layers = dict(AutoModelForCausalLM.from_config(shape).named_modules())
    with safe_open(weights, "pt") as held:
        for name in held.keys():
            layer, _, end = name.removeprefix("base_model.model.").partition(".lora_A.")
            theirs = held.get_slice(name).get_shape()[-1]
            ours = getattr(layers[layer], "in_features", theirs) if layer in layers else "no such layer"
            if end and ours != theirs:
                raise KitError(f"the adapter {adapter.name} does not fit {base}: {layer} has {theirs} inputs in the adapter, "
                               f"{ours} in the model", expected, remedy)


def heldout_before(earlier: Run | Path | str) -> dict[str, Path]:
    """What a run and those before it held out: a run's name -> file of rows. For an adapter: of its run."""
    if isinstance(earlier, Path):
        earlier = next((runs.of_folder(folder) for folder in earlier.parents if (folder / "run.json").is_file()), None)
    if not isinstance(earlier, Run):
        return {}
    name = earlier.record().get("dataset", {}).get("heldout_name")
    return earlier_heldout(earlier) | ({earlier.name: files.data_file(earlier.datasets, name)} if name else {})


def held_again(run: Run, start_from: str) -> list[Path]:
    """The files of the rows that earlier rounds held out, noted in run.json as `earlier_heldout` to be measured again (`measure`)."""
    known = heldout_before(find(run.storage, start_from)) if start_from else {}
    if known or earlier_heldout(run):
        run.note(earlier_heldout={name: str(path) for name, path in known.items()})
    return list(known.values())


def earlier_heldout(run: Run) -> dict[str, Path]:
    """What earlier rounds held out, as `held_again` noted it: a run's name -> file of rows, at the storage's current place."""
    return {name: Path(path) for name, path in run.record().get("earlier_heldout", {}).items()}


def measure(run: Run, rows_at_most: int = 1000) -> list[dict]:
    """A second round's best checkpoint on its own held-out rows and on those of the rounds before it: plain data, a line a set.

    Rewards are against the bare base model; `change_low` and `change_high` of the area are 95 %, bootstrap over prompts. Empty for a
    run that did not start from another that held rows out.
    """
    if not earlier_heldout(run):
        return []
    config = run.config()
    scorer = Scorer(config, export.choose(run)[0])
    rows = {name: scorer.encoder.rows(path.parent, path.stem, rows_at_most)[0] for name, path in heldout_before(run).items()}
    with scorer.set_aside():
        base = scorer.load(config["model_name_or_path"])
        bare = {name: scorer.logps(some, model=base) for name, some in rows.items()}
        del base
    lines = []
    for name, some in rows.items():
        before = rewards(some, scorer.logps(some, tuned=False), bare[name], config)
        after = rewards(some, scorer.logps(some), bare[name], config)
        point, drawn = bootstrap([before["reward"], after["reward"]], after["label"], after["prompt"])
        low, high = interval(drawn[:, 1, 0] - drawn[:, 0, 0])
        (auc_before, margin_before), (auc, margin) = point.tolist()
        lines.append({"rows of": name, "rows": len(some), "auc_before": auc_before, "auc": auc, "margin_before": margin_before,
                      "margin": margin, "change_low": low, "change_high": high})
    return lines


def words(measured: list[dict]) -> str:
    """What `measure` found, in sentences, a line a set of rows."""
    lines = []
    for row in measured:
        verdict = "forgotten in part" if row["change_high"] < 0 else "better" if row["change_low"] > 0 else "not clearly changed"
        lines.append("held-out rows of {rows of} ({rows}): area {auc_before:.3f} before this round, {auc:.3f} after it "
                     "(change {change_low:+.3f} to {change_high:+.3f}): ".format(**row) + verdict)
    return "\n".join(lines)
