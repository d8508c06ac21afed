# SPDX-License-Identifier: Apache-2.0
"""Connections that end between two readings: each byte is in one row and in the sums."""

from __future__ import annotations

import itertools
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nettop.kernel.host.facts import Host
from nettop.kernel.host.processes import Processes
from nettop.kernel.net.entered_namespaces import Namespaces
from nettop.probes.connections import bound as row_bound
from nettop.probes.connections import ended as ended_sockets
from nettop.probes.connections import groups as socket_groups
from nettop.probes.connections.bound import RowBound, rows_within
from nettop.probes.connections.ended import EndedSockets, mark_begun
from nettop.probes.connections.event_records import CLOSE, EVENT
from nettop.probes.connections.groupings import GROUPERS
from nettop.probes.connections.groups import SocketGroups
from nettop.probes.connections.socket_rows import ROW, STATE, TCP
from nettop.query.columns import SomeColumns
from nettop.query.query import text_query
from nettop.query.values import values_of
from nettop.query.view import View
from nettop.snapshots.arrays import Array
from nettop.snapshots.connections import DIRECTIONS, GROUPINGS, GROUPS, NOT_KEPT, OTHER_GROUPS, SOCKETS
from nettop.snapshots.snapshot import Frame, Rows, Snapshot, unknown_value

OUTBOUND = next(number for number, name in DIRECTIONS.items() if name == "outbound")
SECOND = 1_000_000_000
DIFFERENCES = replace(text_query(SOCKETS), all_rows=True, closed=True, deltas=True)


@dataclass
class Connection:
    """A connection: its total bytes now and when it was last listed, and whether its beginning was seen."""

    id: int
    sent: int = 0
    is_new: bool = True
    is_listed: bool = True
    shown: int = 0


@dataclass
class Source:
    """Readings of some connections, as the probe makes them from the table and the ring."""

    open: list[Connection] = field(default_factory=list)
    ended: EndedSockets = field(default_factory=EndedSockets)
    snapshots: list[Snapshot] = field(default_factory=list)
    opened: int = 0
    has_lost: bool = False
    bound: RowBound = field(default_factory=lambda: RowBound(1000))
    counted: int = 0
    """What connections had sent that have ended, as the kernel adds it up."""

    @property
    def shown(self) -> int:
        """Return all sent bytes that the table or an end has shown."""
        return self.counted + sum(connection.shown for connection in self.open)

    def begin(self, sent: int = 0, *, is_new: bool = True) -> Connection:
        """Return one more connection."""
        self.opened += 1
        self.open.append(Connection(self.opened, sent, is_new))
        return self.open[-1]

    def send(self, connection: Connection, count: int) -> None:
        """Send bytes."""
        connection.sent += count

    def end(self, connection: Connection, *, is_lost: bool = False) -> None:
        """End a connection; the ring reports it, or has no room."""
        self.open.remove(connection)
        self.counted += connection.sent
        if not is_lost:
            event = np.full(EVENT.itemsize, 0xFF, np.uint8).view(EVENT)
            fill(event, connection)
            event["event"] = CLOSE
            self.ended.add(event)
            return
        self.has_lost = True

    def happen(self, step: str, number: int, *, is_lost: bool = False) -> None:
        """Begin a connection, or have open connection `number` send, end, or leave or join the table."""
        if step == "begin":
            self.begin()
        elif self.open:
            connection = self.open[number % len(self.open)]
            if step == "send":
                self.send(connection, number * 1009 + 1)
            elif step == "hide":
                connection.is_listed = not connection.is_listed
            else:
                self.end(connection, is_lost=is_lost)

    def run(self, steps: Sequence[tuple[str, int]], lost: Container[int] = ()) -> Iterator[Snapshot]:
        """Let all this happen, of which the ring loses some ends; yield a reading at each step `read`."""
        for at, (step, number) in enumerate(steps):
            if step == "read":
                yield self.read()
            else:
                self.happen(step, number, is_lost=at in lost)

    def read(self) -> Snapshot:
        """Return a reading."""
        taken = len(self.snapshots) * SECOND + SECOND
        if self.has_lost:
            self.ended.expect_missed_ends(np.array([connection.id for connection in self.open], np.uint64))
        self.has_lost = False
        self.ended.add_lost(self.ended.missing({"bytes_sent": self.counted}))
        listed = [connection for connection in self.open if connection.is_listed]
        table = np.full(len(listed) * ROW.itemsize, 0xFF, np.uint8).view(ROW)
        for at, connection in enumerate(listed):
            fill(table[at : at + 1], connection)
            connection.shown = connection.sent
        names = Processes(Host()).begin()
        rows = self.ended.follow(table, names)
        mark_begun(rows)
        namespaces = Namespaces()
        ended, rows = rows[:0], self.bound.choose(rows)
        left = self.ended.read(
            ended, self.bound.sums, names, namespaces, taken, without_row=self.bound.hidden
        )
        sockets = Rows(SOCKETS, rows, names.texts(), taken)
        tables = {SOCKETS.name: namespaces.with_names(sockets)}
        self.snapshots.append(Snapshot("connections", taken, taken, tables, ended={SOCKETS.name: left}))
        return self.snapshots[-1]


def fill(row: Array, connection: Connection) -> None:
    """Fill in the kernel's numbers of a connection."""
    row["id"], row["protocol"], row["state"] = connection.id, TCP, STATE["ESTABLISHED"]
    row["bytes_sent"], row["remote_port"], row["local_port"] = connection.sent, 443, 40_000
    row["remote_address"], row["netns"] = (0, 0xFFFF_0A00_0000 + connection.id), 7
    if connection.is_new:
        row["opened_at"], row["direction"] = 1, OUTBOUND


def difference(now: Snapshot, before: Snapshot) -> float:
    """Sum the rows between two snapshots."""
    view = View(Frame(now, before), DIFFERENCES)
    return view.total("bytes_sent", np.arange(view.size)) or 0


READ = ("read", 0)
STEPS = st.lists(
    st.tuples(st.sampled_from(["begin", "send", "end", "hide", "read"]), st.integers(0, 9)),
    min_size=5,
    max_size=60,
)


@pytest.mark.parametrize("most", [1000, 2, 0])
@given(steps=STEPS)
def test_each_byte_is_in_one_row(most: int, steps: list[tuple[str, int]]) -> None:
    """Between any two readings the rows sum up to the bytes sent, however few sockets have a row."""
    source = Source(bound=RowBound(most))
    sent = [source.shown for _ in source.run([READ, *steps, READ])]
    for now, after in enumerate(source.snapshots):
        for then in range(now):
            assert difference(after, source.snapshots[then]) == sent[now] - sent[then]


@pytest.mark.parametrize("most", [1000, 2])
@given(steps=STEPS, lost=st.sets(st.integers(0, 59)))
def test_a_row_of_its_own_has_what_lost_events_counted(
    most: int, steps: list[tuple[str, int]], lost: set[int]
) -> None:
    """Whichever ends the ring loses, the rows of all readings sum up to the bytes sent."""
    source = Source(bound=RowBound(most))
    total = 0.0
    source.read()
    for _ in source.run([*steps, READ], lost):
        total += difference(*source.snapshots[:-3:-1])
        assert total == source.shown


@given(STEPS, st.sets(st.integers(0, 59)), st.data())
def test_some_rows_alone_have_the_values_that_they_have_among_all(
    steps: list[tuple[str, int]], lost: set[int], data: st.DataObject
) -> None:
    """A screen reads the visible rows without the others: open, ended, not listed, gone and earlier ones."""
    source = Source()
    oldest, *_, before, now = [source.read(), *source.run([*steps, READ, ("hide", 0), READ], lost)]
    query = replace(DIFFERENCES, gone=True)
    last = View(Frame(before, oldest), query)
    view = View(Frame(now, before), query, last=last, earlier=oldest.tables[SOCKETS.name])
    chosen = np.array(data.draw(st.lists(st.integers(0, max(0, view.size - 1)), max_size=view.size)), np.intp)
    some = SomeColumns(view, chosen)
    for name in SOCKETS.names:
        whole = values_of(view, name, np.arange(view.size))
        assert values_of(some, name, np.arange(len(chosen))) == [whole[at] for at in chosen.tolist()]


def test_an_interval_that_was_watched_in_part() -> None:
    """If hooks are attached during an interval, each row has its delta, and their sum is unknown."""
    source = Source()
    begun = source.begin(700)
    before = source.read()
    source.send(begun, 300)
    source.end(source.begin(400))
    now = source.read()
    for since, total, names in (
        (before.boot_ns, 700, [None, None]),
        (before.boot_ns + 1, None, [None, None]),
    ):
        view = View(Frame(replace(now, complete_since_ns=since), before), DIFFERENCES)
        at = np.arange(view.size)
        assert (view.total("bytes_sent", at), view.total("bytes_sent_per_s", at)) == (total, total)
        assert view.values("bytes_sent", view.order) == [400, 300]
        assert view.values("process", view.order) == names
    lost = Source()
    before = lost.read()
    lost.end(lost.begin(400), is_lost=True)
    now = lost.read()
    assert difference(now, before) == 400
    view = View(Frame(replace(now, complete_since_ns=before.boot_ns + 1), before), DIFFERENCES)
    assert view.values("process", view.order) == []


def test_earlier_counts_are_no_burst() -> None:
    """Counters from before nettop's start add nothing when first listed or when they end unlisted."""
    source = Source()
    old, hidden = source.begin(1_000_003, is_new=False), source.begin(500_009, is_new=False)
    hidden.is_listed = False
    first = source.read()
    source.send(old, 7)
    second = source.read()
    assert difference(second, first) == 7
    late = source.begin(300_007, is_new=False)
    third = source.read()
    assert difference(third, second) == 0
    source.send(late, 11)
    source.end(late)
    source.end(old)
    source.end(hidden)
    fourth = source.read()
    assert difference(fourth, third) == 11
    view = View(Frame(fourth, third), DIFFERENCES)
    assert not view.rest[view.order].any()


def test_a_socket_that_was_listed_before_it_connected() -> None:
    """A socket in CLOSE has unknown counters, but its connection still begins at 0."""
    source = Source()
    source.read()
    connection = source.begin()
    first = source.read()
    first.tables[SOCKETS.name].array["bytes_sent"] = unknown_value(ROW["bytes_sent"])
    source.send(connection, 1009)
    assert difference(source.read(), first) == 1009


def test_only_so_many_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ended connections beyond the limit are in the row for the rest."""
    monkeypatch.setattr(ended_sockets, "LISTED_MAX", 3)
    source = Source()
    first = source.read()
    for number in range(10):
        connection = source.begin()
        source.send(connection, 101 + number)
        source.end(connection)
    view = View(Frame(source.read(), first), DIFFERENCES)
    assert len(view.order) == 4
    rest = view.order[view.rest[view.order]]
    assert view.values("process", rest) == ["(closed, not listed)"]
    assert view.values("bytes_sent", rest) == [sum(range(101, 108))]
    assert view.unlisted == 7


@pytest.mark.parametrize(("listed_ns", "listed"), [(10**15, 20), (0, 2)])
def test_pausing_loses_no_row(monkeypatch: pytest.MonkeyPatch, listed_ns: int, listed: int) -> None:
    """A frontend that took no frame for many readings lists connections that ended meanwhile; too old ones
    are counted.
    """
    monkeypatch.setattr(ended_sockets, "LISTED_NS", listed_ns)
    source = Source()
    first = source.read()
    for number in range(20):
        connection = source.begin()
        source.send(connection, 1009 + number)
        source.end(connection)
        last = source.read()
    view = View(Frame(last, first), DIFFERENCES)
    rest = view.rest[view.order]
    assert view.total("bytes_sent", view.order) == sum(range(1009, 1029))
    assert len(view.order) - rest.sum() == listed
    assert (view.unlisted, bool(rest.any())) == (20 - listed, listed < 20)
    assert View(Frame(last, last), DIFFERENCES).unlisted == 0


def test_an_older_row_of_what_has_ended_does_not_come_back() -> None:
    """A cached walk keeps listing ended connections, but their older rows do not return."""
    source = Source()
    first = source.read()
    connection = source.begin()
    source.send(connection, 1009)
    source.end(connection)
    stale = Connection(connection.id, 1009)
    source.open.append(stale)
    snapshots = [first, *(source.read() for _ in range(4))]
    assert [difference(now, then) for then, now in itertools.pairwise(snapshots)] == [1009, 0, 0, 0]
    source.open.remove(stale)
    assert difference(source.read(), snapshots[-1]) == 0


# --- the bound on memory ---------------------------------------------------------------------------------------


def test_sockets_beyond_the_bound_have_no_row() -> None:
    """The first ones keep their rows; the others are counted once, and only in the row for the rest."""
    source = Source(bound=RowBound(3))
    open_ = [source.begin(1000, is_new=False) for _ in range(5)]
    first = source.read()
    for connection in open_:
        source.send(connection, 7)
    source.end(open_[0])
    late = source.begin(500_009, is_new=False)
    second = source.read()
    view = View(Frame(second, first), DIFFERENCES)
    rest = view.order[view.rest[view.order]]
    assert (source.bound.found, len(second.tables[SOCKETS.name])) == (2, 3)
    assert view.values("process", rest) == [NOT_KEPT]
    assert view.values("bytes_sent", rest) == [14]
    assert difference(second, first) == 35
    source.send(late, 11)
    source.end(open_[4])
    third = source.read()
    assert difference(third, second) == 11
    assert not third.ended[SOCKETS.name].rows[-1].array["id"].tolist()
    totals = View(Frame(third), replace(text_query(SOCKETS), closed=True))
    every = np.arange(totals.size)
    assert totals.total("bytes_sent", every, with_closed=True) == 5 * 1007 + 500_020


@pytest.mark.parametrize(("available", "rows"), [(1 << 30, 65_536), (100 << 20, 6_400), (0, 1_000)])
def test_rows_within_a_quarter_of_what_is_available(
    monkeypatch: pytest.MonkeyPatch, available: int, rows: int
) -> None:
    """Without --max-memory the rows take a quarter at most; with it, what the process does not take already."""
    monkeypatch.setattr(row_bound, "available_memory", lambda: available)
    monkeypatch.setattr(row_bound, "resident_memory", lambda: 40 << 20)
    assert rows_within(0) == rows
    assert rows_within(48 << 20) == 2048


# --- groups -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", GROUPINGS)
@given(steps=STEPS)
def test_groups_add_up_to_the_rows(by: str, steps: list[tuple[str, int]]) -> None:
    """With any grouping, each interval adds the same to the groups as to the rows."""
    source, groups = Source(), SocketGroups()
    groups.choose(by)
    before = None
    for sockets in source.run([READ, *steps, READ]):
        rows, left = groups.read(replace(sockets, counts=counts(source)), source.ended.events)
        now = replace(
            sockets,
            tables={**sockets.tables, GROUPS.name: rows},
            ended={**sockets.ended, GROUPS.name: left},
        )
        if before is not None:
            view = View(Frame(now, before), replace(text_query(GROUPS), deltas=True))
            every = np.arange(view.size)
            assert (view.total("bytes_sent", every) or 0) == difference(now, before)
            totals = View(Frame(now, before), text_query(GROUPS))
            assert totals.total("bytes_sent", np.arange(totals.size)) == source.shown
        before = now


def counts(source: Source) -> dict[str, int]:
    """Return the kernel's counts of openings and ends."""
    closed = source.opened - len(source.open)
    return {"connected": source.opened, "accepted": 0, "closed": closed, "failed": 0}


def test_a_new_group_has_a_row_where_the_table_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    """A full table evicts the groups longest without a socket; groups without a place are counted."""
    monkeypatch.setattr(socket_groups, "GROUPS_MAX", 4)
    source, groups = Source(), SocketGroups()
    groups.choose("state")
    monkeypatch.setitem(
        GROUPERS, "state", lambda view, at: (view.raw("id")[at], lambda ids: [f"g{n}" for n in ids])
    )
    stays = source.begin()
    for number in range(1, 12):
        connection = source.begin()
        source.send(connection, number)
        rows, left = groups.read(source.read(), source.ended.events)
        shown = {rows.texts["group"][row["group"]]: int(row["bytes_sent"]) for row in rows.array}
        assert shown[f"g{connection.id}"] == number and f"g{stays.id}" in shown
        assert len(shown) <= 4
        assert sum(shown.values()) + int(left.total.array["bytes_sent"][0]) == sum(range(number + 1))
        source.end(connection)
    assert groups.without_row == 0
    for _ in range(5):
        source.begin()
    rows, _ = groups.read(source.read(), source.ended.events)
    assert OTHER_GROUPS in rows.texts["group"]
    assert groups.without_row == 3  # one of those that are used has just ended


def test_a_group_that_is_gone_joins_the_row_of_the_ended() -> None:
    """A group without sockets joins the row of ended ones after a while; its bytes cause no burst there."""
    source, groups = Source(), SocketGroups()
    groups.choose("remote")
    connection = source.begin()
    source.send(connection, 1009)
    seen = []
    for number in range(4):
        if number == 1:
            source.end(connection)
        snapshot = source.read()
        taken = snapshot.tables[SOCKETS.name].taken_ns + (number > 2) * 61 * SECOND
        sockets = replace(snapshot.tables[SOCKETS.name], taken_ns=taken)
        rows, left = groups.read(replace(snapshot, tables={SOCKETS.name: sockets}), source.ended.events)
        seen.append(replace(snapshot, tables={GROUPS.name: rows}, ended={GROUPS.name: left}))
    last = View(Frame(seen[3], seen[2]), text_query(GROUPS))
    assert last.values("group", last.order) == ["(ended)"]
    assert last.values("bytes_sent", last.order) == [1009]
    interval = View(Frame(seen[3], seen[2]), replace(text_query(GROUPS), deltas=True))
    assert not len(interval.order)
