# SPDX-License-Identifier: Apache-2.0
"""Names of exporters' interfaces, from CSV files and from options records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np

from nettop.collector.columns import ADDRESS, Coded, Flows
from nettop.collector.decode.domains import ReportedKey
from nettop.collector.enrichment.networks import SortedKeys, address_keys, parsed_address
from nettop.collector.enrichment.tables import CsvTable, read_lookup_file
from nettop.errors import UsageError
from nettop.snapshots.arrays import Array

InterfaceKey = tuple[bytes, int]
"""Exporter address (16 bytes) and interface index."""

_INDEX_MAX = 0xFFFFFFFF


class InterfaceNames:
    """Unsanitized names of interfaces by exporter and index, empty if unknown. Immutable, so threads may share them."""

    def __init__(
        self, names: Mapping[InterfaceKey, str], differing: Mapping[ReportedKey, str] = MappingProxyType({})
    ) -> None:
        """Take the names by exporter and index, and those that differ between its ports and domains."""
        self.names = names
        keys, of_domains = sorted(names), sorted(differing)
        self._keys = SortedKeys(_columns(keys))
        self._differing = SortedKeys(_columns(of_domains))
        # The last entry is for position −1.
        self._coded = Coded.of([*(names[key] for key in keys), *(differing[key] for key in of_domains), ""])

    @classmethod
    def from_csv(cls, path: Path) -> InterfaceNames:
        """Read a CSV file with the columns exporter, if_index and name. Raise UsageError."""
        table = CsvTable(path, read_lookup_file(path))
        exporter, index, name = (table.column(column) for column in ("exporter", "if_index", "name"))
        if exporter is None or index is None or name is None:
            missing = "the header lacks the column exporter, if_index or name"
            raise table.error(missing, "start the file with exporter,if_index,name")
        names: dict[InterfaceKey, str] = {}
        for row in table:
            try:
                key = parsed_address(row[exporter]).to_bytes(16, "big"), _parsed_index(row[index])
            except UsageError as error:
                raise table.error(error.what, error.remedy) from None
            if names.setdefault(key, row[name]) != row[name]:
                what = f"interface {key[1]} of {row[exporter]} is listed twice, with different names"
                raise table.error(what, "remove one of the two rows")
        return cls(names)

    def with_reported(self, reported: Mapping[ReportedKey, str]) -> InterfaceNames:
        """Return these names, and those that exporters report for other interfaces. Where those of one address differ,
        as of two exporters behind NAT, each holds for the port and domain that reported it.
        """
        own = {key: name for key, name in self.names.items() if name}
        names: dict[InterfaceKey, str] = {}
        ambiguous = set()
        for (exporter, _, _, index), name in reported.items():
            if names.setdefault((exporter, index), name) != name:
                ambiguous.add((exporter, index))
        ambiguous -= own.keys()
        agreed = {key: name for key, name in names.items() if key not in ambiguous}
        differing = {key: name for key, name in reported.items() if (key[0], key[3]) in ambiguous}
        return InterfaceNames({**agreed, **own}, differing)

    def names_of(self, flows: Flows, ports: Array) -> dict[str, Coded]:
        """Return the names of flows' ingress and egress interfaces as columns (n,), given the exporters' ports (n,)."""
        return {
            f"{side}_if_name": self.look_up(flows["exporter"], ports, flows["domain"], flows[f"{side}_if"])
            for side in ("in", "out")
        }

    def look_up(self, exporters: Array, ports: Array, domains: Array, indices: Array) -> Coded:
        """Return the names of interfaces by exporter, ADDRESS (n,), its port and domain, and index, u4 (n,)."""
        halves = address_keys(exporters)
        positions = self._keys.positions((*halves, indices))
        if len(self._differing):
            own = self._differing.positions((*halves, ports, domains, indices))
            positions = np.where(own >= 0, own + len(self._keys), positions)
        return self._coded.take(positions)


def _columns(keys: Sequence[tuple[bytes, *tuple[int, ...]]]) -> tuple[Array, ...]:
    """Return the columns of sorted keys that begin with an exporter."""
    exporters = np.frombuffer(b"".join(key[0] for key in keys), ADDRESS)
    numbers = np.array([key[1:] for key in keys], np.uint32).T if keys else ()
    return *address_keys(exporters), *numbers


def _parsed_index(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 10 and int(text) <= _INDEX_MAX):
        raise UsageError(f"{text!r} is not an interface index", f"use the SNMP ifIndex, up to {_INDEX_MAX}")
    return int(text)
