# SPDX-License-Identifier: Apache-2.0
"""Headers of NetFlow v9 and IPFIX messages, and where the sets lie that each of them consists of."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from nettop.flows.columns import ADDRESS, Flows
from nettop.flows.decode.datagrams import Datagrams, numbers
from nettop.flows.decode.domains import DomainKey, keys_of, numbered_keys
from nettop.flows.decode.templates import IPFIX, NETFLOW_9
from nettop.flows.decode.times import exported_ms
from nettop.snapshots.arrays import Index, Mask
from nettop.snapshots.snapshot import Array

HEADERS = {NETFLOW_9: 20, IPFIX: 16}
"""The length of a message's header."""
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
"""What is said of a message: times in ms; `boot_ms`, a time when the exporter's uptime was 0, is negative where none is
known."""
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


def read_headers(datagrams: Datagrams, which: Index, version: int) -> tuple[Decoded, Index, Index]:
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


def read_sets(datagrams: Datagrams, starts: Index, ends: Index, decoded: Decoded) -> Sets:
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
