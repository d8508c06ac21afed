# SPDX-License-Identifier: Apache-2.0
"""The time of a reading is the time at which its counters were read."""

import importlib
import time
from contextlib import closing

import pytest

from nettop.engine.source import probe_of
from nettop.snapshots import lenses
from nettop.snapshots.schema import Lens
from nettop.snapshots.source import SourceOptions

pytestmark = pytest.mark.kernel


@pytest.mark.parametrize("lens", lenses(), ids=lambda lens: lens.id)
def test_a_reading_has_the_time_of_its_counters(lens: Lens, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the rows take to be made, the snapshot has the time at which its first table was read."""
    probe = importlib.import_module(f"nettop.probes.{lens.id}.probe")
    monkeypatch.setattr(probe, "clocks", lambda taken_ns: (taken_ns, taken_ns))
    with closing(probe_of(lens.id)) as source:
        source.configure(SourceOptions(frozenset({lens.main.name}), whole=True))
        source.start()
        for _ in range(2):
            begun_ns = time.monotonic_ns()
            snapshot = source.read(begun_ns)
            assert begun_ns <= snapshot.boot_ns == snapshot.tables[lens.main.name].taken_ns
