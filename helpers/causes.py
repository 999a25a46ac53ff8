"""Known failures: the pattern of their log line, why they happen, how to fix them."""

import re
from typing import NamedTuple

DEATH = re.compile(  # how others report a process that could print nothing more
    r"A worker died or was killed|actor (?:is dead|died)|Actor(?:Died|Unavailable)Error|WorkerCrashedError|^Fatal Python error"
    r"|(?:^|: +(?:\d+ )?)(?:Killed|Segmentation fault|Bus error|Aborted|Illegal instruction|Floating point exception|Out Of Memory)\b"
    r"|^zsh: (?:killed|segm|abort|bus)|SIG(?:SEGV|BUS|ABRT|KILL|FPE|ILL) received|is killed by signal|exited on signal \d"
    r"|(?:exitcode\s*:|return code =) -(?!15\b)\d+|exit code 13[2-9]|code=killed|job killed|[Oo]ut of memory: Killed|by the OOM killer"
    r"|oom[-_]kill|OOMKilled|earlyoom.* sending SIG|memory pressure|running low on memory|low on resource|storage usage exceeds"
    r"|marked dead|[Rr]aylet.*(?:died|terminated)|node has died|NodeDiedError|memory allocation of \d+ bytes failed"
    r"|terminate called after|what\(\): |DUE TO TIME LIMIT|[Ww]atchdog (?:caught collective|got stuck)|abruptly died"
    r"|terminated abruptly|Failed to connect to GCS")
NOT_FOUND = r"(?:command|: \d+: \S+:) not found"  # bash's and dash's words
SPOKEN = re.compile(  # errors that programs print without a traceback
    NOT_FOUND + r"|^docker: Error|: No module named |can't open file|^\S+: error: |^ *ERROR: |^Error(?:: | .* in file )|symbol lookup error"
    r"|^[\w./-]+: .*: (?:Permission denied|No such file or directory|No space left on device|Read-only file system)$")
RAYLET_GONE = re.compile(r"Raylet is terminated|marked dead|node has (?:died|crashed)")
LOST_PEER = re.compile(
    r"Connection (?:closed|reset|refused)|Broken pipe|remote process exited|Timed out waiting|Socket Timeout|NCCL error"
    r"|closed by peer|DistBackendError|DistNetworkError|heartbeat\b|Application timeout|ncclRemoteError|DistStoreError")
WAITING = re.compile(
    r"No available node types|Failed to launch .* node|nodes are available: |has not started in the last|insufficient cluster resources"
    r"|cannot be scheduled right now|Waiting for .*(?:resources|nodes|workers)|waiting for resources|client socket has timed out|failed to connect.*retrying")
QUESTION = re.compile(r"(?:choice|key|[Pp]assword|token|\[[Yy]/[Nn]\])[^:?]*[:?]? *$")
STOPPED = re.compile(
    r"SIGTERM received|[Rr]eceived SIGTERM|being preempted|exit code 143|sending signal TERM|(?:^|: (?: ?\d+ )?)[Tt]erminated(?:$| )")
REPORT = re.compile(r"(?:failed \(exitcode:|exits with return code =) (-?)(?!0)\d+(?:\) local_rank: (\d+))?")
START = re.compile(
    r"Started (?:a local Ray instance|distributed worker processes|training worker group of)|Connected to Ray cluster")
FINISHED = re.compile(r"\{'train_runtime'|Training completed after|\*\*\*\*\* train metrics|RUNNING -> FINISHED")
NO_CAUSE = re.compile(r"WARN|[Ww]arning:|^\[W\d|Exception ignored|atexit|future: <Task|Logging error|DEBUG|\bretry(?:ing)?\b|: ignored")
ASIDE = re.compile(r"Assertion .* failed|\bERROR\b(?!.* tun\w+\.py)|CUDA error|FATAL")  # belongs to what follows
GUESSES = re.compile(r" (?:There are some potential root causes|Possible reasons include|This can happen when).*")  # Ray's lists


class Cause(NamedTuple):
    name: str
    pattern: str
    why: str
    fix: str


GO_ON = "go on from the last complete checkpoint: the same run_name with --resume auto"
CAUSES = [
    Cause("the home folder is read-only",
          r"(?:Read-only file system|Errno 30|Permission denied).*(?:/\.cache|/\.triton|/\.config|HOME)",
          "the libraries keep caches in HOME, which cannot be written here",
          "set HF_HOME, HF_DATASETS_CACHE and TRITON_CACHE_DIR to folders on the storage"),
    Cause("the storage became read-only", r"Read-only file system|Errno 30",
          "a disk with errors, or a share that lost its server, is put into this state",
          f"make it writable again, or another `storage`; then {GO_ON}"),
    Cause("shared memory is full",
          r"/dev/shm|No space left on device at \S*multiprocessing|unable to (?:open|write to|mmap).*torch_"
          r"|shm.*No space left|[Bb]us error|SIGBUS|code[ =:]+-7\b|exit code 135|insufficient shared memory",
          "data loader workers and NCCL hand over batches in /dev/shm; a container gives it 64 MB",
          "give the container more (--shm-size, an emptyDir of medium Memory), or dataloader_num_workers: 0"),
    Cause("the disk is full",
          r"No space left on device|Errno 28\](?! inotify)|Disk quota exceeded|StorageFull|PytorchStreamWriter failed"
          r"|file write failed|ephemeral[- ](?:local )?storage", "checkpoints hold the optimiser too and are written twice (output/ and Ray's copy)",
          "free space, or another `storage`; then save less often (save_steps) or keep fewer (save_total_limit)"),
    Cause("a GPU ran out of memory",
          r"(?:CUDA|HIP|XPU|NPU|MPS backend) out of memory|CUDA error: out of memory|CUBLAS_STATUS_ALLOC_FAILED|Cuda failure .*out of memory",
          "activations and the float32 logits grow with rows x tokens x vocabulary",
          "in this order: per_device_train_batch_size down, gradient_accumulation_steps up; cutoff_len down; "
          "disable_gradient_checkpointing: false; enable_liger_kernel: true; quantization_bit: 4"),
    Cause("a node ran out of memory",
          r"running low on memory|memory pressure|[Oo]ut of memory: Killed|Out Of Memory|by the OOM killer|oom[-_]kill|OOMKilled|earlyoom|TERM_MEMLIMIT"
          r"|bytes failed|bad_alloc|Cannot allocate memory|can't allocate memory|MemoryError|low on resource: memory",
          "each worker loads the model once into the node's own memory",
          "fewer workers on a node, a node with more memory, or preprocessing_num_workers down"),
    Cause("a token id lies outside the embedding",
          r"index out of range in self|srcIndex < srcSelectDimSize|vectorized_gather_kernel.*index out",
          "the template or tokenizer adds tokens that the model's embedding has no rows for",
          "the model's own `template` and tokenizer; resize_vocab: true only where new tokens are meant"),
    Cause("no GPU can be used",
          r"NVIDIA driver|driver version is insufficient|driver/library version mismatch|No CUDA GPUs|no GPUs found|doesn't support bf16"
          r"|no CUDA-capable|0 active drivers|cudaGetDeviceCount|CUDA unknown error|could not select device driver|not compiled with CUDA"
          r"|invalid device ordinal|devices are busy|system not yet initialized",
          "the worker sees no free GPU, or fewer than it was started for, or its driver does not fit this torch",
          "resources_per_worker: {GPU: 1}, a matching driver (nvidia-smi); without a GPU bf16: false, fp16: false"),
    Cause("a CUDA kernel failed",
          r"device-side assert|illegal memory access|no kernel image|CUDA error|cuDNN error|CUDNN_STATUS|CUBLAS_STATUS",
          "a wrong index or label, a build for other GPUs, or a GPU with a fault",
          "CUDA_LAUNCH_BLOCKING=1 once: the traceback then ends at the operation; nvidia-smi -q shows a GPU's faults"),
    Cause("the adapter was not found", r"Can't find 'adapter_config\.json'",
          "adapter_name_or_path names a folder that is not there, or no adapter", "correct it; the folder must be one that every node sees"),
    Cause("the model was not found",
          r"is not a local folder and is not a valid model identifier|RepositoryNotFoundError|404 Client Error.*(?:hugg|hf[-.])"
          r"|HFValidationError|Error no file named|does not appear to have a file named|Incorrect path_or_model_id|Unrecognized model",
          "a slip in model_name_or_path, or a folder without config.json and weights",
          "correct model_name_or_path, or give a folder that every node sees; a private model needs HF_TOKEN in the environment"),
    Cause("the model is gated", r"GatedRepoError|gated repo\b|Access to model .* is restricted",
          "the hub gives this model only to accounts that accepted its licence",
          "accept it on the model's page, then set HF_TOKEN in the environment (never in a file)"),
    Cause("the hub refuses the token", r"40[13] Client Error.*(?:hugg|hf|/resolve/)|Invalid user token",
          "HF_TOKEN is missing, has expired, or may not read (or write) this",
          "a new token with that right, in HF_TOKEN in the environment (never in a file)"),
    Cause("HF_ENDPOINT is no address", r"(?:MissingSchema|InvalidURL|InvalidSchema|UnsupportedProtocol).*|Invalid URL",
          "a placeholder or a slip in HF_ENDPOINT (or another address) was taken as it stands",
          "unset HF_ENDPOINT, or give a whole address: https://…"),
    Cause("MLflow could not be reached",
          r"MlflowException|api_token not set|Failed to (?:connect|reach).*mlflow|mlflow.*(?:Connection refused|Max retries)",
          "report_to: mlflow logs from inside the training and ends it when the server is away",
          "report_to: none (this project sends the same figures itself, outside the training), or start the server"),
    Cause("the hub cannot be reached",
          r"couldn't connect to 'https?://|LocalEntryNotFoundError|OfflineModeIsEnabled|outgoing traffic has been disabled"
          r"|Cannot reach https://hugg|CAS service error|(?:hugg|hf[-.]).*(?:Max retries exceeded|[Tt]imed out|ProxyError)"
          r"|(?:Max retries exceeded|ProxyError|50\d Server Error).*(?:hugg|hf[-.])",
          "no network from the workers, or HF_HUB_OFFLINE=1 with a model that is not in the cache",
          "model_name_or_path: a folder that every node sees, or a way to the hub (HF_ENDPOINT, a proxy, SSL_CERT_FILE)"),
    Cause("the hub was asked too often", r"(?:429 Client Error|Too Many Requests).*(?:hugg|hf[-.])",
          "the hub limits the requests of an address; with an account the limit is higher",
          "HF_TOKEN in the environment; or download the model once, and give every node the folder"),
    Cause("wandb is not ready", r"api_key not configured|No API key configured|requires wandb to be installed",
          "report_to: wandb, or all (transformers' own default) where wandb is installed",
          "report_to: none; or install it, with WANDB_API_KEY in the environment (WANDB_MODE=offline keeps it here)"),
    Cause("the repository brings code of its own", r"trust_remote_code=True",
          "the model's or dataset's repository has Python files that would be run here",
          "read them; then trust_remote_code: true, or a model that transformers knows, or data as files"),
    Cause("the tokenizer is missing", r"Can't load tokenizer|model_file or model_proto must be|Failed to load tokenizer"
          r"|Unable to load vocabulary", "the model's folder has weights but no tokenizer.json (or tokenizer.model)",
          "copy tokenizer.json, tokenizer_config.json and special_tokens_map.json beside the weights"),
    Cause("the model is of an unknown kind",
          r"does not recognize this architecture|Unrecognized configuration class|Unknown model type|Tokenizer class \S+ does not exist",
          "this version of transformers does not know the model",
          "another model, or the newer stack: see the requirements files"),
    Cause("a weights file is damaged",
          r"SafetensorError|incomplete metadata|invalid header|InvalidHeader|HeaderTooLarge"
          r"|PytorchStreamReader failed|UnpicklingError(?!: Weights only)|unexpected EOF",
          "a download or a copy that was cut off, or a pointer file of Git LFS instead of the weights",
          "fetch the file anew; for a checkpoint take the one before: notebook 5 says which are complete"),
    Cause("the adapter does not fit the model",
          r"[Tt]arget modules .* not found|size mismatch for base_model|loading state_dict for Peft",
          "lora_target names no layer of this model, or the adapter was trained on another model",
          "lora_target: all, or the model's own layer names; for an adapter the base model it was trained on"),
    Cause("the weights do not fit the model's config.json", r"size mismatch for|Error\(s\) in loading state_dict",
          "config.json is of another model, or of another size of it, than the weights beside it",
          "fetch config.json and the weights of one revision anew"),
    Cause("the checkpoint was not found",
          r"Can't find a valid checkpoint|No valid checkpoint found|resume_from_checkpoint.*not",
          "resume_from_checkpoint names a folder that is not there or not complete",
          "kto checkpoints RUN lists the complete ones; --resume auto takes the last"),
    Cause("the template is unknown", r"Template \S+ does not exist", "`template` is none of LLaMA-Factory's names",
          "correct `template`; notebook 1 names the one that fits the model"),
    Cause("a setting is unknown",
          r"not used by the HfArgumentParser|unrecognized arguments|(?:Arguments|(?<!Lora)Config)\.__init__\(\) got an unexpected|extra keys",
          "a slip in a key of the config, or a key of another version",
          "correct the key; notebook 3 checks a config before anything is started"),
    Cause("the metric that chooses the best checkpoint is not logged", r"metric_for_best_model",
          "KTO's evaluation returns eval_loss, eval_rewards/… and kl, and no accuracy",
          "metric_for_best_model: eval_loss (or eval_rewards/margins), or load_best_model_at_end: false"),
    Cause("saves and evaluations do not fit each other", r"load_best_model_at_end requires",
          "the best checkpoint is chosen by its evaluation, so each save needs one",
          "save_strategy as eval_strategy and save_steps a multiple of eval_steps, or load_best_model_at_end: false"),
    Cause("DeepSpeed and the learning rate's schedule disagree",
          r"zip\(\) argument 2 is (?:longer|shorter) than argument 1",
          "DeepSpeed 0.16.9 drops LoRA's empty parameter group, while torch 2.13's scheduler still counts two",
          "LoRA without DeepSpeed, or full tuning with it"),
    Cause("half-precision weights cannot be trained with fp16", r"Attempting to unscale FP16 gradients",
          "fp16: true needs float32 weights to train; these were loaded as float16",
          "bf16: true, or upcast: pure_bf16: false and infer_dtype: auto; the model's torch_dtype: float32"),
    Cause("the dataset was not read",
          r"Undefined dataset|Cannot find valid samples|Cannot open .*dataset_info\.json|File .* not found\."
          r"|ArrowInvalid(?!: offset)|JSON parse error|CastError|DatasetGenerationError",
          "the registry or the file is not where the workers look, it is malformed, or no row is valid",
          "run 02_data again with the same run_name, on storage that every node sees"),
    Cause("too many files are open", r"Too many open files|Errno 24|ulimit -n",
          "the limit of open files is low and workers share tensors through files",
          "ulimit -n 65536 before the launch (on every node), or fewer workers"),
    Cause("a port is in use", r"EADDRINUSE|Address already in use|address already in use|port .* (?:is|already) in use",
          "another process, often an earlier launch, holds the port",
          "end it, or give another port (MASTER_PORT, --port)"),
    Cause("a path is too long for a socket", r"AF_UNIX path|path too long|path length cannot exceed",
          "Ray's sockets lie under TMPDIR, and a socket's path has at most 107 bytes", "a short TMPDIR: TMPDIR=/tmp"),
    Cause("a package was built for another machine",
          r"\.so[.\d]*: (?:cannot open|undefined symbol|version )|undefined symbol|version `\w+' not found",
          "compiled for another CUDA, torch or system than what is installed here",
          "install it again in the environment that trains, from the lock, on every node"),
    Cause("the workers' packages were not installed", r"No matching distribution|that satisfies the requirement|RuntimeEnvSetupError",
          "on a worker's node pip could not install what the profile's worker_packages (ray_init_kwargs: runtime_env: pip) asks for",
          "an index that every node reaches and that has it; or worker_packages: \"\" where the image has the packages"),
    Cause("a package has another version than is asked for",
          r"but found \S+==|Version mismatch: The cluster|untagged enum|\.dtype size changed|numpy\.core\.multiarray failed"
          r"|cannot import name (?!.*circular)|got an unexpected keyword argument.* at .*site-packages",
          "packages of different dates in one environment, or on the nodes of one cluster",
          "install the versions of the lock, on every node; notebook 1 compares the packages"),
    Cause("a package is missing",
          rf"{NOT_FOUND}|No module named|PackageNotFoundError|ImportError|required by this application|FileNotFoundError.* at .*subprocess",
          "this Python, or the workers', has not what the training imports or starts",
          "install it in the environment that trains, on every node; notebook 1 compares the packages"),
    Cause("an older Ray instance was found", r"num_cpus and num_gpus must not be provided",
          "a launch that was killed left its Ray running, and this one joined it",
          "end it (ray stop, if it is yours), or set ray_init_kwargs: {address: local}"),
    Cause("no Ray cluster was found", r"Could not find any running Ray instance|ray\.init\(address=.*ConnectionError"
          r"|Failed to connect to (?:Ray|GCS)", "nothing runs at that address, or it cannot be reached from here",
          "ray start --head there first; RAY_ADDRESS and the profile's address must be the cluster's"),
    Cause("a time limit ended it", r"DUE TO TIME LIMIT|DeadlineExceeded|killed: walltime|TERM_RUNLIMIT", "the scheduler's limit came first",
          f"a longer limit; then {GO_ON}"),
    Cause("stopped from outside", r"got signal: (?:1|2|15)\b|SignalException|CANCELLED AT(?!.*NODE FAIL)|code[ =:]+-15\b",
          "a time limit, a scheduler, or `kill`", GO_ON),
    Cause("stopped by hand", r"KeyboardInterrupt", "Ctrl-C, or the notebook's stop", GO_ON),
    Cause("something may not be read or written", r"(?<!DENIED: )Permission denied|PermissionError|Errno 13|ACCESS_DENIED|AccessDenied",
          "the worker runs as another user than the folder's, or its cloud key has not this right",
          "give the workers' user (or key) the folder, or another `storage`"),
    Cause("a file is not there", r"FileNotFoundError|No such file or directory",
          "a path that this worker does not see, or may not read",
          "the path must lie on storage that every node sees, readable for the workers' user"),
    Cause("a node was lost",
          r"marked dead|DUE TO NODE FAIL|node has (?:died|crashed)|node was terminated unexpectedly|NodeDiedError|Raylet is terminated",
          "the machine went away or froze: spot capacity taken back, its memory, its network",
          f"when there are nodes enough again, {GO_ON}"),
    Cause("a process crashed",
          r"[Ss]egmentation fault|SIG(?:SEGV|ABRT|ILL|FPE)|Aborted|zsh: abort|Fatal Python error|Illegal instruction|terminate called"
          r"|Floating point exception|code[ =:]+-(?:11|6|4|8)\b|exit code 13[2469]",
          "a fault in compiled code: packages built for another machine or for each other's other version",
          "compare the packages with the lock (notebook 1); the lines above name the last Python frames"),
    Cause("a worker ended without a word", r"failed \(exitcode: [1-9]|return code = [1-9]",
          "its program called exit, or printed its error elsewhere",
          "torchrun's log folder (--log-dir, --tee 3) has each worker's own output"),
    Cause("two workers share a GPU", r"Duplicate GPU detected", "more workers on a node than it has GPUs",
          "as many workers as GPUs: ray_num_workers with resources_per_worker: {GPU: 1}, or torchrun's --nproc_per_node"),
    Cause("the workers lost each other",
          r"NCCL (?:error|timeout|WARN)|nccl\w*Error|[Ww]atchdog (?:caught|got stuck)|gloo.*(?:[Tt]imed? ?out|Connection)|hanging for"
          r"|Connection (?:closed|reset) by peer.* at .*distributed|Timed out waiting|Dist(?:Network|Store)Error|Rendezvous\w+Error"
          r"|Application timeout|Socket Timeout|wait timeout",
          "a worker died or hung, or the nodes' network blocks the workers' ports",
          "look for the first worker's own error above; ddp_timeout bounds the wait; NCCL_DEBUG=INFO says more"),
    Cause("a worker was lost", rf"{DEATH.pattern}|RayActorError|worker died|exited unexpectedly|SIGKILL|code[ =:]+-9",
          "ended from outside: with its node, for memory, or by hand",
          f"see whether the node is there, and its memory; then {GO_ON}"),
]


def cause_of(texts: list[str]) -> Cause | None:
    """The first cause with a pattern that one of these texts fits."""
    return next((cause for cause in CAUSES if any(re.search(cause.pattern, text) for text in texts)), None)
