# SPDX-License-Identifier: Apache-2.0
"""nettop's own cost: the table `self`, the share in the first line, and when programs are counted."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from nettop.engine import session as session_module
from nettop.engine.bus import Bus
from nettop.engine.own_cost import OwnCost, Steps
from nettop.engine.own_cost_table import OwnCostSource
from nettop.engine.pace import Pace
from nettop.engine.session import Session
from nettop.query.query import screen_query
from nettop.query.view import View
from nettop.snapshots.own_cost import COSTS, SELF
from nettop.snapshots.snapshot import Frame, Snapshot
from tests.builders.harness import Script

DEADLINE_S = 60
REFUSED = "Operation not permitted"


class Measured(Script):
    """A source with programs whose runs are set by the test, and readings that lost three things."""

    def __init__(self, runs: Mapping[str, tuple[int, int]] | None = None) -> None:
        super().__init__([Snapshot("connections", 0, 0, {}, lost={"events": 2, "connection records": 1})])
        self.runs = dict(runs or {})

    def programs(self) -> Mapping[str, tuple[int, int]]:
        """Return the test's programs."""
        return self.runs

    def kernel_bytes(self) -> int:
        """Return 4 KiB."""
        return 4096


class Statistics:
    """The kernel's statistics: the descriptors that keep them on."""

    def __init__(self) -> None:
        self.descriptors: list[int] = []

    def __call__(self) -> int:
        self.descriptors.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
        return self.descriptors[-1]

    @property
    def are_on(self) -> bool:
        """Return whether the last descriptor handed out is open."""
        try:
            os.fstat(self.descriptors[-1])
        except OSError:
            return False
        return True


def refuse() -> int:
    """Refuse to enable statistics, as a kernel may."""
    raise PermissionError(1, REFUSED)


class Sampled:
    """An engine with one lens attached, which was late seven times, and its table of costs."""

    def __init__(
        self, probe: Any, open_statistics: Callable[[], int] | None = None, bound: float | None = None
    ) -> None:
        self.cost = OwnCost(lambda: {"connections": probe}, open_statistics)
        self.cost.late = 7
        self.bus = Bus()
        self.bus.publish(probe.read(0))
        self.source = OwnCostSource(self.cost, Pace(1.0, self.cost, bound), self.bus)


def rows_of(snapshot: Snapshot) -> list[dict[str, Any]]:
    """Return the rows of the table as every frontend sees them."""
    view = View(Frame(snapshot), screen_query(COSTS))
    at = np.arange(view.size)
    columns = {field.name: view.values(field.name, at) for field in COSTS.fields}
    # Counters are differences in a screen's query; here totals are wanted.
    columns |= {name: view.raw(name).tolist() for name in ("runs", "time_ns", "late", "lost")}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def row(snapshot: Snapshot, kind: str, name: str) -> dict[str, Any]:
    """Return the one row of this kind and name."""
    [actual] = [row for row in rows_of(snapshot) if (row["kind"], row["name"]) == (kind, name)]
    return actual


def read(source: OwnCostSource, cost: OwnCost) -> Snapshot:
    """Return the next reading."""
    cost.take()
    return source.read(0)


def burnt(check: Callable[[], bool]) -> None:
    """Use CPU time until a condition holds."""
    deadline = time.monotonic() + DEADLINE_S
    while not check():
        assert time.monotonic() < deadline


def test_total_is_what_the_process_and_its_ended_children_used() -> None:
    """The total is exact to the nanosecond, and includes children when they end."""
    cost = Sampled(Measured()).cost
    before = time.process_time_ns()
    cost.take()
    assert before <= cost.now.own_ns <= time.process_time_ns()
    children = cost.now.children_ns
    subprocess.run([sys.executable, "-S", "-c", "sum(range(1_000_000))"], check=True)
    cost.take()
    assert cost.now.children_ns > children
    assert cost.now.total_ns == cost.now.own_ns + cost.now.children_ns


def test_programs_in_other_peoples_time_count_and_iterators_do_not() -> None:
    """Iterators' time is not added: the reading thread's time includes it."""
    probe = Measured({"tp_btf__x": (1, 1000), "bpf_iter__task_file": (5, 50_000)})
    cost = Sampled(probe, Statistics()).cost
    cost.acquire_statistics()
    probe.runs = {"tp_btf__x": (3, 1700), "bpf_iter__task_file": (9, 90_000), "fexit__y": (1, 40)}
    cost.take()
    assert (
        cost.now.programs_ns == 700 + 40
    )  # what ran before somebody looked is not ours; a new program's all is
    probe.runs = {"tp_btf__x": (1, 200)}  # loaded again under its name
    cost.take()
    assert cost.now.programs_ns == 700 + 40 + 200


def test_rows_of_programs() -> None:
    """Programs have their usual hook names, and the kernel's runs and time."""
    probe = Measured({"tp_btf__x": (4, 1000), "bpf_iter__tcp": (2, 500)})
    engine = Sampled(probe, Statistics(), bound=0.02)
    cost, source = engine.cost, engine.source
    source.start()
    snapshot = read(source, cost)
    program, walk = row(snapshot, "program", "tp_btf/x"), row(snapshot, "iterator", "iter/tcp")
    assert (program["runs"], program["time_ns"], program["mean_ns"]) == (4, 1000, 250)
    assert (walk["lens"], walk["runs"], walk["note"]) == ("connections", 2, None)
    assert row(snapshot, "maps", "kernel memory")["memory"] == 4096
    assert row(snapshot, "total", "nettop")["late"] == 7
    assert row(snapshot, "total", "nettop")["lost"] == 3
    assert snapshot.via == {"programs": "BPF statistics"}
    assert row(snapshot, "limit", "--max-overhead 2%")["note"] == "interval 1.0 s, as chosen"
    source.close()


def fail(error: OSError) -> Callable[[], int]:
    """Fail to enable statistics."""

    def opener() -> int:
        raise error

    return opener


@pytest.mark.parametrize(
    ("opener", "why"),
    [
        (refuse, "n/a: needs CAP_SYS_ADMIN"),
        (None, "n/a: start nettop with --view self or --max-overhead"),
        (fail(OSError(28, "No space left on device")), "n/a: the kernel refuses: No space left on device"),
    ],
)
def test_without_statistics_programs_say_why_and_the_rest_works(
    opener: Callable[[], int] | None, why: str
) -> None:
    """Without statistics programs are n/a with the reason, never 0."""
    probe = Measured({"tp_btf__x": (4, 1000)})
    engine = Sampled(probe, opener)
    cost, source = engine.cost, engine.source
    source.start()
    snapshot = read(source, cost)
    program = row(snapshot, "program", "tp_btf/x")
    assert program["note"] == why
    assert program["mean_ns"] is None
    assert {program["runs"], program["time_ns"]} == {2**64 - 1}
    assert row(snapshot, "total", "nettop")["memory"] > 1 << 20
    assert why in snapshot.via["programs"]
    source.close()
    source.close()


def test_statistics_are_on_while_somebody_looks() -> None:
    """Statistics cost every program on the host, so they are only on during use."""
    statistics = Statistics()
    cost = Sampled(Measured(), statistics).cost
    assert not statistics.descriptors
    cost.acquire_statistics()
    cost.acquire_statistics()
    assert len(statistics.descriptors) == 1
    cost.release_statistics()
    assert statistics.are_on
    cost.release_statistics()
    assert not statistics.are_on
    assert not cost.counts_programs


def test_rows_keep_their_numbers() -> None:
    """A thread that comes later has a number of its own; the others keep theirs."""
    probe = Measured()
    engine = Sampled(probe)
    cost, source = engine.cost, engine.source
    ends = threading.Event()
    first, latecomer = (threading.Thread(target=ends.wait, name=name) for name in ("first", "latecomer"))
    first.start()
    try:
        before = {row["id"]: (row["kind"], row["name"]) for row in rows_of(read(source, cost))}
        latecomer.start()
        after = {row["id"]: (row["kind"], row["name"]) for row in rows_of(read(source, cost))}
    finally:
        ends.set()
    first.join()
    latecomer.join()
    # Threads of other tests, which have been joined by now, may still be ending.
    lasting = {
        number: row for number, row in before.items() if row[0] != "thread" or row[1] in ("main", "first")
    }
    assert {("thread", "main"), ("thread", "first")} <= set(lasting.values())
    assert after.items() >= lasting.items()
    assert all(after.get(number, row) == row for number, row in before.items())
    assert ("thread", "latecomer") in after.values()


def test_steps_are_counted_also_where_they_fail() -> None:
    """Failed steps count too, with the longest one."""
    steps = Steps()
    for fails in (False, True):
        try:
            with steps.time("connections", "read"):
                if fails:
                    raise ValueError
        except ValueError:
            pass
    step = steps.all()["connections", "read"]
    assert step.runs == 2
    assert 0 < step.longest_ns < step.took_ns


def test_a_steps_time_is_a_part_of_its_threads() -> None:
    """What it waits for is somebody else's: no part is more than the whole. How long it took is beside it."""
    waited_ns = 20_000_000
    other = threading.Thread(target=lambda: burnt(lambda: time.thread_time_ns() >= waited_ns))
    steps, before = Steps(), time.thread_time_ns()
    with steps.time("connections", "read"):
        other.start()
        other.join()
    step = steps.all()["connections", "read"]
    assert 0 < step.time_ns <= time.thread_time_ns() - before
    assert step.took_ns == step.longest_ns >= waited_ns


def test_the_share_is_over_half_a_second_at_least() -> None:
    """A refresh right after another gives no new share."""
    cost = Sampled(Measured()).cost
    cost.take()
    assert cost.share() is None
    burnt(lambda: (cost.take(), cost.share())[1] is not None)  # type: ignore[func-returns-value]
    before, now = cost._readings[0], cost.now
    assert now.at_ns - before.at_ns >= 5e8
    share = cost.share()
    assert share is not None
    assert share > 0


def test_a_session_measures_its_lenses_while_somebody_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first lens is attached too; statistics end with the lease."""
    monkeypatch.setattr(session_module, "DETACH_AFTER_S", 0.0)
    statistics, probe = Statistics(), Measured({"tp_btf__x": (4, 1000)})
    with Session(0.1, lambda lens: probe, open_statistics=statistics) as session:
        seen = threading.Event()

        def look() -> None:
            frame = session.bus.frame(SELF.id)
            names = {row["name"] for row in rows_of(frame.now)} if frame else set()
            if {"tp_btf/x", "read", "sampler"} <= names:
                seen.set()

        session.bus.subscribe(look)
        lease = session.enable(SELF.id)
        assert seen.wait(DEADLINE_S)
        assert statistics.are_on
        frame = session.bus.frame(SELF.id)
        assert frame is not None
        assert frame.now.lost == {"connections": 3}
        lease.release()
        burnt(lambda: not statistics.are_on)


def test_children_are_no_share() -> None:
    """A child's lifetime cost would look like a storm at its end, so it is no share."""
    cost = OwnCost(dict)
    burnt(lambda: (cost.take(), cost.share())[1] is not None)  # type: ignore[func-returns-value]
    now = cost.now
    cost._readings.append(now._replace(at_ns=now.at_ns + 10**9, children_ns=now.children_ns + 10**10))
    share = cost.share()
    assert share is not None
    assert share < 1.5
