# SPDX-License-Identifier: Apache-2.0
"""The price of timing UDP requests: runs of the packet programs above empty ones at the same hooks."""

import contextlib
import os
import socket
import struct
from collections.abc import Callable, Iterator

from bpf_stats import Runs, statistics_on
from harness import Sample, Scale, Target, Turns, benchmark
from sockets import own_namespace

from nettop.kernel import bpf_syscall as bpf
from nettop.kernel.bpf.program import Loader, Program
from nettop.kernel.bpf.program_text import ProgramText
from nettop.kernel.host.facts import Host
from nettop.probes.probe import with_types
from nettop.probes.services.programs import program_text
from nettop.probes.services.udp_programs import HOOKS
from nettop.probes.services.udp_requests import UdpRequests
from nettop.snapshots.services import DNS_PORT, UDP_PORTS

OTHER_PORT, NTP_PORT = 5300, 123
EXCHANGES = 10_000
QUERY = struct.pack(">6H", 0, 0x100, 1, 0, 0, 0) + b"\3www\7example\3org\0\0\1\0\1"
PACKETS = {"skb__egress": "a packet sent", "skb__ingress": "a packet received"}


def exchange_tcp(count: int) -> None:
    """Send requests of 100 bytes over a connection, and a response to each."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
    with client, server:
        for _ in range(count):
            for sender, receiver in ((client, server), (server, client)):
                sender.sendall(b"n" * 100)
                receiver.recv(1000)


def exchange_udp(port: int, count: int) -> None:
    """Send DNS requests to a port, and a response to each."""
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client,
    ):
        server.bind(("127.0.0.1", port))
        client.connect(("127.0.0.1", port))
        for number in range(count):
            client.send(struct.pack(">H", number % (1 << 16)) + QUERY[2:])
            request, address = server.recvfrom(1000)
            server.sendto(request[:2] + b"\x81\x80" + request[4:], address)
            client.recv(1000)


LOADS: dict[str, Callable[[int], None]] = {
    "TCP": exchange_tcp,
    "another port": lambda count: exchange_udp(OTHER_PORT, count),
    "DNS": lambda count: exchange_udp(DNS_PORT, count),
    "NTP": lambda count: exchange_udp(NTP_PORT, count),
}


@contextlib.contextmanager
def timing() -> Iterator[Program]:
    """Time UDP requests, without the rest of the lens."""
    with contextlib.closing(Loader()) as loader:
        loader.request(program_text())
        with (
            contextlib.closing(loader.answer()),
            contextlib.closing(UdpRequests(Host(), loader, UDP_PORTS)) as udp,
        ):
            yield udp.program


@contextlib.contextmanager
def empty() -> Iterator[Program]:
    """Attach empty programs to the same hooks."""
    header = "".join(f"int {name}(void *context) {{ return 1; }}\n" for name in HOOKS)
    with contextlib.ExitStack() as opened:
        program = Loader().load(ProgramText((), header, (), with_types(HOOKS)))
        opened.callback(program.close)
        cgroup = os.open(Host().root_cgroup() or "", os.O_RDONLY)
        opened.callback(os.close, cgroup)
        for name in HOOKS:
            opened.callback(os.close, bpf.link(program.functions[name], bpf.CGROUP_HOOKS[name], cgroup))
        yield program


def ns_under(program: Program, load: Callable[[int], None], count: int) -> dict[str, float]:
    """Return the nanoseconds per run of each packet program during a load."""
    before = program.runs()
    load(count)
    after = program.runs()
    return {name: Runs(*after[name]).since(Runs(*before[name])).ns_each for name in PACKETS}


@benchmark(
    "udp_requests", "Timing UDP requests", dict.fromkeys(PACKETS.values(), "ns"), rounds=3,
    targets=tuple(
        Target(most, what, subject=load)
        for load, most in {"TCP": 40, "another port": 40, "DNS": 1500, "NTP": 1500}.items()
        for what in PACKETS.values()
    ),
)  # fmt: skip
def udp_requests(scale: Scale) -> Iterator[Turns]:
    """A run of each packet program above an empty one, by the kernel's statistics, for packets that are no requests and
    for requests with their responses.
    """
    count = scale.pick(EXCHANGES, 500)

    def turn(load: Callable[[int], None]) -> Sample:
        with timing() as program:
            timed = ns_under(program, load, count)
        with empty() as program:
            nothing = ns_under(program, load, count)
        return {what: timed[name] - nothing[name] for name, what in PACKETS.items()}

    own_namespace()
    with statistics_on():
        yield {name: lambda load=load: turn(load) for name, load in LOADS.items()}
