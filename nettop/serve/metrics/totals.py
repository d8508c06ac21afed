# SPDX-License-Identifier: Apache-2.0
"""Totals over all readings of the session. A separate thread updates them, so that a scrape only has to list them."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import MappingProxyType

from nettop.engine.consumer import Consumer, Outages
from nettop.process import service_manager
from nettop.process.wake_event import WakeEvent
from nettop.query.filter import combined
from nettop.query.view import View
from nettop.serve.metrics.families import series_sets
from nettop.serve.metrics.series import CountedView, SeriesTotals, group_increments, reading_view
from nettop.serve.served import LATE_S, Served
from nettop.snapshots.schema import Kind, Lens, Table
from nettop.snapshots.snapshot import Frame, Snapshot
from nettop.snapshots.source import SourceOptions

ADD_UP = "add up"
"""Name of the thread's step in nettop's own cost."""
Adder = Callable[[Mapping[str, View], float], None]


class Totals:
    """Totals of every lens since serving started.

    `top` overrides the declared number of series of a named set; 0 disables it. `options` are those of the lenses'
    sources. `adders` are called with each reading of a lens: views of its tables, and seconds since the reading before,
    or 0. Hold `lock` while reading the other attributes, to get a consistent state.
    """

    def __init__(
        self,
        served: Served,
        top: Mapping[str, int],
        options: SourceOptions,
        adders: Mapping[str, Adder] = MappingProxyType({}),
    ) -> None:
        self.lock = threading.Lock()
        self.series: list[SeriesTotals] = []
        self.counts: Counter[tuple[str, str]] = Counter()
        """Numbers of lenses as a whole, by lens id and name: sums, and the last value of gauges."""
        self.lost: Counter[tuple[str, str]] = Counter()
        self.last: dict[str, Snapshot] = {}
        """Most recently added reading, by lens id."""
        for lens in served.lenses:
            for declared in series_sets(lens):
                most = top.get(declared.metrics.top, declared.metrics.limit)
                if most:
                    self.series.append(SeriesTotals(declared, most))
        self._served = served
        self._options = options
        self._adders = adders
        self._event = WakeEvent()
        self._adding = threading.Lock()
        self._is_ending = False
        self._passed_at = time.monotonic()

    @contextmanager
    def running(self, report: Callable[[str], None] = lambda _: None) -> Iterator[None]:
        """Keep the lenses attached, add up their readings, and report those that fail or come back."""
        with ExitStack() as consumers:
            for lens in self._served.lenses:
                tables = self._tables(lens)
                consumers.enter_context(
                    Consumer(self._served.session, lens.id, tables, self._options, self._event)
                )
            outages = Outages(self._served.session, [lens.id for lens in self._served.lenses], report)
            thread = threading.Thread(target=self._run, args=(outages,), name="totals", daemon=True)
            thread.start()
            try:
                yield
            finally:
                self._is_ending = True
                self._event.set()
                thread.join()

    def _tables(self, lens: Lens) -> list[Table]:
        """Return the tables that are read continuously: the first, and those that metrics are made from."""
        made_of = [totals.declared.table for totals in self.series if totals.declared.lens is lens]
        return list({table.name: table for table in (lens.main, *made_of) if not table.append}.values())

    @property
    def are_behind(self) -> bool:
        """Whether readings have waited long to be added."""
        return time.monotonic() - self._passed_at > LATE_S

    def _run(self, outages: Outages) -> None:
        with self._event:
            while not self._is_ending:
                self.catch_up()
                self._served.slow_down()
                outages.report_new()
                if not self._served.is_stuck:
                    service_manager.alive(self._served.session.interval_s)
                self._passed_at = time.monotonic()
                self._event.wait(timeout_s=LATE_S / 2)

    def catch_up(self) -> None:
        """Add the newest reading of each lens, unless it was added."""
        with self._adding:
            for lens in self._served.lenses:
                frame = self._served.frame(lens.id)
                if frame is not None and frame.now is not self.last.get(lens.id):
                    with self._served.session.steps.time(lens.id, ADD_UP):
                        self._add(lens, frame)

    def _add(self, lens: Lens, frame: Frame) -> None:
        before = self.last.get(lens.id)
        tables = [table for table in self._tables(lens) if table.name in frame.now.tables]
        views = {table.name: reading_view(frame, before, table) for table in tables}
        shown = {table.name: combined(table, self._served.applicable_filters(table)) for table in tables}
        counted = {name: CountedView(view, shown[name].mask(view)) for name, view in views.items()}
        readings = [
            (totals, group_increments(totals.declared, counted[totals.declared.table.name]))
            for totals in self.series
            if totals.declared.lens is lens and totals.declared.table.name in counted
        ]
        now_s = time.monotonic()
        with self.lock:
            for totals, reading in readings:
                totals.add(reading, now_s)
            self._add_counts(lens, frame.now, before)
            self.last[lens.id] = frame.now
        if lens.id in self._adders:
            self._adders[lens.id](views, (frame.now.boot_ns - before.boot_ns) / 1e9 if before else 0.0)

    def _add_counts(self, lens: Lens, now: Snapshot, before: Snapshot | None) -> None:
        """Add the lens-wide counts and losses."""
        counts = {field.name: now.counts[field.name] for field in lens.counts if field.name in now.counts}
        _add_increase(self.counts, lens, counts, before.counts if before else {})
        _add_increase(self.lost, lens, now.lost, before.lost if before else {})
        for field in lens.counts:
            if field.kind is Kind.GAUGE and field.name in counts:
                self.counts[lens.id, field.name] = counts[field.name]


def _add_increase(
    sums: Counter[tuple[str, str]], lens: Lens, now: Mapping[str, int], before: Mapping[str, int]
) -> None:
    """Add the increase of each count of a lens; a decrease adds nothing."""
    for name, count in now.items():
        sums[lens.id, name] += max(0, count - before.get(name, 0))
