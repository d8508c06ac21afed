# SPDX-License-Identifier: Apache-2.0
"""A counter that decreases was reset, or its difference is unknown: never negative, never more than it counted."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nettop.kernel.host.facts import Host
from nettop.probes.connections.socket_rows import find_limits
from nettop.probes.cpu import samples
from nettop.probes.cpu.processes import SAMPLED_NS, ProcessTimes
from nettop.probes.services.usual import UsualTimes
from nettop.query.query import screen_query
from nettop.query.view import View
from nettop.serve.metrics.totals import _add_increase
from nettop.snapshots import lenses
from nettop.snapshots.arrays import growth
from nettop.snapshots.connections import LIMITS, SOCKETS
from nettop.snapshots.schema import RATE, Kind, Table
from nettop.snapshots.services import BUCKETS, SERVICES
from tests.unit.build import make_rows
from tests.unit.random_frames import random_frame

TABLES = [table for lens in lenses() for table in lens.tables if not table.append]
numbers = st.sampled_from([0, 1, 5, 1000, 2**40, 2**63, 2**64 - 2])


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
@given(seed=st.integers(0, 1 << 32))
def test_of_every_counter(table: Table, seed: int) -> None:
    """Of every counter and histogram of every lens, in what was added and in its rate."""
    frame = random_frame(table, seed)
    view = View(frame, replace(screen_query(table), closed=False, gone=False))
    assert view.before is not None
    for field in table.fields:
        if field.kind not in (Kind.COUNTER, Kind.HISTOGRAM):
            continue
        column, now = view.column(field.name), view.raw(field.name)
        if field.kind is Kind.HISTOGRAM:
            now = now.sum(axis=1)
        assert (column.numbers[column.known] >= 0).all()
        assert (column.numbers[column.known] <= now[column.known]).all()
        if field.has_rate:
            rate = view.column(field.name + RATE)
            assert (rate.known == column.known).all()
            assert (rate.numbers[rate.known] <= now[rate.known]).all()  # in a second
            assert (rate.numbers >= 0).all()


@given(st.lists(st.tuples(numbers, numbers)))
def test_growth(pairs: list[tuple[int, int]]) -> None:
    """Without a step back what was added, with one all that was counted since."""
    now, before = np.array(pairs, np.uint64).reshape(-1, 2).T
    expected = [n - b if n >= b else n for n, b in pairs]
    assert growth(now, before).tolist() == expected


def test_counts_of_a_lens() -> None:
    """The rate of a count that went back is unknown, and metrics add nothing."""
    frame = random_frame(SOCKETS, 1)
    assert frame.before is not None
    before, now = (replace(each, counts={"closed": n}) for each, n in ((frame.before, 9), (frame.now, 3)))
    view = View(replace(frame, now=now, before=before), screen_query(SOCKETS))
    assert view.count_rate("closed") is None
    (lens, *_) = lenses()
    sums: Counter[tuple[str, str]] = Counter()
    _add_increase(sums, lens, {"closed": 3}, {"closed": 9})
    assert not +sums


@given(st.lists(st.dictionaries(st.integers(1, 4), st.integers(0, 50), max_size=4), max_size=5))
def test_counts_of_samples(readings: list[dict[int, int]]) -> None:
    """A key that is counted anew adds what it has counted since."""
    dtype = np.dtype([("samples", "u8")])
    last: dict[int, int] = {}
    counts = samples.GrowingCounts(-1, dtype)
    with pytest.MonkeyPatch.context() as patch:
        for reading in readings:
            made = np.array(list(reading), np.uint64), np.array([(n,) for n in reading.values()], dtype)
            patch.setattr(samples.maps, "read_all", lambda *_, made=made: made)
            keys, _, grown = counts.read()
            expected = {
                k: n - last[k] if n >= last.get(k, 0) and k in last else n for k, n in reading.items()
            }
            assert dict(zip(keys.tolist(), grown.tolist(), strict=True)) == {
                key: more for key, more in expected.items() if more
            }
            last = reading


totals = st.lists(st.integers(0, 1 << 50), min_size=1, max_size=6)


@given(totals)
def test_softirq_time_of_processes(totals_ns: list[int]) -> None:
    """What no process has is what the totals grew by."""
    processes = ProcessTimes(Host(Path("/nonexistent")))
    for total_ns in totals_ns:
        processes.begin()
        processes.add_softirqs(np.zeros(0, SAMPLED_NS), total_ns)
    (row,) = processes.rows(0).array
    assert row["softirq_ns"] == sum(max(0, now - before) for before, now in pairwise([0, *totals_ns]))


def test_usual_times() -> None:
    """A service that has begun anew has the times since then."""
    usual, second = UsualTimes(), 10**9
    for at, responses in ((0, 900), (20, 1000), (40, 30)):
        counts = np.zeros(BUCKETS.count, np.uint64)
        counts[40 if at < 40 else 80] = responses
        rows = make_rows([{"id": 7, "response": counts}], SERVICES).array
        usual.set_columns(rows, at * second)
    assert rows["recent_p99"][0] == pytest.approx(BUCKETS.middles[80], rel=0.1)


@given(st.tuples(*[st.integers(0, 10**7)] * 6))
def test_limits_of_connections(numbers: tuple[int, ...]) -> None:
    """No limit has a negative share, nor more than all of the time."""
    names = ("busy_us", "receiver_limited_us", "send_buffer_limited_us")
    before, rows = (
        make_rows(
            [{"id": 7, **dict(zip(names, values, strict=True)), "retransmits": 1, "data_packets_sent": 1}],
            SOCKETS,
        )
        for values in (numbers[:3], numbers[3:])
    )
    find_limits(rows.array, before.array, 1e6)
    share = rows.array["limited_share"][0]
    assert np.isnan(share) or 0 <= share <= 1
    assert rows.array["limited_by"][0] in (*LIMITS, 255)
