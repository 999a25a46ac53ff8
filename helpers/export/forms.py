"""Every form of export that is asked for, each with its proof or its figures: what `kto export` does."""

from ..errors import KitError
from ..evaluate import Scorer, heldout
from ..runs import Run
from . import adapter, adapter_facts, card, choose, config_of, merge, proof, quantise, serving

FORMS = ("adapter", "merged", *quantise.SCHEMES)


def make(run: Run, forms: list[str], checkpoint: str = "best", say=print) -> list[dict]:
    """Make `forms` (see `FORMS`) of a run's checkpoint. Returns rows of plain data: what the quantised models cost in quality
    (`quantise.compare`), else the merged model's proof, else the adapter's facts.

    A quantised form needs a merged model, which is made first if there is none. KitError before anything is made if a form
    is unknown, and where a proof fails.
    """
    if unknown := [form for form in forms if form not in FORMS]:
        raise KitError(f"there is no form of export {', '.join(map(repr, unknown))}", f"some of {','.join(FORMS)}",
                       "correct --as")
    chosen, _, why = choose(run, checkpoint)
    say(f"{chosen.name}: {why}")
    config, merged, shown, facts = config_of(run), run.export / "merged", [], {"checkpoint": str(chosen)}
    if "adapter" in forms:
        folder = adapter(run, chosen)
        shown, facts["adapter"] = [adapter_facts(folder)], str(folder)
        say(f"adapter: {folder}, with {serving.write(run, folder).name}")
    quantised = [form for form in forms if form in quantise.SCHEMES]
    if "merged" in forms or quantised:
        scorer = Scorer(config, chosen)
        rows = scorer.rows(heldout(run))
        if "merged" in forms or not (merged / "config.json").is_file():
            merge(run, chosen)
        evidence, facts["merged"] = proof.prove(scorer, merged, rows[:6]), str(merged)
        shown = evidence.to_dict("records")
        say(f"merged: {merged}; {proof.verdict(evidence)}")
    if quantised:
        some = quantise.calibration(scorer.rows(config["dataset"]))
        for form in quantised:
            say(f"{form}: {quantise.SCHEMES[form]} ...")
            quantise.quantise(run, form, some)
        say("held-out figures before and after ...")
        models = {"merged": merged} | {form: run.export / form for form in quantised}
        facts["quantised"] = shown = quantise.compare(scorer, models, rows).to_dict("records")
    run.note(export={**run.record().get("export", {}), **facts})
    card.write(run)
    return shown
