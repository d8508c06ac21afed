# SPDX-License-Identifier: Apache-2.0
"""NetFlow v9 (RFC 3954) and IPFIX (RFC 7011): messages of sets, whose records have the form that templates declare.

A batch of messages is decoded at once. First every data set is given the template that was valid when it came, then the
records of each template are decoded together, whichever domains they are of: routers of one model declare the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from nettop.flows.columns import ADDRESS, Flows
from nettop.flows.decode.connections import KEY as CONNECTION_KEY
from nettop.flows.decode.connections import Connections
from nettop.flows.decode.datagrams import Datagrams
from nettop.flows.decode.domains import Declared, DomainKey, Domains
from nettop.flows.decode.elements import CONNECTION, FIREWALL_EVENT, NTOP, SYSTEM_INIT
from nettop.flows.decode.framing import Batch, Decoded, Sets, read_headers, read_sets
from nettop.flows.decode.held import Held, HeldSets
from nettop.flows.decode.layout import Fields, laid_out
from nettop.flows.decode.options import sampling_rates
from nettop.flows.decode.records import Records, says_nothing, started_ms_of
from nettop.flows.decode.restarts import FIRST_NUMBERS, OTHER_START, PADDING_MAX, ahead_of, fits, unsteady
from nettop.flows.decode.rows import decoded_flows
from nettop.flows.decode.templates import (
    FIRST_DATA_SET,
    NETFLOW_9,
    TEMPLATES,
    Malformed,
    Template,
    Withdrawal,
    parsed_templates,
)
from nettop.snapshots.arrays import Index, Mask, as_list
from nettop.snapshots.snapshot import Array

_STATEMENTS_MAX, _STATEMENT_MOST = 256, 1024
"""Sets of templates whose meaning is remembered, and how long they are: some exporters send them in every datagram."""


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
    """Decodes messages; `known` is what they have said of later ones."""

    def __init__(self) -> None:
        self.known = Domains()
        self._messages = 0
        """How many messages have been decoded, before this batch."""
        self._held = HeldSets()
        self._connections = Connections(self.known.dropped)

    @property
    def waiting(self) -> Mapping[DomainKey, int]:
        """How many sets of a domain wait for their template."""
        return self._held.waiting

    def decode(self, datagrams: Datagrams, which: Index, version: int) -> Decoded:
        """The flows in these datagrams, which are of one version."""
        decoded, starts, ends = read_headers(datagrams, which, version)
        sets = read_sets(datagrams, starts, ends, decoded)
        batch = Batch(datagrams.buffer, decoded.messages, np.arange(len(decoded.messages)))
        self._connections.begin_batch()
        self.known.begin_batch()
        known = [self.known.get(key) for key in batch.keys]
        for group in self._grouped(_Run(batch, sets, decoded, unsteady(batch, known))):
            self._decode_records(group, decoded)
        self._messages += len(decoded.messages)
        return decoded

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
                if isinstance(change, Template) and self.known.templates(key).get(change.id) == change:
                    run.repeated[domain, change.id] = message
                    continue
                for template_id in self.known.changed_by(key, change):
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
        known = self.known.get(run.batch.keys[domain])
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
        template: Template | None = self.known.templates(key).get(set_id)
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
        domain = self.known.get(key)
        declared = domain.declared.get(template.id)
        # Some exporters pad with whatever was there before: alone that is no sign.
        contradicts = ~fits(template, batch.buffer, sets, padding=0 if declared else PADDING_MAX)
        if declared and contradicts.any():
            ahead = ahead_of(batch, sets, declared)
            # A number that is a little lower is that of a datagram which was overtaken.
            begins_anew = (ahead <= 0) & (batch.messages["sequence"][sets.message] < FIRST_NUMBERS)
            contradicts &= self._is_later(sets, declared) & ((ahead == OTHER_START) | begins_anew)
        if not contradicts.any():
            return ~contradicts
        self.known.remove(domain, template.id)
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
        for other, domain in self.known.from_other_ports(key):
            template = domain.templates.get(set_id)
            if template is not None:
                goes_on = fits(template, batch.buffer, sets)
                if declared := domain.declared.get(set_id):
                    goes_on &= self._is_later(sets, declared) & (ahead_of(batch, sets, declared) >= 0)
                if goes_on.any():
                    self.known.use(other)
                    found[template], of_sets = None, of_sets | goes_on
        # Two that differ are of several exporters behind one address, or of one before it changed them.
        if len(found) != 1:
            return None, np.zeros(len(sets), bool)
        return next(iter(found)), of_sets

    def _apply(
        self, key: DomainKey, change: Template | Withdrawal, message: int, decoded: Decoded
    ) -> list[_Group]:
        """Change the domain's templates. Returns the sets that have waited for this, whose template has come now."""
        if isinstance(change, Withdrawal):
            for template_id in self.known.changed_by(key, change):
                self.known.remove(self.known.use(key), template_id)
            return []
        self.known.set(key, change)
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
        domains = [self.known.get(key) for key in keys]
        templates = domains[0].templates if template.has_lists else {}
        which, fields, broken = laid_out(batch.buffer, template, sets.start, sets.end, templates)
        of, messages = of_sets[which], sets.message[which]
        counted_at = batch.counted_at[messages]
        decoded.count("broken", batch.counted_at[sets.message[broken]])
        if not group.is_released:
            decoded.count("units", counted_at)
            if template.of_options:
                decoded.count("unit_options", counted_at)
        boot_ms = np.array([self.known.started_ms(key) for key in keys], np.int64)
        records = _records(batch, messages, fields, boot_ms[of])
        if template.of_options:
            decoded.count("options", counted_at)
            self.known.read_options(keys[0], records, counted_at)
            return
        decoded.count("records", counted_at)
        announced, of_rates = self.known.announced_by(keys, of, counted_at)
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
            flows["sampling_rate"] = sampling_rates(
                records, at, flows, announced, of_rates, template_id=template.id
            )
            decoded.parts.append(flows)
            decoded.rows.append(len(at))
            decoded.of.append(counted_at[at])


def _exporters(senders: Array, relayed: list[bytes], of: Index) -> Array:
    """Who exported each record (n,): its sender, or the one that its domain's relay has named. `of` are the domains."""
    is_relayed = np.array([bool(exporter) for exporter in relayed])[of]
    named = np.array([np.void(exporter or bytes(16)) for exporter in relayed], ADDRESS)[of]
    return np.where(is_relayed, named, senders)


_OF_MESSAGE = ("received", "domain", "protocol_version", "sequence")
"""Columns that are of the message."""


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
        started_ms, known = started_ms_of(records)
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
