"""A failed training in three lines: what happened, why it usually does, what to do; with the log's decisive line."""

import re
import shutil
from pathlib import Path
from typing import NamedTuple

TAIL = 400_000
"""Bytes from the end of the log that are searched: a failure and its tracebacks stand last."""


FULL = 1 << 20
"""Bytes of free disk below which it is full."""


class Cause(NamedTuple):
    """A kind of failure: the pattern of its decisive line, why it happens, what to do (in this order)."""

    name: str
    pattern: str
    why: str
    do: str


CAUSES = [  # of what is found in a log the first counts: what comes later is what it leads to
    Cause(
        "the disk is full",
        r"No space left on device|Errno 28|Disk quota exceeded",
        "checkpoints hold the optimiser too and are written twice (output/ and Ray's copy)",
        "free space, or another `storage`; then save less often (save_steps) or keep fewer (save_total_limit)",
    ),
    Cause(
        "the storage became read-only",
        r"Read-only file system|Errno 30",
        "a disk with errors, or a share that lost its server, is put into this state",
        "make it writable again, or another `storage`; then go on from the last complete checkpoint: notebook 5, `resume`",
    ),
    Cause(
        "a GPU ran out of memory",
        r"CUDA out of memory|torch\.OutOfMemoryError|torch\.cuda\.OutOfMemoryError",
        "activations and the float32 logits grow with rows x tokens x vocabulary",
        "in this order: per_device_train_batch_size down and gradient_accumulation_steps up; cutoff_len down; "
        "disable_gradient_checkpointing: false; enable_liger_kernel: true; quantization_bit: 4",
    ),
    Cause(
        "a node ran out of memory",
        r"running low on memory|due to memory pressure \(OOM\)|killed by the OOM killer|Cannot allocate memory|OutOfMemoryError: Task was killed",
        "each worker loads the model once into the node's own memory",
        "fewer workers on a node, a node with more memory, or preprocessing_num_workers down",
    ),
    Cause(
        "the model is gated",
        r"GatedRepoError|gated repo\b|Access to model .* is restricted|401 Client Error|403 Client Error",
        "the hub gives this model only to accounts that accepted its licence",
        "accept it on the model's page, then set HF_TOKEN in the environment (never in a file)",
    ),
    Cause(
        "the model was not found",
        r"is not a local folder and is not a valid model identifier|RepositoryNotFoundError|couldn't connect to 'https://huggingface\.co'|LocalEntryNotFoundError",
        "a slip in model_name_or_path, or no way to the hub from the workers",
        "correct model_name_or_path, or give a folder that every node sees",
    ),
    Cause(
        "the dataset was not read",
        r"Undefined dataset|Cannot find valid samples|DatasetGenerationError|Cannot open .*dataset_info\.json|File .* not found\.",
        "the registry or the file is not where the workers look, or no row is valid",
        "run 02_data again with the same run_name, on storage that every node sees",
    ),
    Cause(
        "MLflow could not be reached",
        r"MlflowException|api_token not set|Failed to (?:connect|reach).*mlflow|mlflow.*(?:Connection refused|Max retries)",
        "report_to: mlflow logs from inside the training and ends it when the server is away",
        "report_to: none (this project sends the same figures itself, outside the training), or start the server",
    ),
    Cause(
        "a node was lost",
        r"has been marked dead|its node has died|node was terminated unexpectedly|NodeDiedError|Raylet is terminated",
        "the machine went away or froze: spot capacity taken back, its memory, its network",
        "go on from the last complete checkpoint when there are nodes enough again: the same run_name with --resume auto",
    ),
    Cause(
        "a worker was lost",
        r"ActorDiedError|ActorUnavailableError|WorkerCrashedError|The actor (?:is dead|died)|worker died|SIGKILL|raylet.*(?:died|terminated)|RayActorError",
        "ended from outside: with its node, for memory, or by hand",
        "see whether the node is there, and its memory; then go on from the last complete checkpoint: notebook 5, `resume`",
    ),
    Cause(
        "the workers lost each other",
        r"NCCL (?:error|timeout|WARN)|ncclInternalError|Watchdog caught collective operation timeout|gloo.*(?:Timed out|Connection (?:closed|reset))|Connection closed by peer|Timed out waiting .*ms for",
        "a worker died or hung, or the nodes' network blocks the workers' ports",
        "look for the first worker's own error above; ddp_timeout bounds the wait; NCCL_DEBUG=INFO says more",
    ),
    Cause(
        "an older Ray instance was found",
        r"num_cpus and num_gpus must not be provided",
        "a launch that was killed left its Ray running, and this one joined it",
        "end it (ray stop, if it is yours), or set ray_init_kwargs: {address: local}",
    ),
]


class Explanation(NamedTuple):
    """`name`, `why`, `do` of the cause; `line`, the decisive line of the log (shortened to 300 characters)."""

    name: str
    why: str
    do: str
    line: str

    def __str__(self) -> str:
        return f"{self.name}: {self.line}\n  why:      {self.why}\n  fix:      {self.do}"


def explain(log: Path) -> Explanation:
    """The cause of a failed training, from the end of its log; the last error's own words where the cause is unknown."""
    lines = readable(log)
    full = shutil.disk_usage(log.parent).free < FULL
    for cause in CAUSES:
        pattern = re.compile(cause.pattern)
        line = next((line for line in lines if pattern.search(line)), "")
        if full and cause is CAUSES[0]:  # then the log may end before the line that says so
            line = line or f"{log.parent} has no space left"
        if line:
            return Explanation(cause.name, cause.why, cause.do, line[:300])
    errors = [line for line in lines if re.match(r"(?:[\w.]+\.)?\w*(?:Error|Exception|Interrupt)\b", line)]
    last = (errors or lines or ["nothing was printed"])[-1]
    return Explanation(
        "the training failed", "not one of the known causes", "read the log from its end upwards", last[:300]
    )


def readable(log: Path) -> list[str]:
    """The log's last lines without colours, progress bars and Ray's prefixes."""
    with open(log, "rb") as file:
        file.seek(0, 2)
        file.seek(max(0, file.tell() - TAIL))
        text = file.read().decode(errors="replace")
    text = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", text)
    lines = (line.rpartition("\r")[2] for line in text.splitlines())
    stripped = (re.sub(r"^\(\w[^)]*pid=\d+[^)]*\) ?", "", line).strip() for line in lines)
    return [line for line in stripped if line]
