# SPDX-License-Identifier: Apache-2.0
"""Decode NetFlow v9 (RFC 3954) and IPFIX (RFC 7011): messages of sets whose records follow declared templates.

The decoder takes a batch of messages at once. It first assigns each data set the template in force when the set
arrived. Then it decodes the records of each template together across domains, as routers of one model declare the same
templates.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from nettop.collector.columns import ADDRESS, Flows
from nettop.collector.decode.batch import Batch, DomainKey
from nettop.collector.decode.connections import KEY as CONNECTION_KEY
from nettop.collector.decode.connections import ReportedCounters
from nettop.collector.decode.domains import Domains
from nettop.collector.decode.elements import CONNECTION, FIREWALL_EVENT, NTOP, SYSTEM_INIT
from nettop.collector.decode.framing import Messages, Sets, begins_anew, read_messages
from nettop.collector.decode.held import Held, HeldSets
from nettop.collector.decode.layout import Fields, fits, locate_records
from nettop.collector.decode.options import sampling_rates
from nettop.collector.decode.records import Records, is_zero, started_ms_of
from nettop.collector.decode.rows import decode_flows
from nettop.collector.decode.templates import (
    FIRST_DATA_SET,
    NETFLOW_9,
    TEMPLATES,
    Malformed,
    Template,
    Withdrawal,
    parse_templates,
)
from nettop.snapshots.arrays import Array, Index, Mask, as_list, take_rows

_CACHED_SETS_MAX, _CACHED_SET_BYTES_MAX = 256, 1024
"""Size of the cache of parsed template sets, and the longest set cached. Some exporters repeat them in every datagram.
"""


_PADDING_MAX = 3
"""Maximum number of bytes that pad a set to a multiple of four. Some exporters pad with leftover bytes."""


@dataclass(frozen=True, eq=False)
class _DataSets:
    """Data sets of one template; released ones were waiting for it."""

    messages: Messages
    template: Template
    sets: Sets
    is_released: bool = False


class _MessageRun:
    """A batch of messages during the grouping of its data sets by template."""

    def __init__(self, batch: Batch, messages: Messages, sets: Sets) -> None:
        self.batch, self.messages, self.sets = batch, messages, sets
        self.released: list[_DataSets] = []
        self._groups: dict[tuple[int, int], tuple[Template, list[Index]]] = {}
        which = np.flatnonzero(sets.id >= FIRST_DATA_SET)
        codes = messages.domains[sets.message[which]] << 16 | sets.id[which]
        order = np.argsort(codes, kind="stable")
        self._places = which[order]
        distinct, firsts = np.unique(codes[order], return_index=True)
        ends = [*firsts[1:].tolist(), len(order)]
        self._left = dict(zip(distinct.tolist(), zip(firsts.tolist(), ends, strict=False), strict=True))
        """Range of places not yet taken, by domain and set ID."""

    def taken(self, domain: int, set_id: int, until: int) -> Index:
        """Take the data sets of a domain and ID that come before `until`; each is taken once."""
        first, end = self._left.get(domain << 16 | set_id, (0, 0))
        middle = first + int(np.searchsorted(self._places[first:end], until))
        if middle > first:
            self._left[domain << 16 | set_id] = middle, end
        return self._places[first:middle]

    def rest(self) -> Iterator[tuple[int, int, Index]]:
        """Yield all data sets not yet taken: domain, ID and places."""
        for code, (first, end) in self._left.items():
            if first < end:
                yield code >> 16, code & 0xFFFF, self._places[first:end]

    def add(self, template: Template, domain: int, places: Index) -> None:
        """Add data sets of a domain to the group of their template."""
        is_alone = template.of_options or template.has_lists
        _, of_group = self._groups.setdefault((id(template), domain if is_alone else -1), (template, []))
        of_group.append(places)

    def groups(self) -> list[_DataSets]:
        """Return all groups, options first, because options apply to all flows of the batch."""
        of_batch = [
            _DataSets(self.messages, template, self.sets.at(np.concatenate(places)))
            for template, places in self._groups.values()
        ]
        return sorted(self.released + of_batch, key=lambda group: not group.template.of_options)


class MessageDecoder:
    """Decoder of messages; `known` is the state that later messages depend on."""

    def __init__(self) -> None:
        self.known = Domains()
        self._held = HeldSets()
        self._connections = ReportedCounters(self.known.dropped)

    @property
    def waiting(self) -> Mapping[DomainKey, int]:
        """Number of sets that wait for their template, by domain."""
        return self._held.waiting

    def read(self, batch: Batch, which: Index, version: int) -> None:
        """Decode the flows in these datagrams, all of one version."""
        run = _MessageRun(batch, *read_messages(batch, which, version))
        self._connections.begin_batch()
        for group in self._group_sets(run):
            self._decode_records(group, batch)
        batch.headers["is_exact"][which] &= batch.headers["broken"][which] == 0

    def forget_waiting(self) -> Counter[DomainKey]:
        """Drop all sets that wait for their template. Return how many, by domain."""
        dropped, self._held = Counter(self._held.waiting), HeldSets()
        return dropped

    def _group_sets(self, run: _MessageRun) -> list[_DataSets]:
        """Group data sets by the template in force when they arrived. Hold those without one."""
        messages, sets = run.messages, run.sets
        is_template = sets.id < FIRST_DATA_SET
        is_anew = begins_anew(messages, sets, [self.known.get(key).last for key in messages.keys])
        for at in as_list(np.flatnonzero(is_template | is_anew)):
            domain = int(messages.domains[sets.message[at]])
            if is_anew[at]:
                self.known.distrust(messages.keys[domain])
            if is_template[at]:
                self._read_templates(run, domain, at)
        for domain, set_id, places in run.rest():
            self._assign_template(run, domain, set_id, places)
        self.known.note_last(messages.keys, messages.domains, messages.headers)
        return run.groups()

    def _read_templates(self, run: _MessageRun, domain: int, at: int) -> None:
        """Apply the templates and withdrawals in one set of a domain."""
        messages, sets = run.messages, run.sets
        key, counted_at = messages.keys[domain], int(messages.counted_at[sets.message[at]])
        content = messages.buffer[sets.start[at] : sets.end[at]].tobytes()
        parse = _parse_cached if len(content) <= _CACHED_SET_BYTES_MAX else _parse_template_set
        changes, is_whole = parse(key[2], int(sets.id[at]), content)
        run.batch.counts["templates"] += len(changes)
        run.batch.headers["broken"][counted_at] += not is_whole
        for change in changes:
            if self.known.repeats(key, change):
                continue
            for template_id in self.known.changed_by(key, change):
                self._assign_template(run, domain, template_id, run.taken(domain, template_id, at))
                self.known.remove(self.known.get(key), template_id)
            if isinstance(change, Template):
                self.known.set(key, change)
                run.released += self._released(key, change, counted_at, run.batch)

    def _assign_template(self, run: _MessageRun, domain: int, set_id: int, places: Index) -> None:
        """Assign sets of one domain and ID the template now in force; hold those without one."""
        if not len(places):
            return
        sets = run.sets.at(places)
        template, has_template = self._template_of(
            run.messages.keys[domain], set_id, run.messages.buffer, sets
        )
        if template is not None and has_template.any():
            run.add(template, domain, places[has_template])
        if not has_template.all():
            self._hold(run.batch, run.messages, sets.at(~has_template))

    def _template_of(
        self, key: DomainKey, set_id: int, buffer: Array, sets: Sets
    ) -> tuple[Template | None, Mask]:
        """Return the template of sets, and which of them have it.

        A template from before a restart of nettop or the exporter is forgotten from the first set on that it does not
        fit: the exporter has changed it meanwhile.
        """
        template = self.known.templates(key).get(set_id)
        if template is None:
            return self._template_of_other_port(key, set_id, buffer, sets)
        domain = self.known.get(key)
        if set_id in domain.declared:
            return template, np.ones(len(sets.id), bool)
        # After a restart of the exporter, a few more bytes are rather a new field.
        padding = 0 if domain.has_restarted else _PADDING_MAX
        fit: Mask = np.logical_and.accumulate(fits(template, buffer, sets, padding))
        if not fit.all():
            self.known.remove(domain, set_id)
        return template, fit

    def _template_of_other_port(
        self, key: DomainKey, set_id: int, buffer: Array, sets: Sets
    ) -> tuple[Template | None, Mask]:
        """Return the template that the same exporter declared on another port, and which sets it fits."""
        on_ports = (domain.templates.get(set_id) for domain in self.known.of_other_ports(key))
        found = {template: fits(template, buffer, sets) for template in on_ports if template is not None}
        found = {template: fit for template, fit in found.items() if fit.any()}
        # If two differ, several exporters share the address, or one exporter changed its templates.
        return next(iter(found.items())) if len(found) == 1 else (None, np.zeros(len(sets.id), bool))

    def _released(self, key: DomainKey, template: Template, counted_at: int, batch: Batch) -> list[_DataSets]:
        """Return the held sets that a new template releases."""
        waiting = self._held.take(key, template.id)
        if not waiting:
            return []
        batch.counts["released"] += len(waiting)
        content = np.frombuffer(b"".join(held.content for held in waiting), np.uint8)
        ends = np.cumsum([len(held.content) for held in waiting])
        starts = np.concatenate([[0], ends[:-1]])
        headers = np.concatenate([held.header for held in waiting])
        messages = Messages(content, headers, np.full(len(waiting), counted_at))
        sets = Sets(np.arange(len(waiting)), np.full(len(waiting), template.id), starts, ends)
        return [_DataSets(messages, template, sets, is_released=True)]

    def _hold(self, batch: Batch, messages: Messages, sets: Sets) -> None:
        for message, set_id, start, end in zip(*map(as_list, sets), strict=True):
            held = Held(messages.headers[message : message + 1].copy(), messages.buffer[start:end].tobytes())
            batch.forgotten.update(self._held.add(messages.keys[messages.domains[message]], set_id, held))
        batch.counts["held"] += len(sets.id)
        # Records that cannot be counted yet, or ever, have sequence numbers as well.
        batch.set(messages.counted_at[sets.message], is_exact=False)

    # --- data ---------------------------------------------------------------------------------------------------

    def _decode_records(self, group: _DataSets, batch: Batch) -> None:
        messages, template, sets = group.messages, group.template, group.sets
        distinct, of_sets = np.unique(messages.domains[sets.message], return_inverse=True)
        keys = [messages.keys[domain] for domain in as_list(distinct)]
        templates = self.known.get(keys[0]).templates if template.has_lists else {}
        which, fields, broken = locate_records(messages.buffer, template, sets.start, sets.end, templates)
        of, message = of_sets[which], sets.message[which]
        counted_at = messages.counted_at[message]
        batch.tally("broken", messages.counted_at[sets.message[broken]])
        if not group.is_released:
            batch.tally("units", counted_at)
        boot_ms = np.array([self.known.started_ms(key) for key in keys], np.int64)
        headers = take_rows(messages.headers, message)
        records = _records(messages.buffer, headers, fields, boot_ms[of])
        if template.of_options:
            batch.tally("options", counted_at)
            self.known.read_options(keys[0], records)
        else:
            batch.counts["records"] += len(counted_at)
            for at, flows in self._flows(records, headers, keys, of, template.id):
                batch.add(flows, counted_at[at])

    def _flows(
        self, records: Records, headers: Array, keys: list[DomainKey], of: Index, template_id: int
    ) -> Iterator[tuple[Index, Flows]]:
        """Yield the flows in data records, and each one's record. `of` is the index of each record's domain."""
        announced = [self.known.announced(key) for key in keys]
        exporters = _exporters(headers["exporter"], [self.known.get(key).exporter for key in keys], of)

        def count_once(forward: Flows, backward: Flows) -> None:
            if FIREWALL_EVENT in records.fields:
                connections = _connection_keys(headers, records, forward)
                events, _ = records.number(FIREWALL_EVENT)
                self._connections.count_once(connections, events, forward, backward)

        for at, flows in decode_flows(records, count_once):
            named = flows.get("exporter")
            flows |= {name: headers[name][at] for name in _HEADER_COLUMNS}
            flows["received"] = headers["received_ns"][at] // 1_000_000
            flows["exporter"] = exporters[at]
            if named is not None:
                flows["exporter"] = np.where(is_zero(named), exporters[at], named)
            flows["sampling_rate"] = sampling_rates(
                records, at, flows, announced, of, template_id=template_id
            )
            yield at, flows


def _exporters(senders: Array, relayed: list[bytes], of: Index) -> Array:
    """Return the exporter of each record (n,): its sender, or the one named by its domain's relay. `of` are the
    domains.
    """
    is_relayed = np.array([bool(exporter) for exporter in relayed])[of]
    named = np.array([np.void(exporter or bytes(16)) for exporter in relayed], ADDRESS)[of]
    return np.where(is_relayed, named, senders)


_HEADER_COLUMNS = ("domain", "protocol_version", "sequence")
"""Columns copied from the message header."""


def _parse_template_set(
    version: int, set_id: int, content: bytes
) -> tuple[tuple[Template | Withdrawal, ...], bool]:
    """Parse a template set; return its changes, and whether all of it could be read."""
    if set_id not in (TEMPLATES[version], TEMPLATES[version] + 1):
        return (), False
    stated: list[Template | Withdrawal] = []
    try:
        stated.extend(parse_templates(version, set_id, content))
    except Malformed:
        return tuple(stated), False
    return tuple(stated), True


_parse_cached = lru_cache(_CACHED_SETS_MAX)(_parse_template_set)


def _records(buffer: Array, headers: Array, fields: Fields, of_domain_ms: Array) -> Records:
    """Return the records, given each one's message header, with the best known start time of each exporter."""
    boot_ms = np.where(headers["boot_ms"] < 0, of_domain_ms, headers["boot_ms"])
    is_of_ntop = any(enterprise == NTOP for enterprise, _ in fields)
    has_both = is_of_ntop or bool((headers["protocol_version"] == NETFLOW_9).all())
    records = Records(buffer, headers["export_ms"], boot_ms, fields, has_both)
    if SYSTEM_INIT in fields:
        started_ms, known = started_ms_of(records)
        boot_ms[known] = started_ms[known]
    return records


def _connection_keys(headers: Array, records: Records, flows: Flows) -> Array:
    """Return the connection key of each record."""
    keys = np.zeros(len(records), CONNECTION_KEY)
    for name in ("exporter", "domain"):
        keys[name] = headers[name]
    for name in ("src", "dst", "src_port", "dst_port", "protocol"):
        if name in flows:
            keys[name] = flows[name]
    keys["connection"], _ = records.number(CONNECTION)
    return keys
