# SPDX-License-Identifier: Apache-2.0
"""The drops probe: a program at the tracepoint kfree_skb counts what the kernel drops, by reason and place.

Beside them stand the counters of drops that the kernel keeps itself, of each namespace, device and CPU. Where
the tracepoint cannot be had, those are what is left.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import wait
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, count
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from nettop.errors import SourceFailed, Unsupported
from nettop.kernel import bpf, maps
from nettop.kernel.btf import Slice
from nettop.kernel.drop_reasons import DropReasons, read_drop_reasons
from nettop.kernel.facts import Host
from nettop.kernel.links import Link, read_links
from nettop.kernel.mechanisms import (
    ChosenMechanisms,
    Fallbacks,
    Mechanism,
    Refused,
    attach_best,
    check_chosen,
)
from nettop.kernel.namespaces import Namespaces, shared_namespaces
from nettop.kernel.net_counters import read_counters, read_softnet
from nettop.kernel.program import Loader, ProgramText
from nettop.kernel.rows import row_header
from nettop.kernel.symbols import Symbols
from nettop.snapshots.arrays import take
from nettop.snapshots.drops import (
    COUNTERS,
    FAMILIES,
    HOOK_COUNTERS,
    HOOK_PACKETS,
    HOOK_PLACES,
    HOOK_REASONS,
    LENS,
    OF_CPUS,
    OF_DEVICES,
    OF_NAMESPACES,
    PACKETS,
    PROTOCOLS,
    REASONS,
    SOCKET_FAMILY,
)
from nettop.snapshots.own_cost import LEFT_OUT
from nettop.snapshots.schema import Kind, Table
from nettop.snapshots.snapshot import Array, HookStatus, Rows, Snapshot, TextTable, unknown_value

HOOK = "tp_btf__kfree_skb"
PACKETS_FALLBACKS = Fallbacks(HOOK_PACKETS, (Mechanism("tp_btf/kfree_skb", (HOOK,)),))
"""The plain tracepoint is no other way: where this one is refused it is too, for the same reasons."""
_REASONS = Fallbacks(HOOK_REASONS, (Mechanism("tp_btf/kfree_skb"),))
_PLACES = Fallbacks(HOOK_PLACES, (Mechanism("/proc/kallsyms"),))
_COUNTERS = Fallbacks(HOOK_COUNTERS, (Mechanism("/proc/net + rtnetlink"),))
FALLBACKS = (PACKETS_FALLBACKS, _REASONS, _PLACES, _COUNTERS)
KINDS_MAX = 4096
"""Kinds of drops that are told apart; a busy host meets some hundred. Each takes 16 bytes on every CPU and some 80
beside them: half a megabyte on two CPUs."""

_BPF_PROG_TYPE_TRACING = 26
_PROTOCOL_UNKNOWN = 255

KIND = np.dtype(
    [
        ("location", "u8"),
        ("netns", "u4"),
        ("ifindex", "u4"),
        ("reason", "u4"),
        ("family", "u2"),
        ("protocol", "u1"),
        ("always_zero", "u1"),
    ]
)
"""The key under which the program counts. A namespace or a device of 0 is an unknown one. It has no padding, which
numpy would not copy."""

COUNT = np.dtype([("packets", "u8"), ("bytes", "u8")])

_SKB = ("dev", "sk", "len", "protocol", "head", "network_header", "skb_iif", "_skb_refdst")
_SLICES = (
    Slice("sk_buff", {name: name for name in _SKB}, {}),
    Slice("net_device", {"ifindex": "ifindex", "nd_net": "nd_net"}, {}),
    Slice("net", {"inum": "ns.inum", "loopback_dev": "loopback_dev"}, {}),
    Slice("sock", {"skc_net": "__sk_common.skc_net", "skc_family": "__sk_common.skc_family"}, {}),
    Slice("dst_entry", {"dev": "dev"}, {}),
)

_SUMS = {
    "listen_overflows": ("TcpExtListenOverflows",),
    "syn_drops": ("TcpExtTCPReqQFullDrop",),
    "udp_buffer_errors": ("UdpRcvbufErrors", "UdpSndbufErrors", "Udp6RcvbufErrors", "Udp6SndbufErrors"),
    "backlog_drops": ("softnet_dropped",),
    "device_drops": ("rx_dropped", "tx_dropped", "rx_missed_errors"),
}
"""The counts of a snapshot, and the counters that each sums up."""

_WORDS = OF_NAMESPACES | OF_DEVICES | OF_CPUS
_COUNT = "the count of dropped packets"
_NO_REASONS = "the kernel tells reasons from Linux 5.17 on"
_NO_SYMBOLS = "the kernel hides its symbols: sysctl kernel.kptr_restrict=2, or no CAP_SYSLOG"


def make_probe() -> Drops:
    """The probe of this lens."""
    return Drops()


def program_text(reasons: DropReasons, kinds_max: int = KINDS_MAX) -> ProgramText:
    """What the loader compiles for this lens."""
    receiver = {"HAS_RECEIVER": 1} if reasons.with_receiver else {}
    told = {
        "REASON_NOT_DROPPED": reasons.number("NOT_DROPPED_YET"),
        "REASON_CONSUMED": reasons.number("CONSUMED"),
    }
    return ProgramText(
        sources=(str(Path(__file__).with_name("drops.bpf.c")),),
        header="#include <linux/types.h>\n" + row_header("kind", KIND) + row_header("count", COUNT),
        slices=_SLICES,
        functions={HOOK: _BPF_PROG_TYPE_TRACING},
        maps=("counted", "untracked"),
        defines={
            "PROTOCOL_UNKNOWN": _PROTOCOL_UNKNOWN,
            "SOCKET_FAMILY": SOCKET_FAMILY,
            "KINDS_MAX": kinds_max,
        }
        | receiver
        | (told if reasons.are_told else {}),
    )


class DropCount:
    """The program at the tracepoint, counting until it is closed."""

    def __init__(self, loader: Loader, kinds_max: int = KINDS_MAX) -> None:
        """Compile, load and attach. Raises NettopError when this host or user cannot."""
        self.kinds_max = kinds_max
        self.reasons = read_drop_reasons()
        self._program = loader.load(program_text(self.reasons, kinds_max))
        try:
            self._link = bpf.attach_tracing(self._program.functions[HOOK])
        except OSError as error:
            self._program.close()
            raise Unsupported(f"the kernel lets no program see kfree_skb: {error.strerror}") from error

    def read(self) -> tuple[Array, Array]:
        """Every kind of drop met so far, and what was counted of it on all CPUs."""
        each = np.dtype((COUNT, (maps.possible_cpus(),)))
        kinds, counts = maps.read_all(self._program.maps["counted"], KIND, each)
        totals = np.zeros(len(kinds), COUNT)
        for name in COUNT.names or ():
            totals[name] = counts[name].sum(axis=1)
        return kinds, totals

    def lost(self) -> dict[str, int]:
        """Drops that no row has: the map had no room, or the program was busy with another one on that CPU."""
        untracked = maps.read_per_cpu(self._program.maps["untracked"], 0, np.dtype("u8"))
        misses = bpf.recursion_misses(self._program.functions[HOOK])
        return {"untracked": int(untracked.sum()), "recursion": misses}

    def runs(self) -> dict[str, tuple[int, int]]:
        """How often the program ran, and for how many ns."""
        return self._program.runs()

    def kernel_bytes(self) -> int:
        """What it takes of the kernel's memory."""
        return self._program.kernel_bytes()

    @property
    def is_attached(self) -> bool:
        """False while it is left out."""
        return self._link >= 0

    def attach(self) -> None:
        """Count again. Raises OSError where the kernel refuses."""
        self._link = bpf.attach_tracing(self._program.functions[HOOK])

    def detach(self) -> None:
        """Count no more until it is attached again; what was counted stays."""
        os.close(self._link)
        self._link = -1

    def forget(self, kinds: Array) -> None:
        """Make room: should these kinds of drops come back, they are counted from 0."""
        maps.delete_all(self._program.maps["counted"], kinds)

    def close(self) -> None:
        """Detach; a second call does nothing."""
        if self._link >= 0:
            os.close(self._link)
            self._link = -1
        self._program.close()


# --- what tells rows apart ------------------------------------------------------------------------------------


class Drop(NamedTuple):
    """What tells a row of the table of packets from the others. None is unknown."""

    reason: str | None
    place: str | None
    protocol: str | None
    family: str | None
    interface: str | None
    netns: int | None


class Measure(NamedTuple):
    """What tells a row of the table of counters from the others. None: it is not of a device, CPU or namespace."""

    name: str
    interface: str | None = None
    cpu: int | None = None
    netns: int | None = None


@dataclass(slots=True)
class Tally:
    """What was dropped in one way. `last_seen_ns` (CLOCK_REALTIME) is the refresh that found the last of it,
    `sites` are the addresses that it was dropped at, with their packets."""

    packets: int = 0
    bytes: int = 0
    last_seen_ns: int = 0
    sites: Counter[int] = field(default_factory=Counter)

    def add(self, packets: int, size: int, site: int) -> None:
        """Count what the program met at one address."""
        self.packets += packets
        self.bytes += size
        self.sites[site] += packets


class Ids:
    """Numbers for rows, by what tells those apart. A number is never used twice."""

    def __init__(self) -> None:
        self._numbers = count(1)
        self.given: dict[Any, int] = {}

    def give(self, rows: Iterable[Any]) -> list[int]:
        """The number of each row, a new one for a new row. Rows that are not among these are forgotten."""
        self.given = {row: self.given.get(row) or next(self._numbers) for row in rows}
        return list(self.given.values())


def make_rows(table: Table, columns: Mapping[str, Sequence[Any]], taken_ns: int) -> Rows:
    """Rows from columns of Python's own values, where None is unknown; sorted by key."""
    texts = {one.name: TextTable() for one in table.stored if one.kind is Kind.TEXT}
    array = np.zeros(len(columns[table.key]), table.dtype)
    for one in table.stored:
        unknown = unknown_value(np.dtype(one.dtype))
        code = texts[one.name].code if one.name in texts else int
        array[one.name] = [unknown if value is None else code(value) for value in columns[one.name]]
    by_key = np.argsort(array[table.key], kind="stable")
    return Rows(table, take(array, by_key), {name: codes.values for name, codes in texts.items()}, taken_ns)


def _columns(names: Sequence[str], rows: Iterable[tuple[Any, ...]]) -> dict[str, list[Any]]:
    """The columns of rows whose values stand in the order of `names`."""
    rows = list(rows)
    return {name: [row[at] for row in rows] for at, name in enumerate(names)}


# --- what the kernel counts itself ------------------------------------------------------------------------------


class Here(NamedTuple):
    """What one network namespace counts, and its devices; None where the kernel did not list those."""

    counters: Mapping[str, int]
    links: Sequence[Link] | None


def read_here(proc: Path) -> Here:
    """What the calling thread's namespace tells."""
    counters = read_counters(proc)
    try:
        return Here(counters, read_links())
    except OSError:
        return Here(counters, None)


def measures_of(netns: int, here: Here) -> Iterator[tuple[Measure, int]]:
    """What a namespace and its devices count of drops."""
    for name in OF_NAMESPACES:
        if name in here.counters:
            yield Measure(name, netns=netns), here.counters[name]
    for link in here.links or ():
        for name in OF_DEVICES:
            if name in link.statistics:
                yield Measure(name, interface=link.name, netns=netns), link.statistics[name]


def measures_of_cpus(proc: Path) -> Iterator[tuple[Measure, int]]:
    """What each CPU counts of drops."""
    for queue in read_softnet(proc):
        yield Measure("softnet_dropped", cpu=queue.cpu), queue.dropped


# --- the source -------------------------------------------------------------------------------------------------


class Drops:
    """The source of the drops lens; see nettop.snapshots.source.Source."""

    def __init__(self, host: Host | None = None, kinds_max: int = KINDS_MAX) -> None:
        self._host = host or Host()
        self._kinds_max = kinds_max
        self._hook: DropCount | None = None
        self._asked: ChosenMechanisms = {}
        self._hooks: tuple[HookStatus, ...] = ()
        self._namespaces: Namespaces | None = None
        self._symbols = Symbols(self._host.proc)
        self._sites: dict[int, tuple[str, int] | None] = {}
        self._devices: dict[tuple[int, int], str] = {}
        self._seen: frozenset[int] = frozenset()
        self._tallies: dict[Drop, Tally] = {}
        self._forgotten = 0
        self._drop_ids, self._measure_ids = Ids(), Ids()

    @property
    def namespaces(self) -> Namespaces:
        """The namespaces that are followed. Raises SourceFailed before the start."""
        if self._namespaces is None:
            raise SourceFailed("the drops probe is not attached")
        return self._namespaces

    def start(self) -> None:
        """Compile, load and attach, and begin to follow namespaces.

        Where the kernel or this user cannot, there are the counters. Raises UsageError for a way that there is not.
        """
        check_chosen(FALLBACKS, self._asked)
        tries = (self._attach, self._need_reasons, self._need_symbols, lambda _: None)
        for fallbacks, try_mechanism in zip(FALLBACKS, tries, strict=True):
            self._hooks = (*self._hooks, attach_best(fallbacks, try_mechanism, self._asked))
        self._namespaces = shared_namespaces(self._host.proc)

    def _attach(self, way: Mechanism) -> None:  # noqa: ARG002 - there is one
        self._host.require_bpf()
        loader = Loader()
        try:
            self._symbols.refresh()  # while the loader gets ready
            self._hook = DropCount(loader, self._kinds_max)
        finally:
            loader.close()

    def _need_reasons(self, _: Mechanism) -> None:
        if self._hook is None:
            raise Refused(self._hooks[0].why)
        if not self._hook.reasons.are_told:
            raise Refused(_NO_REASONS)

    def _need_symbols(self, _: Mechanism) -> None:
        if self._hook is None:
            raise Refused(self._hooks[0].why)
        if not len(self._symbols):
            raise Refused(_NO_SYMBOLS)

    def read(self, taken_ns: int) -> Snapshot:
        """What was dropped since the start, and what the kernel's counters are at now."""
        wall_ns, boot_ns = time.time_ns(), time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        kinds, totals = self._hook.read() if self._hook else (np.zeros(0, KIND), np.zeros(0, COUNT))
        told = self._ask_namespaces(frozenset(kinds["netns"].tolist()) - {0})
        self._name_devices(kinds, told)
        self._tally(kinds, totals, wall_ns)
        measures = self._measures(told)
        snapshot = Snapshot(
            lens=LENS.id,
            wall_ns=wall_ns,
            boot_ns=boot_ns,
            tables={
                PACKETS.name: self._packets(taken_ns),
                COUNTERS.name: self._counters(measures, taken_ns),
            },
            counts=self._counts(measures),
            lost=self._lost(told),
            hooks=self._hooks_now(),
            gaps=self.namespaces.gaps(),
        )
        self._make_room(kinds, totals, told)
        return snapshot

    def set(self, option: str, value: object) -> None:
        """`ways`, before the start: those that are asked for in place of the best."""
        if option == "mechanisms":
            self._asked = cast("ChosenMechanisms", value)

    def describe(self, key: int) -> dict[str, str]:
        """What a reason means, where in the function packets were dropped, and what the namespace is called."""
        drop = next((drop for drop, given in self._drop_ids.given.items() if given == key), None)
        if drop is None:
            return {}
        meaning = {"Meaning": REASONS[drop.reason].meaning} if drop.reason in REASONS else {}
        namespace = {} if drop.netns is None else {"Namespace": self.namespaces.name(drop.netns)}
        return meaning | {"Dropped at": self._sites_text(self._tallies[drop])} | namespace

    def programs(self) -> Mapping[str, tuple[int, int]]:
        """What the program costs; see nettop.snapshots.source.MeasuredSource."""
        return self._hook.runs() if self._hook else {}

    def kernel_bytes(self) -> int:
        """What the program and its maps take of the kernel's memory."""
        return self._hook.kernel_bytes() if self._hook else 0

    def shed(self) -> str | None:
        """Count no packets; see nettop.snapshots.source.SheddingSource."""
        if self._hook is None or not self._hook.is_attached:
            return None
        self._hook.detach()
        return _COUNT

    def restore(self) -> str | None:
        """Count packets again."""
        if self._hook is None or self._hook.is_attached:
            return None
        try:
            self._hook.attach()
        except OSError:
            return None
        return _COUNT

    def close(self) -> None:
        """Detach and leave every namespace; a second call does nothing."""
        if self._hook is not None:
            self._hook.close()
            self._hook = None
        if self._namespaces is not None:
            self._namespaces.close()
            self._namespaces = None

    def _measures(self, told: Mapping[int, Here]) -> dict[Measure, int]:
        """What namespaces, devices and CPUs count, unless nobody wants it."""
        if self._hooks[-1].mechanism is None:
            return {}
        return dict(chain(*(measures_of(*one) for one in told.items()), measures_of_cpus(self._host.proc)))

    # --- what is there ------------------------------------------------------------------------------------------

    def _ask_namespaces(self, seen: frozenset[int]) -> dict[int, Here]:
        """What every namespace that can be entered tells, by its inode number. Drops were seen in those of `seen`."""
        namespaces = self.namespaces
        with namespaces.lock:
            namespaces.follow(seen - self._seen)  # one that is gone stays unknown: it is looked for once
            self._seen = seen
            asked = {
                inode: thread.submit(partial(read_here, self._host.proc))
                for inode, thread in namespaces.threads.items()
            }
            wait(asked.values())
            return {inode: answer.result() for inode, answer in asked.items()}

    def _name_devices(self, kinds: Array, told: Mapping[int, Here]) -> None:
        """Learn the devices' names. Those of devices that have gone are kept while there are rows of them."""
        wanted = set(zip(kinds["netns"].tolist(), kinds["ifindex"].tolist(), strict=True))
        kept = {device: name for device, name in self._devices.items() if device in wanted}
        self._devices = kept | {
            (netns, link.index): link.name for netns, here in told.items() for link in here.links or ()
        }

    def _tally(self, kinds: Array, totals: Array, wall_ns: int) -> None:
        """Sum up what differs in nothing but the address within a function."""
        self._find_sites(set(kinds["location"].tolist()))
        before, self._tallies = self._tallies, {}
        for kind, (packets, size) in zip(kinds.tolist(), totals.tolist(), strict=True):
            self._tallies.setdefault(self._drop(kind), Tally()).add(packets, size, kind[0])
        for drop, tally in self._tallies.items():
            last = before.get(drop)
            tally.last_seen_ns = last.last_seen_ns if last and last.packets == tally.packets else wall_ns

    def _drop(self, kind: tuple[int, ...]) -> Drop:
        location, netns, ifindex, reason, family, protocol, _ = kind
        device = self._devices.get((netns, ifindex), f"if{ifindex}") if ifindex else None
        return Drop(
            reason=self._hook.reasons.name(reason) if self._hook else None,
            place=self._place(location),
            protocol=None if protocol == _PROTOCOL_UNKNOWN else PROTOCOLS.get(protocol, str(protocol)),
            family=FAMILIES.get(family, f"{family:#06x}") if family else None,
            interface=device,
            netns=netns or None,
        )

    def _find_sites(self, addresses: AbstractSet[int]) -> None:
        """Find the functions of addresses that were not met before."""
        if addresses - self._sites.keys() and self._symbols.refresh():
            self._sites = {}
        for address in addresses - self._sites.keys():
            self._sites[address] = self._symbols.find(address)

    def _place(self, address: int) -> str | None:
        site = self._sites[address]
        if site is not None:
            return site[0]
        return f"{address:#x}" if len(self._symbols) else None  # what the kernel hides is not to be told here

    def _make_room(self, kinds: Array, totals: Array, told: Mapping[int, Here]) -> None:
        """Forget drops at devices and in namespaces that are there no more, once most of the map is in use."""
        if self._hook is None or len(kinds) <= self._hook.kinds_max * 3 // 4:
            return
        places = zip(kinds["netns"].tolist(), kinds["ifindex"].tolist(), strict=True)
        gone = [self._is_gone(netns, ifindex, told) for netns, ifindex in places]
        self._hook.forget(kinds[gone])
        self._forgotten += int(totals["packets"][gone].sum())

    def _is_gone(self, netns: int, ifindex: int, told: Mapping[int, Here]) -> bool:
        if netns not in told:
            return netns > 0 and netns not in self.namespaces.refused
        links = told[netns].links
        return links is not None and ifindex > 0 and all(link.index != ifindex for link in links)

    # --- what is published --------------------------------------------------------------------------------------

    def _packets(self, taken_ns: int) -> Rows:
        tallies = self._tallies.values()
        columns = _columns(Drop._fields, self._tallies) | {
            "id": self._drop_ids.give(self._tallies),
            "packets": [tally.packets for tally in tallies],
            "bytes": [tally.bytes for tally in tallies],
            "last_seen": [tally.last_seen_ns for tally in tallies],
        }
        return make_rows(PACKETS, columns, taken_ns)

    def _counters(self, measures: Mapping[Measure, int], taken_ns: int) -> Rows:
        columns = _columns(Measure._fields, measures) | {
            "id": self._measure_ids.give(measures),
            "counter": [_WORDS[measure.name] for measure in measures],
            "packets": list(measures.values()),
        }
        return make_rows(COUNTERS, columns, taken_ns)

    def _counts(self, measures: Mapping[Measure, int]) -> dict[str, int]:
        by_name: Counter[str] = Counter()
        for measure, packets in measures.items():
            by_name[measure.name] += packets
        sums = {name: sum(by_name[one] for one in names) for name, names in _SUMS.items() if by_name}
        if self._hook is None:
            return sums
        return {"drops": self._forgotten + sum(tally.packets for tally in self._tallies.values())} | sums

    def _lost(self, told: Mapping[int, Here]) -> dict[str, int]:
        return (self._hook.lost() if self._hook else {}) | {
            "namespaces": len(self.namespaces.refused),
            "devices": sum(here.links is None for here in told.values()),
        }

    def _hooks_now(self) -> tuple[HookStatus, ...]:
        """How each point is had. While the packets are left out, their rows stay with what they have."""
        if self._hook is None or self._hook.is_attached:
            return self._hooks
        packets, *others = self._hooks
        return HookStatus(packets.hook, None, ((str(packets.mechanism), LEFT_OUT),)), *others

    def _sites_text(self, tally: Tally) -> str:
        """`tcp_v4_rcv+0x1a2 (997), …`: where in the function, the most packets first."""
        found = ((self._sites[address], packets) for address, packets in tally.sites.most_common())
        texts = [f"{site[0]}+{site[1]:#x} ({packets:,})" for site, packets in found if site]
        return ", ".join(texts) or "unknown"
