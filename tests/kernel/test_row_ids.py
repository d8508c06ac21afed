# SPDX-License-Identifier: Apache-2.0
"""Row IDs are numbers that every JSON reader represents exactly."""

from __future__ import annotations

import pytest

from nettop.snapshots import all_views
from nettop.snapshots.schema import Kind
from tests.kernel import command

pytestmark = pytest.mark.kernel
VIEWS = [f"{lens.id}.{table.name}" for lens, table in all_views() if lens.id not in ("collector", "self")]


@pytest.mark.parametrize("view", VIEWS)
def test_keys_are_exact_in_json(view: str) -> None:
    """Keys and labels of each table survive JavaScript's numbers."""
    table = next(table for lens, table in all_views() if f"{lens.id}.{table.name}" == view)
    names = [field.name for field in table.stored if field.kind in (Kind.KEY, Kind.LABEL)]
    rows = command.rows("--view", view, "--columns", ",".join(names))
    values = {row[name] for row in rows for name in names if row[name] is not None}
    assert {value for value in values if value >= 1 << 53} == set()
