# SPDX-License-Identifier: Apache-2.0
"""Sampling rates supplied by the user, which override announced ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from nettop.collector.columns import Flows
from nettop.collector.decode.options import RATE_MAX, observed_at
from nettop.collector.decode.sflow import PROTOCOL_VERSION as SFLOW
from nettop.collector.enrichment.networks import parsed_address
from nettop.errors import UsageError
from nettop.snapshots.arrays import Array, as_list

_INDEX_MAX = 0xFFFF_FFFF
_WRITE = "write it like 1000, 192.0.2.1=1000 or 192.0.2.1/5=1000"


@dataclass(frozen=True)
class UserRates:
    """Rates by exporter address, by interface index, and a default for flows without a known rate."""

    of_exporters: Mapping[bytes, int] = field(default_factory=dict)
    of_interfaces: Mapping[bytes, Mapping[int, int]] = field(default_factory=dict)
    default: int = 0

    def apply(self, flows: Flows) -> None:
        """Override the rates of flows. An sFlow sample keeps its own rate."""
        rates = flows["sampling_rate"]
        takes_any = (flows["protocol_version"] != SFLOW) | (rates == 0)
        if self.of_exporters or self.of_interfaces:
            interfaces = observed_at(flows, len(rates))
            for exporter, rows in _runs(flows["exporter"]):
                if rate := self.of_exporters.get(exporter):
                    rates[rows][takes_any[rows]] = rate
                for interface, rate in self.of_interfaces.get(exporter, {}).items():
                    rates[rows][takes_any[rows] & (interfaces[rows] == interface)] = rate
        if self.default:
            rates[takes_any & (rates == 0)] = self.default


def parse_rates(texts: Iterable[str]) -> UserRates:
    """Parse rates such as 1000, EXPORTER=1000 and EXPORTER/INTERFACE=1000. Raise UsageError on bad ones."""
    of_exporters: dict[bytes, int] = {}
    of_interfaces: dict[bytes, dict[int, int]] = {}
    default = 0
    for text in texts:
        of, equals, number = text.rpartition("=")
        rate = _number(text, "rate", number, RATE_MAX)
        if of == "default" or not equals:
            default = rate
            continue
        address, slash, interface = of.partition("/")
        try:
            exporter = parsed_address(address).to_bytes(16)
        except UsageError as error:
            raise UsageError(f"--sampling-rate {text!r}: {error.what}", _WRITE) from error
        if slash:
            index = _number(text, "interface index", interface, _INDEX_MAX)
            of_interfaces.setdefault(exporter, {})[index] = rate
        else:
            of_exporters[exporter] = rate
    return UserRates(of_exporters, of_interfaces, default)


def _number(text: str, what: str, digits: str, most: int) -> int:
    if not (digits.isascii() and digits.isdecimal() and len(digits) <= 10 and 1 <= int(digits) <= most):
        raise UsageError(f"--sampling-rate {text!r}: {digits!r} is not a valid {what} (1 to {most})", _WRITE)
    return int(digits)


def _runs(exporters: Array) -> Iterator[tuple[bytes, slice]]:
    """Yield runs of consecutive rows of one exporter. A datagram's rows are consecutive."""
    upper, lower = exporters.view("u8").reshape(-1, 2).T
    begins = np.flatnonzero(np.r_[True, (upper[1:] != upper[:-1]) | (lower[1:] != lower[:-1])][: len(upper)])
    ends = [*as_list(begins[1:]), len(exporters)]
    for begin, end in zip(as_list(begins), ends, strict=False):
        yield exporters[begin].tobytes(), slice(begin, end)
