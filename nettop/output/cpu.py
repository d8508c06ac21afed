# SPDX-License-Identifier: Apache-2.0
"""Exports of the stacks sampled between two snapshots: folded, for speedscope, and as a flame graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from nettop.output.lens_output import LensOutput
from nettop.query.view import View
from nettop.settings import ExportFormat
from nettop.snapshots.arrays import take_rows
from nettop.snapshots.cpu import STACKS
from nettop.snapshots.safe_text import safe_text
from nettop.snapshots.snapshot import Rows, Snapshot
from nettop.stacks.counts import Profile, grown_rows, stack_counts
from nettop.stacks.exports import folded, speedscope
from nettop.stacks.flame_svg import flame_svg

FORMATTERS: Mapping[str, Callable[[Profile], str]] = {
    ExportFormat.FOLDED: folded,
    ExportFormat.SPEEDSCOPE: speedscope,
    ExportFormat.SVG: flame_svg,
}
"""Formatter of each format."""


class StackExporter:
    """An exporter of stacks; see nettop.output.lens_output.Exporter."""

    unit = "samples"

    def count(self, rows: Rows) -> int:
        """Return the samples in all stacks."""
        return int(rows.array["samples"].sum())

    def difference(self, ended: Rows, began: Rows) -> Rows:
        """Return the stacks with the samples taken between the two."""
        return grown_rows(ended, began)

    def write(self, form: str, view: View, began: Snapshot, host: str) -> tuple[str, str]:
        """Return the profile, and its samples and seconds as text."""
        rows = view.now
        shown = Rows(rows.table, take_rows(rows.array, view.order), rows.texts, rows.taken_ns)
        elapsed_ns = rows.taken_ns - began.tables[view.table.name].taken_ns
        counts = tuple(stack_counts(shown))
        profile = Profile(counts, safe_text(host), began.wall_ns, elapsed_ns, began.counts["sampled_hz"])
        idle = "" if counts else ": the network stack used hardly any CPU time, or the filter matched nothing"
        return FORMATTERS[form](profile), f"{profile.samples} samples in {elapsed_ns / 1e9:.1f} s{idle}"


OUTPUT = LensOutput(exporters={STACKS.name: StackExporter()})
