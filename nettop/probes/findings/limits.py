# SPDX-License-Identifier: Apache-2.0
"""The kernel's limits and how much of them is used, from /proc."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nettop.errors import NettopError
from nettop.kernel.host.proc_files import read_sockstat, read_text
from nettop.kernel.net.client_ports import most_used, read_client_ports
from nettop.kernel.net.neighbours import count_unlimited
from nettop.probes.findings.growth import Growth, Use
from nettop.query.address import endpoint_text
from nettop.snapshots.findings import FILLING_FROM, LIMITS, LOCAL_PORTS_TO
from nettop.snapshots.row_ids import row_id
from nettop.snapshots.snapshot import Rows, rows_from

_FIRST, _PRESSURE, _LAST = 0, 1, -1


@dataclass(frozen=True, slots=True)
class Limit:
    """A limit: its setting below /proc/sys (its number `at` counts), and what is used.

    `used` is a name in sockstat (`TCP tw`), or a file below /proc and the position of its number. Limits of the whole
    machine are read in one namespace only. Under a steady load its use grows for `levels_off_s`, as long as what has
    ended still counts: a connection in TIME_WAIT for a minute, as the kernel's timers measure it.
    """

    resource: str
    setting: str
    used: str | tuple[str, int]
    when_full: str
    at: int = _FIRST
    of_machine: bool = False
    levels_off_s: float = 70.0
    neighbours: int | None = None
    """Address family of neighbours, of which some are not limited."""


_ALL = (
    Limit("conntrack entries", "net/netfilter/nf_conntrack_max", ("sys/net/netfilter/nf_conntrack_count", _FIRST),
          "new connections through it are dropped", levels_off_s=180.0),
    Limit("TIME_WAIT sockets", "net/ipv4/tcp_max_tw_buckets", "TCP tw",
          "further ones are closed at once, so that late packets may hit new connections"),
    Limit("orphaned TCP sockets", "net/ipv4/tcp_max_orphans", "TCP orphan",
          "closed connections with unsent data are reset", of_machine=True),
    Limit("TCP memory before pressure (pages)", "net/ipv4/tcp_mem", "TCP mem", "windows and buffers shrink",
          at=_PRESSURE, of_machine=True),
    Limit("TCP memory (pages)", "net/ipv4/tcp_mem", "TCP mem", "packets are dropped", at=_LAST, of_machine=True),
    Limit("UDP memory (pages)", "net/ipv4/udp_mem", "UDP mem", "datagrams are dropped", at=_LAST, of_machine=True),
    Limit("neighbours (ARP)", "net/ipv4/neigh/default/gc_thresh3", ("net/stat/arp_cache", _FIRST),
          "packets to further hosts are dropped", of_machine=True, neighbours=socket.AF_INET),
    Limit("neighbours (IPv6)", "net/ipv6/neigh/default/gc_thresh3", ("net/stat/ndisc_cache", _FIRST),
          "packets to further hosts are dropped", of_machine=True, neighbours=socket.AF_INET6),
    Limit("open files", "fs/file-max", ("sys/fs/file-nr", _FIRST), "only root can open files or sockets",
          of_machine=True),
)  # fmt: skip
"""Per-CPU statistics have the current number of entries in their first column, in hex (neigh_stat_seq_show)."""
_LIMITS = {limit.resource: limit for limit in _ALL}

_PORTS = Limit(LOCAL_PORTS_TO, "net/ipv4/ip_local_port_range", "", "further connects to it fail")


def read_limits(proc: Path, *, is_own: bool) -> dict[str, tuple[int, int]]:
    """Return used and maximum amounts by resource, in the calling thread's namespace; omit what this kernel lacks."""
    sockstat = read_sockstat(proc, "sockstat")
    amounts = {}
    for limit in _ALL:
        if limit.of_machine and not is_own:
            continue
        most = _number(proc / "sys" / limit.setting, limit.at)
        used = sockstat.get(limit.used) if isinstance(limit.used, str) else _number_in(proc, *limit.used)
        if used is not None and most:
            amounts[limit.resource] = used, most
    return amounts | _port_use(proc, sockstat)


def less_unlimited(
    amounts: Mapping[str, tuple[int, int]], unlimited: Callable[[int], int]
) -> dict[str, tuple[int, int]]:
    """Return the amounts without neighbours that are not limited. `unlimited` counts those of an address family in all
    namespaces; only if the use would matter, because counting takes time."""
    less = {}
    for resource, (used, most) in amounts.items():
        limit = _LIMITS.get(resource, _PORTS)
        if limit.neighbours is not None and used >= most * FILLING_FROM:
            less[resource] = max(0, used - unlimited(limit.neighbours)), most
    return {**amounts, **less}


def unlimited_here(family: int) -> int:
    """Return the neighbours of the calling thread's namespace that are not limited; 0 if the kernel does not say."""
    try:
        return count_unlimited(family)
    except OSError:
        return 0


def _port_use(proc: Path, sockstat: Mapping[str, int]) -> dict[str, tuple[int, int]]:
    """Return the use of client ports toward the busiest destination; nothing while all sockets are fewer than half of
    the ports, because counting takes time."""
    first, last = read_client_ports(proc)
    sockets = sockstat.get("TCP inuse", 0) + sockstat.get("TCP tw", 0)
    if sockets * 2 < (most := last - first + 1):
        return {}
    try:
        busiest = most_used()
    except NettopError:
        return {}
    if busiest is None:
        return {}
    raw = busiest.address if busiest.family == socket.AF_INET6 else busiest.address[:4]
    place = endpoint_text(socket.inet_ntop(busiest.family, raw), busiest.port)
    return {f"{LOCAL_PORTS_TO}{place}": (busiest.used, most)}


def _number_in(proc: Path, name: str, at: int) -> int | None:
    if name.startswith("net/stat/"):
        words = read_text(proc / "thread-self" / name).splitlines()[1:2]
        return int(words[0].split()[at], 16) if words else None
    return _number(proc / name, at)


def _number(path: Path, at: int) -> int | None:
    words = read_text(path).split()
    return int(words[at]) if words else None


def limit_rows(
    by_namespace: Mapping[int, Mapping[str, tuple[int, int]]], growth: Growth, taken_ns: int
) -> Rows:
    """Return the rows of the table, without names of namespaces; add this reading to `growth`."""
    found = [
        (netns, resource, _LIMITS.get(resource, _PORTS), *amounts)
        for netns, read in by_namespace.items()
        for resource, amounts in read.items()
    ]
    uses = {
        (netns, resource): Use(used, most, limit.levels_off_s) for netns, resource, limit, used, most in found
    }
    per_s = growth.add(uses, taken_ns)
    values: Iterator[dict[str, Any]] = (
        {
            # A number of the whole machine is about no namespace.
            "id": row_id(resource, 0 if limit.of_machine else netns),
            "netns": None if limit.of_machine else netns,
            "resource": resource,
            "setting": limit.setting.replace("/", "."),
            "when_full": limit.when_full,
            "used": used,
            "limit": most,
        }
        | _forecast(max(0, most - used), per_s.get((netns, resource)))
        for netns, resource, limit, used, most in found
    )
    return rows_from(LIMITS, list(values), taken_ns)


def _forecast(left: int, per_s: float | None) -> dict[str, Any]:
    """Return how fast a resource grows, and after how many ns nothing is left; both unknown if it does not."""
    return {"growth": per_s, "full_in": None if per_s is None else left / per_s * 1e9}
