# SPDX-License-Identifier: Apache-2.0
"""The power pane: what the machine's meters say, and how much of that is the network stack's."""

from __future__ import annotations

from typing import ClassVar

from nettop.query.units import human
from nettop.query.view import View
from nettop.screens import headline
from nettop.screens.cpu.headline import network_share
from nettop.screens.lens import LensScreen
from nettop.snapshots.cpu import POWER
from nettop.snapshots.schema import RATE
from nettop.widgets.bar import Part, part
from nettop.widgets.themes import Role

_WATTS = "uJ/s"


class PowerScreen(LensScreen):
    """A row for each meter. Meters may be parts of each other: nothing is summed."""

    about: ClassVar[str] = "what the machine's power meters say, and the network's part of it"

    def headline(self, view: View) -> list[Part]:
        """The meter that shows most, and the network's part of it."""
        if view.snapshot.why_unavailable(POWER) is not None:
            return [*network_share(view), headline.not_here("power", 900)]
        amounts = [view.values(name + RATE, view.order) for name in ("network_uj", "energy_uj")]
        told = [pair for pair in zip(*amounts, strict=True) if None not in pair]
        if not told:
            return network_share(view)
        network, whole = max(told, key=lambda pair: pair[1])
        of = f" of {human(whole, _WATTS)}"
        return [
            *network_share(view),
            part((human(network, _WATTS), Role.BOLD), (of, Role.DIM), importance=900),
        ]


SCREEN = PowerScreen
