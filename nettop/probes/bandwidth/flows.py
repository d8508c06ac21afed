# SPDX-License-Identifier: Apache-2.0
"""Flows, read from the memory that the programs write and merged across CPUs: one row per flow."""

from __future__ import annotations

from functools import cache

import numpy as np

from nettop.kernel.bpf import maps
from nettop.kernel.bpf.program import Program
from nettop.kernel.bpf.set_table import SetTable, key_hashes, mix
from nettop.probes.bandwidth.programs import EVICTED, FLOW, KEY, SET_ENTRIES, TRAFFIC_COLUMNS, flow_sets
from nettop.snapshots.arrays import Array, Index, take_rows
from nettop.snapshots.bandwidth import ETHERTYPES, PROTOCOL_NOT_IP
from nettop.snapshots.ip_protocols import IP_PROTOCOLS
from nettop.snapshots.row_ids import row_ids

_FLAGS = "FSRPAUEC"
_PORTS = ("tcp", "udp", "sctp")


class FlowTable:
    """The flow table of a loaded program, mapped into memory until `close`."""

    def __init__(self, program: Program, flows_max: int) -> None:
        self._program = program
        sets, parts = flow_sets(flows_max)
        self._table = SetTable(program.maps["flows"], sets * parts * SET_ENTRIES, FLOW, KEY)

    def read(self) -> Array:
        """Return the current flows as FLOW, summed over all CPUs and sorted by `ids_of`."""
        entries, _, starts = self._table.read()
        flows = merge_entries(entries, starts)
        return take_rows(flows, np.argsort(ids_of(flows)))

    def evicted(self) -> Array:
        """Return the number of evicted flows and the sums of their counters, as a zero-dimensional EVICTED."""
        return maps.sum_per_cpu(self._program.maps["evicted"], 0, EVICTED)

    def close(self) -> None:
        """Unmap the table."""
        self._table.close()


def merge_entries(entries: Array, starts: Index) -> Array:
    """Sum the entries of each flow into one row; `starts` are the positions at which a flow's entries begin."""
    flows = take_rows(entries, starts)
    for name in TRAFFIC_COLUMNS:
        flows[name] = np.add.reduceat(entries[name], starts)
    flows["first_seen"] = np.minimum.reduceat(entries["first_seen"], starts)
    flows["last_seen"] = np.maximum.reduceat(entries["last_seen"], starts)
    flows["tcp_flags"] = np.bitwise_or.reduceat(entries["tcp_flags"], starts)
    return flows


def ids_of(flows: Array) -> Array:
    """Return an ID for each flow, derived from its key and the time it was first seen: a flow that returns after
    eviction gets a new ID."""
    return row_ids(mix(key_hashes(flows, KEY), flows["first_seen"]))


@cache
def protocol_name(protocol: int, ethertype: int) -> str:
    """Return the name of a flow's IP protocol, or of its network protocol if it is not IP; the number if unnamed."""
    if protocol == PROTOCOL_NOT_IP:
        return ETHERTYPES.get(ethertype, f"{ethertype:#06x}" if ethertype else "?")
    return IP_PROTOCOLS.get(protocol, str(protocol))


def has_ports(flows: Array) -> Array:
    """Return a mask of the flows whose ports are known."""
    numbers = [number for number, name in IP_PROTOCOLS.items() if name in _PORTS]
    are_known: Array = np.isin(flows["protocol"], numbers) & (flows["has_unknown_ports"] == 0)
    return are_known


@cache
def flags_text(flags: int) -> str:
    """Return TCP flags as letters."""
    return "".join(letter for bit, letter in enumerate(_FLAGS) if flags >> bit & 1)
