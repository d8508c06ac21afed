# SPDX-License-Identifier: Apache-2.0
"""Flows, read from the memory that the programs write: one row for each, whichever CPUs saw its packets."""

from __future__ import annotations

import mmap
from functools import cache

import numpy as np

from nettop.kernel import maps
from nettop.kernel.program import Program
from nettop.probes.bandwidth.programs import EVICTED, FLOW, KEY, MOVED, SET_ENTRIES, flow_sets
from nettop.snapshots.arrays import Index, take
from nettop.snapshots.bandwidth import ETHERTYPES, IP_PROTOCOLS, PROTOCOL_NOT_IP
from nettop.snapshots.snapshot import Array

_FLAGS = "FSRPAUEC"
_PORTS = ("TCP", "UDP", "SCTP")
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


class FlowTable:
    """The table of flows of a loaded program, mapped into memory until this is closed."""

    def __init__(self, program: Program, flows_max: int) -> None:
        self._program = program
        sets, parts = flow_sets(flows_max)
        self._places = sets * parts * SET_ENTRIES
        self._memory = mmap.mmap(
            program.maps["flows"], self._places * FLOW.itemsize, mmap.MAP_SHARED, mmap.PROT_READ
        )

    def read(self) -> Array:
        """The flows now, as FLOW, each once, sorted by `ids_of`.

        A place that was given to another flow while it was copied is left out: the next reading has it.
        """
        shared = np.frombuffer(self._memory, FLOW, self._places)
        at = np.flatnonzero(shared["last_seen"])
        flows = take(shared, at)
        again = take(shared, at)
        is_same = flows["first_seen"] == again["first_seen"]
        del shared
        flows = _merged(take(flows, np.flatnonzero(is_same)))
        return take(flows, np.argsort(ids_of(flows)))

    def evicted(self) -> Array:
        """What flows had counted that made room for others, and how many they were; an EVICTED without dimensions."""
        by_cpu = maps.read_per_cpu(self._program.maps["evicted"], 0, EVICTED)
        total = np.zeros((), EVICTED)
        for name in EVICTED.names or ():
            total[name] = by_cpu[name].sum(dtype=np.uint64)
        return total

    def close(self) -> None:
        """Unmap the table."""
        self._memory.close()


def ids_of(flows: Array) -> Array:
    """A number for each flow, made of its key and of when it was first seen: one that was evicted and comes again is
    another one."""
    return mixed(_hashes(flows), flows["first_seen"])


def _hashes(flows: Array) -> Array:
    words = np.ascontiguousarray(_keys(flows)).view(np.uint64).reshape(len(flows), KEY.itemsize // 8)
    hashes = np.zeros(len(flows), np.uint64)
    for column in words.T:
        hashes = mixed(hashes, column)
    return hashes


def mixed(hashes: Array, column: Array) -> Array:
    """Numbers made of each number and of a column's value beside it."""
    product = (hashes ^ column) * _MULTIPLIER
    mixed: Array = product ^ product >> np.uint64(32)
    return mixed


def _keys(flows: Array) -> Array:
    return np.ascontiguousarray(flows).view(np.uint8).reshape(len(flows), FLOW.itemsize)[:, : KEY.itemsize]


def _merged(flows: Array) -> Array:
    """One row for each flow, with what all CPUs counted."""
    hashes = _hashes(flows)
    order = np.argsort(hashes, kind="stable")
    flows, hashes = take(flows, order), hashes[order]
    starts: Index = np.flatnonzero(np.diff(hashes, prepend=~hashes[:1]))
    merged = take(flows, starts)
    for name in MOVED:
        merged[name] = np.add.reduceat(flows[name], starts)
    merged["first_seen"] = np.minimum.reduceat(flows["first_seen"], starts)
    merged["last_seen"] = np.maximum.reduceat(flows["last_seen"], starts)
    merged["tcp_flags"] = np.bitwise_or.reduceat(flows["tcp_flags"], starts)
    return merged


@cache
def protocol_name(protocol: int, ethertype: int) -> str:
    """What a flow carries: the name of its IP protocol, or of its network protocol, else the number."""
    if protocol == PROTOCOL_NOT_IP:
        return ETHERTYPES.get(ethertype, f"{ethertype:#06x}" if ethertype else "?")
    return IP_PROTOCOLS.get(protocol, str(protocol))


def has_ports(protocol: Array) -> Array:
    """Which IP protocols have ports here."""
    numbers = [number for number, name in IP_PROTOCOLS.items() if name in _PORTS]
    return np.isin(protocol, numbers)


@cache
def flags_text(flags: int) -> str:
    """The letters of TCP flags."""
    return "".join(letter for bit, letter in enumerate(_FLAGS) if flags >> bit & 1)
