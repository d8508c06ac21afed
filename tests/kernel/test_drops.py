# SPDX-License-Identifier: Apache-2.0
"""Packets that the kernel is made to drop are counted with their reason, device and namespace."""

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest

from nettop.kernel.bpf.drop_reasons import NO_REASON, DropReasons, read_drop_reasons
from nettop.kernel.bpf.program import Loader
from nettop.probes.drops import probe
from nettop.probes.drops.probe import HEADER_PORTS_MAX, DropCount, Drops
from nettop.snapshots.drops import ORDINARY, REASONS, SEVERITIES, TROUBLE
from nettop.snapshots.snapshot import Snapshot

from . import traffic
from .command import HOUR, JSON, Running
from .fault_oracles import nstat
from .lab import Dropper, Lab, Namespace, Worker, until
from .test_events import decoded
from .traffic import Memory, two_workers

pytestmark = pytest.mark.kernel

MANY, SOME, FEW, CALLS, KINDS = 997, 499, 101, 13, 97
SIZE = 61
HEADERS = {"IPv4": 20 + 8, "IPv6": 40 + 8}
EXPERIMENTAL = 0x88B5
"""An ethertype that nobody handles (IEEE 802, local experiments)."""

SOL_PACKET, PACKET_QDISC_BYPASS = 263, 20
VERSIONS = [("v4", "IPv4", "Udp"), ("v6", "IPv6", "Udp6")]
SERVICE_PORT = 907
"""Below every range of ports that clients are given."""
HIGH_PORT = 51_820
"""A service's, in the range of ports that clients are given."""
RECEIVING_SOCKETS = pytest.mark.since("6.11", "the kernel does not tell which socket was to receive a packet")
REASONS_OF_DROPS = pytest.mark.since("5.17", "the kernel tells no reasons")
IN_CORE = [VERSIONS[0], pytest.param(*VERSIONS[1], marks=[pytest.mark.core, REASONS_OF_DROPS])]

Row = dict[str, Any]
Value = TypeVar("Value")


@contextlib.contextmanager
def attached(**how: int) -> Iterator[Drops]:
    """Yield the probe, attached."""
    with contextlib.closing(Drops(**how)) as source:
        source.start()
        yield source


@pytest.fixture
def drops() -> Iterator[Drops]:
    """Yield the probe, attached."""
    with attached() as source:
        yield source


# --- what workers do ------------------------------------------------------------------------------------------


def send(memory: Memory, to: tuple[str, int], packets: int, port: int = 0, cpu: int | None = None) -> None:
    """Send UDP packets of SIZE bytes from that port and CPU, over a socket that ignores refusals."""
    if cpu is not None:
        os.sched_setaffinity(0, {cpu})
    with socket.socket(traffic.V6 if ":" in to[0] else traffic.V4, socket.SOCK_DGRAM) as sender:
        sender.bind(("", port))
        for _ in range(packets):
            sender.sendto(b"n" * SIZE, to)


def scan(memory: Memory, address: str, ports: Sequence[int]) -> None:
    """Send a UDP packet to each of these ports."""
    with socket.socket(traffic.V6 if ":" in address else traffic.V4, socket.SOCK_DGRAM) as sender:
        for port in ports:
            sender.sendto(b"n" * SIZE, (address, port))


def small_socket(memory: Memory, address: str, port: int = 0) -> int:
    """Bind a UDP socket with the smallest receive buffer; return its port."""
    memory["small"] = socket.socket(traffic.V6 if ":" in address else traffic.V4, socket.SOCK_DGRAM)
    memory["small"].bind((address, port))
    memory["small"].setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    return int(memory["small"].getsockname()[1])


def read_waiting(memory: Memory) -> int:
    """Read the packets that wait in that socket; return their number."""
    memory["small"].setblocking(False)
    packets = 0
    with contextlib.suppress(BlockingIOError):
        while memory["small"].recv(SIZE):
            packets += 1
    return packets


def refused(memory: Memory, to: tuple[str, int], times: int) -> int:
    """Connect repeatedly to a closed port; return the number of refusals."""
    refusals = 0
    for _ in range(times):
        with socket.socket(traffic.V6 if ":" in to[0] else traffic.V4) as caller:
            try:
                caller.connect(to)
            except ConnectionRefusedError:
                refusals += 1
    return refusals


def shrink(memory: Memory, name: object, backlog: int) -> None:
    """Give a listener a smaller accept queue."""
    memory[name].listen(backlog)


def send_frames(memory: Memory, device: str, frames: int, directly: bool = False) -> None:
    """Send frames of an unhandled protocol; with `directly`, bypass the queue, so that the device may refuse them."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
        sender.bind((device, 0))
        if directly:
            sender.setsockopt(SOL_PACKET, PACKET_QDISC_BYPASS, 1)
        for _ in range(frames):
            with contextlib.suppress(OSError if directly else ()):
                sender.send(b"\xff" * 12 + EXPERIMENTAL.to_bytes(2, "big") + b"n" * SIZE)


# --- oracles --------------------------------------------------------------------------------------------------


def drop_by_rule(namespace: Namespace, rule: str, hook: str = "input") -> None:
    """Have nftables drop and count matching packets: incoming ones, or those it forwards."""
    chain = f"add chain inet t c {{ type filter hook {hook} priority 0; }}"
    namespace.run("nft", f"add table inet t; {chain}; add rule inet t c {rule} counter drop")


def dropped_by_rule(namespace: Namespace) -> int:
    """Return that rule's counter."""
    words = namespace.run("nft", "list chain inet t c").split()
    return int(words[words.index("packets") + 1])


def device_counters(namespace: Namespace, device: str) -> dict[str, int]:
    """Return iproute2's counters of a device, by the kernel's field names."""
    counters = namespace.link(device)["stats64"]
    return {f"{way}_{name}": packets for way in ("rx", "tx") for name, packets in counters[way].items()}


def softnet_drops() -> dict[int, int]:
    """Return softnet_drops (second column of softnet_stat) by CPU number (the last but two)."""
    lines = Path("/proc/net/softnet_stat").read_text().splitlines()
    return {int(line.split()[12], 16): int(line.split()[1], 16) for line in lines}


def when_quiet(look: Callable[[], Value], oracle: Callable[[], Any]) -> tuple[Value, Any]:
    """Return the result of `look` and the oracle's value, from a moment when the oracle's value is stable."""
    results: list[tuple[Value, Any]] = []

    def steady() -> bool:
        before, seen, after = oracle(), look(), oracle()
        results[:] = [(seen, after)]
        return bool(before == after)

    until(steady, "nothing happens during a reading")
    return results[0]


# --- what the lens shows --------------------------------------------------------------------------------------


def take(source: Drops) -> Snapshot:
    """Return one reading."""
    return source.read(time.monotonic_ns())


def packets_in(snapshot: Snapshot, namespace: Namespace, reason: str | None) -> list[Row]:
    """Return the rows of the table of packets with that reason in that namespace."""
    rows = decoded(snapshot.tables["packets"], namespace.inode)
    return [row for row in rows if row["reason"] == reason]


def counter(snapshot: Snapshot, namespace: Namespace, name: str) -> int:
    """Return a counter of a namespace in the table of counters."""
    rows = decoded(snapshot.tables["counters"], namespace.inode)
    (row,) = [row for row in rows if row["name"] == name]
    return int(row["packets"])


def counted(source: Drops, namespace: Namespace, reason: str) -> int:
    """Count the packets dropped for that reason in that namespace."""
    return sum(row["packets"] for row in packets_in(take(source), namespace, reason))


def what(row: Row) -> tuple[Any, ...]:
    """Return a row without its number, place, bytes and time."""
    return row["reason"], row["protocol"], row["family"], row["interface"], row["packets"]


# --- reasons --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("version", "family", "_"), IN_CORE)
def test_dropped_by_nftables(lab: Lab, drops: Drops, version: str, family: str, _: str) -> None:
    """nettop counts a prime number of packets that a rule drops, at their device and namespace."""
    _, far, sender, _ = two_workers(lab)
    drop_by_rule(far.namespace, "udp dport 9")
    sender.call(send, (getattr(far, version), 9), MANY)
    until(lambda: dropped_by_rule(far.namespace) == MANY, "nftables drops them all")
    snapshot = take(drops)
    (row,) = packets_in(snapshot, far.namespace, "NETFILTER_DROP")
    assert what(row) == ("NETFILTER_DROP", "udp", family, far.device, MANY)
    assert (row["port"], row["process"]) == (9, None)
    assert row["first_seen"] == row["last_seen"]
    assert row["bytes"] == MANY * (SIZE + HEADERS[family])
    assert row["last_seen"] == snapshot.wall_ns
    details = drops.describe(row["id"])
    assert details["Dropped at"].startswith(f"{row['place']}+0x")
    assert details["Dropped at"].endswith(f" ({MANY:,})")
    assert details["Namespace"] == far.namespace.name


@pytest.mark.parametrize(("version", "family", "prefix"), VERSIONS)
def test_full_receive_buffer(lab: Lab, drops: Drops, version: str, family: str, prefix: str) -> None:
    """A full UDP socket drops the packets sent but not received, and the namespace's own counter agrees."""
    _, far, sender, receiver = two_workers(lab)
    address = getattr(far, version)
    port = receiver.call(small_socket, address)
    sender.call(send, (address, port), MANY)
    received = 0

    def all_are_accounted_for() -> bool:
        nonlocal received
        received += receiver.call(read_waiting)
        return received + nstat(far.namespace, f"{prefix}RcvbufErrors") == MANY

    until(all_are_accounted_for, "every packet was received or dropped")
    assert received
    snapshot = take(drops)
    (row,) = packets_in(snapshot, far.namespace, "SOCKET_RCVBUFF")
    assert what(row) == ("SOCKET_RCVBUFF", "udp", family, far.device, MANY - received)
    assert counter(snapshot, far.namespace, f"{prefix}RcvbufErrors") == MANY - received


@RECEIVING_SOCKETS
@pytest.mark.parametrize(("version", "family", "prefix"), VERSIONS)
def test_the_port_of_the_receiving_socket(
    lab: Lab, drops: Drops, version: str, family: str, prefix: str
) -> None:
    """Drops of a full UDP socket have its port if it is a service's, and none if it is a client's: a port of clients
    that gets packets from a service. From a client's port, they are for a service at a high port."""
    _, far, sender, receiver = two_workers(lab)
    address = getattr(far, version)
    ports = []
    for number, (wanted, source) in enumerate(((SERVICE_PORT, 0), (0, SERVICE_PORT), (0, 0)), 1):
        ports.append(receiver.call(small_socket, address, wanted))
        sender.call(send, (address, ports[-1]), MANY, source)
        until(
            lambda number=number: len(packets_in(take(drops), far.namespace, "SOCKET_RCVBUFF")) == number,
            "some are dropped",
        )
    rows, expected = when_quiet(
        lambda: packets_in(take(drops), far.namespace, "SOCKET_RCVBUFF"),
        lambda: nstat(far.namespace, f"{prefix}RcvbufErrors"),
    )
    assert sorted((row["port"] or 0, row["protocol"], row["family"]) for row in rows) == [
        (0, "udp", family),
        (SERVICE_PORT, "udp", family),
        (ports[2], "udp", family),
    ]
    assert sum(row["packets"] for row in rows) == expected


@pytest.mark.parametrize(("version", "family", "prefix"), IN_CORE)
def test_closed_ports(lab: Lab, drops: Drops, version: str, family: str, prefix: str) -> None:
    """Packets to a closed port, UDP or TCP, have no socket."""
    _, far, sender, _ = two_workers(lab)
    address = getattr(far, version)
    sender.call(send, (address, 9), SOME)
    assert sender.call(refused, (address, 9), FEW) == FEW
    until(lambda: nstat(far.namespace, f"{prefix}NoPorts") == SOME, "every packet finds the port closed")
    snapshot = take(drops)
    rows = packets_in(snapshot, far.namespace, "NO_SOCKET")
    assert sorted(map(what, rows)) == [
        ("NO_SOCKET", "tcp", family, far.device, FEW),
        ("NO_SOCKET", "udp", family, far.device, SOME),
    ]
    assert [(row["port"], row["process"]) for row in rows] == [(9, None)] * 2
    assert counter(snapshot, far.namespace, f"{prefix}NoPorts") == SOME


def test_closed_ports_of_services_and_clients(lab: Lab, drops: Drops) -> None:
    """A service may listen at a port that clients are given too (WireGuard, gRPC); what a service sends to such a port
    is an answer that comes too late."""
    _, far, sender, _ = two_workers(lab)
    sender.call(send, (far.v6, HIGH_PORT), SOME)
    sender.call(send, (far.v6, HIGH_PORT + 1), FEW, SERVICE_PORT)
    until(lambda: counted(drops, far.namespace, "NO_SOCKET") == SOME + FEW, "every packet is dropped")
    rows = packets_in(take(drops), far.namespace, "NO_SOCKET")
    assert {row["port"]: row["packets"] for row in rows} == {HIGH_PORT: SOME, None: FEW}


def test_a_scan_of_ports(lab: Lab, drops: Drops) -> None:
    """Many closed ports between two readings: some are named, and every packet is counted."""
    _, far, sender, _ = two_workers(lab)
    take(drops)
    ports = range(1, 1 + 3 * HEADER_PORTS_MAX)
    sender.call(scan, far.v6, ports)
    until(lambda: nstat(far.namespace, "Udp6NoPorts") == len(ports), "every packet arrives")
    rows = packets_in(take(drops), far.namespace, "NO_SOCKET")
    assert sum(row["packets"] for row in rows) == len(ports)
    assert {row["port"] for row in rows} <= {None, *ports}
    assert FEW < len(rows) <= HEADER_PORTS_MAX + 1
    sender.call(scan, far.v6, ports[-1:])
    until(lambda: nstat(far.namespace, "Udp6NoPorts") == len(ports) + 1, "one more arrives")
    rows = packets_in(take(drops), far.namespace, "NO_SOCKET")
    assert [row["packets"] for row in rows if row["port"] == ports[-1]] == [1]


def test_full_accept_queue(lab: Lab, drops: Drops) -> None:
    """Handshakes that end at a full accept queue count as such, as often as the namespace counts overflows."""
    near, far, caller, listener = two_workers(lab)
    port = listener.call(traffic.listen, "listener", far.v4)
    dropper = lab.dropper(near)
    dropper.rule(with_flags=Dropper.SYN | Dropper.ACK)
    for number in range(CALLS):  # all are half open before the first one ends its handshake
        caller.call(traffic.connect_without_answer, number, traffic.Call((far.v4, port)))
    until(lambda: dropper.dropped() >= CALLS, "every SYN is answered")
    listener.call(shrink, "listener", 1)
    dropper.nothing()
    least = CALLS - 2  # the accept queue holds one more than it was set to
    until(lambda: nstat(far.namespace, "TcpExtListenOverflows") >= least, "the accept queue overflows")
    dropper.rule()
    snapshot, expected = when_quiet(
        lambda: take(drops), lambda: nstat(far.namespace, "TcpExtListenOverflows")
    )
    assert counter(snapshot, far.namespace, "TcpExtListenOverflows") == expected
    reason = "TCP_LISTEN_OVERFLOW"
    if read_drop_reasons().number(reason) != NO_REASON:  # before Linux 6.15 it is one of many not specified
        rows = packets_in(snapshot, far.namespace, reason)
        assert list(map(what, rows)) == [(reason, "tcp", "IPv4", far.device, expected)]


def test_syn_at_a_full_accept_queue(lab: Lab, drops: Drops) -> None:
    """A SYN that finds the accept queue full is in the counters as often as in nstat, and in the row of its port,
    though the kernel calls no tracepoint for it."""
    _, far, caller, listener = two_workers(lab)
    port = listener.call(traffic.listen, "listener", far.v4, 0, 1)
    for number in range(CALLS):
        caller.call(traffic.connect_without_answer, number, traffic.Call((far.v4, port)))
    until(lambda: nstat(far.namespace, "TcpExtListenOverflows") >= CALLS - 2, "the accept queue overflows")
    for name in ("TcpExtListenOverflows", "TcpExtListenDrops"):
        snapshot, expected = when_quiet(lambda: take(drops), lambda name=name: nstat(far.namespace, name))
        assert counter(snapshot, far.namespace, name) == expected
        # A SYN that the queue takes in its last moment is answered, and the end of that handshake dropped in sight.
        rows = packets_in(snapshot, far.namespace, "TCP_LISTEN_OVERFLOW")
        assert sum(row["packets"] for row in rows) == expected
        assert {(row["port"], row["severity"]) for row in rows if row["place"] == "tcp_conn_request"} == {
            (port, SEVERITIES[TROUBLE])
        }


def test_every_reason_has_a_severity() -> None:
    """Every reason of this kernel's core has a severity, except those of consumed packets."""
    not_dropped = {"NOT_DROPPED_YET", "CONSUMED", "MAX", "SUBSYS_MASK"}
    unknown = set(read_drop_reasons().core.values()) - not_dropped - REASONS.keys()
    assert not unknown
    assert [name for name, reason in REASONS.items() if reason.severity is None] == ["NOT_SPECIFIED"]


def test_a_connection_that_ends_is_ordinary(lab: Lab, drops: Drops) -> None:
    """Drops that the kernel makes for each closed connection are distinguished from trouble.

    A FIN that also acknowledges stays in the queue of the end that closed first. All traffic is on one CPU: packets
    that two CPUs reorder would be refused as belonging to no connection.
    """
    near, far, caller, listener = two_workers(lab)
    for worker in (caller, listener):
        worker.call(traffic.stay_on, min(os.sched_getaffinity(0)))
    port = listener.call(traffic.listen, "listener", far.v4)
    ports = caller.call(traffic.connect_at_once, [traffic.Call((far.v4, port))] * SOME)
    listener.call(traffic.accept_ports, "listener", {port: number for number, port in enumerate(ports)})
    for number in range(SOME):
        for worker in (caller, listener):
            worker.call(traffic.close, [number])

    def dropped() -> list[Row]:
        rows = decoded(take(drops).tables["packets"], near.namespace.inode, far.namespace.inode)
        return [row for row in rows if row["protocol"] == "tcp"]

    if read_drop_reasons().number("QUEUE_PURGE") != NO_REASON:
        until(
            lambda: any(row["reason"] == "QUEUE_PURGE" for row in dropped()),
            "the ends of connections are dropped",
        )
    # Of some the kernel says nothing.
    assert {row["severity"] for row in dropped() if row["reason"] != "NOT_SPECIFIED"} <= {
        SEVERITIES[ORDINARY]
    }


def test_handshakes_that_fail(lab: Lab, drops: Drops) -> None:
    """A lost SYN-ACK, the reset that answers its retransmission, and a SYN cookie are counted, each as in nstat."""
    near, far, caller, listener = two_workers(lab)
    port = listener.call(traffic.listen, "listener", far.v4)
    dropper = lab.dropper(near)
    dropper.rule(with_flags=Dropper.SYN | Dropper.ACK)
    caller.call(traffic.connect_without_answer, 0, traffic.Call((far.v4, port)))
    until(dropper.dropped, "the SYN-ACK is dropped")
    caller.call(traffic.close, [0])
    dropper.nothing()
    until(lambda: nstat(far.namespace, "TcpExtEmbryonicRsts"), "its repetition is reset")
    far.namespace.sysctl("net.ipv4.tcp_syncookies", 2)
    caller.call(traffic.connect_at_once, [traffic.Call((far.v4, port))])
    for name in ("TcpExtEmbryonicRsts", "TcpExtTCPSynRetrans", "TcpExtSyncookiesSent"):
        snapshot, expected = when_quiet(lambda: take(drops), lambda name=name: nstat(far.namespace, name))
        assert counter(snapshot, far.namespace, name) == expected > 0


def test_nobody_answers_for_an_address(lab: Lab, drops: Drops) -> None:
    """The sender's device drops packets to a nonexistent neighbour; they have a namespace."""
    near, _, sender, _ = two_workers(lab)
    sender.call(send, ("10.78.0.77", 9), 3)
    until(lambda: counted(drops, near.namespace, "NEIGH_FAILED") == 3, "the neighbour is given up")
    (row,) = packets_in(take(drops), near.namespace, "NEIGH_FAILED")
    assert what(row) == ("NEIGH_FAILED", "udp", "IPv4", near.device, 3)


# --- every CPU, and no room -------------------------------------------------------------------------------------


def test_all_cpus_at_once(lab: Lab, drops: Drops) -> None:
    """Drops on all CPUs at the same time are all counted, in one row."""
    home = lab.namespace()
    cpus = sorted(os.sched_getaffinity(0))
    workers = [lab.worker(home) for _ in cpus]
    for worker, cpu in zip(workers, cpus, strict=True):
        worker.start(send, ("127.0.0.1", 9), MANY, 0, cpu)
    for worker in workers:
        worker.result()
    all_sent = MANY * len(cpus)
    until(lambda: nstat(home, "UdpNoPorts") == all_sent, "every packet finds the port closed")
    snapshot = take(drops)
    rows = packets_in(snapshot, home, "NO_SOCKET")
    assert [what(row) for row in rows] == [("NO_SOCKET", "udp", "IPv4", "lo", all_sent)]
    assert snapshot.lost["untracked"] == 0


def hooked(kinds_max: int) -> contextlib.closing[DropCount]:
    """Return the program alone, with room for so many kinds of drops."""
    with contextlib.closing(Loader()) as loader:
        return contextlib.closing(DropCount(loader, kinds_max))


def all_of(hook: DropCount) -> int:
    """Return all drops that a program saw: counted, not counted in a full map, or missed while it ran."""
    return int(hook.read()[1]["packets"].sum()) + sum(hook.lost().values())


def test_a_full_map(lab: Lab) -> None:
    """Drops that find the map full are counted: rows and untracked ones sum up to those of a program with room."""
    home = lab.namespace()
    sender = lab.worker(home)
    with hooked(2) as small, hooked(4096) as large:
        head_start = when_quiet(lambda: all_of(small) - all_of(large), lambda: all_of(large))[0]
        for address in ("127.0.0.1", "::1"):
            sender.call(send, (address, 9), SOME)
            sender.call(refused, (address, 9), FEW)
        until(lambda: nstat(home, "Udp6NoPorts") == SOME, "every packet finds the port closed")
        seen, all_there_was = when_quiet(lambda: all_of(small) - head_start, lambda: all_of(large))
        assert seen == all_there_was >= 2 * (SOME + FEW)
        assert (len(small.read()[0]), large.lost()["untracked"]) == (2, 0)
        assert small.lost()["untracked"] >= SOME + FEW


def test_a_map_makes_room(lab: Lab) -> None:
    """Rows seen least recently are evicted; the total keeps all."""
    oldest, newer, newest = lab.namespace(), lab.namespace(), lab.namespace()
    with attached(kinds_max=256) as source:
        drop_kinds(lab.worker(oldest), oldest, KINDS)
        until(lambda: kinds_in(take(source), oldest) == KINDS, "all kinds have a row")
        drop_kinds(lab.worker(newer), newer, FEW)
        until(lambda: forgotten(take(source)) > 0, "the oldest rows leave")
        snapshot = take(source)
        assert (kinds_in(snapshot, oldest) < KINDS, kinds_in(snapshot, newer)) == (True, FEW)
        drop_kinds(lab.worker(newest), newest, FEW // 2)
        until(lambda: forgotten(take(source)) > KINDS // 2, "more of the oldest rows leave")
        assert kinds_in(take(source), newest) == FEW // 2
        assert snapshot.lost["untracked"] == 0


def drop_kinds(worker: Worker, namespace: Namespace, count: int) -> None:
    """Have packets of `count` protocols dropped."""
    drop_by_rule(namespace, "meta l4proto != 1 ip protocol 1-250")
    for number in range(101, 101 + count):
        worker.call(send_raw, number)


def kinds_in(snapshot: Snapshot, namespace: Namespace) -> int:
    """Count a namespace's rows of packets that a rule dropped."""
    return len(packets_in(snapshot, namespace, "NETFILTER_DROP"))


def forgotten(snapshot: Snapshot) -> int:
    """Return counted drops that are no longer in any row."""
    return snapshot.counts["drops"] - int(snapshot.tables["packets"].array["packets"].sum())


def send_raw(memory: Memory, protocol: int) -> None:
    """Send one IP packet of that protocol to loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, protocol) as sender:
        sender.sendto(b"n", ("127.0.0.1", 0))


def test_devices_count(lab: Lab, drops: Drops) -> None:
    """Every device counter of the lens equals iproute2's, including frames dropped both ways."""
    near, far, sender, _ = two_workers(lab)
    sender.call(send_frames, near.device, SOME)
    until(
        lambda: device_counters(far.namespace, far.device)["rx_dropped"] >= SOME,
        "frames that nobody handles are dropped",
    )
    far.namespace.ip("link", "set", far.device, "down")
    sender.call(send_frames, near.device, FEW, True)
    until(
        lambda: device_counters(near.namespace, near.device)["tx_dropped"] >= FEW,
        "frames to a device without a carrier are dropped",
    )
    for end in (near, far):
        snapshot, expected = when_quiet(
            lambda: take(drops), lambda end=end: device_counters(end.namespace, end.device)
        )
        shown = {
            row["name"]: row["packets"]
            for row in decoded(snapshot.tables["counters"], end.namespace.inode)
            if row["interface"] == end.device
        }
        # iproute2 leaves the two youngest out where they are zero.
        assert {_of_iproute2(name) for name in shown} - expected.keys() <= {"rx_nohandler", "rx_otherhost"}
        assert shown == {name: expected.get(_of_iproute2(name), 0) for name in shown}
        assert {"rx_dropped", "tx_dropped", "rx_missed_errors"} < shown.keys()


def _of_iproute2(name: str) -> str:
    """Map counters to iproute2's names: rx_missed_errors is rx: missed_errors, rx_otherhost_dropped rx: otherhost."""
    return {"rx_otherhost_dropped": "rx_otherhost"}.get(name, name)


def test_cpus_count(drops: Drops) -> None:
    """Each CPU's backlog drops equal those in softnet_stat."""
    snapshot, expected = when_quiet(lambda: take(drops), softnet_drops)
    rows = decoded(snapshot.tables["counters"])
    assert {row["cpu"]: row["packets"] for row in rows if row["name"] == "softnet_dropped"} == expected


def test_a_device_that_has_gone_keeps_its_name(lab: Lab, drops: Drops) -> None:
    """Rows of a removed device keep its name; a device that came and went between two refreshes has its number."""
    _, far, sender, _ = two_workers(lab)
    take(drops)
    sender.call(send, (far.v4, 9), FEW)
    until(lambda: nstat(far.namespace, "UdpNoPorts") == FEW, "every packet finds the port closed")
    far.namespace.ip("link", "add", "lived", "index", "4711", "type", "veth", "peer", "name", "short")
    for device in ("short", "lived"):
        far.namespace.ip("link", "set", device, "up")
    lab.worker(far.namespace).call(send_frames, "short", FEW)
    until(lambda: device_counters(far.namespace, "lived")["rx_dropped"] >= FEW, "its frames are dropped")
    far.namespace.ip("link", "del", "short")
    far.namespace.ip("link", "del", far.device)
    rows = packets_in(take(drops), far.namespace, "NO_SOCKET")
    assert [row["interface"] for row in rows] == [far.device]
    unhandled = packets_in(take(drops), far.namespace, "UNHANDLED_PROTO")
    assert [what(row) for row in unhandled] == [("UNHANDLED_PROTO", None, "0x88b5", "if4711", FEW)]


# --- other kernels ------------------------------------------------------------------------------------------------


def test_without_reasons(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a kernel whose tracepoint gives no reason, expected drops are recognized by place, and the lens says so."""
    monkeypatch.setattr(probe, "read_drop_reasons", lambda: DropReasons(arguments=2))
    home = lab.namespace()
    with attached() as source:
        worker = lab.worker(home)
        worker.call(send, ("127.0.0.1", 9), SOME)
        worker.call(refused, ("127.0.0.1", 9), FEW)
        until(lambda: nstat(home, "UdpNoPorts") == SOME, "every packet finds the port closed")
        snapshot = take(source)
        rows = {row["protocol"]: row for row in packets_in(snapshot, home, None)}
        assert (rows["tcp"]["packets"], rows["udp"]["packets"]) == (FEW, SOME)
        assert rows["tcp"]["place"] != rows["udp"]["place"]
        assert list(snapshot.missing) == ["reason", "severity"]


@RECEIVING_SOCKETS
def test_the_command_names_the_process(lab: Lab) -> None:
    """nettop names process, PID and port of the only socket with a full receive buffer."""
    home = lab.namespace()
    receiver, sender = lab.worker(home, "slowreader"), lab.worker(home)
    receiver.call(small_socket, "127.0.0.1", SERVICE_PORT)
    chosen = f"netns={home.inode} reason=SOCKET_RCVBUFF"
    with Running(*JSON, *HOUR, "--view", "drops", "--filter", chosen) as running:
        until(lambda: worker_drops_are_shown(running, sender, SERVICE_PORT), "the rows are shown")
        shown = running.refreshes()[-1]
    assert [(row["process"], row["pid"], row["port"], row["protocol"]) for row in shown] == [
        ("slowreader", receiver.pid, SERVICE_PORT, "udp")
    ]


@RECEIVING_SOCKETS
def test_the_command_names_the_process_behind_a_firewall(lab: Lab) -> None:
    """A socket whose packets a rule drops is named, but not a router's own at the port of what passes through."""
    near, router, far = lab.routed_pair()
    sender = lab.worker(near)
    for namespace, name in ((router, "passed"), (far, "protected")):
        lab.worker(namespace, name).call(small_socket, "0.0.0.0", SERVICE_PORT)
    drop_by_rule(far, f"udp dport {SERVICE_PORT}")
    drop_by_rule(router, "udp sport 7", hook="forward")
    chosen = f"(netns={router.inode} or netns={far.inode}) reason=NETFILTER_DROP"
    with Running(*JSON, *HOUR, "--view", "drops", "--filter", chosen) as running:

        def both_are_shown() -> list[Any]:
            for port in (7, 0):
                sender.call(send, ("10.76.2.1", SERVICE_PORT), FEW, port)
            running.refresh()
            rows = [rows for rows in running.refreshes() if len(rows) == 2]
            return rows[-1] if rows else []

        shown = until(both_are_shown, "both rules drop")
    assert {(row["netns"], row["process"], row["port"]) for row in shown} == {
        (router.inode, None, SERVICE_PORT),
        (far.inode, "protected", SERVICE_PORT),
    }


def worker_drops_are_shown(running: Running, worker: Worker, port: int = 9) -> bool:
    """Return whether a refresh shows a worker's drops; the program is attached at some point after the start."""
    worker.call(send, ("127.0.0.1", port), FEW)
    running.refresh()
    return bool(running.text())


def test_reading_drops_nothing(drops: Drops) -> None:
    """nettop's own queries to the kernel cause no drops."""

    def socket_drops() -> int:
        rows = decoded(take(drops).tables["packets"])
        return sum(row["packets"] for row in rows if row["family"] in ("netlink", "unix"))

    def twenty() -> int:
        return [socket_drops() for _ in range(20)][-1]

    until(lambda: socket_drops() == twenty(), "twenty readings drop nothing")
