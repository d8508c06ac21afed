# SPDX-License-Identifier: Apache-2.0
"""Names of exporters' interfaces, from CSV files and from options records."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from nettop.errors import UsageError
from nettop.flows.columns import ADDRESS, Flows
from nettop.flows.enrichment.networks import SortedKeys, address_keys, parsed_address
from nettop.flows.enrichment.tables import CsvTable, read_lookup_file
from nettop.flows.enrichment.texts import Coded
from nettop.snapshots.arrays import Array

InterfaceKey = tuple[bytes, int]
"""Exporter address (16 bytes) and interface index."""

_INDEX_MAX = 0xFFFFFFFF


class InterfaceNames:
    """Unsanitized names of interfaces by exporter and index, empty if unknown. Immutable, so threads may share them."""

    def __init__(self, names: Mapping[InterfaceKey, str]) -> None:
        self.names = names
        keys = sorted(names)
        exporters = np.frombuffer(b"".join(exporter for exporter, _ in keys), ADDRESS)
        self._keys = SortedKeys((*address_keys(exporters), np.array([index for _, index in keys], np.uint32)))
        # The last entry is for position −1.
        self._coded = Coded.of([*(names[key] for key in keys), ""])

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

    def with_reported(self, reported: Mapping[InterfaceKey, str]) -> InterfaceNames:
        """Return these names, and those that exporters report for other interfaces."""
        return InterfaceNames({**reported, **{key: name for key, name in self.names.items() if name}})

    def names_of(self, flows: Flows) -> dict[str, Coded]:
        """Return the names of flows' ingress and egress interfaces as columns (n,)."""
        return {
            f"{side}_if_name": self.look_up(flows["exporter"], flows[f"{side}_if"]) for side in ("in", "out")
        }

    def look_up(self, exporters: Array, indices: Array) -> Coded:
        """Return the names of interfaces by exporter, ADDRESS (n,), and index, u4 (n,)."""
        return self._coded.take(self._keys.positions((*address_keys(exporters), indices)))


def _parsed_index(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 10 and int(text) <= _INDEX_MAX):
        raise UsageError(f"{text!r} is not an interface index", f"use the SNMP ifIndex, up to {_INDEX_MAX}")
    return int(text)
