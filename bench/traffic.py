# SPDX-License-Identifier: Apache-2.0
"""Traffic between network namespaces, of processes that die with this one, without names on the host."""

import contextlib
import os
from dataclasses import dataclass

from programs import built, run, running, until

PORT = "5201"
FOREVER_S = "3600"

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
    """Namespaces and processes, removed when the `with` block exits; pinned to `cpu` if given."""

    def __init__(self, cpu: int | None = None) -> None:
        super().__init__()
        self._pinned = [] if cpu is None else ["taskset", "-c", str(cpu)]

    def start(self, command: list[str]) -> int:
        """Start a process that lasts as long as the traffic; return its PID."""
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


# --- hosts -------------------------------------------------------------------------------------------------------

A, B = "10.79.0.1", "10.79.0.2"
"""Addresses of the two ends, if connected directly."""


def neighbours(traffic: Traffic) -> tuple[Namespace, Namespace]:
    """Create two hosts, connected directly."""
    near, far = traffic.namespace(), traffic.namespace()
    traffic.connect(near, far, "va", "vb")
    for host, device, address in ((near, "va", A), (far, "vb", B)):
        host.ip(f"addr add {address}/24 dev {device}")
    return near, far
