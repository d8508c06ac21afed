# SPDX-License-Identifier: Apache-2.0
"""Generate traffic with a known cost profile, in scenes.

Each scene has its own network namespaces. They belong to processes that die with this one, and have no names on the
host: nothing outlives the bench, however it ends.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

from programs import built, run, running, until

PORT = "5201"
FOREVER_S = "3600"
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


@dataclass(frozen=True)
class Namespace:
    """A network namespace, kept by a process in it."""

    pid: int

    def inside(self, *command: str) -> list[str]:
        """Return the command line that runs a command in this namespace."""
        return ["nsenter", f"--net=/proc/{self.pid}/ns/net", *command]

    def run(self, *command: str, text: str | None = None) -> str:
        """Run a command to its end and return its output."""
        return run(*self.inside(*command), text=text)

    def ip(self, words: str) -> None:
        """Run `ip` in this namespace."""
        self.run("ip", *words.split())

    def listens(self, *ports: str) -> bool:
        """Return whether TCP listeners or UDP sockets are open on these ports."""
        return all(f":{port} " in self.run("ss", "-tulnH") for port in ports)


class Traffic(contextlib.ExitStack):
    """The namespaces and processes of one scene, removed when the `with` block exits; pinned to `cpu` if given."""

    def __init__(self, cpu: int | None = None) -> None:
        super().__init__()
        self._pinned = [] if cpu is None else ["taskset", "-c", str(cpu)]

    def start(self, command: list[str]) -> int:
        """Start a process that lasts as long as the scene; return its PID."""
        return self.enter_context(running(*self._pinned, *command)).pid

    def namespace(self) -> Namespace:
        """Create a namespace with loopback up."""
        owner = self.start(["unshare", "--net", "sleep", "infinity"])
        ours = os.readlink("/proc/self/ns/net")
        until(lambda: os.readlink(f"/proc/{owner}/ns/net") != ours, "a network namespace")
        namespace = Namespace(owner)
        namespace.ip("link set lo up")
        return namespace

    def connect(self, near: Namespace, far: Namespace, near_device: str, far_device: str) -> None:
        """Connect two namespaces by a veth pair and set it up."""
        near.ip(f"link add {near_device} type veth peer name {far_device} netns {far.pid}")
        near.ip(f"link set {near_device} up")
        far.ip(f"link set {far_device} up")

    def stream(self, near: Namespace, far: Namespace, to: str) -> tuple[int, int]:
        """Start one TCP connection that sends as fast as it can; return the PIDs of its ends."""
        receiver = self.start(far.inside("iperf3", "-s", "-p", PORT))
        until(lambda: far.listens(PORT), "iperf3's server")
        sender = self.start(near.inside("iperf3", "-c", to, "-p", PORT, "-t", FOREVER_S))
        until(lambda: near.run("ss", "-tnH", "state", "established", "dport", f":{PORT}"), "a connection")
        return sender, receiver

    def flood(self, near: Namespace, far: Namespace, to: str) -> tuple[int, int]:
        """Flood a receiver, which may drop some, with 64-byte datagrams as fast as one CPU can; return both PIDs."""
        program = self.enter_context(built("flood.c"))
        receiver = self.start(far.inside(program, PORT))
        until(lambda: far.listens(PORT), "the receiver of the flood")
        return self.start(near.inside(program, PORT, to)), receiver


# --- scenes -------------------------------------------------------------------------------------------------------

A, B = "10.79.0.1", "10.79.0.2"
"""Addresses of the two ends, if connected directly."""
A6, B6 = "fd79::1", "fd79::2"
FAR = "10.79.1.2"
"""Address of the end behind a router."""


def neighbours(traffic: Traffic) -> tuple[Namespace, Namespace]:
    """Create two hosts, connected directly."""
    near, far = traffic.namespace(), traffic.namespace()
    traffic.connect(near, far, "va", "vb")
    for host, device, v4, v6 in ((near, "va", A, A6), (far, "vb", B, B6)):
        host.ip(f"addr add {v4}/24 dev {device}")
        host.ip(f"addr add {v6}/64 dev {device} nodad")
    return near, far


def tcp(traffic: Traffic) -> None:
    """Send TCP between neighbours, in packets of up to 64 KiB."""
    traffic.stream(*neighbours(traffic), B)


def tcp_of_ipv6(traffic: Traffic) -> None:
    """Send TCP over IPv6 between neighbours."""
    traffic.stream(*neighbours(traffic), B6)


def udp(traffic: Traffic) -> None:
    """Send a flood of small datagrams between neighbours."""
    traffic.flood(*neighbours(traffic), B)


def routed(traffic: Traffic) -> tuple[Namespace, Namespace, Namespace]:
    """Create two hosts with a router between them."""
    near, router, far = traffic.namespace(), traffic.namespace(), traffic.namespace()
    traffic.connect(near, router, "va", "ra")
    traffic.connect(router, far, "rb", "vb")
    near.ip(f"addr add {A}/24 dev va")
    router.ip(f"addr add {B}/24 dev ra")
    router.ip("addr add 10.79.1.1/24 dev rb")
    far.ip(f"addr add {FAR}/24 dev vb")
    near.ip(f"route add default via {B}")
    far.ip("route add default via 10.79.1.1")
    router.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
    return near, router, far


def forwarding(traffic: Traffic) -> None:
    """Send a flood through a router."""
    near, _, far = routed(traffic)
    traffic.flood(near, far, FAR)


def conntrack(traffic: Traffic) -> None:
    """Send a flood through a router with connection tracking."""
    near, router, far = routed(traffic)
    router.run("nft", "-f", "-", text=TRACKED)
    traffic.flood(near, far, FAR)


def bridge(traffic: Traffic) -> None:
    """Send a flood between two ports of a bridge."""
    near, middle, far = traffic.namespace(), traffic.namespace(), traffic.namespace()
    middle.ip("link add name br0 type bridge")
    middle.ip("link set br0 up")
    for host, device, port, address in ((near, "va", "pa", A), (far, "vb", "pb", B)):
        traffic.connect(host, middle, device, port)
        middle.ip(f"link set {port} master br0")
        host.ip(f"addr add {address}/24 dev {device}")
    traffic.flood(near, far, B)


def vxlan(traffic: Traffic) -> None:
    """Send a flood through a tunnel between neighbours."""
    near, far = neighbours(traffic)
    for host, device, peer, address in ((near, "va", B, "10.80.0.1"), (far, "vb", A, "10.80.0.2")):
        host.ip(f"link add vx type vxlan id 79 remote {peer} dstport 4789 dev {device}")
        host.ip(f"addr add {address}/24 dev vx")
        host.ip("link set vx up")
    traffic.flood(near, far, "10.80.0.2")


def gro(traffic: Traffic) -> None:
    """Send TCP between neighbours as single segments, which the receiver merges."""
    near, far = neighbours(traffic)
    near.run("ethtool", "-K", "va", "tso", "off", "gso", "off")
    far.run("ethtool", "-K", "vb", "gro", "on")
    traffic.stream(near, far, B)


SCENES = {
    "tcp": tcp,
    "tcp6": tcp_of_ipv6,
    "udp": udp,
    "forwarding": forwarding,
    "conntrack": conntrack,
    "bridge": bridge,
    "vxlan": vxlan,
    "gro": gro,
}


@contextlib.contextmanager
def traffic_of(name: str) -> Iterator[None]:
    """Run the traffic of a scene inside the `with` block."""
    with Traffic() as traffic:
        SCENES[name](traffic)
        yield
