# SPDX-License-Identifier: Apache-2.0
"""The main table: sockets, their processes, how well they perform, closed ones, and commands of other tools for one."""

from __future__ import annotations

import ipaddress
import shlex
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np

from nettop.query.batches import codes_of, concatenate_batches, recode
from nettop.query.filter import parse_filter, quote
from nettop.query.joined_rows import JoinedRows
from nettop.query.units import RATIO, UNKNOWN, human, plural, unit_of
from nettop.query.view import View
from nettop.screens import headline
from nettop.screens.actions import changed, is_shown
from nettop.screens.connections.tables import churn, opened_per_s, without_root
from nettop.screens.history import SPAN_NS, RowHistory, sparkline_of
from nettop.screens.lens import LensScreen
from nettop.snapshots.arrays import Index, Mask, as_list, take_rows
from nettop.snapshots.connections import EVENTS, HOOK_UNATTRIBUTED, RETRANSMITS_WARN_ABOVE, UNATTRIBUTED
from nettop.snapshots.hooks import NOT_AVAILABLE
from nettop.snapshots.schema import OWN_NAMESPACE, Table
from nettop.snapshots.snapshot import Frame, Rows
from nettop.widgets.bar import BarItem, item
from nettop.widgets.cells import Apart, Note, RowFlags, RowStyle, flags_of, role_of
from nettop.widgets.columns import declared
from nettop.widgets.details import TITLE_CELLS, described_lines
from nettop.widgets.text import Line, TextSpan, fit
from nettop.widgets.themes import Role

_CONNS = "protocol=tcp state!=LISTEN state!=TIME_WAIT"
"""Filter that defines a connection, regardless of the user's."""

_TRACED = ("bytes_sent_per_s", "bytes_received_per_s", "rtt_us")
"""Columns that the details draw over time."""
_TRACE_CELLS = 60

_USUAL_STATE = "ESTABLISHED"
_SHORT_STATES = {
    "SYN_SENT": "SYNSENT",
    "SYN_RECV": "SYNRECV",
    "FIN_WAIT1": "FIN_W1",
    "FIN_WAIT2": "FIN_W2",
    "TIME_WAIT": "TIME_W",
    "CLOSE_WAIT": "CLOSE_W",
    "LAST_ACK": "LASTACK",
}
"""States in the width of a round-trip time."""
_STATES_SHOWN = 4
KEPT_CLOSED = 1000
_SS_OPTIONS = {"tcp": "-tinpa", "udp": "-uinpa", "mptcp": "-Minpa"}
_SS_WORDS = (("src", "sport"), ("dst", "dport"))
COLUMNS = ("protocol", "local_address", "local_port", "remote_address", "remote_port", "pid", "namespace")
"""The columns needed from a row."""
_OLD_MS = 1500
"""Age in ms from which the headline shows the age of the unattributed rows."""


def row_flags(view: View, at: Index) -> list[RowFlags]:
    """Return the flags of rows: gone if closed, idle without packets in the last interval, quiet for listeners."""
    columns = [view.column_at(name, at) for name in ("packets_sent_per_s", "packets_received_per_s")]
    known = np.any([column.known for column in columns], axis=0)
    moved = np.any([column.known & (column.numbers > 0) for column in columns], axis=0)
    rows, places = view.some(at)
    listens = parse_filter(view.table, "state=LISTEN").mask(rows)[places]
    return flags_of(view, at, idle=known & ~moved, quiet=listens)


class ConnectionsScreen(LensScreen):
    """Every socket of the host."""

    about = "every socket, with its process and its numbers"
    row_style = RowStyle(
        absent={"owner": UNATTRIBUTED, "process": UNATTRIBUTED},
        warn_above={"retransmit_ratio": RETRANSMITS_WARN_ABOVE},
        stale=frozenset({"rtt", "rtt_us", "rtt_var_us", "rtt_min_us", "delivery_rate"}),
        flags=row_flags,
        note=Note("state", _USUAL_STATE, frozenset({"rtt", "rtt_us"}), _SHORT_STATES),
        apart=Apart("namespace", ("process", "local_port")),
    )

    own_actions: ClassVar = changed(
        ("keep_closed", is_shown, lambda screen: "drop closed" if screen.closed else "keep closed"),
        ("copy_command", lambda screen: is_shown(screen) and bool(screen.commands())),
    )
    closed: ClosedRows | None = None
    """Rows closed since `x` was pressed, while they are kept."""

    _copied = -1
    _traced: Mapping[int, RowHistory] = MappingProxyType({})
    """The history of the row whose details are open, by its key."""

    def record(self, newest: Frame) -> None:
        """Record the rows that have closed."""
        if self.closed is not None and self.shown_frame.has_table(newest):
            self.closed.add(newest)
            self.closed_rows = self.closed.rows

    def make_view(self, frame: Frame) -> None:
        """Apply the query to a frame. Closed rows are folded, except those that `x` keeps and those that → lists."""
        lists_all = self.closed is not None or self.opened_from is not None
        self.rows.folded_by = "" if lists_all else "process"
        super().make_view(frame)

    @property
    def member_table(self) -> Table | None:
        """The sockets of the selected fold's process."""
        return self.table if self.rows.chosen_fold is not None else None

    def draw_details(self) -> None:
        """Draw the details of the selected row; a fold has none."""
        fold = self.rows.chosen_fold
        if self.details_open and fold is not None:
            text = f"{len(fold):,} closed rows; ← closes these details, then → lists the rows"
            self.details.show([(TextSpan(text, Role.DIM),)])
        else:
            super().draw_details()

    def member_filter(self, view: View, at: Index) -> str:
        """Return the filter for the rows of a fold's process."""
        (process,) = view.values("process", at)
        return f"process={UNKNOWN if process is None else quote(process)}"

    def action_keep_closed(self) -> None:
        """Start keeping the rows of closed connections, or drop them."""
        self.closed, self.closed_rows = ClosedRows(self.table) if self.closed is None else None, None
        self.show_newest()  # keeps those of the last interval, which are visible now
        self.update_view()

    def commands(self) -> dict[str, str]:
        """Return the commands of other tools for the selected row."""
        if self.view is None or self.rows.at is None or self.rows.chosen_fold is not None:
            return {}
        row = {name: self.view.values(name, self.rows.chosen)[0] for name in COLUMNS}
        return commands_for(row, are_processes_here=self.context.session.is_local)

    def action_copy_command(self) -> None:
        """Copy the next of the commands."""
        commands = self.commands()
        self._copied = (self._copied + 1) % len(commands)
        self.copy(list(commands.values())[self._copied])

    def more_details(self) -> list[Line]:
        """Return graphs of rates and round-trip time since the details were opened, and commands of other tools."""
        view, key, width = self.view, self.rows.key, self.details.size.width - 2
        if view is None or key is None:
            return []
        if key not in self._traced:
            self._traced = {key: RowHistory(_TRACED)}
        self._traced[key].add(view, np.flatnonzero((view.raw(view.table.key) == key) & ~view.gone))
        commands = {f"{tool} (Y)": command for tool, command in self.commands().items()}
        return [
            (),
            *_trace_lines(view.table, self._traced[key], width),
            (),
            *described_lines(commands, width),
        ]

    def headline(self, view: View) -> list[BarItem]:
        """Return throughput both ways, connections and their churn, trouble, retransmits, sockets by kind and state."""
        is_conn = parse_filter(view.table, _CONNS)
        unknown = any(name in view.missing for name in is_conn.names)
        conns = np.ones(view.size, bool) if unknown else is_conn.mask(view)
        at, every = np.flatnonzero(conns & ~view.gone), np.arange(view.size)
        number, noun = (NOT_AVAILABLE, "conns") if unknown else (f"{len(at):,}", plural("conn", len(at)))
        parts = [
            headline.sum_of(view, "bytes_sent_per_s", TextSpan("↑ ", Role.TOTAL_SENT), every),
            headline.sum_of(view, "bytes_received_per_s", TextSpan("↓ ", Role.TOTAL_RECEIVED), every),
            item((number, Role.BOLD), (f" {noun}", Role.DIM), importance=990),
            *_churn(view, conns),
            *without_root(view),
            *_kept(self.closed),
        ]
        if self.size.width < headline.NARROW:
            return parts
        states = list(view.count_by("state", at).items())[:_STATES_SHOWN]
        return [
            *parts,
            *_retransmits(view, every),
            *_counts(view),
            *(
                headline.count("ESTAB" if s == _USUAL_STATE else s, number, 50 - n)
                for n, (s, number) in enumerate(states)
            ),
        ]


def _trace_lines(table: Table, traced: RowHistory, width: int) -> list[Line]:
    """Return a sparkline with its peak for each traced column of a row, once there are two intervals."""
    if len(traced.intervals) < 2:
        return []
    cells = max(1, min(_TRACE_CELLS, width - 40))
    seconds = f"last {min(traced.covered_s, SPAN_NS / 1e9):.0f} s, since the details were opened"
    lines: list[Line] = [(TextSpan(seconds, Role.BOLD),)]
    for place, name in enumerate(traced.names):
        line, peak = sparkline_of(traced.intervals, place, cells)
        title = TextSpan(fit(table.title_of(name), TITLE_CELLS, left=True) + " ", Role.HEAD)
        lines.append(
            (
                title,
                TextSpan(line, role_of(declared(table, name))),
                TextSpan(f"  peak {human(peak, unit_of(table, name))}"),
            )
        )
    return lines


def _kept(closed: ClosedRows | None) -> list[BarItem]:
    """Return how many closed rows are kept, and how many were dropped."""
    if closed is None:
        return []
    items = [headline.count("closed kept", 0 if closed.rows is None else len(closed.rows), 890)]
    return [*items, headline.count("dropped", closed.dropped, 889, warn=True)] if closed.dropped else items


def _churn(view: View, conns: Mask) -> list[BarItem]:
    """Return connections opened and closed per second.

    Until the first events arrive, compare the last two readings of the table. If events are not available, return n/a
    instead: comparing misses connections that open and close between readings.
    """
    if view.snapshot.why_unavailable(EVENTS) is not None:
        return [headline.not_available(label, 950 - n) for n, label in enumerate(("opened", "closed"))]
    opened, closed = opened_per_s(view), view.count_rate("closed")
    if opened is not None and closed is not None:
        return churn({"opened": opened, "closed": closed})
    rows = {"opened": view.appeared, "closed": view.just_gone}
    return churn({label: view.per_second(int((which & conns).sum())) for label, which in rows.items()})


def _retransmits(view: View, at: Index) -> list[BarItem]:
    """Return `retrans 0.5% of segments`; nothing until it is known."""
    if "retransmit_ratio" in view.missing:
        return [headline.not_available("retrans", 90)]
    share = view.total("retransmit_ratio", at)
    if share is None:
        return []
    bad = share > RETRANSMITS_WARN_ABOVE
    amount = TextSpan(("▲" if bad else "") + human(share, RATIO), Role.BAD if bad else Role.TEXT)
    of = item(("of segments", Role.DIM), importance=75, beside=True)
    return [item(("retrans ", Role.DIM), amount, importance=90), of]


def _counts(view: View) -> list[BarItem]:
    """Return the numbers of sockets without a process, with their age, in TIME_WAIT, and not listed, if any."""
    counts, parts = view.snapshot.counts, []
    if view.snapshot.why_not(HOOK_UNATTRIBUTED.name) is not None:
        parts.append(headline.not_available("no process", 80))
    elif "unattributed" in counts:
        parts.append(headline.count("no process", counts["unattributed"], 80))
        age_ms = counts.get("walk_age_ms", 0)
        if age_ms >= _OLD_MS and counts["unattributed"]:
            parts.append(item((f"({age_ms / 1000:.0f} s ago)", Role.DIM), importance=79, beside=True))
    if counts.get("time_wait"):
        parts.append(headline.count("TIME_WAIT", counts["time_wait"], 70))
    if counts.get("unlisted"):
        why = ("(the kernel counts them, no table lists them)", Role.DIM)
        parts.append(headline.count("not shown", counts["unlisted"], 60))
        parts.append(item(why, importance=59, beside=True))
    return parts


# --- closed rows ------------------------------------------------------------------------------------------------


class ClosedRows:
    """The newest rows that have left a table since this object was created; older ones are counted as `dropped`."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._last: Frame | None = None
        self.rows: Rows | None = None
        self.dropped = 0

    def add(self, frame: Frame) -> None:
        """Add the rows that left between the frame's two snapshots, unless already added."""
        if frame is self._last:
            return
        self._last = frame
        for closed in JoinedRows(frame, self._table, closed=True, gone=True).closed:
            self._add(closed)

    def _add(self, closed: Rows) -> None:
        key, earlier = closed.table.key, self.rows
        if earlier is None or earlier.array.dtype != closed.array.dtype:
            earlier = replace(closed, array=closed.array[:0])
        is_new = ~np.isin(closed.array[key], earlier.array[key])
        if not is_new.any():
            return
        batches = [earlier, replace(closed, array=take_rows(closed.array, np.flatnonzero(is_new)))]
        self.dropped += max(0, sum(map(len, batches)) - KEPT_CLOSED)
        self.rows = _without_unused_texts(concatenate_batches(closed.table, batches, KEPT_CLOSED))


def _without_unused_texts(rows: Rows) -> Rows:
    """Drop unused texts from the rows, as the source does."""
    array, texts = rows.array.copy(), {}
    for name, old in rows.texts.items():
        texts[name] = sorted({old[code] for code in as_list(array[name]) if code < len(old)})
        array[name] = recode(array[name], old, codes_of(texts[name]))
    return replace(rows, array=array, texts=texts)


# --- commands of other tools ------------------------------------------------------------------------------------


def commands_for(row: Mapping[str, Any], *, are_processes_here: bool = True) -> dict[str, str]:
    """Return the commands for a row by the tools' names, or {} if they cannot express it, or if it is in a network
    namespace in which no process is known. In a replay, and of other hosts, the processes are not here."""
    known = [end for end in ("local", "remote") if row[f"{end}_port"] is not None]
    ends = [(row[f"{end}_address"], row[f"{end}_port"]) for end in known]
    if not ends or row["protocol"] not in _SS_OPTIONS:
        return {}
    entering = ""
    if row["namespace"] not in (OWN_NAMESPACE, None):
        if row["pid"] is None or not are_processes_here:
            return {}
        entering = f"nsenter -t {row['pid']} -n "
    matches = [_ss_match(*words, *end) for words, end in zip(_SS_WORDS, ends, strict=False)]
    packets = " and ".join(["udp" if row["protocol"] == "udp" else "tcp", *(_packets(*end) for end in ends)])
    return {
        "ss": f"{entering}ss {_SS_OPTIONS[row['protocol']]} {shlex.quote(' and '.join(matches))}",
        "tcpdump": f"{entering}tcpdump -ni any {shlex.quote(packets)}",
    }


def _is_any(address: str | None) -> bool:
    return address is None or ipaddress.ip_address(address).is_unspecified


def _ss_match(end: str, port_of_end: str, address: str | None, port: int) -> str:
    if _is_any(address):
        return f"{port_of_end} = :{port}"
    host = f"[{address}]" if ":" in str(address) else address
    return f"{end} {host}:{port}"


def _packets(address: str | None, port: int) -> str:
    return f"port {port}" if _is_any(address) else f"host {address} and port {port}"
