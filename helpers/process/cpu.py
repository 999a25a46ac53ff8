"""llamafactory-cli for machines without a GPU: the stock command with two names replaced.

LLaMA-Factory 0.9.3 writes `use_gpu=True` into Ray Train's ScalingConfig (train/trainer_utils.py, `get_ray_trainer`); without
a GPU the run then waits for ever. Here that one name, `ScalingConfig`, is replaced by a version that asks for a GPU only
where `resources_per_worker` does. The second is Ray's report callback, which copies checkpoints that are still being
written (helpers.process.report). `python -m helpers.process.cpu train CONFIG` is otherwise `llamafactory-cli train CONFIG`.
"""

import inspect
import sys

VERSION = "0.9.3"


def replace_scaling_config(trainer_utils) -> None:
    """Replace `ScalingConfig` in `llamafactory.train.trainer_utils`; RuntimeError if it is not the code we know.

    A GPU asked for in `resources_per_worker` is passed on untouched, so the replacement changes nothing for GPU runs.
    """
    from llamafactory.extras.env import VERSION as found

    source = inspect.getsource(trainer_utils.get_ray_trainer) if hasattr(trainer_utils, "get_ray_trainer") else ""
    if "use_gpu=True" not in source or not hasattr(trainer_utils, "ScalingConfig"):
        raise RuntimeError(
            f"LLaMA-Factory {found} no longer has what the CPU launch replaces (ScalingConfig with use_gpu=True in "
            f"llamafactory.train.trainer_utils.get_ray_trainer).\n  expected: llamafactory=={VERSION}\n"
            "  fix:      run `make install`, or train on a GPU"
        )
    stock = trainer_utils.ScalingConfig

    def scaling_config(*, use_gpu, resources_per_worker=None, **rest):
        wants_gpu = bool((resources_per_worker or {}).get("GPU", 0))
        return stock(use_gpu=wants_gpu, resources_per_worker=resources_per_worker, **rest)

    trainer_utils.ScalingConfig = scaling_config


def main() -> None:
    """Replace the name, then run LLaMA-Factory's own command line with this process's arguments."""
    from llamafactory import cli
    from llamafactory.train import trainer_utils, tuner

    from helpers.process import workers
    from helpers.process.report import WaitingReportCallback

    replace_scaling_config(trainer_utils)
    tuner.RayTrainReportCallback = WaitingReportCallback
    workers.prepare()
    sys.argv[0] = "llamafactory-cli"
    cli.main()


if __name__ == "__main__":
    main()
