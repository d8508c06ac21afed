# SPDX-License-Identifier: Apache-2.0
"""Exporters' declarations by observation domain, bounded: templates, sampling rates and start times."""

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
from nettop.snapshots.arrays import Array, Index, Mask, as_list

DOMAINS_MAX = 16_384
"""Maximum observation domains. Beyond it the least recently used one is evicted."""
FIELDS_MAX = 1 << 20
"""Maximum template fields plus sampling rates of all domains. Beyond it the least recently used domains are evicted."""
DOMAIN_FIELDS_MAX = 1 << 16
"""Maximum template fields plus sampling rates of one domain. Beyond it its oldest templates are evicted."""
SHARED_MAX = 4096
"""Maximum templates kept for sharing between domains."""
PORTS_MAX = 8
"""Maximum other source ports of an exporter whose templates are tried, newest first."""
SAMPLERS_MAX = 16
"""Maximum domains of an address whose sampling rates are the fallback for others, newest first."""

CHANGES_MAX = 16
"""Maximum messages of a batch that change a domain's rates separately. Later ones are merged into the last."""

_EXPORTERS_MAX = 2
"""Maximum exporters kept per domain: two are enough to make it ambiguous."""
_Named = TypeVar("_Named")
_Member = TypeVar("_Member")
DomainKey = tuple[bytes, int, int, int]
"""An observation domain: sender, port, version and domain number."""
KEY = ("exporter", "port", "protocol_version", "domain")
"""Fields of a row that identify an observation domain."""
ExporterKey = tuple[bytes, int, int]
"""An observation domain regardless of source port: sender, version and domain number."""


class Declared(NamedTuple):
    """The message that declared a template: its number since the start, and fields of its header."""

    number: int
    boot_ms: int
    sequence: int


@dataclass(eq=False)
class Domain:
    """State of an observation domain; `boot_ms` is negative if unknown."""

    templates: dict[int, Template] = field(default_factory=dict)
    declared: dict[int, Declared] = field(default_factory=dict)
    """The message that last declared each template, in that order. Templates restored from disk have none."""
    of_kind: dict[bool, dict[int, None]] = field(default_factory=lambda: {False: {}, True: {}})
    """Template IDs by kind (options or not), as one datagram can withdraw thousands."""
    fields: int = 0
    """Fields of all templates, plus the number of sampling rates."""
    sampling: Sampling = field(default_factory=Sampling)
    boot_ms: int = -1
    exporters: set[bytes] = field(default_factory=set)
    """Exporters that a relay has named in options, at most two. With two, the exporter of a flow is unknown."""

    @property
    def exporter(self) -> bytes:
        """Exporter for which a relay forwards in this domain; empty if the relay names none or several."""
        return next(iter(self.exporters)) if len(self.exporters) == 1 else b""


UNKNOWN = Domain()
"""Placeholder for a domain that has declared nothing."""


def numbered_keys(rows: Array) -> tuple[Index, Index]:
    """Return the index of the first row of each distinct key, and the key number of each row (n,).

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
    """Return the key of each row."""
    return list(zip(*(as_list(rows[name]) for name in KEY), strict=True))


class Domains:
    """All domains, least recently used first, and the `names` of interfaces.

    `changes` counts changes since the last save; `dropped` counts evictions by name.
    """

    def __init__(self) -> None:
        self._all: dict[DomainKey, Domain] = {}
        self._ports: dict[ExporterKey, dict[int, None]] = {}
        """Source ports on which each exporter is known."""
        self._samplers: dict[bytes, dict[DomainKey, None]] = {}
        """Domains with sampling rates, by sender."""
        self._fields = 0
        self._shared: dict[Template, Template] = {}
        self._replaced: dict[DomainKey, list[tuple[int, Sampling]]] = {}
        """Rates replaced by messages of this batch, with the index of each message."""
        self.names: InterfaceNames = {}
        self.changes = 0
        self.dropped: Counter[str] = Counter()

    @property
    def all(self) -> Mapping[DomainKey, Domain]:
        """All domains by key."""
        return self._all

    def get(self, key: DomainKey) -> Domain:
        """Return the state of a domain, or UNKNOWN if it has declared nothing."""
        return self._all.get(key, UNKNOWN)

    def restore(self, key: DomainKey, domain: Domain) -> None:
        """Restore a domain that was saved before a restart."""
        remembered = self.use(key)
        remembered.sampling, remembered.boot_ms = domain.sampling, domain.boot_ms
        remembered.exporters = domain.exporters
        self._count_fields(remembered, len(domain.sampling))
        self._note_sampling(key, remembered)
        for template in domain.templates.values():
            self.set(key, template)

    def from_other_ports(self, key: DomainKey) -> Iterator[tuple[DomainKey, Domain]]:
        """Yield the same domain of the same address on other ports, newest first."""
        sender, port, version, number = key
        others = (other for other in reversed(self._ports.get(_without_port(key), {})) if other != port)
        for other in list(islice(others, PORTS_MAX)):
            yield (sender, other, version, number), self._all[sender, other, version, number]

    def use(self, key: DomainKey) -> Domain:
        """Return the state of a domain, and mark it as most recently used."""
        domain = self._all.pop(key, None)
        if domain is None:
            domain = Domain()
            self._ports.setdefault(_without_port(key), {})[key[1]] = None
        self._all[key] = domain
        if len(self._all) > DOMAINS_MAX:
            self._forget(next(iter(self._all)))
        return domain

    def templates(self, key: DomainKey) -> Mapping[int, Template]:
        """Return the templates of a domain, and mark it as most recently used if it exists."""
        return self.use(key).templates if key in self._all else UNKNOWN.templates

    def started_ms(self, key: DomainKey) -> int:
        """Return when a domain's exporter started, as announced in it or in domain 0; negative if unknown.

        Domain 0 speaks for the whole exporter (RFC 7011, section 3.1).
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
        """Return the IDs of the templates a change affects."""
        if isinstance(change, Template):
            return [change.id]
        domain = self.use(key) if key in self._all else UNKNOWN
        of_kind = domain.of_kind[change.of_options]
        if change.is_of_all:
            return list(of_kind)
        return [change.id] if change.id in of_kind else []

    def set(self, key: DomainKey, template: Template) -> None:
        """Remember a template. Domains share equal templates as one object."""
        if len(self._shared) >= SHARED_MAX:
            self._shared.clear()
        domain = self.use(key)
        self.remove(domain, template.id)
        domain.templates[template.id] = self._shared.setdefault(template, template)
        domain.of_kind[template.of_options][template.id] = None
        self._count_fields(domain, len(template.fields))
        self.changes += 1

    def _count_fields(self, domain: Domain, more: int) -> None:
        """Add to the field count of the most recently used domain, and evict until the bounds hold."""
        domain.fields += more
        self._fields += more
        while domain.fields > DOMAIN_FIELDS_MAX and len(domain.templates) > 1:
            self.remove(domain, next(iter(domain.templates)))
            self.dropped["templates"] += 1
        while self._fields > FIELDS_MAX and len(self._all) > 1:
            self._forget(next(iter(self._all)))

    def remove(self, domain: Domain, template_id: int) -> None:
        """Forget a template if it is known."""
        removed = domain.templates.pop(template_id, None)
        domain.declared.pop(template_id, None)
        if removed:
            del domain.of_kind[removed.of_options][template_id]
            domain.fields -= len(removed.fields)
            self._fields -= len(removed.fields)
            self.changes += 1

    def begin_batch(self) -> None:
        """Forget the rates replaced during the previous batch."""
        self._replaced.clear()

    def announced_by(
        self, keys: Sequence[DomainKey], of: Index, messages: Index
    ) -> tuple[list[Announced], Index]:
        """Return the announced sampling rates, and for each record the index of those that apply.

        `of` is the index in `keys` of each record's domain, `messages` the index of its message in the batch.
        """
        announced, counts = [self.announced(key) for key in keys], of
        for at, key in enumerate(keys):
            for message, replaced in sorted(self._replaced.get(key, ()), key=itemgetter(0), reverse=True):
                counts = np.where((of == at) & (messages < message), len(announced), counts)
                announced.append(replace(announced[at], earlier=replaced))
        return announced, counts

    def announced(self, key: DomainKey) -> Announced:
        """Return the rates announced in a domain; if there are none, those of the exporter's other domains.

        These are domains of the same port and, if this one has no templates, the same domain on other ports.
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
        """Learn from a domain's options records: relayed exporters, sampling rates, interface names and start time.

        `messages` are the indices of their messages in the batch.
        """
        for number, exporter in named_exporters(records):
            self._name_exporter(self.use(key if number is None else (*key[:3], number)), exporter)
        for number, which in sampled_domains(records, own=key[3]):
            # Flows before a change keep the old rate.
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
    """Remove a member from its group, and the group once it is empty."""
    members = groups.get(group, {})
    members.pop(member, None)
    if not members:
        groups.pop(group, None)


def _without_port(key: DomainKey) -> ExporterKey:
    sender, _, version, number = key
    return sender, version, number
