# SPDX-License-Identifier: Apache-2.0
"""Sockets grouped by a common property, such as process or remote address, including those that have closed."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from nettop.probes.connections.event_records import CLOSE, FAIL
from nettop.probes.connections.groupings import ALL, GROUPERS, service_ports
from nettop.probes.connections.socket_rows import ROW, TCP, UNCONNECTED_STATES
from nettop.query.query import text_query
from nettop.query.view import View
from nettop.snapshots import connections as spec
from nettop.snapshots.arrays import Array, Index, Mask, as_list, positions, sums_by_place
from nettop.snapshots.schema import Kind
from nettop.snapshots.snapshot import Ended, Frame, Rows, Snapshot, known, mark_unknown

GROUPS_MAX = 1 << 14
"""Maximum groups with a row of their own. The least recently used are evicted for new ones; sockets that would need one
more are counted in the group OTHER_GROUPS."""
FORGET_AFTER_NS = 60_000_000_000
"""A group without a socket for this long joins the row ENDED_GROUPS."""

_COUNTERS = tuple(field.name for field in spec.GROUPS.fields if field.kind is Kind.COUNTER)
_SUMMED = tuple(name for name in _COUNTERS if name in spec.SOCKETS.by_name)
_SINCE_LAST = replace(text_query(spec.SOCKETS), all_rows=True, closed=True, deltas=True)
_SINCE_START = replace(_SINCE_LAST, table=replace(spec.SOCKETS, begins_at_zero=True))
_EMPTY = Snapshot(spec.LENS.id, 0, 0, {spec.SOCKETS.name: Rows(spec.SOCKETS, np.zeros(0, ROW), {}, 0)})
_PID_BITS = 22
_NO_GROUP = -1
_NEVER_EVICTED = np.iinfo(np.int64).max


class SocketGroups:
    """Totals by group since the start; each reading adds the growth of the sockets' counters.

    The first reading starts with the counters of open sockets and everything that has already ended.
    """

    def __init__(self) -> None:
        self.by = str(spec.GROUP.default)
        self.without_row = 0
        """Groups that had no room, counted again at each reading."""
        self._reset()

    def choose(self, by: str) -> None:
        """Group by another property, from the next reading on."""
        if by != self.by:
            self.by = by
            self._reset()

    def _reset(self) -> None:
        self._before: Snapshot | None = None
        self._next_id = 1
        self._index_of: dict[Hashable, int] = {}
        self._rows: Array = np.zeros(0, spec.GROUPS.dtype)
        self._seen_ns: Array = np.zeros(0, np.int64)
        self._texts: dict[str, list[str]] = {"group": [], "container": []}
        self._ended = _new_rows(1)
        self._ended["id"] = 0

    def read(self, snapshot: Snapshot, events: Array) -> tuple[Rows, Ended]:
        """Add a snapshot's sockets to the groups and return them; `events` are the ends since the previous snapshot,
        sorted by id."""
        is_first = self._before is None
        before = _EMPTY if is_first else self._before
        # A group includes everything counted, even where the counts are incomplete.
        frame = Frame(replace(snapshot, complete_since_ns=0), before)
        view = View(frame, _SINCE_START if is_first else _SINCE_LAST)
        places = self._group_indices(view)
        self._seen_ns[places[places != _NO_GROUP]] = view.now.taken_ns
        self._add(view, places, events)
        self._before = snapshot
        self._keep(self._seen_ns > view.now.taken_ns - FORGET_AFTER_NS)
        texts = {name: (*text, spec.ENDED_GROUPS) for name, text in self._texts.items()}
        self._ended["group"] = len(texts["group"]) - 1
        rows, ended = (
            Rows(spec.GROUPS, array.copy(), texts, view.now.taken_ns, self.by)
            for array in (self._rows, self._ended)
        )
        return rows, Ended((), ended)

    # --- which group each row belongs to --------------------------------------------------------------------

    def _group_indices(self, view: View) -> Index:
        """Return the index of the group of each row of the view."""
        numbers, keys_of = (
            _by_process(view) if self.by == spec.GROUP.default else GROUPERS[self.by](view, ALL)
        )
        listed = np.flatnonzero(~view.rest)
        distinct, firsts, which = np.unique(numbers[listed], return_index=True, return_inverse=True)
        keys = list(keys_of(as_list(distinct)))
        new = [at for at, key in enumerate(keys) if key not in self._index_of]
        self._make_room(len(new), keys)
        room = max(0, GROUPS_MAX - len(self._index_of))
        self.without_row += len(new[room:])
        new = new[:room]
        self._append([keys[at] for at in new], self._names(view, listed[firsts[new]]))
        if not all(key in self._index_of for key in keys):
            self._append_pinned(spec.OTHER_GROUPS)
        if view.has_rest:
            self._append_pinned(spec.NOT_LISTED)
        places = np.full(view.size, self._index_of.get(spec.NOT_LISTED, _NO_GROUP))
        others = self._index_of.get(spec.OTHER_GROUPS)
        places[listed] = np.array([self._index_of.get(key, others) for key in keys], np.intp)[which]
        return places

    def _names(self, view: View, at: Index) -> dict[str, list[Any]]:
        """Return the identifying columns of new groups beside the key; `at` is the position of one row of each in the
        view."""
        if self.by == "process":
            return {"group": [name or spec.UNATTRIBUTED for name in view.values("process", at)]} | {
                name: view.values(name, at) for name in ("pid", "container")
            }
        if self.by == "port":
            return {"protocol": as_list(view.raw("protocol")[at]), "port": as_list(service_ports(view)[at])}
        return {}

    def _append(self, keys: list[Hashable], names: dict[str, list[Any]]) -> None:
        """Add groups with these keys, which also name them unless `names` does."""
        start = len(self._rows)
        self._rows = np.concatenate([self._rows, _new_rows(len(keys))])
        self._seen_ns = np.append(self._seen_ns, np.zeros(len(keys), np.int64))
        self._rows["id"][start:] = np.arange(self._next_id, self._next_id + len(keys))
        self._next_id += len(keys)
        self._index_of |= {key: at for at, key in enumerate(keys, start)}
        for name, values in ({"group": list(map(str, keys))} | names).items():
            for at, value in enumerate(values, start):
                if value is None:
                    continue
                if name in self._texts:
                    self._rows[name][at] = len(self._texts[name])
                    self._texts[name].append(value)
                else:
                    self._rows[name][at] = value

    def _append_pinned(self, key: str) -> None:
        """Add a group that does not consist of sockets, and so is never evicted."""
        if key not in self._index_of:
            self._append([key], {})
            self._seen_ns[-1] = _NEVER_EVICTED

    # --- adding up ------------------------------------------------------------------------------------------

    def _add(self, view: View, places: Index, events: Array) -> None:
        """Add the counts of the rows to their groups, and update each group's current state."""
        for name in _SUMMED:
            column = view.column(name)
            at = np.flatnonzero(column.known & (places != _NO_GROUP))
            self._rows[name] += sums_by_place(places[at], column.numbers[at], len(self._rows))
        self._rows["opened"] += self._count(places[_has_opened(view)])
        ended = np.arange(len(view.now), view.size - int(view.rest.sum()))
        at = positions(events["id"], view.raw("id")[ended])
        for name, happened in (
            ("closed", events["event"] == CLOSE),
            ("failed", events["event"] == FAIL),
            ("reset", (events["event"] == CLOSE) & np.isin(events["reason"], spec.RESETS)),
        ):
            self._rows[name] += self._count(places[ended[at[happened & (at >= 0)]]])
        self._describe(view, places)
        if self._before is None or view.snapshot.lost.get("events"):
            self._add_missed(view)

    def _count(self, places: Index) -> Array:
        """Return how often each group is among these places."""
        return np.bincount(places, minlength=len(self._rows)).astype(np.uint64)

    def _add_missed(self, view: View) -> None:
        """Count connections that are in no group: they ended before the first reading, or their events were lost."""
        counts = view.snapshot.counts
        if "closed" not in counts:
            return
        opened = counts["connected"] + counts["accepted"]
        for name, count in (("opened", opened), ("closed", counts["closed"]), ("failed", counts["failed"])):
            missed = count - int(self._rows[name].sum()) - int(self._ended[name][0])
            if missed > 0:
                self._append_pinned(spec.NOT_LISTED)
                self._rows[name][self._index_of[spec.NOT_LISTED]] += missed

    def _describe(self, view: View, places: Index) -> None:
        """Set each group's current connections and round-trip times."""
        is_connected = (
            (view.raw("protocol") == TCP) & ~np.isin(view.raw("state"), UNCONNECTED_STATES) & ~view.gone
        )
        self._rows["connections"] = self._count(places[is_connected])
        mark_unknown(self._rows, ("rtt_median_us", "rtt_worst_us"))
        rtt = view.raw("rtt_us")
        measured = np.flatnonzero(is_connected & known(rtt))
        ordered = measured[np.lexsort((rtt[measured], places[measured]))]
        groups, firsts, counts = np.unique(places[ordered], return_index=True, return_counts=True)
        self._rows["rtt_median_us"][groups] = rtt[ordered[firsts + counts // 2]]
        self._rows["rtt_worst_us"][groups] = rtt[ordered[firsts + counts - 1]]

    def _make_room(self, count: int, used: Sequence[Hashable]) -> None:
        """Evict unused groups to make room for `count` new ones, least recently used first."""
        surplus = len(self._seen_ns) + count - GROUPS_MAX
        if surplus <= 0:
            return
        seen_ns = self._seen_ns.copy()
        seen_ns[[self._index_of[key] for key in used if key in self._index_of]] = _NEVER_EVICTED
        oldest = np.argsort(seen_ns, kind="stable")[:surplus]
        kept = np.ones(len(seen_ns), bool)
        kept[oldest[seen_ns[oldest] < _NEVER_EVICTED]] = False
        self._keep(kept)

    def _keep(self, kept: Mask) -> None:
        """Keep these groups; move all others to the row of ended groups."""
        if kept.all():
            return
        for name in _COUNTERS:
            self._ended[name] += self._rows[name][~kept].sum(dtype=np.uint64)
        place_of = np.cumsum(kept) - 1
        self._index_of = {key: int(place_of[at]) for key, at in self._index_of.items() if kept[at]}
        self._rows, self._seen_ns = self._rows[kept], self._seen_ns[kept]
        for name, texts in self._texts.items():
            codes = self._rows[name]
            present = known(codes)
            self._texts[name] = [texts[code] for code in as_list(codes[present])]
            codes[present] = np.arange(int(present.sum()))


def _new_rows(count: int) -> Array:
    """Return rows with all counters at 0 and no names."""
    rows = np.zeros(count, spec.GROUPS.dtype)
    mark_unknown(rows, (field.name for field in spec.GROUPS.stored if field.kind is not Kind.COUNTER))
    return rows


def _has_opened(view: View) -> Mask:
    """Return a mask of the rows of connections that opened since the previous snapshot."""
    has_opened: Mask = (view.raw("protocol") == TCP) & known(view.raw("opened_at"))
    assert view.before is not None
    was_there = view.before_at >= 0
    has_opened[was_there] &= ~known(view.before.array["opened_at"][view.before_at[was_there]])
    return has_opened


def _by_process(view: View) -> tuple[Array, Callable[[list[int]], list[Hashable]]]:
    """Group by PID and start time, or by the displayed name where there is no process.

    The start is rounded to 2²⁴ ns, within which no PID is used twice.
    """
    pid = view.raw("pid")
    start = view.raw("start_time") >> np.uint64(24)
    number = np.uint64((1 << _PID_BITS) - 1)
    texts = dict(enumerate(view.now.texts["process"]))
    has_start = known(view.raw("start_time"))
    numbers = np.where(has_start, start << np.uint64(_PID_BITS) | pid & number, view.raw("process"))
    return numbers, lambda numbers: [texts.get(number, number) for number in numbers]
