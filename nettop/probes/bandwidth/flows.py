# SPDX-License-Identifier: Apache-2.0
"""Flows, read from the memory that the programs write: one row for each, whichever CPUs saw its packets."""

from __future__ import annotations

from functools import cache

import numpy as np

from nettop.kernel import maps
from nettop.kernel.program import Program
from nettop.kernel.set_table import SetTable, hashes_of, mixed
from nettop.probes.bandwidth.programs import EVICTED, FLOW, KEY, MOVED, SET_ENTRIES, flow_sets
from nettop.snapshots.arrays import Index, take
from nettop.snapshots.bandwidth import ETHERTYPES, PROTOCOL_NOT_IP
from nettop.snapshots.ip_protocols import IP_PROTOCOLS
from nettop.snapshots.row_ids import row_ids
from nettop.snapshots.snapshot import Array

_FLAGS = "FSRPAUEC"
_PORTS = ("tcp", "udp", "sctp")


class FlowTable:
    """The table of flows of a loaded program, mapped into memory until this is closed."""

    def __init__(self, program: Program, flows_max: int) -> None:
        self._program = program
        sets, parts = flow_sets(flows_max)
        self._table = SetTable(program.maps["flows"], sets * parts * SET_ENTRIES, FLOW, KEY)

    def read(self) -> Array:
        """The flows now, as FLOW, each once with what all CPUs counted, sorted by `ids_of`."""
        entries, _, starts = self._table.read()
        flows = merged(entries, starts)
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
        self._table.close()


def merged(entries: Array, starts: Index) -> Array:
    """One row for each flow, with what all CPUs counted, of entries in which each flow begins at one of `starts`."""
    flows = take(entries, starts)
    for name in MOVED:
        flows[name] = np.add.reduceat(entries[name], starts)
    flows["first_seen"] = np.minimum.reduceat(entries["first_seen"], starts)
    flows["last_seen"] = np.maximum.reduceat(entries["last_seen"], starts)
    flows["tcp_flags"] = np.bitwise_or.reduceat(entries["tcp_flags"], starts)
    return flows


def ids_of(flows: Array) -> Array:
    """A number for each flow, made of its key and of when it was first seen: one that was evicted and comes again is
    another one."""
    return row_ids(mixed(hashes_of(flows, KEY), flows["first_seen"]))


@cache
def protocol_name(protocol: int, ethertype: int) -> str:
    """What a flow carries: the name of its IP protocol, or of its network protocol, else the number."""
    if protocol == PROTOCOL_NOT_IP:
        return ETHERTYPES.get(ethertype, f"{ethertype:#06x}" if ethertype else "?")
    return IP_PROTOCOLS.get(protocol, str(protocol))


def has_ports(flows: Array) -> Array:
    """Tell which flows have ports that are known."""
    numbers = [number for number, name in IP_PROTOCOLS.items() if name in _PORTS]
    are_known: Array = np.isin(flows["protocol"], numbers) & (flows["has_unknown_ports"] == 0)
    return are_known


@cache
def flags_text(flags: int) -> str:
    """The letters of TCP flags."""
    return "".join(letter for bit, letter in enumerate(_FLAGS) if flags >> bit & 1)
