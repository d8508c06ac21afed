# SPDX-License-Identifier: Apache-2.0
"""Plots as SVG, readable on dark and on light pages: lines on logarithmic axes, and bars with whiskers."""

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape

WIDTH, HEIGHT = 640, 320
LEFT, RIGHT, TOP, BOTTOM = 64, 150, 34, 44
BAR_LEFT, BAR_HEIGHT = 190, 22
COLOURS = (
    ("#0969da", "#58a6ff"), ("#cf222e", "#ff7b72"), ("#1a7f37", "#3fb950"), ("#9a6700", "#d29922"),
    ("#8250df", "#bc8cff"), ("#57606a", "#8b949e"), ("#bc4c00", "#f0883e"),
)  # fmt: skip
"""Colours of series on light and on dark pages; the first ones are nettop's."""

Point = tuple[float, float, float, float]
"""Size, median and quartiles."""


def style() -> str:
    """Return the style sheet for both kinds of pages."""

    def rules(at: int, ink: str, line: str) -> str:
        series = "".join(f".c{n}{{stroke:{c[at]}}}.f{n}{{fill:{c[at]}}}" for n, c in enumerate(COLOURS))
        return f"text{{fill:{ink}}}.grid{{stroke:{line}}}.ink{{stroke:{ink}}}{series}"

    fixed = "text{font:12px sans-serif}.title{font-weight:bold}path{fill:none;stroke-width:2}"
    dark = f"@media (prefers-color-scheme: dark){{{rules(1, '#e6edf3', '#30363d')}}}"
    return f"<style>{fixed}.dash{{stroke-dasharray:5 4}}{rules(0, '#1f2328', '#d0d7de')}{dark}</style>"


def document(height: float, title: str, parts: Iterator[str]) -> str:
    """Return a whole drawing."""
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" role="img">'
    return "\n".join((head, f"<title>{escape(title)}</title>", style(), *parts, "</svg>", ""))


def text(x: float, y: float, words: str, anchor: str = "start", kind: str = "") -> str:
    """Return a line of text."""
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def line(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    """Return a straight line."""
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def number(value: float) -> str:
    """Return a number with three digits, and commas between thousands."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else "–"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{digits}f}" if digits else f"{round(value):,}"


def decades(low: float, high: float) -> list[float]:
    """Return the powers of ten around two positive numbers."""
    first = math.floor(math.log10(low))
    return [10.0**power for power in range(first, max(first + 1, math.ceil(math.log10(high))) + 1)]


def lines(
    title: str, unit: str, over: str, series: Mapping[str, Sequence[Point]], dashed: Sequence[str]
) -> str:
    """Draw a line for each series over sizes, both axes logarithmic, with quartiles as whiskers."""
    points = [(x, y) for one_series in series.values() for x, y, _, _ in one_series if x > 0 and y > 0]
    sizes, medians = zip(*points, strict=True)
    across, up = (min(sizes), max(sizes)), decades(min(medians), max(medians))
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM

    def place(value: float, ticks: Sequence[float], first: float, last: float) -> float:
        share = math.log(max(value, ticks[0]) / ticks[0]) / math.log(ticks[-1] / ticks[0])
        return first + share * (last - first)

    def drawn() -> Iterator[str]:
        yield text(LEFT, 18, f"{title} ({unit})", kind="title")
        for tick in (decade for decade in decades(*across) if across[0] <= decade <= across[1]):
            x = place(tick, across, LEFT, right)
            yield line("grid", x, TOP, x, bottom)
            yield text(x, bottom + 16, number(tick), "middle")
        for tick in up:
            y = place(tick, up, bottom, TOP)
            yield line("grid", LEFT, y, right, y)
            yield text(LEFT - 6, y + 4, number(tick), "end")
        yield text((LEFT + right) / 2, HEIGHT - 8, over, "middle")
        ends = []
        for order, (name, each) in enumerate(series.items()):
            colour = order % len(COLOURS)
            at = [(place(x, across, LEFT, right), [place(v, up, bottom, TOP) for v in ys]) for x, *ys in each]
            dash = "dash" if name in dashed else ""
            path = " L".join(f"{x:.1f} {y:.1f}" for x, (y, _, _) in at)
            yield f'<path class="c{colour} {dash}" d="M{path}"/>'
            for x, (y, low, high) in at:
                yield f'<circle class="f{colour}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>'
                yield line(f"c{colour}", x, low, x, high)
            ends.append((at[-1][1][0], at[-1][0], colour, name))
        lowest = 0.0
        for y, x, colour, name in sorted(ends):  # labels do not cover each other
            lowest = max(y, lowest + 14)
            yield text(x + 8, lowest + 4, name, kind=f"f{colour}")

    return document(HEIGHT, title, drawn())


def bars(title: str, unit: str, series: Mapping[str, Point], base: float, others: Sequence[str]) -> str:
    """Draw a bar for each subject from a base, with quartiles as whiskers; other tools' bars are grey."""
    values = [value for _, *points in series.values() for value in points]
    low, high = min(*values, base), max(*values, base)
    margin = 0.1 * (high - low) or 1
    low, high = low - margin * (low < base), high + margin
    height = TOP + BAR_HEIGHT * len(series) + 12

    def place(value: float) -> float:
        return BAR_LEFT + (value - low) / (high - low) * (WIDTH - BAR_LEFT - 90)

    def drawn() -> Iterator[str]:
        yield text(8, 18, f"{title} ({unit})", kind="title")
        yield line("ink", place(base), TOP - 6, place(base), height - 8)
        for order, (name, (_, median, first, last)) in enumerate(series.items()):
            y, colour = TOP + order * BAR_HEIGHT, 5 if name in others else 0
            left, width = min(place(base), place(median)), abs(place(median) - place(base))
            yield text(BAR_LEFT - 8, y + 13, name, "end")
            yield f'<rect class="f{colour}" x="{left:.1f}" y="{y + 2}" width="{width:.1f}" height="{BAR_HEIGHT - 8}"/>'
            yield line("ink", place(first), y + 9, place(last), y + 9)
            yield text(max(place(last), place(median), place(base)) + 6, y + 13, number(median))

    return document(height, title, drawn())
