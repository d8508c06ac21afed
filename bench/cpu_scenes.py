# SPDX-License-Identifier: Apache-2.0
"""Traffic of which a kernel engineer knows what it costs where: `sudo .venv/bin/python bench/cpu_scenes.py [SCENE …]
[--seconds 10]` plays scenes alone, for a look with any tool; cpu_categories.py compares what tools say of them.

Each scene has network namespaces of its own. They hang on processes that die with this one, and nothing has a name on
the host: nothing outlives the bench, however it ends.
"""

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

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
    """Until the condition holds; ends the bench where it does not in time."""
    end = time.monotonic() + READY_WITHIN_S
    while not condition():
        if time.monotonic() > end:
            raise SystemExit(f"{what}: not within {READY_WITHIN_S:g} s")
        time.sleep(pause_s)


@dataclass(frozen=True)
class Namespace:
    """A network namespace, by the process that holds it."""

    pid: int

    def inside(self, *command: str) -> list[str]:
        """The command, to be run in this namespace."""
        return ["nsenter", f"--net=/proc/{self.pid}/ns/net", *command]

    def run(self, *command: str, text: str | None = None) -> str:
        """Runs a command to its end; its output."""
        done = subprocess.run(self.inside(*command), input=text, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout

    def ip(self, words: str) -> None:
        """Runs iproute2."""
        self.run("ip", *words.split())

    def forwards(self) -> None:
        """Packets for other hosts are sent on, as a router does."""
        self.run("sysctl", "-qw", "net.ipv4.ip_forward=1")


@contextlib.contextmanager
def built(source: str) -> Iterator[str]:
    """The program of a C file of this folder."""
    with tempfile.TemporaryDirectory() as folder:
        program = f"{folder}/{Path(source).stem}"
        subprocess.run(["cc", "-O2", "-o", program, Path(__file__).with_name(source)], check=True)
        yield program


class Stage:
    """The namespaces and processes of one scene, all gone at the end of its with-block.

    Where there is a `cpu`, all of them are held to it.
    """

    def __init__(self, cpu: int | None = None) -> None:
        self._held_to = [] if cpu is None else ["taskset", "-c", str(cpu)]
        self._exit = contextlib.ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._exit.close()

    def play(self, command: list[str]) -> int:
        """A process that lasts as long as the scene; its PID."""
        nothing = subprocess.DEVNULL
        words = [*self._held_to, *DIES_WITH_US, *command]
        process = subprocess.Popen(words, stdin=nothing, stdout=nothing, stderr=nothing)
        self._exit.callback(process.wait)
        self._exit.callback(process.kill)
        return process.pid

    def namespace(self) -> Namespace:
        """A new namespace with loopback up."""
        holder = self.play(["unshare", "--net", "sleep", "infinity"])
        ours = os.readlink("/proc/self/ns/net")
        wait_for(lambda: os.readlink(f"/proc/{holder}/ns/net") != ours, "a network namespace")
        namespace = Namespace(holder)
        namespace.ip("link set lo up")
        return namespace

    def wire(self, near: Namespace, far: Namespace, near_device: str, far_device: str) -> None:
        """A veth pair between the two, up."""
        near.ip(f"link add {near_device} type veth peer name {far_device} netns {far.pid}")
        near.ip(f"link set {near_device} up")
        far.ip(f"link set {far_device} up")

    def stream(self, near: Namespace, far: Namespace, to: str) -> tuple[int, int]:
        """One TCP connection that sends all it can; the PIDs of its ends."""
        receiver = self.play(far.inside("iperf3", "-s", "-p", PORT))
        wait_for(lambda: f":{PORT}" in far.run("ss", "-tlnH"), "iperf3's server")
        sender = self.play(near.inside("iperf3", "-c", to, "-p", PORT, "-t", FOREVER_S))
        wait_for(lambda: near.run("ss", "-tnH", "state", "established", "dport", f":{PORT}"), "a connection")
        return sender, receiver

    def flood(self, near: Namespace, far: Namespace, to: str) -> tuple[int, int]:
        """All the datagrams of 64 bytes that one CPU can send; a process far away takes what it can; both PIDs."""
        program = self._exit.enter_context(built("flood.c"))
        receiver = self.play(far.inside(program, PORT))
        wait_for(lambda: f":{PORT}" in far.run("ss", "-ulnH"), "the receiver of the flood")
        return self.play(near.inside(program, PORT, to)), receiver


# --- scenes -------------------------------------------------------------------------------------------------------

A, B = "10.79.0.1", "10.79.0.2"
"""The two ends, where they are neighbours."""
A6, B6 = "fd79::1", "fd79::2"
FAR = "10.79.1.2"
"""The end behind a router."""


def neighbours(stage: Stage) -> tuple[Namespace, Namespace]:
    """Two hosts on one wire."""
    near, far = stage.namespace(), stage.namespace()
    stage.wire(near, far, "va", "vb")
    for host, device, v4, v6 in ((near, "va", A, A6), (far, "vb", B, B6)):
        host.ip(f"addr add {v4}/24 dev {device}")
        host.ip(f"addr add {v6}/64 dev {device} nodad")
    return near, far


def tcp(stage: Stage) -> None:
    """TCP between neighbours; a packet is up to 64 KiB."""
    stage.stream(*neighbours(stage), B)


def tcp_of_ipv6(stage: Stage) -> None:
    """As tcp, over IPv6."""
    stage.stream(*neighbours(stage), B6)


def udp(stage: Stage) -> None:
    """A flood of small datagrams between neighbours."""
    stage.flood(*neighbours(stage), B)


def routed(stage: Stage) -> tuple[Namespace, Namespace, Namespace]:
    """Two hosts with a router between them."""
    near, router, far = stage.namespace(), stage.namespace(), stage.namespace()
    stage.wire(near, router, "va", "ra")
    stage.wire(router, far, "rb", "vb")
    near.ip(f"addr add {A}/24 dev va")
    router.ip(f"addr add {B}/24 dev ra")
    router.ip("addr add 10.79.1.1/24 dev rb")
    far.ip(f"addr add {FAR}/24 dev vb")
    near.ip(f"route add default via {B}")
    far.ip("route add default via 10.79.1.1")
    router.forwards()
    return near, router, far


def forwarding(stage: Stage) -> None:
    """A flood through a router."""
    near, _, far = routed(stage)
    stage.flood(near, far, FAR)


def conntrack(stage: Stage) -> None:
    """As forwarding, and the router looks at the state of connections."""
    near, router, far = routed(stage)
    router.run("nft", "-f", "-", text=TRACKED)
    stage.flood(near, far, FAR)


def bridge(stage: Stage) -> None:
    """A flood between two ports of a bridge."""
    near, middle, far = stage.namespace(), stage.namespace(), stage.namespace()
    middle.ip("link add name br0 type bridge")
    middle.ip("link set br0 up")
    for host, device, port, address in ((near, "va", "pa", A), (far, "vb", "pb", B)):
        stage.wire(host, middle, device, port)
        middle.ip(f"link set {port} master br0")
        host.ip(f"addr add {address}/24 dev {device}")
    stage.flood(near, far, B)


def vxlan(stage: Stage) -> None:
    """A flood through a tunnel between neighbours."""
    near, far = neighbours(stage)
    for host, device, peer, address in ((near, "va", B, "10.80.0.1"), (far, "vb", A, "10.80.0.2")):
        host.ip(f"link add vx type vxlan id 79 remote {peer} dstport 4789 dev {device}")
        host.ip(f"addr add {address}/24 dev vx")
        host.ip("link set vx up")
    stage.flood(near, far, "10.80.0.2")


def gro(stage: Stage) -> None:
    """TCP between neighbours: single segments are sent, and merged by who receives them."""
    near, far = neighbours(stage)
    near.run("ethtool", "-K", "va", "tso", "off", "gso", "off")
    far.run("ethtool", "-K", "vb", "gro", "on")
    stage.stream(near, far, B)


@dataclass(frozen=True)
class Expected:
    """A category (by label) that has at least so many percent of an entry point's samples, or of all of them.

    Where there is an `above`, so many points more than in that scene.
    """

    category: str
    least: float
    entry: str = RX_SOFTIRQ
    above: str = ""


@dataclass(frozen=True)
class Scene:
    """Traffic, and what a kernel engineer expects of it."""

    play: Callable[[Stage], None]
    expected: tuple[Expected, ...]

    @property
    def about(self) -> str:
        """What the scene is, in a line."""
        return str(self.play.__doc__)


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
"""By name. A scene that another one is above comes before it."""


@contextlib.contextmanager
def on_stage(scene: Scene) -> Iterator[None]:
    """The scene is played meanwhile."""
    with Stage() as stage:
        scene.play(stage)
        yield


def main() -> None:
    """Plays the named scenes one after the other, or all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("scenes", nargs="*", choices=[[], *SCENES], metavar="SCENE", help=", ".join(SCENES))
    parser.add_argument("--seconds", type=float, default=10)
    asked = parser.parse_args()
    for name in asked.scenes or SCENES:
        with on_stage(SCENES[name]):
            print(f"{name}: {SCENES[name].about}", flush=True)
            time.sleep(asked.seconds)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
    sys.exit(0)
