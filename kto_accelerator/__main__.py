"""`python -m kto_accelerator train CONFIG.yaml` is `llamafactory-cli train CONFIG.yaml` with the faster KTO trainer.

On several GPUs: `torchrun --nproc-per-node N -m kto_accelerator train CONFIG.yaml`, or Ray (USE_RAY=1); this package must
be importable where the workers are.
"""

import os
import sys
from pathlib import Path

from .enable import supports


def training_function(config: dict) -> None:
    """What every worker runs. Ray sends it by its name."""
    from llamafactory.train import tuner

    import kto_accelerator
    from kto_accelerator.enable import OURS

    args = config["args"]
    kto_accelerator.install(**{key: args.pop(key) for key in OURS if isinstance(args, dict) and key in args})
    getattr(tuner, "_stock_training_function", tuner._training_function)(config)  # the former in the process where `main` ran


def refuse(path: str) -> None:
    """Exit with what is wrong with the config at that path, before anything heavy is imported; warn of what is not proved."""
    import yaml

    try:
        config = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        sys.exit(f"error: {path} cannot be read: {error}\n  expected: LLaMA-Factory's YAML\n  fix:      correct it")
    if not isinstance(config, dict):
        sys.exit(f"error: {path} has no key: value lines\n  expected: LLaMA-Factory's YAML\n  fix:      correct it")
    if len(sys.argv) > 3:  # more keys, which LLaMA-Factory puts over the file's
        return
    if config.get("stage") != "kto":
        sys.exit(f"error: {path} is of stage {config.get('stage')}\n  expected: stage: kto\n  fix:      llamafactory-cli train {path}")
    proved, why = supports(config)
    if not proved and os.environ.get("RANK", "0") == "0":
        print(f"[kto_accelerator] not proved for this config: {why}", file=sys.stderr)


def main() -> None:
    """Replace LLaMA-Factory's training function, then run its command."""
    if sys.argv[1:2] != ["train"] or len(sys.argv) < 3:
        sys.exit(__doc__)
    refuse(sys.argv[2])
    import torch
    from llamafactory.extras.misc import use_ray
    from llamafactory.train import tuner

    gpus = torch.cuda.device_count()
    if gpus > 1 and "RANK" not in os.environ and not use_ray():
        sys.exit(f"error: this process sees {gpus} GPUs\n  expected: one process per GPU\n  fix:      "
                 f"torchrun --nproc-per-node {gpus} -m kto_accelerator train {sys.argv[2]}, or CUDA_VISIBLE_DEVICES=0 for one GPU")
    from kto_accelerator.__main__ import training_function  # by its real name: Ray's workers import it

    tuner._stock_training_function, tuner._training_function = tuner._training_function, training_function
    del sys.argv[1]
    tuner.run_exp()


if __name__ == "__main__":
    main()
