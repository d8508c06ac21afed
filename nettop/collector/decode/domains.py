# SPDX-License-Identifier: Apache-2.0
"""Exporters' declarations by observation domain, bounded: templates, sampling rates and start times."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from math import nan
from typing import Any, TypeVar

import numpy as np

from nettop.collector.decode import options
from nettop.collector.decode.batch import DomainKey
from nettop.collector.decode.records import Records, started_ms_of
from nettop.collector.decode.templates import FIRST_DATA_SET, Template, Withdrawal
from nettop.snapshots.arrays import Array, Index

DOMAINS_MAX = 16_384
"""Maximum observation domains. Beyond it those unused for UNUSED_S are evicted, else the newest."""
FIELDS_MAX = 1 << 20
"""Maximum template fields, sampling rates and interface names of all domains. Beyond it, domains are evicted."""
DOMAIN_FIELDS_MAX = 1 << 16
"""Maximum template fields, rates and interface names of one domain. Beyond it its oldest templates are evicted."""
RATES_MAX = 8192
"""Maximum sampling rates kept per domain. Beyond it the oldest are dropped."""
NAMES_MAX = 32_768
"""Maximum interfaces of a domain whose names are kept. Beyond it the least recently named ones are dropped."""
UNUSED_S, _SWEEP_S = 86_400.0, 60.0
"""Seconds after which a domain that sends nothing may be evicted, and between searches for such."""
SHARED_MAX = 4096
"""Maximum templates kept for sharing between domains."""
PORTS_MAX = 8
"""Maximum other source ports of an exporter whose templates are tried, newest first."""
SAMPLERS_MAX = 16
"""Maximum domains of an address whose sampling rates are the fallback for others, newest first."""

_EXPORTERS_MAX = 2
"""Maximum exporters kept per domain: two are enough to make it ambiguous."""
_Named = TypeVar("_Named")
_Member = TypeVar("_Member")
ReportedKey = tuple[bytes, int, int, int]
"""An interface: exporter, and the port, number and interface index of the domain that named it."""
ExporterKey = tuple[bytes, int, int]
"""An observation domain regardless of source port: sender, version and domain number."""


@dataclass(eq=False)
class Domain:
    """State of an observation domain; `boot_ms` is negative if unknown, `used_at` is of the monotonic clock."""

    templates: dict[int, Template] = field(default_factory=dict)
    declared: set[int] = field(default_factory=set)
    """IDs of the templates declared since nettop and the exporter last started."""
    last: tuple[float, float] = (nan, nan)
    """`boot_ms` and sequence number of the last message."""
    has_restarted: bool = False
    """Whether the exporter has restarted while nettop ran."""
    of_kind: dict[bool, dict[int, None]] = field(default_factory=lambda: {False: {}, True: {}})
    """Template IDs by kind (options or not), as one datagram can withdraw thousands."""
    fields: int = 0
    """Fields of all templates, plus the number of sampling rates and interface names."""
    rates: options.Rates = field(default_factory=dict)
    names: options.InterfaceNames = field(default_factory=dict)
    boot_ms: int = -1
    used_at: float = 0.0
    exporters: set[bytes] = field(default_factory=set)
    """Exporters that a relay has named in options, at most two. With two, the exporter of a flow is unknown."""

    @property
    def exporter(self) -> bytes:
        """Exporter for which a relay forwards in this domain; empty if the relay names none or several."""
        return next(iter(self.exporters)) if len(self.exporters) == 1 else b""


UNKNOWN = Domain()
"""Placeholder for a domain that has declared nothing."""


class Domains:
    """All domains, oldest first.

    `changes` counts changes since the last save; `dropped` counts evictions by name.
    """

    def __init__(self) -> None:
        self._all: dict[DomainKey, Domain] = {}
        self._ports: dict[ExporterKey, dict[int, None]] = {}
        """Source ports on which each exporter is known."""
        self._samplers: dict[bytes, dict[DomainKey, None]] = {}
        """Domains with sampling rates, by sender."""
        self._fields = 0
        self._sweep_at = 0.0
        self._shared: dict[Template, Template] = {}
        self.changes = 0
        self.dropped: Counter[str] = Counter()

    @property
    def all(self) -> Mapping[DomainKey, Domain]:
        """All domains by key."""
        return self._all

    def names(self) -> dict[ReportedKey, str]:
        """Return the names of interfaces that exporters have reported."""
        return {
            (exporter, key[1], key[3], index): name
            for key, domain in self._all.items()
            for (exporter, index), name in domain.names.items()
        }

    def get(self, key: DomainKey) -> Domain:
        """Return the state of a domain, or UNKNOWN if it has declared nothing."""
        return self._all.get(key, UNKNOWN)

    def restore(self, key: DomainKey, saved: Domain) -> None:
        """Restore a domain that was saved before a restart."""
        domain = self.use(key)
        domain.rates, domain.boot_ms, domain.exporters = saved.rates, saved.boot_ms, saved.exporters
        domain.names = saved.names
        self._count_rates(key, domain, before=0)
        self._count_fields(domain, len(domain.names))
        for template in saved.templates.values():
            self.set(key, template)
        domain.declared.clear()

    def of_other_ports(self, key: DomainKey) -> list[Domain]:
        """Return the same domain of the same address on other ports, newest first."""
        sender, port, version, number = key
        others = (other for other in reversed(self._ports.get(_without_port(key), {})) if other != port)
        return [self._all[sender, other, version, number] for other in islice(others, PORTS_MAX)]

    def use(self, key: DomainKey) -> Domain:
        """Return the state of a domain, and note that it is used."""
        domain = self._all.get(key)
        if domain is None:
            domain = self._all[key] = Domain()
            self._ports.setdefault(_without_port(key), {})[key[1]] = None
        domain.used_at = time.monotonic()
        if len(self._all) > DOMAINS_MAX:
            self._evict(domain)
        return domain

    def _evict(self, used: Domain) -> None:
        """Forget all domains that were not used for long or, if there are none, the newest but the one in use: forged
        exporters then evict each other, and not those known for longer.
        """
        now = time.monotonic()
        if now >= self._sweep_at:
            self._sweep_at = now + _SWEEP_S
            unused = [key for key, domain in self._all.items() if domain.used_at < now - UNUSED_S]
            for key in unused:
                self._forget(key)
            if unused:
                return
        self._forget(next(key for key in reversed(self._all) if self._all[key] is not used))

    def templates(self, key: DomainKey) -> Mapping[int, Template]:
        """Return the templates of a domain, and note that it is used if it exists."""
        return self.use(key).templates if key in self._all else UNKNOWN.templates

    def started_ms(self, key: DomainKey) -> int:
        """Return when a domain's exporter started, as announced in it or in domain 0; negative if unknown.

        Domain 0 speaks for the whole exporter (RFC 7011, section 3.1).
        """
        own = self.get(key).boot_ms
        return own if own >= 0 else self.get((*key[:3], 0)).boot_ms

    def distrust(self, key: DomainKey) -> None:
        """Note that the exporter of a domain has restarted: its templates hold only while records fit."""
        if key in self._all:
            self._all[key].declared.clear()
            self._all[key].has_restarted = True

    def note_last(self, keys: Sequence[DomainKey], domains: Index, headers: Array) -> None:
        """Note the last message of each domain that has declared anything. `domains` are the indices of the keys."""
        rows = np.zeros(len(keys), np.intp)
        rows[domains] = np.arange(len(domains))
        for key, last in zip(keys, headers[["boot_ms", "sequence"]][rows].tolist(), strict=True):
            if key in self._all:
                self._all[key].last = last

    def _forget(self, key: DomainKey) -> None:
        self._fields -= self._all.pop(key).fields
        exporter = _without_port(key)
        _remove_from(self._ports, exporter, key[1])
        _remove_from(self._samplers, key[0], key)
        self.dropped["domains"] += 1
        self.changes += 1

    def repeats(self, key: DomainKey, change: Template | Withdrawal) -> bool:
        """Return whether an exporter declares a template again, which then counts as declared since a restart."""
        if isinstance(change, Withdrawal) or self.templates(key).get(change.id) != change:
            return False
        self._all[key].declared.add(change.id)
        return True

    def changed_by(self, key: DomainKey, change: Template | Withdrawal) -> list[int]:
        """Return the IDs of the templates a change affects."""
        if isinstance(change, Template):
            return [change.id]
        of_kind = self.get(key).of_kind[change.of_options]
        if change.id < FIRST_DATA_SET:
            return list(of_kind)
        return [change.id] if change.id in of_kind else []

    def set(self, key: DomainKey, template: Template) -> None:
        """Remember a template. Domains share equal templates as one object."""
        if len(self._shared) >= SHARED_MAX:
            self._shared.clear()
        domain = self.use(key)
        self.remove(domain, template.id)
        domain.templates[template.id] = self._shared.setdefault(template, template)
        domain.declared.add(template.id)
        domain.of_kind[template.of_options][template.id] = None
        self._count_fields(domain, len(template.fields))
        self.changes += 1

    def _count_fields(self, domain: Domain, more: int) -> None:
        """Add to the field count of a domain, and evict others until the bounds hold."""
        domain.fields += more
        self._fields += more
        while domain.fields > DOMAIN_FIELDS_MAX and len(domain.templates) > 1:
            self.remove(domain, next(iter(domain.templates)))
            self.dropped["templates"] += 1
        while self._fields > FIELDS_MAX and len(self._all) > 1:
            self._evict(domain)

    def remove(self, domain: Domain, template_id: int) -> None:
        """Forget a template if it is known."""
        removed = domain.templates.pop(template_id, None)
        domain.declared.discard(template_id)
        if removed:
            del domain.of_kind[removed.of_options][template_id]
            domain.fields -= len(removed.fields)
            self._fields -= len(removed.fields)
            self.changes += 1

    def announced(self, key: DomainKey) -> options.Rates:
        """Return the rates announced in a domain; if there are none, those that the exporter's other domains agree on.

        These are domains of the same port and, if this one has no templates, the same domain on other ports.
        """
        domain = self.get(key)
        sender, port, version, number = key
        if domain.rates or sender not in self._samplers:
            return domain.rates
        return options.agreed_rates(
            self._all[other].rates
            for other in islice(reversed(self._samplers[sender]), SAMPLERS_MAX)
            if other[2] == version and (other[1] == port or (other[3] == number and not domain.templates))
        )

    def read_options(self, key: DomainKey, records: Records) -> None:
        """Learn from a domain's options records: relayed exporters, sampling rates, interface names and start time."""
        for number, exporter in options.named_exporters(records):
            exporters = self.use(key if number is None else (*key[:3], number)).exporters
            if exporter not in exporters and len(exporters) < _EXPORTERS_MAX:
                exporters.add(exporter)
                self.changes += 1
        for number, which in options.sampled_domains(records, own=key[3]):
            sampled = *key[:3], number
            domain = self.use(sampled)
            before = len(domain.rates)
            self.changes += options.read_sampling(records, which, domain.rates)
            self._cut("samplers", domain.rates, RATES_MAX)
            self._count_rates(sampled, domain, before)
        domain = self.use(key)
        before = len(domain.names)
        self.changes += options.read_names(records, domain.exporter or key[0], domain.names)
        self._cut("interface names", domain.names, NAMES_MAX)
        self._count_fields(domain, len(domain.names) - before)
        started_ms, known = started_ms_of(records)
        if known.any():
            boot_ms = int(started_ms[known][-1])
            self.changes += boot_ms != domain.boot_ms
            domain.boot_ms = boot_ms

    def _cut(self, what: str, remembered: dict[Any, Any], most: int) -> None:
        """Drop the oldest entries beyond `most`."""
        for _ in range(len(remembered) - most):
            del remembered[next(iter(remembered))]
            self.dropped[what] += 1

    def _count_rates(self, key: DomainKey, domain: Domain, before: int) -> None:
        """Note the rates of a domain, of which it had so many before."""
        self._count_fields(domain, len(domain.rates) - before)
        if domain.rates:
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
