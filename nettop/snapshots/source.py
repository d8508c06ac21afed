# SPDX-License-Identifier: Apache-2.0
"""What the engine expects of anything that gives snapshots: a probe, a replay, a flow store."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:  # doctor does without numpy
    from nettop.snapshots.snapshot import Rows, Snapshot

DropPrivileges = Callable[[frozenset[int]], None]
"""Drops, for the calling thread, the privileges that starting took, except for these capabilities (by number)."""

WHOLE = "whole"
"""The option by which a source attaches all its hooks before it starts, however long that takes, so that the first
interval is watched from its beginning."""


class Source(Protocol):
    """Gives snapshots of one lens. All calls come from the sampler's thread, `describe` too."""

    def start(self) -> None:
        """Attach to what is read. Raises NettopError when this host or user cannot."""

    def read(self, taken_ns: int) -> Snapshot:
        """The state now; `taken_ns` is CLOCK_MONOTONIC at the tick."""

    def set(self, option: str, value: object) -> None:
        """Change an option of the source, before its start too; an unknown one is ignored."""

    def describe(self, key: int) -> dict[str, str]:
        """Details of the row with this key, as titles and texts, that are read only on demand."""

    def close(self) -> None:
        """Detach; nothing stays in the kernel. May be called at any time, and twice."""


@runtime_checkable
class EventSource(Source, Protocol):
    """A source that the kernel wakes, with rows for append tables."""

    def wakeups(self) -> tuple[int, ...]:
        """Descriptors that are readable while there is something to drain; asked before each wait."""

    def is_filling(self) -> bool:
        """Whether so much waits that it is to be drained soon; asked often, so it has to be quick."""

    def drain(self, taken_ns: int) -> tuple[Rows, ...]:
        """What came since the last call, as batches of append tables."""


@runtime_checkable
class MeasuredSource(Source, Protocol):
    """A source that knows what its programs in the kernel cost."""

    def programs(self) -> Mapping[str, tuple[int, int]]:
        """How often each loaded program ran while statistics were on, and for how many ns. Raises OSError.

        A name begins with what it hooks (`tp_btf__kfree_skb`); a `bpf_iter__` runs in the thread that reads it.
        """

    def kernel_bytes(self) -> int:
        """What programs and maps take of the kernel's memory. Raises OSError where that may not be seen."""


@runtime_checkable
class SamplingSource(Source, Protocol):
    """A source that follows some of the packets, and can follow fewer for --max-overhead."""

    def thin(self, factor: int) -> None:
        """Follow one packet in `factor` times as many as otherwise; 1 is as chosen."""


@runtime_checkable
class PrivilegedSource(Source, Protocol):
    """A source that goes on needing privileges once it has started."""

    def rights(self) -> frozenset[int]:
        """The capabilities, by number, that its readings take."""


@runtime_checkable
class JoiningSource(Source, Protocol):
    """A source of a table that `uses` other lenses."""

    def join(self, snapshots: Mapping[str, Snapshot]) -> None:
        """The newest snapshots of those lenses, by id, as far as there are any; called before each reading."""
