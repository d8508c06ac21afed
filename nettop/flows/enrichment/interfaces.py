# SPDX-License-Identifier: Apache-2.0
"""Names of exporters' interfaces, from CSV files and from options records."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nettop.errors import UsageError
from nettop.flows.columns import ADDRESS, Flows
from nettop.flows.decode.options import InterfaceName
from nettop.flows.enrichment.networks import SortedKeys, address_keys, parsed_address
from nettop.flows.enrichment.tables import CsvTable, read_lookup_file
from nettop.flows.enrichment.texts import Coded
from nettop.snapshots.arrays import Array

InterfaceKey = tuple[bytes, int]
"""Exporter address (16 bytes) and interface index."""

_INDEX_MAX = 0xFFFFFFFF
_SPEED = re.compile(r"([0-9]{1,19}) ?([kMGT]?)(?:bit/s|bps)?")
_SPEED_MAX = (1 << 64) - 1
_FACTORS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


class Interface(NamedTuple):
    """An interface: name and description, unsanitized, and speed in bit/s; empty and 0 mean unknown."""

    name: str
    description: str = ""
    speed_bps: int = 0


class InterfaceNames:
    """Interfaces by exporter and index. Immutable, so threads may share them."""

    def __init__(self, interfaces: Mapping[InterfaceKey, Interface]) -> None:
        self.interfaces = interfaces
        keys = sorted(interfaces)
        exporters = np.frombuffer(b"".join(exporter for exporter, _ in keys), ADDRESS)
        self._keys = SortedKeys((*address_keys(exporters), np.array([index for _, index in keys], np.uint32)))
        # The last entry is for position −1.
        self._names = Coded.of([*(interfaces[key].name for key in keys), ""])

    @classmethod
    def from_csv(cls, path: Path) -> InterfaceNames:
        """Read a CSV file with the columns exporter, if_index and name, and optionally description and speed.

        Raise UsageError.
        """
        table = CsvTable(path, read_lookup_file(path))
        exporter, index, name = (table.column(column) for column in ("exporter", "if_index", "name"))
        if exporter is None or index is None or name is None:
            missing = "the header lacks the column exporter, if_index or name"
            raise table.error(missing, "start the file with exporter,if_index,name,description,speed")
        description, speed = table.column("description"), table.column("speed")
        interfaces: dict[InterfaceKey, Interface] = {}
        for row in table:
            try:
                key = parsed_address(row[exporter]).to_bytes(16, "big"), _parsed_index(row[index])
                interface = Interface(
                    row[name],
                    "" if description is None else row[description],
                    0 if speed is None else _parsed_speed(row[speed]),
                )
            except UsageError as error:
                raise table.error(error.what, error.remedy) from None
            if interfaces.setdefault(key, interface) != interface:
                what = f"interface {key[1]} of {row[exporter]} is listed twice, with different values"
                raise table.error(what, "remove one of the two rows")
        return cls(interfaces)

    def with_reported(self, reported: Mapping[InterfaceKey, InterfaceName]) -> InterfaceNames:
        """Return these names plus the interfaces reported by exporters, which also fill in empty fields."""
        interfaces = {key: Interface(each.name, each.description) for key, each in reported.items()}
        for key, each in self.interfaces.items():
            other = interfaces.get(key, each)
            interfaces[key] = each._replace(
                name=each.name or other.name, description=each.description or other.description
            )
        return InterfaceNames(interfaces)

    def names_of(self, flows: Flows) -> dict[str, Coded]:
        """Return the names of flows' ingress and egress interfaces as columns (n,)."""
        return {
            f"{side}_if_name": self.look_up(flows["exporter"], flows[f"{side}_if"]) for side in ("in", "out")
        }

    def look_up(self, exporters: Array, indices: Array) -> Coded:
        """Return the names of interfaces by exporter, ADDRESS (n,), and index, u4 (n,)."""
        return self._names.take(self._keys.positions((*address_keys(exporters), indices)))


def _parsed_index(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 10 and int(text) <= _INDEX_MAX):
        raise UsageError(f"{text!r} is not an interface index", f"use the SNMP ifIndex, up to {_INDEX_MAX}")
    return int(text)


def _parsed_speed(text: str) -> int:
    if not text:
        return 0
    match = _SPEED.fullmatch(text)
    speed_bps = int(match[1]) * _FACTORS[match[2]] if match else _SPEED_MAX + 1
    if speed_bps > _SPEED_MAX:
        raise UsageError(f"{text!r} is not a speed", "use bits per second, such as 10G, 2500M or 1000000000")
    return speed_bps
