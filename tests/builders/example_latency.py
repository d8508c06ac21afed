# SPDX-License-Identifier: Apache-2.0
"""Example data for the latency lens: a web server whose application reads late for a while."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

from nettop.probes.latency.rows import UNKNOWN_TERMS
from nettop.snapshots.arrays import Array
from nettop.snapshots.histograms import Buckets
from nettop.snapshots.latency import (
    BACKLOG,
    BUCKET_TABLE,
    BUCKETS,
    FAMILIES,
    HANDSHAKE,
    HOOKS,
    IP,
    LENS,
    ONE_IN,
    PAIR_BUCKETS,
    PAIR_TABLE,
    PROTOCOL_TABLE,
    PROTOCOLS,
    QDISC,
    RTT,
    SOCKET_WAIT,
    STAGE_TABLE,
    WIRE_APP,
    WIRE_IP,
    WIRE_SOCKET,
)
from nettop.snapshots.snapshot import Snapshot
from tests.unit.build import TAKEN_NS, WALL_NS, Row, make_hooks, make_rows

SECOND_NS = 1_000_000_000
NO_BTF = "the kernel has no BTF for ip_rcv_core"
LATE = range(70, 88)
"""The seconds in which the application reads late."""


class _Delay(NamedTuple):
    """Packets that wait at a place each second: their number, median in ns, spread, and drops."""

    packets: int
    median_ns: float
    spread: float
    drops: int = 0


_DELAYS = {
    WIRE_IP: _Delay(81_200, 4_100, 0.6),
    WIRE_SOCKET: _Delay(80_900, 7_700, 0.7),
    WIRE_APP: _Delay(80_400, 51_000, 1.1, 3),
    BACKLOG: _Delay(12_300, 1_100, 0.8),
    IP: _Delay(81_100, 900, 0.5),
    SOCKET_WAIT: _Delay(80_400, 42_000, 1.2, 3),
    QDISC: _Delay(40_100, 1_900, 1.0),
    HANDSHAKE: _Delay(31, 21_000_000, 0.7),
    RTT: _Delay(412, 24_000_000, 0.9),
}
_LATE_NS, LATE_SHARE = (184_000_000, 0.4), 0.08
_SHARES = {("tcp", "IPv4"): 0.83, ("tcp", "IPv6"): 0.1, ("udp", "IPv4"): 0.06, ("icmp", "IPv4"): 0.01}


class _Pair(NamedTuple):
    """Two hosts, their share of the packets, and how much longer these wait than others."""

    source: str
    destination: str
    protocol: str
    share: float
    factor: float


_PAIRS = (
    _Pair("10.0.9.4", "10.0.3.7", "tcp", 0.2, 12.0),
    _Pair("10.0.3.21", "10.0.3.7", "tcp", 0.4, 1.0),
    _Pair("203.0.113.9", "10.0.3.7", "tcp", 0.3, 0.9),
    _Pair("2001:db8:1::24", "2001:db8::7", "tcp", 0.09, 1.3),
    _Pair("10.0.3.53", "10.0.3.7", "udp", 0.01, 0.4),
)
_PAIR_ROWS = [(number, pair) for number in (WIRE_APP, SOCKET_WAIT) for pair in _PAIRS]
_ROWS = [
    (number, protocol, family)
    for number in _DELAYS
    for protocol in PROTOCOLS.values()
    for family in FAMILIES.values()
]


@cache
def example_steps(count: int = 3, *, missing: tuple[int, ...] = (), one_in: int = 64) -> tuple[Snapshot, ...]:
    """Return snapshots a second apart; this kernel does not provide what is `missing`."""
    chance = np.random.default_rng(5)
    rows = np.zeros((len(_ROWS), BUCKETS.count), np.uint64)
    pairs = np.zeros((len(_PAIR_ROWS), PAIR_BUCKETS.count), np.uint64)
    steps = []
    for second in range(1, count + 1):
        is_late = second in LATE
        for n, (number, protocol, family) in enumerate(_ROWS):
            share = _SHARES.get((protocol, family), 0.0)
            rows[n] += _drawn(share * _expected(number, is_late, BUCKETS), chance)
        for n, (number, pair) in enumerate(_PAIR_ROWS):
            pairs[n] += _drawn(pair.share * _expected(number, is_late, PAIR_BUCKETS, pair.factor), chance)
        steps.append(_snapshot(rows, pairs, second, missing, one_in))
    return tuple(steps)


def _drawn(expected: Array, chance: np.random.Generator) -> Array:
    return chance.poisson(expected).astype(np.uint64)


@cache
def _expected(number: int, is_late: bool, buckets: Buckets, factor: float = 1.0) -> Array:
    """Return the packets a second in each bucket."""
    of = _DELAYS[number]
    share = LATE_SHARE if is_late and number in (WIRE_APP, SOCKET_WAIT) else 0.0
    usual = _log_normal(buckets, of.median_ns * factor, of.spread)
    return of.packets * ((1 - share) * usual + share * _log_normal(buckets, *_LATE_NS))


def _log_normal(buckets: Buckets, median: float, spread: float) -> Array:
    """Return the share of a log-normal distribution that is in each bucket."""
    ends = (*buckets.edges[1:], math.inf)
    below = [(1 + math.erf(math.log(end / median) / spread / math.sqrt(2))) / 2 for end in ends]
    return np.diff(below, prepend=0.0)


def _snapshot(rows: Array, pairs: Array, second: int, missing: tuple[int, ...], one_in: int) -> Snapshot:
    taken_ns = TAKEN_NS + second * SECOND_NS
    protocols: list[Row] = [
        {"id": n, "protocol": protocol, "family": family, **_row(number, rows[n], second, number in missing)}
        for n, (number, protocol, family) in enumerate(_ROWS)
    ]
    each = len(_ROWS) // len(_DELAYS)
    wholes: list[Row] = [
        {"id": number} | _row(number, rows[n * each : (n + 1) * each].sum(axis=0), second, number in missing)
        for n, number in enumerate(_DELAYS)
    ]
    tables = {
        STAGE_TABLE.name: make_rows(wholes, STAGE_TABLE, taken_ns),
        PROTOCOL_TABLE.name: make_rows(protocols, PROTOCOL_TABLE, taken_ns),
        PAIR_TABLE.name: make_rows(_pair_rows(pairs), PAIR_TABLE, taken_ns),
        BUCKET_TABLE.name: make_rows(_bucket_rows(protocols), BUCKET_TABLE, taken_ns),
    }
    mechanisms = {hook.name: "tp_btf/net" for hook in HOOKS.values()}
    return Snapshot(
        LENS.id,
        WALL_NS + second * SECOND_NS,
        taken_ns + 5 * SECOND_NS,
        tables,
        counts={ONE_IN: one_in},
        hooks=make_hooks(mechanisms | {HOOKS[number].name: f"n/a: {NO_BTF}" for number in missing}),
        lost={"skipped": 0},
    )


def _row(number: int, counts: Array, second: int, is_missing: bool) -> Row:
    if is_missing:
        return {"stage": number, "latency": np.full_like(counts, np.iinfo(np.uint64).max)}
    matched, of = int(counts.sum()), _DELAYS[number]
    terms = {
        "dropped": of.drops * second if matched else 0,
        "unmatched": 4 * second if matched else 0,
        "waiting": round(of.packets * of.median_ns / SECOND_NS) if matched else 0,
    }
    known = {name: count for name, count in terms.items() if name not in UNKNOWN_TERMS.get(number, ())}
    return {
        "stage": number,
        "latency": counts.copy(),
        "seen": matched + sum(known.values()),
        "matched": matched,
        **known,
    }


def _pair_rows(counts: Array) -> list[Row]:
    return [
        {
            "id": n,
            "stage": number,
            "source": pair.source,
            "destination": pair.destination,
            "protocol": pair.protocol,
            "packets": int(counts[n].sum()),
            "latency": counts[n].copy(),
        }
        for n, (number, pair) in enumerate(_PAIR_ROWS)
    ]


def _bucket_rows(protocols: Sequence[Row]) -> list[Row]:
    """Return those of one place: all of them would be thousands."""
    ends = [*BUCKETS.edges[1:], None]
    return [
        {
            "id": row["id"] * BUCKETS.count + place,
            **{name: row[name] for name in ("stage", "protocol", "family")},
            "at_least": BUCKETS.edges[place],
            "below": ends[place],
            "packets": int(row["latency"][place]),
        }
        for row in protocols
        if row["stage"] == WIRE_APP and "matched" in row
        for place in np.flatnonzero(row["latency"]).tolist()
    ]
