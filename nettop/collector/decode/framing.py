# SPDX-License-Identifier: Apache-2.0
"""Headers of NetFlow v9 and IPFIX messages, and the sets within them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from nettop.collector.decode.batch import Batch, DecodeResult, keys_of, numbered_keys
from nettop.collector.decode.datagrams import exported_ms, nearest, numbers
from nettop.collector.decode.templates import IPFIX, NETFLOW_9
from nettop.snapshots.arrays import Array, Index, Mask, take_rows

HEADERS = {NETFLOW_9: 20, IPFIX: 16}
"""Length of a message header."""
SET_HEADER = 4
_SAME_START_MS = 60_000
"""Tolerance between start times in messages of one exporter run."""
_FIRST_NUMBERS = 4096
"""Sequence numbers below this may follow a restart, if they are not within this of the previous one."""


class Sets(NamedTuple):
    """Sets in order of arrival: message index, set ID, and start and end offset of the content."""

    message: Index
    id: Array
    start: Index
    end: Index

    def at(self, which: Index | Mask) -> Sets:
        """Return a subset."""
        return Sets(*(values[which] for values in self))


class Messages:
    """Messages decoded together: the buffer with their sets, and their headers, DATAGRAM (n,).

    `keys` are the distinct domains, `domains` (n,) the index of each message's domain in them. `counted_at` (n,) is the
    index of the datagram that counts each one's records.
    """

    def __init__(self, buffer: Array, headers: Array, counted_at: Index) -> None:
        self.buffer, self.headers, self.counted_at = buffer, headers, counted_at
        firsts, self.domains = numbered_keys(headers)
        self.keys = keys_of(headers[firsts])


def read_messages(batch: Batch, which: Index, version: int) -> tuple[Messages, Sets]:
    """Read the messages in these datagrams, and all their sets. Skip messages with an invalid header."""
    buffer, starts, ends = batch.datagrams.buffer, batch.datagrams.starts[which], batch.datagrams.ends[which]
    is_whole = ends - starts >= HEADERS[version]
    is_cut: Array = np.zeros(len(which), bool)
    if version == IPFIX:
        lengths = np.zeros(len(which), np.intp)
        lengths[is_whole] = numbers(buffer, starts[is_whole] + 2, 2).astype(np.intp)
        is_cut = lengths > ends - starts
        is_whole &= lengths >= HEADERS[version]
        ends = np.minimum(ends, starts + lengths)
    which, starts, ends = which[is_whole], starts[is_whole], ends[is_whole]
    _read_headers(batch, which, version)
    # A truncated message is decoded as far as it goes.
    batch.set(which, broken=is_cut[is_whole])
    messages = Messages(buffer, take_rows(batch.headers, which), which)
    return messages, _read_sets(batch, messages, starts + HEADERS[version], ends)


def _read_headers(batch: Batch, which: Index, version: int) -> None:
    buffer, starts = batch.datagrams.buffer, batch.datagrams.starts[which]
    first = 8 if version == NETFLOW_9 else 4
    seconds, sequence, domain = (numbers(buffer, starts + first + at, 4) for at in (0, 4, 8))
    received_ms = batch.datagrams.received_ns[which] // 1_000_000
    export_ms = exported_ms(seconds.astype(np.int64) * 1000, received_ms)
    boot_ms: Array | int = -1
    if version == NETFLOW_9:
        boot_ms = export_ms - numbers(buffer, starts + 4, 4).astype(np.int64)
    batch.set(
        which, reading=DecodeResult.DECODED, protocol_version=version, port=batch.datagrams.ports[which]
    )
    batch.set(which, domain=domain, sequence=sequence, export_ms=export_ms, boot_ms=boot_ms, is_exact=True)


def _read_sets(batch: Batch, messages: Messages, starts: Index, ends: Index) -> Sets:
    """Return all sets of these messages, ordered by message, then by offset."""
    buffer, datagram_ends = messages.buffer, batch.datagrams.ends[messages.counted_at]
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
        batch.tally("broken", messages.counted_at[message[~is_sound & ~is_padding]])
        message, at, ids, lengths = (column[is_whole] for column in (message, at, ids, lengths))
        parts.append((message, ids, at + SET_HEADER, at + lengths))
        at = at + lengths
    if not parts:
        nothing = np.zeros(0, np.intp)
        return Sets(nothing, nothing, nothing, nothing)
    sets = Sets(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))
    return sets.at(np.lexsort((sets.start, sets.message)))


def begins_anew(messages: Messages, sets: Sets, last: Sequence[tuple[float, float]]) -> Mask:
    """Return which sets are the first in the first message after a restart of their exporter.

    `last` has `boot_ms` and the sequence number of the last message of each domain in earlier batches, or NaN.
    """
    domains = np.concatenate([np.arange(len(last)), messages.domains])
    headers = np.column_stack([messages.headers["boot_ms"], messages.headers["sequence"]])
    order = np.argsort(domains, kind="stable")
    in_order = np.concatenate([np.array(last, float).reshape(-1, 2), headers])[order]
    later_ms, ahead = nearest(np.diff(in_order, axis=0)).T
    is_low = (in_order[1:, 1] < _FIRST_NUMBERS) & (np.abs(ahead) > _FIRST_NUMBERS)
    is_restart = (np.diff(domains[order]) == 0) & ((later_ms > _SAME_START_MS) | is_low)
    restarts = order[1:][is_restart] - len(last)
    begins: Mask = np.isin(sets.message, restarts) & (np.diff(sets.message, prepend=-1) > 0)
    return begins
