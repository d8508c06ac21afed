# SPDX-License-Identifier: Apache-2.0
"""The interfaces of all namespaces, by their own counters, as rows of the bandwidth lens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from nettop.kernel.net.links import Link
from nettop.probes.bandwidth.history import OWN_COUNTERS
from nettop.probes.bandwidth.interfaces import state_of
from nettop.snapshots.bandwidth import COUNTERS_MODE, INTERFACES, VIRTUAL
from nettop.snapshots.row_ids import row_id
from nettop.snapshots.snapshot import Rows, TextTable, unknown_value

Links = Mapping[int, tuple[Sequence[Link], Mapping[int, int]]]
"""The interfaces of each namespace, and the known speeds (bytes/s) by index."""


def interface_rows(by_namespace: Links, taken_ns: int, boot_ns: int) -> Rows:
    """Return a row for each interface except loopback, without names of namespaces."""
    found = [
        (netns, link, speeds.get(link.index))
        for netns, (links, speeds) in by_namespace.items()
        for link in links
        if not link.is_loopback
    ]
    array = np.zeros(len(found), INTERFACES.dtype)
    for name in array.dtype.names or ():
        array[name] = unknown_value(array.dtype[name])
    array["backing"], array["mode"] = VIRTUAL, COUNTERS_MODE
    texts = TextTable()
    for row, (netns, link, speed) in zip(array, found, strict=True):
        row["id"] = row_id(netns, link.index)
        row["interface"] = texts.code(link.name)
        row["kind"] = texts.code(link.kind or ("ether" if link.has_bus_device() else "?"))
        row["netns"], row["state"], row["link_ups"] = netns, state_of(link), link.carrier_ups
        for name, parts in OWN_COUNTERS.items():
            row[name] = sum(link.statistics.get(part, 0) for part in parts)
        if speed is not None:
            row["speed"], row["capacity"] = speed, speed * boot_ns // 1_000_000_000
    by_id = array[np.argsort(array["id"])]
    return Rows(INTERFACES, by_id, {"interface": texts.values, "kind": texts.values}, taken_ns)
