# SPDX-License-Identifier: Apache-2.0
"""Append-only rows, from a kernel-woken source to consumers that must see each of them."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nettop.engine import bus as bus_module
from nettop.engine.bus import Bus, Feed
from nettop.engine.session import Session
from nettop.errors import NettopError, SourceFailed
from nettop.query.batches import concatenate_batches
from nettop.settings import MAX_INTERVAL_S
from nettop.snapshots.connections import EVENTS, FAILURES
from nettop.snapshots.schema import Kind
from nettop.snapshots.snapshot import NOT_COMPLETE_YET, Frame, Rows, Snapshot
from nettop.snapshots.source import SourceOptions
from tests.unit.build import make_rows

LENS = "connections"
DEADLINE_S = 60
TEXT_COLUMNS = tuple(field.name for field in EVENTS.stored if field.kind is Kind.TEXT)
SHARED: dict[str, list[str]] = {name: [] for name in TEXT_COLUMNS}


KEPT_ROWS = EVENTS.kept_rows


def batch(first: int, count: int, texts: dict[str, list[str]] | None = None) -> Rows:
    """Return `count` events with keys from `first`."""
    array = np.frombuffer(bytearray(b"\xff" * EVENTS.dtype.itemsize * count), EVENTS.dtype)
    array["event_id"] = np.arange(first, first + count)
    return Rows(EVENTS, array, SHARED if texts is None else texts, first)


def keys(batches: Sequence[Rows]) -> list[int]:
    """Return the keys of all rows."""
    return [key for rows in batches for key in rows.array["event_id"].tolist()]


def snapshot(boot_ns: int = 0) -> Snapshot:
    """Return a snapshot that holds nothing but its time."""
    return Snapshot(LENS, boot_ns, boot_ns, {})


def newest(bus: Bus) -> Frame:
    """Return the newest frame."""
    frame = bus.frame(LENS)
    assert frame is not None
    return frame


def events_in(frame: Frame) -> list[int]:
    """Return the keys of the events that a frame holds."""
    return keys(frame.batches.get("events", ()))


# --- feeds ----------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 9), max_size=40), st.integers(1, 12))
def test_every_row_is_taken_once_or_counted_as_lost(sizes: list[int], queued: int) -> None:
    """Between any takes (0), rows come once and in order, and the lost ones are the oldest."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bus_module, "QUEUED_ROWS", queued)
        bus, taken, following, lost = Bus(), [], 1, 0
        feed = bus.feed(LENS, "events", lambda: None)
        for size in [*sizes, 0]:
            if size:
                bus.append(LENS, (batch(following, size),))
                following += size
                continue
            actual = keys(feed.take())
            assert actual == list(range(following - len(actual), following))
            taken += actual
            assert len(taken) + feed.lost == following - 1
            assert feed.lost >= lost
            assert feed.lost == lost or len(actual) <= max(queued, sizes_max(sizes))
            lost = feed.lost
        assert feed.take() == []
    assert taken == sorted(set(taken))


def sizes_max(sizes: list[int]) -> int:
    """Return the largest batch, which is kept whole."""
    return max(sizes, default=0)


def test_a_feed_hears_of_its_own_table_alone() -> None:
    """A feed does not get rows of other lenses or tables, nor wake for them."""
    bus, woken = Bus(), []
    feed = bus.feed(LENS, "events", lambda: woken.append("events"))
    other = make_rows([{}], FAILURES)
    bus.append("other", (batch(1, 3),))
    bus.append(LENS, (other,))
    assert (feed.take(), woken) == ([], [])
    bus.append(LENS, (other, batch(1, 3)))
    assert (keys(feed.take()), woken) == ([1, 2, 3], ["events"])


def test_each_feed_has_every_row() -> None:
    """Two readers each get all rows, and a later one those from then on."""
    bus, woken = Bus(), []
    feeds = [bus.feed(LENS, "events", lambda number=number: woken.append(number)) for number in range(2)]
    bus.append(LENS, (batch(1, 2), batch(3, 1)))
    feeds.append(bus.feed(LENS, "events", lambda: None))
    bus.append(LENS, (batch(4, 1),))
    assert [keys(feed.take()) for feed in feeds] == [[1, 2, 3, 4], [1, 2, 3, 4], [4]]
    assert set(woken) == {0, 1}


def test_a_closed_feed_gets_nothing_more() -> None:
    """A closed feed gets no rows or wakeups; others do; closing twice is harmless."""
    bus, woken = Bus(), []
    gone, there = (
        bus.feed(LENS, "events", lambda name=name: woken.append(name)) for name in ("gone", "there")
    )
    gone.close()
    gone.close()
    bus.append(LENS, (batch(1, 1),))
    assert (keys(gone.take()), keys(there.take()), woken) == ([], [1], ["there"])


def test_a_lens_that_was_forgotten_begins_anew() -> None:
    """A detached lens's rows are in no later frame; its feeds continue."""
    bus = Bus()
    feed = bus.feed(LENS, "events", lambda: None)
    bus.append(LENS, (batch(1, 3),))
    bus.forget(LENS)
    bus.append(LENS, (batch(4, 1),))
    bus.publish(snapshot())
    assert events_in(newest(bus)) == [4]
    assert keys(feed.take()) == [1, 2, 3, 4]


def test_an_average_begins_when_every_hook_works() -> None:
    """An average begins with a snapshot from after all hooks worked, if there is one."""
    bus, begun = Bus(), []
    bus.average_over(10e-9)
    for now in range(1, 7):
        bus.publish(replace(snapshot(now), complete_since_ns=4 if now >= 4 else NOT_COMPLETE_YET))
        before = newest(bus).before
        begun.append(None if before is None else before.boot_ns)
    assert begun == [None, 1, 1, 1, 4, 4]


# --- frames ---------------------------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.integers(1, 9), st.booleans()), max_size=40), st.integers(1, 20), st.integers(0, 12)
)
def test_frames_have_the_newest_rows(pieces: list[tuple[int, bool]], kept: int, piece_rows: int) -> None:
    """However rows come and texts are renewed: a frame has the newest in order, and few more than a view shows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bus_module, "_PIECE_ROWS", piece_rows)
        bus, following, texts = Bus(), 1, SHARED
        for size, renews in pieces:
            texts = {name: [] for name in TEXT_COLUMNS} if renews else texts
            few = replace(batch(following, size, texts), table=replace(EVENTS, kept_rows=kept))
            bus.append(LENS, (few,))
            following += size
            bus.publish(snapshot())
            actual = events_in(newest(bus))
            assert actual == list(range(following - len(actual), following))
            assert len(actual) >= min(kept, following - 1)
            sizes = [len(piece) for piece in newest(bus).batches["events"]]
            assert len(actual) < kept + max(sizes[0], 1)


def test_small_pieces_are_merged() -> None:
    """A frame holds few pieces however small the batches, and all rows that a view shows."""
    bus = Bus()
    for key in range(1, 2 * KEPT_ROWS + 1):
        bus.append(LENS, (batch(key, 1),))
    bus.publish(snapshot())
    pieces = newest(bus).batches["events"]
    assert len(pieces) <= 2 * KEPT_ROWS // 1000 + 2
    together = concatenate_batches(EVENTS, pieces, KEPT_ROWS)
    assert together.array["event_id"].tolist() == list(range(KEPT_ROWS + 1, 2 * KEPT_ROWS + 1))
    assert together.taken_ns == 2 * KEPT_ROWS


def test_pieces_with_other_texts_are_not_merged() -> None:
    """Pieces with different tables of texts are not merged: their codes differ."""
    bus = Bus()
    for key, name in enumerate(("a", "b"), 1):
        rows = batch(key, 1, {column: [name] for column in TEXT_COLUMNS})
        rows.array["process"] = 0
        bus.append(LENS, (rows,))
    bus.publish(snapshot())
    together = concatenate_batches(EVENTS, newest(bus).batches["events"])
    assert [together.texts["process"][code] for code in together.array["process"].tolist()] == ["a", "b"]


@given(st.lists(st.integers(1, 5), min_size=1, max_size=20))
def test_a_frame_does_not_change(sizes: list[int]) -> None:
    """A frame does not change while a frontend draws it."""
    bus, following, published = Bus(), 1, []
    for size in sizes:
        bus.append(LENS, (batch(following, size),))
        following += size
        bus.publish(snapshot())
        published.append((newest(bus), list(range(1, following))))
    for frame, there in published:
        assert events_in(frame) == there


def test_rows_come_to_a_frame_with_the_next_snapshot() -> None:
    """Rows added after a snapshot wait for the next one: a frame is of one moment."""
    bus = Bus()
    bus.publish(snapshot(1))
    bus.append(LENS, (batch(1, 1),))
    assert events_in(newest(bus)) == []
    bus.publish(snapshot(2))
    assert events_in(newest(bus)) == [1]


# --- a source that the kernel wakes ---------------------------------------------------------------------------


class Woken:
    """A source with an eventfd instead of a ring: the next drain returns the rows put into it."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.stuck = False
        self.broken = False
        self.reported_by_reading = 0
        self._bell = os.eventfd(0, os.EFD_NONBLOCK)
        self._next = 1
        self._changed = threading.Condition()

    def put(self, count: int = 1) -> None:
        """Simulate an event in the kernel."""
        os.eventfd_write(self._bell, count)

    def start(self) -> None:
        """Note the call."""
        self._note("start")

    def read(self, taken_ns: int) -> Snapshot:
        """Return a snapshot; reading may make rows ready to be sent."""
        self._note("read")
        if self.reported_by_reading:
            self.put(self.reported_by_reading)
        return snapshot(taken_ns)

    def is_filling(self) -> bool:
        """Return False: nothing waits for long."""
        return False

    def wakeups(self) -> tuple[int, ...]:
        """Return the eventfd, on which the sampler goes to sleep."""
        if self.calls[-1] != "wait":
            self._note("wait")
        return (self._bell,)

    def drain(self, taken_ns: int) -> tuple[Rows, ...]:
        """Return the rows put so far; if the source is stuck, return none and leave the wakeup pending."""
        poll = select.poll()
        poll.register(self._bell, select.POLLIN)
        signalled = bool(poll.poll(0))
        self._note("drain" if signalled else "drain nothing")
        if self.broken:
            raise SourceFailed("the ring is broken")
        if self.stuck or not signalled:
            return ()
        count = os.eventfd_read(self._bell)
        self._next += count
        return (batch(self._next - count, count),)

    def until(self, call: str, count: int = 1) -> None:
        """Wait for so many calls."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.calls.count(call) >= count, DEADLINE_S)

    def until_waited_for(self) -> None:
        """Wait until the sampler sleeps on the eventfd, with nothing else to do."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.calls[-1:] == ["wait"], DEADLINE_S)

    def configure(self, options: SourceOptions) -> None:
        """Have no options."""

    def describe(self, key: int) -> dict[str, str]:
        """Return nothing: there are no details."""
        return {}

    def close(self) -> None:
        """Note the call, and leave the eventfd."""
        self._note("close")
        os.close(self._bell)

    def _note(self, call: str) -> None:
        with self._changed:
            self.calls.append(call)
            self._changed.notify_all()


def heard(session: Session, wanted: Any) -> threading.Event:
    """Return an event that is set once the bus publishes or fails while `wanted()` holds."""
    event = threading.Event()
    session.bus.subscribe(lambda: event.set() if wanted() else None)
    return event


def attached(session: Session, *sources: Woken) -> None:
    """Attach the lens, and wait for its first frame and until the sampler sleeps on these sources."""
    first = heard(session, lambda: True)
    session.enable(LENS)
    assert first.wait(DEADLINE_S)
    for source in sources:
        source.until_waited_for()


def fed(session: Session) -> tuple[Feed, threading.Event]:
    """Return a feed of the events, and what is set when it has some."""
    event = threading.Event()
    return session.bus.feed(LENS, "events", event.set), event


def test_drained_when_the_kernel_signals_events() -> None:
    """Events arrive at once, without a tick; without events nothing is drained."""
    source = Woken()
    with Session(MAX_INTERVAL_S, lambda lens: source) as session:
        feed, event = fed(session)
        attached(session, source)
        assert feed.take() == []
        before = len(source.calls)
        reported: list[int] = []
        for number in range(1, 4):
            source.put(number)
            assert event.wait(DEADLINE_S)
            event.clear()
            reported += keys(feed.take())
            assert len(reported) == number * (number + 1) // 2
            source.until_waited_for()
        assert source.calls[before:] == ["drain", "wait"] * 3
    assert reported == [1, 2, 3, 4, 5, 6]
    assert source.calls[-1] == "close"


def test_drained_before_the_frame_at_a_tick() -> None:
    """The frame of a reading holds the rows that this reading made ready."""
    source = Woken()
    source.reported_by_reading = 5
    with Session(MAX_INTERVAL_S, lambda lens: source) as session:
        attached(session)
        assert events_in(newest(session.bus)) == [1, 2, 3, 4, 5]
        source.until_waited_for()
        again = heard(session, lambda: True)
        session.sample_now()
        assert again.wait(DEADLINE_S)
        assert events_in(newest(session.bus)) == list(range(1, 11))
    assert source.calls.count("drain") == source.calls.count("read") == 2


def test_ticks_go_on_while_the_kernel_signals_events() -> None:
    """A source that is always woken is still read at each interval."""
    source = Woken()
    source.stuck = True
    source.put()
    with Session(0.1, lambda lens: source) as session:
        session.enable(LENS)
        source.until("read", 3)
        source.until("drain", 5)


def test_stopping_while_woken() -> None:
    """A session ends while its source still has rows to drain, and closes it once, at the end."""
    source = Woken()
    source.stuck = True
    source.put()
    with Session(MAX_INTERVAL_S, lambda lens: source) as session:
        session.enable(LENS)
        source.until("drain", 3)
    assert source.calls[-1] == "close"
    assert source.calls.count("close") == 1


def failed(session: Session, lens: str) -> NettopError:
    """Wait until a lens has failed, and return why."""
    event = threading.Event()
    session.bus.subscribe(lambda: event.set() if session.bus.failure(lens) is not None else None)
    assert session.bus.failure(lens) is not None or event.wait(DEADLINE_S)
    failure = session.bus.failure(lens)
    assert failure is not None
    return failure


@pytest.mark.parametrize("at_tick", [False, True], ids=["when woken", "at a tick"])
def test_a_failing_drain_is_reported(at_tick: bool) -> None:
    """If a drain fails, the bus says why: when the kernel woke the source, and at a tick."""
    source = Woken()
    with Session(MAX_INTERVAL_S, lambda lens: source) as session:
        attached(session, source)
        source.broken = True
        if at_tick:
            session.sample_now()
        else:
            source.put()
        assert "the ring is broken" in failed(session, LENS).what
    assert source.calls.count("close") == 1


def test_one_failing_source_leaves_the_others() -> None:
    """When one source's ring breaks, the other sources are drained and read as before."""
    broken, healthy = Woken(), Woken()
    sources = {LENS: healthy, "broken": broken}
    with Session(MAX_INTERVAL_S, sources.__getitem__) as session:
        feed, event = fed(session)
        session.enable("broken")
        attached(session, healthy, broken)
        broken.broken = True
        broken.put()
        failed(session, "broken")
        healthy.put(3)
        assert event.wait(DEADLINE_S)
        assert keys(feed.take()) == [1, 2, 3]
        assert session.bus.failure(LENS) is None
        assert session.bus.failure("broken") is not None


def test_a_detached_source_is_waited_for_no_more() -> None:
    """The sampler stops polling the descriptor of a source that failed, until it is tried again."""
    source = Woken()
    with Session(MAX_INTERVAL_S, lambda lens: source) as session:
        attached(session, source)
        source.broken = True
        source.put()
        failed(session, LENS)
        calls = source.calls.copy()
        for _ in range(3):
            assert session.describe(LENS, 1).result(DEADLINE_S) == {}
        assert source.calls == calls
    assert source.calls == [*calls, "close"]
