# SPDX-License-Identifier: Apache-2.0
"""One running nettop, as frontends see it: the bus to read, and five kinds of request."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from types import TracebackType
from typing import Self

from nettop.engine.bus import Bus
from nettop.engine.governor import OverheadLimit
from nettop.engine.own_cost import OpenStatistics, Steps
from nettop.engine.sampler import Sampler
from nettop.engine.source import probe_of
from nettop.settings import checked_interval
from nettop.snapshots import lenses
from nettop.snapshots.own_cost import SELF
from nettop.snapshots.source import DropPrivileges, Source


class Lease:
    """Keeps a lens attached until it is released."""

    def __init__(self, release: Callable[[], None]) -> None:
        self._release: Callable[[], None] | None = release

    def release(self) -> None:
        """End the lease; the lens detaches a little later if there is no other."""
        if self._release is not None:
            self._release()
            self._release = None


class Session:
    """One running nettop. Used as a context: leaving it closes every source.

    `source_of` makes the source of a lens: the probe by default, a replay or a test's own otherwise.
    `open_statistics` has the kernel count the runs of BPF programs as long as the descriptor is open that it gives;
    `max_overhead` is the share of one CPU that nettop may take. `drop_privileges` is called once, in the
    thread that reads: when the first lens has started, or failed to, and before anything is read.
    """

    def __init__(
        self,
        interval_s: float,
        source_of: Callable[[str], Source] = probe_of,
        *,
        open_statistics: OpenStatistics | None = None,
        max_overhead: float | None = None,
        drop_privileges: DropPrivileges | None = None,
    ) -> None:
        self.bus = Bus()
        self._leased: Counter[str] = Counter()
        self._sampler = Sampler(
            self.bus,
            checked_interval(interval_s),
            source_of,
            open_statistics=open_statistics,
            max_overhead=max_overhead,
            drop_privileges=drop_privileges,
        )

    def __enter__(self) -> Self:
        self._sampler.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._sampler.stop()

    @property
    def interval_s(self) -> float:
        """Seconds between two refreshes."""
        return self._sampler.interval_s

    @property
    def overhead_limit(self) -> OverheadLimit | None:
        """What is done for --max-overhead; None where no bound was given."""
        return self._sampler.pace.limit

    @property
    def steps(self) -> Steps:
        """Where frontends measure what they do."""
        return self._sampler.cost.steps

    def cost(self) -> float | None:
        """The share of one CPU that nettop took lately, its programs' included as far as that is known."""
        return self._sampler.cost.share()

    @property
    def late(self) -> int:
        """Refreshes skipped because the one before took too long."""
        return self._sampler.late

    def sample_now(self) -> Future[None]:
        """Refresh every attached lens at once; the result is there when a reading that begins now has ended."""
        return self._sampler.sample_now()

    def set_interval(self, interval_s: float) -> None:
        """Refresh every `interval_s` seconds from now on. Raises UsageError when out of bounds."""
        self._sampler.set_interval(checked_interval(interval_s))

    def enable(self, lens: str, **options: object) -> Lease:
        """Attach a lens, if it is not, with these options set, and keep it until the lease is released.

        `bus.failure(lens)` says what goes wrong. A source ignores options that it does not know. With the own cost
        the lenses that are attached stay, or the first one is attached: it is their cost.
        """
        leased = [lens]
        if lens == SELF.id:
            leased = [*(other for other in self._leased if other != SELF.id)] or [lenses()[0].id]
            leased.append(lens)
        for each in leased:
            self._leased[each] += 1
            own = options if each == lens else {name: options[name] for name in options if name != "table"}
            self._sampler.lease(each, own)
        return Lease(lambda: self._release(leased))

    def _release(self, leased: list[str]) -> None:
        for lens in leased:
            self._leased[lens] -= 1
            self._sampler.release(lens)
        self._leased = +self._leased  # without lenses that have no lease

    def set(self, lens: str, option: str, value: object) -> None:
        """Change an option of an attached lens, before its next refresh."""
        self._sampler.call(lens, lambda source: source.set(option, value))

    def describe(self, lens: str, key: int) -> Future[dict[str, str]]:
        """Details of a row that are only read when somebody looks at it."""
        return self._sampler.call(lens, lambda source: source.describe(key))
