# SPDX-License-Identifier: Apache-2.0
"""Traffic of the host and each interface since serving started: totals, current rates and peaks."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from nettop.query.view import View
from nettop.snapshots.arrays import Array
from nettop.snapshots.bandwidth import COUNTERS_MODE, INTERFACES, PROTOCOL_TABLE, SERVICE_TABLE, UPLINK

HOST = ""
"""Key of the sum over the uplinks, in place of an interface."""

_ALL, _TCP, _HTTP, _HTTPS = range(4)
_PARTS = ("", "tcp_", "http_", "https_")
_BYTES, _PACKETS = range(2)
_LABELS = {"tcp": _TCP, "HTTP": _HTTP, "HTTPS": _HTTPS}

Answer = dict[str, float | int | None]


@dataclass(eq=False)
class InterfaceTotals:
    """Traffic of an interface in both directions: bytes and packets, in total and per part. Shape (4, 2).

    `rates` are per second in the last interval; None before the second reading. `has_parts` is false if only the
    interface's own counters are read.
    """

    totals: Array = field(default_factory=lambda: np.zeros((len(_PARTS), 2)))
    rates: Array | None = None
    peak_bytes_per_s: float = 0.0
    has_parts: bool = True


@dataclass(frozen=True, eq=False)
class Increments:
    """Increments of one reading: bytes and packets of each interface and of the host, shape (4, 2).

    Interfaces in `without_parts` have only a total.
    """

    by_name: dict[str, Array]
    without_parts: set[str]


class Traffic:
    """Sums over readings of the bandwidth lens, for interfaces in nettop's own network namespace."""

    def __init__(self) -> None:
        self._began_s = time.monotonic()
        self._netns = os.stat("/proc/self/ns/net").st_ino
        self._carried: dict[str, InterfaceTotals] = {}

    @property
    def interfaces(self) -> list[str]:
        """Names of the current interfaces."""
        return sorted(name for name in self._carried if name != HOST)

    def increments(self, views: Mapping[str, View]) -> Increments:
        """Return the increments of a reading from the views of the lens's tables, without adding them."""
        interfaces = views[INTERFACES.name]
        is_own = interfaces.raw("netns") == self._netns
        names = _names(interfaces)
        by_name = {names[at]: np.zeros((len(_PARTS), 2)) for at in np.flatnonzero(is_own)}
        _add_rows(by_name, interfaces, dict.fromkeys(np.flatnonzero(is_own), _ALL))
        for table, label in ((PROTOCOL_TABLE, "protocol"), (SERVICE_TABLE, "service")):
            if table.name in views:
                parts = views[table.name]
                labels = parts.values(label, np.arange(parts.size))
                _add_rows(
                    by_name, parts, {at: _LABELS[text] for at, text in enumerate(labels) if text in _LABELS}
                )
        is_uplink = is_own & (interfaces.raw("backing") == UPLINK)
        uplinks = {names[at] for at in np.flatnonzero(is_uplink)}
        by_name[HOST] = sum((by_name[name] for name in uplinks), np.zeros((len(_PARTS), 2)))
        without_parts = {
            names[at] for at in np.flatnonzero(is_own & (interfaces.raw("mode") == COUNTERS_MODE))
        }
        if uplinks & without_parts:
            without_parts.add(HOST)
        return Increments(by_name, without_parts)

    def add(self, moved: Increments, elapsed_s: float) -> None:
        """Add a reading taken `elapsed_s` after the previous one, 0 if it is the first.

        Interfaces missing from it are gone and dropped: with short-lived containers they would accumulate.
        """
        self._carried = {name: each for name, each in self._carried.items() if name in moved.by_name}
        for name, counted in moved.by_name.items():
            carried = self._carried.setdefault(name, InterfaceTotals())
            carried.totals += counted
            carried.has_parts = name not in moved.without_parts
            carried.rates = counted / elapsed_s if elapsed_s > 0 else None
            if carried.rates is not None:
                carried.peak_bytes_per_s = max(carried.peak_bytes_per_s, float(carried.rates[_ALL, _BYTES]))

    # --- answers ------------------------------------------------------------------------------------------------

    def realtime(self, interface: str) -> Answer | None:
        """Return bits and packets per second in the last interval, and totals; None for an unknown interface."""
        carried = self._carried.get(interface)
        if carried is None:
            return None
        answer: Answer = {}
        for at, part in enumerate(_PARTS):
            rates = carried.rates if at == _ALL or carried.has_parts else None
            answer[f"{part}bandwidth_bps"] = None if rates is None else float(rates[at, _BYTES]) * 8
            answer[f"{part}packets_per_sec"] = None if rates is None else float(rates[at, _PACKETS])
        return answer | self._totals(carried)

    def summary(self, interface: str) -> Answer | None:
        """Return averages and shares since serving started; None for an unknown interface."""
        carried = self._carried.get(interface)
        if carried is None:
            return None
        uptime_s = time.monotonic() - self._began_s
        in_all = float(carried.totals[_ALL, _BYTES])
        shares: Answer = {
            f"{_PARTS[part]}percentage": 100 * float(carried.totals[part, _BYTES]) / in_all
            if in_all and carried.has_parts
            else None
            for part in (_TCP, _HTTP, _HTTPS)
        }
        return {
            "uptime_seconds": uptime_s,
            "avg_bandwidth_bps": in_all * 8 / uptime_s,
            "peak_bandwidth_bps": carried.peak_bytes_per_s * 8,
            **self._totals(carried),
            **shares,
        }

    def _totals(self, carried: InterfaceTotals) -> Answer:
        return {
            "total_packets": int(carried.totals[_ALL, _PACKETS]),
            "total_bytes": int(carried.totals[_ALL, _BYTES]),
        }


def _names(view: View) -> list[str]:
    names: list[str] = view.values("interface", np.arange(view.size))
    return names


def _add_rows(moved: dict[str, Array], view: View, part_of: dict[int, int]) -> None:
    """Add rows, given by position, to their parts."""
    names = _names(view)
    for column, names_of_both in (
        (_BYTES, ("bytes_received", "bytes_sent")),
        (_PACKETS, ("packets_received", "packets_sent")),
    ):
        for counted in map(view.column, names_of_both):
            for at, part in part_of.items():
                if names[at] in moved and counted.known[at]:
                    moved[names[at]][part, column] += counted.numbers[at]
