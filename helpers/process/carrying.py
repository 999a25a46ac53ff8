"""`llamafactory-cli` as it is, its Ray carrying this environment's secrets to the workers (helpers.process.workers).

`python -m helpers.process.carrying train CONFIG` takes the place of the stock command where there is a secret to carry, so that
none stands in the config's ray_init_kwargs, which Ray prints.
"""

import sys

from helpers.process import workers


def main() -> None:
    from llamafactory import cli

    workers.prepare()
    sys.argv[0] = "llamafactory-cli"
    cli.main()


if __name__ == "__main__":
    main()
