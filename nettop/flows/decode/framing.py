# SPDX-License-Identifier: Apache-2.0
"""Headers of NetFlow v9 and IPFIX messages, and the sets within them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from nettop.flows.columns import ADDRESS, Flows
from nettop.flows.decode.datagrams import Datagrams, numbers
from nettop.flows.decode.domains import DomainKey, keys_of, numbered_keys
from nettop.flows.decode.templates import IPFIX, NETFLOW_9
from nettop.flows.decode.times import exported_ms
from nettop.snapshots.arrays import Array, Index, Mask

HEADERS = {NETFLOW_9: 20, IPFIX: 16}
"""Length of a message header."""
SET_HEADER = 4

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
"""Header of a message. Times are in ms; `boot_ms`, a time at which the exporter's uptime was 0, is negative if unknown.
"""
COUNTS = np.dtype(
    [
        (name, "i8")
        for name in ("records", "options", "templates", "broken", "held", "released", "units", "unit_options")
    ]
)
"""Totals per message: flow records, options records, templates, invalid parts, sets that wait for their template, and
sets released by this message, whose records count here.

`units` counts the records of both kinds in the message itself, which is what IPFIX numbers; `unit_options` the options
records among them.
"""


@dataclass(frozen=True, eq=False)
class Sets:
    """Sets in order of arrival: message index, set ID, and start and end offset of the content."""

    message: Index
    id: Array
    start: Index
    end: Index

    def __len__(self) -> int:
        return len(self.id)

    def at(self, which: Index | Mask | slice) -> Sets:
        """Return a subset."""
        return Sets(self.message[which], self.id[which], self.start[which], self.end[which])


class Batch:
    """Messages decoded together: buffer, headers, and observation domains.

    `keys` are the distinct domains, `domains` (n,) the index of each message's domain in them. `counted_at` (n,) is the
    index of the message that counts each one's records.
    """

    def __init__(self, buffer: Array, messages: Array, counted_at: Index) -> None:
        self.buffer = buffer
        self.messages = messages
        self.counted_at = counted_at
        firsts, self.domains = numbered_keys(messages)
        self.keys = keys_of(messages[firsts])


@dataclass(eq=False)
class Decoded:
    """Result of decoding messages: flows in parts with their number of rows, and totals.

    `which` (m,) are the messages' indices among all datagrams, `messages` their headers (MESSAGE), `counts` their
    totals (COUNTS). `of` has the message index of each flow, by part.
    """

    which: Index
    messages: Array
    counts: Array
    unread: int
    """Messages whose header is missing or invalid."""
    parts: list[Flows] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    of: list[Index] = field(default_factory=list)
    forgotten: Counter[DomainKey] = field(default_factory=Counter)
    """Sets dropped before their template arrived, by domain."""

    def _sum(self, name: str) -> int:
        return int(self.counts[name].sum())

    @property
    def records(self) -> int:
        """Number of flow records; a biflow counts once."""
        return self._sum("records")

    @property
    def options(self) -> int:
        """Number of options records."""
        return self._sum("options")

    @property
    def templates(self) -> int:
        """Number of templates and withdrawals, including repetitions of known ones."""
        return self._sum("templates")

    @property
    def malformed(self) -> int:
        """Number of invalid messages, sets and templates."""
        return self.unread + self._sum("broken")

    @property
    def held(self) -> int:
        """Number of sets that wait for their template."""
        return self._sum("held")

    @property
    def released(self) -> int:
        """Number of held sets whose template has arrived."""
        return self._sum("released")

    def count(self, name: str, messages: Index) -> None:
        """Add one to a total for each of these messages."""
        self.counts[name] += np.bincount(messages, minlength=len(self.counts))


def read_headers(datagrams: Datagrams, which: Index, version: int) -> tuple[Decoded, Index, Index]:
    """Read message headers; return them with the start and end offset of each message's sets."""
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
    # A truncated message is decoded as far as it goes.
    counts["broken"] = is_cut[is_whole]
    unread = int(np.count_nonzero(~is_whole))
    return Decoded(which, messages, counts, unread), starts + header, ends


def read_sets(datagrams: Datagrams, starts: Index, ends: Index, decoded: Decoded) -> Sets:
    """Return all sets of these messages, ordered by message, then by offset."""
    buffer, datagram_ends = datagrams.buffer, datagrams.ends[decoded.which]
    parts = []
    message, at = np.arange(len(starts)), starts
    while len(message):
        has_more = ends[message] - at >= SET_HEADER
        message, at = message[has_more], at[has_more]
        ids, lengths = (numbers(buffer, at + place, 2).astype(np.intp) for place in (0, 2))
        is_padding = (ids == 0) & (lengths == 0)
        # The stated message length may cut its last set short although all of it is there.
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
