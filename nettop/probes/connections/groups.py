# SPDX-License-Identifier: Apache-2.0
"""Sockets folded by what they have in common, such as a process or a remote, and what has closed along with them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from nettop.probes.connections.event_records import CLOSE, FAIL
from nettop.probes.connections.socket_rows import NOT_OPEN, ROW, TCP
from nettop.query.groupings import ALL, FOLDS, service_ports
from nettop.query.query import text_query
from nettop.query.view import View
from nettop.snapshots.arrays import Index, Mask, as_list, positions
from nettop.snapshots.connections import (
    ENDED_GROUPS,
    GROUP,
    GROUPS,
    LENS,
    NOT_LISTED,
    OTHER_GROUPS,
    RESETS,
    SOCKETS,
    UNATTRIBUTED,
)
from nettop.snapshots.schema import Kind
from nettop.snapshots.snapshot import Array, Ended, Frame, Rows, Snapshot, known, unknown_value

GROUPS_MAX = 1 << 14
"""Groups that have a row each. Those that had a socket longest ago leave for new ones; sockets that would need one more
are in the group OTHER_GROUPS."""
FORGET_AFTER_NS = 60_000_000_000
"""A group that has had no socket for so long joins the row ENDED_GROUPS."""

_COUNTERS = tuple(field.name for field in GROUPS.fields if field.kind is Kind.COUNTER)
_SUMMED = tuple(name for name in _COUNTERS if name in SOCKETS.by_name)
_SINCE_THE_LAST = replace(text_query(SOCKETS), all_rows=True, closed=True, deltas=True)
_SINCE_THE_START = replace(_SINCE_THE_LAST, table=replace(SOCKETS, begins_at_zero=True))
_NOTHING = Snapshot(LENS.id, 0, 0, {SOCKETS.name: Rows(SOCKETS, np.zeros(0, ROW), {}, 0)})
_PID_BITS = 22
_NO_PLACE = -1
_ALWAYS = np.iinfo(np.int64).max


class SocketGroups:
    """Totals by group since the start; each reading adds what the sockets counted since the one before.

    The first reading begins with what open sockets had counted before, and with all that has ended already.
    """

    def __init__(self) -> None:
        self.by = str(GROUP.default)
        self.without_row = 0
        """Groups that had no room, at each reading again."""
        self._forget_all()

    def choose(self, by: str) -> None:
        """Fold by something else, from the next reading on."""
        if by != self.by:
            self.by = by
            self._forget_all()

    def _forget_all(self) -> None:
        self._before: Snapshot | None = None
        self._next_id = 1
        self._places: dict[Hashable, int] = {}
        self._rows: Array = np.zeros(0, GROUPS.dtype)
        self._seen_ns: Array = np.zeros(0, np.int64)
        self._texts: dict[str, list[str]] = {"group": [], "container": []}
        self._ended = _new_rows(1)
        self._ended["id"] = 0

    def read(self, snapshot: Snapshot, events: Array) -> tuple[Rows, Ended]:
        """The groups, with the sockets of a snapshot; `events` are the ends since the one before, sorted by id."""
        is_first = self._before is None
        before = _NOTHING if is_first else self._before
        # A group has all that was counted, also where that is not all there was.
        frame = Frame(replace(snapshot, whole_since_ns=0), before)
        view = View(frame, _SINCE_THE_START if is_first else _SINCE_THE_LAST)
        places = self._places_of(view)
        self._seen_ns[places[places != _NO_PLACE]] = view.now.taken_ns
        self._add(view, places, events)
        self._before = snapshot
        self._keep(self._seen_ns > view.now.taken_ns - FORGET_AFTER_NS)
        group_texts = [*self._texts["group"], ENDED_GROUPS]
        self._ended["group"] = len(group_texts) - 1
        texts = self._texts | {"group": group_texts}
        rows, ended = (
            Rows(GROUPS, array.copy(), texts, view.now.taken_ns, self.by)
            for array in (self._rows, self._ended)
        )
        return rows, Ended((), ended)

    # --- which group each row belongs to --------------------------------------------------------------------

    def _places_of(self, view: View) -> Index:
        """For each row of the view the place of its group."""
        numbers, keys_of = _by_process(view) if self.by == GROUP.default else FOLDS[self.by](view, ALL)
        listed = np.flatnonzero(~view.rest)
        distinct, firsts, which = np.unique(numbers[listed], return_index=True, return_inverse=True)
        keys = list(keys_of(as_list(distinct)))
        new = [at for at, key in enumerate(keys) if key not in self._places]
        self._make_room(len(new), keys)
        room = max(0, GROUPS_MAX - len(self._places))
        self.without_row += len(new[room:])
        new = new[:room]
        self._append([keys[at] for at in new], self._names(view, listed[firsts[new]]))
        if not all(key in self._places for key in keys):
            self._append_alone(OTHER_GROUPS)
        if view.has_rest:
            self._append_alone(NOT_LISTED)
        places = np.full(view.size, self._places.get(NOT_LISTED, _NO_PLACE))
        others = self._places.get(OTHER_GROUPS)
        places[listed] = np.array([self._places.get(key, others) for key in keys], np.intp)[which]
        return places

    def _names(self, view: View, at: Index) -> dict[str, list[Any]]:
        """What names new groups, each with a row at one of these positions of the view, beside its key."""
        if self.by == "process":
            return {"group": [name or UNATTRIBUTED for name in view.values("process", at)]} | {
                name: view.values(name, at) for name in ("pid", "container")
            }
        if self.by == "port":
            return {"protocol": as_list(view.raw("protocol")[at]), "port": as_list(service_ports(view)[at])}
        return {}

    def _append(self, keys: list[Hashable], names: dict[str, list[Any]]) -> None:
        """Add groups with these keys, which are their names where `names` have no others."""
        start = len(self._rows)
        self._rows = np.concatenate([self._rows, _new_rows(len(keys))])
        self._seen_ns = np.append(self._seen_ns, np.zeros(len(keys), np.int64))
        self._rows["id"][start:] = np.arange(self._next_id, self._next_id + len(keys))
        self._next_id += len(keys)
        self._places |= {key: at for at, key in enumerate(keys, start)}
        for name, values in ({"group": list(map(str, keys))} | names).items():
            for at, value in enumerate(values, start):
                if value is None:
                    continue
                if name in self._texts:
                    self._rows[name][at] = len(self._texts[name])
                    self._texts[name].append(value)
                else:
                    self._rows[name][at] = value

    def _append_alone(self, key: str) -> None:
        """Add a group that is not of sockets, which would have seen it last."""
        if key not in self._places:
            self._append([key], {})
            self._seen_ns[-1] = _ALWAYS

    # --- adding up ------------------------------------------------------------------------------------------

    def _add(self, view: View, places: Index, events: Array) -> None:
        """Add to each group what its rows have counted, and describe it as it is now."""
        for name in _SUMMED:
            column = view.column(name)
            at = np.flatnonzero(column.known & (places != _NO_PLACE))
            np.add.at(self._rows[name], places[at], column.numbers[at].astype(np.uint64))
        np.add.at(self._rows["opened"], places[_has_opened(view)], 1)
        ended = np.arange(len(view.now), view.size - int(view.rest.sum()))
        at = positions(events["id"], view.raw("id")[ended])
        for name, happened in (
            ("closed", events["event"] == CLOSE),
            ("failed", events["event"] == FAIL),
            ("reset", (events["event"] == CLOSE) & np.isin(events["reason"], RESETS)),
        ):
            np.add.at(self._rows[name], places[ended[at[happened & (at >= 0)]]], 1)
        self._describe(view, places)
        if self._before is None or view.snapshot.lost.get("events"):
            self._add_missed(view)

    def _add_missed(self, view: View) -> None:
        """Connections that no group has: they ended before the first reading, or their events were lost."""
        counts = view.snapshot.counts
        if "closed" not in counts:
            return
        opened = counts["connected"] + counts["accepted"]
        for name, count in (("opened", opened), ("closed", counts["closed"]), ("failed", counts["failed"])):
            missed = count - int(self._rows[name].sum()) - int(self._ended[name][0])
            if missed > 0:
                self._append_alone(NOT_LISTED)
                self._rows[name][self._places[NOT_LISTED]] += missed

    def _describe(self, view: View, places: Index) -> None:
        """The connections that a group has now, and their round-trip times."""
        is_connected = (view.raw("protocol") == TCP) & ~np.isin(view.raw("state"), NOT_OPEN) & ~view.gone
        self._rows["connections"] = np.bincount(places[is_connected], minlength=len(self._rows))
        for name in ("rtt_median_us", "rtt_worst_us"):
            self._rows[name] = unknown_value(GROUPS.dtype[name])
        rtt = view.raw("rtt_us")
        measured = np.flatnonzero(is_connected & known(rtt))
        ordered = measured[np.lexsort((rtt[measured], places[measured]))]
        groups, firsts, counts = np.unique(places[ordered], return_index=True, return_counts=True)
        self._rows["rtt_median_us"][groups] = rtt[ordered[firsts + counts // 2]]
        self._rows["rtt_worst_us"][groups] = rtt[ordered[firsts + counts - 1]]

    def _make_room(self, count: int, used: Sequence[Hashable]) -> None:
        """Have the groups that are not used leave for so many new ones, if need be: those seen longest ago first."""
        surplus = len(self._seen_ns) + count - GROUPS_MAX
        if surplus <= 0:
            return
        seen_ns = self._seen_ns.copy()
        seen_ns[[self._places[key] for key in used if key in self._places]] = _ALWAYS
        oldest = np.argsort(seen_ns, kind="stable")[:surplus]
        kept = np.ones(len(seen_ns), bool)
        kept[oldest[seen_ns[oldest] < _ALWAYS]] = False
        self._keep(kept)

    def _keep(self, kept: Mask) -> None:
        """Have all other groups join the row of what has ended."""
        if kept.all():
            return
        for name in _COUNTERS:
            self._ended[name] += self._rows[name][~kept].sum(dtype=np.uint64)
        place_of = np.cumsum(kept) - 1
        self._places = {key: int(place_of[at]) for key, at in self._places.items() if kept[at]}
        self._rows, self._seen_ns = self._rows[kept], self._seen_ns[kept]
        for name, texts in self._texts.items():
            codes = self._rows[name]
            present = known(codes)
            self._texts[name] = [texts[code] for code in as_list(codes[present])]
            codes[present] = np.arange(int(present.sum()))


def _new_rows(count: int) -> Array:
    """Rows that have counted nothing, and are named nothing."""
    rows = np.zeros(count, GROUPS.dtype)
    for field in GROUPS.stored:
        if field.kind is not Kind.COUNTER:
            rows[field.name] = unknown_value(GROUPS.dtype[field.name])
    return rows


def _has_opened(view: View) -> Mask:
    """Which rows are of connections that opened since the snapshot before."""
    has_opened: Mask = (view.raw("protocol") == TCP) & known(view.raw("opened_at"))
    assert view.before is not None
    was_there = view.before_at >= 0
    has_opened[was_there] &= ~known(view.before.array["opened_at"][view.before_at[was_there]])
    return has_opened


def _by_process(view: View) -> tuple[Array, Callable[[list[int]], list[Hashable]]]:
    """Fold by PID and start, within 2²⁴ ns of which no PID is used twice, and by what is shown where there is
    no process."""
    pid = view.raw("pid")
    start = view.raw("start_time") >> np.uint64(24)
    number = np.uint64((1 << _PID_BITS) - 1)
    texts = dict(enumerate(view.now.texts["process"]))
    has_start = known(view.raw("start_time"))
    numbers = np.where(has_start, start << np.uint64(_PID_BITS) | pid & number, view.raw("process"))
    return numbers, lambda numbers: [texts.get(each, each) for each in numbers]
