# SPDX-License-Identifier: Apache-2.0
"""Rows that findings are about, and readings of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from nettop.query.finding_tracker import FindingTracker
from nettop.query.findings import Finding, find, parsed_rules
from nettop.query.query import screen_query
from nettop.query.view import View
from nettop.snapshots import lenses
from nettop.snapshots.connections import LENS as CONNECTIONS
from nettop.snapshots.connections import SOCKETS
from nettop.snapshots.findings import FINDINGS
from nettop.snapshots.schema import Lens, Table
from nettop.snapshots.services import BUCKETS
from nettop.snapshots.snapshot import Frame, Rows
from tests.unit.build import TAKEN_NS, WALL_NS, Row, histogram_of, make_frame

SECOND = 10**9
LISTENER = {
    "state": "LISTEN",
    "accept_queue": 0,
    "backlog": 10,
    "syn_queue": 0,
    "process": "payapi",
    "pid": 7,
    "remote_address": "0.0.0.0",
}
BEFORE: Row = {
    "process": "reportd",
    "pid": 25406,
    "netns": 1,
    "send_queue": 0,
    "bytes_acked": 500,
    "bytes_received": 300,
    "bytes_sent": 100,
    "busy_us": 0,
    "retransmits": 0,
    "spurious": 0,
    "data_packets_sent": 0,
    "drops": 3,
    "cwnd": 10,
    "packets_received": 0,
    "mss": 1448,
    "peer_window": 0,
    "bytes_in_flight": 0,
    "last_received_ms": 40_000,
}
WAITING = {**BEFORE, "process": None, "pid": None, "state": "ESTABLISHED", "last_sent_ms": 10_000}
STUCK = {**BEFORE, "send_queue": 1, "busy_us": 950_000}
GONE = {**STUCK, "peer_window": 9, "bytes_in_flight": 1, "last_received_ms": 2_000}
UNREAD = {**BEFORE, "state": "ESTABLISHED", "receive_queue": 129_000}
NONE = histogram_of([], BUCKETS)


def found(
    now: list[Row], before: list[Row] | None = None, elapsed_s: float = 1.0, table: Table = SOCKETS
) -> list[Finding]:
    """Return the findings of one reading."""
    frame = make_frame(now, before, elapsed_s, table=table)
    return list(find(parsed_rules(CONNECTIONS, table), frame))


def kinds(findings: Iterable[Finding]) -> list[str]:
    """Return the kinds of findings."""
    return [finding.rule.name for finding in findings]


class Readings:
    """Readings of one lens, a second apart, and the rows of findings after each."""

    def __init__(self) -> None:
        self.tracker = FindingTracker()
        self.second = 0

    def add(self, *frames: tuple[Lens, Frame]) -> list[Row]:
        """Return the findings after one more second, in order of rank."""
        self.second += 1
        rows = self.tracker.update(frames, TAKEN_NS + self.second * 10**9, WALL_NS + self.second * 10**9)
        return listed(rows)

    def sockets(self, now: list[Row], before: list[Row] | None = None) -> list[Row]:
        """Add a reading of the sockets."""
        return self.add((CONNECTIONS, make_frame(now, now if before is None else before)))


def listed(rows: Rows) -> list[Row]:
    """Return all findings, also those that another one explains, by rank."""
    frame = make_frame([], lens="findings", table=FINDINGS)
    frame = replace(frame, now=replace(frame.now, tables={FINDINGS.name: rows}))
    view = View(frame, replace(screen_query(FINDINGS), all_rows=True))
    columns = (view.values(field.name, view.order) for field in FINDINGS.fields)
    names = [field.name for field in FINDINGS.fields]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def kinds_of(rows: list[Row]) -> list[str]:
    """Return the kinds of rows of findings."""
    return [row["kind"] for row in rows]


def after(seconds: int, *changes: tuple[Table, list[Row], list[Row]]) -> list[Row]:
    """Return the findings after so many seconds in which tables changed from the first rows to the second each time."""
    readings, rows = Readings(), []
    for _ in range(seconds):
        frames: dict[str, tuple[Lens, Frame]] = {}
        for table, before, now in changes:
            lens = next(lens for lens in lenses() if table in lens.tables)
            frame = make_frame(now, before, table=table, lens=lens.id)
            frames[lens.id] = lens, merged(frames[lens.id][1], frame) if lens.id in frames else frame
        rows = readings.add(*frames.values())
    return rows


def merged(first: Frame, second: Frame) -> Frame:
    """Return one frame with the tables of both."""
    assert first.before is not None
    assert second.before is not None
    return Frame(
        replace(first.now, tables={**first.now.tables, **second.now.tables}),
        replace(first.before, tables={**first.before.tables, **second.before.tables}),
    )


def cause_of(rows: list[Row], kind: str) -> str | None:
    """Return the kind of the cause of the only finding of a kind."""
    (row,) = (row for row in rows if row["kind"] == kind)
    return next((other["kind"] for other in rows if other["id"] == row["cause"]), None)


def severities(rows: list[Row]) -> dict[str, str]:
    """Return the severity of each kind that nothing explains."""
    return {row["kind"]: row["severity"] for row in rows if row["cause"] is None}
