"""MLflow, for real: the embedded store, and a server that is started, stopped and started again."""

import shutil
import time

import pandas as pd
import pytest
import yaml
from mlflow_server import Server, asking_for_a_password, what_mlflow_has

from helpers import metrics, tracking
from helpers.errors import KitError
from helpers.profiles import ROOT

pytestmark = pytest.mark.slow
TABLE = pd.DataFrame(
    {
        "step": [2, 4, 4],
        "epoch": [0.1, 0.2, 0.2],
        "split": ["train", "train", "eval"],
        "loss": [0.5, 0.4, 0.45],
        "rewards/chosen": [float("nan"), 0.7, 0.2],
        "kl": [0.0, 2.5, 1.0],
        "kl_mean": [0.0, 1.25, 1.0],
    }
)


@pytest.fixture
def trained(run, monkeypatch):
    """A run's folder as a training leaves it."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run.config_file.write_text(
        yaml.safe_dump(
            {"learning_rate": 1e-3, "ray_init_kwargs": {"runtime_env": {"env_vars": {"HF_TOKEN": "hf_canary"}}}}
        )
    )
    run.note(dataset={"sha256": "abc", "rows": 3}, training={"status": "finished"})
    metrics.write_jsonl(TABLE, run.metrics_file)
    run.figures.mkdir()
    (run.figures / "training.png").write_bytes(b"not really a picture")
    return run


@pytest.fixture
def server(tmp_path):
    made = Server(tmp_path)
    yield made
    made.stop()


EXPECTED = {
    ("loss", 2): 0.5,
    ("loss", 4): 0.4,
    ("rewards/chosen", 4): 0.7,
    ("kl", 2): 0.0,
    ("kl", 4): 2.5,
    ("kl_mean", 2): 0.0,
    ("kl_mean", 4): 1.25,
    ("eval/loss", 4): 0.45,
    ("eval/rewards/chosen", 4): 0.2,
    ("eval/kl", 4): 1.0,
    ("eval/kl_mean", 4): 1.0,
}


def test_the_embedded_store_holds_the_tables_values_and_a_second_sync_sends_nothing(trained, capsys):
    told = tracking.sync(trained, TABLE)
    assert told["points"] == len(EXPECTED) and what_mlflow_has(trained, told["run_id"]) == EXPECTED
    again = tracking.sync(trained, TABLE)
    assert again["run_id"] == told["run_id"] and again["points"] == 0 and capsys.readouterr().out == ""
    assert (trained.storage / "mlflow.db").exists()


def test_many_syncs_ask_for_each_metrics_history_once(trained, monkeypatch):
    import mlflow

    asked, stock = [], mlflow.MlflowClient.get_metric_history
    monkeypatch.setattr(mlflow.MlflowClient, "get_metric_history", lambda self, run, name: asked.append(name) or stock(self, run, name))
    there = {}
    for rows in range(1, len(TABLE) + 1):
        told = tracking.sync(trained, TABLE.iloc[:rows], there)
    assert len(asked) == len(set(asked)) == len(there) > 1
    assert what_mlflow_has(trained, told["run_id"]) == EXPECTED


def test_a_run_is_sent_from_its_log(trained):
    shutil.copy(ROOT / "tests/fixtures/evaluated-two-workers.log", trained.log_file)
    trained.note(training={"status": "failed"})
    told = tracking.sync(trained)
    has, table = what_mlflow_has(trained, told["run_id"]), metrics.table(trained.log_file)
    for row in table.to_dict("records"):
        prefix = "eval/" if row["split"] == "eval" else ""
        assert has[f"{prefix}loss", row["step"]] == row["loss"]
    assert tracking.client(trained).get_run(told["run_id"]).info.status == "FAILED"


def test_the_run_has_its_name_config_figures_and_no_secret(trained):
    told = tracking.sync(trained, TABLE)
    client = tracking.client(trained)
    found = client.get_run(told["run_id"])
    assert found.info.run_name == "first-run" and found.info.status == "FINISHED"
    assert found.data.params["learning_rate"] == "0.001" and found.data.params["data.sha256"] == "abc"
    assert "hf_canary" not in str(found.to_dictionary())
    names = {item.path for item in client.list_artifacts(told["run_id"])}
    assert {"config.yaml", "metrics.jsonl", "figures"} <= names


def test_a_server_that_goes_away_loses_nothing(trained, server, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.start().url)
    first = tracking.sync(trained, TABLE.iloc[:1])
    server.stop()
    began = time.monotonic()
    with pytest.raises(KitError, match="nothing is lost"):
        tracking.sync(trained, TABLE)
    assert time.monotonic() - began < 90  # with MLflow's own retries at least 126
    server.start()
    later = tracking.sync(trained, TABLE)
    assert later["run_id"] == first["run_id"] and what_mlflow_has(trained, later["run_id"]) == EXPECTED
    assert later["url"].startswith(server.url)


def test_the_tracker_never_raises_and_says_what_to_do(trained, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@127.0.0.1:9")
    tracker = tracking.Tracker(trained)
    tracker.send(TABLE)
    said = tracker.close(TABLE)
    assert (
        "kto track" in said and "secret" not in said and trained.record()["tracking"] == {"sent": False}
    )


def test_nothing_is_left_in_the_folder_that_one_is_in(run, tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    tracking.client(run)
    assert list((tmp_path / "here").iterdir()) == []


@pytest.mark.parametrize("uri", ["databricks", "databricks://profile"])
def test_databricks_takes_absolute_experiment_names_only(trained, monkeypatch, uri):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "kto")
    with pytest.raises(KitError, match="MLFLOW_EXPERIMENT_NAME=/Shared/kto"):
        tracking.experiment_of(None, trained)


def test_the_experiment_is_the_one_that_the_environment_names(trained, monkeypatch):
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "/Shared/thumbs")
    told = tracking.sync(trained, TABLE)
    mlflow = tracking.client(trained)
    experiment = mlflow.get_experiment(mlflow.get_run(told["run_id"]).info.experiment_id)
    assert experiment.name == "/Shared/thumbs" and experiment.artifact_location == (trained.storage / "mlartifacts").as_uri()


def test_a_deleted_experiment_is_called_deleted_with_the_command_that_restores_it(trained):
    mlflow = tracking.client(trained)
    experiment = mlflow.get_run(tracking.sync(trained, TABLE)["run_id"]).info.experiment_id
    mlflow.delete_experiment(experiment)
    with pytest.raises(KitError, match=f"'kto' was deleted(.|\n)*mlflow experiments restore -x {experiment}"):
        tracking.sync(trained, TABLE)


def test_a_server_keeps_artifacts_where_it_wants_them(trained, server, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.start().url)
    told = tracking.sync(trained, TABLE)
    mlflow = tracking.client(trained)
    assert mlflow.get_run(told["run_id"]).info.artifact_uri.startswith("mlflow-artifacts:/")
    assert {item.path for item in mlflow.list_artifacts(told["run_id"])} >= {"config.yaml", "metrics.jsonl"}
    assert not (trained.storage / "mlartifacts").exists()


def test_report_to_mlflow_inside_the_training_logs_into_the_same_run(trained, monkeypatch):
    """transformers' own callback, as in the training's process; the run's own values are sent once and nothing is doubled."""
    from types import SimpleNamespace

    from transformers import TrainingArguments
    from transformers.integrations import MLflowCallback

    assert tracking.training_environment(trained) == {}
    config = yaml.safe_load(trained.config_file.read_text())
    trained.config_file.write_text(yaml.safe_dump(config | {"report_to": "mlflow"}))
    settings = tracking.training_environment(trained)
    assert "MLFLOW_RUN_ID" in settings["KTO_SECRETS"].split()  # carried to workers on other nodes
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    callback, state = MLflowCallback(), SimpleNamespace(is_world_process_zero=True, global_step=2)
    arguments = TrainingArguments(output_dir=str(trained.output_dir), report_to="none", learning_rate=1e-3)
    model = SimpleNamespace(config=None)
    callback.on_train_begin(arguments, state, None, model=model)
    callback.on_log(arguments, state, None, logs={"loss": 0.5, "learning_rate": 1e-3}, model=model)
    callback.on_train_end(arguments, state, None)
    told = tracking.sync(trained, TABLE)
    mlflow = tracking.client(trained)
    experiment = mlflow.get_run(told["run_id"]).info.experiment_id
    assert told["run_id"] == settings["MLFLOW_RUN_ID"]
    assert len(mlflow.search_runs([experiment])) == 1
    assert len(mlflow.get_metric_history(told["run_id"], "loss")) == 2  # steps 2 and 4, each once
    assert float(mlflow.get_run(told["run_id"]).data.params["learning_rate"]) == 1e-3


def test_a_server_behind_a_password_gets_the_run_and_a_wrong_one_is_told_without_it(trained, server, monkeypatch):
    proxy = asking_for_a_password(server.start(), "team", "right-one")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{proxy.server_port}")
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "team")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "wrong-one")
    with pytest.raises(KitError, match="401(.|\n)*MLFLOW_TRACKING_USERNAME") as error:
        tracking.sync(trained, TABLE)
    assert "wrong-one" not in str(error.value)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "right-one")
    assert what_mlflow_has(trained, tracking.sync(trained, TABLE)["run_id"]) == EXPECTED
    proxy.shutdown()
