# SPDX-License-Identifier: Apache-2.0
"""Snapshots of a lens from several hosts, merged into one."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any

import numpy as np

from nettop.query.batches import concatenate_batches
from nettop.query.filter import quote
from nettop.query.finding_tracker import GONE_AFTER_NS
from nettop.snapshots.arrays import Array
from nettop.snapshots.findings import FINDINGS
from nettop.snapshots.hooks import HookStatus
from nettop.snapshots.hosts import HOST
from nettop.snapshots.row_ids import ID_BITS, row_ids
from nettop.snapshots.schema import BEGAN, Lens, Table
from nettop.snapshots.snapshot import Ended, Rows, Snapshot, known, unknown_value

_FACTS = frozenset({"sampled_hz", "one_in", "walk_age_ms"})
"""Counts of a snapshot that are the same on every host, or of which the largest one counts; others add up."""
_SMALL_BITS = 32
_MIXERS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
"""Multipliers of the finalizer of SplitMix64 (Steele, Lea and Flood, 2014)."""
_ENCLOSED = re.compile(r'"(?:[^"\\]|\\.)*"|\([^()]*\)')
"""A quoted text, or parentheses, of a filter."""
_OR = re.compile(r"\bor\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Moment:
    """When snapshots are merged, by the clocks of this host."""

    wall_ns: int
    boot_ns: int
    taken_ns: int


@dataclass(frozen=True, slots=True)
class Pair:
    """The last reading of a host, and the one before if it is known."""

    now: Snapshot
    before: Snapshot | None


def merge(lens: Lens, hosts: Mapping[str, Pair], moment: Moment) -> Snapshot:
    """Return the last readings of all hosts as one snapshot of `lens`, whose tables have the column `host`."""
    is_whole = all(
        pair.before is None or pair.before.boot_ns >= pair.now.complete_since_ns for pair in hosts.values()
    )
    return _merged(
        lens,
        {host: pair.now for host, pair in hosts.items()},
        moment,
        complete_since_ns=0 if is_whole else moment.boot_ns,
        ended=_all_ended(lens, hosts, moment.taken_ns),
    )


def merge_before(lens: Lens, hosts: Mapping[str, Pair], moment: Moment) -> Snapshot | None:
    """Return the readings before the last ones, merged, as of the longest interval of a host before `moment`; None if
    no host has one.

    What had ended on a host without one counts as ended before: since when is unknown.
    """
    before = {host: pair.before for host, pair in hosts.items() if pair.before is not None}
    if not before:
        return None
    then = earlier(moment, hosts)
    either = {host: Pair(pair.before or pair.now, None) for host, pair in hosts.items()}
    return _merged(lens, before, then, ended=_all_ended(lens, either, then.taken_ns))


def earlier(moment: Moment, hosts: Mapping[str, Pair]) -> Moment:
    """Return the moment that is earlier by the longest interval of a host; at least one has a reading before."""
    pairs = ((pair.now, pair.before) for pair in hosts.values())
    interval_ns = max(now.boot_ns - before.boot_ns for now, before in pairs if before is not None)
    return Moment(*(getattr(moment, name) - interval_ns for name in ("wall_ns", "boot_ns", "taken_ns")))


def of_host(table: Table, rows: Rows, host: str, missing: Collection[str] = ()) -> Rows:
    """Return the rows of a host as rows of `table`, which has the column `host`; keys differ from those of others.

    Columns `missing` on that host are unknown: other hosts may have them.
    """
    array = widened(table, rows.array)
    for name in set(missing) & set(array.dtype.names or ()):
        array[name] = unknown_value(array.dtype[name])
    if rows.table.key != table.key:
        array[table.key] = rows.array[rows.table.key]
    for name in (table.key, *(field.name for field in table.stored if field.refers)):
        array[name] = _mixed(array[name], host)
    texts = {**rows.texts, HOST.name: [host]}
    if table.name == FINDINGS.name:
        texts |= _of_findings(rows.texts, host)
    return Rows(table, array, texts, rows.taken_ns, rows.variant)


def united(table: Table, pieces: Sequence[Rows]) -> Rows:
    """Return the rows of several hosts, or about them, as one table, sorted by key. All have its `widened` columns."""
    rows = concatenate_batches(table, pieces)
    array = rows.array[np.argsort(rows.array[table.key], kind="stable")]
    return replace(rows, array=array, variant=pieces[0].variant)


def widened(table: Table, array: Array) -> Array:
    """Return rows with all columns of the table, and BEGAN: 0 where the array does not have them."""
    names = table.dtype.names or ()
    dtype = np.dtype([*((name, table.dtype[name]) for name in names), (BEGAN, np.dtype("u1"))], align=True)
    wide = np.zeros(len(array), dtype)
    for name in set(array.dtype.names or ()) & set(dtype.names or ()):
        wide[name] = array[name]
    return wide


def _of_findings(texts: Mapping[str, Sequence[str]], host: str) -> dict[str, list[str]]:
    """Return the texts of findings for a reader who sees several hosts."""
    return {
        "finding": [f"{host}: {text}" for text in texts["finding"]],
        "filter": [_on_host(text, host) for text in texts["filter"]],
    }


def _on_host(text: str, host: str) -> str:
    """Return the filter of a finding for rows of that host. It still ends with the filter of the rule."""
    if not text:
        return ""
    outside = text
    while outside != (outside := _ENCLOSED.sub(" ", outside)):
        pass
    return f"{HOST.name}={quote(host)} and {f'({text})' if _OR.search(outside) else text}"


def _mixed(keys: Array, host: str) -> Array:
    """Return keys that are the same for the same host and key, and differ between hosts; unknown ones stay unknown.

    Small keys keep their order within a host: they are numbers in the order of the table.
    """
    salt = np.uint64(int.from_bytes(blake2b(host.encode(), digest_size=8).digest()))
    mixed = keys.astype(np.uint64) ^ salt
    for multiplier, shift in zip(_MIXERS, (30, 27), strict=True):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * multiplier
    hashed = row_ids(mixed ^ (mixed >> np.uint64(31)))
    numbered = (salt >> np.uint64(64 - ID_BITS + _SMALL_BITS)) << np.uint64(_SMALL_BITS) | keys
    ids = np.where(keys < np.uint64(1 << _SMALL_BITS), numbered, hashed)
    return np.where(known(keys), ids, unknown_value(np.dtype(np.uint64)))


def _merged(
    lens: Lens,
    snapshots: Mapping[str, Snapshot],
    moment: Moment,
    *,
    complete_since_ns: int = 0,
    ended: Mapping[str, Ended],
) -> Snapshot:
    tables = {table.name: _rows(table, snapshots, moment.taken_ns) for table in lens.tables}
    return Snapshot(
        lens=lens.id,
        wall_ns=moment.wall_ns,
        boot_ns=moment.boot_ns,
        tables={name: rows for name, rows in tables.items() if rows is not None},
        counts=_counts([snapshot.counts for snapshot in snapshots.values()]),
        lost=dict(sum((Counter(snapshot.lost) for snapshot in snapshots.values()), Counter[str]())),
        hooks=_hooks(list(snapshots.values())),
        gaps={
            f"{host} {name}": why
            for host, snapshot in snapshots.items()
            for name, why in snapshot.gaps.items()
        },
        ended=ended,
        complete_since_ns=complete_since_ns,
        hosts={host: snapshot.boot_ns for host, snapshot in snapshots.items()},
    )


def _rows(table: Table, snapshots: Mapping[str, Snapshot], taken_ns: int) -> Rows | None:
    """Return the rows of all hosts, sorted by key; None if no host has the table."""
    pieces = [
        of_host(table, snapshot.tables[table.name], host, snapshot.missing)
        for host, snapshot in snapshots.items()
        if table.name in snapshot.tables
    ]
    if not pieces:
        return None
    rows = united(table, [piece for piece in pieces if piece.variant == pieces[0].variant])
    if table.name == FINDINGS.name:
        _rank(rows.array)
    return replace(rows, taken_ns=taken_ns)


def _rank(array: Array) -> None:
    """Rank the findings of all hosts: as each host does, those still seen first, then by severity."""
    order = np.lexsort((array["rank"], array["severity"], array["unseen"] >= GONE_AFTER_NS))
    array["rank"][order] = np.arange(1, len(array) + 1)


def _all_ended(lens: Lens, hosts: Mapping[str, Pair], taken_ns: int) -> dict[str, Ended]:
    """Return the rows that left each table on all hosts, by the table's name."""
    ended = {table.name: _ended(table, hosts, taken_ns) for table in lens.tables}
    return {name: rows for name, rows in ended.items() if rows is not None}


def _ended(table: Table, hosts: Mapping[str, Pair], taken_ns: int) -> Ended | None:
    """Return the rows that left on all hosts. Listed are those that left since a host's reading before; each
    host has its own total."""
    pieces, totals, count = [], [], 0
    for host, pair in hosts.items():
        ended = pair.now.ended.get(table.name)
        if ended is None:
            continue
        before = None if pair.before is None else pair.before.tables.get(table.name)
        pieces += [
            replace(of_host(table, rows, host, pair.now.missing), taken_ns=taken_ns)
            for rows in ended.rows
            if before is not None and rows.taken_ns > before.taken_ns
        ]
        totals.append(of_host(table, ended.total, host, pair.now.missing))
        count += ended.count
    return Ended(tuple(pieces), united(table, totals), count) if totals else None


def _counts(counts: Sequence[Mapping[str, int]]) -> dict[str, int]:
    merged: dict[str, int] = {}
    for counted in counts:
        for name, count in counted.items():
            last = merged.get(name, 0)
            merged[name] = max(last, count) if name in _FACTS else last + count
    return merged


def _hooks(snapshots: Sequence[Snapshot]) -> tuple[HookStatus, ...]:
    """Return the status of each hook: of the first host where it has a mechanism, or else of the first one."""
    statuses: dict[str, HookStatus] = {}
    for snapshot in snapshots:
        for status in snapshot.hooks:
            present: Any = statuses.get(status.hook)
            if present is None or (present.mechanism is None and status.mechanism is not None):
                statuses[status.hook] = status
    return tuple(statuses.values())
