# SPDX-License-Identifier: Apache-2.0
"""A real session over a scripted source, stepped by the test and never by a clock."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from nettop.engine.session import Session
from nettop.errors import NettopError, SourceFailed
from nettop.query.finding_tracker import FindingTracker
from nettop.screens.context import ScreenContext
from nettop.screens.nettop_app import NettopApp
from nettop.settings import Settings
from nettop.snapshots import lenses
from nettop.snapshots.findings import FINDINGS
from nettop.snapshots.findings import LENS as FINDINGS_LENS
from nettop.snapshots.schema import Lens
from nettop.snapshots.snapshot import Frame, Rows, Snapshot
from nettop.snapshots.source import SourceOptions
from tests.unit.build import example_rows, later, make_frame

Step = Snapshot | NettopError
Batches = list[tuple[Rows, ...]]


class Script:
    """A source that gives one step after the other, then the last one again; an error is raised.

    What `batches` has at the place of a step comes with that step.
    """

    def __init__(
        self, steps: Sequence[Step], details: dict[str, str] | None = None, batches: Batches | None = None
    ) -> None:
        self.steps = list(steps)
        self.details = details
        self.batches = batches or []
        self.options = SourceOptions()
        self.described: list[int] = []
        self.closed = False
        self._next = 0
        self._drained = 0

    def start(self) -> None:
        """Do nothing: there is nothing to attach to."""

    def read(self, taken_ns: int) -> Snapshot:
        """Return the next step, or raise it."""
        if not self.steps:
            raise SourceFailed("the script is empty")
        step = self.steps[min(self._next, len(self.steps) - 1)]
        self._next += 1
        if isinstance(step, NettopError):
            raise step
        return step

    def is_filling(self) -> bool:
        """Return False: nothing waits for long."""
        return False

    def wakeups(self) -> tuple[int, ...]:
        """Return no descriptors: nobody is woken."""
        return ()

    def drain(self, taken_ns: int) -> tuple[Rows, ...]:
        """Return the batches of the steps read since the last call."""
        came = self.batches[self._drained : self._next]
        self._drained = self._next
        return tuple(batch for batches in came for batch in batches)

    def configure(self, options: SourceOptions) -> None:
        """Store the options."""
        self.options = options

    def describe(self, key: int) -> dict[str, str]:
        """Return the test's details; without them raise SourceFailed."""
        self.described.append(key)
        if self.details is None:
            raise SourceFailed("no such row")
        return self.details

    def close(self) -> None:
        """Record that it was closed."""
        self.closed = True


class Rules(Script):
    """A source of findings: the rules, applied to what the other scripts give. Its clock is that of their snapshots."""

    def __init__(self) -> None:
        super().__init__([], details={})
        self._tracker = FindingTracker()
        self._frames: Mapping[str, Frame] = {}

    def join(self, frames: Mapping[str, Frame]) -> None:
        """Receive the newest frames."""
        self._frames = {lens: frame for lens, frame in frames.items() if lens != FINDINGS_LENS.id}

    def read(self, taken_ns: int) -> Snapshot:
        """Return the findings in these frames."""
        known = [(lens, self._frames[lens.id]) for lens in lenses() if lens.id in self._frames]
        newest = max((frame.now for _, frame in known), key=lambda now: now.boot_ns)
        rows = self._tracker.update(known, newest.boot_ns, newest.wall_ns)
        return Snapshot(FINDINGS_LENS.id, newest.wall_ns, newest.boot_ns, {FINDINGS.name: rows})


class Immediate(ThreadPoolExecutor):
    """An executor without a thread: lenses attach while their task runs."""

    def submit(self, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Return the result of a call that is over."""
        result: Future[Any] = Future()
        try:
            result.set_result(call(*args, **kwargs))
        except BaseException as error:  # noqa: BLE001 - as executors do
            result.set_exception(error)
        return result


class Harness:
    """A session whose sampler has no thread: `tick()` is its next turn."""

    def __init__(self, source_of: Callable[[str], Any], interval_s: float = 1.0) -> None:
        self.session = Session(interval_s, source_of=source_of)
        self.session._executor = Immediate
        self.now = 1000.0

    def tick(self) -> None:
        """Run the sampler's tasks, then read every source once, except those that have just attached and read."""
        before = list(self.session._attached)
        self.run_tasks()
        for lens in sorted(before, key=lambda lens: lens == FINDINGS_LENS.id):
            self.session._read(lens)

    def run_tasks(self) -> None:
        """Run the sampler's tasks, including those of lenses that attach."""
        self.session._run_tasks()

    @property
    def refresh_was_requested(self) -> bool:
        """Return whether a refresh was requested since the last call."""
        requests, self.session._requests = self.session._requests, []
        return bool(requests)

    def app(
        self,
        settings: Settings | None = None,
        theme: str | None = "nettop-dark",
        lens_set: tuple[Lens, ...] | None = None,
        host: str = "web-03",
        **context_kwargs: Any,
    ) -> NettopApp:
        """Return the app, with this host, a clock and a cost that never change."""
        context = ScreenContext(
            settings or Settings(),
            self.session,
            lenses=lens_set or lenses()[:1],
            host=host,
            clock=lambda: self.now,
            cost=lambda: 0.009,
            **context_kwargs,
        )
        return NettopApp(context, theme)


def steps_of(*frames: Frame) -> list[Step]:
    """Return the frames' snapshots, each once, in order."""
    steps: list[Step] = []
    for frame in frames:
        steps += [s for s in (frame.before, frame.now) if s is not None and s not in steps]
    return steps


def busy_host(n: int = 60, **frame_kwargs: Any) -> list[Step]:
    """Return two snapshots of a host with `n` connections, a second apart."""
    before = example_rows(n, 7)
    counts = {"time_wait": 14, "unattributed": 2}
    frame = make_frame(
        later(before, 8), before, **({"counts": counts, "via": {"sockets": "iterator"}} | frame_kwargs)
    )
    return steps_of(frame)


def harness_of(
    steps: Sequence[Step],
    details: dict[str, str] | None = None,
    batches: Batches | None = None,
    silent: Collection[str] = (),
) -> Harness:
    """Return a harness whose lenses follow a script; `silent` lenses have no rows."""
    script = Script(steps, details, batches)
    nothing: dict[str, Script] = {FINDINGS_LENS.id: Rules()}
    nothing |= {lens: Script([Snapshot(lens, wall_ns=0, boot_ns=0, tables={})]) for lens in silent}
    harness = Harness(lambda lens: nothing.get(lens, script))
    harness.script = script
    return harness
