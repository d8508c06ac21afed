# SPDX-License-Identifier: Apache-2.0
"""Rates of the host's uplinks and virtual interfaces, with which the bandwidth tables' headlines start."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from nettop.query.query import screen_query
from nettop.query.units import human
from nettop.query.view import View
from nettop.snapshots.arrays import Mask
from nettop.snapshots.bandwidth import INTERFACES, UPLINK, VIRTUAL
from nettop.snapshots.schema import OWN_NAMESPACE, RATE
from nettop.widgets.bar import ALWAYS_SHOWN, BarItem, Span, item
from nettop.widgets.themes import Role

_ARROWS = (("↓ ", Role.TOTAL_RECEIVED, "bytes_received"), ("↑ ", Role.TOTAL_SENT, "bytes_sent"))


def rates_by_backing(view: View) -> list[BarItem]:
    """Return `uplinks ↓ 1.2 Gb/s ↑ 80 Mb/s`, the host's rates, then those of its virtual interfaces.

    Several virtual interfaces may carry the same packets. Together, both groups are all rows of the table.
    """
    interfaces = view if view.table is INTERFACES else View(view.frame, screen_query(INTERFACES))
    has_uplink = bool((interfaces.raw("backing")[~interfaces.gone] == UPLINK).any())
    items = [] if has_uplink else [item(("no uplink", Role.WARN), importance=950)]
    for backing, label, importance in ((UPLINK, "uplinks", ALWAYS_SHOWN), (VIRTUAL, "virtual", 940)):
        items += _rates(view, _with_backing(view, interfaces, backing), label, importance)
    return items


def _with_backing(view: View, interfaces: View, backing: int) -> Mask:
    """Return a mask of the rows that are interfaces of this backing, or belong to them."""
    is_meant: Mask = interfaces.raw("backing") == backing
    if view is interfaces:
        return is_meant
    at = np.flatnonzero(is_meant)
    rows = zip(interfaces.values("interface", at), interfaces.values("namespace", at), strict=True)
    names, places = view.texts("interface")
    named = np.isin(np.array(names, object), [name for name, netns in rows if netns == OWN_NAMESPACE])
    return np.append(named, False)[places]


def _rates(view: View, which: Mask, label: str, importance: int) -> Iterator[BarItem]:
    """Yield `label ↓ amount ↑ amount`; nothing without rows, or before rates are known."""
    at = np.flatnonzero(which)
    rates = [view.total(name + RATE, at) for _, _, name in _ARROWS]
    if None in rates:
        return
    yield item((label, Role.DIM), importance=importance)
    for rate, (arrow, role, _) in zip(rates, _ARROWS, strict=True):
        yield item(Span(arrow, role), human(rate, "bytes/s"), importance=importance, beside=True)
