# SPDX-License-Identifier: Apache-2.0
"""Readable lines: one event or one row a line, its time first, with units, in words that grep finds.

2026-11-20T11:02:40.060110Z  fail     refused  curl[4615]  127.0.0.1:42524 → 127.0.0.1:1  after 62 µs  sent 0 B
"""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable
from functools import lru_cache, partial
from json.encoder import encode_basestring
from typing import Any

import numpy as np

from nettop.output.plan import field_of
from nettop.output.rows import filled
from nettop.output.table import word
from nettop.query.times import rfc3339
from nettop.query.units import UNKNOWN, human, human_spread, unit_of
from nettop.query.view import View
from nettop.settings import LineFormat
from nettop.snapshots.arrays import Index, as_list
from nettop.snapshots.connections import EVENTS, SOCKETS
from nettop.snapshots.schema import RATE, Kind, Table
from nettop.snapshots.snapshot import NOT_AVAILABLE

Part = Callable[[View, Index], list[str]]
"""Gives a part of each line, which begins with the spaces before it."""

_KIND_WIDTH = 7
_REASON_WIDTH = 15
_STATE_WIDTH = 11
_OWNER_WIDTH = 22
_ENDS_WIDTH = 45
"""Two IPv4 addresses with their ports, and the arrow between them."""

_AMOUNTS = frozenset({Kind.COUNTER, Kind.GAUGE, Kind.RATIO})
_LABELS = {"duration_us": "after", "retransmits": "retransmits", "packets_sent": "packets sent",
           "packets_received": "packets received"}  # fmt: skip
"""What a line calls an amount, where it is not the title of its column."""

_OPENINGS = ("connect", "accept")
_AT_THE_END = ("duration_us", "bytes_sent", "bytes_received", "retransmits")
_OF_SOCKETS = ("bytes_sent", "bytes_received", "packets_sent", "packets_received", "retransmits", "rtt")
_OWNER, _ENDS = ("process", "pid"), ("local", "remote")


class TextLines:
    """Formats rows of a table as readable lines, each of which says `kind` behind its time.

    An event says itself what it is. Amounts that are unknown are left out; those that are not here are `n/a`.
    """

    def __init__(self, table: Table, kind: str) -> None:
        if table is EVENTS:
            self._parts = _event_parts()
        elif table is SOCKETS:
            self._parts = _socket_parts(kind)
        else:
            self._parts = _row_parts(table, kind)

    def lines(self, view: View, at: Index) -> str:
        """One line for each of the rows at `at`."""
        if not len(at):
            return ""
        cells = [part(view, at) for part in self._parts]
        return filled([*[""] * len(cells), "\n"], cells)


def lost_line(form: LineFormat, wall_ns: int, what: str, cause: str, *, count: int, total: int) -> str:
    """The line that says that `count` more of `what` are lost, `total` in all, and why."""
    if form is LineFormat.TEXT:
        why = f" ({cause})" if cause else ""
        return f"{rfc3339(wall_ns)}  {'lost':{_KIND_WIDTH}}  {count} {what}{why}, {total} in all\n"
    texts = {"time": rfc3339(wall_ns), "type": "lost", "what": what, "cause": cause}
    written = ",".join(f'"{name}":{encode_basestring(text)}' for name, text in texts.items())
    return f'{{{written},"count":{count},"total":{total}}}\n'


def limit_line(form: LineFormat, wall_ns: int, state: str) -> str:
    """The line that says what is done for --max-overhead."""
    if form is LineFormat.TEXT:
        return f"{rfc3339(wall_ns)}  {'limit':{_KIND_WIDTH}}  {state}\n"
    texts = {"time": rfc3339(wall_ns), "type": "limit", "what": state}
    return json.dumps(texts, ensure_ascii=False, separators=(",", ":")) + "\n"


def missing_line(form: LineFormat, wall_ns: int, what: str, why: str) -> str:
    """The line that says that there are no lines of `what`, and why."""
    if form is LineFormat.TEXT:
        return f"{rfc3339(wall_ns)}  {NOT_AVAILABLE:{_KIND_WIDTH}}  {what}: {why}\n"
    texts = {"time": rfc3339(wall_ns), "type": "missing", "what": what, "why": why}
    return json.dumps(texts, ensure_ascii=False, separators=(",", ":")) + "\n"


# --- which parts a line has -----------------------------------------------------------------------------------


def _event_parts() -> list[Part]:
    ended = [_of_events(name, opened=False) for name in _AT_THE_END]
    kind, reason = _bare("event", _KIND_WIDTH), _bare("reason", _REASON_WIDTH)
    return [_own_time, kind, reason, _owner, _ends, _of_events("handshake_us", opened=True), *ended]


def _socket_parts(kind: str) -> list[Part]:
    amounts = [_amount(SOCKETS, name) for name in _OF_SOCKETS]
    return [_snapshot_time, _same(kind), _bare("state", _STATE_WIDTH), _owner, _ends, *amounts]


def _row_parts(table: Table, kind: str) -> list[Part]:
    """The columns that plain text shows unasked: what names something first, then what measures something."""
    parts = [_own_time if "time" in table.by_name else _snapshot_time, _same(kind)]
    left = [name for name in table.text if name != "time"]
    for names, part in ((_OWNER, _owner), (_ENDS, _ends)):
        if set(names) <= set(left):
            parts.append(part)
            left = [name for name in left if name not in names]
    parts += [_named(name) for name in left if not _is_amount(table, name)]
    return parts + [_amount(table, name) for name in left if _is_amount(table, name)]


def _is_amount(table: Table, name: str) -> bool:
    field = field_of(table, name)
    first = table.by_name[field.parts[0]] if field.kind is Kind.GROUP else field
    return first.kind in _AMOUNTS


# --- the parts ------------------------------------------------------------------------------------------------


def _own_time(view: View, at: Index) -> list[str]:
    return [text or _blank(view, "time") for text in view.values("time", at)]


def _snapshot_time(view: View, at: Index) -> list[str]:
    return [rfc3339(view.snapshot.wall_ns)] * len(at)


def _same(kind: str) -> Part:
    return lambda _view, at: [f"  {kind:{_KIND_WIDTH}}"] * len(at)


def _bare(name: str, width: int) -> Part:
    return lambda view, at: _each(
        view.values(name, at), lambda value: f"  {value or _blank(view, name):{width}}"
    )


def _named(name: str) -> Part:
    return lambda view, at: _each(
        view.values(name, at), lambda value: f"  {name}={_text(value, _blank(view, name))}"
    )


def _owner(view: View, at: Index) -> list[str]:
    blanks = [_blank(view, name) for name in _OWNER]

    def written(owner: tuple[str | None, int | None]) -> str:
        if owner[1] is None and NOT_AVAILABLE not in blanks:
            return "(unattributed)"
        name, pid = map(_text, owner, blanks)
        return f"{name}[{pid}]"

    owners = list(zip(*(view.values(name, at) for name in _OWNER), strict=True))
    return _each(owners, lambda owner: f"  {written(owner):{_OWNER_WIDTH}}")


def _ends(view: View, at: Index) -> list[str]:
    sides = ([end or _blank(view, name) for end in view.values(name, at)] for name in _ENDS)
    return [f"  {' → '.join(ends):{_ENDS_WIDTH}}" for ends in zip(*sides, strict=True)]


def _of_events(name: str, *, opened: bool) -> Part:
    """An amount that only the events have that open a connection, or only the others."""
    amount = _amount(EVENTS, name)
    codes = [code for code, label in EVENTS.by_name["event"].labels.items() if label in _OPENINGS]

    def part(view: View, at: Index) -> list[str]:
        wanted = np.isin(view.raw("event")[at], codes, invert=not opened)
        return [
            text if is_wanted else ""
            for text, is_wanted in zip(amount(view, at), as_list(wanted), strict=True)
        ]

    return part


def _amount(table: Table, name: str) -> Part:
    field, unit = field_of(table, name), unit_of(table, name)
    label = _LABELS.get(name, field.title.lower() + ("/s" if name.endswith(RATE) else ""))
    if name == "rtt":
        written = partial(_spreads, parts=field.parts, unit=unit)
    else:
        written = partial(_told_all, name=name, label=label, unit=unit)
    return lambda view, at: (
        [f"  {label} {NOT_AVAILABLE}"] * len(at) if name in view.missing else written(view, at)
    )


def _told_all(view: View, at: Index, name: str, label: str, unit: str) -> list[str]:
    return [_told(label, value, unit) for value in view.values(name, at)]


def _spreads(view: View, at: Index, parts: tuple[str, ...], unit: str) -> list[str]:
    pairs = zip(*(view.values(part, at) for part in parts), strict=True)
    return ["" if rtt is None else f"  rtt {human_spread(rtt, deviation, unit)}" for rtt, deviation in pairs]


@lru_cache(maxsize=1 << 12)
def _told(label: str, value: float | None, unit: str) -> str:
    return "" if value is None else f"  {label} {human(value, unit)}"


def _text(value: Any, blank: str) -> str:
    return blank if value is None else word(str(value))


def _blank(view: View, name: str) -> str:
    """What stands for a value that is not there."""
    return NOT_AVAILABLE if name in view.missing else UNKNOWN


def _each(values: list[Any], write: Callable[[Any], str]) -> list[str]:
    """What `write` makes of each value; it is called once for those that are equal."""
    written: dict[Hashable, str] = {value: write(value) for value in set(values)}
    return list(map(written.__getitem__, values))
