# SPDX-License-Identifier: Apache-2.0
"""The sampled stacks that the flame graph shows, by window, CPU and order."""

from __future__ import annotations

from nettop.query.view import View
from nettop.screens.cpu.flame_graph import Path
from nettop.screens.cpu.lines import rows_of
from nettop.snapshots.cpu import STACKS
from nettop.snapshots.snapshot import Frame
from nettop.stacks.counts import FlameNode, FlameSort, StackCount, StackHistory, Window, flame_tree, path_of


class CountedStacks:
    """The stacks of a `window` on one `cpu` (None: on all), and the readings they are counted from.

    While the screen is frozen, later readings are kept, and not counted.
    """

    def __init__(self) -> None:
        self.window = Window.MINUTE
        self.cpu: int | None = None
        self.sort = FlameSort.SAMPLES
        self.counts: list[StackCount] = []
        self._history = StackHistory()
        self._frozen_history: StackHistory | None = None
        self._frozen_frame: Frame | None = None

    def add(self, frame: Frame) -> None:
        """Add a reading."""
        stacks = frame.now.tables.get(STACKS.name)
        if stacks is not None:
            self._history.add(stacks, frame.now.counts.get("watched_ns", 0))

    def freeze(self, frame: Frame | None) -> None:
        """Count only the samples up to a frozen frame, in every window; None: count all of them again."""
        if frame is not self._frozen_frame:
            if frame is not None:
                self.add(frame)
            self._frozen_history = None if frame is None else self._history.copy()
            self._frozen_frame = frame

    @property
    def _counted(self) -> StackHistory:
        return self._frozen_history or self._history

    @property
    def span_ns(self) -> int | None:
        """Time for which the source sampled within the window; None if the window has not begun yet."""
        return self._counted.span_ns(self.window)

    def count(self, view: View) -> None:
        """Count the stacks of the window on the selected CPU, or on those that pass the view's filter."""
        available = view.snapshot.why_unavailable(STACKS) is None
        counts = self._counted.counts(self.window) if available else []
        if is_filtered(view):
            passing = set(view.raw("cpu")[rows_of(view, None)].tolist())
            counts = [count for count in counts if count.cpu in passing]
        self.counts = [count for count in counts if self.cpu in (None, count.cpu)]

    def tree(self) -> FlameNode | None:
        """Return the counted stacks as a tree; None if there are none."""
        return flame_tree(self.counts, sort=self.sort) if self.counts else None

    def below(self, path: Path) -> list[StackCount]:
        """Return the counted stacks that pass through a frame."""
        return [count for count in self.counts if not path or path_of(count)[: len(path)] == path]


def cpus_shown(view: View) -> int:
    """Return the number of CPUs that pass the filter and the limit."""
    return len(rows_of(view, None))


def is_filtered(view: View) -> bool:
    """Return whether a filter or a limit leaves out CPUs; everything then refers to the remaining ones."""
    return bool(view.query.filter.text) or view.query.limit is not None
