# SPDX-License-Identifier: Apache-2.0
"""What exporters have declared, by observation domain and within bounds: templates, sampling, and when they began."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from operator import itemgetter
from typing import NamedTuple, TypeVar

import numpy as np

from nettop.flows.decode.options import (
    Announced,
    InterfaceNames,
    Learned,
    Sampling,
    named_exporters,
    read_names,
    read_sampling,
    sampled_domains,
)
from nettop.flows.decode.records import Records, started_ms_of
from nettop.flows.decode.templates import Template, Withdrawal
from nettop.snapshots.arrays import Index, Mask, as_list
from nettop.snapshots.snapshot import Array

DOMAINS_MAX = 16_384
"""Observation domains that are remembered: the one that was silent for longest makes room for another."""
FIELDS_MAX = 1 << 20
"""Fields of templates and sampling rates together, beyond which domains that were silent for longest make room."""
DOMAIN_FIELDS_MAX = 1 << 16
"""Fields and rates of one domain, beyond which its oldest templates make room."""
SHARED_MAX = 4096
"""Templates that are compared with those of other domains."""
PORTS_MAX = 8
"""Other ports of an exporter whose templates are looked at: the newest ones."""
SAMPLERS_MAX = 16
"""Domains of an address that have said something of sampling, which is looked at for others: the newest ones."""

CHANGES_MAX = 16
"""Messages of a batch that change the rates of a domain from their place on. Later ones count as part of the last."""

_EXPORTERS_MAX = 2
"""Of a domain: more than one are as good as any number."""
_Named = TypeVar("_Named")
_Member = TypeVar("_Member")
DomainKey = tuple[bytes, int, int, int]
"""An observation domain: sender, port, version, and its number."""
KEY = ("exporter", "port", "protocol_version", "domain")
"""The fields that say the same of a row."""
ExporterKey = tuple[bytes, int, int]
"""An observation domain, from whichever port it is sent: sender, version, and its number."""


class Declared(NamedTuple):
    """The message that has declared a template: which one it was since the start, and what its header says."""

    number: int
    boot_ms: int
    sequence: int


@dataclass(eq=False)
class Domain:
    """What is remembered of an observation domain; `boot_ms` is negative where it is not known."""

    templates: dict[int, Template] = field(default_factory=dict)
    declared: dict[int, Declared] = field(default_factory=dict)
    """By which message each template came last, in that order; not of those from before nettop was started."""
    of_kind: dict[bool, dict[int, None]] = field(default_factory=lambda: {False: {}, True: {}})
    """The IDs of all templates, by whether they are of options: a datagram can withdraw thousands of them."""
    fields: int = 0
    """Of all templates together, and how many sampling rates there are."""
    sampling: Sampling = field(default_factory=Sampling)
    boot_ms: int = -1
    exporters: set[bytes] = field(default_factory=set)
    """Those that a relay has named by options, at most two: of several nobody can say whose a flow is."""

    @property
    def exporter(self) -> bytes:
        """The exporter that a relay forwards for in this domain, empty where none is named."""
        return next(iter(self.exporters)) if len(self.exporters) == 1 else b""


UNKNOWN = Domain()
"""Of a domain that has declared nothing."""


def numbered_keys(rows: Array) -> tuple[Index, Index]:
    """The place of the first row of each distinct key, and for each row (n,) the number of its key.

    `rows` have the fields of KEY.
    """
    upper, lower = np.ascontiguousarray(rows["exporter"]).view("u8").reshape(-1, 2).T
    rest = rows["port"].astype("u8") << 40 | rows["protocol_version"].astype("u8") << 32 | rows["domain"]
    order = np.lexsort((lower, upper, rest))
    is_first = np.ones(len(rows), bool)
    is_first[1:] = False
    for column in (lower, upper, rest):
        is_first[1:] |= column[order[1:]] != column[order[:-1]]
    numbers_of = np.empty(len(rows), np.intp)
    numbers_of[order] = np.cumsum(is_first) - 1
    return order[is_first], numbers_of


def keys_of(rows: Array) -> list[DomainKey]:
    """The key of each row."""
    return list(zip(*(as_list(rows[name]) for name in KEY), strict=True))


class Domains:
    """All domains, that which was used last at the end, and the `names` of interfaces.

    `changes` is how often they have changed since they were saved, `dropped` what bounds have dropped, by name.
    """

    def __init__(self) -> None:
        self._all: dict[DomainKey, Domain] = {}
        self._ports: dict[ExporterKey, dict[int, None]] = {}
        """The ports by which each is among the domains."""
        self._samplers: dict[bytes, dict[DomainKey, None]] = {}
        """Domains that have said something of sampling, by sender."""
        self._fields = 0
        self._shared: dict[Template, Template] = {}
        self._replaced: dict[DomainKey, list[tuple[int, Sampling]]] = {}
        """Rates that messages of this batch have replaced, with the places of these."""
        self.names: InterfaceNames = {}
        self.changes = 0
        self.dropped: Counter[str] = Counter()

    @property
    def all(self) -> Mapping[DomainKey, Domain]:
        """Each domain by its key."""
        return self._all

    def get(self, key: DomainKey) -> Domain:
        """Return what is known of a domain, that of UNKNOWN where it has declared nothing."""
        return self._all.get(key, UNKNOWN)

    def restore(self, key: DomainKey, domain: Domain) -> None:
        """Remember a domain as it was before nettop was started."""
        remembered = self.use(key)
        remembered.sampling, remembered.boot_ms = domain.sampling, domain.boot_ms
        remembered.exporters = domain.exporters
        self._count_fields(remembered, len(domain.sampling))
        self._note_sampling(key, remembered)
        for template in domain.templates.values():
            self.set(key, template)

    def from_other_ports(self, key: DomainKey) -> Iterator[tuple[DomainKey, Domain]]:
        """Yield the same domain of the same address from other ports, the newest first."""
        sender, port, version, number = key
        others = (other for other in reversed(self._ports.get(_without_port(key), {})) if other != port)
        for other in list(islice(others, PORTS_MAX)):
            yield (sender, other, version, number), self._all[sender, other, version, number]

    def use(self, key: DomainKey) -> Domain:
        """What is known of a domain, which counts as used now."""
        domain = self._all.pop(key, None)
        if domain is None:
            domain = Domain()
            self._ports.setdefault(_without_port(key), {})[key[1]] = None
        self._all[key] = domain
        if len(self._all) > DOMAINS_MAX:
            self._forget(next(iter(self._all)))
        return domain

    def templates(self, key: DomainKey) -> Mapping[int, Template]:
        """The templates of a domain, which counts as used now if it has any."""
        return self.use(key).templates if key in self._all else UNKNOWN.templates

    def started_ms(self, key: DomainKey) -> int:
        """Return when a domain's exporter began, by what it or domain 0 has said; negative where it is not known.

        What is said in domain 0 is of the whole exporter (RFC 7011, section 3.1).
        """
        own = self.get(key).boot_ms
        return own if own >= 0 else self.get((*key[:3], 0)).boot_ms

    def _forget(self, key: DomainKey) -> None:
        self._fields -= self._all.pop(key).fields
        exporter = _without_port(key)
        _remove_from(self._ports, exporter, key[1])
        _remove_from(self._samplers, key[0], key)
        self.dropped["domains"] += 1
        self.changes += 1

    def changed_by(self, key: DomainKey, change: Template | Withdrawal) -> list[int]:
        """The IDs of the templates that a change concerns."""
        if isinstance(change, Template):
            return [change.id]
        domain = self.use(key) if key in self._all else UNKNOWN
        of_kind = domain.of_kind[change.of_options]
        if change.is_of_all:
            return list(of_kind)
        return [change.id] if change.id in of_kind else []

    def set(self, key: DomainKey, template: Template) -> None:
        """Remember a template; equal ones of different domains are one object."""
        if len(self._shared) >= SHARED_MAX:
            self._shared.clear()
        domain = self.use(key)
        self.remove(domain, template.id)
        domain.templates[template.id] = self._shared.setdefault(template, template)
        domain.of_kind[template.of_options][template.id] = None
        self._count_fields(domain, len(template.fields))
        self.changes += 1

    def _count_fields(self, domain: Domain, more: int) -> None:
        """Count so many fields more of a domain, the one used last, and make room for them."""
        domain.fields += more
        self._fields += more
        while domain.fields > DOMAIN_FIELDS_MAX and len(domain.templates) > 1:
            self.remove(domain, next(iter(domain.templates)))
            self.dropped["templates"] += 1
        while self._fields > FIELDS_MAX and len(self._all) > 1:
            self._forget(next(iter(self._all)))

    def remove(self, domain: Domain, template_id: int) -> None:
        """Forget a template, if it is known."""
        removed = domain.templates.pop(template_id, None)
        domain.declared.pop(template_id, None)
        if removed:
            del domain.of_kind[removed.of_options][template_id]
            domain.fields -= len(removed.fields)
            self._fields -= len(removed.fields)
            self.changes += 1

    def begin_batch(self) -> None:
        """Forget the rates that messages of the batch before have replaced."""
        self._replaced.clear()

    def announced_by(
        self, keys: Sequence[DomainKey], of: Index, messages: Index
    ) -> tuple[list[Announced], Index]:
        """Return what is known of sampling, and for each record which of it counts.

        `of` says which key is that of its domain, `messages` where its message is in the batch.
        """
        announced, counts = [self.announced(key) for key in keys], of
        for at, key in enumerate(keys):
            for message, replaced in sorted(self._replaced.get(key, ()), key=itemgetter(0), reverse=True):
                counts = np.where((of == at) & (messages < message), len(announced), counts)
                announced.append(replace(announced[at], earlier=replaced))
        return announced, counts

    def announced(self, key: DomainKey) -> Announced:
        """What is known of sampling in a domain: where it has said nothing itself, what others of its exporter have.

        These are domains of the same port, and where it has declared no templates the same domain from other ports.
        """
        domain = self._all.get(key, UNKNOWN)
        sender, port, version, number = key
        if domain.sampling or sender not in self._samplers:
            return Announced(domain.sampling)
        others = [
            self._all[other].sampling
            for other in islice(reversed(self._samplers[sender]), SAMPLERS_MAX)
            if other[2] == version and (other[1] == port or (other[3] == number and not domain.templates))
        ]
        return Announced(domain.sampling, others)

    def read_options(self, key: DomainKey, records: Records, messages: Index) -> None:
        """Learn what options records of a domain say: whom it forwards for, sampling, names, and when it began.

        `messages` are the places of their messages in the batch.
        """
        for number, exporter in named_exporters(records):
            self._name_exporter(self.use(key if number is None else (*key[:3], number)), exporter)
        for number, which in sampled_domains(records, own=key[3]):
            # Flows before a change keep the rate that they had.
            since = np.minimum(messages, np.unique(messages[which])[:CHANGES_MAX][-1])
            for message in np.unique(since[which]).tolist():
                self._learn_sampling((*key[:3], number), records, which & (since == message), message)
        domain = self.use(key)
        self._note_learned("interface names", read_names(records, domain.exporter or key[0], self.names))
        started_ms, known = started_ms_of(records)
        if known.any():
            boot_ms = int(started_ms[known][-1])
            self.changes += boot_ms != domain.boot_ms
            domain.boot_ms = boot_ms

    def _learn_sampling(self, key: DomainKey, records: Records, which: Mask, message: int) -> None:
        domain = self.use(key)
        before = domain.sampling.copy()
        learned = read_sampling(records, which, domain.sampling)
        self._note_learned("samplers", learned)
        if learned.changed and (replaced := before.replaced_by(domain.sampling)):
            self._replaced.setdefault(key, []).append((message, replaced))
        self._count_fields(domain, len(domain.sampling) - len(before))
        self._note_sampling(key, domain)

    def _note_learned(self, what: str, learned: Learned) -> None:
        self.changes += learned.changed
        if learned.dropped:
            self.dropped[what] += learned.dropped

    def _name_exporter(self, domain: Domain, exporter: bytes) -> None:
        if exporter not in domain.exporters and len(domain.exporters) < _EXPORTERS_MAX:
            domain.exporters.add(exporter)
            self.changes += 1

    def _note_sampling(self, key: DomainKey, domain: Domain) -> None:
        if domain.sampling:
            self._samplers.setdefault(key[0], {})[key] = None


def _remove_from(groups: dict[_Named, dict[_Member, None]], group: _Named, member: _Member) -> None:
    """Remove a member, and the group if it was the last."""
    members = groups.get(group, {})
    members.pop(member, None)
    if not members:
        groups.pop(group, None)


def _without_port(key: DomainKey) -> ExporterKey:
    sender, _, version, number = key
    return sender, version, number
