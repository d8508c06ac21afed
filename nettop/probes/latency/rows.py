# SPDX-License-Identifier: Apache-2.0
"""Build the rows of the latency lens from the counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from nettop.kernel.bpf.set_table import SetTable, mix
from nettop.probes.latency.programs import CLASSES, TERMS
from nettop.snapshots.arrays import Array, take_rows
from nettop.snapshots.connections import FAMILIES as SOCKET_FAMILIES
from nettop.snapshots.connections import PROTOCOLS as SOCKET_PROTOCOLS
from nettop.snapshots.connections import STATES
from nettop.snapshots.latency import (
    BUCKET_TABLE,
    BUCKETS,
    FAMILIES,
    PAIR_TABLE,
    PROTOCOL_TABLE,
    PROTOCOLS,
    RTT,
    STAGE_TABLE,
    STAGES,
    WIRE_APP,
    WIRE_IP,
    WIRE_SOCKET,
)
from nettop.snapshots.row_ids import row_ids
from nettop.snapshots.snapshot import Rows, known, unknown_value


def _number(labels: Mapping[int, str], label: str) -> int:
    return next(number for number, each in labels.items() if each == label)


_TCP = _number(SOCKET_PROTOCOLS, "tcp")
_ESTABLISHED = _number(STATES, "ESTABLISHED")
_V6 = _number(SOCKET_FAMILIES, "IPv6")
_TCP_CLASS = _number(PROTOCOLS, "tcp") * len(FAMILIES)
UNKNOWN_TERMS = dict.fromkeys((WIRE_IP, WIRE_SOCKET, WIRE_APP), ("dropped", "waiting")) | {
    RTT: ("dropped", "unmatched", "waiting")
}
"""Unknown terms by stage. Stages from the wire read a packet's timestamp at their end, so they do not see packets that
never get there."""
_CLASS_BITS, _BUCKET_BITS = 8, 10
"""Bits of a row's ID for its class and its bucket, below its stage."""


@dataclass(frozen=True, eq=False, slots=True)
class Counts:
    """The counts, as COUNTS by stage and class, and the packets now in each stage. RTT is in neither: `rtts` has its
    histograms by class. `measured` are the stages that have a mechanism."""

    counts: Array
    waiting: Array
    rtts: Array
    measured: frozenset[int]
    taken_ns: int


def rtt_histograms(sockets: Rows | None = None) -> Array:
    """Return histograms of the round-trip times of established connections, shape (classes, buckets)."""
    histograms = np.zeros((CLASSES, BUCKETS.count), np.uint64)
    if sockets is not None:
        rows = sockets.array
        has_rtt = (rows["protocol"] == _TCP) & (rows["state"] == _ESTABLISHED) & known(rows["rtt_us"])
        is_v6 = rows["family"][has_rtt] == _V6
        places = BUCKETS.places(rows["rtt_us"][has_rtt] * 1000.0)
        np.add.at(histograms, (_TCP_CLASS + is_v6, places), 1)
    return histograms


def _class_rows(counted: Counts) -> Array:
    """Return rows of the protocol table, shape (stages, classes), without their labels."""
    rows = np.zeros((len(STAGES), CLASSES), PROTOCOL_TABLE.dtype)
    for name in (*TERMS, "latency"):
        rows[name][:RTT] = counted.counts[name]
    rows["waiting"][:RTT] = counted.waiting
    rows["latency"][RTT] = counted.rtts
    rows["seen"][RTT] = rows["matched"][RTT] = counted.rtts.sum(axis=1)
    return rows


def _mark_unknown(rows: Array, measured: frozenset[int]) -> None:
    """Mark the columns that a row's stage does not measure as unknown."""
    for stage in STAGES:
        of_stage = rows["stage"] == stage
        names = UNKNOWN_TERMS.get(stage, ()) if stage in measured else (*TERMS, "waiting", "latency")
        for name in names:
            rows[name][of_stage] = unknown_value(rows.dtype[name])


def stage_rows(counted: Counts) -> Rows:
    """Return a row for each stage, measured or not."""
    rows = np.zeros(len(STAGES), STAGE_TABLE.dtype)
    rows["id"] = rows["stage"] = list(STAGES)
    classes = _class_rows(counted)
    for name in (*TERMS, "waiting", "latency"):
        rows[name] = classes[name].sum(axis=1, dtype=np.uint64)
    _mark_unknown(rows, counted.measured)
    return Rows(STAGE_TABLE, rows, {}, counted.taken_ns)


def protocol_rows(counted: Counts) -> Rows:
    """Return a row for each protocol and family that a measured stage has seen."""
    rows = _class_rows(counted)
    rows["stage"] = np.arange(len(STAGES))[:, None]
    rows["protocol"], rows["family"] = np.divmod(np.arange(CLASSES), len(FAMILIES))
    # Above the IDs of stage rows, so that a key identifies its table.
    rows["id"] = rows["stage"].astype(np.uint64) + np.uint64(1) << np.uint64(_CLASS_BITS)
    rows["id"] |= np.arange(CLASSES, dtype=np.uint64)
    rows = take_rows(rows.reshape(-1), np.flatnonzero(rows["seen"]))
    rows = take_rows(rows, np.flatnonzero(np.isin(rows["stage"], list(counted.measured))))
    _mark_unknown(rows, counted.measured)
    return Rows(PROTOCOL_TABLE, rows, {}, counted.taken_ns)


def stage_of(key: int) -> int | None:
    """Return the stage of a stage or protocol row; None for other keys."""
    stage = key if key in STAGES else (key >> _CLASS_BITS) - 1
    return stage if stage in STAGES else None


def bucket_rows(protocols: Rows) -> Rows:
    """Return a row for each nonempty bucket of the protocol rows."""
    by_class = protocols.array
    of_row, bucket = np.nonzero(by_class["latency"])
    rows = np.zeros(len(bucket), BUCKET_TABLE.dtype)
    for name in ("stage", "protocol", "family"):
        rows[name] = by_class[name][of_row]
    edges = np.array([*BUCKETS.edges, unknown_value(rows.dtype["below"])], np.uint64)
    rows["id"] = by_class["id"][of_row] << np.uint64(_BUCKET_BITS) | bucket.astype(np.uint64)
    rows["at_least"], rows["below"] = edges[bucket], edges[bucket + 1]
    rows["packets"] = by_class["latency"][of_row, bucket]
    return Rows(BUCKET_TABLE, rows, {}, protocols.taken_ns)


def pair_rows(pairs: SetTable, taken_ns: int) -> Rows:
    """Return a row for each pair of hosts, stage and protocol, summed over all CPUs."""
    entries, hashes, starts = pairs.read()
    rows = np.zeros(len(starts), PAIR_TABLE.dtype)
    rows["id"] = row_ids(mix(hashes[starts], np.minimum.reduceat(entries["first_seen"], starts)))
    for name in ("source", "destination"):
        rows[name] = np.ascontiguousarray(entries[name][starts]).view(rows.dtype[name].base)
    classes = entries["stage_class"][starts] & ((1 << _CLASS_BITS) - 1)
    rows["stage"] = entries["stage_class"][starts] >> _CLASS_BITS
    rows["protocol"] = classes // len(FAMILIES)
    rows["packets"] = np.add.reduceat(entries["packets"], starts)
    rows["latency"] = np.add.reduceat(entries["latency"], starts, axis=0, dtype=np.uint64)
    return Rows(PAIR_TABLE, take_rows(rows, np.argsort(rows["id"])), {}, taken_ns)
