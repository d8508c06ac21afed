# SPDX-License-Identifier: Apache-2.0
"""The lens measures packets' true durations, and accounts for every packet that enters a stage."""

import os
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from nettop.probes.latency import rows as latency_rows
from nettop.probes.latency.probe import Latency
from nettop.probes.latency.programs import FALLBACKS
from nettop.snapshots.arrays import Array
from nettop.snapshots.latency import (
    BACKLOG,
    BUCKETS,
    FAMILIES,
    HANDSHAKE,
    HOOKS,
    IP,
    PAIRS_EVICTED,
    PROTOCOLS,
    QDISC,
    RTT,
    SOCKET_WAIT,
    STAGES,
    WIRE_APP,
    WIRE_IP,
    WIRE_SOCKET,
)
from nettop.snapshots.snapshot import Snapshot, known
from tests.options import source_options

from . import traffic
from .conftest import version_numbers
from .lab import Lab, Namespace, until
from .slow_path import ADDRESSES, SlowPath
from .test_events import decoded
from .traffic import Memory, send_datagrams, two_workers

pytestmark = pytest.mark.kernel

TERMS = ("matched", "dropped", "unmatched", "waiting")
ERROR = 1 / 32
"""How far the middle of a bucket may be from a duration in it, as a share."""
STAMP_STAGES = (WIRE_IP, WIRE_SOCKET, WIRE_APP)
SO_SNDBUFFORCE, SO_RCVBUFFORCE, SO_TIMESTAMPNS = 32, 33, 35


class Watched:
    """A probe that follows every packet of this machine, and its counts since `begin`."""

    def __init__(
        self, sampling: int = 1, *, rooms: Mapping[str, Any] | None = None, **mechanisms: str
    ) -> None:
        self.probe = Latency(**(rooms or {}))
        self.probe.configure(source_options(["pairs"], mechanisms, sampling=sampling))
        self.probe.start()
        self.snapshot = self.read()
        self._before = self.snapshot

    def read(self) -> Snapshot:
        """Return a reading."""
        self.snapshot = self.probe.read(time.monotonic_ns())
        return self.snapshot

    def begin(self) -> None:
        """Discard the counts so far."""
        self._before = self.read()

    def why_not(self, stage: int) -> str | None:
        """Return the reason why a stage is not measured."""
        return self.snapshot.why_not(HOOKS[stage].name)

    def added(self, stage: int, protocol: str, family: str = "IPv4") -> dict[str, int]:
        """Return the packets that entered a stage, by outcome."""
        now, before = self._rows(stage, protocol, family)
        names = [name for name in ("seen", *TERMS) if known(now[name].reshape(1)).all()]
        return {name: int(now[name] - before[name]) for name in names}

    def histogram(self, stage: int, protocol: str, family: str = "IPv4") -> Array:
        """Return the durations of a stage, by bucket."""
        now, before = self._rows(stage, protocol, family)
        added: Array = now["latency"] - before["latency"]
        return added

    def median(self, stage: int, protocol: str, family: str = "IPv4") -> float:
        """Return the median duration of a stage, in ns."""
        return float(BUCKETS.quantiles(self.histogram(stage, protocol, family)[None], 0.5)[0])

    def between(self, stage: int, source: str, destination: str, protocol: str) -> int:
        """Count the packets matched from one address to another since the start."""
        return sum(
            row["packets"]
            for row in decoded(self.read().tables["pairs"])
            if (row["stage"], row["source"], row["destination"], row["protocol"])
            == (STAGES[stage], source, destination, protocol)
        )

    def _rows(self, stage: int, protocol: str, family: str) -> Iterator[Any]:
        """Yield the row of a stage now, and at the beginning."""
        labels = stage, list(PROTOCOLS.values()).index(protocol), list(FAMILIES.values()).index(family)
        for snapshot in (self.read(), self._before):
            rows = snapshot.tables["protocols"].array
            keys = rows[["stage", "protocol", "family"]].tolist()
            yield rows[keys.index(labels)] if labels in keys else np.zeros((), rows.dtype)


@contextmanager
def watched(
    sampling: int = 1, *, rooms: Mapping[str, Any] | None = None, **mechanisms: str
) -> Iterator[Watched]:
    """Yield an attached probe, once the kernel timestamps packets."""
    probe = Watched(sampling, rooms=rooms, **mechanisms)
    try:
        if probe.why_not(WIRE_IP) is None:
            until(lambda: _is_stamped(probe), "packets are stamped")
        probe.begin()
        yield probe
    finally:
        probe.probe.close()


def _is_stamped(probe: Watched) -> bool:
    """Send a datagram over loopback; return whether it had a timestamp, which starts shortly after the request."""
    probe.begin()
    with socket.socket(traffic.V6, socket.SOCK_DGRAM) as own:
        own.bind(("::1", 0))
        own.sendto(b"n", own.getsockname()[:2])
        own.recv(1)
    return bool(probe.histogram(WIRE_IP, "udp", "IPv6").sum())


def assert_sums(probe: Watched) -> None:
    """Assert that in every row matched, dropped, unmatched and waiting packets sum up to the seen ones."""
    for row in decoded(probe.read().tables["protocols"]):
        assert sum(row[name] or 0 for name in TERMS) == row["seen"], row


# --- traffic --------------------------------------------------------------------------------------------------


def bind(memory: Memory, name: str, address: str) -> int:
    """Open a bound UDP socket with room for all datagrams of a test, and return its port."""
    port = traffic.udp(memory, name, address)
    memory[name].setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 26)
    return port


def receive_datagrams(memory: Memory, name: str, count: int) -> None:
    """Read `count` datagrams."""
    for _ in range(count):
        traffic.ready([memory[name]])
        memory[name].recv(2048)


def send_echo_requests(memory: Memory, to: str, count: int) -> None:
    """Send `count` echo requests and read the answers."""
    family, protocol, kind, answer = (
        (traffic.V6, socket.IPPROTO_ICMPV6, 128, 129)
        if ":" in to
        else (traffic.V4, socket.IPPROTO_ICMP, 8, 0)
    )
    with socket.socket(family, socket.SOCK_RAW, protocol) as raw:
        for number in range(count):
            header = struct.pack(">BBHHH", kind, 0, 0, 1, number)
            checksum = 0 if family == traffic.V6 else ~sum(struct.unpack(">4H", header)) & 0xFFFF
            raw.sendto(struct.pack(">BBHHH", kind, 0, checksum, 1, number), (to, 0))
            answered = False
            while not answered:
                traffic.ready([raw])
                message = raw.recv(2048)
                answered = message[0 if family == traffic.V6 else 20] == answer


def exchange(memory: Memory, to: tuple[str, int], connections: int, messages: int) -> None:
    """Send this many messages over each of this many connections, and read each back."""
    open_ones = [socket.create_connection(to) for _ in range(connections)]
    for made in open_ones:
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for _ in range(messages):
        for made in open_ones:
            made.send(b"request")
        for made in open_ones:
            made.recv(7)
    for made in open_ones:
        made.close()


def answer(memory: Memory, listener: str, connections: int, messages: int) -> None:
    """Accept connections, and echo their data."""
    accepted = [memory[listener].accept()[0] for _ in range(connections)]
    left = connections * messages
    while left:
        for ready in select.select(accepted, [], [])[0]:
            ready.send(ready.recv(7))
            left -= 1
    for made in accepted:
        made.close()


def received_packets(namespace: Namespace, device: str) -> int:
    """Return a device's own counter of received packets."""
    return int(namespace.link(device)["stats64"]["rx"]["packets"])


# --- every packet is accounted for ----------------------------------------------------------------------------


@pytest.mark.parametrize(("version", "flows"), [(4, 1), pytest.param(6, 1000, marks=pytest.mark.oracle)])
def test_datagrams(lab: Lab, version: int, flows: int) -> None:
    """Every datagram is seen and matched at each stage, on its way and on arrival."""
    near, far, here, there = two_workers(lab)
    source, target = (near.v4, far.v4) if version == 4 else (near.v6, far.v6)
    port = there.call(bind, "in", target)
    count = 4000
    with watched() as probe:
        here.call(send_datagrams, (target, port), count, 64, flows)
        # Nobody reads meanwhile: where the program sees the socket and not the datagram, a reader may be quicker.
        until(lambda: probe.between(WIRE_SOCKET, source, target, "udp") == count, "all are in the queue")
        for stage in (QDISC, BACKLOG, WIRE_IP):
            assert probe.between(stage, source, target, "udp") == count, STAGES[stage]
        there.call(receive_datagrams, "in", count)
        assert_sums(probe)
        assert not any(probe.snapshot.lost.values())


@pytest.mark.parametrize("version", [4, 6])
def test_echo_requests(lab: Lab, version: int) -> None:
    """Packets that are neither TCP nor UDP are followed too, both ways, until a raw socket has read them."""
    near, far = lab.pair()
    here = lab.worker(near.namespace)
    source, target = (near.v4, far.v4) if version == 4 else (near.v6, far.v6)
    with watched() as probe:
        here.call(send_echo_requests, target, 97)
        for stage in (QDISC, BACKLOG, WIRE_IP):
            assert probe.between(stage, source, target, "icmp") == 97, STAGES[stage]
            assert probe.between(stage, target, source, "icmp") == 97, STAGES[stage]
        assert probe.between(WIRE_APP, target, source, "icmp") == 97
        assert_sums(probe)


@pytest.mark.parametrize(("connections", "messages", "aggregates"), [(1, 997, False), (500, 3, True)])
def test_connections(lab: Lab, connections: int, messages: int, aggregates: bool) -> None:
    """The lens sees each TCP segment that the device received, and knows its duration."""
    near, far = lab.pair()
    for end in (near, far):
        end.namespace.sysctl(
            f"net.ipv6.conf.{end.device}.disable_ipv6", 1
        )  # whose packets the device counts too
        end.namespace.ip("link", "set", end.device, "gso_max_segs", "64" if aggregates else "1")
    here, there = lab.worker(near.namespace), lab.worker(far.namespace)
    port = there.call(traffic.listen, "in", far.v4)
    with watched() as probe:
        before = received_packets(far.namespace, far.device)
        there.start(answer, "in", connections, messages)
        here.call(exchange, (far.v4, port), connections, messages)
        there.result()

        def arrived() -> tuple[int, int]:
            counted = probe.between(WIRE_IP, near.v4, far.v4, "tcp")
            return counted, received_packets(far.namespace, far.device) - before

        until(lambda: len(set(arrived())) == 1, f"as many packets as the device received: {arrived()}")
        for stage in (QDISC, BACKLOG):
            assert probe.between(stage, near.v4, far.v4, "tcp") == arrived()[1], STAGES[stage]
        assert probe.between(WIRE_APP, near.v4, far.v4, "tcp") >= connections * messages * 0.999
        assert_sums(probe)
        rows = decoded(probe.snapshot.tables["stages"])
        for row in rows:
            if row["stage"] in {STAGES[stage] for stage in STAMP_STAGES}:
                assert row["unmatched"] <= row["seen"] / 1000, row


def test_a_queue_that_drops(lab: Lab) -> None:
    """Packets dropped by a full queue count as dropped, as the queue itself counts them."""
    near, far, here, there = two_workers(lab)
    port = there.call(bind, "in", far.v6)
    near.limit("rate", "8mbit", "burst", "3000", "limit", "30000")
    with watched() as probe:
        here.call(send_datagrams, (far.v6, port), 499, 1000)
        until(
            lambda: "backlog 0b" in near.namespace.run("tc", "-s", "qdisc", "show", "dev", near.device),
            "it is empty",
        )
        statistics = near.namespace.run("tc", "-s", "qdisc", "show", "dev", near.device)
        dropped = int(statistics.partition("(dropped ")[2].partition(",")[0])
        added = probe.added(QDISC, "udp", "IPv6")
        assert dropped > 0
        assert added["dropped"] == dropped
        assert added["seen"] == 499
        assert_sums(probe)


def send_to_many(memory: Memory, end: str, count: int) -> None:
    """Send a datagram to each of these addresses."""
    with socket.socket(traffic.V4, socket.SOCK_DGRAM) as sender:
        for number in range(count):
            sender.sendto(b"n", (end.format(number >> 8, number & 255), 9))


def test_more_pairs_than_there_is_room_for(lab: Lab) -> None:
    """Counts of pairs and of evicted pairs sum up to the matched packets."""
    near, _ = lab.pair()
    here = lab.worker(near.namespace)
    with watched(rooms={"pairs_max": 64}) as probe:
        here.call(send_to_many, "10.82.{}.{}", 997)
        until(lambda: probe.added(WIRE_IP, "udp")["seen"] >= 997, "all have arrived")

        def accounted() -> tuple[int, int]:
            """Return the packets matched at stages with pairs, and those counted by pairs and evicted pairs."""
            snapshot = probe.read()
            stages, pairs = snapshot.tables["stages"].array, snapshot.tables["pairs"].array
            has_pairs = ~np.isin(stages["stage"], (HANDSHAKE, RTT)) & known(stages["matched"])
            in_pairs = int(pairs["packets"].sum()) + snapshot.counts[PAIRS_EVICTED]
            return int(stages["matched"][has_pairs].sum()), in_pairs

        until(lambda: len(set(accounted())) == 1, "a moment without packets")
        assert len(probe.snapshot.tables["pairs"]) <= 64
        assert probe.snapshot.counts[PAIRS_EVICTED] >= 997 - 64


def test_packets_that_are_never_seen_again(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packets that are never seen again stop waiting, and are unmatched once, however many readings follow."""
    monkeypatch.setattr(latency_rows, "_STALE_NS", 10**9)
    near, far, here, there = two_workers(lab)
    port = there.call(bind, "in", far.v6)
    near.limit("rate", "8kbit", "burst", "3000", "limit", "50000000")
    with watched() as probe:
        here.call(send_datagrams, (far.v6, port), 101, 1000, 101)
        until(lambda: not probe.added(QDISC, "udp", "IPv6")["waiting"], "too long for those that wait")
        unmatched = [probe.added(QDISC, "udp", "IPv6")["unmatched"] for _ in range(5)]
        assert 90 <= unmatched[0] <= 101
        assert set(unmatched) == {unmatched[0]}
        assert_sums(probe)


def test_cpus_that_compete_for_room(lab: Lab) -> None:
    """A packet that is evicted while it leaves its stage, or is dropped there, counts once."""
    near, far = lab.pair()
    workers = [lab.worker(near.namespace) for _ in range(3)]
    port = workers[0].call(bind, "in", near.v6)
    near.limit("rate", "200mbit", "burst", "3000", "limit", "8000")
    with watched(rooms={"followed_max": 4}) as probe:
        for worker in workers:
            worker.start(send_datagrams, (far.v6, port), 49_999, 1000)
        for worker in workers:
            worker.result()
        until(lambda: not probe.added(QDISC, "udp", "IPv6")["waiting"], "the queue is empty")
        added = probe.added(QDISC, "udp", "IPv6")
        assert added["seen"] == 3 * 49_999
        assert min(added[name] for name in ("matched", "dropped", "unmatched")) > 0
        assert_sums(probe)


# --- durations ------------------------------------------------------------------------------------------------


def wait_in_sockets(
    memory: Memory, kind: int, rounds: int, sockets: int, wait_s: float
) -> list[tuple[float, float]]:
    """Send a message to each of the sockets, wait, and read them, repeatedly. Return bounds of each message's wait."""
    if kind == socket.SOCK_STREAM:
        with socket.create_server(("::1", 0), family=traffic.V6) as listener:
            senders = [socket.create_connection(listener.getsockname()[:2]) for _ in range(sockets)]
            receivers = [listener.accept()[0] for _ in range(sockets)]
    else:
        receivers = [socket.socket(traffic.V6, kind) for _ in range(sockets)]
        senders = [socket.socket(traffic.V6, kind) for _ in range(sockets)]
        for sender, receiver in zip(senders, receivers, strict=True):
            receiver.bind(("::1", 0))
            sender.connect(receiver.getsockname()[:2])
    waits: list[tuple[float, float]] = []
    for _ in range(rounds):
        sent = []
        for sender in senders:
            began = time.perf_counter_ns()
            sender.send(b"n")
            sent.append((began, time.perf_counter_ns()))
        traffic.spin(wait_s)
        for (began, ended), receiver in zip(sent, receivers, strict=True):
            least = time.perf_counter_ns() - ended
            receiver.recv(1)
            waits.append((least, time.perf_counter_ns() - began))
    return waits


@pytest.mark.oracle
@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM], ids=["TCP", "UDP"])
def test_a_receiver_that_waits(lab: Lab, kind: int) -> None:
    """The median time of messages in sockets equals the receiver's delay."""
    protocol = "tcp" if kind == socket.SOCK_STREAM else "udp"
    worker = lab.worker(lab.namespace())
    with watched() as probe:
        assert probe.why_not(SOCKET_WAIT) is None
        if protocol == "udp" and str(probe.snapshot.hook(HOOKS[WIRE_APP].name)).endswith("TCP only"):
            pytest.skip("this kernel lets no program see UDP's reads")
        waits = worker.call(wait_in_sockets, kind, 101, 101, 0.005)
        least, most = np.median(np.array(waits, np.float64), axis=0)
        assert len(waits) > 10_000
        assert probe.added(SOCKET_WAIT, protocol, "IPv6")["matched"] >= len(waits) * 0.999
        assert least * (1 - ERROR) <= probe.median(SOCKET_WAIT, protocol, "IPv6") <= most * (1 + ERROR)
        assert probe.median(WIRE_APP, protocol, "IPv6") >= least * (1 - ERROR)


def test_a_saturated_queue(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """The median time in a queue is at least its backlog divided by its rate, and at most the whole journey."""
    monkeypatch.setattr(latency_rows, "_STALE_NS", 5 * 10**9)  # some are never seen again
    near, far, here, there = two_workers(lab)
    port = there.call(bind, "in", far.v6)
    rate, burst, count = 100e6 / 8, 30_000, 12_007
    near.limit("rate", "100mbit", "burst", str(burst), "limit", "50000000")
    with watched() as probe:
        there.start(journeys, "in", count)
        expected = here.call(fill_queue, (far.v6, port), count, 1000, rate)
        durations = there.result()
        until(lambda: probe.added(QDISC, "udp", "IPv6")["waiting"] == 0, "the queue is empty")
        matched = probe.added(QDISC, "udp", "IPv6")["matched"]
        assert matched > 10_000
        # Those that were not matched may all be the shortest waits, or the longest.
        middle = min(matched / count, 1) / 2
        # The queue lets the first burst pass. On a busy host it is later than its rate.
        least = (np.quantile(expected, middle) - burst / rate) * 1e9
        most = np.quantile(durations, 1 - middle)
        assert least * (1 - ERROR) <= probe.median(QDISC, "udp", "IPv6") <= most * (1 + ERROR)


def fill_queue(memory: Memory, to: tuple[str, int], count: int, size: int, rate: float) -> list[float]:
    """Send `count` datagrams faster than the rate (bytes a second), each with its send time.

    Return the expected wait of each in seconds.
    """
    on_wire = 14 + 40 + 8 + size
    expected = []
    with socket.socket(traffic.V6, socket.SOCK_DGRAM) as sender:
        sender.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, 1 << 29)
        began = time.perf_counter()
        for number in range(count):
            sender.sendto(struct.pack("=Q", time.time_ns()).ljust(size, b"n"), to)
            expected.append((number + 1) * on_wire / rate - (time.perf_counter() - began))
    return expected


def journeys(memory: Memory, name: str, count: int) -> list[int]:
    """Read `count` datagrams of `fill_queue`; return the time from sending each to its receive timestamp, in ns."""
    receiver = memory[name]
    receiver.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
    durations = []
    for _ in range(count):
        traffic.ready([receiver])
        content, ((_, _, stamp),), _, _ = receiver.recvmsg(8, 64)
        seconds, nanoseconds = struct.unpack("=qq", stamp)
        durations.append(seconds * 1_000_000_000 + nanoseconds - struct.unpack("=Q", content)[0])
    return durations


def connect_in_turn(memory: Memory, to: tuple[str, int], rounds: int, at_once: int) -> list[tuple[int, int]]:
    """Open and close `at_once` connections at a time, repeatedly; return each one's port and start."""
    begun = []
    for _ in range(rounds):
        opening = [socket.socket() for _ in range(at_once)]
        for made in opening:
            made.setblocking(False)
            began = time.perf_counter_ns()
            made.connect_ex(to)
            begun.append((made.getsockname()[1], began))
        waiting = set(opening)
        while waiting:
            connected = select.select([], list(waiting), [], 30)[1]
            assert connected, "no connection in time"
            waiting -= set(connected)
        for made in opening:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("=ii", 1, 0))
            made.close()
    return begun


def accept_all(memory: Memory, listener: str, count: int) -> list[tuple[int, int]]:
    """Accept `count` connections and close them; return each one's port and accept time."""
    accepted = []
    for _ in range(count):
        made, (_, port, *_) = memory[listener].accept()
        accepted.append((port, time.perf_counter_ns()))
        made.close()
    return accepted


def test_a_wire_that_delays(lab: Lab) -> None:
    """The median handshake takes one round trip at both ends over a wire with a known delay."""
    delay_s, rounds, at_once = 0.010, 101, 53
    path, address = SlowPath(lab, delay_s), ADDRESSES[4][1]
    there = lab.worker(path.far)
    port = there.call(traffic.listen, "in", address)
    with watched() as probe:
        there.start(accept_all, "in", rounds * at_once)
        begun = lab.worker(path.near).call(connect_in_turn, (address, port), rounds, at_once)
        accepted = there.result()
        until(lambda: probe.added(HANDSHAKE, "tcp")["waiting"] == 0, "all have connected")
        added = probe.added(HANDSHAKE, "tcp")
        assert added["matched"] >= 2 * rounds * at_once > 10_000
        # The handshakes of both sides lie between the beginning of a connection and its acceptance.
        pairs = zip(sorted(begun), sorted(accepted), strict=True)
        least, most = 2 * delay_s * 1e9, np.median([end - began for (_, began), (_, end) in pairs])
        assert least * (1 - ERROR) <= probe.median(HANDSHAKE, "tcp") <= most * (1 + ERROR)
        assert_sums(probe)


def test_connections_to_a_listener_for_both_families(lab: Lab) -> None:
    """IPv4 over an IPv6 socket counts as IPv4, at both ends."""
    _, far, here, there = two_workers(lab)
    port = there.call(traffic.listen, "in", "::")
    with watched() as probe:
        there.start(accept_all, "in", 97)
        here.call(connect_in_turn, (far.v4, port), 1, 97)
        there.result()
        assert probe.added(HANDSHAKE, "tcp", "IPv6")["seen"] == 0
        assert probe.added(HANDSHAKE, "tcp")["seen"] >= 2 * 97


def deferred_connections(memory: Memory, count: int) -> int:
    """Connect `count` times, and accept with the first data; return the number accepted."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 30)
        accepted = 0
        for _ in range(count):
            with socket.create_connection(listener.getsockname()) as made:
                made.sendall(b"q")
                with listener.accept()[0] as held:
                    accepted += held.recv(1) == b"q"
    return accepted


def refused_connections(memory: Memory, count: int) -> int:
    """Connect `count` times to a closed port; return the number of refusals."""
    refused = 0
    for _ in range(count):
        with socket.socket(traffic.V6) as made:
            refused += made.connect_ex(("::1", 9)) != 0
    return refused


@pytest.mark.parametrize(
    ("act", "family", "expected"),
    [
        (refused_connections, "IPv6", {"seen": 97, "matched": 0, "dropped": 97, "unmatched": 0}),
        (deferred_connections, "IPv4", {"seen": 2 * 97, "matched": 97, "dropped": 0, "unmatched": 97}),
    ],
)
def test_handshakes_without_a_duration(
    lab: Lab, act: Callable[[Memory, int], int], family: str, expected: dict[str, int]
) -> None:
    """A handshake that never ends counts as dropped; with TCP_DEFER_ACCEPT the kernel measures the client's pause, so
    the duration is unknown."""
    worker = lab.worker(lab.namespace())
    with watched() as probe:
        assert worker.call(act, 97) == 97
        assert probe.added(HANDSHAKE, "tcp", family) == expected | {"waiting": 0}


def test_one_in_sixteen(lab: Lab) -> None:
    """With one packet in 16 followed, each counts for 16: sums agree, and are close to those sent."""
    _, far, here, there = two_workers(lab)
    port = there.call(bind, "in", far.v6)
    with watched(sampling=1) as probe:
        probe.probe.configure(source_options(["pairs"], sampling=16))
        probe.begin()
        here.call(send_datagrams, (far.v6, port), 20_000)
        for stage in (QDISC, WIRE_IP):
            seen = probe.added(stage, "udp", "IPv6")["seen"]
            assert seen % 16 == 0
            # The distances are even between 1 and 31: of 1,250 of them the sum varies by 0.014 of it.
            assert abs(seen - 20_000) < 0.1 * 20_000, STAGES[stage]
        assert probe.snapshot.counts["one_in"] == 16
        assert_sums(probe)


def test_automatic_sampling(lab: Lab) -> None:
    """Without traffic every packet is followed after the first reading."""
    with watched(sampling=0) as probe:
        until(lambda: probe.read().counts["one_in"] == 1, "every packet is followed")


OF_DATAGRAMS = [
    (stage, mechanism.name)
    for stage in (WIRE_SOCKET, WIRE_APP, IP)
    for mechanism in FALLBACKS[stage].mechanisms
    if "TCP only" not in mechanism.name
]
"""The mechanisms that measure UDP, of the stages that have several."""


@pytest.mark.core
@pytest.mark.parametrize(("stage", "mechanism"), OF_DATAGRAMS, ids=lambda value: STAGES.get(value, value))
def test_each_mechanism_sees_every_datagram(
    lab: Lab, stage: int, mechanism: str, record: Callable[..., None]
) -> None:
    """Each mechanism of a stage sees every datagram sent."""
    hook = HOOKS[stage].name
    record(hook=hook, mechanism=mechanism)
    near, far, here, there = two_workers(lab)
    port = there.call(bind, "in", far.v6)
    with watched(**{hook: mechanism}) as probe:
        if why := probe.why_not(stage):
            record(verdict="refused", why=why)
            pytest.skip(f"{mechanism}: {why}")
        here.call(send_datagrams, (far.v6, port), 997)
        there.call(receive_datagrams, "in", 997)
        until(lambda: probe.between(stage, near.v6, far.v6, "udp") == 997, "every datagram was seen")
    record(verdict="same")


@contextmanager
def both_mechanisms() -> Iterator[tuple[Watched, Watched]]:
    """Yield a probe for each mechanism of the IP layer, attached at once; skip if the kernel lacks one."""
    with watched(ip="fentry") as by_fentry, watched(ip="kprobe") as by_kprobe:
        if version_numbers(os.uname().release) >= (6, 1):
            assert [STAGES[stage] for stage in STAGES if stage != IP and by_fentry.why_not(stage)] == []
        for why in filter(None, (probe.why_not(IP) for probe in (by_fentry, by_kprobe))):
            pytest.skip(f"no hooks at functions here: {why}")
        yield by_fentry, by_kprobe


@pytest.mark.core
def test_ip_layer_by_fentry_and_by_kprobe(lab: Lab) -> None:
    """Both mechanisms see every packet, delivered here or forwarded, one by one or in lists."""
    near, _, far = lab.routed_pair()
    here, there = lab.worker(near), lab.worker(far)
    port = there.call(bind, "in", "10.76.2.1")
    with both_mechanisms() as probes:
        for rounds in (1, 2):
            here.call(send_datagrams, ("10.76.2.1", port), 997)
            there.call(receive_datagrams, "in", 997)
            for probe in probes:
                passed = probe.between(IP, "10.76.1.1", "10.76.2.1", "udp")
                assert passed == rounds * 2 * 997  # once forwarded, once delivered
                assert_sums(probe)
            for end in (near, far):
                end.run("ethtool", "-K", "wire", "gro", "on")  # NAPI delivers lists


def test_medians_by_fentry_and_by_kprobe(lab: Lab) -> None:
    """For the same packets, the medians of both mechanisms differ by at most a bucket."""
    near, _, far = lab.routed_pair()
    here, there = lab.worker(near), lab.worker(far)
    port = there.call(bind, "in", "10.76.2.1")
    with both_mechanisms() as probes:
        here.call(send_datagrams, ("10.76.2.1", port), 4999)
        there.call(receive_datagrams, "in", 4999)
        medians = BUCKETS.places(np.array([probe.median(IP, "udp") for probe in probes]))
        assert abs(medians[0] - medians[1]) <= 1
