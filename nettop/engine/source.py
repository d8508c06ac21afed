# SPDX-License-Identifier: Apache-2.0
"""What the engine asks of anything that gives snapshots: a probe, a replay, a flow store."""

from __future__ import annotations

import importlib
from typing import Protocol

from nettop.errors import Unsupported, UsageError
from nettop.snapshots import lenses
from nettop.snapshots.snapshot import Snapshot


class Source(Protocol):
    """Gives snapshots of one lens. All calls come from the sampler's thread, `describe` too."""

    def start(self) -> None:
        """Attach to what is read. Raises NettopError when this host or user cannot."""

    def read(self, taken_ns: int) -> Snapshot:
        """The state now; `taken_ns` is CLOCK_MONOTONIC at the tick."""

    def set(self, option: str, value: object) -> None:
        """Change an option of the source; one that means nothing to it is ignored."""

    def describe(self, key: int) -> dict[str, str]:
        """Details of the row with this key, as titles and texts, that are only worth getting when asked."""

    def close(self) -> None:
        """Detach; nothing stays in the kernel. May be called at any time, and twice."""


def probe_of(lens: str) -> Source:
    """A new probe of the lens: what `make_probe` of the module with its name gives.

    The probe's module is imported here and nowhere else, so that a door never loads the kernel room.
    """
    if lens not in {known.id for known in lenses()}:
        raise UsageError(f"there is no lens {lens!r}", "nettop --help lists them")
    try:
        module = importlib.import_module(f"nettop.probes.{lens}")
    except ModuleNotFoundError as error:
        raise Unsupported(f"lens {lens!r} has no probe: {error}") from error
    source: Source = module.make_probe()
    return source
