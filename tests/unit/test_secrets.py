"""Secrets: masked at every exit, carried to the workers without a trace, refused in files."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import tiny

from helpers import config, launch, runs, secrets, tracking
from helpers.errors import KitError
from helpers.profiles import ROOT
from kto import parameters

CANARY = {"HF_TOKEN": "canary-hf-7f3a91c2e5", "MLFLOW_TRACKING_PASSWORD": 'canary "mlflow" 0b6d', "AWS_SECRET_ACCESS_KEY": "canary/aws+82d1ff"}


@pytest.fixture
def short():
    """A folder with a short name: Ray's sockets lie in it, and a socket's path has 107 characters at most."""
    with tempfile.TemporaryDirectory(prefix="kto", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.fixture
def planted(monkeypatch):
    for name, value in CANARY.items():
        monkeypatch.setenv(name, value)
    return CANARY


def found_in(text: str) -> list[str]:
    return [name for name, value in CANARY.items() for form in (value, json.dumps(value)[1:-1]) if form in text]


def found_under(*folders: Path) -> list[str]:
    """The files under the folders that hold a canary, in any of its spellings."""
    forms = [form for value in CANARY.values() for form in {value, json.dumps(value)[1:-1]}]
    words = [word for form in forms for word in ("-e", form)]
    return subprocess.run(["grep", "-rlaF", *words, *map(str, folders)], capture_output=True, text=True).stdout.split()


def test_an_error_a_file_and_an_mlflow_parameter_show_the_variables_name_instead(planted, run):
    says = str(KitError(f"401 for {CANARY['HF_TOKEN']}", "", f"not {CANARY['AWS_SECRET_ACCESS_KEY']}"))
    assert "***HF_TOKEN***" in says and "***AWS_SECRET_ACCESS_KEY***" in says and not found_in(says)
    run.note(says=f"signed with {CANARY['MLFLOW_TRACKING_PASSWORD']}")
    assert "***MLFLOW_TRACKING_PASSWORD***" in run.record()["says"] and not found_under(run.storage)


def test_a_password_in_an_address_is_a_secret(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:pass-word-9@mlflow.example")
    assert secrets.mask("to https://me:pass-word-9@mlflow.example") == "to https://me:***MLFLOW_TRACKING_URI***@mlflow.example"


def test_a_stream_is_masked_wherever_its_chunks_are_cut(planted):
    text = f"a {CANARY['HF_TOKEN']} b {CANARY['AWS_SECRET_ACCESS_KEY']} canary-hf".encode()
    for cut in range(len(text)):
        assert b"".join(secrets.masked([text[:cut], text[cut:]])) == b"a ***HF_TOKEN*** b ***AWS_SECRET_ACCESS_KEY*** canary-hf"


def test_a_stream_without_a_secret_is_passed_on_at_once_byte_for_byte(planted):
    assert next(secrets.masked([b"\xff 10%|#    |\r"])) == b"\xff 10%|#    |\r"


def test_a_secret_comes_from_the_file_that_name_file_names(tmp_path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    (tmp_path / "token").write_text("canary-from-a-file\n")
    monkeypatch.setenv("HF_TOKEN_FILE", str(tmp_path / "token"))
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN_FILE", str(tmp_path / "missing"))
    assert secrets.load() == ["MLFLOW_TRACKING_TOKEN_FILE"] and os.environ.pop("HF_TOKEN") == "canary-from-a-file"


def test_a_config_and_parameters_that_hold_a_secret_are_refused_before_anything_is_written(planted, run):
    run.note(model={"name": "m", "path": "/m", "template": "smollm2"}, dataset={"name": "d", "rows": 3})
    kwargs = {"runtime_env": {"env_vars": {"HF_TOKEN": "hf_" + "a" * 30, "HF_HUB_ENABLE_HF_TRANSFER": "1"}}}
    with pytest.raises(KitError, match=r"a secret: ray_init_kwargs\.runtime_env\.env_vars\.HF_TOKEN"):
        config.write(run, config.resolve(run, ray_init_kwargs=kwargs))
    with pytest.raises(KitError, match="the parameters hold a secret"):
        parameters.typed(["overrides=" + json.dumps({"ray_init_kwargs": kwargs})])
    assert not run.config_file.exists()
    assert secrets.literal({"HF_TOKEN": "<your token>", "learning_rate": 1e-5, "env": {"MLFLOW_TRACKING_TOKEN": "${MLFLOW_TRACKING_TOKEN}"}}) == []


def test_what_a_training_prints_of_a_secret_reaches_its_log_masked_with_its_exit_status(planted, run, monkeypatch):
    tells = "import os, sys; print('told', os.environ['HF_TOKEN'], flush=True); sys.stderr.write(os.environ['AWS_SECRET_ACCESS_KEY']); sys.exit(3)"
    monkeypatch.setattr(launch, "command", lambda run, *_: [sys.executable, "-c", tells])
    run.config_file.write_text("{model_name_or_path: m, resources_per_worker: {CPU: 1}, ray_init_kwargs: {num_cpus: 3}}")
    with pytest.raises(KitError, match="exit status 3"):
        launch.start(run).wait()
    assert run.log_file.read_text() == "told ***HF_TOKEN***\n***AWS_SECRET_ACCESS_KEY***"


LOOK = """
import json, os, sys, time, urllib.request
from helpers import trainer
trainer.connect({"address": "local", "num_cpus": 1, "include_dashboard": True, "dashboard_port": int(sys.argv[1]), "log_to_driver": False})
import ray

@ray.remote
class Worker:
    def sees(self):
        return os.environ.get("HF_TOKEN")

worker = Worker.remote()
assert ray.get(worker.sees.remote()) == os.environ["HF_TOKEN"]
answers = {}
for path in ["/api/jobs/", "/api/v0/actors?detail=1", "/api/v0/tasks?detail=1", "/api/v0/runtime_envs?detail=1", "/api/v0/workers?detail=1"]:
    answers[path] = urllib.request.urlopen(f"http://127.0.0.1:{sys.argv[1]}{path}", timeout=60).read().decode()
print(json.dumps(answers))
"""


@pytest.mark.slow
def test_a_worker_has_the_token_and_neither_rays_logs_nor_its_dashboard_show_it(short):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    env = {**os.environ, **CANARY, "RAY_TMPDIR": str(short), "RAY_USAGE_STATS_ENABLED": "0"}
    done = subprocess.run([sys.executable, "-c", LOOK, str(port)], capture_output=True, text=True, env=env, cwd=ROOT, timeout=480)
    assert done.returncode == 0, done.stderr[-3000:]
    answers = json.loads(done.stdout.splitlines()[-1])
    assert len(answers) == 5 and "prepare_worker" in answers["/api/v0/runtime_envs?detail=1"]  # the hook's name is what is shown
    assert not found_in(done.stdout + done.stderr) and not found_under(short)
    assert list(short.glob("ray/session_*/logs/runtime_env_agent.log"))  # where Ray writes a runtime environment down


LEAKY = """
import os, sys
if "helpers.trainer" in sys.orig_argv:
    print("a library that tells:", os.environ.get("HF_TOKEN"), flush=True)
"""


@pytest.mark.slow
def test_of_planted_canaries_nothing_is_left_by_the_whole_pipeline(tmp_path, short):
    (tmp_path / "leaky").mkdir()
    (tmp_path / "leaky" / "sitecustomize.py").write_text(LEAKY)
    storage = tmp_path / "storage"
    model = tiny.model(tmp_path / "model")
    env = {**os.environ, **CANARY, "PYTHONPATH": f"{tmp_path / 'leaky'}{os.pathsep}{ROOT}", "RAY_TMPDIR": str(short), "KTO_LIVE": "off",
           "OMP_WAIT_POLICY": "PASSIVE", "KTO_STORAGE": str(storage)}  # fmt: skip
    words = ["run", "--run-name", "canary", "-p", "max_steps=2", "-p", "save_steps=2", "-p", f"model_name_or_path={model}", "-p", "template=smollm2"]
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "kto", *words], capture_output=True, text=True, env=env, cwd=ROOT, timeout=1500)
    assert done.returncode == 0, done.stderr[-3000:]
    log = (storage / "canary" / "train.log").read_text()
    assert "a library that tells: ***HF_TOKEN***" in log
    assert not found_in(done.stdout + done.stderr)
    assert found_under(storage, short) == [], time.monotonic() - started
    kept = tracking.client(runs.locate("local", str(storage), "canary"))
    assert not found_in(str([run.data.params for run in kept.search_runs([kept.get_experiment_by_name("kto").experiment_id])]))
