# SPDX-License-Identifier: Apache-2.0
"""The consumer through which every frontend reads a session."""

from __future__ import annotations

import os
import re
import select
import threading

import pytest

from nettop.engine import consumer as consumer_module
from nettop.engine.consumer import Consumer
from nettop.engine.session import Session
from nettop.errors import SourceFailed, Unsupported
from nettop.settings import MAX_INTERVAL_S
from nettop.snapshots.connections import EVENTS, GROUPS, SOCKETS
from nettop.snapshots.own_cost import SELF
from nettop.snapshots.snapshot import Snapshot
from tests.options import source_options
from tests.unit.build import make_frame
from tests.unit.scripted import Scripted, steps
from tests.unit.woken import CONNECT, Woken

DEADLINE_S = 60


class Blocking(Woken):
    """A source whose second reading has looked at everything, then blocks until `go_on` is set."""

    def __init__(self) -> None:
        super().__init__(steps([]))
        self.reads = 0
        self.is_reading = threading.Event()
        self.go_on = threading.Event()
        self.seen: list[int] = []
        self.happened = 0

    def read(self, taken_ns: int) -> Snapshot:
        """Note what has happened by now."""
        self.reads += 1
        self.seen.append(self.happened)
        if self.reads == 2:
            self.is_reading.set()
            assert self.go_on.wait(DEADLINE_S)
        return super().read(taken_ns)


def test_rows_frames_and_losses() -> None:
    """Every row of an append table comes once; the frame is the newest."""
    source = Woken(steps([], []))
    with (
        Session(MAX_INTERVAL_S, lambda lens: source) as session,
        Consumer(session, "connections", (EVENTS, SOCKETS), source_options()) as consumer,
    ):
        first = consumer.first_frame()
        assert first is consumer.frame
        source.happen(CONNECT, CONNECT)
        rows = 0
        while rows < 2:
            consumer.wait(timeout_s=DEADLINE_S)
            rows += sum(map(len, consumer.rows(EVENTS)))
        assert (rows, consumer.rows(EVENTS), consumer.lost(EVENTS)) == (2, [], 0)
        assert consumer.read_last() == ""
        assert consumer.frame is not first
    assert source.options == source_options(["sockets", "events"])


def test_the_last_reading_begins_after_the_request() -> None:
    """A reading already in progress does not count as the last one: it may miss later events."""
    source = Blocking()
    with (
        Session(MAX_INTERVAL_S, lambda lens: source) as session,
        Consumer(session, "connections", (EVENTS,)) as consumer,
    ):
        consumer.first_frame()
        consumer.read_now()
        assert source.is_reading.wait(DEADLINE_S)
        source.happened = 1
        calls: list[int] = []
        done: list[str] = []
        thread = threading.Thread(target=lambda: done.append(consumer.read_last(lambda: calls.append(1))))
        thread.start()
        while not calls:
            os.sched_yield()
        source.go_on.set()
        thread.join(DEADLINE_S)
    assert done == [""]
    assert source.seen == [0, 0, 1]


def test_the_last_reading_is_not_waited_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """A source that does not answer does not keep a frontend from its end."""
    monkeypatch.setattr(consumer_module, "LAST_READING_WAIT_S", 0.01)
    source = Blocking()
    with (
        Session(MAX_INTERVAL_S, lambda lens: source) as session,
        Consumer(session, "connections", (SOCKETS,)) as consumer,
    ):
        consumer.first_frame()
        assert re.fullmatch(r"the last \d.* s are missing: no reading within 0.01 s", consumer.read_last())
        source.go_on.set()


def test_the_last_reading_ends_the_one_in_progress() -> None:
    """It reads every lens again, so the others of a reading in progress are not read twice: a busy host would exit
    later."""
    sources = {"connections": Blocking(), "drops": Blocking()}
    with (
        Session(MAX_INTERVAL_S, sources.__getitem__, together=tuple(sources)) as session,
        Consumer(session, "connections", (SOCKETS,)) as consumer,
    ):
        session.enable("drops")
        consumer.first_frame()
        consumer.read_now()
        assert sources["connections"].is_reading.wait(DEADLINE_S)
        sources["drops"].go_on.set()
        reading = session.sample_now(is_last=True)
        sources["connections"].go_on.set()
        reading.result(DEADLINE_S)
    assert [source.reads for source in sources.values()] == [3, 2]


def test_a_failure_is_raised_before_the_first_frame_and_kept_after_it() -> None:
    """A frontend that already shows something decides itself what a failure means."""
    with (
        Session(MAX_INTERVAL_S, lambda lens: Scripted([SourceFailed("gone")])) as session,
        Consumer(session, "connections", (SOCKETS,)) as consumer,
        pytest.raises(SourceFailed, match="gone"),
    ):
        consumer.first_frame()
    source = Scripted([*steps([]), SourceFailed("gone")])
    with (
        Session(MAX_INTERVAL_S, lambda lens: source) as session,
        Consumer(session, "connections", (SOCKETS,)) as consumer,
    ):
        frame = consumer.first_frame()
        assert consumer.read_last().startswith("gone; not read since ")
        assert consumer.frame is frame
        assert isinstance(consumer.failure, SourceFailed)


def test_tables_that_are_not_available() -> None:
    """Unsupported where none of them is, with the reason; nothing where one is."""
    snapshot = make_frame([], via={"events": "n/a: no such tracepoint"}).now
    with Session(MAX_INTERVAL_S, lambda lens: Scripted([snapshot])) as session:
        with (
            Consumer(session, "connections", (EVENTS,)) as consumer,
            pytest.raises(Unsupported, match=r"connections.events is not available: no such tracepoint"),
        ):
            consumer.first_frame()
        with Consumer(session, "connections", (EVENTS, SOCKETS)) as consumer:
            assert consumer.first_frame() is not None
        with Consumer(session, "connections", (GROUPS,)) as consumer, pytest.raises(Unsupported):
            consumer.first_frame()


def test_the_end_comes_before_the_first_frame() -> None:
    """After a request to end it waits for nothing."""
    with (
        Session(MAX_INTERVAL_S, lambda lens: Blocking()) as session,
        Consumer(session, "cpu", ()) as consumer,
    ):
        assert consumer.first_frame(lambda: True) is None


def test_descriptors_end_the_wait() -> None:
    """Other descriptors of a frontend, such as for a command's end, end its wait."""
    reader, writer = os.pipe()
    with (
        Session(MAX_INTERVAL_S, lambda lens: Scripted(steps([]))) as session,
        Consumer(session, "connections", (SOCKETS,)) as consumer,
    ):
        consumer.first_frame()
        os.write(writer, b"x")
        assert consumer.wait({reader: select.POLLIN}, DEADLINE_S) == {reader: select.POLLIN}
    consumer.wake()
    os.close(reader)
    os.close(writer)


def test_leaving_releases_everything() -> None:
    """A closed frontend holds nothing, and is neither fed nor woken."""
    with Session(MAX_INTERVAL_S, lambda lens: Woken(steps([]))) as session:
        with Consumer(session, "connections", (EVENTS, SOCKETS)) as consumer:
            consumer.first_frame()
            assert session._leased == {"connections": 2}
        assert not session._leased
        assert (session.bus._feeds, session.bus._subscribers) == ([], [])


def test_own_cost_measures_no_lens_that_was_released() -> None:
    """`self` takes the first lens where no other is in use, and a lens that a frontend has left is not."""
    sources: dict[str, Scripted] = {}

    def source_of(lens: str) -> Scripted:
        return sources.setdefault(lens, Scripted(steps([])))

    with Session(MAX_INTERVAL_S, source_of) as session:
        session.enable("cpu").release()
        with Consumer(session, SELF.id, SELF.tables) as consumer:
            consumer.first_frame()
    assert set(sources) == {"cpu", "connections"}
