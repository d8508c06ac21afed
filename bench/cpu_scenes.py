# SPDX-License-Identifier: Apache-2.0
"""Traffic with a known cost profile: `sudo .venv/bin/python bench/cpu_scenes.py [SCENE …] [--seconds 10]` runs scenes
alone, to look at with any tool; cpu_categories.py compares the results of tools.

Each scene has its own network namespaces. They belong to processes that die with this one, and have no names on the
host: nothing outlives the bench, however it ends.
"""

import argparse
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Self

from measure import built

READY_WITHIN_S = 10.0
DIES_WITH_US = ("setpriv", "--pdeathsig", "KILL")
PORT = "5201"
FOREVER_S = "3600"
RX_SOFTIRQ, EVERYWHERE = "RX softirq", "all entry points"
TRACKED = """
table ip bench {
  chain forward {
    type filter hook forward priority 0;
    ct state established,new accept
    drop
  }
}
"""

# --- network namespaces -------------------------------------------------------------------------------------------


def wait_for(condition: Callable[[], object], what: str, pause_s: float = 0.01) -> None:
    """Wait until the condition holds; exit the bench if it does not in time."""
    end = time.monotonic() + READY_WITHIN_S
    while not condition():
        if time.monotonic() > end:
            raise SystemExit(f"{what}: not within {READY_WITHIN_S:g} s")
        time.sleep(pause_s)


@dataclass(frozen=True)
class Namespace:
    """A network namespace, kept by a process in it."""

    pid: int

    def inside(self, *command: str) -> list[str]:
        """The command line that runs a command in this namespace."""
        return ["nsenter", f"--net=/proc/{self.pid}/ns/net", *command]

    def run(self, *command: str, text: str | None = None) -> str:
        """Run a command to its end; returns its output."""
        done = subprocess.run(self.inside(*command), input=text, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout

    def ip(self, words: str) -> None:
        """Run iproute2."""
        self.run("ip", *words.split())

    def forwards(self) -> None:
        """Forward packets for other hosts."""
        self.run("sysctl", "-qw", "net.ipv4.ip_forward=1")


class Traffic:
    """The namespaces and processes of one scene, removed at the end of the with-block; pinned to `cpu` if given."""

    def __init__(self, cpu: int | None = None) -> None:
        self._pinned = [] if cpu is None else ["taskset", "-c", str(cpu)]
        self._exit = contextlib.ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._exit.close()

    def start(self, command: list[str]) -> int:
        """Start a process that lasts as long as the scene; returns its PID."""
        nothing = subprocess.DEVNULL
        words = [*self._pinned, *DIES_WITH_US, *command]
        process = subprocess.Popen(words, stdin=nothing, stdout=nothing, stderr=nothing)
        self._exit.callback(process.wait)
        self._exit.callback(process.kill)
        return process.pid

    def namespace(self) -> Namespace:
        """A new namespace with loopback up."""
        owner = self.start(["unshare", "--net", "sleep", "infinity"])
        ours = os.readlink("/proc/self/ns/net")
        wait_for(lambda: os.readlink(f"/proc/{owner}/ns/net") != ours, "a network namespace")
        namespace = Namespace(owner)
        namespace.ip("link set lo up")
        return namespace

    def connect(self, near: Namespace, far: Namespace, near_device: str, far_device: str) -> None:
        """Create a veth pair between the two, up."""
        near.ip(f"link add {near_device} type veth peer name {far_device} netns {far.pid}")
        near.ip(f"link set {near_device} up")
        far.ip(f"link set {far_device} up")

    def stream(self, near: Namespace, far: Namespace, to: str) -> tuple[int, int]:
        """One TCP connection that sends all it can; returns the PIDs of its ends."""
        receiver = self.start(far.inside("iperf3", "-s", "-p", PORT))
        wait_for(lambda: f":{PORT}" in far.run("ss", "-tlnH"), "iperf3's server")
        sender = self.start(near.inside("iperf3", "-c", to, "-p", PORT, "-t", FOREVER_S))
        wait_for(lambda: near.run("ss", "-tnH", "state", "established", "dport", f":{PORT}"), "a connection")
        return sender, receiver

    def flood(self, near: Namespace, far: Namespace, to: str) -> tuple[int, int]:
        """As many 64-byte datagrams as one CPU can send, and a receiver that may lose some; returns both PIDs."""
        program = self._exit.enter_context(built("flood.c"))
        receiver = self.start(far.inside(program, PORT))
        wait_for(lambda: f":{PORT}" in far.run("ss", "-ulnH"), "the receiver of the flood")
        return self.start(near.inside(program, PORT, to)), receiver


# --- scenes -------------------------------------------------------------------------------------------------------

A, B = "10.79.0.1", "10.79.0.2"
"""The two ends, if connected directly."""
A6, B6 = "fd79::1", "fd79::2"
FAR = "10.79.1.2"
"""The end behind a router."""


def neighbours(traffic: Traffic) -> tuple[Namespace, Namespace]:
    """Two hosts, connected directly."""
    near, far = traffic.namespace(), traffic.namespace()
    traffic.connect(near, far, "va", "vb")
    for host, device, v4, v6 in ((near, "va", A, A6), (far, "vb", B, B6)):
        host.ip(f"addr add {v4}/24 dev {device}")
        host.ip(f"addr add {v6}/64 dev {device} nodad")
    return near, far


def tcp(traffic: Traffic) -> None:
    """TCP between neighbours; a packet is up to 64 KiB."""
    traffic.stream(*neighbours(traffic), B)


def tcp_of_ipv6(traffic: Traffic) -> None:
    """As tcp, over IPv6."""
    traffic.stream(*neighbours(traffic), B6)


def udp(traffic: Traffic) -> None:
    """A flood of small datagrams between neighbours."""
    traffic.flood(*neighbours(traffic), B)


def routed(traffic: Traffic) -> tuple[Namespace, Namespace, Namespace]:
    """Two hosts with a router between them."""
    near, router, far = traffic.namespace(), traffic.namespace(), traffic.namespace()
    traffic.connect(near, router, "va", "ra")
    traffic.connect(router, far, "rb", "vb")
    near.ip(f"addr add {A}/24 dev va")
    router.ip(f"addr add {B}/24 dev ra")
    router.ip("addr add 10.79.1.1/24 dev rb")
    far.ip(f"addr add {FAR}/24 dev vb")
    near.ip(f"route add default via {B}")
    far.ip("route add default via 10.79.1.1")
    router.forwards()
    return near, router, far


def forwarding(traffic: Traffic) -> None:
    """A flood through a router."""
    near, _, far = routed(traffic)
    traffic.flood(near, far, FAR)


def conntrack(traffic: Traffic) -> None:
    """As forwarding, through a router with connection tracking."""
    near, router, far = routed(traffic)
    router.run("nft", "-f", "-", text=TRACKED)
    traffic.flood(near, far, FAR)


def bridge(traffic: Traffic) -> None:
    """A flood between two ports of a bridge."""
    near, middle, far = traffic.namespace(), traffic.namespace(), traffic.namespace()
    middle.ip("link add name br0 type bridge")
    middle.ip("link set br0 up")
    for host, device, port, address in ((near, "va", "pa", A), (far, "vb", "pb", B)):
        traffic.connect(host, middle, device, port)
        middle.ip(f"link set {port} master br0")
        host.ip(f"addr add {address}/24 dev {device}")
    traffic.flood(near, far, B)


def vxlan(traffic: Traffic) -> None:
    """A flood through a tunnel between neighbours."""
    near, far = neighbours(traffic)
    for host, device, peer, address in ((near, "va", B, "10.80.0.1"), (far, "vb", A, "10.80.0.2")):
        host.ip(f"link add vx type vxlan id 79 remote {peer} dstport 4789 dev {device}")
        host.ip(f"addr add {address}/24 dev vx")
        host.ip("link set vx up")
    traffic.flood(near, far, "10.80.0.2")


def gro(traffic: Traffic) -> None:
    """TCP between neighbours: single segments are sent, and merged by the receiver."""
    near, far = neighbours(traffic)
    near.run("ethtool", "-K", "va", "tso", "off", "gso", "off")
    far.run("ethtool", "-K", "vb", "gro", "on")
    traffic.stream(near, far, B)


@dataclass(frozen=True)
class Expected:
    """A category that has at least `least` percent of an entry point's samples, or that many points more than in the
    scene `above`.
    """

    category: str
    least: float
    entry: str = RX_SOFTIRQ
    above: str = ""


@dataclass(frozen=True)
class Scene:
    """Traffic, and what a kernel engineer expects of it."""

    run: Callable[[Traffic], None]
    expected: tuple[Expected, ...]

    @property
    def about(self) -> str:
        """The scene in one line."""
        return str(self.run.__doc__)


SCENES = {
    "tcp": Scene(tcp, (Expected("TCP", 60, EVERYWHERE),)),
    "tcp6": Scene(tcp_of_ipv6, (Expected("TCP", 60, EVERYWHERE),)),
    "udp": Scene(
        udp, (Expected("UDP", 25, EVERYWHERE), Expected("socket wake-up", 15), Expected("IP receive", 10))
    ),
    "forwarding": Scene(
        forwarding,
        (
            Expected("IP receive", 12),
            Expected("transmit", 5, above="udp"),
            Expected("forwarding", 1, above="udp"),
        ),
    ),
    "conntrack": Scene(
        conntrack,
        (
            Expected("connection tracking", 5, above="forwarding"),
            Expected("netfilter", 2, above="forwarding"),
        ),
    ),
    "bridge": Scene(bridge, (Expected("bridging", 12), Expected("bridging", 12, above="udp"))),
    "vxlan": Scene(vxlan, (Expected("UDP", 8), Expected("GRO", 2, above="udp"))),
    "gro": Scene(gro, (Expected("GRO", 20), Expected("GRO", 20, above="tcp"))),
}
"""By name. A scene that others are compared with comes before them."""


@contextlib.contextmanager
def running(scene: Scene) -> Iterator[None]:
    """The traffic of a scene runs meanwhile."""
    with Traffic() as traffic:
        scene.run(traffic)
        yield


def main() -> None:
    """Run the named scenes one after the other, or all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("scenes", nargs="*", choices=[[], *SCENES], metavar="SCENE", help=", ".join(SCENES))
    parser.add_argument("--seconds", type=float, default=10)
    options = parser.parse_args()
    for name in options.scenes or SCENES:
        with running(SCENES[name]):
            print(f"{name}: {SCENES[name].about}", flush=True)
            time.sleep(options.seconds)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
    sys.exit(0)
