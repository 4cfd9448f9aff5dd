"""A Ray cluster of several nodes on this machine, each with a loopback address and processes of its own.

What `ray start` makes on machines of their own, here side by side: a node can be killed like a machine that loses
its power. Used by `benchmarks/equality.py` and by the tests marked `ray`.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

UP_SECONDS = 300.0
TRIES = 4  # Ray gives a node 30 s to start, which a busy machine may need more than
OBJECT_STORE = 80 * 2**20  # bytes; Ray asks for no less than 75 MiB
_WAIT = 0.2


class Nodes:
    """A head and workers.

    Attributes:
        address: ray://HOST:PORT of its client port.
        gcs: HOST:PORT that nodes and drivers on its machines use.
        jobs: http://HOST:PORT that takes jobs, where it was asked for.
        token: that everybody who talks to it must have in RAY_AUTH_TOKEN.
    """

    def __init__(
        self, folder: Path, cpus: int = 1, gpus: int = 0, head_cpus: int | None = None, with_jobs: bool = False
    ) -> None:
        self.folder, self.cpus, self.gpus = folder, cpus, gpus
        self.head_cpus = cpus if head_cpus is None else head_cpus
        self.token = secrets.token_hex(32)
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        gcs, client = self.ports()
        self.gcs, self.address = f"{self.host(0)}:{gcs}", f"ray://{self.host(0)}:{client}"
        self.jobs = f"http://{self.host(0)}:{free_port(self.host(0))}" if with_jobs else ""

    def host(self, number: int) -> str:
        """Address of a node."""
        return f"127.0.0.{number + 2}"  # Ray would take 127.0.0.1 for the machine's own address

    def ports(self) -> tuple[int, int]:
        """Free ones of the head: for nodes, and for clients."""
        return free_port(self.host(0)), free_port(self.host(0))

    def within(self, number: int) -> list[str]:
        """What a node's command begins with."""
        return []

    def head_options(self) -> list[str]:
        """What the head is started with besides."""
        return []

    def processes(self, number: int) -> list[int]:
        """Of a node: its workers have process groups of their own, but are of its session."""
        pids = (int(path.name) for path in Path("/proc").glob("[0-9]*"))
        return [pid for pid in pids if _session(pid) == self._processes[number].pid]

    @property
    def workers(self) -> list[int]:
        """Numbers of the nodes that live, without the head."""
        return [number for number, process in self._processes.items() if number and process.poll() is None]

    @property
    def environment(self) -> dict[str, str]:
        """What drivers and nodes need in theirs."""
        return {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            "RAY_USAGE_STATS_ENABLED": "0",
            "GRPC_ENABLE_FORK_SUPPORT": "0",
        }

    def add(self, count: int = 1) -> None:
        """Start so many more nodes, side by side; the first of all is the head."""
        numbers = range(len(self._processes), len(self._processes) + count)
        for number in numbers:
            self._start(number)
            if not number:
                self._until_up(number)
        for number in numbers:
            self._until_up(number)

    def _start(self, number: int) -> None:
        port, client = self.gcs.rsplit(":")[1], self.address.rsplit(":")[2]
        where = ["--head", f"--port={port}", f"--ray-client-server-port={client}"]
        where.append(f"--include-dashboard={bool(self.jobs)}")
        if self.jobs:
            host, board = self.jobs.removeprefix("http://").split(":")
            where += [f"--dashboard-host={host}", f"--dashboard-port={board}"]
        where += self.head_options()
        ray = str(Path(sys.executable).with_name("ray"))
        command = [*self.within(number), ray, "start", "--block", f"--node-ip-address={self.host(number)}"]
        command += where if not number else [f"--address={self.gcs}"]
        command += [
            f"--num-cpus={self.cpus if number else self.head_cpus}",
            f"--num-gpus={self.gpus}",
            f"--object-store-memory={OBJECT_STORE}",
            "--disable-usage-stats",
        ]
        command += ["--min-worker-port=0", "--max-worker-port=0", f"--temp-dir={self.folder}/{number}"]
        with (self.folder / f"node{number}.log").open("ab") as log:
            # A session of its own, by which all of its processes are known.
            started = subprocess.Popen(
                command, stdout=log, stderr=log, env={**os.environ, **self.environment}, start_new_session=True
            )
        self._processes[number] = started

    def kill(self, number: int) -> None:
        """SIGKILL of all processes of a node."""
        for _ in range(2):  # again for those that were born meanwhile
            for pid in self.processes(number):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self._processes[number].wait()

    def close(self) -> None:
        """Kill what is left, the head last."""
        for number in sorted(self._processes, reverse=True):
            self.kill(number)

    def _until_up(self, number: int) -> None:
        log, end, tries = self.folder / f"node{number}.log", time.monotonic() + UP_SECONDS, 1
        while time.monotonic() < end:
            if "Ray runtime started" in log.read_text():
                if not number:
                    _until_open(self.address, end)
                return
            if self._processes[number].poll() is not None:
                if tries == TRIES:
                    break
                self.kill(number)
                self._start(number)
                tries += 1
            time.sleep(_WAIT)
        raise TimeoutError(f"node {number} did not come up: {log.read_text()[-2000:]}")


class Autoscaled(Nodes):
    """A head whose autoscaler starts up to two workers, here, when they are asked for, and ends idle ones."""

    def head_options(self) -> list[str]:
        types = {
            "ray.head.default": {"resources": {"CPU": self.head_cpus}, "node_config": {}, "max_workers": 0},
            "worker": {"resources": {"CPU": self.cpus}, "node_config": {}, "min_workers": 0, "max_workers": 2},
        }
        config = {
            "cluster_name": "fake_multinode",
            "max_workers": 2,
            "provider": {
                "type": "fake_multinode",
                "gcs_address": self.gcs,
                "use_node_id_as_ip": True,  # all have one address
                "disable_node_updaters": True,
                "disable_launch_config_check": True,
            },
            "available_node_types": types,
            "head_node_type": "ray.head.default",
            "upscaling_speed": 1.0,
            "idle_timeout_minutes": 0.1,
            # What the autoscaler asks of every configuration, and this kind of machine has no use for.
            "auth": {"ssh_user": "nobody"},
            "file_mounts": {},
            "file_mounts_sync_continuously": False,
            **{
                name: []
                for name in (
                    "cluster_synced_files",
                    "initialization_commands",
                    "setup_commands",
                    "head_setup_commands",
                    "worker_setup_commands",
                    "head_start_ray_commands",
                    "worker_start_ray_commands",
                )
            },
        }
        file = self.folder / "autoscaling.json"
        file.write_text(json.dumps(config))
        return [f"--autoscaling-config={file}"]

    @property
    def environment(self) -> dict[str, str]:
        return {**super().environment, "RAY_FAKE_CLUSTER": "1"}

    def status(self) -> str:
        """What `ray status` says."""
        command = [str(Path(sys.executable).with_name("ray")), "status", f"--address={self.gcs}"]
        return subprocess.run(
            command, env={**os.environ, **self.environment}, capture_output=True, text=True, timeout=60
        ).stdout


@contextmanager
def nodes(
    count: int,
    cpus: int = 1,
    gpus: int = 0,
    head_cpus: int | None = None,
    kind: type[Nodes] = Nodes,
    with_jobs: bool = False,
) -> Iterator[Nodes]:
    """A running cluster of `count` nodes, which is gone afterwards. Ray only counts their CPUs and GPUs.

    Args:
        cpus, gpus: of each node. head_cpus: of the first one, if others; 0: it only manages.
        with_jobs: it takes jobs; for that it must have been installed as ray[default].
    """
    folder = Path(tempfile.mkdtemp(prefix="ray-"))  # short: it holds sockets, whose paths are limited
    made = kind(folder, cpus, gpus, head_cpus, with_jobs)
    try:
        made.add(count)
        yield made
    finally:
        made.close()
        shutil.rmtree(folder, ignore_errors=True)


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return None


def free_port(host: str) -> int:
    """A port that nobody listens on."""
    with socket.socket() as made:
        made.bind((host, 0))
        return int(made.getsockname()[1])


def _until_open(address: str, end: float) -> None:
    host, port = address.removeprefix("ray://").split(":")
    while time.monotonic() < end:
        with suppress(OSError):
            socket.create_connection((host, int(port)), timeout=1).close()
            return
        time.sleep(_WAIT)
    raise TimeoutError(f"nobody listens at {address}")
