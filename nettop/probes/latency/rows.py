# SPDX-License-Identifier: Apache-2.0
"""The programs' counts by stage and class, the packets now in each stage, and the rows of the latency lens."""

from __future__ import annotations

import mmap
from collections.abc import Mapping

import numpy as np

from nettop.kernel.bpf import maps
from nettop.kernel.bpf.program import Program
from nettop.kernel.bpf.set_table import SetTable, mix
from nettop.probes.latency.programs import CLASSES, COUNTED_STAGES, COUNTS, FOLLOWED_SET, SET_ENTRIES, TERMS
from nettop.process.clocks import monotonic_ns
from nettop.snapshots import latency as spec
from nettop.snapshots.arrays import Array, copy_columns, take_rows
from nettop.snapshots.connections import FAMILIES as SOCKET_FAMILIES
from nettop.snapshots.connections import PROTOCOLS as SOCKET_PROTOCOLS
from nettop.snapshots.connections import STATES
from nettop.snapshots.row_ids import row_ids
from nettop.snapshots.snapshot import Rows, known, mark_unknown, unknown_value


def _number(labels: Mapping[int, str], label: str) -> int:
    return next(number for number, known_label in labels.items() if known_label == label)


_TCP = _number(SOCKET_PROTOCOLS, "tcp")
_ESTABLISHED = _number(STATES, "ESTABLISHED")
_V6 = _number(SOCKET_FAMILIES, "IPv6")
_TCP_CLASS = _number(spec.PROTOCOLS, "tcp") * len(spec.FAMILIES)
UNKNOWN_TERMS = dict.fromkeys((spec.WIRE_IP, spec.WIRE_SOCKET, spec.WIRE_APP), ("dropped", "waiting")) | {
    spec.RTT: ("dropped", "unmatched", "waiting")
}
"""Unknown terms by stage. Stages from the wire read a packet's timestamp at their end, so they do not see packets that
never get there."""
_CLASS_BITS, _BUCKET_BITS = 8, 10
"""Bits of a row's ID for its class and its bucket, below its stage."""
_STALE_NS = 20 * 10**9
"""A packet that spent longer in a stage than a histogram covers will not be seen again."""
_TOP_BYTE = np.uint64(56)
_SHAPE = (COUNTED_STAGES, CLASSES)


def no_class_rows() -> Array:
    """Return empty rows of the protocol table, without their labels, by stage and class."""
    return np.zeros((len(spec.STAGES), CLASSES), spec.PROTOCOL_TABLE.dtype)


class CountsTable:
    """The counts of a loaded program, readable until `close`."""

    def __init__(self, program: Program, followed_max: int) -> None:
        self._program = program
        self._sets = followed_max // SET_ENTRIES
        self._memory = mmap.mmap(
            program.maps["followed"], self._sets * FOLLOWED_SET.itemsize, mmap.MAP_SHARED
        )
        self._stale = np.zeros(_SHAPE, np.uint64)

    def read(self) -> Array:
        """Return the counts and the number of packets now in each stage, as class rows. RTT is not counted here."""
        rows = no_class_rows()
        counted = rows[:COUNTED_STAGES]
        counted["waiting"] = self._read_waiting()
        places = np.arange(COUNTED_STAGES * CLASSES, dtype=np.uint32)
        counts_by_cpu = np.dtype((COUNTS, (maps.possible_cpus(),)))
        by_cpu, _ = maps.read_each(self._program.maps["counted"], places, counts_by_cpu)
        copy_columns(counted, maps.sum_last_axis(by_cpu).reshape(_SHAPE), COUNTS.names or ())
        counted["unmatched"] += self._stale
        return rows

    def _read_waiting(self) -> Array:
        """Return the total weight of followed packets by stage and class. Stop following packets that will not be seen
        again, and count them as unmatched."""
        sets = np.frombuffer(self._memory, FOLLOWED_SET, self._sets)
        keys = sets["keys"].copy()
        at = np.nonzero(keys >> _TOP_BYTE)  # a claimed entry has no stage
        keys, packets = keys[at], sets["packets"][at]
        now, since = monotonic_ns(), packets["since"].astype(np.int64)
        is_stale = since < now - _STALE_NS
        waiting = np.zeros(_SHAPE, np.uint64)
        # While an entry is written, its class may still be the previous packet's.
        places = (
            (keys >> _TOP_BYTE).astype(np.intp) - 1,
            np.minimum(packets["class"], CLASSES - 1).astype(np.intp),
        )
        np.add.at(waiting, tuple(of[~is_stale] for of in places), packets["weight"][~is_stale])
        np.add.at(self._stale, tuple(of[is_stale] for of in places), packets["weight"][is_stale])
        sets["keys"][tuple(of[is_stale] for of in at)] = 0
        return waiting

    def close(self) -> None:
        """Unmap the table."""
        self._memory.close()


def rtt_histograms(sockets: Rows) -> Array:
    """Return histograms of the round-trip times of established connections, shape (classes, buckets)."""
    rows = sockets.array
    has_rtt = (rows["protocol"] == _TCP) & (rows["state"] == _ESTABLISHED) & known(rows["rtt_us"])
    places = spec.BUCKETS.places(rows["rtt_us"][has_rtt] * 1000.0)
    histograms = np.zeros((CLASSES, spec.BUCKETS.count), np.uint64)
    np.add.at(histograms, (_TCP_CLASS + (rows["family"][has_rtt] == _V6), places), 1)
    return histograms


def add_rtts(rows: Array, rtts: Array) -> None:
    """Add the histograms of round-trip times to class rows."""
    rows["latency"][spec.RTT] = rtts
    rows["seen"][spec.RTT] = rows["matched"][spec.RTT] = rtts.sum(axis=1)


def _mark_unknown(rows: Array, measured: frozenset[int]) -> None:
    """Mark the columns that a row's stage does not measure as unknown."""
    for stage in spec.STAGES:
        of_stage = rows["stage"] == stage
        names = UNKNOWN_TERMS.get(stage, ()) if stage in measured else (*TERMS, "waiting", "latency")
        mark_unknown(rows, names, of_stage)


def stage_rows(classes: Array, measured: frozenset[int], taken_ns: int) -> Rows:
    """Return a row for each stage, the sum of its class rows. `measured` are the stages that have a mechanism."""
    rows = np.zeros(len(spec.STAGES), spec.STAGE_TABLE.dtype)
    rows["id"] = rows["stage"] = list(spec.STAGES)
    for name in (*TERMS, "waiting", "latency"):
        rows[name] = classes[name].sum(axis=1, dtype=np.uint64)
    _mark_unknown(rows, measured)
    return Rows(spec.STAGE_TABLE, rows, {}, taken_ns)


def protocol_rows(classes: Array, measured: frozenset[int], taken_ns: int) -> Rows:
    """Return a row for each protocol and family that a measured stage has seen."""
    rows = classes.copy()
    rows["stage"] = np.arange(len(spec.STAGES))[:, None]
    rows["protocol"], rows["family"] = np.divmod(np.arange(CLASSES), len(spec.FAMILIES))
    # Above the IDs of stage rows, so that a key identifies its table.
    rows["id"] = rows["stage"].astype(np.uint64) + np.uint64(1) << np.uint64(_CLASS_BITS)
    rows["id"] |= np.arange(CLASSES, dtype=np.uint64)
    rows = take_rows(rows.reshape(-1), np.flatnonzero(rows["seen"]))
    rows = take_rows(rows, np.flatnonzero(np.isin(rows["stage"], list(measured))))
    _mark_unknown(rows, measured)
    return Rows(spec.PROTOCOL_TABLE, rows, {}, taken_ns)


def stage_of(key: int) -> int | None:
    """Return the stage of a stage or protocol row; None for other keys."""
    stage = key if key in spec.STAGES else (key >> _CLASS_BITS) - 1
    return stage if stage in spec.STAGES else None


def bucket_rows(protocols: Rows) -> Rows:
    """Return a row for each nonempty bucket of the protocol rows."""
    by_class = protocols.array
    of_row, bucket = np.nonzero(by_class["latency"])
    rows = np.zeros(len(bucket), spec.BUCKET_TABLE.dtype)
    copy_columns(rows, by_class, ("stage", "protocol", "family"), of=of_row)
    edges = np.array([*spec.BUCKETS.edges, unknown_value(rows.dtype["below"])], np.uint64)
    rows["id"] = by_class["id"][of_row] << np.uint64(_BUCKET_BITS) | bucket.astype(np.uint64)
    rows["at_least"], rows["below"] = edges[bucket], edges[bucket + 1]
    rows["packets"] = by_class["latency"][of_row, bucket]
    return Rows(spec.BUCKET_TABLE, rows, {}, protocols.taken_ns)


def pair_rows(pairs: SetTable, taken_ns: int) -> Rows:
    """Return a row for each pair of hosts, stage and protocol, summed over all CPUs."""
    entries, hashes, starts = pairs.read()
    rows = np.zeros(len(starts), spec.PAIR_TABLE.dtype)
    rows["id"] = row_ids(mix(hashes[starts], np.minimum.reduceat(entries["first_seen"], starts)))
    for name in ("source", "destination"):
        rows[name] = np.ascontiguousarray(entries[name][starts]).view(rows.dtype[name].base)
    classes = entries["stage_class"][starts] & ((1 << _CLASS_BITS) - 1)
    rows["stage"] = entries["stage_class"][starts] >> _CLASS_BITS
    rows["protocol"] = classes // len(spec.FAMILIES)
    rows["packets"] = np.add.reduceat(entries["packets"], starts)
    rows["latency"] = np.add.reduceat(entries["latency"], starts, axis=0, dtype=np.uint64)
    return Rows(spec.PAIR_TABLE, take_rows(rows, np.argsort(rows["id"])), {}, taken_ns)
