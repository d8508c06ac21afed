# SPDX-License-Identifier: Apache-2.0
"""Decode options records: exporters behind relays, sampling rates and interface names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from enum import IntEnum

import numpy as np

from nettop.collector.columns import Flows, default_values
from nettop.collector.decode.elements import DOMAIN, IANA, Element
from nettop.collector.decode.records import Records, is_zero
from nettop.collector.decode.templates import SCOPE
from nettop.snapshots.arrays import Array, Index, Mask, as_list

RATE_MAX = 0xFFFFFFFF
"""Maximum rate that fits the flow column; higher ones are ignored."""
NAME_BYTES_MAX = 128
"""Maximum length of a name; longer ones are cut. Routers limit configurable ones to 64 bytes (ifAlias, RFC 2863)."""
_INTERVALS: tuple[Element, ...] = ((IANA, 34), (IANA, 50))
"""samplingInterval and samplerRandomInterval: one packet in N."""
_PACKET_INTERVAL, _PACKET_SPACE = (IANA, 305), (IANA, 306)
"""Number of consecutive packets sampled, then number skipped (RFC 5477)."""
_TIME_INTERVAL, _TIME_SPACE = (IANA, 307), (IANA, 308)
"""Microseconds during which all packets are sampled, then microseconds during which none are."""
_SIZE, _POPULATION = (IANA, 309), (IANA, 310)
"""N packets out of a population are sampled."""
_PROBABILITY = (IANA, 311)
"""samplingProbability: the probability of sampling a packet, as a floating-point number."""
_RATE_ELEMENTS = (*_INTERVALS, _PACKET_INTERVAL, _TIME_INTERVAL, _SIZE, _PROBABILITY)


class ExporterPart(IntEnum):
    """Kinds of parts of an exporter that a sampling rate may apply to."""

    ALL = 0
    """Everything without a rate of its own; its number is 0."""
    SAMPLER = 1
    INTERFACE = 2
    LINE_CARD = 3
    CACHE = 4
    TEMPLATE = 5


_PARTS: dict[ExporterPart, tuple[Element, ...]] = {
    ExporterPart.SAMPLER: ((IANA, 48), (IANA, 302)),
    ExporterPart.INTERFACE: ((SCOPE, 2), (IANA, 10), (IANA, 14)),
    ExporterPart.LINE_CARD: ((SCOPE, 3), (IANA, 141)),
    ExporterPart.CACHE: ((SCOPE, 4),),
    ExporterPart.TEMPLATE: ((SCOPE, 5), (IANA, 145)),
}
"""Elements that name the part a record applies to: NetFlow v9 scopes, samplerId and selectorId, ingressInterface and
egressInterface, lineCardId, templateId. Sampler and interface 0 mean none.
"""
_OF_ALL = (ExporterPart.ALL, 0)
Rates = dict[tuple[int, int], int]
"""Sampling rates of a domain, by kind and number of the part. Rate 0 means that it is contradictory."""
EGRESS = 1
"""Direction of flows observed on egress."""
_NAME = (IANA, 82)
"""interfaceName."""
_INDEX_MAX = 0xFFFFFFFF
_DOMAIN_MAX = 0xFFFFFFFF
_PROCESS_COUNTERS: tuple[Element, ...] = tuple(
    (IANA, number) for number in (40, 41, 42, 144, 164, 165, 166, 167, 168)
)
"""Exported, ignored and unsent counts of a process, and its ID: such records name an exporter only to say which one
they describe.
"""


def rate_of_rest(rates: Rates) -> int:
    """Return the rate of flows that name no part: the general one, else the one shared by all line cards, caches and
    templates; 0 if unknown.
    """
    distinct = {rate for (part, _), rate in rates.items() if part > ExporterPart.INTERFACE}
    return rates.get(_OF_ALL, distinct.pop() if len(distinct) == 1 else 0)


def agreed_rates(of_domains: Iterable[Rates]) -> Rates:
    """Return the rates that hold in a domain without any, given those of others: 0 for parts whose rates differ."""
    distinct: dict[tuple[int, int], set[int]] = {}
    for rates in of_domains:
        for part, rate in {**rates, _OF_ALL: rate_of_rest(rates)}.items():
            distinct.setdefault(part, set()).add(rate)
    agreed = {part: rates - {0} for part, rates in distinct.items()}
    return {part: rates.pop() if len(rates) == 1 else 0 for part, rates in agreed.items()}


InterfaceNames = dict[tuple[bytes, int], str]
"""Names as sent, by exporter address and interface index; an index is the same in all domains of a device (RFC 2863).
"""


def sampling_rates(
    records: Records, at: Index, flows: Flows, announced: Sequence[Rates], of: Index, *, template_id: int
) -> Array:
    """Return the sampling rate of each flow, 0 if unknown: its own, else that of the sampler or interface it names,
    else that of its template, else the general rate. Where rates belong to samplers, a flow that names none was not
    sampled.

    `at` are the records of the flows; `of` is the index in `announced` of each record's domain.
    """
    rates, of = _rates(records)[0][at], of[at]
    parts = {part for each in announced for part, _ in each}
    names_none = np.zeros(len(at), bool)
    if ExporterPart.SAMPLER in parts:
        has_samplers = np.array(
            [any(part == ExporterPart.SAMPLER for part, _ in each) for each in announced]
        )[of]
        for element in _PARTS[ExporterPart.SAMPLER]:
            samplers, known = records.number(element)
            names_none |= has_samplers & known[at] & (samplers[at] == 0)
            _fill(rates, ExporterPart.SAMPLER, samplers[at], of, announced)
    if ExporterPart.INTERFACE in parts:
        _fill(rates, ExporterPart.INTERFACE, observed_at(flows, len(at)), of, announced)
    if ExporterPart.TEMPLATE in parts:
        _fill(rates, ExporterPart.TEMPLATE, np.full(len(at), template_id), of, announced)
    of_rest = np.array([rate_of_rest(each) for each in announced], np.uint64)
    rates = np.where(rates > 0, rates, of_rest[of])
    return np.where((rates == 0) & names_none, 1, rates).astype(np.uint32)


def observed_at(flows: Flows, count: int) -> Array:
    """Return the interface where each of `count` flows was observed, by its direction; 0 if unknown."""
    came_in, went_out, direction = (
        flows.get(name, default_values(name, count)) for name in ("in_if", "out_if", "direction")
    )
    return np.where(direction == EGRESS, went_out, came_in)


def named_exporters(records: Records) -> Iterator[tuple[int | None, bytes]]:
    """Yield the exporters that a relay names in options records, each with its domain number if given.

    Skip records in which a process counts its own exports (RFC 7011, section 4.3).
    """
    if any(element in records.fields for element in _PROCESS_COUNTERS):
        return
    exporters, known = records.column("exporter")
    domains, has_domain = records.number(DOMAIN)
    for at in as_list(np.flatnonzero(known & ~is_zero(exporters))):
        yield int(domains[at]) & _DOMAIN_MAX if has_domain[at] else None, exporters[at].tobytes()


def sampled_domains(records: Records, own: int) -> Iterator[tuple[int, Mask]]:
    """Yield each domain that options records give rates for, with those records. The default is the record's `own`
    domain.

    Domain 0 counts as unnamed.
    """
    if not any(element in records.fields for element in _RATE_ELEMENTS):
        return
    numbers, _ = records.number(DOMAIN)
    named = np.where(numbers > 0, numbers & np.uint64(_DOMAIN_MAX), np.uint64(own))
    for number in np.unique(named).tolist():
        yield number, named == number


def read_sampling(records: Records, which: Mask, remembered: Rates) -> bool:
    """Remember the rates in some options records. A rate of 0 revokes an earlier one. Return whether any
    changed.
    """
    rates, is_said = _rates(records)
    is_said &= which
    is_general = is_said.copy()
    changed = False
    for part, elements in _PARTS.items():
        # A record of a sampler or interface says nothing about the line card, cache or template it names besides.
        left, least = (is_said.copy(), 1) if part <= ExporterPart.INTERFACE else (is_general, 0)
        for element in elements:
            numbers, has = records.number(element)
            names_one = left & has & (numbers >= least)
            named = zip(numbers[names_one].tolist(), rates[names_one].tolist(), strict=True)
            changed |= _remember(remembered, [((part, number), rate) for number, rate in named])
            left, is_general = left & ~names_one, is_general & ~names_one
    if is_general.any():
        # Zeros may be padding.
        of_all = next(filter(None, reversed(rates[is_general].tolist())), 0)
        changed |= _remember(remembered, [(_OF_ALL, of_all)])
    return changed


def _remember(remembered: Rates, rates: Iterable[tuple[tuple[int, int], int]]) -> bool:
    """Remember the rates of parts; forget those whose rate is 0. Return whether anything changed."""
    changed = False
    for part, rate in rates:
        changed |= remembered.get(part, 0) != rate
        if rate:
            remembered[part] = rate
        else:
            remembered.pop(part, None)
    return changed


def read_names(records: Records, exporter: bytes, names: InterfaceNames) -> bool:
    """Remember interface names from options records, for the exporter a record names, else this one; those named last
    come last. Return whether any changed.
    """
    if _NAME not in records.fields:
        return False
    changed = False
    given_by, _ = records.column("exporter")
    given_by[is_zero(given_by)] = np.void(exporter)
    left = np.ones(len(records), bool)
    for element in _PARTS[ExporterPart.INTERFACE]:
        indices, has = records.number(element)
        at = np.flatnonzero(left & has & (indices <= _INDEX_MAX))
        left &= ~has
        keys = zip(given_by[at].tolist(), indices[at].tolist(), strict=True)
        for key, name in zip(keys, _names(records, at), strict=True):
            if name:
                changed |= names.pop(key, "") != name
                names[key] = name
    return changed


def _names(records: Records, at: Index) -> Iterator[str]:
    """Yield the interface names in records, up to the first zero byte; empty for records without one."""
    places = records.fields[_NAME]
    lengths = np.clip(places.lengths[at], 0, NAME_BYTES_MAX)
    for start, length in zip(as_list(places.starts[at]), as_list(lengths), strict=True):
        content = records.buffer[start : start + length].tobytes()
        yield content.partition(b"\0")[0].decode("utf-8", "replace")


def _rates(records: Records) -> tuple[Array, Mask]:
    """Return each record's rate, 0 if it has none, and which records have a rate field."""
    rates: Array = np.zeros(len(records), np.uint64)
    known: Mask = np.zeros(len(records), bool)
    if not any(element in records.fields for element in _RATE_ELEMENTS):
        return rates, known
    is_said = known
    for element in _INTERVALS:
        rate, has = records.number(element)
        rates, known, is_said = np.where(known, rates, rate), known | (has & (rate > 0)), is_said | has
    interval, has_interval = records.number(_PACKET_INTERVAL)
    space, has_space = records.number(_PACKET_SPACE)
    time, has_time = records.number(_TIME_INTERVAL)
    time_space, has_time_space = records.number(_TIME_SPACE)
    size, has_size = records.number(_SIZE)
    population, has_population = records.number(_POPULATION)
    of_probability, has_probability = _probability_rates(records)
    for whole, part, has in (
        (interval + space, interval, has_interval & has_space),
        (time + time_space, time, has_time & has_time_space),
        (population, size, has_size & has_population),
        (of_probability, np.ones_like(rates), has_probability),
    ):
        is_given = has & (part > 0) & ~known
        # Round to the nearest integer.
        rates = np.where(is_given, (whole + part // 2) // np.maximum(part, 1).astype(np.uint64), rates)
        known = known | is_given
    rates = np.where(known & (rates <= RATE_MAX), rates, 0).astype(np.uint64)
    return rates, is_said | known


def _probability_rates(records: Records) -> tuple[Array, Mask]:
    """Return the rates implied by sampling probabilities, and which records have one."""
    bits, has = records.number(_PROBABILITY)
    probability: Array = np.zeros(len(records))
    if _PROBABILITY in records.fields:
        # The field may use a reduced length (RFC 7011, section 6.2).
        lengths = records.fields[_PROBABILITY].lengths
        single = bits.astype(np.uint32).view(np.float32)
        probability = np.select([lengths == 8, lengths == 4], [bits.view(np.float64), single])
    has &= (probability >= 1 / RATE_MAX) & (probability <= 1)
    return np.rint(1 / np.where(has, probability, 1)).astype(np.uint64), has


def _fill(rates: Array, part: ExporterPart, numbers: Array, of: Index, announced: Sequence[Rates]) -> None:
    """Fill in rates that are 0 by looking up each row's number among the parts of its domain."""
    rows = np.flatnonzero((rates == 0) & (numbers > 0))
    if not len(rows):
        return
    distinct, places = np.unique(numbers[rows], return_inverse=True)
    # Distinct pairs of domain and number are few: look up each once.
    pairs, pair_of = np.unique(of[rows] * len(distinct) + places, return_inverse=True)
    which, at = (as_list(each) for each in np.divmod(pairs, len(distinct)))
    looked_up = [
        announced[domain].get((part, int(distinct[number])), 0)
        for domain, number in zip(which, at, strict=True)
    ]
    rates[rows] = np.array(looked_up, np.uint64)[pair_of]
