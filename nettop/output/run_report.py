# SPDX-License-Identifier: Apache-2.0
"""The report of `nettop run`: a line for each connection that ended, and a summary."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any, TextIO

from nettop.output.log_plan import lines_of
from nettop.output.run_summary import RunSummary
from nettop.query.batches import PIECE_ROWS, pieces
from nettop.query.query import text_query
from nettop.query.times import rfc3339
from nettop.query.units import human
from nettop.query.view import View
from nettop.settings import LineFormat, RunSettings
from nettop.snapshots.connections import (
    CHILDREN,
    EVENT_KINDS,
    EVENTS,
    FOLLOWED_UDP,
    LENS,
    SOCKETS,
    STILL_FOLLOWED,
)
from nettop.snapshots.hooks import NOT_AVAILABLE
from nettop.snapshots.safe_text import safe_text
from nettop.snapshots.snapshot import Frame, Rows, Snapshot
from nettop.writing import LineFile

LISTED_ROWS = 10_000
"""Connections that have a line each at the end; those beyond are in the summary only."""
SHOWN_REMOTES = 20
_CLOSE = list(EVENT_KINDS)[2]


@dataclass(frozen=True, slots=True)
class Ended:
    """How the command ended: its exit code, how long it ran, what was lost (by its name in snapshots), and what went
    wrong meanwhile.
    """

    code: int
    lasted_s: float
    lost: Mapping[str, int] = field(default_factory=dict)
    trouble: str = ""


class RunReport:
    """Adds up what happens, and writes it to `stream`: lines at once if it `is_live`, else at the end."""

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
        """Take events in, in the order in which they came."""
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

    def finish(self, frame: Frame, ended: Ended) -> None:
        """Write the lines that are left, and the summary."""
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
        """Write whole lines; a report that nobody can read must not change what becomes of the command."""
        if self._stream is not None and text:
            with suppress(OSError):
                self._stream.write(text)
                self._stream.flush()


# --- the summary ----------------------------------------------------------------------------------------------

_OF_UDP = ("bytes_sent", "bytes_received", "messages_sent", "messages_received")
_LOSSES = {
    "events": "events: the sums lack their connections; a larger --ring-size helps",
    "udp messages": "messages of UDP on this host, the command's perhaps among them",
    "followed processes": "processes that were not followed: the sums lack what they moved",
}
"""What the summary says of each loss of a snapshot."""
_MADE_OF: Mapping[str, tuple[str, ...]] = {
    "opened": ("event",),
    "accepted": ("event", "direction"),
    "still_open": ("event",),
    "failed": ("event", "reason"),
    "broken": ("event", "reason"),
    "bytes_sent": ("bytes_sent",),
    "bytes_received": ("bytes_received",),
    "retransmits": ("retransmits",),
    "slowest": ("handshake_us",),
    "remotes": ("remote_address", "remote_port"),
}
"""The fields of the events that each part of the summary is made of: without them it is null."""


def _summary(events: RunSummary, words: Sequence[str], ended: Ended, snapshot: Snapshot) -> dict[str, Any]:
    """The summary; None is what is not available."""
    missing = dict.fromkeys(_reasons(snapshot))
    not_followed = {name: why for name, why in snapshot.gaps.items() if name == CHILDREN}
    summary = {
        "opened": events.opened,
        "accepted": events.accepted,
        "still_open": events.still_open,
        "failed": dict(events.failed.most_common()),
        "broken": dict(events.broken.most_common()),
        **events.moved,
        "slowest": [asdict(handshake) for handshake in events.slowest],
        "remotes": [_without(asdict(remote), missing) for remote in events.by_bytes()],
    }
    return {
        "time": rfc3339(time.time_ns()),
        "type": "summary",
        "command": [safe_text(word) for word in words],
        "exit_code": ended.code,
        "lasted_us": round(ended.lasted_s * 1e6),
        **_without(summary, missing),
        **{f"udp_{name}": snapshot.counts.get(FOLLOWED_UDP + name) for name in _OF_UDP},
        "still_running": snapshot.counts.get(STILL_FOLLOWED),
        **{f"lost_{name.replace(' ', '_')}": ended.lost.get(name, 0) for name in _LOSSES},
        "trouble": ended.trouble or None,
        "missing": {hook.hook: hook.why for hook in snapshot.hooks if hook.mechanism is None} | not_followed,
    }


def _reasons(snapshot: Snapshot) -> dict[str, str]:
    """Why parts of the summary are not available."""
    lacking = snapshot.missing
    needed = ((name, [field for field in fields if field in lacking]) for name, fields in _MADE_OF.items())
    return {name: lacking[fields[0]] for name, fields in needed if fields}


def _without(summary: dict[str, Any], missing: Mapping[str, None]) -> dict[str, Any]:
    return summary | {name: None for name in missing if name in summary}


def _summary_lines(summary: dict[str, Any], more: int) -> Iterator[str]:
    if more:
        yield f"… and {more} more: --output FILE or --live lists them all"
    lasted = human(summary["lasted_us"], "us")
    yield f"nettop: {shlex.join(summary['command'])} ended with {summary['exit_code']} after {lasted}"
    accepted = "" if summary["accepted"] == 0 else f", {_number(summary['accepted'])} accepted"
    yield f"  opened   {_number(summary['opened'])}{accepted}, {_number(summary['still_open'])} still open"
    yield f"  failed   {_by_reason(summary['failed'])}"
    if summary["broken"]:
        yield f"  broken   {_by_reason(summary['broken'])}"
    yield f"  tcp      {_moved(summary)}"
    yield f"  udp      {_moved_by_udp(summary)}"
    if summary["still_running"]:
        running = summary["still_running"]
        processes = (
            "1 process still: what it moves" if running == 1 else f"{running} processes still: what they move"
        )
        yield f"  running  {processes} from now on is not counted"
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
    """A line for each row, the first of them behind the title."""
    for place, line in enumerate([NOT_AVAILABLE] if rows is None else write(rows)):
        yield f"  {'' if place else title:8} {line}"


def _number(value: int | None, unit: str = "") -> str:
    return NOT_AVAILABLE if value is None else human(value, unit) if unit else str(value)


def _by_reason(counts: dict[str, int] | None) -> str:
    if counts is None:
        return NOT_AVAILABLE
    each = ", ".join(f"{reason} {count}" for reason, count in counts.items())
    return f"{sum(counts.values())}: {each}" if each else "0"


def _moved(summary: Mapping[str, Any]) -> str:
    sent, received = (_number(summary[name], "bytes") for name in ("bytes_sent", "bytes_received"))
    return f"sent {sent}, received {received}, retransmits {_number(summary['retransmits'])}"


def _moved_by_udp(summary: Mapping[str, Any]) -> str:
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
        yield f"{remote['name']:{width}}  {counts}  {_moved(remote)}"
    if len(remotes) > len(shown):
        yield f"… and {len(remotes) - len(shown)} more"
