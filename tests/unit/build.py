# SPDX-License-Identifier: Apache-2.0
"""Build snapshots and frames from dicts for tests: None is unknown, enums are labels, addresses text."""

from __future__ import annotations

import dataclasses
import ipaddress
import random
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import count, repeat
from typing import Any

import numpy as np

from nettop.process.clocks import boot_ns
from nettop.query.filter import parse_filter
from nettop.query.query import Query, parse_sort
from nettop.query.view import View
from nettop.snapshots.arrays import Array
from nettop.snapshots.connections import APPLICATION, CONGESTION, PATH_LOSS, RECEIVER, SEND_BUFFER, SOCKETS
from nettop.snapshots.histograms import Buckets
from nettop.snapshots.hooks import NOT_AVAILABLE, HookStatus
from nettop.snapshots.schema import Field, Kind, Table, row_dtype
from nettop.snapshots.snapshot import Frame, Rows, Snapshot, TextTable, unknown_value

Row = dict[str, Any]
Carried = tuple[tuple[str, str], ...]
Tables = dict[str, TextTable]

_FIRST_NS, _PERIOD_NS = 1000 * 10**9, 5040 * 10**9
TAKEN_NS = _FIRST_NS + max(0, boot_ns() - _FIRST_NS) // _PERIOD_NS * _PERIOD_NS
"""When the snapshot before was taken, on the monotonic clock: in the last 84 minutes, as serve refuses older readings.
It differs between hosts by a multiple of 84 minutes, so that intervals of graphs begin at the same readings."""

WALL_NS = 1_795_000_000_123_456_789
"""2026-11-18, on the wall clock at the same moment."""

DEFAULTS: Row = {
    "protocol": "tcp",
    "family": "IPv4",
    "local_address": "10.0.3.7",
    "local_port": 443,
    "remote_address": "203.0.113.9",
    "remote_port": 52114,
    "state": "ESTABLISHED",
}
"""What a row of the connections table has unless its dict says otherwise; all else is unknown."""


def make_frame(
    rows_now: Sequence[Row],
    rows_before: Sequence[Row] | None = None,
    elapsed_s: float = 1.0,
    *,
    table: Table = SOCKETS,
    lens: str = "connections",
    carried: Carried = (),
    **snapshot_kwargs: Any,
) -> Frame:
    """Return a frame of one table. `rows_before` None means there is no earlier snapshot.

    `snapshot_kwargs` are those of the newest Snapshot (counts, lost, hooks, wall_ns …); `via` (hook: mechanism,
    or "n/a: why") and `missing` (field: why) become hooks.
    """
    texts: Tables = {}
    step = round(elapsed_s * 1e9)
    before = None
    if rows_before is not None:
        earlier = make_rows(rows_before, table, TAKEN_NS, carried, texts)
        before = _snapshot(lens, earlier, 0, {})
    now = make_rows(rows_now, table, TAKEN_NS + step, carried, texts)
    return Frame(_snapshot(lens, now, step, snapshot_kwargs), before)


def make_rows(
    rows: Sequence[Row],
    table: Table = SOCKETS,
    taken_ns: int = TAKEN_NS,
    carried: Carried = (),
    texts: Tables | None = None,
) -> Rows:
    """Return the rows as a table of a snapshot, sorted by key. A row without a key gets its place, from 1."""
    texts = {} if texts is None else texts
    defaults = DEFAULTS if table is SOCKETS else {}
    array = np.zeros(len(rows), row_dtype(table, carried))
    for field in table.stored:
        codes = texts.setdefault(field.name, TextTable()) if field.kind is Kind.TEXT else None
        fallbacks = count(1) if field.kind is Kind.KEY else repeat(defaults.get(field.name))
        stored = _storing(field, codes)
        column = [stored(row.get(field.name, default)) for row, default in zip(rows, fallbacks, strict=False)]
        if column:
            array[field.name] = column
    array = array[np.argsort(array[table.key], kind="stable")]
    return Rows(table, array, {name: codes.frozen() for name, codes in texts.items()}, taken_ns)


def make_view(frame: Frame, filter_text: str = "", sort: str = "", **query_kwargs: Any) -> View:
    """Return the frame's first table seen through a query given as words."""
    table = next(iter(frame.now.tables.values())).table
    order, shown = parse_sort(table, sort or table.key), parse_filter(table, filter_text)
    return View(frame, Query(table, order, shown, **query_kwargs))


def example_rows(n: int, seed: int = 1) -> list[Row]:
    """Return `n` connections like a web server's: some busy, some idle, a few listeners and orphans."""
    chance = random.Random(seed)
    return [_example_row(at, chance) for at in range(n)]


def later(rows: Sequence[Row], seed: int = 2, elapsed_s: float = 1.0) -> list[Row]:
    """Return the same connections after `elapsed_s` more seconds of traffic: counters grew, RTTs moved a little."""
    chance = random.Random(seed)
    return [_grown(row, chance, elapsed_s) for row in rows]


def example_frame(n: int, seed: int = 1, **frame_kwargs: Any) -> Frame:
    """Return `n` example connections, one second apart."""
    before = example_rows(n, seed)
    return make_frame(later(before, seed + 1), before, **frame_kwargs)


def big_frame(n: int, seed: int = 1, carried: Carried = ()) -> Frame:
    """Make `n` connections quickly: repeat a few rows, then make keys, peers and growth distinct.

    A hundredth of the rows has gone, and as many are new.
    """
    chance = np.random.default_rng(seed)
    few = make_rows(example_rows(min(n, 997), seed), carried=carried)
    churn = n // 100
    pool = few.array[np.arange(n + churn) % len(few)]
    pool["id"] = np.arange(len(pool)) + 1
    pool["remote_address"][:, 0] = 0
    pool["remote_address"][:, 1] = 0xFFFF_0A00_0000 + np.arange(len(pool))
    before, now = pool[:n].copy(), pool[churn:].copy()
    for name in ("bytes_sent", "bytes_received", "bytes_acked", "packets_sent", "data_packets_sent"):
        known = now[name] != unknown_value(now.dtype[name])
        now[name] += (known * chance.integers(1, 1_000_000, n)).astype(now.dtype[name])
    rows_before = Rows(SOCKETS, before, few.texts, TAKEN_NS)
    rows_now = Rows(SOCKETS, now, few.texts, TAKEN_NS + 1_000_000_000)
    step = 1_000_000_000
    return Frame(_snapshot("connections", rows_now, step, {}), _snapshot("connections", rows_before, 0, {}))


@cache
def address_pair(text: str | None) -> tuple[int, int]:
    """Return an address as the two halves that a row stores; None is the unspecified address."""
    address = ipaddress.ip_address(text or "::")
    raw = address.packed if address.version == 6 else bytes(10) + b"\xff\xff" + address.packed
    return int.from_bytes(raw[:8], "big"), int.from_bytes(raw[8:], "big")


def _snapshot(lens: str, rows: Rows, step_ns: int, kwargs: Mapping[str, Any]) -> Snapshot:
    made = Snapshot(lens, WALL_NS + step_ns, rows.taken_ns + 5_000_000_000, {rows.table.name: rows})
    kwargs = dict(kwargs)
    hooks = make_hooks(kwargs.pop("via", {}), kwargs.pop("missing", {}))
    return dataclasses.replace(made, **{"hooks": hooks} | kwargs)


def make_hooks(via: Mapping[str, str], missing: Mapping[str, str] | None = None) -> tuple[HookStatus, ...]:
    """Return the status of each hook by its mechanism, or "n/a: why"; and of one for each field that is missing."""
    given = (_hook(hook, mechanism) for hook, mechanism in via.items())
    lacking = (HookStatus(name, None, (("hook", why),), (name,)) for name, why in (missing or {}).items())
    return (*given, *lacking)


def _hook(hook: str, mechanism: str) -> HookStatus:
    why = mechanism.removeprefix(f"{NOT_AVAILABLE}: ")
    return HookStatus(hook, mechanism) if why == mechanism else HookStatus(hook, None, (("hook", why),))


def _storing(field: Field, codes: TextTable | None) -> Callable[[Any], Any]:
    """Return what converts a value of this field to how an array stores it."""
    if field.kind is Kind.ADDRESS:
        return address_pair
    dtype = np.dtype(field.dtype)
    unknown = [unknown_value(dtype)] * dtype.shape[0] if dtype.shape else unknown_value(dtype)
    if codes is not None:
        return lambda cell: unknown if cell is None else codes.code(cell)
    numbers = {label: number for number, label in field.labels.items()} if field.kind is Kind.ENUM else {}
    return lambda cell: unknown if cell is None else numbers[cell] if isinstance(cell, str) else cell


_SERVERS = (
    ("nginx", 1812, 443, "", "system.slice/nginx.service"),
    ("nginx", 1813, 443, "", "system.slice/nginx.service"),
    ("nginx", 1814, 443, "", "system.slice/nginx.service"),
    ("postgres", 977, 5432, "", "system.slice/postgresql.service"),
    ("java", 2210, 55010, "docker:api-7f", "system.slice/docker-api-7f.scope"),
    ("redis-server", 640, 6379, "", "system.slice/redis.service"),
    ("sshd", 30112, 22, "", "system.slice/ssh.service"),
    ("curl", 30991, 41822, "", "user.slice/user-1000.slice"),
)


def _example_row(at: int, chance: random.Random) -> Row:
    process, pid, port, container, cgroup = chance.choice(_SERVERS)
    kind = chance.random()
    row: Row = {
        "id": 4096 + at,
        "protocol": "tcp",
        "family": "IPv4",
        "local_address": "10.0.3.7",
        "local_port": port,
        "remote_address": f"203.0.{chance.randrange(256)}.{chance.randrange(1, 255)}",
        "remote_port": chance.randrange(1024, 65536),
        "pid": pid,
        "process": process,
        "uid": chance.choice((0, 33, 1000)),
        "netns": 4026531840,
        "namespace": "own",
        "cgroup": cgroup,
        "container": container or None,
        "direction": "inbound?",
        "owner_source": "descriptor",
    }
    if kind < 0.03:
        listening = {"state": "LISTEN", "remote_address": "0.0.0.0", "remote_port": None}
        return row | listening | {"direction": None, "backlog": 511, "accept_queue": 0}
    if kind < 0.05:
        nobody = dict.fromkeys(("pid", "process", "cgroup", "container", "owner_source"))
        return row | nobody | {"state": chance.choice(("SYN_RECV", "TIME_WAIT", "FIN_WAIT2"))}
    if kind < 0.08:
        row |= {"family": "IPv6", "local_address": "2001:db8::7", "remote_address": f"2001:db8:1::{at:x}"}
    return row | {"state": chance.choices(("ESTABLISHED", "CLOSE_WAIT"), (0.97, 0.03))[0]} | _traffic(chance)


def _traffic(chance: random.Random) -> Row:
    sent = int(10 ** chance.uniform(2, 10))
    received = int(10 ** chance.uniform(2, 9))
    packets = sent // 1448 + 3
    rtt = int(10 ** chance.uniform(2, 5.3))
    return {
        "bytes_sent": sent,
        "bytes_acked": sent,
        "bytes_received": received,
        "packets_sent": packets + received // 2896,
        "data_packets_sent": packets,
        "packets_received": received // 1448 + 3,
        "retransmits": int(packets * chance.choice((0, 0, 0, 0, 0.0002, 0.031))),
        "rtt_us": rtt,
        "rtt_var_us": rtt // chance.randrange(3, 30),
        "rtt_min_us": rtt // 2,
        "cwnd": chance.randrange(10, 200),
        "mss": 1448,
        "bytes_in_flight": 0,
        "send_queue": 0,
        "receive_queue": 0,
        "delivery_rate": int(10 ** chance.uniform(4, 8)),
        "drops": 0,
    }


def _grown(row: Row, chance: random.Random, elapsed_s: float) -> Row:
    if row.get("bytes_sent") is None or chance.random() < 0.1:
        return dict(row)
    sent = int(elapsed_s * 10 ** chance.uniform(2, 6.8))
    received = int(elapsed_s * 10 ** chance.uniform(2, 6))
    packets = sent // 1448 + 1
    more = {
        "bytes_sent": sent,
        "bytes_acked": sent,
        "bytes_received": received,
        "packets_sent": packets + received // 2896,
        "data_packets_sent": packets,
        "packets_received": received // 1448 + 1,
        "retransmits": int(packets * chance.choice((0, 0, 0, 0.0002, 0.031))),
    }
    limits = (APPLICATION, RECEIVER, APPLICATION, CONGESTION, APPLICATION, SEND_BUFFER, None)
    limit = PATH_LOSS if more["retransmits"] else limits[row["id"] % len(limits)]
    limited = {"limited_by": limit, "limited_share": 0.5 + row["id"] % 50 / 100} if limit else {}
    return row | {name: row[name] + by for name, by in more.items()} | limited


def histogram_of(samples: Sequence[int], buckets: Buckets) -> Array:
    """Return the histogram of these numbers."""
    places = buckets.places(np.array(samples, np.float64))
    return np.bincount(places.astype(np.intp), minlength=buckets.count).astype(np.uint64)
