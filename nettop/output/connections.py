# SPDX-License-Identifier: Apache-2.0
"""Readable lines of connections and their events, and the names and totals of their logs.

2026-11-20T11:02:40.060110Z  fail     refused  curl[4615]  127.0.0.1:42524 → 127.0.0.1:1  after 62 µs  sent 0 B
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import chain

import numpy as np

from nettop.formats.cells import Cell, format_each, only_where
from nettop.output import log_lines as lines
from nettop.output.lens_output import LensOutput, Part
from nettop.query.view import View
from nettop.snapshots.arrays import Index
from nettop.snapshots.connections import EVENTS, SOCKETS, WITHOUT_ROOT
from nettop.snapshots.hooks import NOT_AVAILABLE
from nettop.snapshots.schema import Table

_LABELS = {"duration_us": "after", "retransmits": "retransmits", "packets_sent": "packets sent",
           "packets_received": "packets received", "rtt": "rtt"}  # fmt: skip
_REASON_WIDTH = 15
_STATE_WIDTH = 11
_OPENINGS = [code for code, name in EVENTS.by_name["event"].labels.items() if name in ("connect", "accept")]
_CLOSE_AMOUNTS = ("duration_us", "bytes_sent", "bytes_received", "retransmits")
_SOCKET_AMOUNTS = ("bytes_sent", "bytes_received", "packets_sent", "packets_received", "retransmits", "rtt")


def line_parts(table: Table, kind: str) -> list[Part]:
    """Return the parts of a line for an event, a socket or any other row."""
    who = [lines.owner, lines.ends, _other_namespace(os.stat("/proc/self/ns/net").st_ino)]
    if table.name == EVENTS.name:
        event = [lines.unlabelled("event", lines.KIND_WIDTH), lines.unlabelled("reason", _REASON_WIDTH)]
        handshake = lines.amount(EVENTS, "handshake_us", _LABELS)
        amounts = [lines.amount(EVENTS, name, _LABELS) for name in _CLOSE_AMOUNTS]
        # Events have the same round-trip time fields as sockets.
        amounts.append(lines.amount(SOCKETS, "rtt", _LABELS))
        by_event = [_for_events([handshake], opened=True), _for_events(amounts, opened=False)]
        return [lines.own_time, *event, *who, *by_event]
    if table.name == SOCKETS.name:
        amounts = [lines.amount(table, name, _LABELS) for name in _SOCKET_AMOUNTS]
        return [
            lines.snapshot_time,
            lines.constant(kind),
            lines.unlabelled("state", _STATE_WIDTH),
            *who,
            *amounts,
        ]
    return lines.row_parts(table, kind, _LABELS)


def _other_namespace(own: int) -> Part:
    """Return the part that shows a row's network namespace, by name or inode number, unless it is nettop's `own`."""

    def other(inode: int | None, name: str | None) -> str:
        return "" if inode in (own, None) else f"  netns {name or inode}"

    def part(view: View, at: Index) -> list[Cell]:
        if {"netns", "namespace"} & view.missing.keys():
            return [f"  netns {NOT_AVAILABLE}"]
        return [format_each(view, ("netns", "namespace"), at, other)]

    return part


def _for_events(amounts: Sequence[Part], *, opened: bool) -> Part:
    """Restrict amounts to events that open a connection, or to all others."""

    def part(view: View, at: Index) -> list[Cell]:
        has_them = np.isin(view.raw("event")[at], _OPENINGS, invert=not opened)
        if not has_them.any():
            return []
        cells = chain.from_iterable(amount(view, at[has_them]) for amount in amounts)
        return [only_where(has_them, cell) for cell in cells]

    return part


OUTPUT = LensOutput(
    line_parts=line_parts,
    log_names={"connections.events": "events", "connections": "metrics"},
    totals=("connected", "accepted", "closed", "failed", "uncounted"),
    reported_gaps=(WITHOUT_ROOT,),
)
