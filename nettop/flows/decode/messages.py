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

from nettop.flows.columns import ADDRESS, Flows
from nettop.flows.decode.connections import KEY as CONNECTION_KEY
from nettop.flows.decode.connections import Connections
from nettop.flows.decode.datagrams import Datagrams
from nettop.flows.decode.domains import Declared, DomainKey, Domains
from nettop.flows.decode.elements import CONNECTION, FIREWALL_EVENT, NTOP, SYSTEM_INIT
from nettop.flows.decode.framing import Batch, Decoded, Sets, read_headers, read_sets
from nettop.flows.decode.held import Held, HeldSets
from nettop.flows.decode.layout import Fields, locate_records
from nettop.flows.decode.options import sampling_rates
from nettop.flows.decode.records import Records, is_zero, started_ms_of
from nettop.flows.decode.restarts import (
    FIRST_NUMBERS,
    OTHER_START,
    PADDING_MAX,
    ahead_of,
    fits,
    unsteady_domains,
)
from nettop.flows.decode.rows import decode_flows
from nettop.flows.decode.templates import (
    FIRST_DATA_SET,
    NETFLOW_9,
    TEMPLATES,
    Malformed,
    Template,
    Withdrawal,
    parse_templates,
)
from nettop.snapshots.arrays import Array, Index, Mask, as_list

_CACHED_SETS_MAX, _CACHED_SET_BYTES_MAX = 256, 1024
"""Size of the cache of parsed template sets, and the longest set cached. Some exporters repeat them in every datagram.
"""


@dataclass(frozen=True, eq=False)
class _Group:
    """Data sets of one template; released ones were waiting for it."""

    batch: Batch
    template: Template
    sets: Sets
    is_released: bool = False


class _Run:
    """A batch during the grouping of its data sets by template.

    Exporters of domains marked `is_unsteady` may have restarted.
    """

    def __init__(self, batch: Batch, sets: Sets, decoded: Decoded, is_unsteady: Mask) -> None:
        self.batch = batch
        self.sets = sets
        self.decoded = decoded
        self.is_unsteady = is_unsteady
        self.released: list[_Group] = []
        self.repeated: dict[tuple[int, int], int] = {}
        """The last message that repeated each known template, by domain and ID."""
        self._groups: dict[tuple[int, int], tuple[Template, list[Index]]] = {}
        which = np.flatnonzero(sets.id >= FIRST_DATA_SET)
        codes = batch.domains[sets.message[which]] << 16 | sets.id[which]
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

    def groups(self) -> list[_Group]:
        """Return all groups, options first, because options apply to all flows of the batch."""
        of_batch = [
            _Group(self.batch, template, self.sets.at(np.concatenate(places)))
            for template, places in self._groups.values()
        ]
        return sorted(self.released + of_batch, key=lambda group: not group.template.of_options)


class MessageDecoder:
    """Decoder of messages; `known` is the state that later messages depend on."""

    def __init__(self) -> None:
        self.known = Domains()
        self._messages = 0
        """Messages decoded before this batch."""
        self._held = HeldSets()
        self._connections = Connections(self.known.dropped)

    @property
    def waiting(self) -> Mapping[DomainKey, int]:
        """Number of sets that wait for their template, by domain."""
        return self._held.waiting

    def decode(self, datagrams: Datagrams, which: Index, version: int) -> Decoded:
        """Decode the flows in these datagrams, all of one version."""
        decoded, starts, ends = read_headers(datagrams, which, version)
        sets = read_sets(datagrams, starts, ends, decoded)
        batch = Batch(datagrams.buffer, decoded.messages, np.arange(len(decoded.messages)))
        self._connections.begin_batch()
        self.known.begin_batch()
        known = [self.known.get(key) for key in batch.keys]
        for group in self._group_sets(_Run(batch, sets, decoded, unsteady_domains(batch, known))):
            self._decode_records(group, decoded)
        self._messages += len(decoded.messages)
        return decoded

    def forget_waiting(self) -> Counter[DomainKey]:
        """Drop all sets that wait for their template. Return how many, by domain."""
        dropped, self._held = Counter(self._held.waiting), HeldSets()
        return dropped

    def _group_sets(self, run: _Run) -> list[_Group]:
        """Group data sets by the template in force when they arrived. Hold those without one."""
        batch, sets = run.batch, run.sets
        for at in as_list(np.flatnonzero(sets.id < FIRST_DATA_SET)):
            message = int(sets.message[at])
            domain = int(batch.domains[message])
            key = batch.keys[domain]
            content = batch.buffer[sets.start[at] : sets.end[at]].tobytes()
            stated = _parse_cached if len(content) <= _CACHED_SET_BYTES_MAX else _parse_template_set
            changes, is_whole = stated(key[2], int(sets.id[at]), content)
            counts = run.decoded.counts[message]
            counts["templates"] += len(changes)
            counts["broken"] += not is_whole
            for change in changes:
                if isinstance(change, Template) and self.known.templates(key).get(change.id) == change:
                    run.repeated[domain, change.id] = message
                    continue
                for template_id in self.known.changed_by(key, change):
                    self._assign_template(run, domain, template_id, run.taken(domain, template_id, at))
                run.released += self._apply(key, change, message, run.decoded)
                self._note_declaration(run, domain, change.id, message)
        for domain, set_id, places in run.rest():
            self._assign_template(run, domain, set_id, places)
        for (domain, template_id), message in run.repeated.items():
            self._note_declaration(run, domain, template_id, message)
        return run.groups()

    def _note_declaration(self, run: _Run, domain: int, template_id: int, message: int) -> None:
        """Record the message that declared a template, if the template is known."""
        known = self.known.get(run.batch.keys[domain])
        if template_id in known.templates:
            header = run.batch.messages[message]
            known.declared.pop(template_id, None)
            known.declared[template_id] = Declared(
                self._messages + message, int(header["boot_ms"]), int(header["sequence"])
            )

    def _assign_template(self, run: _Run, domain: int, set_id: int, places: Index) -> None:
        """Assign sets of one domain and ID the template now in force; hold those without one."""
        if not len(places):
            return
        key = run.batch.keys[domain]
        template: Template | None = self.known.templates(key).get(set_id)
        if template is not None and not run.is_unsteady[domain]:
            run.add(template, domain, places)
            return
        sets = run.sets.at(places)
        if template is None:
            template, has_template = self._template_of_other_port(key, set_id, run.batch, sets)
        else:
            has_template = self._before_restart(key, template, run.batch, sets)
        if template is not None and has_template.any():
            run.add(template, domain, places[has_template])
        if not has_template.all():
            self._hold(run.batch, sets.at(~has_template), run.decoded)

    def _before_restart(self, key: DomainKey, template: Template, batch: Batch, sets: Sets) -> Mask:
        """Return which sets arrived before their exporter restarted and reused a template ID for something else.

        If any arrived after the restart, forget the template.
        """
        domain = self.known.get(key)
        declared = domain.declared.get(template.id)
        # Some exporters pad with leftover bytes, so a bad fit alone proves nothing.
        contradicts = ~fits(template, batch.buffer, sets, padding=0 if declared else PADDING_MAX)
        if declared and contradicts.any():
            ahead = ahead_of(batch, sets, declared)
            # A slightly lower number belongs to a reordered datagram.
            begins_anew = (ahead <= 0) & (batch.messages["sequence"][sets.message] < FIRST_NUMBERS)
            contradicts &= self._is_later(sets, declared) & ((ahead == OTHER_START) | begins_anew)
        if not contradicts.any():
            return ~contradicts
        self.known.remove(domain, template.id)
        still_fit: Mask = np.cumsum(contradicts) == 0
        return still_fit

    def _is_later(self, sets: Sets, declared: Declared) -> Mask:
        """Return which sets arrived after the declaring message."""
        is_later: Mask = self._messages + sets.message > declared.number
        return is_later

    def _template_of_other_port(
        self, key: DomainKey, set_id: int, batch: Batch, sets: Sets
    ) -> tuple[Template | None, Mask]:
        """Return the template that the same exporter declared on another port, and which sets it applies to."""
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
        # If two differ, several exporters share the address, or one exporter changed its templates.
        if len(found) != 1:
            return None, np.zeros(len(sets), bool)
        return next(iter(found)), of_sets

    def _apply(
        self, key: DomainKey, change: Template | Withdrawal, message: int, decoded: Decoded
    ) -> list[_Group]:
        """Apply a change to the domain's templates. Return the held sets that it releases."""
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
        which, fields, broken = locate_records(batch.buffer, template, sets.start, sets.end, templates)
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

        for at, flows in decode_flows(records, count_once):
            named = flows.get("exporter")
            flows |= {name: batch.messages[name][messages[at]] for name in _MESSAGE_COLUMNS}
            flows["exporter"] = exporters[at]
            if named is not None:
                flows["exporter"] = np.where(is_zero(named), exporters[at], named)
            flows["sampling_rate"] = sampling_rates(
                records, at, flows, announced, of_rates, template_id=template.id
            )
            decoded.parts.append(flows)
            decoded.rows.append(len(at))
            decoded.of.append(counted_at[at])


def _exporters(senders: Array, relayed: list[bytes], of: Index) -> Array:
    """Return the exporter of each record (n,): its sender, or the one named by its domain's relay. `of` are the
    domains.
    """
    is_relayed = np.array([bool(exporter) for exporter in relayed])[of]
    named = np.array([np.void(exporter or bytes(16)) for exporter in relayed], ADDRESS)[of]
    return np.where(is_relayed, named, senders)


_MESSAGE_COLUMNS = ("received", "domain", "protocol_version", "sequence")
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


def _records(batch: Batch, messages: Index, fields: Fields, of_domain_ms: Array) -> Records:
    """Return the records of these messages, with the best known start time of each exporter."""
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
    """Return the connection key of each record."""
    keys = np.zeros(len(records), CONNECTION_KEY)
    for name in ("exporter", "domain"):
        keys[name] = messages[name]
    for name in ("src", "dst", "src_port", "dst_port", "protocol"):
        if name in flows:
            keys[name] = flows[name]
    keys["connection"], _ = records.number(CONNECTION)
    return keys
