# SPDX-License-Identifier: Apache-2.0
"""A flame graph as a self-contained SVG file: click to zoom, Ctrl-F to search, click the legend to highlight."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator
from pathlib import Path

from nettop.query.units import human
from nettop.snapshots.cpu import CATEGORIES
from nettop.stacks.colours import FRAMES
from nettop.stacks.counts import FlameNode, Profile, category_totals, flame_tree

WIDTH, MARGIN, HEAD, ROW = 1200, 10, 74, 18
"""Pixels: the initial width (flame.js adapts it to the browser's window), the margins beside and above the frames, and
the height of a row."""
CHAR = 7.23
"""Width of a character in pixels."""
NARROWEST = 0.0001
"""Smallest share of all samples that is drawn; narrower frames are omitted and counted."""

_LEGEND_ROW, _LEGEND_COLUMN, _FOOT = 22, 226, 40
GRAPH = {"row": ROW, "char": CHAR}
"""Sizes for flame_graph.js."""
_LAYOUT = {
    **GRAPH,
    "left": MARGIN,
    "top": HEAD,
    "legendRow": _LEGEND_ROW,
    "legendColumn": _LEGEND_COLUMN,
    "foot": _FOOT,
}
"""Layout constants for flame.js."""
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def _colour(category: int) -> str:
    """Return the fill colour of a category, which is light enough for black text."""
    return FRAMES[CATEGORIES[category].letter][1]


def flame_svg(profile: Profile) -> str:
    """Return the flame graph of all stacks: entry points below the root, callees below their callers."""
    tree = flame_tree(profile.counts)
    graph = _Graph(tree, profile)
    frames = "".join(graph.frames(tree))
    legend_at = HEAD + graph.rows * ROW + 24
    height = legend_at + graph.legend_rows * _LEGEND_ROW + _FOOT
    size = f'width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}"'
    return f"""\
<?xml version="1.0" encoding="UTF-8" standalone="no"?>
<svg xmlns="http://www.w3.org/2000/svg" {size} data-layout="{_text(json.dumps(_LAYOUT))}">
<title>{_text(profile.title)}</title>
<style>
{_part("flame.css")}</style>
<rect id="paper" width="100%" height="100%"/>
<text id="headline" x="{MARGIN}" y="24">{_text(profile.title)}</text>
<text x="{MARGIN}" y="45">{_text(graph.subtitle)}</text>
<g id="controls">
<text id="reset" class="button" x="{MARGIN}" y="66" visibility="hidden">reset zoom (Esc)</text>
<text id="matched" x="{MARGIN + 150}" y="66"></text>
<foreignObject id="search" x="{WIDTH - MARGIN - 240}" y="50" width="240" height="22">\
<input xmlns="http://www.w3.org/1999/xhtml" type="search" placeholder="search (Ctrl-F)" aria-label="search"/>\
</foreignObject>
</g>
<g id="frames">
{frames}</g>
<g id="legend">
{"".join(graph.legend(legend_at))}</g>
<g id="details"><rect width="100%" height="26"/><text x="{MARGIN}" y="18"></text></g>
<script><![CDATA[
{_part("flame_graph.js").replace("export function", "function")}{_part("flame.js")}]]></script>
</svg>
"""


class _Graph:
    """The parts of the image that depend on the stacks."""

    def __init__(self, tree: FlameNode, profile: Profile) -> None:
        self.rows = 0
        self.omitted = 0
        self._tree = tree
        self._elapsed_ns = profile.elapsed_ns
        self._totals = sorted(category_totals(profile.counts).items(), key=lambda item: -item[1][0])

    def frames(self, node: FlameNode, at: int = 0, depth: int = 0) -> Iterator[str]:
        """Yield a function and its callees that are wide enough. The function begins `at` samples from the left."""
        self.rows = max(self.rows, depth + 1)
        yield self._frame(node, at, depth)
        for child in node.children:
            if child.samples < self._tree.samples * NARROWEST:
                self.omitted += 1
            else:
                yield from self.frames(child, at, depth + 1)
            at += child.samples

    def _frame(self, node: FlameNode, at: int, depth: int) -> str:
        scale = (WIDTH - 2 * MARGIN) / max(self._tree.samples, 1)
        x, y, width = MARGIN + at * scale, HEAD + depth * ROW, node.samples * scale
        category = CATEGORIES[node.category]
        label = f"{category.letter} {node.symbol}" if depth > 1 else node.symbol
        return (
            f'<g class="frame" data-at="{at}" data-of="{node.samples}" data-row="{depth}" '
            f'data-category="{node.category}" data-label="{_text(label)}">'
            f"<title>{_text(self._details(node))}</title>"
            f'<rect x="{x:.2f}" y="{y}" width="{width:.2f}" height="{ROW - 1}" fill="{_colour(node.category)}"/>'
            f'<text x="{x + 3:.2f}" y="{y + 13}">{_text(_fitting(label, width))}</text></g>\n'
        )

    def _details(self, node: FlameNode) -> str:
        """Return details such as `tcp_v4_rcv · TCP · 1,234 samples (12.3 %) · 1.2 s · 12.3 % of one CPU`."""
        parts = (
            node.symbol,
            CATEGORIES[node.category].label,
            f"{node.samples:,} samples ({_percent(node.samples, self._tree.samples)})",
            human(node.time_ns, "ns"),
            f"{_percent(node.time_ns, self._elapsed_ns)} of one CPU",
        )
        return " · ".join(parts)

    @property
    def subtitle(self) -> str:
        """Total samples and their time."""
        narrow = f" · {self.omitted:,} too narrow to draw" if self.omitted else ""
        time_ns = self._tree.time_ns
        time = f"{human(time_ns, 'ns')}, {_percent(time_ns, self._elapsed_ns)} of one CPU"
        return f"{self._tree.samples:,} samples · {time}{narrow}"

    @property
    def legend_rows(self) -> int:
        """Number of rows of the legend."""
        return -(-len(self._totals) // _LEGEND_COLUMNS)

    def legend(self, top: int) -> Iterator[str]:
        """Yield each sampled category, the largest first, with colour, letter, name and share."""
        for place, (number, (samples, _)) in enumerate(self._totals):
            row, column = divmod(place, _LEGEND_COLUMNS)
            x, y = MARGIN + column * _LEGEND_COLUMN, top + row * _LEGEND_ROW
            category = CATEGORIES[number]
            label = f"{category.label} {_percent(samples, self._tree.samples)}"
            yield (
                f'<g class="entry" data-category="{number}"><title>{_text(category.help)}</title>'
                f'<rect x="{x}" y="{y}" width="18" height="16" fill="{_colour(number)}"/>'
                f'<text x="{x + 5}" y="{y + 12}">{_text(category.letter)}</text>'
                f'<text x="{x + 24}" y="{y + 12}">{_text(label)}</text></g>\n'
            )


_LEGEND_COLUMNS = (WIDTH - 2 * MARGIN) // _LEGEND_COLUMN


def _fitting(label: str, width: float) -> str:
    """Shorten the label to the width of its frame, like `fitting` in flame_graph.js."""
    chars = max(int((width - 4) / CHAR), 0)
    if len(label) <= chars:
        return label
    return f"{label[: chars - 1]}…" if chars > 4 else label[: min(chars, 1)]


def _percent(part: int, whole: int) -> str:
    return f"{part / whole * 100:.1f} %" if whole else "–"


def _text(text: str) -> str:
    """Escape text for XML, replacing characters that XML forbids."""
    return html.escape(_NOT_XML.sub("\ufffd", text))


def _part(name: str) -> str:
    """Read a file beside this one."""
    return Path(__file__).with_name(name).read_text(encoding="utf-8")
