"""Failures explained: the lines are those that torch, Ray, the hub, Gloo and MLflow print."""

import pytest

from helpers.launch.explain import CAUSES, explain

PRINTED = {
    "a GPU ran out of memory": [
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 3.91 GiB. GPU 0 has a total capacity of 79.1 GiB",
    ],
    "a node ran out of memory": [
        "ray.exceptions.OutOfMemoryError: Task was killed due to the node running low on memory.",
        "(raylet) node_manager.cc:3193: 1 Workers (tasks / actors) killed due to memory pressure (OOM), 0 Workers crashed",
        "RuntimeError: [enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you "
        "tried to allocate 549755813888 bytes. Error code 12 (Cannot allocate memory)",
    ],
    "the model is gated": [
        "huggingface_hub.errors.GatedRepoError: 401 Client Error. Cannot access gated repo for url",
        "OSError: You are trying to access a gated repo.",
    ],
    "the model was not found": [
        "OSError: smol is not a local folder and is not a valid model identifier listed on 'https://huggingface.co/models'",
        "OSError: We couldn't connect to 'https://huggingface.co' to load the files, and couldn't find them in the cached",
    ],
    "the dataset was not read": [
        "ValueError: Undefined dataset my_kto in dataset_info.json.",
        "RuntimeError: Cannot find valid samples, check `data/README.md` for the data format.",
    ],
    "MLflow could not be reached": [
        "mlflow.exceptions.MlflowException: API request to http://127.0.0.1:9/api/2.0/mlflow/experiments/get-by-name failed "
        "with exception HTTPConnectionPool(host='127.0.0.1', port=9): Max retries exceeded with url: /api/2.0/mlflow/",
    ],
    "the workers lost each other": [
        "RuntimeError: [../gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 6000ms for recv operation to complete",
        "RuntimeError: [../gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:5027. This is typically "
        "caused by a remote worker crashing.",
        "[rank1]:[E1123 04:00:00.1 ProcessGroupNCCL.cpp:685] [Rank 1] Watchdog caught collective operation timeout: "
        "WorkNCCL(SeqNum=12, OpType=ALLREDUCE, Timeout(ms)=600000) ran for 600031 milliseconds before timing out.",
        "torch.distributed.DistBackendError: NCCL error in: ProcessGroupNCCL.cpp:3356, remote process exited",
    ],
    "a node was lost": [
        "(raylet, ip=10.0.0.2) The node with node id: 8f3a and address: 10.0.0.3 has been marked dead because the detector has missed",
        "The actor died because its node has died. Node Id: 8f3a",
        "(raylet) Raylet is terminated. Termination is unexpected. Possible reasons include: (1) SIGKILL by the user or "
        "system OOM killer, (2) Invalid memory access from Raylet causing SIGSEGV or SIGBUS",
    ],
    "a worker was lost": [
        "ray.exceptions.ActorUnavailableError: The actor bd4f8357 is unavailable: The actor is temporarily unavailable: RpcError: "
        "RPC Error message: Socket closed; RPC Error details:  rpc_code: 14.",
        "ray.exceptions.ActorDiedError: The actor died unexpectedly before finishing this task.",
    ],
    "the disk is full": [
        "OSError: [Errno 28] No space left on device",
        "RuntimeError: [enforce fail at inline_container.cc:659] . unexpected pos 64 vs 0: No space left on device",
        "OSError: [Errno 122] Disk quota exceeded",
    ],
    "the storage became read-only": [
        "OSError: [Errno 30] Read-only file system: '/mnt/run/store/out/checkpoint-10'",
    ],
    "an older Ray instance was found": [
        "ValueError: When connecting to an existing cluster, num_cpus and num_gpus must not be provided.",
    ],
}
LINES = [(name, line) for name, lines in PRINTED.items() for line in lines]


def log_of(tmp_path, *lines):
    path = tmp_path / "train.log"
    path.write_text("\n".join(f"\x1b[36m(RayTrainWorker pid=7, ip=10.0.0.1)\x1b[0m {line}" for line in lines) + "\n")
    return path


def test_every_known_cause_is_shown_by_a_line():
    assert set(PRINTED) == {cause.name for cause in CAUSES}


@pytest.mark.parametrize(("name", "line"), LINES)
def test_a_failure_is_explained_in_three_lines_with_its_decisive_line(tmp_path, name, line):
    said = explain(log_of(tmp_path, "loading model", line, '  File "x.py", line 3'))
    assert said.name == name and said.line == line[:300]
    assert len(str(said).splitlines()) == 3


def test_the_cause_is_named_and_not_what_it_led_to(tmp_path):
    memory, killed, lost = (
        PRINTED[name][0] for name in ("a GPU ran out of memory", "a worker was lost", "the workers lost each other")
    )
    assert explain(log_of(tmp_path, killed, memory, lost)).name == "a GPU ran out of memory"
    assert explain(log_of(tmp_path, lost, killed)).name == "a worker was lost"


def test_an_unknown_failure_shows_the_last_errors_own_words(tmp_path):
    said = explain(log_of(tmp_path, "KeyError: 'first'", "ZeroDivisionError: division by zero", "cleaning up"))
    assert said.line == "ZeroDivisionError: division by zero" and said.name == "the training failed"


def test_an_empty_log_is_no_riddle(tmp_path):
    assert explain(log_of(tmp_path)).line == "nothing was printed"


def test_of_a_progress_bar_only_what_is_left_on_the_screen_counts(tmp_path):
    path = tmp_path / "train.log"
    path.write_bytes(b" 10%|#  | 1/10\r 20%|## | 2/10\rValueError: no\n")
    assert explain(path).line == "ValueError: no"
