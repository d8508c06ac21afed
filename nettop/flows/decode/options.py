# SPDX-License-Identifier: Apache-2.0
"""Decode options records: exporters behind relays, sampling rates and interface names."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np

from nettop.flows.columns import Flows, default_values
from nettop.flows.decode.elements import DOMAIN, IANA, Element
from nettop.flows.decode.records import Records, is_zero
from nettop.flows.decode.templates import SCOPE
from nettop.snapshots.arrays import Array, Index, Mask, as_list

SAMPLERS_MAX = 4096
"""Maximum samplers, or interfaces, per domain whose rate is kept."""
RATE_MAX = 0xFFFFFFFF
"""Maximum rate that fits the flow column; higher ones are ignored."""
NAMES_MAX = 65_536
"""Maximum interfaces of all exporters whose names are kept."""
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
_SAMPLERS: tuple[Element, ...] = ((IANA, 48), (IANA, 302))
"""samplerId and selectorId; 0 means none."""
_INTERFACES: tuple[Element, ...] = ((SCOPE, 2), (IANA, 10), (IANA, 14))
"""The interface a record applies to: a NetFlow v9 scope, ingressInterface or egressInterface; 0 means none."""
_LINE_CARD, _CACHE, _TEMPLATE = 3, 4, 5
_PARTS: tuple[tuple[Element, int], ...] = (
    ((SCOPE, _LINE_CARD), _LINE_CARD), ((IANA, 141), _LINE_CARD), ((SCOPE, _CACHE), _CACHE),
    ((SCOPE, _TEMPLATE), _TEMPLATE), ((IANA, 145), _TEMPLATE),
)  # fmt: skip
"""The part of an exporter a record applies to, with its kind: NetFlow v9 scopes, lineCardId and templateId."""
EGRESS = 1
"""Direction of flows observed on egress."""
_NAME, _DESCRIPTION = (IANA, 82), (IANA, 83)
"""interfaceName and interfaceDescription."""
_INDEX_MAX = 0xFFFFFFFF
_DOMAIN_MAX = 0xFFFFFFFF
_PROCESS_COUNTERS: tuple[Element, ...] = tuple(
    (IANA, number) for number in (40, 41, 42, 144, 164, 165, 166, 167, 168)
)
"""Exported, ignored and unsent counts of a process, and its ID: such records name an exporter only to say which one
they describe.
"""


@dataclass(eq=False)
class Sampling:
    """Sampling rates of a domain and its numbered parts; `of_all` applies to everything else, 0 if unknown."""

    of_samplers: dict[int, int] = field(default_factory=dict)
    of_interfaces: dict[int, int] = field(default_factory=dict)
    of_all: int = 0
    of_parts: dict[int, int] = field(default_factory=dict)
    """Rates of line cards, caches and templates, keyed by `_part`."""

    def __len__(self) -> int:
        """Return the number of entries with a rate."""
        return len(self.of_samplers) + len(self.of_interfaces) + len(self.of_parts)

    def __bool__(self) -> bool:
        """Return whether any rate is known."""
        return bool(len(self) or self.of_all)

    def copy(self) -> Sampling:
        """Return a copy."""
        return Sampling(dict(self.of_samplers), dict(self.of_interfaces), self.of_all, dict(self.of_parts))

    def replaced_by(self, later: Sampling) -> Sampling:
        """Return the rates that differ in `later`."""
        samplers, interfaces, parts = (
            dict(table(self).items() - table(later).items())
            for table in (_of_samplers, _of_interfaces, _of_parts)
        )
        return Sampling(samplers, interfaces, self.of_all if self.of_all != later.of_all else 0, parts)

    @property
    def of_rest(self) -> int:
        """Rate of flows that name no part: the general one, else the one shared by all parts."""
        distinct = set(self.of_parts.values())
        return self.of_all or (distinct.pop() if len(distinct) == 1 else 0)


_Table = Callable[[Sampling], dict[int, int]]
_of_samplers: _Table = attrgetter("of_samplers")
_of_interfaces: _Table = attrgetter("of_interfaces")
_of_parts: _Table = attrgetter("of_parts")


@dataclass(frozen=True, eq=False)
class Announced:
    """Rates announced in a domain and in others of the same exporter; `earlier` rates take precedence."""

    domain: Sampling
    others: Sequence[Sampling] = ()
    earlier: Sampling = field(default_factory=Sampling)

    def __bool__(self) -> bool:
        """Return whether any rate is known."""
        return any(self.all)

    @property
    def all(self) -> Iterator[Sampling]:
        """The domain's own rates, then those of the others."""
        return chain((self.earlier, self.domain), self.others)

    def rate(self, table: _Table, number: int) -> int:
        """Return the rate of a number in these tables, 0 if unknown."""
        return self.first(lambda sampling: table(sampling).get(number, 0))

    def first(self, rate: Callable[[Sampling], int]) -> int:
        """Return the domain's own rate, else the one all others agree on; 0 if unknown."""
        if own := rate(self.earlier) or rate(self.domain):
            return own
        distinct = {rate(each) for each in self.others} - {0}
        return distinct.pop() if len(distinct) == 1 else 0


class InterfaceName(NamedTuple):
    """Interface name and description as sent by the exporter, unsanitized; empty if not sent."""

    name: str
    description: str


InterfaceNames = dict[tuple[bytes, int], InterfaceName]
"""Names by exporter address and interface index; an index is the same in all domains of a device (RFC 2863)."""


class Learned(NamedTuple):
    """Whether options changed the remembered state, and how many entries were evicted."""

    changed: bool
    dropped: int


def sampling_rates(
    records: Records, at: Index, flows: Flows, announced: Sequence[Announced], of: Index, *, template_id: int
) -> Array:
    """Return the sampling rate of each flow, 0 if unknown: its own, else that of the sampler or interface it names,
    else that of its template, else the general rate. Where rates belong to samplers, a flow that names none was not
    sampled.

    `at` are the records of the flows; `of` is the index in `announced` of each record's domain.
    """
    rates = _rates(records)[0][at]
    if not any(announced):
        return rates.astype(np.uint32)
    of = of[at]
    names_none = np.zeros(len(at), bool)
    has_samplers, has_interfaces, has_parts = (
        np.array([any(table(sampling) for sampling in each.all) for each in announced])[of]
        for table in (_of_samplers, _of_interfaces, _of_parts)
    )
    for element in _SAMPLERS:
        samplers, known = records.number(element)
        names_none |= has_samplers & known[at] & (samplers[at] == 0)
        _fill(rates, has_samplers, samplers[at], of, [partial(each.rate, _of_samplers) for each in announced])
    if has_interfaces.any():
        interfaces = observed_at(flows, len(at))
        _fill(
            rates, has_interfaces, interfaces, of, [partial(each.rate, _of_interfaces) for each in announced]
        )
    if has_parts.any():
        parts = np.full(len(at), _part(_TEMPLATE, np.uint64(template_id)))
        _fill(rates, has_parts, parts, of, [partial(each.rate, _of_parts) for each in announced])
    of_rest = np.array([each.first(attrgetter("of_rest")) for each in announced], np.uint64)
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


def read_sampling(records: Records, which: Mask, sampling: Sampling) -> Learned:
    """Remember the rates in some options records. A rate of 0 revokes an earlier one."""
    rates, is_said = _rates(records)
    is_said &= which
    is_general = is_said.copy()
    changed, dropped = False, 0
    for elements, remembered in ((_SAMPLERS, sampling.of_samplers), (_INTERFACES, sampling.of_interfaces)):
        left = is_said.copy()
        for element in elements:
            numbers, _ = records.number(element)
            names_one = left & (numbers > 0)
            changed |= _remember(remembered, numbers[names_one], rates[names_one])
            dropped += _cut(remembered, SAMPLERS_MAX)
            left, is_general = left & ~names_one, is_general & ~names_one
    for element, kind in _PARTS:
        numbers, names_one = records.number(element)
        names_one &= is_general
        changed |= _remember(sampling.of_parts, _part(kind, numbers[names_one]), rates[names_one])
        dropped += _cut(sampling.of_parts, SAMPLERS_MAX)
        is_general &= ~names_one
    if is_general.any():
        # Zeros may be padding.
        of_all = next(filter(None, reversed(rates[is_general].tolist())), 0)
        changed |= of_all != sampling.of_all
        sampling.of_all = of_all
    return Learned(changed, dropped)


def _part(kind: int, numbers: Any) -> Any:
    """Return the keys of parts of a kind: the kind in the bits above the 32-bit number."""
    return numbers & np.uint64(_INDEX_MAX) | np.uint64(kind << 32)


def _remember(remembered: dict[int, int], numbers: Array, rates: Array) -> bool:
    """Remember the rates of numbers; forget those whose rate is 0. Return whether anything changed."""
    changed = False
    for number, rate in zip(numbers.tolist(), rates.tolist(), strict=True):
        changed |= remembered.get(number, 0) != rate
        if rate:
            remembered[number] = rate
        else:
            remembered.pop(number, None)
    return changed


def read_names(records: Records, exporter: bytes, names: InterfaceNames) -> Learned:
    """Remember interface names from options records, for the exporter a record names, else this one. Evict the least
    recently named interfaces first.
    """
    if _NAME not in records.fields and _DESCRIPTION not in records.fields:
        return Learned(changed=False, dropped=0)
    changed = False
    given_by, _ = records.column("exporter")
    given_by[is_zero(given_by)] = np.void(exporter)
    left = np.ones(len(records), bool)
    for element in _INTERFACES:
        indices, has = records.number(element)
        at = np.flatnonzero(left & has & (indices <= _INDEX_MAX))
        left &= ~has
        keys = zip(given_by[at].tolist(), indices[at].tolist(), strict=True)
        given = zip(keys, _texts(records, _NAME, at), _texts(records, _DESCRIPTION, at), strict=True)
        for key, name, description in given:
            before = names.pop(key, InterfaceName("", ""))
            now = InterfaceName(name or before.name, description or before.description)
            if any(now):
                names[key] = now
            changed |= now != before
    return Learned(changed, _cut(names, NAMES_MAX))


def _texts(records: Records, element: Element, at: Index) -> list[str]:
    """Return an element as text, up to the first zero byte; empty for records without it."""
    places = records.fields.get(element)
    if places is None:
        return [""] * len(at)
    spans = zip(
        as_list(places.starts[at]), as_list(np.clip(places.lengths[at], 0, NAME_BYTES_MAX)), strict=True
    )
    contents = (records.buffer[start : start + length].tobytes() for start, length in spans)
    return [content.partition(b"\0")[0].decode("utf-8", "replace") for content in contents]


def _cut(remembered: dict[Any, Any], most: int) -> int:
    """Drop the oldest entries beyond `most`; return how many."""
    surplus = max(0, len(remembered) - most)
    for _ in range(surplus):
        del remembered[next(iter(remembered))]
    return surplus


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


def _fill(
    rates: Array, has_table: Mask, numbers: Array, of: Index, rate_of: Sequence[Callable[[int], int]]
) -> None:
    """Fill in rates that are 0, where the domain has a table, by looking up each row's number."""
    rows = np.flatnonzero((rates == 0) & has_table & (numbers > 0))
    if not len(rows):
        return
    distinct, places = np.unique(numbers[rows], return_inverse=True)
    # Distinct pairs of domain and number are few: look up each once.
    pairs, pair_of = np.unique(of[rows] * len(distinct) + places, return_inverse=True)
    which, at = np.divmod(pairs, len(distinct))
    looked_up = [
        rate_of[domain](number) for domain, number in zip(which.tolist(), distinct[at].tolist(), strict=True)
    ]
    rates[rows] = np.array(looked_up, np.uint64)[pair_of]
