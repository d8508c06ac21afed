# SPDX-License-Identifier: Apache-2.0
"""How often sources are read: as asked for, or less often, and some of them less thoroughly, for --max-overhead."""

from __future__ import annotations

import time
from collections import Counter
from typing import NamedTuple

from nettop.engine.governor import Governor, Order, Restraint, percent
from nettop.engine.own_cost import DRAIN, Cost, OwnCost, Reading, Surroundings
from nettop.snapshots.source import SheddingSource, Source

SETTLED_AFTER_S = 3.0
"""What attaching a lens costs, and the first pictures, is over by then and says nothing of what comes."""
LEAST_LOOK_S = 1.0
_NEARLY = 0.9
"""Readings are not quite on time."""


class _Look(NamedTuple):
    """What was used by some time: by all, by taking in events, and by each lens's programs."""

    reading: Reading
    drained_ns: int
    programs_ns_of: Counter[str]


class _Shed(NamedTuple):
    """What was left out, and of which source."""

    lens: str
    source: Source
    what: str


class Pace:
    """The interval, and what keeps the cost below a bound (a share of one CPU), where there is one.

    All but `ask` and the properties belongs to the sampler's thread.
    """

    def __init__(
        self, interval_s: float, cost: OwnCost, around: Surroundings, max_overhead: float | None = None
    ) -> None:
        self._asked_s = interval_s
        self._cost = cost
        self._around = around
        self._governor = None if max_overhead is None else Governor(max_overhead, interval_s)
        self._shed: list[_Shed] = []
        self._since: _Look | None = None
        self._settled_ns = 0
        self.restraint: Restraint | None = self._restraint()

    @property
    def interval_s(self) -> float:
        """Seconds between two readings."""
        return self._asked_s if self._governor is None else self._governor.interval_s

    def ask(self, interval_s: float) -> None:
        """Another interval is wanted."""
        self._asked_s = interval_s
        if self._governor is not None:
            self._governor.ask(interval_s)
            self.restraint = self._restraint()

    def start(self) -> None:
        """Have programs counted, if there is a bound."""
        if self._governor is not None:
            self._cost.want_statistics()

    def stop(self) -> None:
        """Need that no more."""
        if self._governor is not None:
            self._cost.give_up_statistics()

    def unsettle(self) -> None:
        """A lens attaches: what that costs is spent once, and no reason to do anything."""
        self._settled_ns = time.monotonic_ns() + int(SETTLED_AFTER_S * 1e9)
        self._since = None

    def tick(self) -> None:
        """Look at the cost, and do what keeps it below the bound."""
        self._cost.take()
        governor, now = self._governor, self._cost.now
        if governor is None or now.at_ns < self._settled_ns:
            return
        since = self._since
        enough_ns = max(LEAST_LOOK_S, _NEARLY * governor.interval_s) * 1e9
        if since is None or now.at_ns - since.reading.at_ns >= enough_ns:
            self._since = _Look(now, self._drained_ns(), Counter(self._cost.programs_ns_of))
            if since is not None:
                self._govern(governor, since, self._since)

    def rows(self) -> list[Cost]:
        """What the table of costs says of it."""
        if self.restraint is None:
            return []
        name = f"--max-overhead {percent(self.restraint.bound)}"
        return [
            Cost("limit", name, note=str(self.restraint) or f"interval {self.interval_s:.1f} s, as asked for")
        ]

    def _govern(self, governor: Governor, since: _Look, now: _Look) -> None:
        """Have the governor judge what was spent, and carry out what it wants."""
        elapsed_ns = now.reading.at_ns - since.reading.at_ns
        # Children that have ended were loaders: what attaching costs.
        own_ns = now.reading.own_ns - since.reading.own_ns
        programs_ns = now.reading.programs_ns - since.reading.programs_ns
        fixed_ns = programs_ns + min(own_ns, now.drained_ns - since.drained_ns)
        total, fixed = ((ns / elapsed_ns) for ns in (own_ns + programs_ns, fixed_ns))
        self._forget_gone()
        order = governor.look(elapsed_ns / 1e9, total, fixed, has_shed=bool(self._shed))
        if order is Order.SHED:
            governor.was_shed(done=self._shed_dearest(now.programs_ns_of - since.programs_ns_of))
        elif order is Order.RESTORE:
            governor.was_restored(done=self._restore())
        self.restraint = self._restraint()

    def _restraint(self) -> Restraint | None:
        if self._governor is None:
            return None
        return self._governor.restraint(tuple(shed.what for shed in self._shed))

    def _drained_ns(self) -> int:
        """What it took to take events in, which is as often as the kernel has some."""
        return sum(step.time_ns for (_, name), step in self._cost.steps.all().items() if name == DRAIN)

    def _shed_dearest(self, lately_ns: Counter[str]) -> bool:
        """Have the lens with the dearest programs leave something out; False where no lens can."""
        attached = sorted(self._around.attached().items(), key=lambda one: -lately_ns[one[0]])
        for lens, source in attached:
            what = source.shed() if isinstance(source, SheddingSource) else None
            if what is not None:
                self._shed.append(_Shed(lens, source, what))
                return True
        return False

    def _restore(self) -> bool:
        """Have what was left out last attached again; False where it cannot be had."""
        source = self._shed[-1].source
        if isinstance(source, SheddingSource) and source.restore() is not None:
            self._shed.pop()
            return True
        return False

    def _forget_gone(self) -> None:
        """What was left out of a lens that has detached since is none of ours any more."""
        attached = self._around.attached()
        self._shed = [shed for shed in self._shed if attached.get(shed.lens) is shed.source]
