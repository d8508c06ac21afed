# SPDX-License-Identifier: Apache-2.0
"""The report of `nettop run`: a line for each closed connection, and a summary."""

from __future__ import annotations

import json
import shlex
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, TextIO

import numpy as np

from nettop.output.log import lines_of
from nettop.query.address import address_text, endpoint_text
from nettop.query.batches import PIECE_ROWS, pieces
from nettop.query.query import text_query
from nettop.query.times import rfc3339
from nettop.query.units import human
from nettop.query.view import View
from nettop.settings import LineFormat
from nettop.settings.run import RunSettings
from nettop.snapshots.arrays import Array, concatenate_rows
from nettop.snapshots.connections import (
    CHILDREN,
    DIRECTIONS,
    EVENT_KINDS,
    EVENTS,
    FOLLOWED_UDP,
    GRACEFUL,
    LENS,
    REASONS,
    SOCKETS,
    STILL_FOLLOWED,
)
from nettop.snapshots.hooks import NOT_AVAILABLE
from nettop.snapshots.safe_text import safe_text
from nettop.snapshots.snapshot import Frame, Rows, Snapshot, known
from nettop.writing import LineFile

REMOTES_MAX = 4096
"""Most remotes to count separately; the others are counted together."""
SLOWEST = 5
"""Number of slowest handshakes to keep."""

_CONNECT, _, _CLOSE, _FAIL = EVENT_KINDS
_INBOUND = next(iter(DIRECTIONS))
_MOVED = ("bytes_sent", "bytes_received", "retransmits")
_SERVICE = np.dtype([("address", ">u8", 2), ("port", "u4"), ("is_inbound", "u4")])
_OTHERS = bytes(_SERVICE.itemsize)


class RunSummary:
    """Sums over the added events.

    `accepted` connections are known only once they close, and are not included in `opened`. `failed` ones never opened;
    `broken` ones did not close gracefully. Both are counted by reason.
    """

    def __init__(self) -> None:
        self.opened = 0
        self.accepted = 0
        self.failed: Counter[str] = Counter()
        self.broken: Counter[str] = Counter()
        self.moved: Counter[str] = Counter(dict.fromkeys(_MOVED, 0))
        self.slowest: list[dict[str, Any]] = []
        """The slowest handshakes: duration, remote end and owner."""
        self.remotes: dict[bytes, dict[str, Any]] = {}
        """Counts and traffic of each service that processes connected to; for accepted connections, of the clients at
        one address of a local port."""
        self._open_ids: Array = np.zeros(0, np.uint64)

    @property
    def still_open(self) -> int:
        """Number of connections that have opened and not closed."""
        return len(self._open_ids)

    def add(self, events: Rows) -> None:
        """Add rows of the table of events."""
        array = events.array
        opened, ended = array[array["event"] == _CONNECT], array[array["event"] >= _CLOSE]
        failed, closed = ended[ended["event"] == _FAIL], ended[ended["event"] == _CLOSE]
        # Accepted connections, and those whose open event the ring lost, are known only from their close.
        ids = np.append(self._open_ids, opened["id"])
        unseen = closed[np.isin(closed["id"], ids, invert=True)]
        self._open_ids = ids[np.isin(ids, closed["id"], invert=True)]
        is_inbound = unseen["direction"] == _INBOUND
        self.opened += len(opened) + int(np.count_nonzero(~is_inbound))
        self.accepted += int(np.count_nonzero(is_inbound))
        self.failed.update(_reason_names(failed["reason"]))
        self.broken.update(_reason_names(closed["reason"][~np.isin(closed["reason"], tuple(GRACEFUL))]))
        self._add_to_remotes("opened", concatenate_rows(opened, unseen))
        self._add_to_remotes("failed", failed)
        self._add_moved(ended)
        self._add_slowest(events, opened)

    def add_open(self, sockets: Rows) -> None:
        """Add the traffic so far of connections that are still open; `sockets` is the table of sockets."""
        self._add_moved(sockets.array[np.isin(sockets.array["id"], self._open_ids)])

    def by_bytes(self) -> list[dict[str, Any]]:
        """Return the remotes, those with the most traffic first."""
        return sorted(
            self.remotes.values(),
            key=lambda remote: (-remote["bytes_sent"] - remote["bytes_received"], remote["name"]),
        )

    def _add_moved(self, rows: Array) -> None:
        for name in _MOVED:
            self.moved[name] += int(_amounts(rows, name).sum())
            self._add_to_remotes(name, rows)

    def _add_to_remotes(self, name: str, rows: Array) -> None:
        """Add each row's value of `name`, or 1 if it is not a column, to its remote."""
        if not len(rows):
            return
        distinct, place = np.unique(_services(rows).view(f"V{_SERVICE.itemsize}"), return_inverse=True)
        weights = _amounts(rows, name) if name in _MOVED else np.ones(len(rows), np.uint64)
        sums = np.zeros(len(distinct), np.uint64)
        np.add.at(sums, place, weights)
        for key, amount in zip(distinct.tolist(), sums.tolist(), strict=True):
            has_own = key in self.remotes or len(self.remotes) < REMOTES_MAX
            service = key if has_own else _OTHERS
            if service not in self.remotes:
                called = _name(key) if has_own else "(others)"
                self.remotes[service] = {"name": called, "opened": 0, "failed": 0, **dict.fromkeys(_MOVED, 0)}
            self.remotes[service][name] += amount

    def _add_slowest(self, events: Rows, opened: Array) -> None:
        measured = opened[known(opened["handshake_us"])]
        slow = measured[np.argsort(measured["handshake_us"], kind="stable")[-SLOWEST:]]
        names = events.texts["process"]
        for row, is_owned in zip(slow, known(slow["pid"]), strict=True):
            code = int(row["process"])
            remote = endpoint_text(address_text(row["remote_address"].tobytes()), int(row["remote_port"]))
            self.slowest.append(
                {
                    "handshake_us": int(row["handshake_us"]),
                    "remote": remote,
                    "process": names[code] if code < len(names) else None,
                    "pid": int(row["pid"]) if is_owned else None,
                }
            )
        self.slowest = sorted(self.slowest, key=lambda handshake: -handshake["handshake_us"])[:SLOWEST]


def _reason_names(numbers: Array) -> list[str]:
    return [REASONS.get(number, str(number)) for number in numbers.tolist()]


def _amounts(rows: Array, name: str) -> Array:
    """Return a column with unknown values as 0."""
    column = rows[name]
    amounts: Array = np.where(known(column), column, 0).astype(np.uint64)
    return amounts


def _services(rows: Array) -> Array:
    """Return the service of each row: the peer's address with its port, or with the local port if inbound."""
    services = np.zeros(len(rows), _SERVICE)
    inbound = rows["direction"] == _INBOUND
    services["address"] = rows["remote_address"]
    services["port"] = np.where(inbound, rows["local_port"], rows["remote_port"])
    services["is_inbound"] = inbound
    return services


def _name(key: bytes) -> str:
    service = np.frombuffer(key, _SERVICE)[0]
    address = address_text(key[:16])
    if service["is_inbound"]:
        return f"{address} → :{service['port']}"
    return endpoint_text(address, int(service["port"]))


LISTED_ROWS = 10_000
"""Most connections to list at the end; the others are in the summary only."""
SHOWN_REMOTES = 20
_CLOSE = list(EVENT_KINDS)[2]


@dataclass(frozen=True, slots=True)
class CommandEnd:
    """The end of the command: its exit code and duration, losses by name in snapshots, and any trouble in nettop."""

    code: int
    lasted_s: float
    lost: Mapping[str, int] = field(default_factory=dict)
    trouble: str = ""


class RunReport:
    """The sums and lines of a command's events, written to `stream`: lines at once if `is_live`, else at the end."""

    def __init__(self, settings: RunSettings, stream: TextIO | LineFile | None, *, is_live: bool) -> None:
        self.summary = RunSummary()
        self._settings = settings
        self._stream = stream
        self._is_live = is_live
        self._maker = lines_of(settings.format, "event", LENS.id, EVENTS, why=settings.why)
        self._query = text_query(EVENTS)
        self._kept: list[Rows] = []
        self._more = 0

    def add(self, frame: Frame, batches: Sequence[Rows]) -> None:
        """Add events in the order of their arrival."""
        for piece in pieces(batches, PIECE_ROWS):
            self.summary.add(piece)
            ends = replace(piece, array=piece.array[piece.array["event"] >= _CLOSE])
            if self._is_live:
                self._write(self._lines(frame, ends))
            else:
                left = LISTED_ROWS - sum(map(len, self._kept))
                if left > 0 and len(ends):
                    self._kept.append(replace(ends, array=ends.array[:left]))
                self._more += max(0, len(ends) - left)

    def finish(self, frame: Frame, ended: CommandEnd) -> None:
        """Write the remaining lines and the summary."""
        for ends in self._kept:
            self._write(self._lines(frame, ends))
        sockets = frame.now.tables.get(SOCKETS.name)
        if sockets is not None:
            self.summary.add_open(sockets)
        summary = _summary(self.summary, self._settings.words, ended, frame.now)
        if self._settings.format is LineFormat.TEXT:
            lines = _summary_lines(summary, self._more)
            self._write("".join(f"{safe_text(line)}\n" for line in lines))
        else:
            why = {"why": _reasons(frame.now)} if self._settings.why else {}
            self._write(json.dumps(summary | why, ensure_ascii=False) + "\n")

    def _lines(self, frame: Frame, ends: Rows) -> str:
        view = View(Frame(frame.now, None, {EVENTS.name: (ends,)}), self._query)
        return self._maker.lines(view, view.order)

    def _write(self, text: str) -> None:
        """Write complete lines. Ignore write errors: they must not affect the command."""
        if self._stream is not None and text:
            with suppress(OSError):
                self._stream.write(text)
                self._stream.flush()


# --- the summary ----------------------------------------------------------------------------------------------

_UDP_COUNTS = ("bytes_sent", "bytes_received", "messages_sent", "messages_received")
_LOSSES = {
    "events": "events: their connections are missing from the sums; try a larger --ring-size",
    "udp messages": "UDP messages on this host, perhaps including the command's",
    "followed processes": "processes could not be followed: their traffic is missing from the sums",
}
"""Explanation of each loss, by name in snapshots."""
_SOURCE_FIELDS: Mapping[str, tuple[str, ...]] = {
    "opened": ("event",), "accepted": ("event", "direction"), "still_open": ("event",),
    "failed": ("event", "reason"), "broken": ("event", "reason"), **{name: (name,) for name in _MOVED},
    "slowest": ("handshake_us",), "remotes": ("remote_address", "remote_port"),
}  # fmt: skip
"""Fields of events that each part of the summary is computed from; without them it is null."""


def _summary(
    events: RunSummary, words: Sequence[str], ended: CommandEnd, snapshot: Snapshot
) -> dict[str, Any]:
    """Return the summary; unavailable parts are None."""
    missing = dict.fromkeys(_reasons(snapshot))
    not_followed = {name: why for name, why in snapshot.gaps.items() if name == CHILDREN}
    summary = {
        "opened": events.opened,
        "accepted": events.accepted,
        "still_open": events.still_open,
        "failed": dict(events.failed.most_common()),
        "broken": dict(events.broken.most_common()),
        **events.moved,
        "slowest": events.slowest,
        "remotes": [_without(remote, missing) for remote in events.by_bytes()],
    }
    return {
        "time": rfc3339(time.time_ns()),
        "type": "summary",
        "command": [safe_text(word) for word in words],
        "exit_code": ended.code,
        "lasted_us": round(ended.lasted_s * 1e6),
        **_without(summary, missing),
        **{f"udp_{name}": snapshot.counts.get(FOLLOWED_UDP + name) for name in _UDP_COUNTS},
        "still_running": snapshot.counts.get(STILL_FOLLOWED),
        **{f"lost_{name.replace(' ', '_')}": ended.lost.get(name, 0) for name in _LOSSES},
        "trouble": ended.trouble or None,
        "missing": {hook.hook: hook.why for hook in snapshot.hooks if hook.mechanism is None} | not_followed,
    }


def _reasons(snapshot: Snapshot) -> dict[str, str]:
    """Return why parts of the summary are not available."""
    lacking = snapshot.missing
    needed = (
        (name, [field for field in fields if field in lacking]) for name, fields in _SOURCE_FIELDS.items()
    )
    return {name: lacking[fields[0]] for name, fields in needed if fields}


def _without(summary: dict[str, Any], missing: Mapping[str, None]) -> dict[str, Any]:
    return summary | {name: None for name in missing if name in summary}


def _summary_lines(summary: dict[str, Any], more: int) -> Iterator[str]:
    if more:
        yield f"… and {more} more; list all with --output FILE or --live"
    lasted = human(summary["lasted_us"], "us")
    yield f"nettop: {shlex.join(summary['command'])} exited with {summary['exit_code']} after {lasted}"
    accepted = "" if summary["accepted"] == 0 else f", {_number(summary['accepted'])} accepted"
    yield f"  opened   {_number(summary['opened'])}{accepted}, {_number(summary['still_open'])} still open"
    yield f"  failed   {_by_reason(summary['failed'])}"
    if summary["broken"]:
        yield f"  broken   {_by_reason(summary['broken'])}"
    yield f"  tcp      {_traffic(summary)}"
    yield f"  udp      {_udp_traffic(summary)}"
    if summary["still_running"]:
        running = summary["still_running"]
        processes = "1 process" if running == 1 else f"{running} processes"
        yield f"  running  {processes} outlived the command; further traffic is not counted"
    yield from _listed("slowest", summary["slowest"], _handshakes)
    yield from _listed("remotes", summary["remotes"], _remotes)
    for name, meaning in _LOSSES.items():
        if lost := summary[f"lost_{name.replace(' ', '_')}"]:
            yield f"  lost     {lost} {meaning}"
    if summary["trouble"]:
        yield f"  trouble  {summary['trouble']}"
    missing = [f"{hook}: {why}" for hook, why in summary["missing"].items()]
    yield from _listed(NOT_AVAILABLE, missing, iter)


def _listed(title: str, rows: list[Any] | None, write: Callable[[list[Any]], Iterator[str]]) -> Iterator[str]:
    """Yield a line for each row, the first one after the title."""
    for place, line in enumerate([NOT_AVAILABLE] if rows is None else write(rows)):
        yield f"  {'' if place else title:8} {line}"


def _number(value: int | None, unit: str = "") -> str:
    return NOT_AVAILABLE if value is None else human(value, unit) if unit else str(value)


def _by_reason(counts: dict[str, int] | None) -> str:
    if counts is None:
        return NOT_AVAILABLE
    each = ", ".join(f"{reason} {count}" for reason, count in counts.items())
    return f"{sum(counts.values())}: {each}" if each else "0"


def _traffic(summary: Mapping[str, Any]) -> str:
    sent, received = (_number(summary[name], "bytes") for name in ("bytes_sent", "bytes_received"))
    return f"sent {sent}, received {received}, retransmits {_number(summary['retransmits'])}"


def _udp_traffic(summary: Mapping[str, Any]) -> str:
    sent, received = (_number(summary[f"udp_bytes_{end}"], "bytes") for end in ("sent", "received"))
    messages = (_number(summary[f"udp_messages_{end}"]) for end in ("sent", "received"))
    return f"sent {sent}, received {received}, messages {' and '.join(messages)}"


def _handshakes(slowest: list[Any]) -> Iterator[str]:
    for handshake in slowest:
        who = f"  {handshake['process']}[{handshake['pid']}]" if handshake["pid"] is not None else ""
        yield f"{human(handshake['handshake_us'], 'us'):>8}  {handshake['remote']}{who}"


def _remotes(remotes: list[Any]) -> Iterator[str]:
    shown = remotes[:SHOWN_REMOTES]
    width = max((len(remote["name"]) for remote in shown), default=0)
    for remote in shown:
        counts = f"opened {_number(remote['opened'])}  failed {_number(remote['failed'])}"
        yield f"{remote['name']:{width}}  {counts}  {_traffic(remote)}"
    if len(remotes) > len(shown):
        yield f"… and {len(remotes) - len(shown)} more"
