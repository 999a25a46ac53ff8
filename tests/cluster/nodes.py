"""A Ray cluster of a head and worker nodes on this one machine, every process a child of the test.

As root, each worker node gets a network namespace (an address of its own) and a mount namespace (a Ray folder of its own, with its logs
and what jobs upload, and other folders where asked for): as near to separate machines as one machine comes. Elsewhere all are on 127.0.0.1 and share
everything, which Ray bears except for uploads: each node unpacks them anew, over those that the others are working in.
"""

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil

BIN = Path(sys.executable).parent
NET = f"10.213.{os.getpid() % 250}"  # of two test runs at once, each has its own


def separable() -> bool:
    """Whether this machine lets us make namespaces."""
    probe = "ip link add kto-probe type bridge && ip link del kto-probe && unshare -m mount -t tmpfs none /mnt"
    return os.geteuid() == 0 and subprocess.run(["sh", "-c", probe], capture_output=True).returncode == 0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Nodes:
    """`address` of the cluster, `dashboard` as http://127.0.0.1:port. `add` a node, `lose` one; the end ends all of it."""

    def __init__(self, scratch: Path):
        self.scratch, self.apart, self.count = scratch, separable(), 0
        self.bridge = f"kto{os.getpid() % 10**6}"
        self.nodes: dict[str, subprocess.Popen] = {}
        self.ip = f"{NET}.1" if self.apart else "127.0.0.1"
        if self.apart:
            sh(f"ip link add {self.bridge} type bridge && ip addr add {self.ip}/24 dev {self.bridge} && ip link set {self.bridge} up")
        port, web = free_port(), free_port()
        self.address, self.dashboard = f"{self.ip}:{port}", f"http://127.0.0.1:{web}"
        self._start("head", [], [  # fmt: skip
            "--head", f"--port={port}", f"--node-ip-address={self.ip}", "--num-cpus=1", f"--temp-dir={scratch}",
            "--include-dashboard=true", "--dashboard-host=127.0.0.1", f"--dashboard-port={web}", f"--ray-client-server-port={free_port()}",
            f"--dashboard-agent-listen-port={free_port()}"])

    def add(self, *hides: Path, gpus: int = 0) -> str:
        """A worker node with two CPUs, as many `gpus` in Ray's books, and one `worker_place`, a resource of its own; its name.

        `hides`: folders not shared with it.
        """
        self.count += 1
        name, ip = f"node{self.count}", f"{NET}.{self.count + 1}" if self.apart else self.ip
        before = []
        if self.apart:
            space, near, far = f"{self.bridge}-{self.count}", f"{self.bridge}n{self.count}", f"{self.bridge}f{self.count}"
            sh(f"ip netns add {space} && ip link add {near} type veth peer name {far} netns {space} && "
               f"ip link set {near} master {self.bridge} up && ip -n {space} addr add {ip}/24 dev {far} && "
               f"ip -n {space} link set {far} up && ip -n {space} link set lo up")
            mounts = " && ".join(f"mkdir -p {folder} && mount -t tmpfs none {folder}" for folder in (self.scratch, *hides))
            before = ["ip", "netns", "exec", space, "unshare", "-m", "sh", "-c", f'{mounts} && exec "$@"', "sh"]
        self._start(name, before, [f"--address={self.address}", f"--node-ip-address={ip}", "--num-cpus=2", f"--num-gpus={gpus}",
                                   '--resources={"worker_place": 1}', f"--dashboard-agent-listen-port={free_port()}"])
        return name

    def lose(self, name: str) -> None:
        """SIGKILL for the node's raylet, as when a machine is gone: nothing is said, nothing is tidied."""
        ray = self.nodes.pop(name)
        family = psutil.Process(ray.pid).children(recursive=True)
        for process in [p for p in family if p.name() == "raylet"] + family:
            with contextlib.suppress(psutil.Error):
                process.send_signal(signal.SIGKILL)
        ray.kill()
        ray.wait()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for ray in self.nodes.values():
            ray.terminate()
        for ray in self.nodes.values():
            try:
                ray.wait(15)
            except subprocess.TimeoutExpired:
                ray.kill()
        if self.apart:
            for number in range(1, self.count + 1):
                subprocess.run(["ip", "link", "del", f"{self.bridge}n{number}"], check=False)
                subprocess.run(["ip", "netns", "del", f"{self.bridge}-{number}"], check=False)
            subprocess.run(["ip", "link", "del", self.bridge], check=False)

    def _start(self, name: str, before: list[str], arguments: list[str], tries: int = 3) -> None:
        """Ray gives its dashboard 20 s to come up, which a busy machine may not keep: it is started anew then."""
        settings = {"PATH": f"{BIN}:{os.environ['PATH']}", "RAY_DEDUP_LOGS": "0", "RAY_ENABLE_UI_METRICS": "0"}
        log = self.scratch.with_name(f"{self.scratch.name}-{name}.log")
        command = [*before, str(BIN / "ray"), "start", *arguments, "--object-store-memory=100000000", "--disable-usage-stats",
                   "--min-worker-port=0", "--max-worker-port=0", "--block"]
        with open(log, "wb") as file:
            self.nodes[name] = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                                                env={**os.environ, **settings}, preexec_fn=end_with_parent)
        until = time.monotonic() + 90
        while b"Ray runtime started" not in log.read_bytes():
            if self.nodes[name].poll() is None and time.monotonic() < until:
                time.sleep(0.2)
            elif tries > 1:
                self.nodes[name].kill()
                return self._start(name, before, arguments, tries - 1)
            else:
                self.__exit__()
                raise RuntimeError(f"the node {name} did not start:\n{log.read_text()}")


def end_with_parent() -> None:
    """In the child: SIGTERM when the test's process dies, however it dies (Linux: PR_SET_PDEATHSIG)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def sh(line: str) -> None:
    subprocess.run(["sh", "-c", line], check=True)
