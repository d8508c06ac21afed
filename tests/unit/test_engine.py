# SPDX-License-Identifier: Apache-2.0
"""The sampler, the bus and the session, driven without a kernel."""

from __future__ import annotations

import errno
import gc
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from nettop.engine import session as session_module
from nettop.engine.bus import Bus
from nettop.engine.session import Session
from nettop.errors import SourceFailed, TooManyFiles
from nettop.settings import MAX_INTERVAL_S
from nettop.snapshots.snapshot import Snapshot
from nettop.snapshots.source import SourceOptions
from tests.builders.in_thread import DEADLINE_S
from tests.builders.sources import Source, failing
from tests.unit.build import make_rows


def snapshot(boot_ns: int) -> Snapshot:
    """Return a snapshot that holds nothing but its time."""
    return Snapshot("connections", boot_ns, boot_ns, {})


def slow_to_start(is_starting: threading.Event, may_start: threading.Event) -> Source:
    """Return a source of drops that says that it starts, and does once it may."""
    return Source("drops", start=lambda: (is_starting.set(), may_start.wait(DEADLINE_S)))


def published(session: Session, wanted: Callable[[], object] = lambda: True) -> threading.Event:
    """Return an event that is set once something was published while `wanted` holds."""
    event = threading.Event()
    session.bus.subscribe(lambda: event.set() if wanted() else None)
    return event


def test_all_calls_come_from_two_threads_that_are_not_ours() -> None:
    """A source needs no lock: calls up to its start come from the thread that attaches it, then the sampler's."""
    source = Source()
    with Session(MAX_INTERVAL_S, lambda lens: source) as session:
        event = published(session)
        session.enable("connections", SourceOptions(all_rows=True))
        assert event.wait(DEADLINE_S)
        assert session.describe("connections", 7).result(DEADLINE_S) == {"Key": "7"}
    assert source.calls == ["configure", "start", "read", "describe", "close"]
    assert source.options == SourceOptions(all_rows=True)
    assert len(source.threads) == 2
    assert threading.get_ident() not in source.threads


@pytest.mark.parametrize(("table", "used"), [("packets", ["connections"]), ("counters", [])])
def test_the_lenses_that_a_table_uses_are_attached_with_it(table: str, used: list[str]) -> None:
    """A source gets the snapshots of lenses that its table uses before its first reading; otherwise none
    are attached.
    """
    sources: dict[str, Source] = {}
    with Session(MAX_INTERVAL_S, lambda lens: sources.setdefault(lens, Source(lens))) as session:
        event = published(session, lambda: session.bus.frame("drops"))
        session.enable("drops", SourceOptions(frozenset({table})))
        assert event.wait(DEADLINE_S)
    assert list(sources) == [*used, "drops"]
    assert sources["drops"].joined == [used]


def test_a_cancelled_request_ends_nothing() -> None:
    """A waiting client may cancel its request for a reading or for details."""
    may_read = threading.Event()
    source = Source(read=partial(may_read.wait, DEADLINE_S))
    with Session(MAX_INTERVAL_S, lambda lens: source) as session:
        session.enable("connections")
        assert source.read_once.wait(DEADLINE_S)
        reading, details = session.sample_now(), session.describe("connections", 7)
        assert reading.cancel()
        assert details.cancel()
        may_read.set()
        session.sample_now().result(DEADLINE_S)
        assert session.describe("connections", 8).result(DEADLINE_S) == {"Key": "8"}
    assert source.calls.count("describe") == 1


def test_missed_deadlines_lengthen_the_interval_that_is_kept() -> None:
    """The interval kept is a multiple of the one asked for, until a deadline is met again."""
    engine, now = Session(5.0, lambda lens: Source()), [0.0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session_module.time, "monotonic", lambda: now[0])
        for now[0], late, kept_s in ((1.0, 0, 5.0), (12.0, 1, 10.0), (15.0, 1, 5.0)):
            engine._deadline = engine._next_deadline()
            assert (engine.late, engine.kept_interval_s, engine.interval_s) == (late, kept_s, 5.0)


def test_a_lens_that_is_not_shown_does_not_hold_back_the_others() -> None:
    """After a missed deadline, only lenses with a lease are read, until one is met again; a request reads all."""
    sources = {lens: Source() for lens in ("drops", "connections")}
    engine = Session(5.0, sources.__getitem__)
    engine._attached = {
        lens: session_module._Attached(source, SourceOptions(), None) for lens, source in sources.items()
    }
    engine._attached["drops"].idle_since = 0.0

    def read(skipped: int) -> list[int]:
        engine._skipped = skipped
        engine._read_all()
        return [source.calls.count("read") for source in sources.values()]

    assert [read(0), read(1), read(0)] == [[1, 1], [1, 2], [2, 3]]
    engine._requests.append(Future())
    assert read(1) == [3, 4]


def test_a_source_is_told_of_skipped_readings() -> None:
    """Before each reading, with those skipped since the start."""
    source = Source()
    with Session(60.0, lambda lens: source) as session:
        session.enable("connections")
        assert source.read_once.wait(DEADLINE_S)
        session.sample_now().result(DEADLINE_S)
        session._cost.late = 7
        session.sample_now().result(DEADLINE_S)
    assert set(source.skipped[:-1]) == {0}
    assert source.skipped[-1] == 7
    assert len(source.skipped) == source.calls.count("read")


def test_attaching_a_lens_does_not_delay_the_readings_of_others() -> None:
    """While one lens starts, however long that takes, the other is read at its deadlines and on request."""
    is_starting, may_start = threading.Event(), threading.Event()
    fast, slow = Source(), slow_to_start(is_starting, may_start)
    with Session(0.1, lambda lens: slow if lens == "drops" else fast) as session:
        session.enable("connections")
        assert fast.read_once.wait(DEADLINE_S)
        session.enable("drops")
        assert is_starting.wait(DEADLINE_S)
        before = fast.calls.count("read")
        thrice = published(session, lambda: fast.calls.count("read") >= before + 3)
        assert thrice.wait(DEADLINE_S)
        assert session.describe("connections", 7).result(DEADLINE_S) == {"Key": "7"}
        assert session.late == 0
        # Options and questions for the one that starts wait until it has.
        request, details = session.sample_now(), session.describe("drops", 8)
        session.change("drops", lambda options: options | SourceOptions(frozenset({"packets"})))
        assert session.bus.frame("drops") is None
        assert "read" not in slow.calls
        may_start.set()
        request.result(DEADLINE_S)
        assert details.result(DEADLINE_S) == {"Key": "8"}
        assert session.bus.frame("drops") is not None
    assert slow.options == SourceOptions(frozenset({"packets"}))
    assert slow.calls[:4] == ["configure", "start", "configure", "read"]


def test_a_lens_that_starts_is_closed_at_the_end() -> None:
    """A lens that is still starting when nettop exits leaves nothing."""
    is_starting, may_start = threading.Event(), threading.Event()
    slow = slow_to_start(is_starting, may_start)
    with Session(MAX_INTERVAL_S, lambda lens: slow) as session:
        session.enable("drops")
        assert is_starting.wait(DEADLINE_S)
        session._stopping = True
        may_start.set()
    assert slow.calls == ["configure", "start", "close"]


@pytest.mark.parametrize("error", [ValueError("a bug")])
def test_a_failure_detaches_and_is_reported(error: Exception) -> None:
    """A source that fails, even by a bug, is closed, and the bus says why."""
    source = failing("read", lambda number: True, error)
    with Session(MAX_INTERVAL_S, lambda lens: source) as session:
        event = published(session)
        session.enable("connections")
        assert event.wait(DEADLINE_S)
        failure = session.bus.failure("connections")
        assert isinstance(failure, SourceFailed)
        assert str(error) in failure.what
    assert source.calls[-1] == "close"


def test_a_released_lens_detaches(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lens detaches at the next tick after its grace period, once its last holder has released it."""
    monkeypatch.setattr(session_module, "DETACH_AFTER_S", 0.0)
    source = Source()
    with Session(0.1, lambda lens: source) as session:
        closed = threading.Event()
        source.close = closed.set  # type: ignore[method-assign]
        first, second = session.enable("connections"), session.enable("connections")
        first.release()
        first.release()
        assert source.read_once.wait(DEADLINE_S)
        assert not closed.is_set()
        second.release()
        assert closed.wait(DEADLINE_S)


def test_requesting_what_is_not_attached_fails_in_words() -> None:
    """A request to an unattached lens gets an error."""
    with Session(MAX_INTERVAL_S) as session, pytest.raises(SourceFailed):
        session.describe("connections", 1).result(DEADLINE_S)


def test_a_refresh_right_after_a_tick_keeps_the_older_snapshot() -> None:
    """Rates never divide by less than the gap, unless there is nothing older."""
    bus = Bus()
    for boot_ns in (0, 1000, 1010, 1020, 2000):
        bus.publish(snapshot(boot_ns), oldest_gap_ns=500)
        if boot_ns in (1010, 1020):
            frame = bus.frame("connections")
            assert frame is not None
            assert frame.before is not None
            assert (frame.before.boot_ns, frame.now.boot_ns) == (0, boot_ns)
    frame = bus.frame("connections")
    assert frame is not None
    assert frame.before is not None
    assert (frame.before.boot_ns, frame.now.boot_ns) == (1020, 2000)


def ages_s(bus: Bus, seconds: range) -> list[float | None]:
    """Return the age of the snapshot that rates are computed from, after each of these readings."""
    ages: list[float | None] = []
    for second in seconds:
        bus.publish(snapshot(second * 10**9), oldest_gap_ns=5 * 10**8)
        frame = bus.frame("connections")
        assert frame is not None
        ages.append(frame.before and (frame.now.boot_ns - frame.before.boot_ns) / 1e9)
    return ages


def test_averages_begin_at_the_oldest_snapshot_until_it_is_old_enough() -> None:
    """Averages cover the requested seconds, or up to a quarter more; fewer only in the beginning."""
    bus = Bus()
    bus.average_over(2)
    assert ages_s(bus, range(6)) == [None, 1, 2, 2, 2, 2]
    bus.average_over(10)
    assert ages_s(bus, range(6, 22)) == [3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 10, 11, 12, 10, 11, 12]
    bus.average_over(0)
    assert ages_s(bus, range(22, 24)) == [1, 1]


def test_few_snapshots_are_kept_for_an_average() -> None:
    """However many snapshots are taken, few are kept: each may have a hundred thousand rows."""
    bus = Bus()
    taken: list[weakref.ref[Any]] = []
    bus.average_over(40)
    for second in range(100):
        rows = make_rows([])
        taken.append(weakref.ref(rows.array))
        bus.publish(replace(snapshot(second * 10**9), tables={"sockets": rows}))
    del rows
    gc.collect()
    assert sum(array() is not None for array in taken) == 7  # with the newest


def test_a_source_that_cannot_be_made_is_a_failure() -> None:
    """If a probe cannot be imported, the failure is reported, and other lenses continue."""

    def source_of(lens: str) -> Source:
        if lens == "drops":
            raise OSError(errno.EMFILE, "Too many open files", "probes/drops.py")
        return Source()

    with Session(MAX_INTERVAL_S, source_of) as session:
        event = published(session, lambda: session.bus.failure("drops") and session.bus.frame("connections"))
        session.enable("drops")
        session.enable("connections")
        assert event.wait(DEADLINE_S)
        failure = session.bus.failure("drops")
        assert isinstance(failure, TooManyFiles)
        assert "ulimit -n" in failure.remedy
