# SPDX-License-Identifier: Apache-2.0
"""What a lens adds to plain output beyond its declaration: `OUTPUT` of nettop/output/LENS, if there is one."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from nettop.query.view import View
from nettop.snapshots.arrays import Index
from nettop.snapshots.schema import Table
from nettop.snapshots.snapshot import Rows, Snapshot

Part = Callable[[View, Index], list[str]]
"""Makes a part of each readable line; it begins with the spaces before it."""


class Exporter(Protocol):
    """Exports what a table counted between two snapshots."""

    unit: str
    """What is counted, in the plural."""

    def count(self, rows: Rows) -> int:
        """How much the rows have counted."""

    def difference(self, ended: Rows, began: Rows) -> Rows:
        """What was counted between the two."""

    def remarks(self, began: Snapshot) -> list[str]:
        """What a person should know of what the export lacks."""

    def write(self, form: str, view: View, began: Snapshot) -> tuple[str, str]:
        """The export of the rows that the view shows, and how much it is, for a person."""


@dataclass(frozen=True, slots=True)
class LensOutput:
    """What a lens adds to plain output; the fields have defaults for lenses that add nothing."""

    line_parts: Callable[[Table, str], list[Part]] | None = None
    """The parts of a table's readable lines, of which each says the kind of line behind its time."""
    log_names: Mapping[str, str] = field(default_factory=dict)
    """Names of a log's files and lines, by view, where they are not the view's."""
    totals: tuple[str, ...] = ()
    """The counts of a snapshot that the summary of a log gives."""
    reported_gaps: tuple[str, ...] = ()
    """Gaps that are reported even where there is no banner."""
    exporters: Mapping[str, Exporter] = field(default_factory=dict)
    """What exports a table, by its name."""


def output_of(lens: str) -> LensOutput:
    """What the lens adds."""
    name = f"nettop.output.{lens}"
    if importlib.util.find_spec(name) is None:
        return LensOutput()
    output: LensOutput = importlib.import_module(name).OUTPUT
    return output
