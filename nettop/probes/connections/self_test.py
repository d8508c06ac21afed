# SPDX-License-Identifier: Apache-2.0
"""What the connections lens says of connections whose bytes, owners and ends are known."""

from __future__ import annotations

import select
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from nettop.selftest.paths import CLIENT, FAMILIES, SERVER, Place
from nettop.selftest.process import PATIENCE_S, CommandFailed, together
from nettop.selftest.result import SelfTestResult
from nettop.selftest.rows import Row, rows_of
from nettop.snapshots.connections import EVENT_KINDS
from nettop.snapshots.snapshot import Snapshot
from nettop.snapshots.source import EventSource, Source

Facts: TypeAlias = Mapping[str, int]

_THERE = (1_000_003, 1_000_033, 1_000_037, 1_000_039)
_BACK = (500_009, 500_029, 500_041, 500_057)
_DATAGRAMS = (7, 11, 13, 17)
"""Primes, one for each connection: no sum or multiple of anything else can pass for them."""
_DATAGRAM_BYTES = 101


@dataclass(frozen=True, slots=True)
class _Talk:
    """A TCP connection, over which `there` bytes went from the client to the server, and `back` bytes the other way;
    and a UDP socket of the server's, in which datagrams wait. Each end is what the kernel says of the socket.
    """

    place: Place
    family: str
    there: int
    back: int
    client: Facts
    server: Facts
    udp: Facts

    @property
    def name(self) -> str:
        return f"{self.place.name} {self.family}"

    @property
    def ends(self) -> tuple[tuple[Facts, str], ...]:
        """The sockets, and who has them."""
        return (self.client, CLIENT), (self.server, SERVER), (self.udp, SERVER)


def run(source: Source, places: Sequence[Place]) -> list[SelfTestResult]:
    """Bytes, owners, retransmits, queues and events of connections over loopback and between namespaces."""
    talks: list[_Talk] = []
    results: list[SelfTestResult] = []
    for number, (place, family) in enumerate((place, family) for place in places for family in FAMILIES):
        try:
            talks.append(_talk(place, family, number))
        except CommandFailed as error:
            results.append(SelfTestResult("connections", f"{place.name} {family}", why_not=error.what))
    if not talks:
        return results
    snapshot = source.read(time.monotonic_ns())
    rows = _by_id(snapshot, [end["id"] for talk in talks for end, _ in talk.ends])
    events = _events(source, talks)
    return _moved(talks, rows) + _owned(talks, rows) + events + results


def _talk(place: Place, family: str, number: int) -> _Talk:
    """Open the connection, move the bytes, wait until all is acknowledged. Raises CommandFailed."""
    if place.why_not:
        raise CommandFailed(place.why_not)
    client, server, at = place.client, place.server, place.server_at[family]
    port = server.tell("listen", f"listener {family}", at)
    client.tell("connect", family, at, port)
    server.tell("accept", f"listener {family}", family)
    together((client, "send", family, _THERE[number]), (server, "receive", family, _THERE[number]))
    together((server, "send", family, _BACK[number]), (client, "receive", family, _BACK[number]))
    name = f"udp {family}"
    udp_port = server.tell("udp", name, at)
    client.tell("udp", name, place.client_at[family])
    client.tell("datagrams", name, (at, udp_port), _DATAGRAMS[number], _DATAGRAM_BYTES)
    ends = client.tell("settle", family), server.tell("settle", family), server.tell("waiting", name)
    return _Talk(place, family, _THERE[number], _BACK[number], *ends)


def _by_id(snapshot: Snapshot, ids: Iterable[int]) -> dict[int, Row]:
    sockets = snapshot.tables["sockets"]
    wanted = np.isin(sockets.array["id"], np.array(list(ids), np.uint64))
    return {row["id"]: row for row in rows_of(sockets, wanted)}


def _moved(talks: Iterable[_Talk], rows: Mapping[int, Row]) -> list[SelfTestResult]:
    """Each direction's bytes as both its ends count them, and the bytes that wait."""
    results = []
    for talk in talks:
        client, server, udp = (rows.get(end["id"], {}) for end, _ in talk.ends)
        there = (client.get("bytes_sent"), server.get("bytes_received"))
        back = (server.get("bytes_sent"), client.get("bytes_received"))
        results += [
            SelfTestResult(
                "connections", f"{talk.name} TCP", talk.there, _agreed(there, talk.there), "bytes"
            ),
            SelfTestResult(
                "connections", f"{talk.name} TCP, back", talk.back, _agreed(back, talk.back), "bytes"
            ),
            SelfTestResult(
                "connections",
                f"{talk.name} UDP, waiting in the queue",
                talk.udp["waiting"],
                udp.get("receive_queue"),
                "bytes",
            ),
        ]
    return results


def _agreed(measured: Iterable[int | None], expected: int) -> int | None:
    """What was measured at several places: the first that is not as expected, if there is one."""
    return next((value for value in measured if value != expected), expected)


def _owned(talks: Sequence[_Talk], rows: Mapping[int, Row]) -> list[SelfTestResult]:
    """How many sockets are told with their process, and with the retransmits that TCP_INFO has."""
    ends = [end for talk in talks for end in talk.ends]
    owners = [rows.get(end["id"], {}) for end, _ in ends]
    wrong = [
        f"socket {end['id']}: {row.get('process')} {row.get('pid')}, expected {name} {end['pid']}"
        for row, (end, name) in zip(owners, ends, strict=True)
        if (row.get("process"), row.get("pid")) != (name, end["pid"])
    ]
    tcp = [end for end, _ in ends if "retransmits" in end]
    equal = sum(rows.get(end["id"], {}).get("retransmits") == end["retransmits"] for end in tcp)
    return [
        SelfTestResult(
            "connections",
            "owners by PID and name",
            len(ends),
            len(ends) - len(wrong),
            "sockets",
            detail="; ".join(wrong),
        ),
        SelfTestResult("connections", "retransmits as TCP_INFO has them", len(tcp), equal, "sockets"),
    ]


def _events(source: Source, talks: Sequence[_Talk]) -> list[SelfTestResult]:
    """Close the connections, and count what is told of them: each opening and end once, with its bytes and owner."""
    what = "connect, accept and close, told once"
    for talk in talks:
        for peer in (talk.place.client, talk.place.server):
            peer.tell("close", talk.family)
    hook = source.read(time.monotonic_ns()).hook("events")
    if hook is None or hook.mechanism is None or not isinstance(source, EventSource):
        return [
            SelfTestResult("connections", what, why_not=f"no way here: {hook.why if hook else 'no events'}")
        ]
    expected = _expected_events(talks)
    told = Counter(_told(source, {event[0] for event in expected}, len(expected)))
    once = sum(told[event] == 1 for event in expected)
    lost = source.read(time.monotonic_ns()).lost.get("events", 0)
    if lost and once < len(expected) and not told - Counter(expected):
        why_not = (
            f"{lost:,} events were lost, which is counted: others make more than the ring holds; try again"
        )
        return [SelfTestResult("connections", what, why_not=why_not)]
    measured = once if once < len(expected) else told.total()
    return [
        SelfTestResult(
            "connections", what, len(expected), measured, "events", detail=_difference(expected, told)
        )
    ]


def _difference(expected: Sequence[_Event], told: Counter[_Event]) -> str:
    """What was expected and not told, and what was told beside it."""
    missing, more = Counter(expected) - told, told - Counter(expected)
    return "; ".join(
        f"{kind}: {', '.join(' '.join(map(str, event)) for event in events)}"
        for kind, events in (("missing", missing), ("told beside", more))
        if events
    )


_Event: TypeAlias = tuple[int, str, int, str, int | None, int | None]
"""Socket, what happened, PID and process; of a close what was sent and received."""


def _expected_events(talks: Iterable[_Talk]) -> list[_Event]:
    expected: list[_Event] = []
    for talk in talks:
        for end, process, opening, sent, received in (
            (talk.client, CLIENT, "connect", talk.there, talk.back),
            (talk.server, SERVER, "accept", talk.back, talk.there),
        ):
            expected.append((end["id"], opening, end["pid"], process, None, None))
            expected.append((end["id"], "close", end["pid"], process, sent, received))
    return expected


def _told(source: EventSource, ids: set[int], count: int) -> list[_Event]:
    """The events of these sockets, until there are as many as expected, or it takes too long."""
    found: list[_Event] = []
    wanted = np.array(list(ids), np.uint64)
    end = time.monotonic() + PATIENCE_S
    while len(found) < count and time.monotonic() < end:
        select.select(source.wakeups(), [], [], 0.1)
        source.read(time.monotonic_ns())
        for batch in source.drain(time.monotonic_ns()):
            found += map(_event, rows_of(batch, np.isin(batch.array["id"], wanted)))
    return found


def _event(row: Row) -> _Event:
    kind = EVENT_KINDS[row["event"]]
    return row["id"], kind, row["pid"], row["process"], row["bytes_sent"], row["bytes_received"]
