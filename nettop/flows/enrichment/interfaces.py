# SPDX-License-Identifier: Apache-2.0
"""Names of exporters' interfaces: from a table of CSV, and as options records give them."""

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
from nettop.snapshots.snapshot import Array

InterfaceKey = tuple[bytes, int]
"""The address of an exporter, 16 bytes, and the index that it gives an interface."""

_INDEX_MAX = 0xFFFFFFFF
_SPEED = re.compile(r"([0-9]{1,19}) ?([kMGT]?)(?:bit/s|bps)?")
_SPEED_MAX = (1 << 64) - 1
_FACTORS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


class Interface(NamedTuple):
    """What is known of an interface: texts, not safe to show, and its speed in bit/s; empty and 0 are unknown."""

    name: str
    description: str = ""
    speed_bps: int = 0


class Interfaces(NamedTuple):
    """What is known of the interfaces of rows (n,); speeds are u8."""

    names: Coded
    descriptions: Coded
    speeds_bps: Array


class InterfaceNames:
    """Interfaces by exporter and index. They do not change: threads may share them."""

    def __init__(self, interfaces: Mapping[InterfaceKey, Interface]) -> None:
        self.interfaces = interfaces
        keys = sorted(interfaces)
        exporters = np.frombuffer(b"".join(exporter for exporter, _ in keys), ADDRESS)
        self._keys = SortedKeys((*address_keys(exporters), np.array([index for _, index in keys], np.uint32)))
        # The last one is for the position −1.
        ordered = [*(interfaces[key] for key in keys), Interface("")]
        self._names = Coded.of(each.name for each in ordered)
        self._descriptions = Coded.of(each.description for each in ordered)
        self._speeds_bps = np.array([each.speed_bps for each in ordered], np.uint64)

    @classmethod
    def from_csv(cls, path: Path) -> InterfaceNames:
        """Interfaces of a table with the columns exporter, if_index, name, and if wanted description and speed.

        Raises UsageError.
        """
        table = CsvTable(path, read_lookup_file(path))
        exporter, index, name = (table.column(column) for column in ("exporter", "if_index", "name"))
        if exporter is None or index is None or name is None:
            missing = "the header does not name all of the columns exporter, if_index and name"
            raise table.error(missing, "begin with the line exporter,if_index,name,description,speed")
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
                what = f"interface {key[1]} of {row[exporter]} is in the table before, with other values"
                raise table.error(what, "remove one of the two rows")
        return cls(interfaces)

    def with_reported(self, reported: Mapping[InterfaceKey, InterfaceName]) -> InterfaceNames:
        """These interfaces, and what exporters say of others; they also say what is empty here."""
        interfaces = {key: Interface(each.name, each.description) for key, each in reported.items()}
        for key, each in self.interfaces.items():
            other = interfaces.get(key, each)
            interfaces[key] = each._replace(
                name=each.name or other.name, description=each.description or other.description
            )
        return InterfaceNames(interfaces)

    def added(self, flows: Flows) -> dict[str, Coded]:
        """The names of the interfaces that flows came in by and went out by, as columns (n,)."""
        return {
            f"{side}_if_name": self.look_up(flows["exporter"], flows[f"{side}_if"]).names
            for side in ("in", "out")
        }

    def look_up(self, exporters: Array, indices: Array) -> Interfaces:
        """What is known of interfaces by their exporters, an ADDRESS (n,), and their indices, u4 (n,)."""
        at = self._keys.positions((*address_keys(exporters), indices))
        return Interfaces(self._names.taken(at), self._descriptions.taken(at), self._speeds_bps[at])


def _parsed_index(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 10 and int(text) <= _INDEX_MAX):
        raise UsageError(
            f"{text!r} is not the index of an interface", f"write a number up to {_INDEX_MAX}, as SNMP has it"
        )
    return int(text)


def _parsed_speed(text: str) -> int:
    if not text:
        return 0
    match = _SPEED.fullmatch(text)
    speed_bps = int(match[1]) * _FACTORS[match[2]] if match else _SPEED_MAX + 1
    if speed_bps > _SPEED_MAX:
        raise UsageError(f"{text!r} is not a speed", "write bits per second, as 10G, 2500M or 1000000000")
    return speed_bps
