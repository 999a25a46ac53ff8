"""Failures explained: the lines are those that torch, Ray, the hub, Gloo and MLflow print."""

import pytest

from helpers.launch.explain import CAUSES, explain

PRINTED = {
    "a GPU ran out of memory": "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 3.91 GiB. GPU 0 has a total capacity of 79.1 GiB",
    "a node ran out of memory": "ray.exceptions.OutOfMemoryError: Task was killed due to the node running low on memory.",
    "the model is gated": "huggingface_hub.errors.GatedRepoError: 401 Client Error. Cannot access gated repo for url",
    "the model was not found": "OSError: smol is not a local folder and is not a valid model identifier listed on 'https://huggingface.co/models'",
    "the dataset was not read": "ValueError: Undefined dataset my_kto in dataset_info.json.",
    "MLflow could not be reached": "mlflow.exceptions.MlflowException: API request failed: Connection refused",
    "the workers lost each other": "RuntimeError: [../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1",
    "a worker was killed": "ray.exceptions.ActorDiedError: The actor died unexpectedly before finishing this task.",
    "the disk is full": "OSError: [Errno 28] No space left on device",
    "an older Ray instance was found": "ValueError: When connecting to an existing cluster, num_cpus and num_gpus must not be provided.",
}


def log_of(tmp_path, *lines):
    path = tmp_path / "train.log"
    path.write_text("\n".join(f"\x1b[36m(RayTrainWorker pid=7, ip=10.0.0.1)\x1b[0m {line}" for line in lines) + "\n")
    return path


def test_every_known_cause_is_shown_by_a_line():
    assert set(PRINTED) == {cause.name for cause in CAUSES}


@pytest.mark.parametrize("name", PRINTED)
def test_a_failure_is_explained_in_three_lines_with_its_decisive_line(tmp_path, name):
    said = explain(log_of(tmp_path, "loading model", PRINTED[name], '  File "x.py", line 3'))
    assert said.name == name and said.line == PRINTED[name][:300]
    assert len(str(said).splitlines()) == 3


def test_the_cause_is_named_and_not_what_it_led_to(tmp_path):
    path = log_of(
        tmp_path,
        PRINTED["a worker was killed"],
        PRINTED["a GPU ran out of memory"],
        PRINTED["the workers lost each other"],
    )
    assert explain(path).name == "a GPU ran out of memory"


def test_an_unknown_failure_shows_the_last_errors_own_words(tmp_path):
    said = explain(log_of(tmp_path, "KeyError: 'first'", "ZeroDivisionError: division by zero", "cleaning up"))
    assert said.line == "ZeroDivisionError: division by zero" and said.name == "the training failed"


def test_an_empty_log_is_no_riddle(tmp_path):
    assert explain(log_of(tmp_path)).line == "nothing was printed"


def test_of_a_progress_bar_only_what_is_left_on_the_screen_counts(tmp_path):
    path = tmp_path / "train.log"
    path.write_bytes(b" 10%|#  | 1/10\r 20%|## | 2/10\rValueError: no\n")
    assert explain(path).line == "ValueError: no"
