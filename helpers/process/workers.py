"""What the processes of a training's Ray do first: take the secrets along, and have gloo speak by their node's own address."""

import os

from helpers import secrets


def prepare() -> None:
    """Make this process's `ray.init` send every worker `first_steps`; nothing is changed where there is nothing to do."""
    import ray
    from ray.tune.execution import class_cache

    class_cache.ENV_VARS_TO_PROPAGATE -= set(secrets.TRAVELLING)  # Ray Tune would write them into env_vars, which Ray logs
    init, names = ray.init, secrets.carried()

    def with_first_steps(*args, runtime_env=None, **kwargs):
        cluster = (kwargs.get("address") or os.environ.get("RAY_ADDRESS") or "local") != "local"
        steps = {"worker_process_setup_hook": first_steps(names, cluster)} if names or cluster else {}
        return init(*args, runtime_env={**(runtime_env or {}), **steps} or None, **kwargs)

    ray.init = with_first_steps


def first_steps(names: dict[str, str], cluster: bool):
    """A function for a worker's start that sets `names` in its environment; it needs nothing of this project there.

    On a `cluster` it names gloo the interface by which Ray reaches the node: gloo would take the one that the machine's own
    name leads to, which on many (Debian's /etc/hosts) is the loopback, where no other node answers.
    """

    def prepare_worker():
        import os

        os.environ.update(names)
        if cluster and "GLOO_SOCKET_IFNAME" not in os.environ:
            import psutil
            import ray

            address = ray.util.get_node_ip_address()
            for interface, known in psutil.net_if_addrs().items():
                if any(one.address == address for one in known):
                    os.environ["GLOO_SOCKET_IFNAME"] = interface

    return prepare_worker
