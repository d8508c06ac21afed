# SPDX-License-Identifier: Apache-2.0
"""What lenses may lose, as they declare it and as they count it."""

import time

import pytest

from nettop.engine.source import probe_of
from nettop.snapshots import lenses
from nettop.snapshots.schema import Lens

pytestmark = pytest.mark.kernel


@pytest.mark.parametrize("lens", lenses(), ids=lambda lens: lens.id)
def test_what_is_counted_as_lost_is_declared(lens: Lens) -> None:
    """Help and documents have every name that a lens counts something under, and no other."""
    source = probe_of(lens.id)
    for table in lens.tables:
        source.set("table", table.name)
    try:
        source.start()
        lost = source.read(time.monotonic_ns()).lost
    finally:
        source.close()
    assert sorted(lost) == sorted(loss.name for loss in lens.losses)
