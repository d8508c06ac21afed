# SPDX-License-Identifier: Apache-2.0
"""What stacks were sampled between two snapshots, written in each format."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

from nettop.output.cpu.flame_svg import flame_svg
from nettop.output.cpu.folded import folded
from nettop.output.cpu.speedscope import speedscope
from nettop.query.cpu import Profile, grown_rows, stack_counts
from nettop.query.view import View
from nettop.settings import ExportFormat
from nettop.snapshots.arrays import take
from nettop.snapshots.safe_text import safe_text
from nettop.snapshots.snapshot import Rows, Snapshot

FORMATTERS: Mapping[str, Callable[[Profile], str]] = {
    ExportFormat.FOLDED: folded,
    ExportFormat.SPEEDSCOPE: speedscope,
    ExportFormat.SVG: flame_svg,
}
"""What makes each format."""


class StackExporter:
    """See nettop.output.lens_output.Exporter."""

    unit = "samples"

    def count(self, rows: Rows) -> int:
        """Samples in all stacks."""
        return int(rows.array["samples"].sum())

    def difference(self, ended: Rows, began: Rows) -> Rows:
        """The stacks, with the samples between the two."""
        return grown_rows(ended, began)

    def remarks(self, began: Snapshot) -> list[str]:
        """Why functions have no names, where they have none."""
        why = began.missing.get("stack")
        return [] if why is None else [f"functions have no names: {why}"]

    def write(self, form: str, view: View, began: Snapshot) -> tuple[str, str]:
        """The profile, and its samples and seconds."""
        rows = view.now
        shown = Rows(rows.table, take(rows.array, view.order), rows.texts, rows.taken_ns)
        elapsed_ns = rows.taken_ns - began.tables[view.table.name].taken_ns
        host = safe_text(os.uname().nodename)
        counts = tuple(stack_counts(shown))
        profile = Profile(counts, host, began.wall_ns, elapsed_ns, began.counts["sampled_hz"])
        idle = "" if counts else ": the network stack took next to no CPU time, or the filter leaves none"
        return FORMATTERS[form](profile), f"{profile.samples} samples in {elapsed_ns / 1e9:.1f} s{idle}"
