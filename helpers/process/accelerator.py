"""`llamafactory-cli train` as helpers.process.cpu launches it, with kto_accelerator in every worker."""

import sys

_stock = None
"""LLaMA-Factory's own training function, kept where `training_function` has taken its place."""


def training_function(config: dict) -> None:
    """What every worker runs. Ray sends it by name: this package must be importable where the workers are."""
    from llamafactory.train import tuner

    import kto_accelerator

    kto_accelerator.install()
    (_stock or tuner._training_function)(config)


def replace_training_function() -> None:
    """In the launching process: LLaMA-Factory's workers run `training_function`, with GPUs or without."""
    from llamafactory.train import trainer_utils, tuner

    import kto_accelerator

    from . import cpu, report

    global _stock
    cpu.replace_scaling_config(trainer_utils)
    kto_accelerator.install()
    tuner.RayTrainReportCallback = report.WaitingReportCallback
    _stock, tuner._training_function = tuner._training_function, training_function


def main() -> None:
    """Replace, then run LLaMA-Factory's own command line with this process's arguments."""
    from llamafactory import cli

    from helpers.process import accelerator, workers  # by its real name, not as __main__: Ray's workers import it

    accelerator.replace_training_function()
    workers.prepare()
    sys.argv[0] = "llamafactory-cli"
    cli.main()


if __name__ == "__main__":
    main()
