# SPDX-License-Identifier: Apache-2.0
"""Select which flows to store, by a filter in the usual filter language over the columns of flows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nettop.collector.columns import ADDED_COLUMNS, COLUMNS, PROTOCOL_NAMES, Coded
from nettop.collector.enrichment.enrich import FlowSide
from nettop.collector.pipeline import Columns, Wanted
from nettop.query.filter import combined, parse_filter
from nettop.query.query import text_query
from nettop.query.view import View
from nettop.snapshots.arrays import Array, Mask
from nettop.snapshots.schema import Field, Kind, Table
from nettop.snapshots.snapshot import Frame, Rows, Snapshot

_ADDRESSES = ("src", "dst", "exporter", "next_hop")
_NUMBERS = (
    *("src_port", "dst_port", "in_if", "out_if", "src_as", "dst_as", "domain", "etype", "tos", "tcp_flags"),
    *("src_vlan", "dst_vlan", "protocol_version", "forwarding_status"),
)
_AMOUNTS = {"bytes": "bytes", "packets": "packets", "sampling_rate": ""}
_TEXTS = ("src_country", "dst_country", "src_network", "dst_network", "in_if_name", "out_if_name")
_HELP = {column.name: column.help for column in (*COLUMNS, *ADDED_COLUMNS)}
FLOWS = Table(
    name="flows",
    fields=(
        Field("id", Kind.KEY, "ID", "position", "u8"),
        Field("source", Kind.ENDPOINT, "SOURCE", "source address and port", parts=("src", "src_port")),
        Field("destination", Kind.ENDPOINT, "DESTINATION", "destination address and port", parts=("dst", "dst_port")),
        *(Field(name, Kind.ADDRESS, name.upper(), _HELP[name], "(2,)>u8") for name in _ADDRESSES),
        *(Field(name, Kind.LABEL, name.upper(), _HELP[name], "u8") for name in _NUMBERS),
        *(Field(name, Kind.GAUGE, name.upper(), _HELP[name], "u8", unit) for name, unit in _AMOUNTS.items()),
        *(Field(name, Kind.TEXT, name.upper(), _HELP[name], "u4") for name in _TEXTS),
        Field("protocol", Kind.ENUM, "PROTOCOL", "IP protocol", "u1", labels=PROTOCOL_NAMES),
        Field("side", Kind.ENUM, "SIDE", "direction relative to own networks", "u1",
              labels={side: side.name.lower() for side in FlowSide}),
    ),
    key="id",
    screen=("source", "destination", "protocol", "bytes"),
    text=("source", "destination", "protocol", "bytes"),
    sort="id",
    text_sort="id",
)  # fmt: skip
"""Columns available to filters."""


def flow_filter(texts: Sequence[str]) -> Wanted | None:
    """Parse `--filter`; return None without one. Raise UsageError for an invalid filter."""
    shown = combined(FLOWS, [parse_filter(FLOWS, text) for text in texts])
    if shown.is_empty:
        return None

    def wanted(columns: Columns) -> Mask:
        rows, texts = _rows(columns)
        snapshot = Snapshot("collector", 0, 0, {FLOWS.name: Rows(FLOWS, rows, texts, 0)})
        return shown.mask(View(Frame(snapshot), text_query(FLOWS)))

    return wanted


def _rows(columns: Columns) -> tuple[Array, dict[str, tuple[str, ...]]]:
    """Convert flows to rows of FLOWS, and return the words of its texts."""
    received = columns["received"]
    rows = np.zeros(len(received), FLOWS.dtype)
    texts = {}
    for field in FLOWS.stored:
        if field.name == FLOWS.key:
            continue
        values = columns[field.name]
        if isinstance(values, Coded):
            rows[field.name], texts[field.name] = values.codes, values.words
        elif field.kind is Kind.ADDRESS:
            rows[field.name] = values.view(">u8").reshape(-1, 2)
        else:
            rows[field.name] = values
    rows[FLOWS.key] = np.arange(len(rows))
    return rows, texts
