"""A real run, trained as on a cluster, copied away and the original deleted: evaluated, exported, served and resumed where it lies."""

import shutil

import pytest
import tiny

from helpers import checkpoints, choose, config, evaluate, export, files, launch, merging, metrics, proof, resume, runs
from helpers.errors import KitError


def prepared(storage):
    """A run of the tiny model as notebooks 1 to 3 leave it."""
    run = runs.start("local", str(storage), "first-run")
    base, name = tiny.model(run.models / "base"), tiny.dataset(run.datasets, tiny.REPLIES * 3)
    run.note(model={"name": "org/tiny", "path": str(base), "template": "smollm2"}, accelerated=False,
             dataset={"name": name, "heldout_name": name, "rows": 15})
    resolved = config.resolve(run, max_steps=4, save_steps=2, eval_steps=2, logging_steps=1, per_device_train_batch_size=2,
                              learning_rate=1e-2, cutoff_len=200)
    files.write(run.config_file, files.dump_yaml(resolved))
    return run


@pytest.mark.slow
def test_a_run_copied_from_a_cluster_is_evaluated_exported_served_and_resumed_where_it_lies(tmp_path):
    from serving import server

    run = prepared(tmp_path / "cluster")
    launch.start(run).wait()
    table = metrics.table(run.log_file)
    held = table[table["split"] == "eval"]
    assert table.attrs["rows of"] == "all workers" and held["step"].tolist() == [2, 4] and held["rewards/auc"].between(0, 1).all()
    state = next(item.path for item in checkpoints.find(run) if item.step == 4) / "trainer_state.json"
    assert metrics.reconcile(table, state).empty

    shutil.copytree(run.storage, tmp_path / "laptop", symlinks=True)
    shutil.rmtree(run.storage)
    (tmp_path / "laptop" / "first-run").rename(tmp_path / "laptop" / "from-cluster")
    run = runs.locate("local", str(tmp_path / "laptop"), "from-cluster")
    assert run.record()["model"]["path"] == str(run.models / "base")
    found = checkpoints.find(run)
    assert {item.step for item in found if item.complete} == {2, 4}
    scores = evaluate.score_checkpoints(run, found)
    best, why = choose.best(found, "held-out", scores=scores)
    run.note(checkpoint={"best": choose.below(best.path, run.folder), "why": why})
    chosen, step, _ = export.choose(run)
    assert chosen.is_relative_to(run.folder) and step == best.step

    scorer = evaluate.Scorer(run.config(), chosen)
    rows = scorer.rows(evaluate.heldout(run))
    adapter, merged = export.adapter(run, chosen), merging.merge(run, chosen)
    assert proof.prove(scorer, merged, rows[:2])["largest difference"][0] < 1e-3
    served = server.of_run(run)
    assert served.base == str(run.models / "base") and adapter.is_relative_to(run.folder)

    start, _ = choose.by_step(found, 2)
    resume.write(run, start)
    launch.start(run).wait()
    assert max(item.step for item in checkpoints.find(run) if item.complete and "output-2" in str(item.path)) == 4
    assert str(tmp_path / "cluster") not in (run.folder / "resumed-1.yaml").read_text()
    assert not (tmp_path / "cluster").exists()


def test_a_run_moved_before_its_launch_is_launched_where_it_lies(tmp_path):
    run = prepared(tmp_path / "cluster")
    (tmp_path / "cluster").rename(tmp_path / "elsewhere")
    run = runs.locate("local", str(tmp_path / "elsewhere"), "first-run")
    launch.settle(run)
    for file in (run.config_file, run.record_file):
        assert str(tmp_path / "cluster") not in file.read_text() and str(tmp_path / "elsewhere") in file.read_text()
    assert launch.config_of(run)["output_dir"] == str(run.output_dir)
    before = run.config_file.read_text()
    launch.settle(run)
    assert run.config_file.read_text() == before


def test_paths_below_the_new_place_and_several_adapters_in_one_text_are_told_apart(tmp_path):
    run = runs.Run(None, tmp_path / "a" / "b", "first-run")
    files.write(run.config_file, f"output_dir: {tmp_path}/a/first-run/output\n")
    given = {"adapters": f"{tmp_path}/a/one/output,org/two,{tmp_path}/a/three", "written since": f"{run.storage}/models/base", "words": "a, b"}
    assert run.relocated(given) == given | {"adapters": f"{run.storage}/one/output,org/two,{run.storage}/three"}
    run.config_file.write_text("a: [")
    files.write(run.record_file, "{}")
    assert run.record() == {}
    with pytest.raises(KitError):
        run.config()
