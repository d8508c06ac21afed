# SPDX-License-Identifier: Apache-2.0
"""The bandwidth probe: the traffic of each interface, from its own counters and from programs that see each packet."""

from __future__ import annotations

import os
import re
import socket
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from nettop.errors import UsageError, unknown_word
from nettop.kernel import bpf_syscall as bpf
from nettop.kernel.bpf import maps
from nettop.kernel.bpf.mechanisms import DisabledByUser, Fallbacks, Mechanism, check_chosen
from nettop.kernel.bpf.program import Program, net_loader
from nettop.kernel.bpf.program_text import ProgramText
from nettop.kernel.bpf.set_table import SetTable, partition
from nettop.kernel.host.facts import Host
from nettop.kernel.net.links import Link, LinkWatch, Negotiated, read_links
from nettop.probes.bandwidth import flows as flow_rows
from nettop.probes.bandwidth import programs
from nettop.probes.bandwidth.history import OWN_COUNTERS, ByteTotals, OwnCounters, RateHistory, UnseenPackets
from nettop.probes.bandwidth.interfaces import Counted, CountedInterfaces, state_of
from nettop.probes.probe import Probe
from nettop.process.clocks import monotonic_ns
from nettop.query.units import human
from nettop.snapshots import bandwidth as spec
from nettop.snapshots.arrays import Array, copy_columns, positions, take_rows
from nettop.snapshots.connections import LENS as CONNECTIONS
from nettop.snapshots.connections import SOCKETS
from nettop.snapshots.hooks import HookStatus
from nettop.snapshots.left_rows import LeftRows
from nettop.snapshots.row_ids import row_id
from nettop.snapshots.schema import Table
from nettop.snapshots.snapshot import (
    LISTED_READINGS,
    Ended,
    Frame,
    Rows,
    Snapshot,
    TextTable,
    clocks,
    known,
    rows_from,
)

_PATTERN = re.compile(r"[*?\[]")
_FIRST_SERVICE = spec.NO_SERVICE + 1
_FALLBACKS = (
    Fallbacks(spec.HOOK_RECEIVED, (Mechanism("XDP + TCX"),)),
    Fallbacks(
        spec.HOOK_SENT, (Mechanism("tp_btf/net_dev_start_xmit + net_dev_xmit", programs.SENT_PROGRAMS),)
    ),
    Fallbacks(spec.HOOK_FLOWS, (Mechanism("XDP + TCX + tp_btf/net_dev_start_xmit"),)),
    Fallbacks(spec.HOOK_INTERFACES, (Mechanism("rtnetlink"),)),
)
_SUMS_OF_PORTS = ("bond", "team")
"""Kinds of interfaces whose counters are the sums of their ports' counters."""
_UNKNOWN, _NO_PORT = np.iinfo(np.uint32).max, np.iinfo(np.uint16).max


def make_probe(host: Host | None = None) -> Bandwidth:
    """Return the probe of this lens."""
    return Bandwidth(host)


_Key = tuple[int, int]
"""The inode number of an interface's namespace, and its index there."""
_Counts = tuple[Array, Array]
"""The programs' counts of an interface: received and sent, each as COUNTS."""


@dataclass(slots=True)
class _Interface:
    """An interface since nettop first saw it: its last reading, its own counters, the bytes its speed allowed so far,
    and its rates. A later interface with the same key gets another `generation`."""

    key: _Key
    generation: int
    link: Link
    own: OwnCounters
    read_at_ns: int
    kind: str = ""
    backing: int = spec.VIRTUAL
    mode: int = spec.COUNTERS_MODE
    unseen: UnseenPackets = field(default_factory=UnseenPackets)
    capacity: float = 0.0
    rates: RateHistory = field(default_factory=RateHistory)
    counted: Counted | None = None
    counts: _Counts | None = None
    """What the programs counted, if they do."""
    was_counted: bool = True
    has_left: bool = False
    before: dict[str, int] = field(default_factory=dict)
    """Its own counters when the programs began to count it, if it had to wait for a slot."""

    @property
    def id(self) -> int:
        """The ID of its row."""
        return row_id(*self.key, *([self.generation] if self.generation else []))


class Bandwidth(Probe):
    """The source of the bandwidth lens; see nettop.snapshots.source.Source.

    The programs count packets on interfaces of nettop's own network namespace. For interfaces of other namespaces,
    whose packets also pass the host's, the probe reads the kernel's counters. Flows are read only if their table is in
    use.
    """

    lens = spec.LENS

    def __init__(self, host: Host | None = None, flows_max: int = programs.FLOWS_MAX) -> None:
        super().__init__(host)
        self._flows_max = flows_max
        self._program: Program | None = None
        self._counted: CountedInterfaces | None = None
        self._flows: SetTable | None = None
        self._hooks: tuple[HookStatus, ...] = ()
        self._services: list[str] = []
        self._names: set[str] = set()
        self._watch: LinkWatch | None = None
        self._interfaces: dict[_Key, _Interface] = {}
        self._gone: deque[dict[_Key, _Interface]] = deque(maxlen=LISTED_READINGS)
        self._removed = {
            table.name: LeftRows(table, "interface", spec.REMOVED, not_added=("capacity",))
            for table in (spec.INTERFACES, spec.PROTOCOL_TABLE, spec.SERVICE_TABLE)
        }
        self._unseen = self._without_slot = 0
        self._has_devices = False
        self._names_in_flows: dict[int, str] = {}
        self._sockets: Snapshot | None = None
        self._last_flows: Rows | None = None
        self._last_owners = flow_rows.no_owners(0)
        self._flow_counts: dict[str, int] = {}
        self._of_devices: dict[int, tuple[int, ...]] = {}
        self._of_gone_devices = np.zeros(len(programs.TRAFFIC_COLUMNS), np.uint64)

    # --- attaching ----------------------------------------------------------------------------------------------

    def texts(self) -> tuple[ProgramText]:
        """Return the text of the lens with flows."""
        return (programs.program_text(0, flows_max=self._flows_max),)

    def start(self) -> None:
        """Load and attach the programs and begin to follow namespaces.

        Fall back to the interfaces' own counters where the kernel or the user's rights do not allow programs. Raises
        UsageError for an unknown mechanism or interface.
        """
        check_chosen(_FALLBACKS, self._options.mechanisms)
        self._share_namespaces()
        steps = (self._load, self._attach_sent, self._open_flows, lambda _: None)
        for fallbacks, step in zip(_FALLBACKS, steps, strict=True):
            self._hooks = (*self._hooks, self._attach_best(fallbacks, step))
        with suppress(OSError):
            self._watch = self._opened.enter_context(closing(LinkWatch()))
        links, left = self._read_links()
        self._require_interfaces()
        self._follow(links, left)

    def _load(self, _: Mechanism) -> None:
        if self._options[spec.XDP] == "off":
            raise DisabledByUser("switched off by --xdp off", "remove --xdp off")
        self._host.require_bpf()
        has_flows = self._options[spec.FLOWS_OPTION] == "on"
        text = programs.program_text(self.namespaces.own, flows_max=self._flows_max if has_flows else None)
        self._program = self._opened.enter_context(closing(net_loader(self._host).load(text)))
        self._programs.append(self._program)
        self._set_services(self._program)
        self._counted = self._opened.enter_context(closing(CountedInterfaces(self._program)))

    def _attach_sent(self, _: Mechanism) -> None:
        program = self._required(self._program, self._hooks[0])
        for name in reversed(programs.SENT_PROGRAMS):
            self._opened.callback(os.close, bpf.attach_tracing(program.functions[name]))

    def _open_flows(self, _: Mechanism) -> None:
        program = self._required(self._program, self._hooks[0])
        if self._options[spec.FLOWS_OPTION] == "off":
            raise DisabledByUser("switched off by --flows off", "remove --flows off")
        sets, parts = partition(self._flows_max, programs.SET_ENTRIES)
        self._flows = SetTable(
            program.maps["flows"], sets * parts * programs.SET_ENTRIES, programs.FLOW, programs.KEY
        )
        self._opened.callback(self._flows.close)

    def _set_services(self, program: Program) -> None:
        ports = np.zeros(programs.SERVICES_BYTES, np.uint8)
        services = (*spec.SERVICES, *spec.parse_services(self._options[spec.SERVICE]))
        self._services = list(dict.fromkeys(name for name, _, _ in services))
        for name, port, protocol in services:
            ports[port + (1 << 16) * (protocol == "udp")] = _FIRST_SERVICE + self._services.index(name)
        bpf.set_element(program.maps["services"], bytes(4), ports.tobytes())

    # --- following ----------------------------------------------------------------------------------------------

    def _read_links(self) -> tuple[dict[_Key, Link], dict[_Key, Link]]:
        """Return the selected interfaces of every entered namespace, and those removed from nettop's own namespace
        since the last reading, with their final counters."""
        by_namespace = self.namespaces.run_in_each(self._list)
        every = {(inode, link.index): link for inode, (links, _) in by_namespace.items() for link in links}
        self._names = {name for link in every.values() for name in link.names}
        left = {(inode, link.index): link for inode, (_, left) in by_namespace.items() for link in left}
        return {key: link for key, link in every.items() if self._is_chosen(link)}, left

    def _list(self) -> tuple[list[Link], list[Link]]:
        """Return the interfaces of the calling thread's namespace, and those removed if it is nettop's own; none
        if the kernel does not list them."""
        try:
            if self._watch is not None and os.stat("/proc/thread-self/ns/net").st_ino == self.namespaces.own:
                return self._watch.read()
            return read_links(), []
        except OSError:
            return [], []

    @property
    def _chosen_words(self) -> list[str]:
        return [word for word in map(str.strip, self._options[spec.INTERFACE].split(",")) if word]

    def _is_chosen(self, link: Link) -> bool:
        if words := self._chosen_words:
            return any(self._means(word, name) for word in words for name in link.names)
        return not link.is_loopback or self._options[spec.LOOPBACK] == "on"

    def _means(self, word: str, name: str) -> bool:
        """Return whether a word of --interface matches this name. A word that is an interface's name is not a
        pattern."""
        return name == word if word in self._names else fnmatchcase(name, word)

    def _absent(self) -> list[str]:
        """Return the words of --interface that match no current interface."""
        return [
            word for word in self._chosen_words if not any(self._means(word, name) for name in self._names)
        ]

    def _require_interfaces(self) -> None:
        """Raise UsageError for a name that no interface has; a pattern may match one later."""
        for word in self._absent():
            if not _PATTERN.search(word):
                error = unknown_word("interface", word, self._names)
                raise UsageError(error.what, f"{error.remedy}\nto wait for it, use a pattern: {word}*")

    def _follow(self, links: Mapping[_Key, Link], left: Mapping[_Key, Link]) -> list[_Interface]:
        """Start counting new interfaces; return the removed ones with their final counts."""
        gone = {
            key: self._interfaces.pop(key)
            for key in list(self._interfaces)
            if key in left or key not in links
        }
        for key, interface in gone.items():
            if self._counted is not None and interface.counted is not None:
                interface.counts = self._counted.leave(interface.counted)
            interface.has_left = True
            if key in left:
                interface.link = left[key].with_counters_at_least(interface.link)
        self._gone.append(gone)
        now_ns = monotonic_ns()
        for key, link in links.items():
            if key in self._interfaces:
                self._interfaces[key].link = link
            else:
                generations = [gone[key].generation + 1 for gone in self._gone if key in gone]
                self._interfaces[key] = _Interface(
                    key, max(generations, default=0), link, OwnCounters(link.statistics), now_ns
                )
        self._count()
        return list(gone.values())

    def _count(self) -> None:
        """Have the programs count the interfaces of nettop's own namespace that are up."""
        for interface in self._interfaces.values():
            if self._counted is None or not self._is_here(interface):
                continue
            if interface.counted is None and interface.link.is_up:
                interface.counted = self._counted.enter(interface.link, self._options[spec.XDP])
                self._without_slot += interface.counted is None
            if interface.counted is not None:
                self._names_in_flows[interface.counted.number] = interface.link.name

    # --- reading ------------------------------------------------------------------------------------------------

    def read(self, taken_ns: int) -> Snapshot:
        """Return the traffic since the start."""
        removed = self._follow(*self._read_links())
        taken_ns = max(taken_ns, monotonic_ns())
        wall_ns, boot_ns = clocks(taken_ns)
        present = list(self._interfaces.values())
        for interface in present:
            if self._counted is not None and interface.counted is not None:
                interface.counts = self._counted.read(interface.counted)
        self._has_devices = any(map(self._is_device, present))
        tables, left = self._tables(present, taken_ns), self._tables(removed, taken_ns)
        ended = {name: self._removed[name].add(rows) for name, rows in left.items()}
        if self._flows is not None and spec.FLOWS.name in self._options.tables:
            tables[spec.FLOWS.name], ended[spec.FLOWS.name] = self._flow_rows(self._flows, taken_ns, wall_ns)
        gaps = self.namespaces.gaps()
        if absent := self._absent():
            gaps[spec.NO_INTERFACE] = f"{' or '.join(absent)} matches no interface yet"
        return Snapshot(
            spec.LENS.id,
            wall_ns,
            boot_ns,
            tables=tables,
            counts=self._host_totals(tables[spec.INTERFACES.name], left[spec.INTERFACES.name])
            | self._flow_counts
            | self.namespaces.counts(),
            lost=self._lost(),
            hooks=self._hooks,
            gaps=gaps,
            ended=ended,
        )

    def _tables(self, interfaces: Sequence[_Interface], taken_ns: int) -> dict[str, Rows]:
        names = [spec.OTHER_SERVICES, *self._services]
        services = range(spec.NO_SERVICE, spec.NO_SERVICE + len(names))
        return {
            spec.INTERFACES.name: self.namespaces.with_names(
                rows_from(
                    spec.INTERFACES, [self._values(interface, taken_ns) for interface in interfaces], taken_ns
                )
            ),
            spec.PROTOCOL_TABLE.name: self._split(
                spec.PROTOCOL_TABLE, interfaces, range(len(spec.PROTOCOLS)), {}, taken_ns
            ),
            spec.SERVICE_TABLE.name: self._split(
                spec.SERVICE_TABLE, interfaces, services, {"service": names}, taken_ns
            ),
        }

    def _is_here(self, interface: _Interface) -> bool:
        return interface.key[0] == self.namespaces.own

    def _is_device(self, interface: _Interface) -> bool:
        return self._is_here(interface) and interface.link.has_bus_device()

    def _values(self, interface: _Interface, taken_ns: int) -> dict[str, Any]:
        """Return the row of an interface; what it lacks is unknown."""
        if not interface.has_left:
            self._classify(interface)
        values = {
            "id": interface.id,
            "interface": interface.link.name,
            "kind": interface.kind,
            "netns": interface.key[0],
            "backing": interface.backing,
            "state": spec.UP if interface.has_left else state_of(interface.link),
            "link_ups": interface.link.carrier_ups,
            "mode": interface.mode,
            **self._negotiated(interface, taken_ns),
            **self._moved(interface),
        }
        received, sent = values.get("bytes_received"), values.get("bytes_sent")
        if received is None or sent is None:
            interface.rates = RateHistory()
        else:
            interface.rates.add(ByteTotals(taken_ns, received, sent))
        return values | {"unseen": self._count_unseen(interface, values.get("packets_received"), taken_ns)}

    def _classify(self, interface: _Interface) -> None:
        """Record properties that can be read only while an interface exists."""
        link, is_own = interface.link, self._is_here(interface)
        is_device = self._is_device(interface)
        leads_out = not self._has_devices and is_own and link.peer_is_elsewhere and not link.has_master
        interface.backing = spec.UPLINK if is_device or leads_out else spec.VIRTUAL
        interface.kind = link.kind or ("ether" if is_device else "loopback" if link.is_loopback else "?")
        if interface.counted is not None:
            interface.mode = interface.counted.mode_of(link)

    def _negotiated(self, interface: _Interface, taken_ns: int) -> dict[str, Any]:
        """Return the link's duplex mode and speed, and the bytes that the speed has allowed so far."""
        is_present = self._is_here(interface) and not interface.has_left
        speed, duplex = interface.link.negotiated() if is_present else Negotiated()
        if speed is not None:
            interface.capacity += speed * (taken_ns - interface.read_at_ns) / 1e9
        interface.read_at_ns = taken_ns
        return {"speed": speed, "duplex": duplex, "capacity": None if speed is None else interface.capacity}

    def _moved(self, interface: _Interface) -> dict[str, Any]:
        """Return received and sent traffic, from the programs or else from the interface's own counters."""
        continues = interface.own.add(interface.link.statistics)
        moved = (
            {name: interface.own.growth(parts) for name, parts in OWN_COUNTERS.items()} if continues else {}
        )
        if not continues:
            interface.unseen = UnseenPackets()
        was_counted, interface.was_counted = interface.was_counted, interface.counts is not None
        if interface.counts is None:
            return moved
        seen = self._seen(interface, *interface.counts)
        if not was_counted and continues:
            interface.before = {name: max(0, moved[name] - count) for name, count in seen.items()}
        moved |= {name: interface.before.get(name, 0) + count for name, count in seen.items()}
        if len(seen) == len(programs.TRAFFIC_COLUMNS):
            for kind, name in enumerate(spec.CASTS, len(spec.PROTOCOLS)):
                moved[name] = sum(int(count["packets"][kind]) for count in interface.counts)
        return moved

    def _seen(self, interface: _Interface, received: Array, sent: Array) -> dict[str, int]:
        """Return the columns that the programs can fill for an interface, with their counts."""
        ways = [("received", received)] if interface.mode != spec.COUNTERS_MODE else []
        ways += [("sent", sent)] if self._hooks[1].mechanism is not None else []
        return {
            f"{unit}_{way}": int(counts[unit][: len(spec.PROTOCOLS)].sum())
            for way, counts in ways
            for unit in ("packets", "bytes")
        }

    def _count_unseen(self, interface: _Interface, received: int | None, taken_ns: int) -> int | None:
        """Return the number of received packets that the programs did not see, if they see any."""
        is_sum = interface.link.kind in _SUMS_OF_PORTS
        if interface.counts is None or interface.mode == spec.COUNTERS_MODE or is_sum or received is None:
            return None
        self._unseen += interface.unseen.add(
            taken_ns,
            interface.link.statistics.get("rx_packets", 0),
            received - interface.before.get("packets_received", 0),
            is_last=interface.has_left,
        )
        return interface.unseen.count

    def _split(
        self,
        table: Table,
        interfaces: Sequence[_Interface],
        kinds: range,
        texts: Mapping[str, Sequence[str]],
        taken_ns: int,
    ) -> Rows:
        """Return a row for each counted interface and each of these kinds of packets that it carried."""
        counted = [(interface, interface.counts) for interface in interfaces if interface.counts is not None]
        rows, names = np.zeros((len(counted), len(kinds)), table.dtype), TextTable()
        _, _, split = table.stored[:3]
        for of_interface, (interface, (received, sent)) in zip(rows, counted, strict=True):
            number = interface.generation << 32 | interface.link.index
            of_interface["id"] = number * spec.KINDS + np.arange(len(kinds))
            of_interface["interface"] = names.code(interface.link.name)
            of_interface[split.name] = np.arange(len(kinds))
            for unit in ("packets", "bytes"):
                of_interface[f"{unit}_received"] = received[unit][kinds.start : kinds.stop]
                of_interface[f"{unit}_sent"] = sent[unit][kinds.start : kinds.stop]
        rows = take_rows(rows.ravel(), (rows["packets_received"] + rows["packets_sent"]).ravel() > 0)
        rows = take_rows(rows, np.argsort(rows["id"]))
        return Rows(table, rows, {"interface": names.frozen(), **texts}, taken_ns)

    def _flow_rows(self, table: SetTable, taken_ns: int, wall_ns: int) -> tuple[Rows, Ended]:
        """Return the flows, and the sums of those that were evicted."""
        flows = flow_rows.read_flows(table)
        rows = np.zeros(len(flows), spec.FLOWS.dtype)
        texts = {name: TextTable() for name in ("interface", "protocol", "tcp_flags", "process")}
        rows["id"] = flow_rows.ids_of(flows)
        for end in ("local", "remote"):
            rows[f"{end}_address"] = np.ascontiguousarray(flows[f"{end}_address"]).view(">u8")
            rows[f"{end}_port"] = flows[f"{end}_port"]
            rows[f"{end}_port"][~flow_rows.has_ports(flows)] = _NO_PORT
        self._put_owners(rows, flows, texts["process"])
        rows["interface"] = texts["interface"].codes(
            flows["interface"], lambda number: self._names_in_flows.get(number, "?")
        )
        carried = flows["protocol"].astype(np.uint32) << 16 | flows["remote_port"]
        carried[flows["protocol"] != spec.PROTOCOL_NOT_IP] &= np.uint32(0xFF0000)
        rows["protocol"] = texts["protocol"].codes(
            carried, lambda n: flow_rows.protocol_name(n >> 16, n & 0xFFFF)
        )
        rows["tcp_flags"] = texts["tcp_flags"].codes(flows["tcp_flags"], flow_rows.flags_text)
        rows["tcp_flags"][flows["protocol"] != socket.IPPROTO_TCP] = _UNKNOWN
        copy_columns(rows, flows, programs.TRAFFIC_COLUMNS)
        to_wall = wall_ns - taken_ns
        for name in ("first_seen", "last_seen"):
            rows[name] = flows[name].astype(np.int64) + to_wall
        evicted = maps.sum_per_cpu(self._required(self._program).maps["evicted"], 0, programs.EVICTED_SUM)
        total = np.full(spec.FLOWS.dtype.itemsize, 0xFF, np.uint8).view(spec.FLOWS.dtype)
        total["id"] = total["local_address"] = total["remote_address"] = 0
        total["interface"] = texts["interface"].code(spec.EVICTED)
        total["process"] = texts["process"].code(spec.EVICTED)
        copy_columns(total, evicted, programs.TRAFFIC_COLUMNS)
        self._flow_counts = {"flows": len(flows), "flows_evicted": int(evicted["flows"])}
        values = {name: text.frozen() for name, text in texts.items()}
        self._last_flows = Rows(spec.FLOWS, rows, values, taken_ns)
        return self._last_flows, Ended((), Rows(spec.FLOWS, total, values, taken_ns))

    def _put_owners(self, rows: Array, flows: Array, texts: TextTable) -> None:
        """Fill in the process that owns, or last owned, the socket of each flow, according to the connections lens;
        `several` if another process had the same endpoints before."""
        owners = flow_rows.no_owners(len(rows))
        for sockets in self._sockets_and_ended():
            # A socket that had ended before a flow began cannot own it.
            may_own = np.flatnonzero(flows["first_seen"] <= sockets.taken_ns)
            protocols = flows["protocol"][may_own]
            found = flow_rows.find_owners(
                take_rows(rows, may_own), protocols, sockets, self.namespaces.own, texts
            )
            owners[may_own] = flow_rows.merge_owners(owners[may_own], found, texts)
        last = self._last_flows
        if last is not None:
            before = self._last_owners.copy()
            before["process"] = texts.adopted(before["process"], last.texts["process"])
            at = positions(rows["id"], last.array["id"])
            owners[at >= 0] = flow_rows.merge_owners(owners[at >= 0], before[at[at >= 0]], texts)
        rows["process"], rows["pid"] = owners["process"], owners["pid"]
        self._last_owners = owners

    def _sockets_and_ended(self) -> list[Rows]:
        """Return the current sockets, and those that ended recently."""
        name, snapshot = SOCKETS.name, self._sockets
        if snapshot is None or name not in snapshot.tables:
            return []
        ended = snapshot.ended.get(name)
        return [snapshot.tables[name], *(ended.rows if ended else ())]

    def _host_totals(self, interfaces: Rows, removed: Rows) -> dict[str, int]:
        """Return the traffic of all devices, including removed ones; empty if there never was one."""
        now, last = _of_uplinks(interfaces.array), _of_uplinks(removed.array)
        for gone in (self._of_devices | last).keys() - now.keys():
            self._of_gone_devices += np.array(last.get(gone) or self._of_devices[gone], np.uint64)
        self._of_devices = now
        totals = self._of_gone_devices + np.array(list(now.values()), np.uint64).reshape(
            -1, len(programs.TRAFFIC_COLUMNS)
        ).sum(axis=0, dtype=np.uint64)
        return (
            dict(zip(programs.TRAFFIC_COLUMNS, totals.tolist(), strict=True)) if now or totals.any() else {}
        )

    def _lost(self) -> dict[str, int]:
        program = self._program
        if program is None:
            return {"namespaces": self.namespaces.lost}
        skipped = sum(bpf.recursion_misses(program.functions[name]) for name in programs.SENT_PROGRAMS)
        refused = int(maps.sum_per_cpu(program.maps["refused"], 0))
        return {
            spec.WITHOUT_SLOT: self._without_slot,
            "unseen": self._unseen,
            "refused": refused,
            "recursion": skipped,
            "namespaces": self.namespaces.lost,
        }

    def join(self, frames: Mapping[str, Frame]) -> None:
        """See nettop.snapshots.source.JoiningSource."""
        frame = frames.get(CONNECTIONS.id)
        self._sockets = None if frame is None else frame.now

    # --- the rest of a source -----------------------------------------------------------------------------------

    def describe(self, key: int) -> dict[str, str]:
        """Describe how an interface is read, and its past rates."""
        interface = next((one for one in self._interfaces.values() if one.id == key), None)
        if interface is None:
            return {}
        details = {"Namespace": self.namespaces.name(interface.key[0])}
        if interface.counted is not None:
            details |= {f"Not {mode}": why for mode, why in interface.counted.refused}
        for title, summary in (
            ("Last minute", interface.rates.last_minute()),
            ("Since the start", interface.rates.since_start()),
        ):
            if summary is not None:
                details[title] = "; peak ".join(
                    f"{human(received, 'bytes/s')} in, {human(sent, 'bytes/s')} out"
                    for received, sent in summary
                )
        return details


def _of_uplinks(rows: Array) -> dict[int, tuple[int, ...]]:
    """Return each uplink's received and sent counters, by ID; omit uplinks with unknown counters."""
    is_counted = rows["backing"] == spec.UPLINK
    for name in programs.TRAFFIC_COLUMNS:
        is_counted &= known(rows[name])
    return {
        int(row["id"]): tuple(int(row[name]) for name in programs.TRAFFIC_COLUMNS)
        for row in take_rows(rows, np.flatnonzero(is_counted))
    }
