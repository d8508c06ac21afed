# SPDX-License-Identifier: Apache-2.0
"""Interfaces of snapshot sources."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, cast, runtime_checkable

from nettop.snapshots.schema import Option, OptionValues, V

if TYPE_CHECKING:  # doctor works without numpy
    from nettop.snapshots.snapshot import Frame, Rows, Snapshot

DropPrivileges = Callable[[frozenset[int]], None]
"""Function that drops the calling thread's privileges, needed only to start, except these capabilities (by number)."""


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """Options that frontends pass to a source, which ignores the irrelevant ones.

    - `tables`: the names of the tables in use; some are read only then.
    - `mechanisms`: those to use instead of the best ones, by hook.
    - `whole`: attach all hooks in `start`, however long that takes, so that the first interval is covered completely.
    - `all_rows`: read rows, too, that the default filter of their table excludes.
    - `follow`: the PID of a command; only its connections and those of its children are reported.
    - `values`: the lens options that were given.
    """

    tables: frozenset[str] = frozenset()
    mechanisms: Mapping[str, str] = field(default_factory=dict)
    whole: bool = False
    all_rows: bool = False
    follow: int | None = None
    values: OptionValues = field(default_factory=dict)

    def __getitem__(self, option: Option[V]) -> V:
        """Return the value of a lens option, or else its default."""
        return cast("V", self.values.get(option, option.default))

    def __or__(self, more: SourceOptions) -> SourceOptions:
        """Return these options and those of another frontend, whose mechanisms and values take precedence."""
        return SourceOptions(
            self.tables | more.tables,
            more.mechanisms or self.mechanisms,
            self.whole or more.whole,
            self.all_rows or more.all_rows,
            self.follow if more.follow is None else more.follow,
            {**self.values, **more.values},
        )


class Source(Protocol):
    """A source of one lens's snapshots. Calls never overlap: those up to `start` come from a thread that attaches the
    lens, later ones from the sampler's, including `describe`."""

    def configure(self, options: SourceOptions) -> None:
        """Replace the options, before or after the start."""

    def start(self) -> None:
        """Attach. Raise NettopError if this host or user cannot."""

    def read(self, taken_ns: int) -> Snapshot:
        """Return the current state; `taken_ns` is CLOCK_MONOTONIC at the tick."""

    def describe(self, key: int) -> dict[str, str]:
        """Return details of the row with this key, by title. They are read only on demand."""

    def close(self) -> None:
        """Detach and leave nothing in the kernel. May be called at any time, and twice."""


@runtime_checkable
class EventSource(Source, Protocol):
    """A source woken by the kernel, with rows for append tables."""

    def wakeups(self) -> tuple[int, ...]:
        """Return descriptors that are readable while there is something to drain; called before each wait."""

    def is_filling(self) -> bool:
        """Return whether the backlog should be drained soon. Called often, so it must be quick."""

    def drain(self, taken_ns: int) -> tuple[Rows, ...]:
        """Return the rows that arrived since the last call, as batches of append tables."""


@runtime_checkable
class MeasuredSource(Source, Protocol):
    """A source that knows the cost of its programs in the kernel."""

    def programs(self) -> Mapping[str, tuple[int, int]]:
        """Return each loaded program's runs and ns while statistics were on. May raise OSError.

        A name begins with the hook (`tp_btf__kfree_skb`); a `bpf_iter__` runs in the thread that reads it.
        """

    def kernel_bytes(self) -> int:
        """Return the kernel memory of programs and maps. Raise OSError if it may not be read."""


@runtime_checkable
class PrivilegedSource(Source, Protocol):
    """A source that still needs privileges after its start."""

    def capabilities(self) -> frozenset[int]:
        """Return the capabilities, by number, that its readings need."""


@runtime_checkable
class JoiningSource(Source, Protocol):
    """A source of a table that `uses` other lenses."""

    def join(self, frames: Mapping[str, Frame]) -> None:
        """Receive the newest frames of those lenses that have one, by id; called before each reading."""


@runtime_checkable
class SkippingSource(Source, Protocol):
    """A source that says when nettop itself is too slow."""

    def note_skipped(self, readings: int) -> None:
        """Receive how many readings were skipped since the start because the one before took too long; called before
        each reading."""


@runtime_checkable
class ReplayingSource(Source, Protocol):
    """A source of what was recorded, which may go to any moment. It returns a snapshot again until there is another."""

    def leap(self) -> tuple[bool, Snapshot | None]:
        """Return, after a reading, whether it does not follow the one read before, and the recorded one that precedes
        it, unless that is the one read before."""
