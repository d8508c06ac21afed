# SPDX-License-Identifier: Apache-2.0
"""Convert records of one template to columns: locate each field and interpret its bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from nettop.collector.columns import ADDRESS, TIME_MAX_MS, TIME_MIN_MS, default_values
from nettop.collector.decode.datagrams import ipv4, ipv6, numbers, uptime_at_ms
from nettop.collector.decode.elements import ELEMENTS_OF, IANA, SYSTEM_INIT, UPTIMES, Element, Form
from nettop.collector.decode.packets import type_and_code
from nettop.snapshots.arrays import Array, Index, Mask, as_list

ABSENT = -1
"""Length of a field that a record lacks."""
NTP_EPOCH_S = 2_208_988_800
"""Seconds from 1900 to 1970."""
_NO_TIME = np.uint64(TIME_MAX_MS + 1)
_ZERO_IPV4 = 0xFFFF_0000_0000
COUNTERS = ("bytes", "packets")


@dataclass(frozen=True, eq=False)
class FieldPlaces:
    """Offset and length of a field in each record (n,); the length is ABSENT if the record lacks it."""

    starts: Index
    lengths: Index


@dataclass(frozen=True, eq=False)
class Records:
    """Records of one template: export time, exporter start time, and the places of their fields.

    Times are in ms since 1970, shape (n,); `boot_ms` is negative if unknown. Of repeated elements the first counts.
    With `has_both_directions`, OUT_BYTES and OUT_PKTS count the reverse direction.
    """

    buffer: Array
    export_ms: Array
    boot_ms: Array
    fields: dict[Element, FieldPlaces]
    has_both_directions: bool

    def __len__(self) -> int:
        return len(self.export_ms)

    def number(self, element: Element) -> tuple[Array, Mask]:
        """Return an element as a number, 0 for records without it, and which records have it."""
        return self._read(element, Form.NUMBER)

    def column(self, name: str, enterprise: int = IANA) -> tuple[Array, Mask]:
        """Return a column's values, and which records have an element for it."""
        values, known = default_values(name, len(self)), np.zeros(len(self), bool)
        for given in ELEMENTS_OF[name]:
            if (enterprise, given.number) in self.fields:
                value, has = self._read((enterprise, given.number), given.form)
                # Counters of different kinds are no substitute for each other. In other columns a 0 says nothing.
                is_open = ~known if name in COUNTERS else ~known | is_zero(values)
                np.copyto(values, value.astype(values.dtype), where=has & is_open)
                known |= has
        return values, known

    def _read(self, element: Element, form: Form) -> tuple[Array, Mask]:
        """Return an element of all records, 0 if missing, and which records have a valid one."""
        places = self.fields.get(element)
        empty = np.zeros(len(self), ADDRESS if form is Form.ADDRESS else np.uint64)
        known = np.zeros(len(self), bool)
        if places is None:
            return empty, known
        for length in as_list(np.unique(places.lengths)):
            if _is_valid_length(form, length):
                at = np.flatnonzero(places.lengths == length)
                value, has = self._value(places.starts[at], length, form, at)
                empty[at] = value
                known[at] = has
        return empty, known

    def _value(self, starts: Index, length: int, form: Form, at: Index) -> tuple[Array, Mask]:
        everywhere = np.ones(len(starts), bool)
        if form is Form.ADDRESS:
            return (ipv4 if length == 4 else ipv6)(self.buffer, starts), everywhere
        number = numbers(self.buffer, starts, length)
        if form in _NUMBERS:
            return _NUMBERS[form](number), everywhere
        time_ms = self._time_ms(np.minimum(number, _NO_TIME) if form is not Form.NTP else number, form, at)
        return time_ms, (time_ms >= TIME_MIN_MS) & (time_ms <= TIME_MAX_MS)

    def _time_ms(self, number: Array, form: Form, at: Index) -> Array:
        """Convert times to ms since 1970; an unknown time becomes 0 or out of range."""
        if form is Form.NTP:
            fraction_ms = (number & np.uint64(0xFFFFFFFF)) * np.uint64(1000) >> np.uint64(32)
            seconds = (number >> np.uint64(32)).astype(np.int64) - NTP_EPOCH_S
            return seconds * 1000 + fraction_ms.astype(np.int64)
        given = number.astype(np.int64)
        if form is Form.UPTIME_MS:
            boot_ms, export_ms = self.boot_ms[at], self.export_ms[at]
            is_said = (boot_ms >= 0) & self._has_uptime[at]
            return np.where(is_said, uptime_at_ms(given, boot_ms, export_ms), 0)
        if form is Form.BEFORE_EXPORT_US:
            given = self.export_ms[at] - given // 1000
        return given * 1000 if form is Form.SECONDS else given

    @cached_property
    def _has_uptime(self) -> Mask:
        """Records with an uptime. Some exporters send both fields, but empty."""
        first, last = (self.number(element)[0] for element in UPTIMES)
        return np.asarray((first > 0) | (last > 0))


def is_zero(values: Array) -> Mask:
    """Return which values are 0, or an all-zero address of either family."""
    if values.dtype.kind != "V":
        return np.asarray(values == 0)
    upper, lower = values.view(">u8").reshape(-1, 2).T
    return np.asarray((upper == 0) & ((lower == 0) | (lower == _ZERO_IPV4)))


def _is_valid_length(form: Form, length: int) -> bool:
    if form is Form.ADDRESS:
        return length in (4, 16)
    if form is Form.NTP:
        return length == 8
    return 1 <= length <= 8


_NUMBERS: dict[Form, Callable[[Array], Array]] = {
    Form.NUMBER: lambda number: number,
    Form.MPLS: lambda number: number >> np.uint64(4),
    Form.ICMP_TYPE: lambda number: type_and_code(number)[0],
    Form.ICMP_CODE: lambda number: type_and_code(number)[1],
}


def started_ms_of(records: Records) -> tuple[Array, Mask]:
    """Return the exporters' start times according to the records, and which are plausible."""
    started_ms, known = records.number(SYSTEM_INIT)
    return started_ms, known & (started_ms >= TIME_MIN_MS) & (started_ms <= TIME_MAX_MS)
