# SPDX-License-Identifier: Apache-2.0
"""A host on which connections open, close and fail: the steps of its source, and the events between them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

from nettop.snapshots.connections import EVENTS, FAILURES, GROUPS, SOCKETS
from nettop.snapshots.schema import Table
from nettop.snapshots.snapshot import Frame, Rows, Snapshot, TextTable
from tests.builders.harness import Batches, Step
from tests.unit.build import TAKEN_NS, WALL_NS, Row, example_rows, later, make_hooks, make_rows

VIA = {
    "sockets": "iter/task_file",
    "without owner": "iter/tcp + iter/udp",
    "events": "tp_btf/inet_sock_set_state",
    "accepted by": "fexit/inet_csk_accept",
}
_DAY_NS = 86_400_000_000_000
_GAP_NS = 16_000_017


class Life(NamedTuple):
    """A connection from its first event to its last; one that failed has no other."""

    process: str | None
    pid: int | None
    local: str
    remote: str
    port: int
    opening: str
    end: str
    reason: str


_LIVES = (
    Life("nginx", 1812, "10.0.3.7", "203.0.113.9", 443, "accept", "close", "closed by peer"),
    Life("curl", 30991, "10.0.3.7", "198.51.100.4", 8443, "connect", "close", "closed by us"),
    Life("java", 2210, "10.0.3.7", "10.0.9.4", 9092, "", "fail", "refused"),
    Life("nginx", 1813, "10.0.3.7", "203.0.113.61", 443, "accept", "close", "closed by both"),
    Life(None, None, "2001:db8::7", "2001:db8:1::2f", 22, "accept", "close", "reset by peer"),
    Life("curl", 30991, "10.0.3.7", "198.51.100.4", 8443, "", "fail", "network unreachable"),
)


def example_events(first: int, count: int, end_ns: int = WALL_NS) -> list[Row]:
    """Return `count` events from number `first` on, 16 ms apart, the last one at `end_ns`."""
    lives = [life for life in _LIVES for _ in range(2 if life.opening else 1)]
    turns = [n for n, life in enumerate(lives) if life.opening and lives[n - 1] is not life]
    made = []
    for number in range(first, first + count):
        turn = number % len(lives)
        time = end_ns - (first + count - 1 - number) * _GAP_NS
        made.append(_event(number, time, lives[turn], is_opening=turn in turns))
    return made


def _event(number: int, time: int, life: Life, *, is_opening: bool) -> Row:
    inbound = life.opening == "accept"
    own = 40_000 + (number if is_opening else number - 1) % 20_000
    row: Row = {
        "event_id": number,
        "time": time,
        "id": 4096 + (number if is_opening else number - 1),
        "protocol": "tcp",
        "family": "IPv6" if ":" in life.local else "IPv4",
        "local_address": life.local,
        "local_port": life.port if inbound else own,
        "remote_address": life.remote,
        "remote_port": own if inbound else life.port,
        "pid": life.pid,
        "process": life.process,
        "netns": 4026531840,
        "namespace": "own",
        "direction": "inbound" if inbound else "outbound",
    }
    if is_opening:
        return row | {"event": life.opening, "reason": None, "handshake_us": 300 + number * 7 % 90_000}
    moved = 0 if life.end == "fail" else number * 7919 % 1_000_003
    return row | {
        "event": life.end,
        "reason": life.reason,
        "state": "CLOSE",
        "duration_us": None if number % 11 == 3 else 137_000 * (number % 7 + 1),
        "bytes_sent": moved,
        "bytes_received": moved * 3,
        "packets_sent": moved // 1448,
        "data_packets_sent": moved // 1448,
        "retransmits": number % 13 if moved else 0,
    }


def example_failures(more: int = 0) -> list[Row]:
    """Return groups of failures, of which the first has grown by `more`."""
    each = (
        ("refused", "10.0.9.4", 9092, "outbound", "java", 37 + more),
        ("reset by peer", "203.0.113.9", 443, "inbound", "nginx", 11),
        ("network unreachable", "2001:db8:1::2f", 22, "outbound", None, 5),
        ("timed out", "198.51.100.4", 8443, "outbound", "curl", 2),
    )
    return [
        {
            "id": n + 1,
            "reason": reason,
            "remote_address": remote,
            "port": port,
            "direction": direction,
            "process": process,
            "netns": 4026531840,
            "namespace": "own",
            "failures": count,
            "failed": 0 if reason == "reset by peer" else count,
            "reset": count if reason == "reset by peer" else 0,
            "first_at": WALL_NS - _DAY_NS + n * 1_234_567_891,
            "last_at": WALL_NS - n * 61_234_567_891,
        }
        for n, (reason, remote, port, direction, process, count) in enumerate(each)
    ]


def example_groups(more: int = 0) -> list[Row]:
    """Return groups by process; the first has closed `more` connections since, and sent as many kilobytes."""
    each = (
        (3, "nginx", 1812, None, 41, 8201 + more, 3, 982_116_204 + more * 1000, 4_120_417),
        (4, "java", 2210, "docker:api-7f", 6, 17, 37, 118_116_204, 24_120_417),
        (5, "curl", 30991, None, 0, 1204, 2, 90_300, 88_211_998),
        (6, "(unattributed)", None, None, 0, 12, 5, 4_096, 512),
    )
    return [
        {
            "id": key,
            "group": group,
            "pid": pid,
            "container": container,
            "connections": connections,
            "opened": closed + connections,
            "closed": closed,
            "failed": failed,
            "bytes_sent": sent,
            "bytes_received": received,
            "packets_sent": sent // 1448,
            "packets_received": received // 1448,
            "data_packets_sent": sent // 1448,
            "retransmits": sent // 1448 // 97,
            "reset": failed // 3,
            "rtt_median_us": key * 211 if connections else None,
            "rtt_worst_us": key * 20_011 if connections else None,
        }
        for key, group, pid, container, connections, closed, failed, sent, received in each
    ]


def batch_of(events: list[Row], texts: dict[str, TextTable] | None = None) -> Rows:
    """Return events as a batch of the table."""
    return make_rows(events, EVENTS, TAKEN_NS, texts=texts)


def frame_of_events(events: list[Row], **snapshot_kwargs: Any) -> Frame:
    """Return a frame that has these events, and nothing else."""
    snapshot = Snapshot("connections", WALL_NS, TAKEN_NS, {}, **snapshot_kwargs)
    return Frame(snapshot, batches={EVENTS.name: (batch_of(events),)})


def eventful_host(events: int = 60, **snapshot_kwargs: Any) -> tuple[list[Step], Batches]:
    """Return three snapshots of a busy host, a second apart, and the events before each; a few are from yesterday."""
    sockets, codes, texts = example_rows(60, 7), {}, {}
    steps: list[Step] = []
    batches: Batches = []
    for n in range(3):
        taken, wall = TAKEN_NS + n * 1_000_000_000, WALL_NS + n * 1_000_000_000
        rows = ((SOCKETS, sockets), (FAILURES, example_failures(n)), (GROUPS, example_groups(29 * n)))
        facts = {"counts": _counts(n), "via": VIA, "lost": {"events": 0}} | snapshot_kwargs
        facts["hooks"] = make_hooks(facts.pop("via"), facts.pop("missing", None))
        tables = {
            t.name: make_rows(values, t, taken, texts=codes.setdefault(t.name, {})) for t, values in rows
        }
        steps.append(Snapshot("connections", wall, taken + 5_000_000_000, tables, **facts))
        tables[GROUPS.name] = replace(tables[GROUPS.name], variant="process")
        old = [] if n else example_events(1, 4, wall - _DAY_NS)
        came = example_events(1 + n * events + len(old), events - len(old), wall)
        batches.append((batch_of([*old, *came], texts),))
        sockets = later(sockets, 8 + n)
    return steps, batches


def _counts(n: int) -> dict[str, int]:
    """Return the host's counts in its snapshot `n`: each second 31 open, 29 close and 2 fail."""
    totals = {
        "connected": 100 + 11 * n,
        "accepted": 500 + 20 * n,
        "closed": 400 + 29 * n,
        "failed": 44 + 2 * n,
    }
    return {"time_wait": 14, "unattributed": 2} | totals


def only(table: Table, rows: list[Row], steps: list[Step]) -> list[Step]:
    """Return the steps with other rows of one table."""
    made: list[Step] = []
    for n, step in enumerate(steps):
        assert isinstance(step, Snapshot)
        taken = TAKEN_NS + n * 1_000_000_000
        made.append(replace(step, tables=dict(step.tables) | {table.name: make_rows(rows, table, taken)}))
    return made


LATER = WALL_NS + 3600 * 10**9


def quiet_seconds(n: int, events: int = 20) -> tuple[list[Step], Batches]:
    """Return `n` readings of a host, each preceded by some events."""
    steps, _ = eventful_host()
    batches = [(batch_of(example_events(1 + at * events, events, WALL_NS + at * 10**9)),) for at in range(n)]
    return [steps[min(at, 2)] for at in range(n)], batches
