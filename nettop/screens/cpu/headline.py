# SPDX-License-Identifier: Apache-2.0
"""Headline items of the lens `cpu`: what the network stack costs, and how that is measured."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np

from nettop.query.query import screen_query
from nettop.query.units import RATIO, human, plural
from nettop.query.view import View
from nettop.screens import headline
from nettop.screens.cpu.entry_bars import percent
from nettop.screens.lens import LensScreen
from nettop.snapshots.arrays import Index
from nettop.snapshots.cpu import CPUS, HOOK_SAMPLES, HOOK_SYSCALLS
from nettop.snapshots.schema import RATE
from nettop.snapshots.snapshot import Frame, Snapshot
from nettop.widgets.bar import BarItem, item
from nettop.widgets.cells import idle_where_zero
from nettop.widgets.themes import Role

_NETWORK = "network_ns"


row_flags = partial(idle_where_zero, _NETWORK + RATE)
"""Idle: the network took no time in the last interval."""


class CpuTable(LensScreen):
    """A table of the lens; its screens differ only in what they declare."""

    def headline(self, view: View) -> list[BarItem]:
        """What the network costs, and how that is measured."""
        return [*network_share(view), *sampling(view.snapshot)]


def network_share(view: View) -> list[BarItem]:
    """`network 14.2 % of 16 CPUs (2.27 cores)`, whatever table the view is of."""
    cores, cpus = network_cores(view.frame)
    items = [item(("network ", Role.DIM), (percent(cores / cpus if cores is not None else None), Role.BOLD))]
    items.append(item((f"of {cpus_in_words(cpus)}", Role.DIM), importance=950, beside=True))
    if cores is not None:
        items.append(item((f"({cores:.2f} cores)", Role.DIM), importance=940, beside=True))
    return items


def network_cores(frame: Frame) -> tuple[float | None, int]:
    """The network stack's CPU time in the last interval, in CPUs, and how many CPUs there are."""
    if frame.now.tables.get(CPUS.name) is None:
        return None, 0
    view = View(frame, replace(screen_query(CPUS), gone=False))
    return cores_of(view, _NETWORK, np.arange(view.size)), view.size


def sampling(snapshot: Snapshot) -> list[BarItem]:
    """The sampling rate, the samples, the share of frames without a name, and what is estimated."""
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
    return [*items, *syscalls_by_samples(snapshot)]


def syscalls_by_samples(snapshot: Snapshot) -> list[BarItem]:
    """Says that the times of system calls are estimated from samples, where they are."""
    hook = snapshot.hook(HOOK_SYSCALLS.name)
    if hook is None or hook.mechanism != HOOK_SAMPLES.name:
        return []
    return [item(("syscalls ", Role.DIM), ("by samples", Role.TEXT), importance=690)]


def cores_of(view: View, name: str, at: Index) -> float | None:
    """The CPU time of a column, in CPUs; None where unknown."""
    ns_per_s = view.total(name + RATE, at)
    return None if ns_per_s is None else ns_per_s / 1e9


def samples(count: int, importance: int) -> BarItem:
    """`1,264 samples`"""
    return item((f"{count:,}", Role.TEXT), (f" {plural('sample', count)}", Role.DIM), importance=importance)


def cpus_in_words(count: int) -> str:
    """`16 CPUs`"""
    return f"{count} {plural('CPU', count)}"
