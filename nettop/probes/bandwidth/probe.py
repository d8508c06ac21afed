# SPDX-License-Identifier: Apache-2.0
"""The bandwidth probe: what each interface carries, by its own counters and by programs that see each packet."""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, cast

import numpy as np

from nettop.errors import SourceFailed, UsageError, unknown_word
from nettop.kernel import bpf, maps
from nettop.kernel.entered_namespaces import Namespaces, shared_namespaces
from nettop.kernel.facts import Host
from nettop.kernel.links import Link, read_links
from nettop.kernel.mechanisms import (
    ChosenMechanisms,
    Fallbacks,
    Mechanism,
    SwitchedOff,
    attach_best,
    check_chosen,
)
from nettop.kernel.net_loader import net_loader
from nettop.kernel.program import Program
from nettop.probes.bandwidth.flows import FlowTable, flags_text, has_ports, ids_of, protocol_name
from nettop.probes.bandwidth.interfaces import CountedInterfaces
from nettop.probes.bandwidth.owners import no_owners, owners_among, recoded, with_before
from nettop.probes.bandwidth.programs import (
    FLOWS_MAX,
    MOVED,
    SENT_PROGRAMS,
    SERVICES_BYTES,
    program_text,
)
from nettop.probes.bandwidth.rates import Moved, RateHistory, Summary
from nettop.query.units import human
from nettop.snapshots.arrays import as_list, positions, take
from nettop.snapshots.bandwidth import (
    CASTS,
    COUNTERS_MODE,
    EVICTED,
    FLOWS,
    FLOWS_OPTION,
    HOOK_FLOWS,
    HOOK_INTERFACES,
    HOOK_RECEIVED,
    HOOK_SENT,
    INTERFACE,
    INTERFACES,
    KINDS,
    LENS,
    LOOPBACK,
    NO_INTERFACE,
    NO_SERVICE,
    OTHER_SERVICES,
    PROTOCOL_NOT_IP,
    PROTOCOL_TABLE,
    PROTOCOLS,
    SERVICE,
    SERVICE_TABLE,
    SERVICES,
    UPLINK,
    VIRTUAL,
    XDP,
    parse_services,
)
from nettop.snapshots.connections import LENS as CONNECTIONS
from nettop.snapshots.connections import SOCKETS
from nettop.snapshots.hooks import HookStatus
from nettop.snapshots.row_ids import row_id
from nettop.snapshots.schema import Table
from nettop.snapshots.snapshot import Array, Ended, Rows, Snapshot, TextTable, unknown_value

_PATTERN = re.compile(r"[*?\[]")
_FIRST_SERVICE = NO_SERVICE + 1
_FALLBACKS = (
    Fallbacks(HOOK_RECEIVED, (Mechanism("XDP + TCX"),)),
    Fallbacks(HOOK_SENT, (Mechanism("tp_btf/net_dev_start_xmit + net_dev_xmit", SENT_PROGRAMS),)),
    Fallbacks(HOOK_FLOWS, (Mechanism("XDP + TCX + tp_btf/net_dev_start_xmit"),)),
    Fallbacks(HOOK_INTERFACES, (Mechanism("rtnetlink"),)),
)
_UNKNOWN, _NO_PORT = np.iinfo(np.uint32).max, np.iinfo(np.uint16).max


def make_probe() -> Bandwidth:
    """The probe of this lens."""
    return Bandwidth()


@dataclass(slots=True)
class _Seen:
    """An interface since nettop first saw it: what its own counters were then, when it was last read, how much its
    speed has allowed, and its rates."""

    statistics: Mapping[str, int]
    read_at_ns: int
    capacity: float = 0.0
    rates: RateHistory = field(default_factory=RateHistory)


class Bandwidth:
    """The source of the bandwidth lens; see nettop.snapshots.source.Source.

    Packets are counted on interfaces of nettop's own network namespace; of those of other namespaces, whose packets
    pass the host's too, there are the kernel's counters. Options: see nettop.snapshots.bandwidth; `table` names a table
    that somebody looks at: flows are read only for that of flows.
    """

    def __init__(self, host: Host | None = None, flows_max: int = FLOWS_MAX) -> None:
        self._host = host or Host()
        self._flows_max = flows_max
        self._options: dict[str, Any] = {option.name: option.default for option in LENS.options}
        self._chosen: ChosenMechanisms = {}
        self._tables: set[str] = set()
        self._opened = ExitStack()
        self._program: Program | None = None
        self._counted: CountedInterfaces | None = None
        self._flows: FlowTable | None = None
        self._sees_sent = False
        self._hooks: tuple[HookStatus, ...] = ()
        self._namespaces: Namespaces | None = None
        self._services: list[str] = []
        self._links: dict[tuple[int, int], Link] = {}
        self._names: set[str] = set()
        self._seen: dict[tuple[int, int], _Seen] = {}
        self._names_in_flows: dict[int, str] = {}
        self._sockets: Snapshot | None = None
        self._last_flows: Rows | None = None
        self._last_owners = no_owners(0)
        self._flow_counts: dict[str, int] = {}
        self._of_devices: dict[int, tuple[int, ...]] = {}
        self._of_gone_devices = np.zeros(len(MOVED), np.uint64)

    @property
    def namespaces(self) -> Namespaces:
        """The namespaces that are followed. Raises SourceFailed before the start."""
        if self._namespaces is None:
            raise SourceFailed("the bandwidth probe is not attached")
        return self._namespaces

    # --- attaching ----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Load the programs, attach them, and begin to follow namespaces. Where the kernel or this user cannot, there
        are the interfaces' own counters. Raises UsageError for an unknown mechanism or interface."""
        check_chosen(_FALLBACKS, self._chosen)
        self._namespaces = shared_namespaces(self._host.proc)
        self._opened.callback(self._namespaces.close)
        steps = (self._load, self._attach_sent, self._open_flows, lambda _: None)
        for fallbacks, step in zip(_FALLBACKS, steps, strict=True):
            self._hooks = (*self._hooks, attach_best(fallbacks, step, self._chosen))
        links = self._read_links()
        self._require_interfaces()
        self._follow(links)

    def _load(self, _: Mechanism) -> None:
        if self._options[XDP.name] == "off":
            raise SwitchedOff("switched off by --xdp off", "leave out --xdp off")
        self._host.require_bpf()
        has_flows = self._options[FLOWS_OPTION.name] == "on"
        text = program_text(self.namespaces.own, flows_max=self._flows_max if has_flows else None)
        self._program = net_loader().load(text)
        self._opened.callback(self._program.close)
        self._set_services(self._program)
        self._counted = CountedInterfaces(self._program)
        self._opened.callback(self._counted.close)

    def _loaded(self) -> Program:
        if self._program is None:
            raise self._hooks[0].error()
        return self._program

    def _attach_sent(self, _: Mechanism) -> None:
        program = self._loaded()
        for name in reversed(SENT_PROGRAMS):
            self._opened.callback(os.close, bpf.attach_tracing(program.functions[name]))
        self._sees_sent = True

    def _open_flows(self, _: Mechanism) -> None:
        program = self._loaded()
        if self._options[FLOWS_OPTION.name] == "off":
            raise SwitchedOff("switched off by --flows off", "leave out --flows off")
        self._flows = FlowTable(program, self._flows_max)
        self._opened.callback(self._flows.close)

    def _set_services(self, program: Program) -> None:
        ports = np.zeros(SERVICES_BYTES, np.uint8)
        services = (*SERVICES, *parse_services(str(self._options[SERVICE.name])))
        self._services = list(dict.fromkeys(name for name, _, _ in services))
        for name, port, protocol in services:
            ports[port + (1 << 16) * (protocol == "udp")] = _FIRST_SERVICE + self._services.index(name)
        bpf.set_element(program.maps["services"], bytes(4), ports.tobytes())

    # --- following ----------------------------------------------------------------------------------------------

    def _read_links(self) -> dict[tuple[int, int], Link]:
        """The chosen interfaces of every namespace that was entered, by its inode number and their index."""
        every = {
            (inode, link.index): link
            for inode, links in self.namespaces.in_each(_links).items()
            for link in links or ()
        }
        self._names = {link.name for link in every.values()}
        return {key: link for key, link in every.items() if self._is_chosen(link)}

    @property
    def _chosen_words(self) -> list[str]:
        return [word for word in map(str.strip, str(self._options[INTERFACE.name]).split(",")) if word]

    def _is_chosen(self, link: Link) -> bool:
        if words := self._chosen_words:
            return any(self._means(word, link.name) for word in words)
        return not link.is_loopback or self._options[LOOPBACK.name] == "on"

    def _means(self, word: str, name: str) -> bool:
        """Whether a word of --interface means this name: an interface of just this name, else a match."""
        return name == word if word in self._names else fnmatchcase(name, word)

    def _absent(self) -> list[str]:
        """Return the words of --interface that mean no interface there is now."""
        return [
            word for word in self._chosen_words if not any(self._means(word, name) for name in self._names)
        ]

    def _require_interfaces(self) -> None:
        """Raise UsageError for a name that no interface has; a pattern may wait for one."""
        for word in self._absent():
            if not _PATTERN.search(word):
                error = unknown_word("interface", word, self._names)
                raise UsageError(error.what, f"{error.remedy}\nto wait for it write a pattern: {word}*")

    def _gaps(self) -> dict[str, str]:
        absent = " or ".join(self._absent())
        return {NO_INTERFACE: f"{absent} matches no interface yet"} if absent else {}

    def _follow(self, links: Mapping[tuple[int, int], Link]) -> None:
        """Count what has come, and keep what has gone in the host's totals."""
        if self._counted is None:
            return
        own = {index: link for (netns, index), link in links.items() if netns == self.namespaces.own}
        wanted = {index: link for index, link in own.items() if link.is_up or self._counted.has(index)}
        self._counted.follow(wanted, str(self._options[XDP.name]))
        self._names_in_flows |= {number: own[index].name for number, index in self._counted.numbers().items()}

    # --- reading ------------------------------------------------------------------------------------------------

    def read(self, taken_ns: int) -> Snapshot:
        """What was received and sent since the start."""
        self._links = self._read_links()
        self._follow(self._links)
        taken_ns = max(taken_ns, time.monotonic_ns())
        wall_ns, boot_ns = time.time_ns(), time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        counts = {}
        if self._counted is not None:
            counts = {
                index: read
                for netns, index in self._links
                if netns == self.namespaces.own and (read := self._counted.read(index)) is not None
            }
        tables = {
            INTERFACES.name: self.namespaces.with_names(self._interfaces(counts, taken_ns)),
            PROTOCOL_TABLE.name: self._protocols(counts, taken_ns),
            SERVICE_TABLE.name: self._by_service(counts, taken_ns),
        }
        ended: dict[str, Ended] = {}
        if self._flows is not None and FLOWS.name in self._tables:
            tables[FLOWS.name], ended[FLOWS.name] = self._flow_rows(self._flows, taken_ns, wall_ns)
        return Snapshot(
            lens=LENS.id,
            wall_ns=wall_ns,
            boot_ns=boot_ns,
            tables=tables,
            counts=self._host_totals(tables[INTERFACES.name]) | self._flow_counts | self.namespaces.counts(),
            lost=self._lost(),
            hooks=self._hooks,
            gaps=self.namespaces.gaps() | self._gaps(),
            ended=ended,
        )

    def _interfaces(self, counts: Mapping[int, tuple[Array, Array]], taken_ns: int) -> Rows:
        rows = np.zeros(len(self._links), INTERFACES.dtype)
        interfaces, kinds = TextTable(), TextTable()
        devices = {
            index
            for (netns, index), link in self._links.items()
            if netns == self.namespaces.own and link.is_device()
        }
        for row, (key, link) in zip(rows, self._links.items(), strict=True):
            netns, index = key
            seen = self._seen.setdefault(key, _Seen(link.statistics, taken_ns))
            grown = {name: value - seen.statistics.get(name, 0) for name, value in link.statistics.items()}
            is_own = netns == self.namespaces.own
            is_device = is_own and index in devices
            row["id"] = row_id(netns, index)
            row["interface"] = interfaces.code(link.name)
            row["kind"] = kinds.code(
                link.kind or ("ether" if is_device else "loopback" if link.is_loopback else "?")
            )
            row["netns"] = netns
            is_uplink = is_device or (not devices and is_own and link.leads_elsewhere and not link.has_master)
            row["backing"] = UPLINK if is_uplink else VIRTUAL
            row["state"] = link.is_up
            row["mode"] = self._counted.mode(index) if is_own and self._counted else COUNTERS_MODE
            speed = link.speed() if is_own else None
            row["speed"] = row["capacity"] = unknown_value(rows.dtype["speed"])
            if speed is not None:
                seen.capacity += speed * (taken_ns - seen.read_at_ns) / 1e9
                row["speed"], row["capacity"] = speed, seen.capacity
            seen.read_at_ns = taken_ns
            row["drops_received"] = grown.get("rx_dropped", 0) + grown.get("rx_missed_errors", 0)
            row["drops_sent"] = grown.get("tx_dropped", 0)
            row["errors"] = grown.get("rx_errors", 0) + grown.get("tx_errors", 0)
            self._put_moved(row, grown, counts.get(index) if is_own else None)
            seen.rates.add(Moved(taken_ns, int(row["bytes_received"]), int(row["bytes_sent"])))
        self._seen = {key: self._seen[key] for key in self._links}
        return Rows(
            INTERFACES,
            take(rows, np.argsort(rows["id"])),
            {"interface": interfaces.values, "kind": kinds.values},
            taken_ns,
        )

    def _put_moved(self, row: Any, grown: Mapping[str, int], counted: tuple[Array, Array] | None) -> None:
        """Fill in what was received and sent: as the programs saw it, else by the interface's own counters."""
        for unit in ("packets", "bytes"):
            row[f"{unit}_received"] = grown.get(f"rx_{unit}", 0)
            row[f"{unit}_sent"] = grown.get(f"tx_{unit}", 0)
        row["broadcast"] = row["multicast"] = unknown_value(row["broadcast"].dtype)
        if counted is None:
            return
        received, sent = counted
        protocols = slice(len(PROTOCOLS))
        if row["mode"] != COUNTERS_MODE:
            for unit in ("packets", "bytes"):
                row[f"{unit}_received"] = received[unit][protocols].sum()
        if self._sees_sent:
            for unit in ("packets", "bytes"):
                row[f"{unit}_sent"] = sent[unit][protocols].sum()
        if row["mode"] != COUNTERS_MODE and self._sees_sent:
            for kind, name in enumerate(CASTS, len(PROTOCOLS)):
                row[name] = received["packets"][kind] + sent["packets"][kind]

    def _protocols(self, counts: Mapping[int, tuple[Array, Array]], taken_ns: int) -> Rows:
        return self._split(PROTOCOL_TABLE, counts, range(len(PROTOCOLS)), {}, taken_ns)

    def _by_service(self, counts: Mapping[int, tuple[Array, Array]], taken_ns: int) -> Rows:
        names = [OTHER_SERVICES, *self._services]
        kinds = range(NO_SERVICE, NO_SERVICE + len(names))
        return self._split(SERVICE_TABLE, counts, kinds, {"service": names}, taken_ns)

    def _split(
        self,
        table: Table,
        counts: Mapping[int, tuple[Array, Array]],
        kinds: range,
        texts: Mapping[str, Sequence[str]],
        taken_ns: int,
    ) -> Rows:
        """A row for each interface that is counted and each of these kinds of packets that it has carried."""
        interfaces = TextTable()
        rows = np.zeros(len(counts) * len(kinds), table.dtype).reshape(len(counts), len(kinds))
        _, _, split = table.stored[:3]
        for of_interface, (index, (received, sent)) in zip(rows, sorted(counts.items()), strict=True):
            of_interface["id"] = index * KINDS + np.arange(len(kinds))
            of_interface["interface"] = interfaces.code(self._links[self.namespaces.own, index].name)
            of_interface[split.name] = np.arange(len(kinds))
            for unit in ("packets", "bytes"):
                of_interface[f"{unit}_received"] = received[unit][kinds.start : kinds.stop]
                of_interface[f"{unit}_sent"] = sent[unit][kinds.start : kinds.stop]
        carried = np.flatnonzero((rows["packets_received"] + rows["packets_sent"]).ravel())
        return Rows(table, take(rows.ravel(), carried), {"interface": interfaces.values, **texts}, taken_ns)

    def _flow_rows(self, table: FlowTable, taken_ns: int, wall_ns: int) -> tuple[Rows, Ended]:
        """The flows, and what those had counted that made room for others."""
        flows = table.read()
        rows = np.zeros(len(flows), FLOWS.dtype)
        texts = {name: TextTable() for name in ("interface", "protocol", "tcp_flags", "process")}
        rows["id"] = ids_of(flows)
        for end in ("local", "remote"):
            rows[f"{end}_address"] = np.ascontiguousarray(flows[f"{end}_address"]).view(">u8")
            rows[f"{end}_port"] = flows[f"{end}_port"]
            rows[f"{end}_port"][~has_ports(flows)] = _NO_PORT
        self._put_owners(rows, flows, texts["process"])
        names, numbers = np.unique(flows["interface"], return_inverse=True)
        codes = [texts["interface"].code(self._names_in_flows.get(name, "?")) for name in names.tolist()]
        rows["interface"] = np.array(codes, "u4")[numbers] if codes else 0
        carried = flows["protocol"].astype(np.uint32) << 16 | flows["remote_port"]
        carried[flows["protocol"] != PROTOCOL_NOT_IP] &= np.uint32(0xFF0000)
        rows["protocol"] = _coded(carried, texts["protocol"], lambda n: protocol_name(n >> 16, n & 0xFFFF))
        rows["tcp_flags"] = _coded(flows["tcp_flags"], texts["tcp_flags"], flags_text)
        rows["tcp_flags"][flows["protocol"] != socket.IPPROTO_TCP] = _UNKNOWN
        for name in MOVED:
            rows[name] = flows[name]
        to_wall = wall_ns - taken_ns
        for name in ("first_seen", "last_seen"):
            rows[name] = flows[name].astype(np.int64) + to_wall
        evicted = table.evicted()
        total = np.full(1, 0, FLOWS.dtype)
        for name in total.dtype.names or ():
            total[name] = unknown_value(total.dtype[name]) if total.dtype[name].shape == () else 0
        total["id"] = 0
        total["interface"] = texts["interface"].code(EVICTED)
        total["process"] = texts["process"].code(EVICTED)
        for name in MOVED:
            total[name] = evicted[name]
        self._flow_counts = {"flows": len(flows), "flows_evicted": int(evicted["flows"])}
        values = {name: text.values for name, text in texts.items()}
        self._last_flows = Rows(FLOWS, rows, values, taken_ns)
        return self._last_flows, Ended((), Rows(FLOWS, total, values, taken_ns))

    def _put_owners(self, rows: Array, flows: Array, texts: TextTable) -> None:
        """Fill in the process that owns the socket of each flow, as the connections lens has it, or that owned it
        before the socket was gone; `several` where another one had a flow's ends before."""
        owners = no_owners(len(rows))
        for sockets in self._sockets_and_ended():
            # What had ended when a flow began was not its socket.
            may_own = np.flatnonzero(flows["first_seen"] <= sockets.taken_ns)
            protocols = flows["protocol"][may_own]
            found = owners_among(take(rows, may_own), protocols, sockets, self.namespaces.own, texts)
            owners[may_own] = with_before(owners[may_own], found, texts)
        last = self._last_flows
        if last is not None:
            before = self._last_owners.copy()
            before["process"] = recoded(before["process"], last, texts)
            at = positions(rows["id"], last.array["id"])
            owners[at >= 0] = with_before(owners[at >= 0], before[at[at >= 0]], texts)
        rows["process"], rows["pid"] = owners["process"], owners["pid"]
        self._last_owners = owners

    def _sockets_and_ended(self) -> list[Rows]:
        """The sockets now, and those that have ended lately."""
        name, snapshot = SOCKETS.name, self._sockets
        if snapshot is None or name not in snapshot.tables:
            return []
        ended = snapshot.ended.get(name)
        return [snapshot.tables[name], *(ended.rows if ended else ())]

    def _host_totals(self, interfaces: Rows) -> dict[str, int]:
        """What all devices received and sent, those that have gone included; nothing where there never was one."""
        rows = interfaces.array
        devices = take(rows, np.flatnonzero(rows["backing"] == UPLINK))
        now = {int(row["id"]): tuple(int(row[name]) for name in MOVED) for row in devices}
        for gone in self._of_devices.keys() - now.keys():
            self._of_gone_devices += np.array(self._of_devices[gone], np.uint64)
        self._of_devices = now
        totals = self._of_gone_devices + np.array(list(now.values()), np.uint64).reshape(-1, len(MOVED)).sum(
            axis=0, dtype=np.uint64
        )
        return dict(zip(MOVED, totals.tolist(), strict=True)) if now or totals.any() else {}

    def _lost(self) -> dict[str, int]:
        program = self._program
        if program is None:
            return {"namespaces": self.namespaces.lost}
        skipped = sum(bpf.recursion_misses(program.functions[name]) for name in SENT_PROGRAMS)
        refused = int(maps.read_per_cpu(program.maps["refused"], 0, np.dtype("u8")).sum())
        return {
            "uncounted": self._counted.beyond if self._counted else 0,
            "refused": refused,
            "recursion": skipped,
            "namespaces": self.namespaces.lost,
        }

    def join(self, snapshots: Mapping[str, Snapshot]) -> None:
        """See nettop.snapshots.source.JoiningSource."""
        self._sockets = snapshots.get(CONNECTIONS.id)

    # --- the rest of a source -----------------------------------------------------------------------------------

    def set(self, option: str, value: object) -> None:
        """Change an option; see the class."""
        if option == "mechanisms":
            self._chosen = cast("ChosenMechanisms", value)
        elif option == "table":
            self._tables.add(str(value))
        elif option in self._options:
            self._options[option] = value

    def describe(self, key: int) -> dict[str, str]:
        """How an interface is read, and what its rates were."""
        identity = next(
            (each for each in self._seen.keys() & self._links.keys() if row_id(*each) == key), None
        )
        if identity is None:
            return {}
        netns, index = identity
        seen = self._seen[identity]
        details = {"Namespace": self.namespaces.name(netns)}
        if self._counted is not None and netns == self.namespaces.own:
            details |= {f"Not {mode}": why for mode, why in self._counted.refused(index)}
        for title, summary in (
            ("Last minute", seen.rates.last_minute()),
            ("Since the start", seen.rates.since_start()),
        ):
            if summary is not None:
                details[title] = _rates_text(summary)
        return details

    def programs(self) -> Mapping[str, tuple[int, int]]:
        """What the programs cost; see nettop.snapshots.source.MeasuredSource."""
        return self._program.runs() if self._program else {}

    def kernel_bytes(self) -> int:
        """What programs and maps take of the kernel's memory."""
        return self._program.kernel_bytes() if self._program else 0

    def close(self) -> None:
        """Detach and leave every namespace; a second call does nothing."""
        self._opened.close()
        self._program = self._counted = self._flows = self._namespaces = None


def _links() -> list[Link] | None:
    """The interfaces of the calling thread's namespace; None where the kernel does not list them."""
    try:
        return read_links()
    except OSError:
        return None


def _coded(values: Array, texts: TextTable, text_of: Callable[[int], str]) -> Array:
    """Codes of the texts that numbers stand for."""
    distinct, groups = np.unique(values, return_inverse=True)
    codes: Array = np.array([texts.code(text_of(value)) for value in as_list(distinct)], np.uint32)
    return codes[groups]


def _rates_text(summary: Summary) -> str:
    (received, sent), (most_received, most_sent) = summary
    average = f"{human(received, 'bytes/s')} in, {human(sent, 'bytes/s')} out"
    return f"{average}; peak {human(most_received, 'bytes/s')} in, {human(most_sent, 'bytes/s')} out"
