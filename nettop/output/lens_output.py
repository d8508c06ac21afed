# SPDX-License-Identifier: Apache-2.0
"""A lens's additions to plain output beyond its declaration: `OUTPUT` in nettop/output/LENS, if it exists."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from nettop.formats.cells import Cell
from nettop.query.view import View
from nettop.snapshots import lens_part
from nettop.snapshots.arrays import Index
from nettop.snapshots.schema import Table
from nettop.snapshots.snapshot import Rows, Snapshot

Part = Callable[[View, Index], list[Cell]]
"""Function that returns the cells of one part of each readable line, including its leading spaces."""


class Exporter(Protocol):
    """An export of a table's counts between two snapshots."""

    unit: str
    """Unit of the counts, in the plural."""

    def count(self, rows: Rows) -> int:
        """Return the total count of the rows."""

    def difference(self, ended: Rows, began: Rows) -> Rows:
        """Return the counts between the two snapshots."""

    def write(self, form: str, view: View, began: Snapshot, host: str) -> tuple[str, str]:
        """Return the export of the view's rows, which were counted on `host`, and a readable summary of its size."""


@dataclass(frozen=True, slots=True)
class LensOutput:
    """A lens's additions to plain output; none by default."""

    line_parts: Callable[[Table, str], list[Part]] | None = None
    """Function that returns the parts of a table's readable lines; each line names its kind after the time."""
    log_names: Mapping[str, str] = field(default_factory=dict)
    """Names of log files and lines, by view, where they differ from the view's name."""
    totals: tuple[str, ...] = ()
    """Snapshot counts shown in the summary of a log."""
    reported_gaps: tuple[str, ...] = ()
    """Gaps to report even without a banner."""
    exporters: Mapping[str, Exporter] = field(default_factory=dict)
    """Exporters by table name."""


def lens_output(lens: str) -> LensOutput:
    """Return the lens's additions to plain output."""
    module = lens_part(lens, "output")
    output: LensOutput = LensOutput() if module is None else module.OUTPUT
    return output
