# SPDX-License-Identifier: Apache-2.0
"""The findings probe: evaluates the rules of every lens, on what the other lenses read and on counters of its own.

It has no programs. For lenses that are not attached, it falls back to counters in /proc and rtnetlink.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial

from nettop.kernel.bpf.mechanisms import check_chosen
from nettop.kernel.host.facts import Host
from nettop.kernel.net.links import Link, Negotiated, read_links
from nettop.kernel.net.net_counters import read_counters
from nettop.kernel.net.nf_rules import Ask, DropRules, is_loaded
from nettop.probes.drops.counters import counter_rows, read_measures
from nettop.probes.findings.cpus import read_cpus
from nettop.probes.findings.firewall import FIREWALL_FALLBACKS, firewall_rows, read_firewall, require_asker
from nettop.probes.findings.growth import Growth
from nettop.probes.findings.interfaces import Interfaces
from nettop.probes.findings.interrupts import DeviceQueue, Interrupts
from nettop.probes.findings.limits import less_unlimited, limit_rows, read_limits, unlimited_here
from nettop.probes.findings.losses import loss_rows
from nettop.probes.probe import Probe, sockets_of
from nettop.query.finding_tracker import FindingTracker
from nettop.snapshots import lenses
from nettop.snapshots.bandwidth import INTERFACES
from nettop.snapshots.bandwidth import LENS as BANDWIDTH
from nettop.snapshots.connections import LENS as CONNECTIONS
from nettop.snapshots.drops import COUNTERS
from nettop.snapshots.drops import LENS as DROPS
from nettop.snapshots.findings import CPUS, FAILED, FINDINGS, FIREWALL, LATE, LENS, LIMITS, LOSSES
from nettop.snapshots.hooks import HookStatus
from nettop.snapshots.snapshot import Frame, Rows, Snapshot, clocks

NAMESPACES_PER_READING = 16
"""With more namespaces than this, read the counters less often, to bound CPU time."""
_BY_FIREWALL = frozenset(
    rule.name
    for lens in lenses()
    for table in lens.tables
    for rule in table.rules
    if {cause.name for cause in FIREWALL.rules} & set(rule.explained_by)
)
"""Kinds that rules of the firewall explain."""
_OF_CPUS = frozenset(rule.name for rule in CPUS.rules)
_LEAST_NS = 500_000_000
"""Counters are not read again sooner: in a shorter interval, one packet would be a high rate."""


def make_probe(host: Host | None = None) -> Findings:
    """Return the source of this lens."""
    return Findings(host)


@dataclass(frozen=True, slots=True)
class _NamespaceReading:
    """Counters, interfaces, limits and firewall rules of a namespace."""

    counters: Mapping[str, int]
    links: tuple[Link, ...]
    negotiated: Mapping[int, Negotiated]
    limits: Mapping[str, tuple[int, int]]
    firewall: DropRules


class Findings(Probe):
    """The source of the findings lens; see nettop.snapshots.source.Source."""

    lens = LENS

    def __init__(self, host: Host | None = None) -> None:
        super().__init__(host)
        self._tracker = FindingTracker()
        self._frames: Mapping[str, Frame] = {}
        self._own_frames: dict[str, Frame] = {}
        self._growth = Growth()
        self._interfaces = Interfaces()
        self._interrupts = Interrupts(self._host)
        self._late = self._skipped = 0
        self._firewall: HookStatus | None = None
        self._unread_firewalls = 0

    def start(self) -> None:
        """Begin to follow namespaces. Raise UsageError for an unknown mechanism."""
        check_chosen((FIREWALL_FALLBACKS,), self._options.mechanisms)
        self._share_namespaces()

    def join(self, frames: Mapping[str, Frame]) -> None:
        """See nettop.snapshots.source.JoiningSource."""
        self._frames = frames

    def note_skipped(self, readings: int) -> None:
        """See nettop.snapshots.source.SkippingSource."""
        self._late = readings

    def read(self, taken_ns: int) -> Snapshot:
        """Return the findings in the newest frames of the attached lenses, and in its own counters."""
        wall_ns, boot_ns = clocks(taken_ns)
        if self._firewall is None:  # only now, for nettop has dropped its privileges
            self._firewall = self._attach_best(FIREWALL_FALLBACKS, lambda _: require_asker(self._host))
        if self._is_due(boot_ns):
            self._read_own(taken_ns, wall_ns, boot_ns)
        # A lens that is attached knows more than the counters of the same table here.
        frames = self._own_frames | {lens: frame for lens, frame in self._frames.items() if lens != LENS.id}
        evaluated = [(lens, frames[lens.id]) for lens in lenses() if lens.id in frames]
        rows = self._tracker.update(evaluated, taken_ns, wall_ns)
        return Snapshot(
            LENS.id,
            wall_ns,
            boot_ns,
            tables={FINDINGS.name: self.namespaces.with_names(rows), **self._own_frames[LENS.id].now.tables},
            counts=self.namespaces.counts() | self._failed(),
            hooks=(self._firewall,),
            lost={"namespaces": self.namespaces.lost, "firewall": self._unread_firewalls, LATE: self._late},
            gaps=self.namespaces.gaps(),
        )

    def _failed(self) -> dict[str, int]:
        """Return how many connections have failed so far, for the marks of a recording."""
        frame = self._frames.get(CONNECTIONS.id)
        return {FAILED: frame.now.counts[FAILED]} if frame is not None and FAILED in frame.now.counts else {}

    def _is_due(self, boot_ns: int) -> bool:
        """Return whether to read the counters now; with many namespaces, not each time."""
        self._skipped += 1
        if self._own_frames and (
            self._skipped * NAMESPACES_PER_READING < len(self.namespaces.threads)
            or boot_ns - self._own_frames[LENS.id].now.boot_ns < _LEAST_NS
        ):
            return False
        self._skipped = 0
        return True

    def _read_own(self, taken_ns: int, wall_ns: int, boot_ns: int) -> None:
        reads_firewall = self._reads_firewall()
        ask = self._host.kept.ask_firewall if reads_firewall and is_loaded(self._host) else None
        unread = {DROPS.id, BANDWIDTH.id} - self._frames.keys()
        read_each = partial(self._read_namespace, self.namespaces.own, ask, unread)
        by_namespace = self.namespaces.run_in_each(read_each)
        limits = {netns: less_unlimited(seen.limits, self._unlimited) for netns, seen in by_namespace.items()}
        rules = {netns: seen.firewall for netns, seen in by_namespace.items()}
        self._unread_firewalls = sum(not rule.is_whole for rule in rules.values())
        named = self.namespaces.with_names
        own = {
            LIMITS.name: named(limit_rows(limits, self._growth, taken_ns)),
            CPUS.name: read_cpus(self._host.proc, self._queues(), taken_ns),
            LOSSES.name: loss_rows(self._frames, self._late, taken_ns),
        }
        if reads_firewall:
            own[FIREWALL.name] = named(firewall_rows(rules, sockets_of(self._frames), taken_ns))
        tables = {LENS.id: own, **self._tables_of(unread, by_namespace, taken_ns, boot_ns)}
        last = self._own_frames
        self._own_frames = {
            lens: Frame(Snapshot(lens, wall_ns, boot_ns, table), last[lens].now if lens in last else None)
            for lens, table in tables.items()
        }

    def _tables_of(
        self,
        unread: Collection[str],
        by_namespace: Mapping[int, _NamespaceReading],
        taken_ns: int,
        boot_ns: int,
    ) -> dict[str, dict[str, Rows]]:
        """Return the counters and the interfaces of the lenses that are not attached."""
        named, tables = self.namespaces.with_names, dict[str, dict[str, Rows]]()
        if DROPS.id in unread:
            read = ((netns, seen.counters, seen.links) for netns, seen in by_namespace.items())
            names = {
                (netns, link.index): link.name for netns, seen in by_namespace.items() for link in seen.links
            }
            counters = counter_rows(read_measures(read, self._host.proc), names, taken_ns)
            tables[DROPS.id] = {COUNTERS.name: named(counters)}
        if BANDWIDTH.id in unread:
            links = {netns: (seen.links, seen.negotiated) for netns, seen in by_namespace.items()}
            tables[BANDWIDTH.id] = {INTERFACES.name: named(self._interfaces.rows(links, taken_ns, boot_ns))}
        return tables

    def _unlimited(self, family: int) -> int:
        return sum(self.namespaces.run_in_each(partial(unlimited_here, family)).values())

    def _queues(self) -> Mapping[int, DeviceQueue]:
        """Return which queue interrupts each CPU most, while a CPU has too much to do: with many CPUs and queues, the
        kernel takes milliseconds to list them."""
        if self._tracker.kinds & _OF_CPUS:
            return self._interrupts.busiest()
        self._interrupts.forget()
        return {}

    def _reads_firewall(self) -> bool:
        """Return whether rules of the firewall are shown, or may explain a finding; there may be thousands."""
        if self._firewall is None or self._firewall.mechanism is None:
            return False
        return FIREWALL.name in self._options.tables or bool(self._tracker.kinds & _BY_FIREWALL)

    def _read_namespace(self, own: int, ask: Ask | None, unread: Collection[str]) -> _NamespaceReading:
        """Read the calling thread's namespace: what these lenses do not read."""
        is_own = os.stat("/proc/thread-self/ns/net").st_ino == own
        try:
            links = tuple(read_links() if unread else ())
        except OSError:
            links = ()
        return _NamespaceReading(
            read_counters(self._host.proc) if DROPS.id in unread else {},
            links,
            {link.index: link.negotiated() for link in links if link.has_bus_device()} if is_own else {},
            read_limits(self._host.proc, is_own=is_own),
            DropRules() if ask is None else read_firewall(ask),
        )
