# SPDX-License-Identifier: Apache-2.0
"""What options records say of their exporter: who it is, at which rate it samples, what its interfaces are called."""

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
from nettop.flows.decode.records import Records, says_nothing
from nettop.flows.decode.templates import SCOPE
from nettop.snapshots.arrays import Index, Mask, as_list
from nettop.snapshots.snapshot import Array

SAMPLERS_MAX = 4096
"""Samplers, and interfaces, of one domain whose rate is remembered."""
RATE_MAX = 0xFFFFFFFF
"""What the column of a flow holds: a higher rate is none."""
NAMES_MAX = 65_536
"""Interfaces of all exporters whose names are remembered."""
NAME_BYTES_MAX = 128
"""What is longer is cut; the names that routers let people give have 64 at most (ifAlias, RFC 2863)."""
_INTERVALS: tuple[Element, ...] = ((IANA, 34), (IANA, 50))
"""samplingInterval and samplerRandomInterval: one packet in so many."""
_PACKET_INTERVAL, _PACKET_SPACE = (IANA, 305), (IANA, 306)
"""So many packets in a row are sampled, then so many are not (RFC 5477)."""
_TIME_INTERVAL, _TIME_SPACE = (IANA, 307), (IANA, 308)
"""For so many microseconds all packets are sampled, then for so many none."""
_SIZE, _POPULATION = (IANA, 309), (IANA, 310)
"""So many packets of so many are sampled."""
_PROBABILITY = (IANA, 311)
"""samplingProbability: that a packet is sampled, as a floating-point number."""
_GIVE_A_RATE = (*_INTERVALS, _PACKET_INTERVAL, _TIME_INTERVAL, _SIZE, _PROBABILITY)
_SAMPLERS: tuple[Element, ...] = ((IANA, 48), (IANA, 302))
"""samplerId and selectorId; number 0 names none."""
_INTERFACES: tuple[Element, ...] = ((SCOPE, 2), (IANA, 10), (IANA, 14))
"""The interface that a record is of: a scope of NetFlow v9, ingressInterface and egressInterface; 0 names none."""
_LINE_CARD, _CACHE, _TEMPLATE = 3, 4, 5
_PARTS: tuple[tuple[Element, int], ...] = (
    ((SCOPE, _LINE_CARD), _LINE_CARD), ((IANA, 141), _LINE_CARD), ((SCOPE, _CACHE), _CACHE),
    ((SCOPE, _TEMPLATE), _TEMPLATE), ((IANA, 145), _TEMPLATE),
)  # fmt: skip
"""The part of an exporter that a record is of, by its kind: scopes of NetFlow v9, lineCardId and templateId."""
EGRESS = 1
"""The direction of flows that were observed where they go out."""
_NAME, _DESCRIPTION = (IANA, 82), (IANA, 83)
"""interfaceName and interfaceDescription."""
_INDEX_MAX = 0xFFFFFFFF
_DOMAIN_MAX = 0xFFFFFFFF
_OF_PROCESS: tuple[Element, ...] = tuple(
    (IANA, number) for number in (40, 41, 42, 144, 164, 165, 166, 167, 168)
)
"""What a process has exported, ignored and not sent, and its number: records of these name an exporter to say which one
is meant."""


@dataclass(eq=False)
class Sampling:
    """Sampling rates of a domain, and of what in it has a number; `of_all` is that of what names none, 0 if unknown."""

    of_samplers: dict[int, int] = field(default_factory=dict)
    of_interfaces: dict[int, int] = field(default_factory=dict)
    of_all: int = 0
    of_parts: dict[int, int] = field(default_factory=dict)
    """Of line cards, caches and templates, as `_part` names them."""

    def __len__(self) -> int:
        """How many numbers have a rate."""
        return len(self.of_samplers) + len(self.of_interfaces) + len(self.of_parts)

    def __bool__(self) -> bool:
        """Whether any rate is known."""
        return bool(len(self) or self.of_all)

    def copy(self) -> Sampling:
        """Return a copy."""
        return Sampling(dict(self.of_samplers), dict(self.of_interfaces), self.of_all, dict(self.of_parts))

    def replaced_by(self, later: Sampling) -> Sampling:
        """Return the rates that are different later."""
        samplers, interfaces, parts = (
            dict(table(self).items() - table(later).items())
            for table in (_of_samplers, _of_interfaces, _of_parts)
        )
        return Sampling(samplers, interfaces, self.of_all if self.of_all != later.of_all else 0, parts)

    @property
    def of_rest(self) -> int:
        """The rate of flows that name nothing: that of all, else the one that all parts have."""
        distinct = set(self.of_parts.values())
        return self.of_all or (distinct.pop() if len(distinct) == 1 else 0)


_Table = Callable[[Sampling], dict[int, int]]
_of_samplers: _Table = attrgetter("of_samplers")
_of_interfaces: _Table = attrgetter("of_interfaces")
_of_parts: _Table = attrgetter("of_parts")


@dataclass(frozen=True, eq=False)
class Announced:
    """What a domain has said of sampling, and what others of the same exporter have; `earlier` rates count first."""

    domain: Sampling
    others: Sequence[Sampling] = ()
    earlier: Sampling = field(default_factory=Sampling)

    def __bool__(self) -> bool:
        """Whether any rate is known."""
        return any(self.all)

    @property
    def all(self) -> Iterator[Sampling]:
        """Return the domain's own, and the others."""
        return chain((self.earlier, self.domain), self.others)

    def rate(self, table: _Table, number: int) -> int:
        """The rate of a number in these tables, 0 where it is not known."""
        return self.first(lambda sampling: table(sampling).get(number, 0))

    def first(self, rate: Callable[[Sampling], int]) -> int:
        """The domain's own rate, else that of the others, if they agree; 0 where it is not known."""
        if own := rate(self.earlier) or rate(self.domain):
            return own
        distinct = {rate(each) for each in self.others} - {0}
        return distinct.pop() if len(distinct) == 1 else 0


class InterfaceName(NamedTuple):
    """The texts of an interface as its exporter has sent them, not safe to show; empty where it has sent none."""

    name: str
    description: str


InterfaceNames = dict[tuple[bytes, int], InterfaceName]
"""By the exporter's address and the interface's index, which is the same in all domains of a device (RFC 2863)."""


class Learned(NamedTuple):
    """Whether options changed what is remembered, and how many entries were dropped to make room."""

    changed: bool
    dropped: int


def sampling_rates(
    records: Records, at: Index, flows: Flows, announced: Sequence[Announced], of: Index, *, template_id: int
) -> Array:
    """The rate of each flow, 0 where none is known: its own, else that of the sampler, or the interface, that it names,
    else that of its template, else that of all which name none. One that names no sampler, where rates are those of
    samplers, was not sampled.

    `at` are the records of the flows, `of` says for each record which of the `announced` is its domain's.
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
    """The interface where each of so many flows was observed: where it came in, or went out; 0 is unknown."""
    came_in, went_out, direction = (
        flows.get(name, default_values(name, count)) for name in ("in_if", "out_if", "direction")
    )
    return np.where(direction == EGRESS, went_out, came_in)


def named_exporters(records: Records) -> Iterator[tuple[int | None, bytes]]:
    """The exporters that a relay forwards for by options records, each with the number of its domain where it is given.

    What a process counts of its own exports (RFC 7011, section 4.3) says nothing of that.
    """
    if any(element in records.fields for element in _OF_PROCESS):
        return
    exporters, known = records.column("exporter")
    domains, has_domain = records.number(DOMAIN)
    for at in as_list(np.flatnonzero(known & ~says_nothing(exporters))):
        yield int(domains[at]) & _DOMAIN_MAX if has_domain[at] else None, exporters[at].tobytes()


def sampled_domains(records: Records, own: int) -> Iterator[tuple[int, Mask]]:
    """Return each domain that options records give rates of, and which records: those that name none are of its `own`.

    Number 0 names none.
    """
    if not any(element in records.fields for element in _GIVE_A_RATE):
        return
    numbers, _ = records.number(DOMAIN)
    named = np.where(numbers > 0, numbers & np.uint64(_DOMAIN_MAX), np.uint64(own))
    for number in np.unique(named).tolist():
        yield number, named == number


def read_sampling(records: Records, which: Mask, sampling: Sampling) -> Learned:
    """Remember the rates that some options records give. A rate of 0 takes back what was said before."""
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
    """Return what parts of a kind are known by: the kind above 32 bits of their numbers."""
    return numbers & np.uint64(_INDEX_MAX) | np.uint64(kind << 32)


def _remember(remembered: dict[int, int], numbers: Array, rates: Array) -> bool:
    """Remember the rates of numbers, and forget those whose rate is 0. Returns whether that changes anything."""
    changed = False
    for number, rate in zip(numbers.tolist(), rates.tolist(), strict=True):
        changed |= remembered.get(number, 0) != rate
        if rate:
            remembered[number] = rate
        else:
            remembered.pop(number, None)
    return changed


def read_names(records: Records, exporter: bytes, names: InterfaceNames) -> Learned:
    """Remember what options records call the interfaces of an exporter, or of the one that they name: those named last
    stay for longest.
    """
    if _NAME not in records.fields and _DESCRIPTION not in records.fields:
        return Learned(changed=False, dropped=0)
    changed = False
    given_by, _ = records.column("exporter")
    given_by[says_nothing(given_by)] = np.void(exporter)
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
    """An element of these records as text, which zeros may end; empty where a record does not have it."""
    places = records.fields.get(element)
    if places is None:
        return [""] * len(at)
    spans = zip(
        as_list(places.starts[at]), as_list(np.clip(places.lengths[at], 0, NAME_BYTES_MAX)), strict=True
    )
    contents = (records.buffer[start : start + length].tobytes() for start, length in spans)
    return [content.partition(b"\0")[0].decode("utf-8", "replace") for content in contents]


def _cut(remembered: dict[Any, Any], most: int) -> int:
    """Drop the oldest entries beyond so many; returns how many."""
    surplus = max(0, len(remembered) - most)
    for _ in range(surplus):
        del remembered[next(iter(remembered))]
    return surplus


def _rates(records: Records) -> tuple[Array, Mask]:
    """The rate that each record gives, 0 where it is none, and which say anything of it."""
    rates: Array = np.zeros(len(records), np.uint64)
    known: Mask = np.zeros(len(records), bool)
    if not any(element in records.fields for element in _GIVE_A_RATE):
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
    of_probability, has_probability = _of_probability(records)
    for whole, part, has in (
        (interval + space, interval, has_interval & has_space),
        (time + time_space, time, has_time & has_time_space),
        (population, size, has_size & has_population),
        (of_probability, np.ones_like(rates), has_probability),
    ):
        is_given = has & (part > 0) & ~known
        # To the nearest number.
        rates = np.where(is_given, (whole + part // 2) // np.maximum(part, 1).astype(np.uint64), rates)
        known = known | is_given
    rates = np.where(known & (rates <= RATE_MAX), rates, 0).astype(np.uint64)
    return rates, is_said | known


def _of_probability(records: Records) -> tuple[Array, Mask]:
    """The rate of packets that are sampled with a probability, and which records give one."""
    bits, has = records.number(_PROBABILITY)
    probability: Array = np.zeros(len(records))
    if _PROBABILITY in records.fields:
        # Of a length that may be reduced (RFC 7011, section 6.2).
        lengths = records.fields[_PROBABILITY].lengths
        single = bits.astype(np.uint32).view(np.float32)
        probability = np.select([lengths == 8, lengths == 4], [bits.view(np.float64), single])
    has &= (probability >= 1 / RATE_MAX) & (probability <= 1)
    return np.rint(1 / np.where(has, probability, 1)).astype(np.uint64), has


def _fill(
    rates: Array, has_table: Mask, numbers: Array, of: Index, rate_of: Sequence[Callable[[int], int]]
) -> None:
    """Set the rates that are 0, of rows whose domain has a table, to that of their number, where it is not 0."""
    rows = np.flatnonzero((rates == 0) & has_table & (numbers > 0))
    if not len(rows):
        return
    distinct, places = np.unique(numbers[rows], return_inverse=True)
    # Few: every pair of a domain and a number is looked up once.
    pairs, pair_of = np.unique(of[rows] * len(distinct) + places, return_inverse=True)
    which, at = np.divmod(pairs, len(distinct))
    looked_up = [
        rate_of[domain](number) for domain, number in zip(which.tolist(), distinct[at].tolist(), strict=True)
    ]
    rates[rows] = np.array(looked_up, np.uint64)[pair_of]
