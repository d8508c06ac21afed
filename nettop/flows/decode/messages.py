# SPDX-License-Identifier: Apache-2.0
"""NetFlow v9 (RFC 3954) and IPFIX (RFC 7011): messages of sets, whose records have the form that templates declare.

A batch of messages is decoded at once. First every data set is given the template that was valid when it came, then the
records of each template are decoded together, whichever domains they are of: routers of one model declare the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from typing import NamedTuple, TypeVar

import numpy as np

from nettop.flows.columns import ADDRESS, TIME_MAX_MS, TIME_MIN_MS, Flows
from nettop.flows.decode.connections import KEY as CONNECTION_KEY
from nettop.flows.decode.connections import Connections
from nettop.flows.decode.datagrams import Datagrams, numbers
from nettop.flows.decode.elements import CONNECTION, FIREWALL_EVENT, NTOP, SYSTEM_INIT
from nettop.flows.decode.held import Held, HeldSets
from nettop.flows.decode.layout import Fields, laid_out
from nettop.flows.decode.options import (
    Announced,
    InterfaceNames,
    Sampling,
    named_exporters,
    read_names,
    read_sampling,
    sampling_rates,
)
from nettop.flows.decode.records import Records, says_nothing
from nettop.flows.decode.rows import decoded_flows
from nettop.flows.decode.templates import (
    FIRST_DATA_SET,
    IPFIX,
    NETFLOW_9,
    TEMPLATES,
    Malformed,
    Template,
    Withdrawal,
    parsed_templates,
)
from nettop.flows.decode.times import exported_ms
from nettop.snapshots.arrays import Index, Mask, as_list
from nettop.snapshots.snapshot import Array

HEADERS = {NETFLOW_9: 20, IPFIX: 16}
"""The length of a message's header."""
SET_HEADER = 4
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
_SAME_START_MS = 60_000
"""By how much a start may differ that messages of one exporter give."""
_OTHER_START = -(1 << 32)
"""In place of how far messages are ahead of one that came before their exporter has started."""
_FIRST_NUMBERS = 4096
"""Sequence numbers of an exporter that may just have started."""
_PADDING_MAX = 3
"""Bytes that make a set end where numbers of four bytes may begin."""
_LOOKED_AT = 4
"""Bytes at either end of what is left after the records of a set."""
_EXPORTERS_MAX = 2
_STATEMENTS_MAX, _STATEMENT_MOST = 256, 1024
"""Sets of templates whose meaning is remembered, and how long they are: some exporters send them in every datagram."""

MESSAGE = np.dtype(
    [
        ("received", "i8"),
        ("exporter", ADDRESS),
        ("port", "u2"),
        ("protocol_version", "u1"),
        ("domain", "u4"),
        ("sequence", "u4"),
        ("export_ms", "i8"),
        ("boot_ms", "i8"),
    ]
)
"""What is said of a message: times in ms; `boot_ms`, a time when the exporter's uptime was 0, is negative where none is
known."""


@dataclass(frozen=True, eq=False)
class Sets:
    """Sets in the order in which they came: the place of each one's message, its ID, and where its content lies."""

    message: Index
    id: Array
    start: Index
    end: Index

    def __len__(self) -> int:
        return len(self.id)

    def at(self, which: Index | Mask | slice) -> Sets:
        """Some of them."""
        return Sets(self.message[which], self.id[which], self.start[which], self.end[which])


_Named = TypeVar("_Named")
_Member = TypeVar("_Member")
DomainKey = tuple[bytes, int, int, int]
"""An observation domain: sender, port, version, and its number."""
KEY = ("exporter", "port", "protocol_version", "domain")
"""The fields that say the same of a row."""
ExporterKey = tuple[bytes, int, int]
"""An observation domain, from whichever port it is sent: sender, version, and its number."""

COUNTS = np.dtype(
    [
        (name, "i8")
        for name in ("records", "options", "templates", "broken", "held", "released", "units", "unit_options")
    ]
)
"""What was counted of a message: records of flows and of options, templates, parts that are not what the protocol
allows, sets that wait for their template, and sets whose template came with this message; their records count here.

`units` are the records of both kinds in the message itself, by which IPFIX numbers messages; `unit_options` those of
options.
"""


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


_UNKNOWN = Domain()
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


class Batch:
    """Messages that are decoded together: their buffer, what their headers say, and the domain of each.

    `keys` are the distinct domains, `domains` the place there of each message's (n,). `counted_at` (n,) is where each
    one's records are counted.
    """

    def __init__(self, buffer: Array, messages: Array, counted_at: Index) -> None:
        self.buffer = buffer
        self.messages = messages
        self.counted_at = counted_at
        firsts, self.domains = numbered_keys(messages)
        self.keys = keys_of(messages[firsts])


@dataclass(eq=False)
class Decoded:
    """What a batch gave: flows in parts, each with its number of rows, and what was counted meanwhile.

    `which` (m,) are the messages' positions among all datagrams, `messages` what their headers say (MESSAGE), and
    `counts` what was counted of each (COUNTS). `of` are the messages of the flows, by part.
    """

    which: Index
    messages: Array
    counts: Array
    unread: int
    """Messages whose header is not there, or not what the protocol allows."""
    parts: list[Flows] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    of: list[Index] = field(default_factory=list)
    forgotten: Counter[DomainKey] = field(default_factory=Counter)
    """How many sets of each domain were dropped before their template came."""

    def _sum(self, name: str) -> int:
        return int(self.counts[name].sum())

    @property
    def records(self) -> int:
        """Records of flows; those of a biflow count once."""
        return self._sum("records")

    @property
    def options(self) -> int:
        """Records of options."""
        return self._sum("options")

    @property
    def templates(self) -> int:
        """Templates and withdrawals, those that repeat what is known among them."""
        return self._sum("templates")

    @property
    def malformed(self) -> int:
        """Messages, sets and templates that are not what the protocol allows."""
        return self.unread + self._sum("broken")

    @property
    def held(self) -> int:
        """Sets that wait for their template."""
        return self._sum("held")

    @property
    def released(self) -> int:
        """Sets whose template has come."""
        return self._sum("released")

    def count(self, name: str, messages: Index) -> None:
        """Count something once for each of these messages."""
        self.counts[name] += np.bincount(messages, minlength=len(self.counts))


@dataclass(frozen=True, eq=False)
class _Group:
    """Data sets of one template; released ones have waited for it."""

    batch: Batch
    template: Template
    sets: Sets
    is_released: bool = False


class _Run:
    """A batch while its data sets are given templates, and grouped by them.

    Exporters whose domain `is_unsteady` may have restarted.
    """

    def __init__(self, batch: Batch, sets: Sets, decoded: Decoded, is_unsteady: Mask) -> None:
        self.batch = batch
        self.sets = sets
        self.decoded = decoded
        self.is_unsteady = is_unsteady
        self.released: list[_Group] = []
        self.repeated: dict[tuple[int, int], int] = {}
        """The messages that have last declared what was known, by domain and ID."""
        self._groups: dict[tuple[int, int], tuple[Template, list[Index]]] = {}
        which = np.flatnonzero(sets.id >= FIRST_DATA_SET)
        codes = batch.domains[sets.message[which]] << 16 | sets.id[which]
        order = np.argsort(codes, kind="stable")
        self._places = which[order]
        distinct, firsts = np.unique(codes[order], return_index=True)
        ends = [*firsts[1:].tolist(), len(order)]
        self._left = dict(zip(distinct.tolist(), zip(firsts.tolist(), ends, strict=False), strict=True))
        """Of each domain and ID, which of the places are left."""

    def taken(self, domain: int, set_id: int, until: int) -> Index:
        """The places of the data sets of a domain and ID before `until`, each of which is taken once."""
        first, end = self._left.get(domain << 16 | set_id, (0, 0))
        middle = first + int(np.searchsorted(self._places[first:end], until))
        if middle > first:
            self._left[domain << 16 | set_id] = middle, end
        return self._places[first:middle]

    def rest(self) -> Iterator[tuple[int, int, Index]]:
        """All that are left: domain, ID, and places."""
        for code, (first, end) in self._left.items():
            if first < end:
                yield code >> 16, code & 0xFFFF, self._places[first:end]

    def add(self, template: Template, domain: int, places: Index) -> None:
        """Data sets of a domain that have this template."""
        is_alone = template.of_options or template.has_lists
        _, of_group = self._groups.setdefault((id(template), domain if is_alone else -1), (template, []))
        of_group.append(places)

    def groups(self) -> list[_Group]:
        """All of them, those of options first: what they say holds for all flows of the batch."""
        of_batch = [
            _Group(self.batch, template, self.sets.at(np.concatenate(places)))
            for template, places in self._groups.values()
        ]
        return sorted(self.released + of_batch, key=lambda group: not group.template.of_options)


class MessageDecoder:
    """Decodes messages, and remembers what they say of later ones.

    `changes` is how often that has changed since it was saved, `dropped` what its bounds have dropped, by name.
    """

    def __init__(self) -> None:
        self._domains: dict[DomainKey, Domain] = {}
        self._ports: dict[ExporterKey, dict[int, None]] = {}
        """The ports by which each is among the domains."""
        self._samplers: dict[bytes, dict[DomainKey, None]] = {}
        """Domains that have said something of sampling, by sender."""
        self._fields = 0
        self._messages = 0
        """How many messages have been decoded, before this batch."""
        self._shared: dict[Template, Template] = {}
        self._held = HeldSets()
        self.names: InterfaceNames = {}
        self.changes = 0
        self.dropped: Counter[str] = Counter()
        self._connections = Connections(self.dropped)

    @property
    def domains(self) -> Mapping[DomainKey, Domain]:
        """What is remembered of each domain, that of the one used last at the end."""
        return self._domains

    @property
    def waiting(self) -> Mapping[DomainKey, int]:
        """How many sets of a domain wait for their template."""
        return self._held.waiting

    def decode(self, datagrams: Datagrams, which: Index, version: int) -> Decoded:
        """The flows in these datagrams, which are of one version."""
        decoded, starts, ends = _headers(datagrams, which, version)
        sets = _sets(datagrams, starts, ends, decoded)
        batch = Batch(datagrams.buffer, decoded.messages, np.arange(len(decoded.messages)))
        self._connections.begin_batch()
        known = [self._domains.get(key, _UNKNOWN) for key in batch.keys]
        for group in self._grouped(_Run(batch, sets, decoded, _unsteady(batch, known))):
            self._decode_records(group, decoded)
        self._messages += len(decoded.messages)
        return decoded

    def restore(self, key: DomainKey, domain: Domain) -> None:
        """Remember a domain as it was before nettop was started; to be called before the first batch."""
        remembered = self._domain(key)
        remembered.sampling, remembered.boot_ms = domain.sampling, domain.boot_ms
        remembered.exporters = domain.exporters
        self._count_fields(remembered, len(domain.sampling))
        self._note_sampling(key, remembered)
        for template in domain.templates.values():
            self._set(key, template)

    def forget_waiting(self) -> Counter[DomainKey]:
        """Drop all sets that wait for their template. Returns how many they were, by domain."""
        dropped, self._held = Counter(self._held.waiting), HeldSets()
        return dropped

    def _grouped(self, run: _Run) -> list[_Group]:
        """The data sets by the template that was valid when they came. Those that have none are held."""
        batch, sets = run.batch, run.sets
        for at in as_list(np.flatnonzero(sets.id < FIRST_DATA_SET)):
            message = int(sets.message[at])
            domain = int(batch.domains[message])
            key = batch.keys[domain]
            content = batch.buffer[sets.start[at] : sets.end[at]].tobytes()
            stated = _stated_before if len(content) <= _STATEMENT_MOST else _stated
            changes, is_whole = stated(key[2], int(sets.id[at]), content)
            counts = run.decoded.counts[message]
            counts["templates"] += len(changes)
            counts["broken"] += not is_whole
            for change in changes:
                if isinstance(change, Template) and self._templates(key).get(change.id) == change:
                    run.repeated[domain, change.id] = message
                    continue
                for template_id in self._changed_by(key, change):
                    self._give_template(run, domain, template_id, run.taken(domain, template_id, at))
                run.released += self._apply(key, change, message, run.decoded)
                self._note(run, domain, change.id, message)
        for domain, set_id, places in run.rest():
            self._give_template(run, domain, set_id, places)
        for (domain, template_id), message in run.repeated.items():
            self._note(run, domain, template_id, message)
        return run.groups()

    def _note(self, run: _Run, domain: int, template_id: int, message: int) -> None:
        """Note which message has declared a template, if it is known."""
        known = self._domains.get(run.batch.keys[domain], _UNKNOWN)
        if template_id in known.templates:
            header = run.batch.messages[message]
            known.declared.pop(template_id, None)
            known.declared[template_id] = Declared(
                self._messages + message, int(header["boot_ms"]), int(header["sequence"])
            )

    def _give_template(self, run: _Run, domain: int, set_id: int, places: Index) -> None:
        """The template that is valid now to sets of one domain and ID; those for which none is wait."""
        if not len(places):
            return
        key = run.batch.keys[domain]
        template: Template | None = self._templates(key).get(set_id)
        if template is not None and not run.is_unsteady[domain]:
            run.add(template, domain, places)
            return
        sets = run.sets.at(places)
        if template is None:
            template, has_template = self._of_other_port(key, set_id, run.batch, sets)
        else:
            has_template = self._before_restart(key, template, run.batch, sets)
        if template is not None and has_template.any():
            run.add(template, domain, places[has_template])
        if not has_template.all():
            self._hold(run.batch, sets.at(~has_template), run.decoded)

    def _before_restart(self, key: DomainKey, template: Template, batch: Batch, sets: Sets) -> Mask:
        """Which sets came before their exporter restarted, and used a template for something else that it had declared.

        That template is removed.
        """
        domain = self._domains[key]
        declared = domain.declared.get(template.id)
        # Some exporters pad with whatever was there before: alone that is no sign.
        contradicts = ~_fit(template, batch.buffer, sets, padding=0 if declared else _PADDING_MAX)
        if declared and contradicts.any():
            ahead = _ahead(batch, sets, declared)
            # A number that is a little lower is that of a datagram which was overtaken.
            begins_anew = (ahead <= 0) & (batch.messages["sequence"][sets.message] < _FIRST_NUMBERS)
            contradicts &= self._is_later(sets, declared) & ((ahead == _OTHER_START) | begins_anew)
        if not contradicts.any():
            return ~contradicts
        self._remove(domain, template.id)
        still_fit: Mask = np.cumsum(contradicts) == 0
        return still_fit

    def _is_later(self, sets: Sets, declared: Declared) -> Mask:
        """Which sets came after a message."""
        is_later: Mask = self._messages + sets.message > declared.number
        return is_later

    def _of_other_port(
        self, key: DomainKey, set_id: int, batch: Batch, sets: Sets
    ) -> tuple[Template | None, Mask]:
        """A template that the same exporter has declared from another port, and which sets may have it."""
        of_sets: Mask = np.zeros(len(sets), bool)
        found: dict[Template, None] = {}
        ports = reversed(self._ports.get(_without_port(key), {}))
        for port in islice((port for port in ports if port != key[1]), PORTS_MAX):
            domain = self._domains[key[0], port, key[2], key[3]]
            template = domain.templates.get(set_id)
            if template is not None:
                goes_on = _fit(template, batch.buffer, sets)
                if declared := domain.declared.get(set_id):
                    goes_on &= self._is_later(sets, declared) & (_ahead(batch, sets, declared) >= 0)
                if goes_on.any():
                    self._domain((key[0], port, key[2], key[3]))
                    found[template], of_sets = None, of_sets | goes_on
        # Two that differ are of several exporters behind one address, or of one before it changed them.
        if len(found) != 1:
            return None, np.zeros(len(sets), bool)
        return next(iter(found)), of_sets

    # --- templates ----------------------------------------------------------------------------------------------

    def _domain(self, key: DomainKey) -> Domain:
        """What is known of a domain, which counts as used now."""
        domain = self._domains.pop(key, None)
        if domain is None:
            domain = Domain()
            self._ports.setdefault(_without_port(key), {})[key[1]] = None
        self._domains[key] = domain
        if len(self._domains) > DOMAINS_MAX:
            self._forget(next(iter(self._domains)))
        return domain

    def _templates(self, key: DomainKey) -> Mapping[int, Template]:
        """The templates of a domain, which counts as used now if it has any."""
        return self._domain(key).templates if key in self._domains else _UNKNOWN.templates

    def _forget(self, key: DomainKey) -> None:
        self._fields -= self._domains.pop(key).fields
        exporter = _without_port(key)
        _remove_from(self._ports, exporter, key[1])
        _remove_from(self._samplers, key[0], key)
        self.dropped["domains"] += 1
        self.changes += 1

    def _changed_by(self, key: DomainKey, change: Template | Withdrawal) -> list[int]:
        """The IDs of the templates that a change concerns."""
        if isinstance(change, Template):
            return [change.id]
        domain = self._domain(key) if key in self._domains else _UNKNOWN
        of_kind = domain.of_kind[change.of_options]
        if change.is_of_all:
            return list(of_kind)
        return [change.id] if change.id in of_kind else []

    def _set(self, key: DomainKey, template: Template) -> None:
        """Remember a template; equal ones of different domains are one object."""
        if len(self._shared) >= SHARED_MAX:
            self._shared.clear()
        domain = self._domain(key)
        self._remove(domain, template.id)
        domain.templates[template.id] = self._shared.setdefault(template, template)
        domain.of_kind[template.of_options][template.id] = None
        self._count_fields(domain, len(template.fields))
        self.changes += 1

    def _count_fields(self, domain: Domain, more: int) -> None:
        """Count so many fields more of a domain, the one used last, and make room for them."""
        domain.fields += more
        self._fields += more
        while domain.fields > DOMAIN_FIELDS_MAX and len(domain.templates) > 1:
            self._remove(domain, next(iter(domain.templates)))
            self.dropped["templates"] += 1
        while self._fields > FIELDS_MAX and len(self._domains) > 1:
            self._forget(next(iter(self._domains)))

    def _remove(self, domain: Domain, template_id: int) -> None:
        removed = domain.templates.pop(template_id, None)
        domain.declared.pop(template_id, None)
        if removed:
            del domain.of_kind[removed.of_options][template_id]
            domain.fields -= len(removed.fields)
            self._fields -= len(removed.fields)
            self.changes += 1

    def _apply(
        self, key: DomainKey, change: Template | Withdrawal, message: int, decoded: Decoded
    ) -> list[_Group]:
        """Change the domain's templates. Returns the sets that have waited for this, whose template has come now."""
        if isinstance(change, Withdrawal):
            for template_id in self._changed_by(key, change):
                self._remove(self._domain(key), template_id)
            return []
        self._set(key, change)
        waiting = self._held.take(key, change.id)
        if not waiting:
            return []
        decoded.counts["released"][message] += len(waiting)
        content = np.frombuffer(b"".join(held.content for held in waiting), np.uint8)
        ends = np.cumsum([len(held.content) for held in waiting])
        starts = np.concatenate([[0], ends[:-1]])
        messages = np.concatenate([held.message for held in waiting])
        batch = Batch(content, messages, np.full(len(waiting), message))
        sets = Sets(np.arange(len(waiting)), np.full(len(waiting), change.id), starts, ends)
        return [_Group(batch, change, sets, is_released=True)]

    # --- sets without a template --------------------------------------------------------------------------------

    def _hold(self, batch: Batch, sets: Sets, decoded: Decoded) -> None:
        for message, set_id, start, end in zip(
            *map(as_list, (sets.message, sets.id, sets.start, sets.end)), strict=True
        ):
            held = Held(batch.messages[message : message + 1].copy(), batch.buffer[start:end].tobytes())
            decoded.forgotten.update(self._held.add(batch.keys[batch.domains[message]], set_id, held))
        decoded.count("held", sets.message)

    # --- data ---------------------------------------------------------------------------------------------------

    def _decode_records(self, group: _Group, decoded: Decoded) -> None:
        batch, template, sets = group.batch, group.template, group.sets
        distinct, of_sets = np.unique(batch.domains[sets.message], return_inverse=True)
        keys = [batch.keys[domain] for domain in as_list(distinct)]
        domains = [self._domains.get(key, _UNKNOWN) for key in keys]
        templates = domains[0].templates if template.has_lists else {}
        which, fields, broken = laid_out(batch.buffer, template, sets.start, sets.end, templates)
        of, messages = of_sets[which], sets.message[which]
        counted_at = batch.counted_at[messages]
        decoded.count("broken", batch.counted_at[sets.message[broken]])
        if not group.is_released:
            decoded.count("units", counted_at)
            if template.of_options:
                decoded.count("unit_options", counted_at)
        boot_ms = np.array([domain.boot_ms for domain in domains], np.int64)
        records = _records(batch, messages, fields, boot_ms[of])
        if template.of_options:
            decoded.count("options", counted_at)
            self._read_options(keys[0], records)
            return
        decoded.count("records", counted_at)
        announced = [self._announced(key) for key in keys]
        exporters = _exporters(batch.messages["exporter"][messages], [each.exporter for each in domains], of)

        def count_once(forward: Flows, backward: Flows) -> None:
            if FIREWALL_EVENT in fields:
                keys = _connection_keys(batch.messages[messages], records, forward)
                self._connections.count_once(keys, records.number(FIREWALL_EVENT)[0], forward, backward)

        for at, flows in decoded_flows(records, count_once):
            named = flows.get("exporter")
            flows |= {name: batch.messages[name][messages[at]] for name in _OF_MESSAGE}
            flows["exporter"] = exporters[at]
            if named is not None:
                flows["exporter"] = np.where(says_nothing(named), exporters[at], named)
            flows["sampling_rate"] = sampling_rates(records, at, flows, announced, of)
            decoded.parts.append(flows)
            decoded.rows.append(len(at))
            decoded.of.append(counted_at[at])

    def _announced(self, key: DomainKey) -> Announced:
        """What is known of sampling in a domain: where it has said nothing itself, what others of its exporter have.

        These are domains of the same port, and where it has declared no templates the same domain from other ports.
        """
        domain = self._domains.get(key, _UNKNOWN)
        sender, port, version, number = key
        if domain.sampling or sender not in self._samplers:
            return Announced(domain.sampling)
        others = [
            self._domains[other].sampling
            for other in islice(reversed(self._samplers[sender]), SAMPLERS_MAX)
            if other[2] == version and (other[1] == port or (other[3] == number and not domain.templates))
        ]
        return Announced(domain.sampling, others)

    def _note_sampling(self, key: DomainKey, domain: Domain) -> None:
        if domain.sampling:
            self._samplers.setdefault(key[0], {})[key] = None

    def _read_options(self, key: DomainKey, records: Records) -> None:
        for number, exporter in named_exporters(records):
            relayed = self._domain(key if number is None else (*key[:3], number))
            if exporter not in relayed.exporters and len(relayed.exporters) < _EXPORTERS_MAX:
                relayed.exporters.add(exporter)
                self.changes += 1
        domain = self._domain(key)
        rates_before = len(domain.sampling)
        for what, learned in (
            ("samplers", read_sampling(records, domain.sampling)),
            ("interface names", read_names(records, domain.exporter or key[0], self.names)),
        ):
            self.changes += learned.changed
            if learned.dropped:
                self.dropped[what] += learned.dropped
        self._count_fields(domain, len(domain.sampling) - rates_before)
        self._note_sampling(key, domain)
        started_ms, known = _started_ms(records)
        if known.any():
            boot_ms = int(started_ms[known][-1])
            self.changes += boot_ms != domain.boot_ms
            domain.boot_ms = boot_ms


def _exporters(senders: Array, relayed: list[bytes], of: Index) -> Array:
    """Who exported each record (n,): its sender, or the one that its domain's relay has named. `of` are the domains."""
    is_relayed = np.array([bool(exporter) for exporter in relayed])[of]
    named = np.array([np.void(exporter or bytes(16)) for exporter in relayed], ADDRESS)[of]
    return np.where(is_relayed, named, senders)


def _remove_from(groups: dict[_Named, dict[_Member, None]], group: _Named, member: _Member) -> None:
    """Remove a member, and the group if it was the last."""
    members = groups.get(group, {})
    members.pop(member, None)
    if not members:
        groups.pop(group, None)


def _without_port(key: DomainKey) -> ExporterKey:
    sender, _, version, number = key
    return sender, version, number


def _ahead(batch: Batch, sets: Sets, of: Declared) -> Array:
    """By how much sets are ahead of the message that has declared a template, as `_progress` says."""
    rows = batch.messages[sets.message]
    return _progress(rows["boot_ms"], rows["sequence"], of.boot_ms, of.sequence)


def _progress(
    boot_ms: Array, sequences: Array, earlier_boot_ms: Array | int, earlier_sequences: Array | int
) -> Array:
    """By how much sequence numbers are ahead of earlier ones; _OTHER_START if the exporter has started in between."""
    has_started = np.abs(_signed(boot_ms - earlier_boot_ms)) > _SAME_START_MS
    return np.where(has_started, _OTHER_START, _signed(sequences.astype(np.int64) - earlier_sequences))


def _signed(differences: Array) -> Array:
    """Differences of numbers that begin anew after 32 bits."""
    signed: Array = (differences + (1 << 31)) % (1 << 32) - (1 << 31)
    return signed


def _unsteady(batch: Batch, known: Sequence[Domain]) -> Mask:
    """Which domains have messages that do not go on from each other, or from the one that last declared a template.

    Where templates are from before nettop was started, that is not known.
    """
    order = np.argsort(batch.domains, kind="stable")
    boot_ms, sequences = (batch.messages[name][order].astype(np.int64) for name in ("boot_ms", "sequence"))
    earlier_boot_ms, earlier_sequences = np.roll(boot_ms, 1), np.roll(sequences, 1)
    domains = batch.domains[order]
    firsts = np.searchsorted(domains, np.arange(len(known)))
    earlier_boot_ms[firsts], earlier_sequences[firsts] = boot_ms[firsts], sequences[firsts] - 1
    for first, domain in zip(as_list(firsts), known, strict=True):
        if domain.declared:
            _, earlier_boot_ms[first], earlier_sequences[first] = next(reversed(domain.declared.values()))
    is_unsteady = np.array([len(domain.declared) < len(domain.templates) for domain in known], bool)
    is_unsteady[domains[_progress(boot_ms, sequences, earlier_boot_ms, earlier_sequences) <= 0]] = True
    return is_unsteady


def _fit(template: Template, buffer: Array, sets: Sets, padding: int = 0) -> Mask:
    """Which sets have whole records of a template, and after them nothing but zeros, or so many bytes of `padding`.

    Records of various lengths say by themselves where they end: their sets are taken to fit.
    """
    fit = np.ones(len(sets), bool)
    left = (sets.end - sets.start) % template.least_length
    if template.is_fixed and left.any():
        for at in range(_LOOKED_AT):
            for places in (sets.end - left + at, sets.end - 1 - at):
                fit &= (left <= at) | (buffer[np.where(left <= at, 0, places)] == 0)
        fit |= left <= padding
    return fit


_OF_MESSAGE = ("received", "domain", "protocol_version", "sequence")
"""Columns that are of the message."""


def _headers(datagrams: Datagrams, which: Index, version: int) -> tuple[Decoded, Index, Index]:
    """The messages whose header is there, and where the sets of each begin and end."""
    buffer, header = datagrams.buffer, HEADERS[version]
    starts, ends = datagrams.starts[which], datagrams.ends[which]
    is_whole = ends - starts >= header
    if version == IPFIX:
        lengths = np.zeros(len(which), np.intp)
        lengths[is_whole] = numbers(buffer, starts[is_whole] + 2, 2).astype(np.intp)
        is_cut = lengths > ends - starts
        is_whole &= lengths >= header
        ends = np.minimum(ends, starts + lengths)
    else:
        is_cut = np.zeros(len(which), bool)
    which, starts, ends = which[is_whole], starts[is_whole], ends[is_whole]
    messages = np.zeros(len(which), MESSAGE)
    messages["received"] = datagrams.received_ns[which] // 1_000_000
    messages["exporter"] = datagrams.senders[which]
    messages["port"] = datagrams.ports[which]
    messages["protocol_version"] = version
    if version == NETFLOW_9:
        uptime, seconds, sequence, domain = (numbers(buffer, starts + at, 4) for at in (4, 8, 12, 16))
    else:
        seconds, sequence, domain = (numbers(buffer, starts + at, 4) for at in (4, 8, 12))
    messages["export_ms"] = exported_ms(seconds.astype(np.int64) * 1000, messages["received"])
    messages["boot_ms"] = messages["export_ms"] - uptime.astype(np.int64) if version == NETFLOW_9 else -1
    messages["sequence"], messages["domain"] = sequence, domain
    counts = np.zeros(len(which), COUNTS)
    # What is there of a message that says to be longer is decoded.
    counts["broken"] = is_cut[is_whole]
    unread = int(np.count_nonzero(~is_whole))
    return Decoded(which, messages, counts, unread), starts + header, ends


def _stated(version: int, set_id: int, content: bytes) -> tuple[tuple[Template | Withdrawal, ...], bool]:
    """What a set says of templates, and whether all of it could be read."""
    if set_id not in (TEMPLATES[version], TEMPLATES[version] + 1):
        return (), False
    stated: list[Template | Withdrawal] = []
    try:
        stated.extend(parsed_templates(version, set_id, content))
    except Malformed:
        return tuple(stated), False
    return tuple(stated), True


_stated_before = lru_cache(_STATEMENTS_MAX)(_stated)


def _records(batch: Batch, messages: Index, fields: Fields, of_domain_ms: Array) -> Records:
    """The records of these messages, with the best that is known of when their exporter began."""
    of_message_ms = batch.messages["boot_ms"][messages]
    boot_ms = np.where(of_message_ms < 0, of_domain_ms, of_message_ms)
    is_of_ntop = any(enterprise == NTOP for enterprise, _ in fields)
    has_both = is_of_ntop or bool((batch.messages["protocol_version"] == NETFLOW_9).all())
    records = Records(batch.buffer, batch.messages["export_ms"][messages], boot_ms, fields, has_both)
    if SYSTEM_INIT in fields:
        started_ms, known = _started_ms(records)
        boot_ms[known] = started_ms[known]
    return records


def _connection_keys(messages: Array, records: Records, flows: Flows) -> Array:
    """Return what the connection of each record is known by."""
    keys = np.zeros(len(records), CONNECTION_KEY)
    for name in ("exporter", "domain"):
        keys[name] = messages[name]
    for name in ("src", "dst", "src_port", "dst_port", "protocol"):
        if name in flows:
            keys[name] = flows[name]
    keys["connection"], _ = records.number(CONNECTION)
    return keys


def _started_ms(records: Records) -> tuple[Array, Mask]:
    """Return when the exporters of records began, as these say, and which say a time that can be."""
    started_ms, known = records.number(SYSTEM_INIT)
    return started_ms, known & (started_ms >= TIME_MIN_MS) & (started_ms <= TIME_MAX_MS)


def _sets(datagrams: Datagrams, starts: Index, ends: Index, decoded: Decoded) -> Sets:
    """All sets of these messages, in their order: the first of every message, then the second, and so on."""
    buffer, datagram_ends = datagrams.buffer, datagrams.ends[decoded.which]
    parts = []
    message, at = np.arange(len(starts)), starts
    while len(message):
        has_more = ends[message] - at >= SET_HEADER
        message, at = message[has_more], at[has_more]
        ids, lengths = (numbers(buffer, at + place, 2).astype(np.intp) for place in (0, 2))
        is_padding = (ids == 0) & (lengths == 0)
        # A message may say to be shorter than its last set, all of which has come.
        is_whole = (lengths >= SET_HEADER) & (at + lengths <= datagram_ends[message])
        is_sound = is_whole & (at + lengths <= ends[message])
        decoded.count("broken", message[~is_sound & ~is_padding])
        message, at, ids, lengths = (each[is_whole] for each in (message, at, ids, lengths))
        parts.append((message, ids, at + SET_HEADER, at + lengths))
        at = at + lengths
    if not parts:
        nothing = np.zeros(0, np.intp)
        return Sets(nothing, nothing, nothing, nothing)
    sets = Sets(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))
    return sets.at(np.lexsort((sets.start, sets.message)))
