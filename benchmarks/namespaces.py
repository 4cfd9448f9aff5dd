"""A Ray cluster whose nodes are in network namespaces of their own: three machines, as far as the network can tell.

Each namespace has its own loopback and one address on a bridge; the driver is on the host, which has another. Unlike
nodes on loopback, such a node can be unplugged: its processes go on, and nobody hears of them any more.

Detections, tags and vectors of a project are made inline, on this cluster, and on this cluster while one node is
unplugged in the middle; content hashes of all tables are compared.

Run as root: OMP_NUM_THREADS=1 python benchmarks/namespaces.py [--project trees]
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from equality import Way
from ray_nodes import Nodes, nodes

from pipeline.config import projects_root

BRIDGE, NETWORK = "cvp-bridge", "10.201.77"
WHAT = "images,embeddings,detections,tags"


class Namespaces(Nodes):
    """Nodes 0, 1, 2, … in the namespaces `cvp0`, `cvp1`, `cvp2`, …"""

    def host(self, number: int) -> str:
        return f"{NETWORK}.{number + 2}"

    def ports(self) -> tuple[int, int]:
        return 6379, 10001

    def within(self, number: int) -> list[str]:
        return ["ip", "netns", "exec", _space(number)]

    def unplug(self, number: int) -> None:
        """Take a node off the network without a word to anybody."""
        _ip(f"link set {_space(number)}-host down")


def possible() -> bool:
    """Whether this user may make namespaces and join them."""
    if os.geteuid() or not shutil.which("ip"):
        return False
    try:
        with network(1):
            return True
    except subprocess.CalledProcessError:
        return False


@contextmanager
def network(count: int) -> Iterator[None]:
    """`count` namespaces on a bridge, gone afterwards."""
    try:
        _ip(f"link add {BRIDGE} type bridge")
        _ip(f"address add {NETWORK}.1/24 dev {BRIDGE}")
        _ip(f"link set {BRIDGE} up")
        for number in range(count):
            _join(number)
        yield
    finally:
        for number in range(count):
            _ip(f"netns delete {_space(number)}", check=False)
        _ip(f"link delete {BRIDGE}", check=False)


@contextmanager
def machines(count: int) -> Iterator[Namespaces]:
    """A cluster of `count` such nodes; the first one only manages."""
    with network(count), nodes(count, head_cpus=0, kind=Namespaces) as cluster:
        assert isinstance(cluster, Namespaces)
        yield cluster


def _join(number: int) -> None:
    space = _space(number)
    _ip(f"netns add {space}")
    _ip(f"link add {space}-host type veth peer name eth0 netns {space}")
    _ip(f"link set {space}-host master {BRIDGE} up")
    _ip(f"-netns {space} address add {NETWORK}.{number + 2}/24 dev eth0")
    for device in ("lo", "eth0"):
        _ip(f"-netns {space} link set {device} up")


def _space(number: int) -> str:
    return f"cvp{number}"


def _ip(arguments: str, check: bool = True) -> None:
    subprocess.run(["ip", *arguments.split()], check=check, capture_output=True)


def unplugged(way: Way, cluster: Namespaces) -> dict[str, str]:
    """Run with a node unplugged in the middle; the hashes of its tables."""
    running = way.start("--select", WHAT)
    way.until_in_the_middle(running)
    cluster.unplug(2)
    if running.poll() is not None:
        raise SystemExit("the node was not unplugged in the middle")
    return way.finish(running)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--project", default="trees")
    project = projects_root() / parser.parse_args().project
    found = {}
    with tempfile.TemporaryDirectory() as place:
        inline = Way(Path(place), project, "inline", compute="inline")
        found["inline"] = inline.finish(inline.start("--select", WHAT))
        for name in ("three namespaces", "one of them unplugged"):
            with machines(3) as cluster:
                way = Way(Path(place), project, name, cluster, compute=cluster.address, workers=2)
                started = time.monotonic()
                lost = name == "one of them unplugged"
                found[name] = unplugged(way, cluster) if lost else way.finish(way.start("--select", WHAT))
                print(f"{name}: {len(found[name])} tables in {time.monotonic() - started:.0f} s", flush=True)
    bad = {
        name: [key for key in found["inline"] if tables.get(key) != found["inline"][key]]
        for name, tables in found.items()
    }
    for name, different in bad.items():
        print(f"  {name:<24}{len(found[name]) - len(different):>5} equal{len(different):>5} different  {different}")
    if any(bad.values()):
        raise SystemExit("tables differ")


if __name__ == "__main__":
    main()
