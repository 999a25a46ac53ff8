"""Failures explained: logs of failures that were provoked for real (tests/fixtures/failures/README.md), and lines in others' words."""

import re
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.causes import CAUSES
from helpers.explain import explain

FIXTURES = Path(__file__).parent.parent / "fixtures"
FAILURES = {  # log -> (the explanation's name, words of its decisive line, words of where it was raised)
    "corrupt_safetensors": ("a weights file is damaged", "SafetensorError: Error while deserializing header", "modeling_utils.py"),
    "crash_alone": ("a process crashed", "Segmentation fault", ""),
    "ctrl_c": ("stopped by hand", "KeyboardInterrupt", "hurt.py:"),
    "data_broken": ("the dataset was not read", "ArrowInvalid: JSON parse error", ""),
    "data_gone": ("the dataset was not read", "gone.json not found.", "loader.py:82"),
    "data_invalid": ("the dataset was not read", "Cannot find valid samples", "loader.py:"),
    "dataset_undefined": ("the dataset was not read", "Undefined dataset thumbs", "parser.py:"),
    "deepspeed_killed": ("a worker was lost", "exits with return code = -9", ""),
    "deepspeed_second_worker": ("AssertionError", "AssertionError: rows of different lengths: [3, 4]", "second.py:5, in collate, worker rank1"),
    "deepspeed_zip": ("DeepSpeed and the learning rate's schedule disagree", "ValueError: zip() argument 2 is longer", "lr_scheduler.py:296"),
    "disk_full": ("the disk is full", "OSError: [Errno 28] No space left on device", "tokenization_utils_base.py:"),
    "exception_group": ("ExceptionGroup", "ExceptionGroup: rows that cannot be read (2 sub-exceptions)", "group.py:8, in both"),
    "fp16_after_warning": ("half-precision weights cannot be trained with fp16", "ValueError: Attempting to unscale FP16", "tuner.py:76"),
    "fp16_unscale": ("half-precision weights cannot be trained with fp16", "ValueError: Attempting to unscale FP16", "grad_scaler.py:"),
    "gloo_timeout": ("the workers lost each other", "Timed out waiting 20000ms", "worker rank0"),
    "hf_placeholder": ("HF_ENDPOINT is no address", "MissingSchema: Invalid URL '<your-mirror>", "models.py:"),
    "hub_offline": ("the hub cannot be reached", "We couldn't connect to 'https://huggingface.co'", ""),
    "lora_target": ("the adapter does not fit the model", "Target modules {'q_porj'} not found", "tuners_utils.py:"),
    "long_tmpdir": ("a path is too long for a socket", "AF_UNIX path length cannot exceed 107 bytes", ""),
    "map_killed": ("a worker was lost", "One of the subprocesses has abruptly died during map operation", "py_utils.py:721"),
    "map_process": ("KeyError", "KeyError: 'content'", "formatting.py:278, in __getitem__"),
    "metric_missing": ("the metric that chooses the best checkpoint is not logged", "eval_rewards/accuracies", "trainer.py:"),
    "mlflow_away": ("MLflow could not be reached", "MlflowException: API request to http://127.0.0.1:9", ""),
    "no_cluster": ("no Ray cluster was found", "Could not find any running Ray instance", ""),
    "no_gpu_for_bf16": ("no GPU can be used", "Your setup doesn't support bf16/gpu.", "training_args.py:"),
    "no_network": ("the hub cannot be reached", "We couldn't connect to 'https://huggingface.co'", ""),
    "node_memory": ("a node ran out of memory", "can't allocate memory", "worker rank1"),
    "package_missing": ("a package is missing", "bitsandbytes>=0.39.0", ""),
    "unreadable_model": ("a file is not there", "No such file or directory: /mnt/run/model/model.safetensors", "modeling_utils.py:"),
    "not_writable": ("something may not be read or written", "PermissionError: [Errno 1]", ""),
    "address_space": ("a node ran out of memory", "memory allocation of 12 bytes failed", ""),
    "command_not_found": ("a package is missing", "lamafactory-cli: command not found", ""),
    "no_module": ("a package is missing", "No module named 'llamafactory'", ""),
    "killed_said": ("a worker was lost", "Killed", ""),
    "port_in_use": ("a port is in use", "EADDRINUSE", ""),
    "pool_killed": ("a worker was lost", "A process in the process pool was terminated abruptly", "_base.py:401"),
    "ray_v1_chain": ("KeyError", "KeyError: 'reward'", "worker 192.0.2.2:22209"),
    "ray_v1_group": ("ExceptionGroup", "ExceptionGroup: unhandled errors in a TaskGroup (2 sub-exceptions)", "taskgroups.py:145, in __aexit__"),
    "ray_v1_killed": ("a worker was lost", "A worker died or was killed", ""),
    "ray_v2_chain_retried": ("KeyError", "KeyError: 'reward'", "hurt.py:14, in on_step_begin"),
    "ray_v2_exception": ("IndexError", "list index out of range in the reader's own callback", "hurt.py:8"),
    "ray_v2_exit": ("SystemExit", "SystemExit: 3", "fail.py:15, in loop3, worker rank0"),
    "ray_v2_killed": ("a worker was lost", "A worker died or was killed", ""),
    "ray_v1_waits": ("the training waits for resources", "No available node types can fulfill", ""),
    "ray_v2_waits": ("the training waits for resources", "", ""),
    "raylet_killed": ("a node was lost", "has been marked dead", ""),
    "read_only_home": ("the home folder is read-only", "Read-only file system: '/mnt/rohome/.cache'", ""),
    "resume_missing": ("the checkpoint was not found", "Can't find a valid checkpoint at", "trainer.py:"),
    "shm_full": ("shared memory is full", "OSError: [Errno 28] No space left on device", "multiprocessing/synchronize.py"),
    "tokenizer_missing": ("the tokenizer is missing", "Either model_file or model_proto must be specified", ""),
    "spawned_worker": ("ZeroDivisionError", "ZeroDivisionError: reward scale is 0", "spawn.py:3, in work, worker rank1"),
    "too_many_files": ("too many files are open", "Too many open files", ""),
    "torchrun_assertion": ("AssertionError", "AssertionError: rows of different lengths: [3, 4]", "second.py:5, in collate, worker rank1"),
    "torchrun_collator": ("KeyError", "KeyError: 'feedback'", "second.py:6, in call, worker rank1"),
    "torchrun_crash": ("a process crashed", "exitcode: -11", "worker rank1"),
    "torchrun_exception": ("IndexError", "list index out of range in the reader's own callback", "hurt.py:8, in on_step_begin, worker rank1"),
    "torchrun_exit": ("a worker ended without a word", "exitcode: 3", "worker rank1"),
    "torchrun_killed": ("a worker was lost", "exitcode: -9", "worker rank1"),
    "unknown_key": ("a setting is unknown", "['lerning_rate']", "hf_argparser.py:"),
    "unknown_model_type": ("the model is of an unknown kind", "model type `llama9`", ""),
    "unknown_template": ("the template is unknown", "Template lama3 does not exist.", "template.py:"),
    "versions_disagree": ("TypeError", "takes 3 positional arguments but 4 were given", "trainer.py:2509"),
    "worker_packages": ("the workers' packages were not installed", "that satisfies the requirement no-such-package==1.0", ""),
    "wandb_missing": ("wandb is not ready", "WandbCallback requires wandb to be installed", "integration_utils.py:788"),
    "wrong_template": ("a token id lies outside the embedding", "IndexError: index out of range in self", "functional.py:"),
}
PUBLIC = {  # in the words of public reports: no GPU, no second node and no kernel's log where these were written
    "a GPU ran out of memory": [
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 3.91 GiB. GPU 0 has a total capacity of 79.1 GiB",
        "torch.cuda.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB (GPU 0; 23.69 GiB total capacity; 20.1 GiB already",
        "RuntimeError: CUDA error: out of memory",
        "torch.AcceleratorError: CUDA error: out of memory",
        "RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "RuntimeError: MPS backend out of memory (MPS allocated: 17.87 GB, max allowed: 18.13 GB). Tried to allocate 256.00 MB",
        "RuntimeError: NPU out of memory. Tried to allocate 1.91 GiB (NPU 0; 60.96 GiB total capacity)",
    ],
    "a node ran out of memory": [
        "ray.exceptions.OutOfMemoryError: Task was killed due to the node running low on memory.",
        "(raylet) node_manager.cc:3193: 1 Workers (tasks / actors) killed due to memory pressure (OOM), 0 Workers crashed",
        "[12345.678] Out of memory: Killed process 4711 (python) total-vm:98765432kB, anon-rss:65432100kB",
        "The node was low on resource: memory. Threshold quantity: 100Mi, available: 50Mi. Container train was using 30Gi",
        "slurmstepd: error: Detected 1 oom_kill event in StepId=123.0. Some of the step tasks have been OOM Killed.",
        "[ 8123.456] Memory cgroup out of memory: Killed process 4711 (pt_main_thread) total-vm:94811312kB, anon-rss:33313220kB",
        "earlyoom[612]: sending SIGTERM to process 4711 uid 1000 \"python\": badness 1205, VmRSS 61234 MiB",
        "train.service: A process of this unit has been killed by the OOM killer.",
        "srun: error: gpu-07: task 3: Out Of Memory",
        "numpy.core._exceptions._ArrayMemoryError: Unable to allocate 298. GiB for an array with shape (200000, 200000)",
        "TERM_MEMLIMIT: job killed after reaching LSF memory usage limit.",
    ],
    "a CUDA kernel failed": [
        "RuntimeError: CUDA error: device-side assert triggered",
        "RuntimeError: CUDA error: an illegal memory access was encountered",
        "RuntimeError: CUDA error: no kernel image is available for execution on the device",
        "RuntimeError: cuDNN Frontend error: [cudnn_frontend] Error: No valid execution plans built. CUDNN_STATUS_EXECUTION_FAILED",
        "Error an illegal memory access was encountered at line 90 in file /src/csrc/ops.cu",
    ],
    "no GPU can be used": [
        "RuntimeError: Unexpected error from cudaGetDeviceCount(). Did you run some cuda functions before calling NumCudaDevices()",
        "RuntimeError: 0 active drivers ([]). There should only be one.",
        "docker: Error response from daemon: could not select device driver \"\" with capabilities: [[gpu]].",
        "RuntimeError: Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU and installed a driver",
        "RuntimeError: The NVIDIA driver on your system is too old (found version 11040).",
        "RuntimeError: CUDA error: invalid device ordinal",
        "RuntimeError: CUDA error: all CUDA-capable devices are busy or unavailable",
        "RuntimeError: CUDA error: system not yet initialized",
        "ValueError: ProcessGroupNCCL is only supported with GPUs, no GPUs found!",
    ],
    "the model is gated": [
        "huggingface_hub.errors.GatedRepoError: 401 Client Error. Cannot access gated repo for url",
        "OSError: You are trying to access a gated repo.",
    ],
    "the adapter was not found": ["ValueError: Can't find 'adapter_config.json' at '/nosuch/adapter'"],
    "the adapter does not fit the model": [
        "RuntimeError: Error(s) in loading state_dict for PeftModelForCausalLM: size mismatch for base_model.model.lm_head.lora_A.weight",
    ],
    "the weights do not fit the model's config.json": [
        "RuntimeError: Error(s) in loading state_dict for Linear: size mismatch for weight: copying a param with shape torch.Size([259, 32])",
    ],
    "saves and evaluations do not fit each other": [
        "ValueError: --load_best_model_at_end requires the save and eval strategy to match, but found",
    ],
    "the hub refuses the token": [
        "huggingface_hub.errors.HfHubHTTPError: 401 Client Error: Unauthorized for url: https://huggingface.co/api/whoami-v2",
    ],
    "a package has another version than is asked for": [
        "ImportError: tokenizers>=0.21,<0.22 is required for a normal functioning of this module, but found tokenizers==0.20.3.",
        "RuntimeError: Version mismatch: The cluster was started with:",
        "Exception: data did not match any variant of untagged enum ModelWrapper at line 1251003 column 3",
        "ImportError: cannot import name 'top_k_top_p_filtering' from 'transformers' (/venv/lib/transformers/__init__.py)",
    ],
    "two workers share a GPU": ["torch.distributed.DistBackendError: NCCL error in: x.cpp:1275, Duplicate GPU detected : rank 1 and rank 0 both on 18000"],
    "the hub was asked too often": [
        "huggingface_hub.errors.HfHubHTTPError: 429 Client Error: Too Many Requests for url: https://huggingface.co/org/model/resolve/main/config.json",
        "httpx.HTTPStatusError: Client error '429 Too Many Requests' for url 'https://huggingface.co/api/models/org/model/tree/main'",
    ],
    "the hub cannot be reached": [
        "urllib3.exceptions.ReadTimeoutError: HTTPSConnectionPool(host='huggingface.co', port=443): Read timed out. (read timeout=10)",
        "huggingface_hub.errors.HfHubHTTPError: 504 Server Error: Gateway Time-out for url: https://huggingface.co/api/models/org/model",
        "requests.exceptions.ProxyError: (MaxRetryError(\"HTTPSConnectionPool(host='huggingface.co', port=443): Max retries exceeded with url\"))",
    ],
    "wandb is not ready": ["wandb.errors.errors.UsageError: api_key not configured (no-tty). call wandb.login(key=[your_api_key])"],
    "the repository brings code of its own": [
        "ValueError: Loading org/model requires you to execute the configuration file in that repo; set the option `trust_remote_code=True`",
    ],
    "a package was built for another machine": [
        "ImportError: libcudart.so.12: cannot open shared object file: No such file or directory",
        "ImportError: /venv/flash_attn_2_cuda.cpython-311-x86_64-linux-gnu.so: undefined symbol: _ZN3c105ErrorC2E",
        "ImportError: /lib/x86_64-linux-gnu/libc.so.6: version `GLIBC_2.32' not found (required by /venv/x.so)",
        "/venv/bin/python: symbol lookup error: /venv/libcudnn_cnn.so.9: undefined symbol: _ZN5cudnn3ops26JIT",
    ],
    "a process crashed": [
        "zsh: segmentation fault  python train.py",
        "/work/train.sh: line 4: 4711 Illegal instruction     (core dumped) llamafactory-cli train kto.yaml",
        "command terminated with exit code 139",
    ],
    "no Ray cluster was found": ["[2026-11-26 17:35:11,076 E 6259 6696] gcs_rpc_client.h:179: Failed to connect to GCS at address 10.0.0.1:6379"],
    "the model is of an unknown kind": ["ValueError: Tokenizer class Qwen9Tokenizer does not exist or is not currently imported."],
    "the model was not found": [
        "huggingface_hub.errors.HFValidationError: Repo id must be in the form 'repo_name' or 'namespace/repo_name': '/data/llama'.",
        "huggingface_hub.errors.RepositoryNotFoundError: 401 Client Error. (Request ID: Root=1-67) Repository Not Found for url",
        "OSError: smol is not a local folder and is not a valid model identifier listed on 'https://huggingface.co/models'",
    ],
    "the workers lost each other": [
        "RuntimeError: [../gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:5027. This is typically",
        "[rank1]:[E1123 04:00:00.1 ProcessGroupNCCL.cpp:685] [Rank 1] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=12, "
        "OpType=ALLREDUCE, Timeout(ms)=600000) ran for 600031 milliseconds before timing out.",
        "[rank7]:[E626 05:14:36.3 ProcessGroupNCCL.cpp:1743] [PG ID 0 PG GUID 0(default_pg) Rank 7] ProcessGroupNCCL's watchdog got stuck for 480 "
        "seconds without making progress in monitoring enqueued collectives.",
        "torch.distributed.elastic.rendezvous.api.RendezvousConnectionError: The connection to the C10d store has failed.",
        "torch.distributed.DistBackendError: NCCL error in: ProcessGroupNCCL.cpp:3356, remote process exited",
        "torch.distributed.DistBackendError: [1] is setting up NCCL communicator, but store->get('0') got error: wait timeout after 600000ms",
        "torch.distributed.DistStoreError: Timed out after 601 seconds waiting for clients. 1/2 clients joined.",
    ],
    "a node was lost": [
        "slurmstepd: error: *** STEP 9.0 ON n1 CANCELLED AT 2026-11-20T12:00:00 DUE TO NODE FAILURE, SEE SLURMCTLD LOG FOR DETAILS ***",
        "(raylet, ip=10.0.0.2) The node with node id: 8f3a and address: 10.0.0.3 has been marked dead because the detector has missed",
        "(raylet) Raylet is terminated. Termination is unexpected. Possible reasons include: (1) SIGKILL by the user or system OOM",
    ],
    "a worker was lost": [
        "zsh: killed     python train.py",
        "mpirun noticed that process rank 1 with PID 0 on node node-2 exited on signal 9 (Killed).",
        "ray.exceptions.ActorUnavailableError: The actor bd4f8357 is unavailable: The actor is temporarily unavailable: RpcError",
        "ray.exceptions.ActorDiedError: The actor died unexpectedly before finishing this task.",
        "RuntimeError: DataLoader worker (pid 123) is killed by signal: Killed.",
        "train.service: Main process exited, code=killed, status=9/KILL",
    ],
    "shared memory is full": [
        "RuntimeError: unable to write to file </torch_1234_567_0>: No space left on device (28)",
        "RuntimeError: DataLoader worker (pid(s) 123) exited unexpectedly with: Bus error. It is possible that out of shared memory",
        "Bus error (core dumped)",
        "*** SIGBUS received at time=1764159601 on cpu 12 ***",
    ],
    "the disk is full": [
        "RuntimeError: [enforce fail at inline_container.cc:659] . unexpected pos 64 vs 0: No space left on device",
        "OSError: [Errno 122] Disk quota exceeded",
        "safetensors_rust.SafetensorError: Error while serializing: IoError(Os { code: 28, kind: StorageFull, message: \"No space left",
        "Warning  Evicted  3m  kubelet  Pod ephemeral local storage usage exceeds the total limit of containers 50Gi.",
    ],
    "the storage became read-only": ["OSError: [Errno 30] Read-only file system: '/mnt/run/store/out/checkpoint-10'"],
    "the workers' packages were not installed": ["ray.exceptions.RuntimeEnvSetupError: Failed to set up runtime environment."],
    "a package is missing": ["bash: llamafactory-cli: command not found", "/bin/sh: 1: llamafactory-cli: not found"],
    "an older Ray instance was found": ["ValueError: When connecting to an existing cluster, num_cpus and num_gpus must not be provided."],
    "too many files are open": ["OSError: [Errno 24] Too many open files: '/mnt/run/data/train.json'"],
    "something may not be read or written": ["PermissionError: [Errno 13] Permission denied: '/mnt/run/output'",
                                              "OSError: When reading key 'runs' in bucket 'b': AWS Error ACCESS_DENIED during HeadObject operation"],
    "stopped by hand": ["KeyboardInterrupt"],
    "stopped from outside": [
        "slurmstepd: error: *** STEP 4711.0 ON node1 CANCELLED AT 2026-01-01T00:00:00 DUE TO PREEMPTION ***",
        "torch.distributed.elastic.multiprocessing.api.SignalException: Process 4711 got signal: 15",
    ],
    "a time limit ended it": [
        "slurmstepd: error: *** JOB 123 ON node1 CANCELLED AT 2026-11-22T12:00:00 DUE TO TIME LIMIT ***",
        "=>> PBS: job killed: walltime 3622 exceeded limit 3600",
    ],
}
TRACEBACK = ["Traceback (most recent call last):", '  File "/venv/x.py", line 3, in f', "    g()"]
WORDS = "{'loss': 0.5, 'learning_rate': 1e-05, 'epoch': 0.5}"
END = "{'train_runtime': 60.1, 'train_loss': 0.48, 'epoch': 1.0}"


def log_of(tmp_path, *lines, worker="RayTrainWorker pid=7, ip=10.0.0.1"):
    path = tmp_path / "train.log"
    path.write_text("\n".join(line if line.startswith(("(", "[rank")) else f"\x1b[36m({worker})\x1b[0m {line}" for line in lines) + "\n")
    return path


@pytest.mark.parametrize("name", sorted(path.stem for path in (FIXTURES / "failures").glob("*.log") if not path.stem.startswith("healthy")
                                        and path.stem != "killed_alone"))
def test_a_provoked_failure_is_told_by_its_own_decisive_line(name):
    cause, line, where = FAILURES[name]
    said = explain(FIXTURES / "failures" / f"{name}.log")
    assert said.failed and said.name == cause and line in said.line and where in said.where
    assert said.fix or said.name.endswith(("Error", "Group", "Exit"))
    assert 1 <= len(str(said).splitlines()) <= 8 and str(said).splitlines()[0].endswith(said.line)


def test_every_known_cause_is_shown_by_a_log_or_a_line():
    shown = {name for name, *_ in FAILURES.values()} | PUBLIC.keys()
    assert {cause.name for cause in CAUSES} <= shown


@pytest.mark.parametrize(("name", "line"), [(name, line) for name, lines in PUBLIC.items() for line in lines])
def test_a_failure_in_the_words_of_public_reports_is_told(tmp_path, name, line):
    traceback = TRACEBACK if line.split(":")[0].endswith(("Error", "Interrupt", "Exception")) else []
    said = explain(log_of(tmp_path, "loading model", *traceback, line, "ray.train.base_trainer.TrainingFailedError: The Ray Train run failed."))
    assert said.name == name and line[9:40] in said.line


@pytest.mark.parametrize("path", [*FIXTURES.glob("*.log"), *(FIXTURES / "logs_of_others").glob("*.log"), *(FIXTURES / "ill").glob("*.log"),
                                  *(FIXTURES / "failures").glob("healthy*.log")], ids=lambda path: path.stem)
def test_of_a_healthy_log_nothing_failed(path):
    said = explain(path)
    assert not said.failed and str(said) == "nothing failed: the training came to its end"


def test_the_first_failure_in_time_decides_and_not_the_list(tmp_path):
    lost, memory = PUBLIC["the workers lost each other"][0], PUBLIC["a GPU ran out of memory"][0]
    other = [f"(RayTrainWorker pid=8) {line}" for line in (*TRACEBACK, "ValueError: my own error", "")]
    assert explain(log_of(tmp_path, *other, *TRACEBACK, memory)).line == "ValueError: my own error"
    assert explain(log_of(tmp_path, *TRACEBACK, memory, *other)).name == "a GPU ran out of memory"
    missing = [f"(RayTrainWorker pid=8) {line}" for line in (*TRACEBACK, "ModuleNotFoundError: No module named 'flash_x'", "")]
    assert explain(log_of(tmp_path, *TRACEBACK, lost, *missing)).name == "a package is missing"
    # What a worker prints because its peer is gone is no cause, whoever's lines reached the log first.
    assert explain(log_of(tmp_path, *TRACEBACK, lost, *other)).line == "ValueError: my own error"


def test_the_root_of_a_chain_is_told_with_what_it_led_to(tmp_path):
    chain = [*TRACEBACK, "ZeroDivisionError: division by zero", "", "The above exception was the direct cause of the following exception:", "",
             *TRACEBACK, "mykit.errors.RowError: row 7 has no length", ""]
    said = explain(log_of(tmp_path, *chain))
    assert (said.name, said.line) == ("ZeroDivisionError", "ZeroDivisionError: division by zero")
    assert said.where == "/venv/x.py:3, in f, worker 10.0.0.1:7" and "then: mykit.errors.RowError: row 7 has no length" in said.around


@pytest.mark.parametrize("line", [
    "requests.exceptions.ConnectionError: HTTPSConnectionPool(host='api.wandb.ai', port=443): Max retries exceeded (Caused by NameResolutionError())",
    "requests.exceptions.ConnectionError: ('Connection aborted.', ConnectionResetError(104, 'Connection reset by peer'))",
    "requests.exceptions.HTTPError: 429 Client Error: Too Many Requests for url: https://api.wandb.ai/files/org/kto/abc/file_stream",
    "requests.exceptions.HTTPError: 404 Client Error: Not Found for url: https://tracking.example.org/api/2.0/runs",
    "botocore.exceptions.SSLError: SSL validation failed for https://minio:9000/runs [SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed",
    "ValueError: cutoff_len 8192 runs out of memory here, and killed runs are not resumed",
    "mlflow.exceptions.RestException: PERMISSION_DENIED: Permission denied", "KeyError: 'walltime'",
    "OSError: [Errno 28] inotify watch limit reached", "KeyError: 'skilled_reply'", "TypeError: mine() got an unexpected keyword argument 'b'",
    "pyarrow.lib.ArrowInvalid: offset overflow while concatenating arrays"])
def test_an_error_that_only_resembles_a_known_one_is_shown_without_a_cause(tmp_path, line):
    said = explain(log_of(tmp_path, *TRACEBACK, line))
    assert (said.name, said.line, said.why) == (line.split(":")[0], line, "")


def test_lines_before_a_traceback_that_belong_to_it_are_shown_and_count(tmp_path):
    kernel = "/pytorch/aten/src/ATen/native/cuda/Indexing.cu:1422: block: [0,0,0] Assertion `srcIndex < srcSelectDimSize` failed."
    said = explain(log_of(tmp_path, kernel, *TRACEBACK, "RuntimeError: CUDA error: device-side assert triggered"))
    assert said.name == "a token id lies outside the embedding" and said.around[0] == f"before: {kernel}"


def test_warnings_and_samples_of_the_data_are_no_causes(tmp_path):
    sample = [*TRACEBACK, "OSError: [Errno 28] No space left on device", "is what the user asked about"]
    data = ["training example:", "input_ids:", "[1, 2]", "inputs:", "<user>", *sample, "label_ids:", "[-100, 2]", "labels:", *sample]
    warned = ["/venv/peft/other.py:1110: UserWarning: Unable to fetch: 401 Client Error. Cannot access gated repo for url", "  warnings.warn("]
    said = explain(log_of(tmp_path, *data, *warned, WORDS, *TRACEBACK, "KeyError: 'the real one'"))
    assert said.line == "KeyError: 'the real one'"
    within = ["inputs:", "[INST] Why? [/INST]RuntimeError: CUDA out of memory", "label_ids:", "[2]", "labels:", "RuntimeError: CUDA out of memory"]
    assert explain(log_of(tmp_path, *within, "loading model")).name == "the log ends without an error"
    assert not explain(log_of(tmp_path, *data, *warned, WORDS, END)).failed


def test_an_error_that_the_worker_survived_is_no_cause(tmp_path):
    survived = [*TRACEBACK, "ConnectionError: a metric was not sent", ""]
    assert not explain(log_of(tmp_path, *survived, WORDS, END)).failed
    assert explain(log_of(tmp_path, *survived, WORDS, *TRACEBACK, "KeyError: 'x'")).name == "KeyError"
    lost = [f"[rank0]: {line}" for line in (*TRACEBACK, PUBLIC["the workers lost each other"][0])]
    assert explain(log_of(tmp_path, "[W1126 reducer.cpp:1400] Warning: unused", *TRACEBACK, "KeyError: 'x'", *lost)).name == "KeyError"
    ignored = ["Exception ignored in: <function Pool.__del__ at 0x7f>", *TRACEBACK, "ValueError: at exit"]
    assert explain(log_of(tmp_path, *TRACEBACK, "KeyError: 'x'", "", *ignored)).name == "KeyError"


def test_an_error_while_the_interpreter_ends_is_no_failure(tmp_path):
    for begin in ("Error in atexit._run_exitfuncs:", "Exception ignored in atexit callback: <function bye at 0x7f>", "future: <Task finished"):
        assert not explain(log_of(tmp_path, WORDS, END, begin, *TRACEBACK, "ValueError: late")).failed


HUB = [*TRACEBACK, "requests.exceptions.HTTPError: 401 Client Error: Unauthorized for url: https://huggingface.co/o/m/resolve/main/config.json", "",
       "The above exception was the direct cause of the following exception:", "", *TRACEBACK,
       "huggingface_hub.errors.RepositoryNotFoundError: 401 Client Error. (Request ID: Root=1)", "", "Repository Not Found for url: o/m", "",
       "The above exception was the direct cause of the following exception:", "", *TRACEBACK,
       "OSError: o/m is not a local folder and is not a valid model identifier listed on 'https://huggingface.co/models'"]


def test_a_chain_goes_on_behind_a_message_with_empty_lines_and_a_missing_model_is_not_called_gated(tmp_path):
    said = explain(log_of(tmp_path, *HUB))
    assert said.name == "the model was not found" and said.line == HUB[-1] and "from: requests.exceptions.HTTPError" in said.around[0]


def test_what_nccl_names_as_its_last_error_is_the_cause(tmp_path):
    error = [*TRACEBACK, "torch.distributed.DistBackendError: NCCL error in: NCCLUtils.hpp:317, unhandled cuda error, NCCL version 2.26.2",
             "ncclUnhandledCudaError: Call to CUDA function failed.", "Last error:"]
    for last, name in (("Cuda failure 2 'out of memory'", "a GPU ran out of memory"),
                       ("Error while creating shared memory segment /dev/shm/nccl-2sJ4X5, error: No space left on device (28)", "shared memory is full"),
                       ("Duplicate GPU detected : rank 1 and rank 0 both on CUDA device 18000", "two workers share a GPU")):
        for end in ([], ["", "The above exception was the direct cause of the following exception:", "", *TRACEBACK,
                         "ray.train.base_trainer.TrainingFailedError: see"]):
            said = explain(log_of(tmp_path, *error, last, *end))
            assert said.name == name and said.around[1] == f"with: Last error: {last}"


def test_words_of_a_wrapper_are_not_shown_as_the_causes_own(tmp_path):
    wrapper = ["", "The above exception was the direct cause of the following exception:", "", *TRACEBACK,
               "ray.train.base_trainer.TrainingFailedError: see", "To continue this run, you can use: `TorchTrainer.restore`"]
    assert explain(log_of(tmp_path, *TRACEBACK, "KeyError: 'x'", *wrapper)).around == ()


def test_the_wrapper_of_a_library_over_any_error_is_no_cause(tmp_path):
    wrapper = ["", "The above exception was the direct cause of the following exception:", "", *TRACEBACK]
    said = explain(log_of(tmp_path, *TRACEBACK, PUBLIC["a package has another version than is asked for"][2], *wrapper, "OSError: Failed to load tokenizer."))
    assert said.name == "a package has another version than is asked for" and "untagged enum" in said.line
    symbol = PUBLIC["a package was built for another machine"][1]
    again = ["RuntimeError: Failed to import transformers.models.llama because of the following error:", symbol.partition(": ")[2]]
    assert explain(log_of(tmp_path, *TRACEBACK, symbol, *wrapper, *again)).line == symbol
    hung = "ray.train.v2._internal.exceptions.WorkerHealthCheckTimeoutError: A worker health check has been hanging for 600.00 seconds."
    report = ["ray.train.v2.api.exceptions.WorkerGroupError: Training failed due to worker errors:", "[Rank 3 Error Snippet]:", hung]
    assert explain(log_of(tmp_path, *TRACEBACK, *report)).line == hung


def test_weights_that_torch_refuses_to_unpickle_are_not_called_damaged(tmp_path):
    refused = "_pickle.UnpicklingError: Weights only load failed. This file can still be loaded, to do so you have two options"
    assert explain(log_of(tmp_path, *TRACEBACK, refused)).name == "_pickle.UnpicklingError"


def test_a_failure_after_the_training_is_told(tmp_path):
    assert explain(log_of(tmp_path, WORDS, END, *TRACEBACK, "ValueError: nothing to plot")).line == "ValueError: nothing to plot"


def test_only_the_last_launch_of_a_log_counts(tmp_path):
    start = "2026-03-14 09:00:01,120 INFO worker.py:1927 -- Started a local Ray instance."
    first = [start, *TRACEBACK, "KeyError: 'first'", ""]
    assert explain(log_of(tmp_path, start, WORDS, "being preempted", start, WORDS)).name == "the log ends without an error"
    assert not explain(log_of(tmp_path, *first, start, WORDS, END)).failed
    assert explain(log_of(tmp_path, *first, start, *TRACEBACK, "ValueError: second")).name == "ValueError"


def test_a_log_that_was_cut_is_told_by_its_last_words(tmp_path):
    assert explain(log_of(tmp_path, "ValueError: in the last line")).line == "ValueError: in the last line"
    assert explain(log_of(tmp_path, '  File "/venv/x.py", line 3, in f', "    g()", "mykit.Odd: a class of its own")).name == "mykit.Odd"


def test_a_log_that_was_cut_inside_a_traceback_is_said_to_be_that(tmp_path):
    said = explain(log_of(tmp_path, WORDS, *TRACEBACK))
    assert said.name == "the log ends inside a traceback" and said.where == "/venv/x.py:3, in f"


def test_of_a_progress_bar_only_what_is_left_on_the_screen_counts(tmp_path):
    path = tmp_path / "train.log"
    path.write_bytes(b" 10%|#  | 1/10\r 20%|## | 2/10\rTraceback (most recent call last):\n  File \"x.py\", line 1\nValueError: no\n")
    assert explain(path).line == "ValueError: no"
    path.write_text("\r 10%|#  | 1/10" * 400 + f"\r{END}\n")
    assert not explain(path).failed


def test_a_log_without_an_error_is_said_to_be_that(tmp_path):
    said = explain(log_of(tmp_path, WORDS, "  5%|5         | 5/100 [00:09<02:46,  1.54s/it]"))
    assert said.name == "the log ends without an error" and "after the last logged window" in said.where
    assert explain(FIXTURES / "failures" / "killed_alone.log").name == "the log ends without an error"
    assert explain(log_of(tmp_path, "loading model", "*** SIGTERM received at time=1 on cpu 0 ***")).name == "stopped from outside"
    for last in ("Received SIGTERM, this instance is being preempted", "srun: error: node1: task 0: Terminated", "command terminated with exit code 143",
                 "/var/spool/slurmd/job123/slurm_script: line 12:  4711 Terminated              llamafactory-cli train kto.yaml"):
        assert explain(log_of(tmp_path, WORDS, last)).name == "stopped from outside"
    for last in ("(autoscaler +1m12s) Failed to launch 2 node(s) of type g5-48xl. (InsufficientInstanceCapacity): We currently do not have",
                 "Warning  FailedScheduling  default-scheduler  0/12 nodes are available: 12 Insufficient nvidia.com/gpu.",
                 "srun: job 4711 queued and waiting for resources"):
        assert explain(log_of(tmp_path, "Connected to Ray cluster", last)).name == "the training waits for resources"
    assert explain(log_of(tmp_path, "wandb: (3) Don't visualize my results", "wandb: Enter your choice: ")).name == "the training waits for an answer"
    (tmp_path / "train.log").write_text("")
    assert explain(tmp_path / "train.log").name == "nothing was printed"


def test_a_log_of_100_mb_is_explained_in_less_than_five_times_the_time_of_one_of_10_mb(tmp_path):
    took = explained_within(tmp_path, 10_000_000)  # 1.4 s, and 2 s for 100 MB: chunks without a sign of trouble are skipped
    assert explained_within(tmp_path, 100_000_000) < 5 * took


def explained_within(tmp_path, size: int) -> float:
    """CPU seconds; the failure is in the middle of the log, a repeated line behind it."""
    text = (FIXTURES / "demo-two-workers.log").read_bytes()
    start = text.rfind(b"\n", 0, text.find(b"{'loss'")) + 1
    path = tmp_path / "train.log"
    with open(path, "wb") as file:
        file.write(text[:start])
        while file.tell() < size // 2:
            file.write(text[start : text.rfind(b"\n", 0, text.find(b"train_runtime"))])
        file.write(b"\n" + "\n".join([*TRACEBACK, "KeyError: 'in the middle'", ""]).encode())
        file.write(b"waiting for the other worker, still waiting\n" * (size // 88))
    began = time.process_time()
    assert explain(path).line == "KeyError: 'in the middle'"
    return time.process_time() - began


OTHERS = {
    "a process of datasets.map": (
        "KeyError: 'content'", ["multiprocess.pool.RemoteTraceback: ", '"""', *TRACEBACK, "KeyError: 'content'", '"""', "",
        "The above exception was the direct cause of the following exception:", "", *TRACEBACK, "KeyError: 'content'"]),
    "a worker of the data loader": (
        "ValueError: no row 7", [*TRACEBACK, "RuntimeError: Caught ValueError in DataLoader worker process 0.",
        "Original Traceback (most recent call last):", *TRACEBACK[1:], "ValueError: no row 7"]),
    "a notebook": (
        "ValueError: no", ["-" * 75, "ValueError                                Traceback (most recent call last)", "Cell In[3], line 1",
        "----> 1 f()", "", "File /venv/x.py:3, in f()", "      2 def f():", "----> 3     raise ValueError('no')", "", "ValueError: no"]),
    "a notebook that papermill ran": (
        "KeyError: 'reply'", [*TRACEBACK, "papermill.exceptions.PapermillExecutionError: ", "-" * 75, 'Exception encountered at "In [2]":', "-" * 75,
        "KeyError                                  Traceback (most recent call last)", "File /venv/x.py:3, in f(row)", "----> 3     return row['reply']",
        "", "KeyError: 'reply'"]),
    "a wait of asyncio": ("TimeoutError", [*TRACEBACK, "asyncio.exceptions.CancelledError", "",
        "The above exception was the direct cause of the following exception:", "", *TRACEBACK, "TimeoutError"]),
    "rich": (
        "ValueError: no", ["╭───── Traceback (most recent call last) ─────╮", "│ /venv/x.py:3 in f                            │",
        "│ ❱ 3     raise ValueError('no')               │", "╰──────────────────────────────────────────────╯", "ValueError: no"]),
    "an exception group": (
        "ExceptionGroup: two (2 sub-exceptions)", ["  + Exception Group Traceback (most recent call last):", '  |   File "/venv/x.py", line 3, in f',
        "  | ExceptionGroup: two (2 sub-exceptions)", "  +-+---------------- 1 ----------------", "    | Traceback (most recent call last):",
        '    |   File "/venv/y.py", line 4, in g', "    | ValueError: first"]),
    "torchrun's report of a program that records its errors": (
        "ValueError: row 7 has no reply", ["[0]:", "  rank      : 1 (local_rank: 1)", "  exitcode  : 1 (pid: 113422)",
        "  traceback : Traceback (most recent call last):", '    File "/venv/x.py", line 3, in f', "      g()", "  ValueError: row 7 has no reply"]),
    "Ray Train V2's report alone": (
        "IndexError: token 5", [*TRACEBACK, "ray.train.v2.api.exceptions.WorkerGroupError: Training failed due to worker errors:",
        "[Rank 1 Error Snippet]:", *TRACEBACK, "IndexError: token 5"]),
    "a notebook's compiled function": ("KeyError: 'label'", [
        "KeyError                                  Traceback (most recent call last)", "File /venv/x.py:3, in Index.get_loc(self, key)",
        "      2 try:", "----> 3     return self._engine.get_loc(key)", "", "KeyError: 'label'"]),
    "an environment that was not set up": (
        "RuntimeError: Failed to install pip packages", [*TRACEBACK, "ray.exceptions.RuntimeEnvSetupError: Failed to set up runtime environment.",
        *TRACEBACK, "RuntimeError: Failed to install pip packages"]),
    "a message that begins below": (
        "RuntimeError: Error(s) in loading state_dict for Llama: size mismatch for lm_head.weight", [
            *TRACEBACK, "RuntimeError: Error(s) in loading state_dict for Llama:", "\tsize mismatch for lm_head.weight"]),
    "a worker of the data loader that is gone": (
        "RuntimeError: DataLoader worker (pid(s) 32166) exited unexpectedly", [*TRACEBACK, "ConnectionResetError: [Errno 104] Connection reset by peer",
        "", "The above exception was the direct cause of the following exception:", "", *TRACEBACK,
        "RuntimeError: DataLoader worker (pid(s) 32166) exited unexpectedly"]),
    "a class of its own": ("botocore.exceptions.NoCredentialsError: Unable to locate credentials", [
        *TRACEBACK, "botocore.exceptions.NoCredentialsError: Unable to locate credentials"]),
    "no message": ("AssertionError", [*TRACEBACK, "AssertionError"]),
    "pip spoke before": ("KeyError: 'x'", ["ERROR: pip's dependency resolver does not take into account", *TRACEBACK, "KeyError: 'x'"]),
    "nested wrappers": ("ValueError: mine", [
        *TRACEBACK, "ray.exceptions.RayTaskError(ValueError): ray::_Inner.train() (pid=1, ip=10.0.0.9)", *TRACEBACK[1:],
        "ray.exceptions.RayTaskError(ValueError): ray::W.get_next() (pid=2, ip=10.0.0.8)", *TRACEBACK[1:], "ValueError: mine", "",
        "The above exception was the direct cause of the following exception:", "", *TRACEBACK, "ray.train.base_trainer.TrainingFailedError: see"]),
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("worker", ["RayTrainWorker pid=7", None])
def test_tracebacks_of_every_making_are_read(tmp_path, name, worker):
    line, lines = OTHERS[name]
    path = log_of(tmp_path, *lines, worker=worker) if worker else tmp_path / "train.log"
    path.write_text(path.read_text() if worker else "\r\n".join(lines))  # and as Windows ends its lines
    said = explain(path)
    assert said.line == line and "/venv/x.py:3" in said.where


def test_the_exceptions_of_a_group_and_what_it_led_to_are_told():
    said = explain(FIXTURES / "failures" / "exception_group.log")
    assert said.around == ("with: ValueError: row 3 has no label", "with: KeyError: 'messages'", "then: RuntimeError: the data was not loaded")


@pytest.mark.parametrize("report", ["Ray Train V2's report alone", "torchrun's report of a program that records its errors"])
def test_the_worker_is_taken_from_a_report_where_no_line_has_it(tmp_path, report):
    (tmp_path / "train.log").write_text("\n".join(OTHERS[report][1]))
    assert explain(tmp_path / "train.log").where == "/venv/x.py:3, in f, worker rank1"


def test_a_log_of_a_container_has_times_before_every_line(tmp_path):
    path = log_of(tmp_path, WORDS, *TRACEBACK, "ValueError: no", worker="RayTrainWorker pid=7")
    path.write_text("".join(f"2026-11-26T17:00:00.123456789Z {line}" for line in path.read_text().splitlines(keepends=True)))
    assert explain(path).line == "ValueError: no" and explain(path).where == "/venv/x.py:3, in f, worker 7"
    path.write_text(re.sub(r"\x1b\S*\(.*?\)\x1b\S* ", "", path.read_text()))
    assert explain(path).line == "ValueError: no" and explain(path).where == "/venv/x.py:3, in f"


@pytest.mark.parametrize("begin", ["2026-11-26T17:00:00.1Z stderr F ", "trainer-1  | ", "[1,0]<stderr>:", "1: ", "node-1: ", "[2026-11-26 17:00:00] ",
                                   "Nov 26 17:00:00 gpu-1 python[4711]: ", "2026-11-26T17:00:00+0100 gpu-1 python[4711]: ", "[pod/ray-worker-ab12/ray-worker] ",
                                   "2026-11-26 17:00:00.928 | INFO     | __main__:run:30 - ", "[default1]:", "2026-11-26 17:00:00,928 - INFO - ",
                                   "[1,mpirank:0,algo-1]<stderr>:"])
@pytest.mark.parametrize("name", ["torchrun_assertion", "tokenizer_missing", "raylet_killed"])
def test_what_a_scheduler_puts_before_every_line_is_passed_over(tmp_path, name, begin):
    cause, line, where = FAILURES[name]
    text = (FIXTURES / "failures" / f"{name}.log").read_text()
    (tmp_path / "train.log").write_text("[INFO] [runner.py:605:main] cmd = pdsh\n" + "".join(begin + line for line in text.splitlines(keepends=True)))
    said = explain(tmp_path / "train.log")
    assert said.name == cause and line in said.line and where in said.where


@pytest.mark.parametrize("begin", ["2026-11-26 17:00:0{},1 - ERROR - ", "[2026-11-26, 17:00:0{} UTC] {{subprocess.py:93}} INFO - ",
                                   "train\tRun\t2026-11-26T17:00:0{}.1Z ", "(kto-train, rank=1, pid=4711) ", "INFO 2026-11-26T17:00:0{}.1Z "])
def test_the_words_of_a_logger_before_each_line_of_a_traceback_are_passed_over(tmp_path, begin):
    logged = [begin.format(at) + line for at, line in enumerate([*TRACEBACK, "KeyError: 'x'"])]
    (tmp_path / "train.log").write_text("\n".join(["loading model", WORDS, *logged, "bye"]))
    assert explain(tmp_path / "train.log").line == "KeyError: 'x'" and "/venv/x.py:3, in f" in explain(tmp_path / "train.log").where


def test_a_process_that_was_terminated_is_told_with_its_last_words(tmp_path):
    said = explain(log_of(tmp_path, "terminate called after throwing an instance of 'c10::Error'", "  what():  CUDA error: out of memory"))
    assert said.name == "a GPU ran out of memory" and "what():" in said.around[0]


def test_a_death_that_the_training_survived_is_no_cause(tmp_path):
    helper = "(raylet) A worker died or was killed while executing a task by an unexpected system error."
    assert explain(log_of(tmp_path, helper, *[WORDS] * 5, *TRACEBACK, "KeyError: 'x'")).name == "KeyError"


PIECES = [*TRACEBACK, "ValueError: x", "", "inputs:", "label_ids:", "labels:", WORDS, END, "The above exception was the direct cause", "Killed",
          "E1126 failed (exitcode: -9) local_rank: 1", "(raylet) A worker died or was killed", "Started a local Ray instance", "(", "|", "╭─ Traceback"]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(PIECES) | st.text(max_size=20), max_size=30))
def test_no_log_whatever_makes_the_explanation_raise(tmp_path_factory, pieces):
    path = tmp_path_factory.getbasetemp() / "any.log"
    path.write_bytes("\n".join(pieces).encode("utf-8", "replace"))
    assert str(explain(path))


@pytest.mark.parametrize("unsaid", ["marked dead", "Raylet is terminated", "marked dead|Raylet is terminated"])
def test_a_lost_node_is_told_whichever_of_rays_words_reached_the_log(tmp_path, unsaid):
    """Of a worker that prints on for windows after its node's raylet was killed."""
    lines = (FIXTURES / "failures" / "raylet_killed.log").read_text().splitlines(keepends=True)
    (tmp_path / "train.log").write_text("".join(line for line in lines if not re.search(unsaid, line)))
    assert explain(tmp_path / "train.log").name == "a node was lost"


def test_the_reason_of_a_lost_worker_is_told_by_others_later_and_a_reason_in_its_own_words_comes_first(tmp_path):
    died = "(raylet) A worker died or was killed while executing a task by an unexpected system error."
    assert explain(log_of(tmp_path, died, PUBLIC["a node ran out of memory"][1])).name == "a node ran out of memory"
    guess = "The actor is dead. There are some potential root causes. (1) The process is killed by SIGKILL by OOM killer (2) SIGSEGV"
    assert explain(log_of(tmp_path, *TRACEBACK, PUBLIC["a worker was lost"][3], guess)).name == "a worker was lost"
    watchdog = [PUBLIC["the workers lost each other"][1], "terminate called after throwing an instance of 'c10::DistBackendError'",
                "Fatal Python error: Aborted", "E1123 api.py:1002] failed (exitcode: -6) local_rank: 0 (pid: 124)"]
    assert explain(log_of(tmp_path, *watchdog)).name == "the workers lost each other"
