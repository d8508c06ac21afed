# SPDX-License-Identifier: Apache-2.0
"""Measure the cost of timing UDP requests: `sudo .venv/bin/python bench/udp_requests.py [price others] [--quick]`.

`price`: nanoseconds per run of each packet program above an empty one at the same hook, by the kernel's statistics, for
packets of other ports and for requests and answers. `others`: CPU time per datagram of 1,200 bytes at another port with
the programs attached ÷ without, and the same for empty programs; the turns alternate.
"""

import contextlib
import os
import socket
import statistics
import struct
import sys
import time
from argparse import Namespace as Options
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

from bpf_stats import Runs, statistics_on
from measure import QUICK, Figure, Report, arguments, judge
from sockets import own_namespace
from udp import ns_per_byte, sending

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
EXCHANGES, PAIRS = 20_000, 25
OTHERS_NS, REQUEST_NS = 40.0, 1500.0
"""Bounds on a run above an empty one, for packets of other ports, and for requests and answers."""
QUERY = struct.pack(">6H", 0, 0x100, 1, 0, 0, 0) + b"\3www\7example\3org\0\0\1\0\1"
PACKETS = ("skb__egress", "skb__ingress")


def exchange_tcp(count: int) -> None:
    """Send requests of 100 bytes over a connection, and an answer to each."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
    with client, server:
        for _ in range(count):
            for sender, receiver in ((client, server), (server, client)):
                sender.sendall(b"n" * 100)
                receiver.recv(1000)


def exchange_udp(port: int, count: int) -> None:
    """Send DNS requests to a port, and an answer to each."""
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


LOADS: dict[str, tuple[Callable[[int], None], float]] = {
    "TCP": (exchange_tcp, OTHERS_NS),
    "another port": (lambda count: exchange_udp(OTHER_PORT, count), OTHERS_NS),
    "DNS": (lambda count: exchange_udp(DNS_PORT, count), REQUEST_NS),
    "NTP": (lambda count: exchange_udp(NTP_PORT, count), REQUEST_NS),
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


def runs_under(program: Program, load: Callable[[int], None], count: int) -> dict[str, Runs]:
    """Return the runs of each packet program during a load."""
    before = program.runs()
    load(count)
    after = program.runs()
    return {name: Runs(*after[name]).since(Runs(*before[name])) for name in PACKETS}


def price(count: int) -> Report:
    """Measure nanoseconds per run of each packet program above the empty one."""
    runs: dict[str, list[dict[str, Runs]]] = {name: [] for name in LOADS}
    with statistics_on():
        for attached in (timing, empty):
            with attached() as program:
                for name, (load, _) in LOADS.items():
                    runs[name].append(runs_under(program, load, count))
    figures = [
        Figure(
            f"{name}, {hook}: {timed[hook].ns_each:.0f}; empty: {nothing[hook].ns_each:.0f}",
            timed[hook].ns_each - nothing[hook].ns_each,
            "ns",
            LOADS[name][1],
        )
        for name, (timed, nothing) in runs.items()
        for hook in PACKETS
    ]
    return f"a run of each packet program above an empty one, {count:,} requests each", figures


def others(pairs: int) -> Report:
    """Measure the CPU time of datagrams at another port with the programs attached ÷ without."""
    switches: dict[str, Callable[[], AbstractContextManager[Program]]] = {
        "nettop": timing,
        "empty programs": empty,
    }
    figures = []
    with sending(1) as (pid, sent):
        for name, attached in switches.items():
            ratios = []
            for _ in range(pairs):
                without = ns_per_byte(pid, sent)
                with attached():
                    ratios.append(ns_per_byte(pid, sent) / without)
                time.sleep(0.05)
            figures.append(Figure(f"with {name} ÷ without, median of {pairs}", statistics.median(ratios)))
    return "CPU time per datagram of 1,200 bytes at another port", figures


def main() -> int:
    """Run all parts, or the named ones."""
    options = arguments(__doc__, ("price", "others"), quick=QUICK)
    own_namespace()
    return judge(reports(options))


def reports(options: Options) -> Iterator[Report]:
    """Run the chosen parts."""
    if "price" in options.parts:
        yield price(1000 if options.quick else EXCHANGES)
    if "others" in options.parts:
        yield others(2 if options.quick else PAIRS)


if __name__ == "__main__":
    sys.exit(main())
