# SPDX-License-Identifier: Apache-2.0
"""The tables of the lens `cpu`, and their headline: the cost of the network stack, and how it is measured."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np

from nettop.query.query import screen_query
from nettop.query.units import RATIO, human, plural
from nettop.query.view import View
from nettop.screens import headline
from nettop.screens.cpu.bars import percent
from nettop.screens.lens import LensScreen
from nettop.snapshots.arrays import Index
from nettop.snapshots.cpu import (
    CPUS,
    HOOK_SAMPLES,
    HOOK_SERVED,
    NO_PROCESS,
)
from nettop.snapshots.schema import RATE
from nettop.snapshots.snapshot import Snapshot
from nettop.widgets.bar import BarItem, item
from nettop.widgets.cells import RowStyle, idle_where_zero
from nettop.widgets.text import TextSpan
from nettop.widgets.themes import Role

_NETWORK = "network_ns"


row_flags = partial(idle_where_zero, _NETWORK + RATE)
"""Function that returns row flags: idle without network time in the last interval."""


class CpuTable(LensScreen):
    """A table of the lens; subclasses only declare their differences."""

    def headline(self, view: View) -> list[BarItem]:
        """Return the cost of the network stack, and how it is measured."""
        return [*network_share(view), *sampling(view.snapshot)]


def network_share(view: View) -> list[BarItem]:
    """Return `network 14.2 % of 16 CPUs (2.27 cores)` in the last interval; the view may be of any table."""
    cores, cpus = None, 0
    if CPUS.name in view.frame.now.tables:
        whole = View(view.frame, replace(screen_query(CPUS), gone=False))
        cores, cpus = cores_of(whole, _NETWORK, np.arange(whole.size)), whole.size
    items = [item(("network ", Role.DIM), (percent(None if cores is None else cores / cpus), Role.BOLD))]
    items.append(item((f"of {cpu_count_text(cpus)}", Role.DIM), importance=950, beside=True))
    if cores is not None:
        items.append(item((f"({cores:.2f} cores)", Role.DIM), importance=940, beside=True))
    return items


def sampling(snapshot: Snapshot) -> list[BarItem]:
    """Return the sampling rate, the samples, and the share of unresolved ones."""
    counts = snapshot.counts
    if snapshot.why_not(HOOK_SAMPLES.name) is not None:
        return [headline.not_available("samples", 900)]
    items = []
    if "sampled_hz" in counts:
        rate = f"{counts['sampled_hz']:,} Hz"
        items.append(item(("sampled ", Role.DIM), (rate, Role.TEXT), importance=700))
    if "samples" in counts:
        items.append(samples(counts["samples"], 710))
        unresolved = counts.get("unresolved", snapshot.lost.get("unresolved"))
        if unresolved is not None and counts["samples"]:
            share = human(unresolved / counts["samples"], RATIO)
            items.append(
                item(("unresolved ", Role.DIM), (share, Role.TEXT), (" of samples", Role.DIM), importance=600)
            )
    return items


def cores_of(view: View, name: str, at: Index) -> float | None:
    """Return the CPU time of a column in CPUs, or None if unknown."""
    ns_per_s = view.total(name + RATE, at)
    return None if ns_per_s is None else ns_per_s / 1e9


def samples(count: int, importance: int) -> BarItem:
    """Return `1,264 samples`."""
    return item((f"{count:,}", Role.TEXT), (f" {plural('sample', count)}", Role.DIM), importance=importance)


def cpu_count_text(count: int) -> str:
    """Return `16 CPUs`."""
    return f"{count} {plural('CPU', count)}"


class CategoriesScreen(CpuTable):
    """Categories, which do not overlap: those of an entry point add up to its samples."""

    about = "the parts of the network stack, by entry point"
    row_style = RowStyle(absent={"note": "", "entry": ""})


class StacksScreen(CpuTable):
    """Call stacks. They end in the running function, so their end is never elided."""

    about = "every sampled call stack"
    row_style = RowStyle(keep_ends=frozenset({"stack"}))
    describable = True


_SOFTIRQ = "softirq_ns" + RATE


class CpuProcessesScreen(LensScreen):
    """Processes, with their system calls and the softirqs for their sockets; the rest belongs to no process."""

    about = "CPU time in the network stack by process, and what belongs to none"
    row_style = RowStyle(absent={"process": "(ended)"}, flags=row_flags)
    describable = True

    def headline(self, view: View) -> list[BarItem]:
        """Return the cost of the network stack, the number of processes, and the share of softirqs for no process."""
        is_process = view.known("pid")
        processes, others = (np.flatnonzero(~view.gone & these) for these in (is_process, ~is_process))
        items = [*network_share(view), headline.count("processes", len(processes), 800)]
        served, rest = (view.total(_SOFTIRQ, at) or 0.0 for at in (processes, others))
        share = TextSpan(f"{percent(rest / (served + rest))} {NO_PROCESS}") if served + rest else None
        if view.snapshot.why_not(HOOK_SERVED.name) is not None:
            share = TextSpan(f"all {NO_PROCESS}", Role.WARN)
        if share is not None:
            items.append(item(("softirqs ", Role.DIM), share, importance=700))
        return items
