# SPDX-License-Identifier: Apache-2.0
"""Self-test of the connections lens: compare its report with connections of known bytes, owners and events."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import numpy as np

from nettop.process.clocks import monotonic_ns
from nettop.reading import has_data
from nettop.selftest.paths import CLIENT, IP_VERSIONS, SERVER, TrafficPath
from nettop.selftest.process import TIMEOUT_S, CommandFailed, run_together
from nettop.selftest.result import SelfTestResult
from nettop.selftest.rows import Row, rows_of
from nettop.snapshots.connections import EVENT_KINDS
from nettop.snapshots.source import EventSource, Source

Facts: TypeAlias = Mapping[str, int]
_result = partial(SelfTestResult, "connections")

_SENT = (1_000_003, 1_000_033, 1_000_037, 1_000_039)
_RETURNED = (500_009, 500_029, 500_041, 500_057)
_DATAGRAMS = (7, 11, 13, 17)
"""Primes, one per connection: no sum or multiple of other numbers equals them."""
_DATAGRAM_BYTES = 101


@dataclass(frozen=True, slots=True)
class _Exchange:
    """A TCP connection with known byte counts, and a UDP socket with datagrams waiting in its queue.

    The client sent `sent` bytes and received `returned`. `client`, `server` and `udp` are the kernel's facts about each
    socket.
    """

    path: TrafficPath
    family: str
    sent: int
    returned: int
    client: Facts
    server: Facts
    udp: Facts

    @property
    def name(self) -> str:
        return f"{self.path.name} {self.family}"

    @property
    def ends(self) -> tuple[tuple[Facts, str], ...]:
        """The sockets, each with the name of its owner process."""
        return (self.client, CLIENT), (self.server, SERVER), (self.udp, SERVER)


def run(source: Source, paths: Sequence[TrafficPath]) -> list[SelfTestResult]:
    """Compare bytes, owners, retransmits, queues and events of connections over loopback and between namespaces."""
    exchanges: list[_Exchange] = []
    results: list[SelfTestResult] = []
    for number, (path, family) in enumerate((path, family) for path in paths for family in IP_VERSIONS):
        try:
            exchanges.append(_make_exchange(path, family, number))
        except CommandFailed as error:
            results.append(_result(f"{path.name} {family}", skipped=error.what))
    if not exchanges:
        return results
    snapshot = source.read(monotonic_ns())
    sockets = snapshot.tables["sockets"]
    ids = np.array([end["id"] for exchange in exchanges for end, _ in exchange.ends], np.uint64)
    rows = {row["id"]: row for row in rows_of(sockets, np.isin(sockets.array["id"], ids))}
    events = _compare_events(source, exchanges)
    return _compare_bytes(exchanges, rows) + _compare_owners(exchanges, rows) + events + results


def _make_exchange(path: TrafficPath, family: str, number: int) -> _Exchange:
    """Open a connection, send the bytes, and wait until all are acknowledged. Raise CommandFailed."""
    (client, server), address = path.ends(), path.server_address[family]
    port = server.run("listen", f"listener {family}", address)
    client.run("connect", family, address, port)
    server.run("accept", f"listener {family}", family)
    run_together((client, "send", family, _SENT[number]), (server, "receive", family, _SENT[number]))
    run_together((server, "send", family, _RETURNED[number]), (client, "receive", family, _RETURNED[number]))
    name = f"udp {family}"
    udp_port = server.run("bind_udp", name, address)
    client.run("bind_udp", name, path.client_address[family])
    client.run("send_datagrams", name, (address, udp_port), _DATAGRAMS[number], _DATAGRAM_BYTES)
    ends = client.run("tcp_facts", family), server.run("tcp_facts", family), server.run("udp_facts", name)
    return _Exchange(path, family, _SENT[number], _RETURNED[number], *ends)


def _compare_bytes(exchanges: Iterable[_Exchange], rows: Mapping[int, Row]) -> list[SelfTestResult]:
    """Compare the bytes of each direction, as counted at both ends, and the bytes in the queue."""
    results = []
    for exchange in exchanges:
        client, server, udp = (rows.get(end["id"], {}) for end, _ in exchange.ends)
        sent = (client.get("bytes_sent"), server.get("bytes_received"))
        returned = (server.get("bytes_sent"), client.get("bytes_received"))
        for what, expected, measured in (
            ("TCP", exchange.sent, _first_difference(sent, exchange.sent)),
            ("TCP, returned", exchange.returned, _first_difference(returned, exchange.returned)),
            ("UDP, waiting in the queue", exchange.udp["receive_queue"], udp.get("receive_queue")),
        ):
            results.append(_result(f"{exchange.name} {what}", expected, measured, "bytes"))
    return results


def _first_difference(measured: Iterable[int | None], expected: int) -> int | None:
    """Return the first measurement that differs from the expected value, or that value."""
    return next((value for value in measured if value != expected), expected)


def _compare_owners(exchanges: Sequence[_Exchange], rows: Mapping[int, Row]) -> list[SelfTestResult]:
    """Compare the owner process of each socket, and the retransmits with TCP_INFO."""
    ends = [end for exchange in exchanges for end in exchange.ends]
    owners = [rows.get(end["id"], {}) for end, _ in ends]
    wrong = [
        f"socket {end['id']}: {row.get('process')} {row.get('pid')}, expected {name} {end['pid']}"
        for row, (end, name) in zip(owners, ends, strict=True)
        if (row.get("process"), row.get("pid")) != (name, end["pid"])
    ]
    tcp = [end for end, _ in ends if "retransmits" in end]
    equal = sum(rows.get(end["id"], {}).get("retransmits") == end["retransmits"] for end in tcp)
    right = len(ends) - len(wrong)
    return [
        _result("owners by PID and name", len(ends), right, "sockets", detail="; ".join(wrong)),
        _result("retransmits as in TCP_INFO", len(tcp), equal, "sockets"),
    ]


def _compare_events(source: Source, exchanges: Sequence[_Exchange]) -> list[SelfTestResult]:
    """Close the connections, and check that each open and close is reported once, with its bytes and owner."""
    what = "connect, accept and close, reported once"
    for exchange in exchanges:
        for process in (exchange.path.client, exchange.path.server):
            process.run("close", exchange.family)
    hook = source.read(monotonic_ns()).hook("events")
    if hook is None or hook.mechanism is None or not isinstance(source, EventSource):
        return [_result(what, skipped=f"not available: {hook.why if hook else 'no events'}")]
    expected = _expected_events(exchanges)
    reported = Counter(_reported(source, {event[0] for event in expected}, len(expected)))
    once = sum(reported[event] == 1 for event in expected)
    lost = source.read(monotonic_ns()).lost.get("events", 0)
    if lost and once < len(expected) and not reported - Counter(expected):
        skipped = f"{lost:,} events were lost because other programs fill the ring; try again"
        return [_result(what, skipped=skipped)]
    measured = once if once < len(expected) else reported.total()
    return [_result(what, len(expected), measured, "events", detail=_difference(expected, reported))]


def _difference(expected: Sequence[_Event], reported: Counter[_Event]) -> str:
    """Describe events that are missing or unexpected."""
    missing, more = Counter(expected) - reported, reported - Counter(expected)
    return "; ".join(
        f"{kind}: {', '.join(' '.join(map(str, event)) for event in events)}"
        for kind, events in (("missing", missing), ("unexpected", more))
        if events
    )


_Event: TypeAlias = tuple[int, str, int, str, int | None, int | None]
"""Socket, event, PID and process; for a close also bytes sent and received."""


def _expected_events(exchanges: Iterable[_Exchange]) -> list[_Event]:
    expected: list[_Event] = []
    for exchange in exchanges:
        for end, process, opening, sent, received in (
            (exchange.client, CLIENT, "connect", exchange.sent, exchange.returned),
            (exchange.server, SERVER, "accept", exchange.returned, exchange.sent),
        ):
            expected.append((end["id"], opening, end["pid"], process, None, None))
            expected.append((end["id"], "close", end["pid"], process, sent, received))
    return expected


def _reported(source: EventSource, ids: set[int], count: int) -> list[_Event]:
    """Collect the events of these sockets until there are as many as expected or the timeout expires."""
    events: list[_Event] = []
    wanted = np.array(list(ids), np.uint64)
    end = time.monotonic() + TIMEOUT_S
    while len(events) < count and time.monotonic() < end:
        has_data(source.wakeups(), 100)
        source.read(monotonic_ns())
        for batch in source.drain(monotonic_ns()):
            for row in rows_of(batch, np.isin(batch.array["id"], wanted)):
                kind = EVENT_KINDS[row["event"]]
                owner = row["pid"], row["process"]
                events.append((row["id"], kind, *owner, row["bytes_sent"], row["bytes_received"]))
    return events
