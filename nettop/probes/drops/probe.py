# SPDX-License-Identifier: Apache-2.0
"""The drops probe: a program at the tracepoint kfree_skb counts what the kernel drops, by reason and place.

It also reads the kernel's own drop counters of each namespace, device and CPU. Without the tracepoint it has only
those.
"""

from __future__ import annotations

import socket
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nettop.kernel import bpf_syscall as bpf
from nettop.kernel.bpf import maps
from nettop.kernel.bpf.btf import Slice
from nettop.kernel.bpf.drop_reasons import NO_REASON, DropReasons, read_drop_reasons
from nettop.kernel.bpf.mechanisms import Fallbacks, Mechanism, Refused, check_chosen
from nettop.kernel.bpf.program import Loader
from nettop.kernel.bpf.program_text import ProgramText
from nettop.kernel.bpf.rows import columns, row_header
from nettop.kernel.bpf.set_table import key_hashes
from nettop.kernel.bpf.symbols import Symbols, why_hidden
from nettop.kernel.host.facts import Host
from nettop.kernel.net.client_ports import read_client_ports
from nettop.kernel.net.links import Link, read_links
from nettop.kernel.net.net_counters import read_counters
from nettop.probes.drops.counters import (
    MEASURE,
    NAMES,
    NUMBERS,
    counter_rows,
    device_names,
    encode_texts,
    read_measures,
)
from nettop.probes.drops.ports import COUNTERS as UNSEEN
from nettop.probes.drops.ports import Listeners, UnseenSyns, find_owners, read_listeners
from nettop.probes.probe import Probe, attach_program, skipped_runs, sockets_of, with_types
from nettop.snapshots import drops as spec
from nettop.snapshots.arrays import Array, as_list, concatenate_rows, distinct_rows, positions, take_rows
from nettop.snapshots.connections import SEVERAL
from nettop.snapshots.hooks import HookStatus
from nettop.snapshots.ip_protocols import IP_PROTOCOLS
from nettop.snapshots.row_ids import row_ids
from nettop.snapshots.snapshot import Frame, Rows, Snapshot, TextTable, clocks

PROGRAM = "tp_btf__kfree_skb"
PACKETS_FALLBACKS = Fallbacks(spec.HOOK_PACKETS, (Mechanism("tp_btf/kfree_skb", (PROGRAM,)),))
"""The plain tracepoint is no fallback: it is refused wherever this one is, for the same reasons."""
_REASONS = Fallbacks(spec.HOOK_REASONS, (Mechanism("tp_btf/kfree_skb"),))
_PLACES = Fallbacks(spec.HOOK_PLACES, (Mechanism("/proc/kallsyms"),))
_COUNTERS = Fallbacks(spec.HOOK_COUNTERS, (Mechanism("/proc/net + rtnetlink"),))
FALLBACKS = (PACKETS_FALLBACKS, _REASONS, _PLACES, _COUNTERS)
KINDS_MAX = 4096
"""Kinds of drops counted separately; a busy host has a few hundred. Each takes 16 bytes per CPU plus about 90: half a
megabyte in all on two CPUs."""

HEADER_PORTS_MAX = KINDS_MAX // 8
"""Ports of packets without a socket that are told apart between two readings; further ones have no port."""

_PROTOCOL_UNKNOWN = 255
_UNKNOWN = np.iinfo(np.uint32).max
_NO_SEVERITY = np.iinfo(np.uint8).max

KIND = np.dtype(
    [
        ("location", "u8"),
        *columns("u4", "netns", "ifindex", "reason"),
        *columns("u2", "family", "port"),
        *columns("u1", "protocol", "has_owner"),
        ("always_zero", "(6,)u1"),
    ]
)
"""The key by which the program counts. A namespace, device or port of 0 is unknown. `has_owner`: the port is one of
this machine. It has no padding, because numpy would not copy it."""

COUNT = np.dtype([*columns("u8", "packets", "bytes")])

_HEADER_PORTS = np.dtype([("seen", f"({(1 << 16) // 64},)u8"), ("count", "u8")])
"""The ports read from headers since the last reading: a bit each, and their number."""

_STRUCTS = {"kind": KIND, "count": COUNT, "header_ports": _HEADER_PORTS}

_SKB = ("dev", "sk", "len", "protocol", "head", "network_header", "skb_iif", "_skb_refdst")
_SOCK_COMMON = ("skc_net", "skc_family", "skc_state", "skc_num", "skc_dport")
_SLICES = (
    Slice("sk_buff", {name: name for name in _SKB}, {}),
    Slice("net_device", {"ifindex": "ifindex", "nd_net": "nd_net"}, {}),
    Slice("net", {"inum": "ns.inum", "loopback_dev": "loopback_dev"}, {}),
    Slice("sock", {name: f"__sk_common.{name}" for name in _SOCK_COMMON} | {"sk_type": "sk_type"}, {}),
    Slice("dst_entry", {"dev": "dev"}, {}),
    Slice("rtable", {}, {"rt_type": "rt_type"}),
    Slice("rt6_info", {}, {"rt6i_flags": "rt6i_flags"}),
)

_SUMS = {
    "listen_overflows": ("TcpExtListenOverflows",),
    "syn_drops": ("TcpExtTCPReqQFullDrop",),
    "udp_buffer_errors": ("UdpRcvbufErrors", "UdpSndbufErrors", "Udp6RcvbufErrors", "Udp6SndbufErrors"),
    "backlog_drops": ("softnet_dropped",),
    "device_drops": ("rx_dropped", "tx_dropped", "rx_missed_errors"),
}
"""The counts of a snapshot, and the counters that each sums."""

_NO_REASONS = "the kernel reports reasons since Linux 5.17"

_UNSEEN_REASONS = dict(enumerate(UNSEEN.values(), 0xFFFF_0000))
"""Reasons known only from the kernel's counters, with numbers that no kernel reason has."""
_UNSEEN_SITES: Mapping[int, tuple[str, int] | None] = {0: ("tcp_conn_request", 0)}
"""Where listeners drop SYNs, under a location that no packet has."""


def make_probe(host: Host | None = None) -> Drops:
    """Return the probe of this lens."""
    return Drops(host)


def program_text(
    reasons: DropReasons, client_ports: tuple[int, int], kinds_max: int = KINDS_MAX
) -> ProgramText:
    """Return the program of this lens. Drops at client ports (`client_ports`: first, last) are counted together,
    because they would make too many kinds."""
    receiver = {"HAS_RECEIVER": 1} if reasons.has_receiver else {}
    not_dropped = {
        "REASON_NOT_DROPPED": reasons.number("NOT_DROPPED_YET"),
        "REASON_CONSUMED": reasons.number("CONSUMED"),
    }
    return ProgramText(
        sources=(str(Path(__file__).with_name("drops.bpf.c")),),
        header="#include <linux/types.h>\n" + "".join(map(row_header, _STRUCTS, _STRUCTS.values())),
        slices=_SLICES,
        functions=with_types([PROGRAM]),
        maps=("counted", "untracked", "header_ports"),
        defines={
            "PROTOCOL_UNKNOWN": _PROTOCOL_UNKNOWN,
            "SOCKET_FAMILY": spec.SOCKET_FAMILY,
            "CLIENT_PORTS_FIRST": client_ports[0],
            "CLIENT_PORTS_LAST": client_ports[1],
            "KINDS_MAX": kinds_max,
            "HEADER_PORTS_MAX": HEADER_PORTS_MAX,
        }
        | receiver
        | (not_dropped if reasons.has_reasons else {}),
    )


class DropCount:
    """The program at the tracepoint, which counts until `close`."""

    def __init__(self, loader: Loader, kinds_max: int = KINDS_MAX) -> None:
        """Compile, load and attach. Raise NettopError or OSError if the host or the user's rights do not allow it."""
        self.kinds_max = kinds_max
        self.reasons = read_drop_reasons()
        with ExitStack() as opened:
            text = program_text(self.reasons, read_client_ports(), kinds_max)
            self.program = opened.enter_context(closing(loader.load(text)))
            attach_program(self.program, loader, PROGRAM, opened)
            self._opened = opened.pop_all()

    def read(self) -> tuple[Array, Array]:
        """Return every kind of drop so far, and its counts summed over all CPUs. From now on, new ports are named."""
        bpf.set_element(self.program.maps["header_ports"], bytes(4), bytes(_HEADER_PORTS.itemsize))
        counts_by_cpu = np.dtype((COUNT, (maps.possible_cpus(),)))
        kinds, counts = maps.read_all(self.program.maps["counted"], KIND, counts_by_cpu)
        return kinds, maps.sum_last_axis(counts)

    def lost(self) -> dict[str, int]:
        """Count the drops that are in no row: the map was full, or the CPU was already counting another drop."""
        untracked = int(maps.sum_per_cpu(self.program.maps["untracked"], 0))
        return {"untracked": untracked, "recursion": skipped_runs(self.program)}

    def forget(self, kinds: Array) -> None:
        """Delete these kinds of drops; if they occur again, their counts start at 0."""
        maps.delete_all(self.program.maps["counted"], kinds)

    def close(self) -> None:
        """Detach; a second call is a no-op."""
        self._opened.close()


# --- rows ----------------------------------------------------------------------------------------------------


def _unknown_if_zero(numbers: Array) -> Array:
    """Widen numbers to u4 and replace zeros by the unknown value."""
    wide = numbers.astype("u4")
    wide[wide == 0] = _UNKNOWN
    return wide


# --- the kernel's own counters ------------------------------------------------------------------------------------


class NamespaceCounters(NamedTuple):
    """Counters, listeners and devices of a network namespace; `links` is None if the kernel did not list devices."""

    counters: Mapping[str, int]
    listeners: Listeners
    links: Sequence[Link] | None


def read_namespace(proc: Path) -> NamespaceCounters:
    """Read the counters of the calling thread's namespace."""
    counters, listeners, links = read_counters(proc), read_listeners(), None
    with suppress(OSError):
        links = read_links()
    return NamespaceCounters(counters, listeners, links)


# --- the source -------------------------------------------------------------------------------------------------


class Drops(Probe):
    """The source of the drops lens; see nettop.snapshots.source.Source.

    The owners of ports come from the connections lens, if it is attached too.
    """

    lens = spec.LENS

    def __init__(self, host: Host | None = None, kinds_max: int = KINDS_MAX) -> None:
        super().__init__(host)
        self._kinds_max = kinds_max
        self._count: DropCount | None = None
        self._hooks: tuple[HookStatus, ...] = ()
        self._symbols = Symbols(self._host.proc, kept=self._host.kept)
        self._places = TextTable()
        self._sites = dict(_UNSEEN_SITES)
        self._devices: dict[tuple[int, int], str] = {}
        self._seen: frozenset[int] = frozenset()
        self._kinds: Array = np.zeros(0, KIND)
        self._totals: Array = np.zeros(0, COUNT)
        self._ids_of_kinds: Array = np.zeros(0, "u8")
        self._rows: Array = np.zeros(0, spec.PACKETS.dtype)
        self._forgotten = 0
        self._syns = UnseenSyns()
        self._sockets: Rows | None = None

    def texts(self) -> tuple[ProgramText]:
        """Return the text of the lens."""
        return (program_text(read_drop_reasons(), read_client_ports()),)

    def start(self) -> None:
        """Compile, load and attach, and begin to follow namespaces.

        Fall back to the counters if the kernel or the user's rights do not allow it. Raise UsageError for an unknown
        mechanism.
        """
        check_chosen(FALLBACKS, self._options.mechanisms)
        attempts = (self._attach, self._require_reasons, self._require_symbols, lambda _: None)
        for fallbacks, attempt in zip(FALLBACKS, attempts, strict=True):
            self._hooks = (*self._hooks, self._attach_best(fallbacks, attempt))
        self._share_namespaces()
        if self._count:
            self._add_unseen(self._read_namespaces(frozenset()), is_first=True)

    def _attach(self, _: Mechanism) -> None:
        self._host.require_bpf()
        with closing(Loader()) as loader:
            self._symbols.refresh()  # while the loader starts up
            self._count = self._opened.enter_context(closing(DropCount(loader, self._kinds_max)))
        self._programs.append(self._count.program)

    def _require_reasons(self, _: Mechanism) -> None:
        if not self._required(self._count, self._hooks[0]).reasons.has_reasons:
            raise Refused(_NO_REASONS)

    def _require_symbols(self, _: Mechanism) -> None:
        self._required(self._count, self._hooks[0])
        if not len(self._symbols):
            raise why_hidden(self._host.proc)

    def read(self, taken_ns: int) -> Snapshot:
        """Return the drops since the start, and the current values of the kernel's counters."""
        wall_ns, boot_ns = clocks(taken_ns)
        if self._count:
            self._kinds, self._totals = self._count.read()
        by_namespace = self._read_namespaces(frozenset(self._kinds["netns"].tolist()) - {0})
        if self._count:
            self._add_unseen(by_namespace, is_first=False)
        self._name_devices(by_namespace)
        read = (
            (netns, namespace.counters, namespace.links or ()) for netns, namespace in by_namespace.items()
        )
        # None if the user switched them off.
        measures = read_measures(read, self._host.proc) if self._hooks[-1].mechanism else np.zeros(0, MEASURE)
        snapshot = Snapshot(
            spec.LENS.id,
            wall_ns,
            boot_ns,
            tables={
                spec.PACKETS.name: self.namespaces.with_names(self._packets(taken_ns, wall_ns)),
                spec.COUNTERS.name: self.namespaces.with_names(
                    counter_rows(measures, self._devices, taken_ns)
                ),
            },
            counts=self._counts(measures) | self.namespaces.counts(),
            lost=(self._count.lost() if self._count else {})
            | {
                "namespaces": self.namespaces.lost,
                "devices": sum(namespace.links is None for namespace in by_namespace.values()),
            },
            hooks=self._hooks,
            gaps=self.namespaces.gaps(),
        )
        self._evict(by_namespace)
        return snapshot

    def join(self, frames: Mapping[str, Frame]) -> None:
        """See nettop.snapshots.source.JoiningSource."""
        self._sockets = sockets_of(frames)

    def describe(self, key: int) -> dict[str, str]:
        """Describe where in the function packets were dropped, and name the namespace."""
        of_row = np.flatnonzero(self._ids_of_kinds == key)
        if not len(of_row):
            return {}
        kinds, packets = self._kinds[of_row], self._totals["packets"][of_row].tolist()
        netns = int(kinds["netns"][0])
        most_first = sorted(zip(packets, kinds["location"].tolist(), strict=True), reverse=True)
        sites = [(self._sites[location], number) for number, location in most_first]
        places = [f"{site[0]}+{site[1]:#x} ({number:,})" for site, number in sites if site]
        namespace = {"Namespace": self.namespaces.name(netns)} if netns else {}
        return {"Dropped at": ", ".join(places) or "unknown"} | namespace

    # --- reading ------------------------------------------------------------------------------------------------

    def _read_namespaces(self, seen: frozenset[int]) -> dict[int, NamespaceCounters]:
        """Return the counters of every entered namespace, by inode number. `seen` are the namespaces of drops."""
        new = seen - self._seen  # search for a namespace once only: a removed one is never found
        self._seen = seen
        return self.namespaces.run_in_each(partial(read_namespace, self._host.proc), new)

    def _add_unseen(self, by_namespace: Mapping[int, NamespaceCounters], *, is_first: bool) -> None:
        """Add the SYNs that listeners dropped, which do not reach the tracepoint, to the kinds of drops."""
        seen: defaultdict[int, Counter[str]] = defaultdict(Counter)
        for name, reason in UNSEEN.items():
            number = self._count.reasons.number(reason) if self._count else NO_REASON
            same = np.flatnonzero(self._kinds["reason"] == number)
            packets = self._totals["packets"][same].tolist()
            for netns, count in zip(self._kinds["netns"][same].tolist(), packets, strict=True):
                seen[netns][name] += count
        for netns, namespace in by_namespace.items():
            self._syns.add(netns, namespace.counters, namespace.listeners, seen[netns], is_first=is_first)
        numbers = {name: number for number, name in _UNSEEN_REASONS.items()}
        kinds, totals = np.zeros(len(self._syns.counts), KIND), np.zeros(len(self._syns.counts), COUNT)
        for at, ((netns, name, port), count) in enumerate(self._syns.counts.items()):
            kinds["netns"][at], kinds["port"][at], kinds["has_owner"][at] = netns, port, port > 0
            kinds["reason"][at], kinds["protocol"][at] = numbers[UNSEEN[name]], socket.IPPROTO_TCP
            totals["packets"][at] = count
        self._kinds, self._totals = (
            concatenate_rows(self._kinds, kinds),
            concatenate_rows(self._totals, totals),
        )

    def _name_devices(self, by_namespace: Mapping[int, NamespaceCounters]) -> None:
        """Update the names of devices. Keep those of removed devices that still have rows."""
        in_rows = set(zip(self._kinds["netns"].tolist(), self._kinds["ifindex"].tolist(), strict=True))
        self._devices = {device: name for device, name in self._devices.items() if device in in_rows} | {
            (netns, link.index): link.name
            for netns, namespace in by_namespace.items()
            for link in namespace.links or ()
        }

    def _place_codes(self) -> Array:
        """Return the place of each kind of drop as a code into `_places`; _UNKNOWN if the kernel hides its symbols."""
        locations = self._kinds["location"]
        if not self._sites.keys() >= set(locations.tolist()) and self._symbols.refresh():
            self._sites = dict(_UNSEEN_SITES)
        return self._places.codes(locations, self._place)

    def _place(self, location: int) -> str | None:
        if location not in self._sites:
            self._sites[location] = self._symbols.find(location)
        if site := self._sites[location]:
            return site[0]
        return f"{location:#x}" if len(self._symbols) else None  # an address that the kernel hides

    def _evict(self, by_namespace: Mapping[int, NamespaceCounters]) -> None:
        """Evict the least recent drops when the map is nearly full, and the SYNs of removed namespaces."""
        is_packet = self._kinds["location"] > 0
        used = np.count_nonzero(is_packet)
        if self._count is None or used <= self._count.kinds_max * 3 // 4:
            return
        seen_at = self._rows["last_seen"][positions(self._ids_of_kinds, self._rows["id"])]
        oldest_first = np.argsort(seen_at, kind="stable")
        forgotten = oldest_first[is_packet[oldest_first]][: used - self._count.kinds_max * 5 // 8]
        self._count.forget(self._kinds[forgotten])
        self._forgotten += int(self._totals["packets"][forgotten].sum())
        for netns in {netns for netns, _, _ in self._syns.counts} - by_namespace.keys():
            self._forgotten += self._syns.forget(netns)

    # --- rows --------------------------------------------------------------------------------------------------

    def _packets(self, taken_ns: int, wall_ns: int) -> Rows:
        """Return the rows of packets; drops that differ only in the address within a function share a row."""
        keys = self._kinds.copy()
        keys["location"] = self._place_codes()
        first, groups = distinct_rows([keys])
        keys = take_rows(keys, first)
        ids = row_ids(key_hashes(keys, KIND))
        self._ids_of_kinds = ids[groups]
        rows = np.zeros(len(keys), spec.PACKETS.dtype)
        texts: dict[str, Sequence[str]] = {"place": self._places.frozen()}
        rows["id"], rows["place"] = ids, keys["location"]
        rows["netns"] = _unknown_if_zero(keys["netns"])
        rows["reason"], texts["reason"] = encode_texts(keys["reason"], self._reason)
        rows["meaning"], texts["meaning"] = encode_texts(keys["reason"], self._meaning)
        rows["severity"] = self._severities(keys["reason"])
        rows["family"], texts["family"] = encode_texts(
            keys["family"], lambda number: spec.ETHERTYPES.get(number, f"{number:#06x}") if number else None
        )
        rows["protocol"], texts["protocol"] = encode_texts(
            keys["protocol"],
            lambda number: None if number == _PROTOCOL_UNKNOWN else IP_PROTOCOLS.get(number, str(number)),
        )
        rows["interface"], texts["interface"] = device_names(keys["netns"], keys["ifindex"], self._devices)
        rows["port"] = _unknown_if_zero(keys["port"])
        rows["pid"], rows["process"], texts["process"] = self._owners(keys)
        for name in COUNT.names or ():
            np.add.at(rows[name], groups, self._totals[name])
        before = positions(ids, self._rows["id"])
        is_same = before >= 0
        is_same[is_same] = self._rows["packets"][before[is_same]] == rows["packets"][is_same]
        rows["first_seen"] = rows["last_seen"] = wall_ns
        rows["first_seen"][before >= 0] = self._rows["first_seen"][before[before >= 0]]
        rows["last_seen"][is_same] = self._rows["last_seen"][before[is_same]]
        self._rows = take_rows(rows, np.argsort(ids))
        return Rows(spec.PACKETS, self._rows, texts, taken_ns)

    def _owners(self, keys: Array) -> tuple[Array, Array, Sequence[str]]:
        """Return the PIDs of the processes that own these ports, their names as codes, and the names."""
        pids, names = np.full((2, len(keys)), _UNKNOWN, "u4")
        if self._sockets is None:
            return pids, names, []
        owners, same_name, same_pid = find_owners(keys, self._sockets.array)
        is_owned = owners >= 0
        sockets, texts = self._sockets.array, [*self._sockets.texts["process"], SEVERAL]
        pids[is_owned] = sockets["pid"][owners[is_owned]]
        pids[~same_pid] = _UNKNOWN
        names[is_owned] = sockets["process"][owners[is_owned]]
        names[~same_name] = len(texts) - 1
        return pids, *encode_texts(names, lambda code: None if code == _UNKNOWN else texts[code])

    def _reason(self, number: int) -> str | None:
        if self._count is None or not self._count.reasons.has_reasons:
            return None
        return _UNSEEN_REASONS.get(number) or self._count.reasons.name(number)

    def _meaning(self, number: int) -> str | None:
        reason = spec.REASONS.get(self._reason(number) or "")
        return reason.meaning if reason else None

    def _severities(self, numbers: Array) -> Array:
        """Return the severities of reasons, as u1."""
        distinct, groups = np.unique(numbers, return_inverse=True)
        reasons = (spec.REASONS.get(self._reason(number) or "") for number in as_list(distinct))
        severities = (why.severity if why else None for why in reasons)
        return np.array([_NO_SEVERITY if n is None else n for n in severities], "u1")[groups]

    def _counts(self, measures: Array) -> dict[str, int]:
        by_name = np.zeros(len(NAMES), "u8")
        np.add.at(by_name, measures["name"], measures["packets"])
        sums = {total: sum(int(by_name[NUMBERS[name]]) for name in names) for total, names in _SUMS.items()}
        drops = {"drops": self._forgotten + int(self._totals["packets"].sum())} if self._count else {}
        return drops | (sums if len(measures) else {})
