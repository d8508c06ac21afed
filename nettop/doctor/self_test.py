# SPDX-License-Identifier: Apache-2.0
"""The self-test: traffic whose numbers are known, against what the lenses say of it. What differs by one is wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from nettop.doctor.report import Trial
from nettop.doctor.stage import Place
from nettop.doctor.try_connections import try_connections
from nettop.doctor.try_drops import try_drops
from nettop.engine.source import Source

SELF_TESTS: Mapping[str, Callable[[Source, Sequence[Place]], list[Trial]]] = {
    "connections": try_connections,
    "drops": try_drops,
}
"""By lens; one that has none is only attached and read."""
