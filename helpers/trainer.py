"""Run LLaMA-Factory's training on Ray Train: the one process that every profile launches.

`python -m helpers.trainer config.yaml` does what `USE_RAY=1 llamafactory-cli train config.yaml` does, on Ray Train V1 and V2. Beyond
that, a checkpoint is copied when every worker has written its part, a lost worker or node is replaced and training resumes exactly from
the newest complete checkpoint, and tokens reach the workers in memory instead of `env_vars`, which Ray logs.
"""

import argparse
import hashlib
import logging
import os
import signal
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from kto_accelerator.enable import OURS

from . import checkpoints, choose, cluster, files, own_yaml, secrets
from .errors import KitError
from .resume_exactly import install as install_exact_resume

RAY_KEYS = ("ray_run_name", "ray_storage_path", "ray_storage_filesystem", "ray_num_workers", "resources_per_worker",
            "placement_strategy", "ray_init_kwargs")
"""What LLaMA-Factory 0.9.3 and 0.9.4 take as RayArguments and this module takes itself; 0.9.5 refuses four of them."""


def main() -> None:
    words = argparse.ArgumentParser(prog="python -m helpers.trainer", description=__doc__.partition("\n")[0])
    words.add_argument("config", type=Path, help="LLaMA-Factory's YAML")
    words.add_argument("--retries", type=int, default=2, help="times that lost workers are replaced before training fails")
    words.add_argument("--accelerated", choices=("auto", "true", "false"), default="false",
                       help="with kto_accelerator's trainer: where it is proved, in any case, or never")
    words.add_argument("--end-with-stdin", action="store_true", help="end when standard input closes")
    given = words.parse_args()
    secrets.load()
    try:
        config = files.read_yaml(given.config)
        own_yaml.refuse_unfinished(config)
    except KitError as error:
        sys.exit(f"error: {error}")
    try:  # the lock is held by the process that trains: it is free when that is gone, however it went
        with FileLock(given.config.resolve().parent / "train.lock", timeout=2):
            if given.end_with_stdin:
                threading.Thread(target=end_with_stdin, daemon=True).start()
            trainer_for(config, given.retries, given.accelerated).fit()
    except Timeout:
        sys.exit(f"{given.config.parent.name} is being trained at this moment: one launch of a run at a time")


def end_with_stdin() -> None:
    """When nobody holds the other end of standard input: SIGTERM, which Ray answers by ending its processes in order."""
    while os.read(0, 1024):  # not sys.stdin: Python could not close that at its end while this thread reads it
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(8)
    os._exit(128 + signal.SIGTERM)  # the kernel then ends what Ray started on this machine


def trainer_for(config: dict, retries: int, accelerated: str):
    """The TorchTrainer of a LLaMA-Factory config, in a Ray that is connected as `ray_init_kwargs` says."""
    connect(config.get("ray_init_kwargs") or {})
    from ray import train
    from ray.train.torch import TorchTrainer

    workers, each = config.get("ray_num_workers", 1), config.get("resources_per_worker") or {"GPU": 1}
    storage, name = config.get("ray_storage_path", "./saves"), config.get("ray_run_name")
    bucket = config.get("ray_storage_filesystem")
    storage = storage if bucket else os.path.abspath(storage)
    reference = "" if bucket else f"{storage}/reference"
    # Each launch has a folder, <ray_storage_path>/<ray_run_name>/TorchTrainer_…: Train V1 makes it by itself, V2 would continue from
    # the newest checkpoint of an earlier launch of the same name.
    if ".v2." in TorchTrainer.__module__:
        storage, name = f"{storage}/{name}" if name else storage, f"TorchTrainer_{time.strftime('%Y-%m-%d_%H-%M-%S')}_{os.getpid()}"
    # What a reader of the log needs to know; Train V2 prints nothing of the config.
    facts = {key: value for key, value in config.items() if isinstance(value, int | float) or key == "model_name_or_path"}
    for key, value in ({"world_size": workers} | facts).items():
        print(f"[kto] {key}: {value}", flush=True)
    fresh = not list(Path(config.get("output_dir") or ".").glob("checkpoint-*"))
    return TorchTrainer(
        train_loop,
        train_loop_config={"args": config, "fresh": fresh, "accelerated": accelerated, "reference": reference},  # V1: params.json
        scaling_config=train.ScalingConfig(num_workers=workers, use_gpu=bool(each.get("GPU")), resources_per_worker=each,
                                           placement_strategy=config.get("placement_strategy", "PACK")),
        run_config=train.RunConfig(name=name, storage_path=storage,
                                   storage_filesystem=files.bucket_filesystem(bucket) if bucket else None,
                                   failure_config=train.FailureConfig(max_failures=retries)),
    )


def connect(kwargs: dict) -> None:
    """ray.init, with what every worker process does first (worker_setup)."""
    address = kwargs.get("address") or os.environ.get("RAY_ADDRESS") or "local"
    if address == "local":
        os.environ.setdefault(*cluster.LOOPBACK)
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")  # Ray would merge the workers' lines, and with them steps
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")  # Train V2 would print some lines twice
    import ray
    from ray.tune.execution import class_cache

    class_cache.ENV_VARS_TO_PROPAGATE -= set(secrets.TRAVELLING)  # Ray Tune would write them into env_vars, which Ray logs
    environment = cluster.environment(address, kwargs.get("runtime_env"))
    environment["worker_process_setup_hook"] = worker_setup(secrets.carried(), address != "local")
    ray.init(**{**kwargs, "runtime_env": environment})


def worker_setup(tokens: dict[str, str], on_cluster: bool):
    """The first thing that a worker process does (Ray's worker_process_setup_hook): `tokens` into its environment."""

    def prepare_worker():
        os.environ.update(tokens)
        # From Ray 2.60 on Train asks the dashboard whether its controller is alive; without one it would log a warning a second.
        logging.getLogger("ray.train.v2._internal.execution.controller.placement_group_cleaner").setLevel(logging.ERROR)
        # On a cluster gloo is told by which interface Ray reaches the node: it would take the one that the machine's own name
        # leads to, which on many (Debian's /etc/hosts) is the loopback, where no other node answers.
        if on_cluster and "GLOO_SOCKET_IFNAME" not in os.environ:
            import psutil
            import ray

            address = ray.util.get_node_ip_address()
            for interface, known in psutil.net_if_addrs().items():
                if any(one.address == address for one in known):
                    os.environ["GLOO_SOCKET_IFNAME"] = interface

    return prepare_worker


def train_loop(config: dict) -> None:
    """What each worker runs: LLaMA-Factory's training function, from the newest checkpoint where this is a restart."""
    os.environ["USE_RAY"] = "1"
    from llamafactory.hparams import TrainingArguments
    from llamafactory.train import tuner
    from ray import train

    first = train.get_context().get_world_rank() == 0
    args = {key: value for key, value in config["args"].items() if key not in RAY_KEYS}
    if config["fresh"] and "overwrite_output_dir" in TrainingArguments.__dataclass_fields__:
        args["overwrite_output_dir"] = True  # else a restart would take up a checkpoint that this launch left half written
    # From the newest complete checkpoint of this launch, of which Ray may not know where it was the last before a kill.
    storage, start = train.get_context().get_storage(), str(args.get("resume_from_checkpoint") or "")
    launch = storage.trial_fs_path if getattr(storage, "trial_dir_name", "") else storage.experiment_fs_path  # Train V1, V2
    if (kind := storage.storage_filesystem.type_name) != "local":
        launch = f"{kind}://{launch}"
    with suppress(KitError):  # the folder is made with the first checkpoint
        start = next((str(item.path) for item in reversed(checkpoints.find(launch)) if item.complete), start)
    if start:
        args["resume_from_checkpoint"] = fetched(start, launch) if "://" in start else start
        install_exact_resume()
        if first:
            print(f"[kto] resume_from_checkpoint: {args['resume_from_checkpoint']}", flush=True)
    if args.get("stage") == "kto":
        from kto_accelerator import everyone

        everyone.install()
    ours = {key: args.pop(key) for key in OURS if key in args}
    asked, taken = config["accelerated"], False
    os.environ.setdefault("KTO_REFERENCE_DIR", config["reference"])  # the accelerator's; shared by every run on this storage
    if asked != "false":  # kto_accelerator's trainer; with `auto` where it is proved
        import kto_accelerator

        proved, why = kto_accelerator.supports(args | ours, kto_accelerator.shape_of(args, hub=True))
        if taken := proved or asked == "true":
            kto_accelerator.install(**ours)
        if first:
            print(f"[kto] trainer {'kto_accelerator' if taken else 'of LLaMA-Factory, for ' + why}", flush=True)
    if not taken and OURS | ours != OURS:
        raise RuntimeError(f"LLaMA-Factory's own trainer does not know {ours}\n  expected: loss: kto, fp8: false\n"
                           "  fix:      --accelerated=true")
    tuner._training_function({"args": args, "callbacks": [report_callback()]})


def fetched(address: str, launch: str) -> str:
    """The folder of a checkpoint at an address such as s3://…: a copy, made once on each node in each launch."""
    name = hashlib.sha256(f"{launch} {address}".encode()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir(), f"kto-checkpoint-{os.getuid()}-{name}")
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            choose.fetch(choose.latest(checkpoints.find(address))[0], folder)
    return str(folder)


def report_callback():
    """A TrainerCallback that gives each save to Ray Train, laid out as Ray's own does (`checkpoint/` inside).

    Ray's own copies `checkpoint-N` in each worker as soon as that worker's part is written, while others may still be writing theirs.
    """
    import torch.distributed
    from ray import train
    from transformers import TrainerCallback

    class Report(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            if torch.distributed.is_initialized():
                torch.distributed.barrier()
            metrics = {key: value for logged in state.log_history for key, value in logged.items()}
            if train.get_context().get_local_rank():  # a node's first worker copies the whole folder
                return train.report(metrics)
            with tempfile.TemporaryDirectory() as folder:
                os.symlink(f"{os.path.abspath(args.output_dir)}/checkpoint-{state.global_step}", f"{folder}/checkpoint")
                train.report(metrics, checkpoint=train.Checkpoint.from_directory(folder))

    return Report()


if __name__ == "__main__":
    main()
