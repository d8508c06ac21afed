# SPDX-License-Identifier: Apache-2.0
"""What options records say of their exporter: at which rate it samples."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from nettop.flows.columns import Flows
from nettop.flows.decode.elements import IANA, Element
from nettop.flows.decode.records import Records
from nettop.flows.decode.templates import SCOPE
from nettop.snapshots.arrays import Index
from nettop.snapshots.snapshot import Array

SAMPLERS_MAX = 4096
"""Samplers and interfaces of one domain whose rate is remembered."""
_INTERVALS: tuple[Element, ...] = ((IANA, 34), (IANA, 50))
"""samplingInterval and samplerRandomInterval: one packet in so many."""
_PACKET_INTERVAL, _PACKET_SPACE = (IANA, 305), (IANA, 306)
"""So many packets in a row are sampled, then so many are not (RFC 5477)."""
_SIZE, _POPULATION = (IANA, 309), (IANA, 310)
"""So many packets of so many are sampled."""
_SAMPLERS: tuple[Element, ...] = ((IANA, 48), (IANA, 302))
"""samplerId and selectorId."""
_INTERFACES: tuple[Element, ...] = ((SCOPE, 2), (IANA, 10))
"""The interface that a record is of: a scope of NetFlow v9, and ingressInterface of IPFIX."""


@dataclass(eq=False)
class Sampling:
    """Sampling rates of a domain: of samplers and interfaces by their number, and of the whole domain."""

    of_samplers: dict[int, int] = field(default_factory=dict)
    of_interfaces: dict[int, int] = field(default_factory=dict)
    of_all: int = 0

    def rates(self, records: Records, at: Index, flows: Flows) -> Array:
        """The rate of each flow, 0 where none is known: its own, else that of its sampler, interface or domain."""
        rates = flows.get("sampling_rate", np.zeros(len(at), np.uint32)).copy()
        computed, known = _rates(records)
        rates = np.where(rates > 0, rates, np.where(known, computed, 0)[at])
        for element in _SAMPLERS:
            samplers, known = records.number(element)
            rates = np.where((rates > 0) | ~known[at], rates, _mapped(samplers[at], self.of_samplers))
        if "in_if" in flows:
            rates = np.where(rates > 0, rates, _mapped(flows["in_if"], self.of_interfaces))
        return np.where(rates > 0, rates, self._of_all()).astype(np.uint32)

    def _of_all(self) -> int:
        """The rate of what names no sampler: where several differ, none is known."""
        distinct = {*self.of_samplers.values(), *self.of_interfaces.values()}
        return self.of_all or (distinct.pop() if len(distinct) == 1 else 0)


def read_options(records: Records, sampling: Sampling) -> None:
    """Remember the rates that options records give."""
    rates, known = _rates(records)
    for elements, remembered in ((_SAMPLERS, sampling.of_samplers), (_INTERFACES, sampling.of_interfaces)):
        for element in elements:
            numbers, has = records.number(element)
            at = np.flatnonzero(known & has)
            remembered |= dict(zip(numbers[at].tolist(), rates[at].tolist(), strict=True))
            while len(remembered) > SAMPLERS_MAX:
                del remembered[next(iter(remembered))]
            known = known & ~has
    if known.any():
        sampling.of_all = int(rates[known][-1])


def _rates(records: Records) -> tuple[Array, Array]:
    """The rate that each record gives, and which give one."""
    rates, known = np.zeros(len(records), np.uint64), np.zeros(len(records), bool)
    for element in _INTERVALS:
        rate, has = records.number(element)
        rates, known = np.where(known, rates, rate), known | (has & (rate > 0))
    interval, has_interval = records.number(_PACKET_INTERVAL)
    space, has_space = records.number(_PACKET_SPACE)
    size, has_size = records.number(_SIZE)
    population, has_population = records.number(_POPULATION)
    for whole, part, has in (
        (interval + space, interval, has_interval & has_space),
        (population, size, has_size & has_population),
    ):
        is_given = has & (part > 0) & ~known
        rates = np.where(is_given, whole // np.maximum(part, 1).astype(np.uint64), rates)
        known = known | is_given
    return np.where(known, rates, 0).astype(np.uint64), known


def _mapped(numbers: Array, rates: dict[int, int]) -> Array:
    distinct, places = np.unique(numbers, return_inverse=True)
    return np.array([rates.get(number, 0) for number in distinct.tolist()], np.uint64)[places]
