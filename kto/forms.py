"""`kto export`: every requested format, with its proof or figures, as in notebook 6."""

from helpers import card, export, proof, serving
from helpers.evaluate import Scorer, earlier_adapters, heldout
from helpers.merging import merge
from helpers.quantise import SCHEMES, calibration, compare, quantise
from helpers.runs import Run

from .terminal import Usage, a_checkpoint, say

FORMS = ("adapter", "merged", *SCHEMES)


def make(run: Run, forms: list[str], checkpoint: str = "best") -> list[dict]:
    """Make `forms` (see `FORMS`) of a run's checkpoint; what this configuration does not allow is said, and the rest is made.

    Returns rows of plain data: what the quantised models cost in quality, else the merged model's proof, else the adapter's
    facts. KitError before anything is made if a form is unknown, and where a proof fails.
    """
    if unknown := [form for form in forms if form not in FORMS]:
        raise Usage(f"there is no form of export {', '.join(map(repr, unknown))}", f"some of {','.join(FORMS)}", "correct --as")
    chosen, _ = a_checkpoint(run, checkpoint)
    config, merged, shown, facts = run.config(), run.export / "merged", [], {"checkpoint": str(chosen)}
    ruled_out = {finding.kind: finding for finding in export.unservable(config)}
    for finding in ruled_out.values():
        say(str(finding))
    quantised = [form for form in forms if form in SCHEMES]
    merging = "merge" not in ruled_out and bool(quantised or "merged" in forms)
    alone = "adapter" in forms and "adapter" not in ruled_out
    if merging or (alone and earlier_adapters(config)):
        scorer = Scorer(config, chosen)
        rows = scorer.rows(heldout(run))
    if alone:
        folder = export.adapter(run, chosen)
        if earlier_adapters(config):
            proof.prove(scorer, folder, rows[:6])
        shown, facts["adapter"] = [export.adapter_facts(folder)], str(folder)
        say(f"adapter: {folder}, with {serving.write(run, folder).name}")
    if merging:
        if "merged" in forms or not (merged / "config.json").is_file():
            merge(run, chosen)
        evidence, facts["merged"] = proof.prove(scorer, merged, rows[:6]), str(merged)
        shown = evidence.to_dict("records")
        say(f"merged: {merged}; {proof.verdict(evidence)}")
        for form in quantised:
            say(f"{form}: {SCHEMES[form]} ...")
            quantise(run, form, calibration(scorer.rows(config["dataset"])))
        if quantised:
            models = {"merged": merged} | {form: run.export / form for form in quantised}
            facts["quantised"] = shown = compare(scorer, models, rows).to_dict("records")
    run.note(export={**run.record().get("export", {}), **facts})
    card.write(run)
    return shown
