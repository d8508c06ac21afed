# SPDX-License-Identifier: Apache-2.0
"""The kernel's drop counters of namespaces, devices and CPUs, as rows of the table `counters`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path

import numpy as np

from nettop.kernel.bpf.set_table import key_hashes
from nettop.kernel.net.links import Link
from nettop.kernel.net.net_counters import read_backlog_drops
from nettop.snapshots.arrays import Array, as_list, copy_columns, take_rows
from nettop.snapshots.drops import COUNTERS, INCLUDED_IN, OF_CPUS, OF_DEVICES, OF_NAMESPACES
from nettop.snapshots.row_ids import row_ids
from nettop.snapshots.snapshot import Rows, TextTable

UNKNOWN = np.iinfo(np.uint32).max
_MEASURED = [("name", "u4"), ("netns", "u4"), ("ifindex", "u4"), ("cpu", "u4")]
MEASURE = np.dtype([*_MEASURED, ("packets", "u8")])
"""A value of a kernel counter. `name` is an index into NAMES; a number that does not apply is UNKNOWN."""

_COUNTERS_SHOWN = OF_NAMESPACES | OF_DEVICES | OF_CPUS
NAMES = list(_COUNTERS_SHOWN)
NUMBERS = {name: number for number, name in enumerate(NAMES)}
_INCLUDED_IN = {NUMBERS[part]: NUMBERS[whole] for part, whole in INCLUDED_IN.items()}

Devices = Mapping[tuple[int, int], str]
"""Names of devices, by namespace and index."""


def read_measures(namespaces: Iterable[tuple[int, Mapping[str, int], Sequence[Link]]], proc: Path) -> Array:
    """Return the drop counters of namespaces and of their devices, and those of all CPUs, as MEASURE."""
    of_cpus = (
        (NUMBERS["softnet_dropped"], UNKNOWN, UNKNOWN, cpu, dropped)
        for cpu, dropped in read_backlog_drops(proc).items()
    )
    return np.fromiter(chain(*(_measures_of(*item) for item in namespaces), of_cpus), MEASURE)


def counter_rows(measures: Array, devices: Devices, taken_ns: int) -> Rows:
    """Return counters as rows of the table, without names of namespaces."""
    rows = np.zeros(len(measures), COUNTERS.dtype)
    rows["id"] = row_ids(key_hashes(measures, np.dtype(_MEASURED)))
    rows["name"] = rows["counter"] = measures["name"]
    copy_columns(rows, measures, ("netns", "cpu", "packets"))
    rows["included_in"] = _included_in(measures, rows["id"])
    rows["interface"], interfaces = device_names(measures["netns"], measures["ifindex"], devices)
    texts = {"name": NAMES, "counter": list(_COUNTERS_SHOWN.values()), "interface": interfaces}
    return Rows(COUNTERS, take_rows(rows, np.argsort(rows["id"])), texts, taken_ns)


def device_names(netns: Array, ifindex: Array, devices: Devices) -> tuple[Array, Sequence[str]]:
    """Return the names of devices as codes, and the names; `if12` for device 12 if its name is unknown."""

    def name(device: int) -> str | None:
        index = device & UNKNOWN
        return None if index in (0, UNKNOWN) else devices.get((device >> 32, index), f"if{index}")

    return encode_texts(netns.astype("u8") << np.uint64(32) | ifindex, name)


def encode_texts(values: Array, text_of: Callable[[int], str | None]) -> tuple[Array, Sequence[str]]:
    """Map numbers to the codes of their texts; return codes and texts. Each distinct number is looked up once."""
    table = TextTable()
    return table.codes(values, text_of), table.frozen()


def _included_in(measures: Array, ids: Array) -> Array:
    """Return for each row the ID of the row of the same namespace that includes its packets (u8), or unknown."""
    included = np.full(len(measures), np.iinfo(np.uint64).max, np.uint64)
    related = np.flatnonzero(np.isin(measures["name"], [*_INCLUDED_IN, *_INCLUDED_IN.values()]))
    keys = as_list(measures[["name", "netns"]][related])
    places = dict(zip(keys, as_list(related), strict=True))
    for (name, netns), at in places.items():
        including = places.get((_INCLUDED_IN.get(name), netns))
        if including is not None:
            included[at] = ids[including]
    return included


def _measures_of(
    netns: int, counters: Mapping[str, int], links: Sequence[Link]
) -> Iterator[tuple[int, int, int, int, int]]:
    """Yield the drop counters of a namespace and its devices, as the fields of MEASURE."""
    for name in OF_NAMESPACES:
        if name in counters:
            yield NUMBERS[name], netns, UNKNOWN, UNKNOWN, counters[name]
    for link in links:
        for name in OF_DEVICES:
            if name in link.statistics:
                yield NUMBERS[name], netns, link.index, UNKNOWN, link.statistics[name]
