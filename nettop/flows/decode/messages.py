# SPDX-License-Identifier: Apache-2.0
"""NetFlow v9 (RFC 3954) and IPFIX (RFC 7011): messages of sets, whose records have the form that templates declare.

A batch of messages is decoded at once. Templates, and what options say of their exporter, change what comes after them:
a batch is divided where a set changes something, which is seldom.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from nettop.flows.columns import ADDRESS, Flows
from nettop.flows.decode.datagrams import Datagrams, numbers
from nettop.flows.decode.elements import SYSTEM_INIT
from nettop.flows.decode.layout import Fields, laid_out
from nettop.flows.decode.options import Sampling, read_options
from nettop.flows.decode.records import Records, decoded_flows
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
from nettop.snapshots.arrays import Index, as_list
from nettop.snapshots.snapshot import Array

HEADERS = {NETFLOW_9: 20, IPFIX: 16}
"""The length of a message's header."""
SET_HEADER = 4
HELD_BYTES_MAX = 8 << 20
"""Sets whose template has not come: more are dropped, those first that have waited for longest."""
DOMAINS_MAX = 16_384
"""Observation domains that are remembered: the one that was silent for longest makes room for another."""
FIELDS_MAX = 1 << 20
"""Fields of all templates together, beyond which domains that were silent for longest make room."""

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
"""What is said of a message: times in ms; `boot_ms`, when the exporter began, is negative where it is not known."""


@dataclass(frozen=True, eq=False)
class Sets:
    """Sets in the order in which they came: the place of each one's message, its ID, and where its content lies."""

    message: Index
    id: Array
    start: Index
    end: Index

    def __len__(self) -> int:
        return len(self.id)

    def at(self, which: Index | slice) -> Sets:
        """Some of them."""
        return Sets(self.message[which], self.id[which], self.start[which], self.end[which])


DomainKey = tuple[bytes, int, int, int]
"""An observation domain: sender, port, version, and its number."""


@dataclass(eq=False)
class Domain:
    """What is remembered of an observation domain."""

    templates: dict[int, Template] = field(default_factory=dict)
    sampling: Sampling = field(default_factory=Sampling)
    boot_ms: int = -1


class Batch:
    """Messages that are decoded together: their buffer, what their headers say, and the domain of each.

    `keys` are the distinct domains, `domains` the place there of each message's (n,).
    """

    def __init__(self, buffer: Array, messages: Array) -> None:
        self.buffer = buffer
        self.messages = messages
        each = zip(
            *(as_list(messages[name]) for name in ("exporter", "port", "protocol_version", "domain")),
            strict=True,
        )
        places: dict[DomainKey, int] = {}
        self.domains = np.array([places.setdefault(key, len(places)) for key in each], np.intp)
        self.keys = list(places)


@dataclass(frozen=True, eq=False)
class Held:
    """Sets of one message whose template has not come."""

    message: Array
    content: bytes


@dataclass(eq=False)
class Decoded:
    """What a batch gave: flows in parts, each with its number of rows, and what was counted meanwhile."""

    parts: list[Flows] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    records: int = 0
    options: int = 0
    templates: int = 0
    malformed: int = 0
    """Messages, sets and templates that are not what the protocol allows."""
    held: int = 0
    """Sets that wait for their template."""
    released: int = 0
    """Sets whose template has come."""
    forgotten: int = 0
    """Sets that were dropped before their template came."""


class MessageDecoder:
    """Decodes messages, and remembers what they say of later ones."""

    def __init__(self) -> None:
        self._domains: dict[DomainKey, Domain] = {}
        self._held: dict[tuple[DomainKey, int], list[Held]] = {}
        self._held_bytes = 0
        self._fields = 0

    def decode(self, datagrams: Datagrams, which: Index, version: int) -> Decoded:
        """The flows in these datagrams, which are of one version."""
        decoded = Decoded()
        messages, starts, ends = self._headers(datagrams, which, version, decoded)
        sets = _sets(datagrams.buffer, starts, ends, decoded)
        self._decode_sets(Batch(datagrams.buffer, messages), sets, decoded)
        return decoded

    def _headers(
        self, datagrams: Datagrams, which: Index, version: int, decoded: Decoded
    ) -> tuple[Array, Index, Index]:
        """The messages, and where the sets of each begin and end."""
        buffer, header = datagrams.buffer, HEADERS[version]
        starts, ends = datagrams.starts[which], datagrams.ends[which]
        is_whole = ends - starts >= header
        if version == IPFIX:
            lengths = np.zeros(len(which), np.intp)
            lengths[is_whole] = numbers(buffer, starts[is_whole] + 2, 2).astype(np.intp)
            # What is there of a message that says to be longer may be decoded.
            decoded.malformed += int(np.count_nonzero(lengths > ends - starts))
            is_whole &= lengths >= header
            ends = np.minimum(ends, starts + lengths)
        decoded.malformed += int(np.count_nonzero(~is_whole))
        which, starts, ends = which[is_whole], starts[is_whole], ends[is_whole]
        messages = np.zeros(len(which), MESSAGE)
        messages["received"] = datagrams.received_ns[which] // 1_000_000
        messages["exporter"] = datagrams.senders[which]
        messages["port"] = datagrams.ports[which]
        messages["protocol_version"] = version
        if version == NETFLOW_9:
            uptime, seconds, sequence, domain = (numbers(buffer, starts + at, 4) for at in (4, 8, 12, 16))
            messages["boot_ms"] = seconds.astype(np.int64) * 1000 - uptime.astype(np.int64)
        else:
            seconds, sequence, domain = (numbers(buffer, starts + at, 4) for at in (4, 8, 12))
            messages["boot_ms"] = -1
        messages["export_ms"] = seconds.astype(np.int64) * 1000
        messages["sequence"], messages["domain"] = sequence, domain
        return messages, starts + header, ends

    def _decode_sets(self, batch: Batch, sets: Sets, decoded: Decoded) -> None:
        """Decode sets in their order: those between two that change a domain at once."""
        begin = 0
        for at in np.flatnonzero(sets.id < FIRST_DATA_SET).tolist():
            key = batch.keys[batch.domains[sets.message[at]]]
            content = batch.buffer[sets.start[at] : sets.end[at]].tobytes()
            changes = self._changes(key, int(sets.id[at]), content, decoded)
            if changes:
                self._decode_data(batch, sets.at(slice(begin, at)), decoded)
                begin = at
                for change in changes:
                    self._apply(key, change, decoded)
        self._decode_data(batch, sets.at(slice(begin, None)), decoded)

    # --- templates ----------------------------------------------------------------------------------------------

    def _domain(self, key: DomainKey) -> Domain:
        """What is known of a domain, which counts as used now."""
        domain = self._domains.pop(key, None) or Domain()
        self._domains[key] = domain
        if len(self._domains) > DOMAINS_MAX:
            self._forget(next(iter(self._domains)))
        return domain

    def _forget(self, key: DomainKey) -> None:
        domain = self._domains.pop(key)
        self._fields -= sum(len(template.fields) for template in domain.templates.values())

    def _changes(
        self, key: DomainKey, set_id: int, content: bytes, decoded: Decoded
    ) -> list[Template | Withdrawal]:
        """What a set changes among the domain's templates: nothing where it repeats them."""
        version = key[2]
        if set_id not in (TEMPLATES[version], TEMPLATES[version] + 1):
            decoded.malformed += 1
            return []
        stated: list[Template | Withdrawal] = []
        try:
            stated.extend(parsed_templates(version, set_id, content))
        except Malformed:
            decoded.malformed += 1
        decoded.templates += len(stated)
        known = self._domain(key).templates
        return [each for each in stated if isinstance(each, Withdrawal) or known.get(each.id) != each]

    def _apply(self, key: DomainKey, change: Template | Withdrawal, decoded: Decoded) -> None:
        domain = self._domain(key)
        if isinstance(change, Withdrawal):
            is_all = change.id < FIRST_DATA_SET
            for template in [
                each
                for each in domain.templates.values()
                if bool(each.scopes) == change.of_options and (is_all or each.id == change.id)
            ]:
                del domain.templates[template.id]
                self._fields -= len(template.fields)
            return
        replaced = domain.templates.get(change.id)
        self._fields += len(change.fields) - (len(replaced.fields) if replaced else 0)
        domain.templates[change.id] = change
        while self._fields > FIELDS_MAX and len(self._domains) > 1:
            self._forget(next(iter(self._domains)))
        self._release(key, change.id, decoded)

    # --- sets without a template --------------------------------------------------------------------------------

    def _hold(self, batch: Batch, sets: Sets, decoded: Decoded) -> None:
        for message, set_id, start, end in zip(
            *map(as_list, (sets.message, sets.id, sets.start, sets.end)), strict=True
        ):
            held = Held(batch.messages[message : message + 1].copy(), batch.buffer[start:end].tobytes())
            self._held.setdefault((batch.keys[batch.domains[message]], set_id), []).append(held)
            self._held_bytes += _cost(held)
        decoded.held += len(sets)
        while self._held_bytes > HELD_BYTES_MAX:
            decoded.forgotten += len(self._take_held(next(iter(self._held))))

    def _take_held(self, key: tuple[DomainKey, int]) -> list[Held]:
        taken = self._held.pop(key, [])
        self._held_bytes -= sum(map(_cost, taken))
        return taken

    def _release(self, key: DomainKey, template_id: int, decoded: Decoded) -> None:
        """Decode the sets that have waited for a template."""
        waiting = self._take_held((key, template_id))
        if waiting:
            decoded.released += len(waiting)
            content = np.frombuffer(b"".join(held.content for held in waiting), np.uint8)
            ends = np.cumsum([len(held.content) for held in waiting])
            starts = np.concatenate([[0], ends[:-1]])
            ids = np.full(len(waiting), template_id)
            batch = Batch(content, np.concatenate([held.message for held in waiting]))
            self._decode_data(batch, Sets(np.arange(len(waiting)), ids, starts, ends), decoded)

    # --- data ---------------------------------------------------------------------------------------------------

    def _decode_data(self, batch: Batch, sets: Sets, decoded: Decoded) -> None:
        """Decode sets of records, those that say something of their exporter first."""
        sets = sets.at(np.flatnonzero(sets.id >= FIRST_DATA_SET))
        with_templates = []
        for (domain, set_id), of_group in _grouped(batch, sets):
            template = self._domain(batch.keys[domain]).templates.get(set_id)
            if template is None:
                self._hold(batch, of_group, decoded)
            else:
                with_templates.append((batch.keys[domain], template, of_group))
        for key, template, of_group in sorted(with_templates, key=lambda each: not each[1].scopes):
            self._decode_records(batch, key, template, of_group, decoded)

    def _decode_records(
        self, batch: Batch, key: DomainKey, template: Template, sets: Sets, decoded: Decoded
    ) -> None:
        domain = self._domain(key)
        which, fields, broken = laid_out(batch.buffer, template, sets.start, sets.end, domain.templates)
        decoded.malformed += len(broken)
        messages = batch.messages[sets.message[which]]
        records = _records(batch.buffer, messages, fields, domain)
        if template.scopes:
            decoded.options += len(records)
            read_options(records, domain.sampling)
            started_ms, known = records.number(SYSTEM_INIT)
            if known.any():
                domain.boot_ms = int(started_ms[known][-1])
            return
        decoded.records += len(records)
        for at, flows in decoded_flows(records):
            headers = messages[at]
            flows |= {name: headers[name] for name in _OF_MESSAGE}
            flows["sampling_rate"] = domain.sampling.rates(records, at, flows)
            decoded.parts.append(flows)
            decoded.rows.append(len(at))


_OF_MESSAGE = ("received", "exporter", "domain", "protocol_version", "sequence")
"""Columns that are of the message."""


def _records(buffer: Array, messages: Array, fields: Fields, domain: Domain) -> Records:
    """The records, with the best that is known of when their exporter began."""
    boot_ms = messages["boot_ms"].copy()
    if domain.boot_ms >= 0:
        boot_ms[boot_ms < 0] = domain.boot_ms
    records = Records(buffer, messages["export_ms"], boot_ms, fields)
    if SYSTEM_INIT in fields:
        started_ms, known = records.number(SYSTEM_INIT)
        boot_ms[known] = started_ms[known]
    return records


def _sets(buffer: Array, starts: Index, ends: Index, decoded: Decoded) -> Sets:
    """All sets of these messages, in their order: the first of every message, then the second, and so on."""
    parts = []
    message, at = np.arange(len(starts)), starts
    while len(message):
        has_more = ends[message] - at >= SET_HEADER
        message, at = message[has_more], at[has_more]
        ids, lengths = (numbers(buffer, at + place, 2).astype(np.intp) for place in (0, 2))
        is_padding = (ids == 0) & (lengths == 0)
        is_whole = (lengths >= SET_HEADER) & (lengths <= ends[message] - at)
        decoded.malformed += int(np.count_nonzero(~is_whole & ~is_padding))
        message, at, ids, lengths = (each[is_whole] for each in (message, at, ids, lengths))
        parts.append((message, ids, at + SET_HEADER, at + lengths))
        at = at + lengths
    if not parts:
        nothing = np.zeros(0, np.intp)
        return Sets(nothing, nothing, nothing, nothing)
    sets = Sets(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))
    return sets.at(np.lexsort((sets.start, sets.message)))


def _grouped(batch: Batch, sets: Sets) -> list[tuple[tuple[int, int], Sets]]:
    """Sets of the same domain and ID together, those of a group in their order."""
    codes = batch.domains[sets.message] << 16 | sets.id
    order = np.argsort(codes, kind="stable")
    distinct, firsts = np.unique(codes[order], return_index=True)
    ends = [*firsts[1:], len(order)] if len(order) else []
    return [
        ((code >> 16, code & 0xFFFF), sets.at(order[first:end]))
        for code, first, end in zip(distinct.tolist(), firsts, ends, strict=True)
    ]


def _cost(held: Held) -> int:
    return len(held.content) + MESSAGE.itemsize
